"""Experiment 8: does bfloat16 change where FlashSAC's gradients point, or only how much they shake?

From a checkpoint's weights and its own transitions, the same minibatches and random numbers give
gradients in float32, run eagerly, and on every other path. What rounding adds is noise as far as it
averages out over minibatches, and bias as far as it does not.

Said before any run: a path is *harmless* if the mean gradient's bias is below 5 % of its length and
its cosine with float32's above 0.99, for actor and critic alike.

    python -m benchmarks.experiments.rounding RUN/checkpoints/step_20000

Some minutes of one core; rows are appended to ``benchmarks/results/rounding.csv``. The tables it
prints also say how much gradients differ between minibatches, beside which rounding is to be seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.experiments import command
from supple.agents.adam import BETA1
from supple.agents.flashsac import Batch, FlashSAC
from supple.bench.table import append, read
from supple.build import build_agent
from supple.diagnostics.data import Transitions
from supple.diagnostics.targets import Target, load_targets
from supple.errors import InputError

ROWS = Path(__file__).parents[1] / "results" / "rounding.csv"
COMMAND = "python -m benchmarks.experiments.rounding"
MINIBATCHES = 60
REFERENCE = ("float32", "off")
PATHS = {
    "float32 compiled": ("float32", "on"),
    "bfloat16 eager": ("bfloat16", "off"),
    "bfloat16 compiled": ("bfloat16", "on"),
}
NETWORKS = ("actor", "critic")
BIAS, COSINE = 0.05, 0.99


def minibatches(data: Transitions, agent: FlashSAC) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """What ``FlashSAC.learn`` takes, the same at every call."""
    rows, gamma = agent.settings.batch_size, agent.settings.gamma
    generator = torch.Generator().manual_seed(0)
    for _ in range(MINIBATCHES):
        part = data.rows(torch.randint(len(data), (rows,), generator=generator))
        actor, critic = agent.actor_groups, agent.critic_groups
        noise, next_noise = torch.randn(2, *part.action.shape, generator=generator)
        batch = Batch(
            actor_obs_2BD=torch.cat((part.obs(actor), part.next_obs(actor))),
            critic_obs_2BD=torch.cat((part.obs(critic), part.next_obs(critic))),
            action_BA=part.action,
            reward_B=part.reward,
            terminated_B=part.terminated.float(),
            discount_B=torch.full((rows,), gamma),
        )
        yield batch, noise, next_noise


def gradients(target: Target, state: Mapping[str, Any], path: tuple[str, str]) -> dict[str, Tensor]:
    """By network, one row per minibatch, (MINIBATCHES, parameters)."""
    settings: Any = copy.deepcopy(target.settings)
    settings.compute.precision, settings.compute.compile = path
    agent = build_agent(settings, target.spec)
    assert isinstance(agent, FlashSAC)
    agent.load_state_dict(state)
    found: dict[str, list[Tensor]] = {name: [] for name in NETWORKS}
    start = agent.state_dict()
    start["counters"] |= {"updates": 0}  # an actor step is due
    for moments in start["optimizers"].values():
        for value in (*moments["mean"], *moments["square"]):
            value.zero_()
    start = copy.deepcopy(start)
    for batch in minibatches(target.data.current(), agent):
        agent.load_state_dict(copy.deepcopy(start))
        agent.learn(*batch)
        # A first moment that was 0 holds the gradient, also where the step is one compiled graph.
        for name in NETWORKS:
            mean = agent._optimizers[name].mean
            found[name].append(torch.cat([part.flatten() for part in mean]) / (1 - BETA1))
    return {name: torch.stack(rows) for name, rows in found.items()}


def compared(reference_NP: Tensor, other_NP: Tensor) -> dict[str, float]:
    """Noise and bias of gradients beside the reference's, relative to the mean gradient's length.

    ``noise in the bias`` is the bias that noise of this size leaves by chance.
    """
    mean_P, other_P = (found.mean(0, dtype=torch.float64) for found in (reference_NP, other_NP))
    error_NP = other_NP - reference_NP
    length = mean_P.norm()
    by_chance = (error_NP.var(0).sum() / len(error_NP)).sqrt()
    return {
        "between minibatches": float(reference_NP.var(0).sum().sqrt() / length),
        "rounding": float(error_NP.square().sum(1).mean().sqrt() / length),
        "bias": float((other_P - mean_P).norm() / length),
        "noise in the bias": float(by_chance / length),
        "cosine": float(torch.cosine_similarity(mean_P, other_P, dim=0)),
    }


def is_harmless(found: Mapping[str, float | str]) -> bool:
    """What was said before, applied to one network."""
    return float(found["bias"]) < BIAS and float(found["cosine"]) > COSINE


def measure(path: Path) -> list[dict[str, Any]]:
    """A row per path and network.

    Raises:
        InputError: not a checkpoint of FlashSAC's categorical critic.
    """
    (target,), _ = load_targets([path])
    settings: Any = target.settings
    if settings.agent_name != "flashsac" or settings.agent.critic != "categorical":
        raise InputError(f"{path}: expected a checkpoint of FlashSAC's categorical critic")
    state = target.agent.state_dict()
    reference = gradients(target, state, REFERENCE)
    rows = []
    for name, how in PATHS.items():
        other = gradients(target, state, how)
        for network in NETWORKS:
            numbers = compared(reference[network], other[network])
            rows.append(
                {
                    "task": settings.task,
                    "seed": settings.seed,
                    "step": target.env_steps,
                    "path": name,
                    "network": network,
                    "minibatches": MINIBATCHES,
                    **{key: f"{value:.4f}" for key, value in numbers.items()},
                }
            )
    return rows


def main() -> int:
    """Measure a checkpoint, then report."""
    parser = command.parser(__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="*", metavar="CHECKPOINT")
    options = parser.parse_args()
    for path in () if options.report else options.checkpoints:
        append(measure(path), ROWS, COMMAND)
    shown = ("step", "path", "network", "between minibatches", "rounding", "bias", "cosine")
    lines = [
        {name: row[name] for name in shown} | {"harmless": str(is_harmless(row))}
        for row in read(ROWS)
    ]
    command.say("gradients beside float32's, over the mean gradient's length", lines)
    return 0


if __name__ == "__main__":
    command.start(main)
