"""Experiment 3: are directions of policy instability real?

Four trained policies, two of them discrete (PPO on CartPole and Acrobot), two continuous (FlashSAC
on HalfCheetah and Walker2d), each over 20 whole episodes of its deployed form.

Said before any run: a direction is *real* if odd and even episodes agree on it (split-half cosine
of at least 0.9), if a step of 0.1 standard deviations along it changes the decision more than each
of 20 random directions of the same length does, and if one along the least sensitive direction
changes it less than all of them.

    python -m benchmarks.experiments.instability --out runs/instability
    python -m benchmarks.experiments.instability --report

Runs that the folder does not hold yet are trained first, 1 to 7 minutes of one core each. Ctrl-C
saves; the same command continues.
Source: the question is Korkmaz 2024's, arXiv:2406.16979; the comparison with random directions and
the continuous forms are our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments import command
from supple import cli
from supple.bench.table import append, read
from supple.diagnostics.channels import layout_of
from supple.diagnostics.directions import STABLE_COSINE
from supple.diagnostics.instability import Instability, analyse
from supple.diagnostics.perturbation import SIZES
from supple.diagnostics.policies import policy_of
from supple.diagnostics.rollouts import roll
from supple.diagnostics.states import visited
from supple.diagnostics.targets import load_targets
from supple.display import Display
from supple.evaluate import make_env
from supple.run import RESULT

ROWS = Path(__file__).parents[1] / "results" / "instability.csv"
COMMAND = "python -m benchmarks.experiments.instability"
EPISODES, ENVS = 20, 10
JUDGED_AT = 0.1
TASKS = {
    "cartpole": ("gym/CartPole-v1", "--agent ppo --preset laptop --env-steps 100000"),
    "acrobot": ("gym/Acrobot-v1", "--agent ppo --preset laptop"),
    "cheetah": ("gym/HalfCheetah-v5", "--preset laptop"),
    "walker": ("gym/Walker2d-v5", "--preset laptop"),
}


def train_missing(folder: Path, name: str) -> int:
    """Train a task's run to its end, unless it is there; the exit status."""
    if (folder / RESULT).exists():
        return cli.DONE
    if (folder / "settings.json").exists():
        return cli.main(["resume", str(folder)])
    task, flags = TASKS[name]
    return cli.main(["train", task, *flags.split(), "--eval.no-video", "--run-dir", str(folder)])


def analyses(folder: Path) -> Iterator[tuple[Instability, float]]:
    """Every mode of the last checkpoint's policy, and its mean return."""
    target = load_targets([folder])[0][-1]
    policy = policy_of(target.agent)
    with closing(make_env(target.settings, num_envs=ENVS, purpose="instability")) as env:
        rollout = roll(policy, env, episodes=EPISODES, seed=0)
    states = visited(policy, rollout)
    for mode in policy.modes:
        groups = policy.critic_groups if mode == "critic" else policy.groups
        generator = torch.Generator().manual_seed(0)
        one = analyse(policy, mode, states, layout_of(target.spec, groups), generator)
        yield one, float(rollout.returns.mean())


def rows_of(name: str, one: Instability, earned: float) -> list[dict[str, Any]]:
    """One row per size of the step."""
    split, found = one.split, one.responses
    low, high = one.intervals["concentration"]
    return [
        {
            "task": TASKS[name][0],
            "mode": one.mode,
            "return": round(earned, 1),
            "states": one.states,
            "split cosine": "" if isinstance(split, str) else round(split.cosine, 4),
            "gap": round(one.found.gap, 3),
            "concentration": round(one.found.concentration, 3),
            "low": round(low, 3),
            "high": round(high, 3),
            "step": size,
            "worst": f"{found.worst_S[at]:.3g}",
            "local": f"{found.local_S[at]:.3g}",
            "least": f"{found.least_S[at]:.3g}",
            "random min": f"{found.random_KS[:, at].min():.3g}",
            "random median": f"{found.random_KS[:, at].median():.3g}",
            "random max": f"{found.random_KS[:, at].max():.3g}",
        }
        for at, size in enumerate(SIZES)
    ]


def is_real(row: dict[str, str]) -> bool:
    """What was said before, applied to a row."""
    stable = float(row["split cosine"]) >= STABLE_COSINE
    worse = float(row["worst"]) > float(row["random max"])
    return stable and worse and float(row["least"]) < float(row["random min"])


def report() -> None:
    """The rows at the judged size, and which directions are real."""
    shown = []
    for row in read(ROWS):
        if float(row["step"]) == JUDGED_AT:
            names = ("task", "mode", "split cosine", "worst", "random max", "random min", "least")
            shown.append({name: row[name] for name in names} | {"real": str(is_real(row))})
    if shown:
        Display.print_rows(f"steps of {JUDGED_AT} standard deviations", shown)


def main() -> int:
    """Train what is missing, analyse what has no row yet, report."""
    parser = command.parser(__doc__, runs="instability")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    for name in () if options.report else options.tasks:
        if status := train_missing(options.out / name, name):
            return status
        known = {(row["task"], row["mode"]) for row in read(ROWS)}
        for one, earned in analyses(options.out / name):
            if (TASKS[name][0], one.mode) not in known:
                append(rows_of(name, one, earned), ROWS, COMMAND)
    report()
    return cli.DONE


if __name__ == "__main__":
    command.start(main)
