"""Experiment 1: which critic still learns the value of a fixed policy when data are few.

A walker follows the way through the gap of a maze; its value is learned by TD(0) from transitions
at uniform states, many updates per transition, and compared with Monte-Carlo rollouts.

=========== ===================================================================================
critic      how V(s) is learned
=========== ===================================================================================
scalar      squared error
noise       squared error, reading one noise sample more: as many regressions as the flow
categorical cross-entropy to the target's Gaussian histogram (HL-Gauss)
flow        the published flow critic: K = 4, M = 4, kappa = 0.1
zero        its control without dense supervision: t = 0, K = 1
endpoint    its control without velocities
flow K=...  other numbers of steps, and (flow kappa=...) widths of the noise
=========== ===================================================================================

All read networks of the same width, depth and norm, and get the same transitions and minibatches.
The policy is fixed and a transition has one next state, so that every critic has one next-action
draw; those that integrate noise draw M = 4 samples.
The seeds of a shard are trained side by side, as members of one ensemble with data, minibatches
and initial weights of their own; flow times and noise they share.

    python -m benchmarks.experiments.policy_evaluation --seeds 0 1 2 3 4
    python -m benchmarks.experiments.policy_evaluation --report

A shard's rows are appended when it is done; what the file already has is not run again.
Shapes: ``E`` seeds, ``T`` transitions, ``B`` rows of a minibatch, ``M`` noise samples.
Source: problem and sizes are our own; the critics are those of arXiv:2509.06863.
"""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.experiments import command
from benchmarks.experiments.maze import GOAL, ONE_WALL, STRIDE, moved, reached, towards
from supple import machine
from supple.agents.adam import Adam
from supple.agents.critics import CriticSize
from supple.agents.flow_critics import FlowPrediction, FlowRange, PublishedFlowCritic
from supple.agents.flow_settings import published
from supple.agents.velocity import MLPSize, PublishedMLP
from supple.bench.table import append, read
from supple.diagnostics import recovery, representation
from supple.diagnostics.features import flow_features
from supple.diagnostics.linalg import singular_values
from supple.diagnostics.units import dormant_fraction
from supple.display import Display
from supple.intervals import half_width95
from supple.kernels.critic_integration import Form, ValueEncoding
from supple.rng import derive_seed

RESULTS = Path(__file__).parents[1] / "results"
ROWS = RESULTS / "policy_evaluation.csv"
COMMAND = "python -m benchmarks.experiments.policy_evaluation"

GAMMA = 0.98
WORST = -1 / (1 - GAMMA)
POLICY_NOISE = 0.02
BATCH, WIDTH, DEPTH, STEPS, SAMPLES, TAU = 128, 128, 3, 4, 4, 0.02
KAPPA = 0.1
INITIAL, COLLECTED = 200, 192
STATES, ROLLOUTS = 400, 32
POINTS = 24
"""Evaluations of a run, evenly spaced."""
BINS, SIGMA_BINS = 101, 0.75


class Transitions(NamedTuple):
    """Of the fixed policy, from uniform states."""

    state_ET2: Tensor
    next_ET2: Tensor
    terminated_ET: Tensor


def policy_step(state_N2: Tensor, generator: torch.Generator) -> Tensor:
    """Where the fixed policy's next step leads, (..., 2)."""
    noise_N2 = POLICY_NOISE * torch.randn(state_N2.shape, generator=generator)
    by_N2 = STRIDE * towards(ONE_WALL, state_N2, state_N2.new_tensor(GOAL)) + noise_N2
    return moved(ONE_WALL, state_N2, by_N2)


def collect(count: int, seeds: Sequence[int]) -> Transitions:
    """As many transitions for each seed."""

    def one(seed: int) -> Transitions:
        generator = torch.Generator().manual_seed(derive_seed(seed, "transitions"))
        state_T2 = torch.rand(count, 2, generator=generator)
        next_T2 = policy_step(state_T2, generator)
        return Transitions(state_T2, next_T2, reached(next_T2))

    return Transitions(*(torch.stack(part) for part in zip(*map(one, seeds), strict=True)))


class Truth(NamedTuple):
    """Monte-Carlo values of uniform states, the same for every seed."""

    state_N2: Tensor
    value_N: Tensor


def truth() -> Truth:
    """Of ``STATES`` states from ``ROLLOUTS`` rollouts each."""
    generator = torch.Generator().manual_seed(derive_seed(0, "truth"))
    start_N2 = torch.rand(STATES, 2, generator=generator)
    state_N2 = start_N2.repeat_interleave(ROLLOUTS, dim=0)
    alive_N, return_N = torch.ones(len(state_N2)), torch.zeros(len(state_N2))
    for step in range(600):  # GAMMA^600 = 5e-6
        return_N -= GAMMA**step * alive_N
        state_N2 = policy_step(state_N2, generator)
        alive_N *= ~reached(state_N2)
    return Truth(start_N2, return_N.view(STATES, ROLLOUTS).mean(1))


class Learner(nn.Module):
    """E value functions of states, one per seed."""

    samples = 0
    """Noise samples per state."""

    @abstractmethod
    def values(self, state_EB2: Tensor, uniform_BM: Tensor) -> Tensor:
        """V, (E, B)."""

    @abstractmethod
    def loss(self, state_EB2: Tensor, target_EB: Tensor, uniform_BR: Tensor) -> Tensor:
        """Sum over seeds of the mean over rows, 0-d; takes twice ``samples`` uniform numbers."""


class Scalar(Learner):
    """Squared error."""

    def __init__(self, seeds: int, generator: torch.Generator) -> None:
        super().__init__()
        form = Form(encoding=ValueEncoding(low=WORST, high=0.0))
        size = MLPSize(inputs=2, width=WIDTH, depth=DEPTH, members=seeds)
        self.body = PublishedMLP(size, form=form, generator=generator)

    def values(self, state_EB2: Tensor, uniform_BM: Tensor) -> Tensor:
        """The network's output, (E, B)."""
        out: Tensor = self.body(state_EB2)
        return out

    def loss(self, state_EB2: Tensor, target_EB: Tensor, uniform_BR: Tensor) -> Tensor:
        """Mean squared error, 0-d."""
        return (self.values(state_EB2, uniform_BR) - target_EB).square().mean(1).sum()


class Categorical(Scalar):
    """Cross-entropy to a Gaussian histogram. Source: HL-Gauss, arXiv:2403.03950."""

    def __init__(self, seeds: int, generator: torch.Generator) -> None:
        super().__init__(seeds, generator)
        margin = 0.02 * -WORST
        low, high = WORST - margin, margin
        self.histogram = ValueEncoding(low=low, high=high, edges=BINS + 1, sigma_bins=SIGMA_BINS)
        edges = torch.linspace(low, high, BINS + 1)
        self.register_buffer("centres", (edges[1:] + edges[:-1]) / 2)
        weight = torch.randn(seeds, BINS, WIDTH, generator=generator) / WIDTH**0.5
        self.head_EKH = nn.Parameter(0.1 * weight)

    def logits(self, state_EB2: Tensor) -> Tensor:
        """(E, B, K)."""
        return torch.bmm(self.body.features(state_EB2), self.head_EKH.mT)

    def values(self, state_EB2: Tensor, uniform_BM: Tensor) -> Tensor:
        """Mean of each histogram, (E, B)."""
        mean: Tensor = self.logits(state_EB2).softmax(-1) @ self.get_buffer("centres")
        return mean

    def loss(self, state_EB2: Tensor, target_EB: Tensor, uniform_BR: Tensor) -> Tensor:
        """Cross-entropy, 0-d."""
        goal_EBK = self.histogram(target_EB)
        return -(goal_EBK * self.logits(state_EB2).log_softmax(-1)).sum(-1).mean(1).sum()


class Flow(Learner):
    """The published flow critic on states alone."""

    samples = SAMPLES

    def __init__(self, seeds: int, generator: torch.Generator, **switches: Any) -> None:
        super().__init__()
        settings = published()
        settings.width, settings.depth = WIDTH, DEPTH
        settings.readout, settings.kappa = "integrate", KAPPA
        settings.target_steps = settings.read_steps = STEPS
        settings.target_samples = settings.train_samples = settings.read_samples = SAMPLES
        for name, value in switches.items():
            setattr(settings, name, value)
        margin = 0.02 * -WORST
        spans = FlowRange(
            value_low=WORST - margin,
            value_high=margin,
            noise_low=settings.kappa * WORST,
            noise_high=0.0,
        )
        size = CriticSize(inputs=2, hidden=0, blocks=0, members=seeds)
        self.critic = PublishedFlowCritic(size, settings=settings, spans=spans, generator=generator)

    def predict(self, state_EB2: Tensor) -> FlowPrediction:
        """Each seed has rows of its own."""
        return FlowPrediction(state_EB2, self.critic.net.condition(state_EB2))

    def values(self, state_EB2: Tensor, uniform_BM: Tensor) -> Tensor:
        """Mean of the integrated values over noise, (E, B)."""
        start_BM = self.critic.noise(uniform_BM)
        steps = self.critic.settings.target_steps
        return self.critic.integrated(self.predict(state_EB2), start_BM, steps).mean(-1)

    def loss(self, state_EB2: Tensor, target_EB: Tensor, uniform_BR: Tensor) -> Tensor:
        """Squared error of velocities, 0-d."""
        loss = self.critic.loss(self.predict(state_EB2), target_EB[..., None], uniform_BR)
        return len(target_EB) * loss


def make_learner(critic: str, seeds: int, generator: torch.Generator) -> Learner:
    """The learner of a name of ``CRITICS``."""
    one_step = {"train_time": "zero", "target_steps": 1, "read_steps": 1}
    switches: dict[str, dict[str, Any]] = {
        "flow": {},
        "noise": {"predict": "endpoint", **one_step},
        "zero": one_step,
        "endpoint": {"predict": "endpoint"},
    }
    if critic in ("scalar", "categorical"):
        return (Scalar if critic == "scalar" else Categorical)(seeds, generator)
    if critic in switches:
        return Flow(seeds, generator, **switches[critic])
    name, _, value = critic.removeprefix("flow ").partition("=")
    if name == "K":
        return Flow(seeds, generator, target_steps=int(value), read_steps=int(value))
    return Flow(seeds, generator, kappa=float(value))


@dataclass(frozen=True, slots=True)
class Setting:
    """How much is learned from how much."""

    name: str
    initial: int
    """Transitions at the start."""
    updates: int
    per_transition: int
    """Updates between two new transitions; 0 collects none."""
    rate: float

    @property
    def transitions(self) -> int:
        """At the end."""
        return self.initial + (self.updates // self.per_transition if self.per_transition else 0)


SETTINGS = {
    **{
        f"utd {utd}": Setting(f"utd {utd}", INITIAL, COLLECTED * utd, utd, 1e-3)
        for utd in (1, 8, 32, 128)
    },
    "plenty": Setting("plenty", 20_000, 8_000, 0, 3e-4),
}
MAIN = ("scalar", "noise", "categorical", "flow", "zero", "endpoint")
VARIANTS = ("flow K=1", "flow K=8", "flow kappa=0.01", "flow kappa=0.25", "flow kappa=1")
CRITICS = MAIN + VARIANTS


def shards() -> list[tuple[str, str]]:
    """Setting and critic; the variants where data are few and updates many."""
    order = ("utd 32", "plenty", "utd 8", "utd 1", "utd 128")
    main = [(setting, critic) for setting in order for critic in MAIN]
    return main[:6] + [("utd 32", critic) for critic in VARIANTS] + main[6:]


def run_shard(
    setting: Setting, critic: str, seeds: Sequence[int], known: Truth
) -> list[dict[str, Any]]:
    """Train one critic for every seed; a row for each."""
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(derive_seed(min(seeds), "learner", critic))
    learner = make_learner(critic, len(seeds), generator)
    target_net = copy.deepcopy(learner).requires_grad_(False)
    params: list[Tensor] = list(learner.parameters())
    online = [part.detach() for part in params]
    target_params: list[Tensor] = list(target_net.parameters())
    adam = Adam(params)
    data = collect(setting.transitions, seeds)
    samplers = [torch.Generator().manual_seed(derive_seed(seed, "rows")) for seed in seeds]
    member_E1 = torch.arange(len(seeds))[:, None]

    def target(row_EB: Tensor, uniform_BM: Tensor) -> Tensor:
        next_EB = target_net.values(data.next_ET2[member_E1, row_EB], uniform_BM)
        return -1 + GAMMA * ~data.terminated_ET[member_E1, row_EB] * next_EB

    # For speed alone; what earlier shards compiled counts towards a limit.
    torch.compiler.reset()
    loss_of, target_of = (torch.compile(f, dynamic=False) for f in (learner.loss, target))
    errors_PE, snapshot = [], None
    every = max(setting.updates // POINTS, 1)
    for number in range(1, setting.updates + 1):
        per = setting.per_transition
        rows = setting.initial + ((number - 1) // per if per else 0)
        row_EB = torch.stack([torch.randint(rows, (BATCH,), generator=s) for s in samplers])
        uniform_BR = torch.rand(BATCH, 3 * learner.samples, generator=generator)
        drawn_BM, used_BR = uniform_BR.split((learner.samples, 2 * learner.samples), dim=1)
        with torch.no_grad():
            target_EB = target_of(row_EB, drawn_BM)
        loss = loss_of(data.state_ET2[member_E1, row_EB], target_EB, used_BR)
        adam.begin(setting.rate, number)
        adam.step(torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True))
        torch._foreach_lerp_(target_params, online, TAU)
        if number == setting.updates // 4:
            snapshot = copy.deepcopy(learner)
        if number % every == 0:
            errors_PE.append(root_mean_square(learner, known, len(seeds)))
    assert snapshot is not None
    late_PE = torch.stack(errors_PE)[len(errors_PE) // 4 :]
    measured = measure(learner, snapshot, known, len(seeds))
    seconds = time.perf_counter() - begin
    return [
        {
            "setting": setting.name,
            "critic": critic,
            "seed": seed,
            "transitions": setting.transitions,
            "updates": setting.updates,
            "rmse final": f"{late_PE[-1, index]:.3f}",
            "rmse worst after 25 %": f"{late_PE[:, index].max():.3f}",
            **{name: f"{value_E[index]:.4f}" for name, value_E in measured.items()},
            "shard seconds": f"{seconds:.0f}",
        }
        for index, seed in enumerate(seeds)
    ]


def even(samples: int, rows: int) -> Tensor:
    """Uniform numbers for reading: evenly spaced, the same for every row, (B, M)."""
    return ((torch.arange(samples) + 0.5) / max(samples, 1)).expand(rows, -1)


@torch.no_grad()
def root_mean_square(learner: Learner, known: Truth, seeds: int) -> Tensor:
    """Error of the values, (E,)."""
    state_EN2 = known.state_N2.expand(seeds, -1, -1)
    value_EN = learner.values(state_EN2, even(learner.samples, STATES))
    return (value_EN - known.value_N).square().mean(1).sqrt()


def measure(learner: Learner, snapshot: Learner, known: Truth, seeds: int) -> dict[str, Tensor]:
    """What training did to recovery (flows) and to features; NaN where it has no meaning, (E,)."""
    none_E = torch.full((seeds,), torch.nan)
    names = ("z0 gain K=8", "recovery index K=8", "contraction t=0", "rmse K=64 / K")
    found = dict.fromkeys((*names, "srank", "dormant"), none_E)
    generator = torch.Generator().manual_seed(derive_seed(0, "measured states"))
    state_N2 = torch.rand(2048, 2, generator=generator)
    with torch.no_grad():
        if isinstance(learner, Scalar):
            feature_ENH = learner.body.features(state_N2)
        else:
            assert isinstance(learner, Flow)
            start_N1 = learner.critic.noise(even(1, 2048))
            features = flow_features(learner.critic, state_N2, start_N1, steps=1)
            feature_ENH = features.after_norm[0]
    found["srank"] = representation.srank(singular_values(feature_ENH)).float()
    found["dormant"] = dormant_fraction(feature_ENH).float()
    if not isinstance(learner, Flow) or learner.critic.net.form.endpoint:
        return found
    if learner.critic.settings.train_time == "zero":
        return found
    assert isinstance(snapshot, Flow)
    rows_EN2 = known.state_N2.expand(seeds, -1, -1)
    fresh, stale = (net.critic.velocity_at(net.predict(rows_EN2)) for net in (learner, snapshot))
    critic = learner.critic
    start_EBM = critic.noise(even(8, STATES))[None].expand(seeds, -1, -1)
    shift = 0.1 * (critic.range.noise_high - critic.range.noise_low)
    with torch.no_grad():
        curve = recovery.stale_prefix(fresh, stale, start_EBM, steps=8)
        counts = (critic.settings.target_steps, 64)
        sweep = recovery.step_sweep(fresh, start_EBM, known.value_N, counts=counts)
        gain = recovery.injection_gain(fresh, start_EBM, shift, steps=8)
    found["z0 gain K=8"] = gain.mean((1, 2))
    found["recovery index K=8"] = recovery.recovery_index(curve)
    found["contraction t=0"] = recovery.slopes(
        fresh, start_EBM, steps=8, times=(0.0,)
    ).contraction_TE[0]
    found["rmse K=64 / K"] = sweep.error_SE[1] / sweep.error_SE[0]
    return {name: value.detach() for name, value in found.items()}


Values = Mapping[tuple[str, str], Mapping[str, float]]
"""By setting and critic, a number per seed."""


def grouped(rows: Sequence[Mapping[str, str]], column: str) -> Values:
    """A column's values; NaN where nothing is written."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        found[row["setting"], row["critic"]][row["seed"]] = float(row[column] or "nan")
    return dict(found)


def report() -> None:
    """Print a table of every critic and setting, and whether the pilot's ordering is reproduced."""
    rows = read(ROWS)
    final, worst = grouped(rows, "rmse final"), grouped(rows, "rmse worst after 25 %")
    index, gain = grouped(rows, "recovery index K=8"), grouped(rows, "z0 gain K=8")
    for setting in SETTINGS:
        shown = []
        for critic in CRITICS:
            key = (setting, critic)
            if key not in final:
                continue
            errors, late, recovered, injected = (
                np.array(list(values[key].values())) for values in (final, worst, index, gain)
            )
            half = half_width95(float(errors.std(ddof=1)), len(errors))
            shown.append(
                {
                    "critic": critic,
                    "seeds": str(len(errors)),
                    "final RMSE": f"{errors.mean():.2f} ± {half:.2f}",
                    "worst seed": f"{errors.max():.2f}",
                    "worst after 25 %": f"{late.mean():.2f}",
                    "recovery index": f"{recovered.mean():.2f}",
                    "z0 gain": f"{injected.mean():.2f}",
                }
            )
        if shown:
            Display.print_rows(f"{setting}: RMSE of V, mean over seeds ± 95 % interval", shown)
    for line in verdict(final):
        print(line)


def verdict(final: Values) -> list[str]:
    """The pilot's claims, each with what was found: over the seeds that both critics have."""
    claims = (
        ("flow is better than scalar at UTD 32", ("utd 32", "flow"), ("utd 32", "scalar")),
        ("so is the zero control", ("utd 32", "zero"), ("utd 32", "scalar")),
        ("scalar is better than flow with plenty", ("plenty", "scalar"), ("plenty", "flow")),
        ("and better than the zero control", ("plenty", "scalar"), ("plenty", "zero")),
    )
    lines = []
    for claim, better, worse in claims:
        seeds = sorted(final.get(better, {}).keys() & final.get(worse, {}).keys())
        if not seeds:
            lines.append(f"{claim}: not run")
            continue
        low, high = (np.array([final[key][seed] for seed in seeds]) for key in (better, worse))
        ratio = high.mean() / low.mean()
        said = "reproduced" if ratio > 1 else "NOT reproduced"
        lines.append(
            f"{claim}: {said}, mean RMSE {low.mean():.2f} against {high.mean():.2f}"
            f" ({ratio:.2f}x; {(low < high).sum()} of {len(seeds)} seeds)"
        )
    return lines


def main() -> None:
    """Run what is missing, or report."""
    parser = command.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--critics", nargs="+", default=list(CRITICS), choices=list(CRITICS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.report:
        report()
        return
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    known = truth()
    for setting, critic in shards():
        if setting not in options.settings or critic not in options.critics:
            continue
        done = {
            int(row["seed"])
            for row in read(ROWS)
            if (row["setting"], row["critic"]) == (setting, critic)
        }
        seeds = [seed for seed in options.seeds if seed not in done]
        if not seeds:
            continue
        rows = run_shard(SETTINGS[setting], critic, seeds, known)
        # Another process with the same command may have been faster.
        append(rows, ROWS, COMMAND, key=("setting", "critic", "seed"))
        final = [float(row["rmse final"]) for row in rows]
        print(
            f"{setting}, {critic}: {np.round(final, 2)} in {rows[0]['shard seconds']} s", flush=True
        )
    report()


if __name__ == "__main__":
    main()
