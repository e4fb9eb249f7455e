"""How much final returns depend on the learning rate: ``supple compare --lr-sweep``.

Every rate is a variant of ``supple compare``. A run that failed, usually because it diverged,
counts as one that learned nothing. The definition is ``diagnostics.run_level.rate_sensitivity``;
numbers compare only between sweeps of the same grid, which is therefore part of the record.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from supple.build import build_agent
from supple.configs.base import Settings, flat
from supple.diagnostics.policies import policy_of
from supple.diagnostics.rollouts import roll
from supple.diagnostics.run_level import LEAST_DECADES, LEAST_RATES, decades, rate_sensitivity
from supple.errors import InputError
from supple.evaluate import make_env
from supple.files import replace_file

RECORD = "lr_sweep.json"
FACTORS = tuple(10 ** (half / 2) for half in (-2, -1, 0, 1, 2))
"""Of the default grid, relative to the rate of the preset."""
RATES = ("agent.lr_peak", "agent.lr_init", "agent.lr_end", "agent.lr")
"""Settings that are learning rates; the first that an agent has is the one that is swept."""
LEAST_SEEDS = 3
EPISODES = 10
"""Of random actions, whose mean return stands for having learned nothing."""


def variants(settings: Settings, rates: Sequence[float], seeds: int) -> dict[str, float]:
    """The flags of every variant as ``supple compare --variant`` takes them, and its rate.

    FlashSAC's schedule keeps its shape: every rate in it is scaled alike.

    Args:
        settings: of the runs, whose own rate is the middle of the default grid.
        rates: learning rates; empty for the default grid.
        seeds: how many each gets.

    Raises:
        InputError: too few rates, decades or seeds to say anything.
    """
    known = flat(settings)
    names = [name for name in RATES if name in known]
    own = float(known[names[0]])
    grid = sorted(rates) or [own * factor for factor in FACTORS]
    if len(set(grid)) < LEAST_RATES or grid[0] <= 0 or decades(grid) < LEAST_DECADES:
        raise InputError(
            f"--lr-sweep needs {LEAST_RATES} rates over {LEAST_DECADES} decades, got"
            f" {' '.join(f'{rate:g}' for rate in grid)}: without any, the preset's own and"
            " its neighbours are taken"
        )
    if seeds < LEAST_SEEDS:
        raise InputError(f"--lr-sweep needs {LEAST_SEEDS} --seeds, got {seeds}")
    found = {}
    for rate in grid:
        scaled = [(name, float(known[name]) * rate / own) for name in names]
        flags = " ".join(f"--{name.replace('_', '-')} {value:.6g}" for name, value in scaled)
        found[f"lr {rate:.6g}: {flags}"] = rate
    return found


def random_return(settings: Settings) -> float:
    """Mean return of whole episodes with uniform random actions."""
    with closing(make_env(settings, num_envs=EPISODES, purpose="sweep")) as env:
        # An agent may refuse fewer environments than it trains with.
        spec = dataclasses.replace(env.spec, num_envs=settings.env.num_envs)
        policy = policy_of(build_agent(settings, spec))
        random = torch.Generator().manual_seed(settings.seed)
        found = roll(policy, env, episodes=EPISODES, seed=settings.seed, random=random)
    return float(found.returns.mean())


def write(returns: dict[float, list[float | None]], chance: float, out: Path) -> str:
    """Write ``lr_sweep.json``; what to print.

    Args:
        returns: final returns of each rate's seeds, None where the run failed.
        chance: mean return of random actions.
        out: the folder of the comparison.

    Raises:
        InputError: no rate learned anything.
    """
    means = {
        rate: sum(chance if value is None else value for value in own) / len(own)
        for rate, own in returns.items()
    }
    found = rate_sensitivity(means, chance)
    failed = sum(value is None for own in returns.values() for value in own)
    record = {
        "lr_sens": found.sensitivity,
        "decades": found.decades,
        "best_rate": found.best_rate,
        "random_return": chance,
        "rates": sorted(means),
        "returns": [means[rate] for rate in sorted(means)],
        "seeds": min(map(len, returns.values())),
        "failed_runs": failed,
    }
    replace_file(out / RECORD, json.dumps(record, indent=1, allow_nan=False).encode() + b"\n")
    grid = ", ".join(f"{rate:.3g}" for rate in sorted(means))
    lost = f"; {failed} runs failed and count as no learning" if failed else ""
    return (
        f"learning-rate sensitivity {found.sensitivity:.3f} on the grid {grid} (0: every rate is"
        f" as good); best {found.best_rate:.3g}, within a tenth of it over {found.decades:.2g}"
        f" decades{lost}"
    )


def read(run: Path) -> dict[str, Any] | None:
    """The record of the sweep that a run is part of, if it is part of one."""
    path = run.resolve().parent.parent / RECORD
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not a record of a sweep: {error}") from error
    return found
