"""Is the value right? Against returns of whole episodes, and does bootstrapping amplify errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from supple.diagnostics import gradients, values
from supple.diagnostics.context import Context, attempt
from supple.diagnostics.data import Transitions
from supple.diagnostics.reading import Reading, bootstrap_ci95, ensemble, reading, require_rows
from supple.diagnostics.views import View
from supple.errors import InputError

LEAST_EPISODES = 10
PAIRS = 256
UNITS = {"value_bias": "scaled reward"}
BOOTSTRAPPED = "bootstrapped tail: part of the bias is hidden"
"""Reason of readings whose returns are completed by the critic itself."""
BY_DEVIATION = "over the returns' deviation: their mean is near 0"
"""Reason of readings that are over the returns' mean elsewhere."""


def bias(context: Context) -> Iterator[Reading]:
    """Predictions against the returns of sampled episodes, joined as targets do, and each."""
    data = context.data.sampled
    subject = context.subject
    role = subject.critic_role

    def measure() -> Iterator[Reading]:
        if data is None:
            raise InputError("value bias needs sampled episodes: give an environment")
        episodes = int(data.episode.unique().numel())
        if episodes < LEAST_EPISODES:
            raise InputError(f"value bias needs {LEAST_EPISODES} episodes, got {episodes}")
        yield from _bias(context, data)

    yield from attempt(measure, metric="value_bias", network=role)


@torch.no_grad()
def _bias(context: Context, data: Transitions) -> Iterator[Reading]:
    subject = context.subject
    view = subject.views[subject.critic_role]
    value_ET, tail_T = subject.along(data)
    found = values.soft_returns(
        subject.scale_reward(data.reward),
        subject.entropy_cost(data),
        data.episode,
        data.terminated,
        subject.gamma,
        tail_T,
        n_step=subject.n_step,
        least_episodes=LEAST_EPISODES,
    )
    kept = found.usable_T
    joined_T = subject.joined(value_ET)
    readers: dict[str, Tensor] = {subject.joins: joined_T, "mean": value_ET.mean(0)}
    if view.members > 1:
        readers |= {str(member): value for member, value in enumerate(value_ET)}
    episode_T = data.episode[kept].unique(return_inverse=True)[1]
    reason = BOOTSTRAPPED if found.bootstrapped else ""
    for member, value_T in readers.items():
        facts: dict[str, Any] = {"network": view.role, "member": member, "reason": reason}
        facts["n"] = int(episode_T.max()) + 1
        yield from _of_reader(context, value_T[kept], found.return_T[kept], episode_T, facts)
    context.arrays[f"{view.role}/all/joined/value"] = joined_T[kept].float().cpu()
    context.arrays[f"{view.role}/all/joined/return"] = found.return_T[kept].float().cpu()
    context.arrays[f"{view.role}/all/joined/step"] = data.step[kept].cpu()


def _of_reader(
    context: Context, value_T: Tensor, return_T: Tensor, episode_T: Tensor, facts: dict[str, Any]
) -> Iterator[Reading]:
    whole = values.value_bias(value_T, return_T)
    groups = [(episode_T == e).nonzero().flatten() for e in range(int(episode_T.max()) + 1)]
    random = torch.Generator().manual_seed(context.subject.seed)

    def of(drawn: Tensor, name: str) -> Tensor:
        rows = torch.cat([groups[int(e)] for e in drawn])
        same = {"by_deviation": whole.by_deviation}
        try:
            found: Tensor = getattr(values.value_bias(value_T[rows], return_T[rows], **same), name)
        except InputError:  # of these episodes none returned anything: no number to sort in
            return torch.tensor(torch.nan)
        return found

    for name in ("bias", "norm", "spread", "rank", "slope"):
        metric = {
            "bias": "value_bias",
            "norm": "value_bias_norm",
            "spread": "value_spread_norm",
            "rank": "value_rank",
            "slope": "value_slope",
        }[name]
        interval = None
        if facts["member"] == context.subject.joins:

            def statistic(drawn: Tensor, name: str = name) -> Tensor:
                return of(drawn, name)

            interval = bootstrap_ci95(statistic, len(groups), generator=random, draws=200)
        own = facts | {"unit": UNITS.get(metric, "")}
        if whole.by_deviation and metric.endswith("_norm"):
            own["reason"] = "; ".join(filter(None, (BY_DEVIATION, facts["reason"])))
        yield reading(getattr(whole, name), metric=metric, ci95=interval, **own)


def excitation(context: Context) -> Iterator[Reading]:
    """Whether the critic's bootstrapping feeds its own errors, at the moment."""
    subject = context.subject
    view = subject.views[subject.critic_role]
    yield from attempt(lambda: _excitation(context, view), metric="seem", network=view.role)


def _excitation(context: Context, view: View) -> Iterator[Reading]:
    subject, data = context.subject, context.data.current()
    require_rows("self-excitation", len(data), PAIRS)
    pairs = data.spread(PAIRS)
    x_ND, after_ND = subject.inputs(view.role, pairs), subject.next_inputs(view.role, pairs)

    def output(module: torch.nn.Module, x: Tensor) -> Tensor:
        return view.outputs(module, x).sum()

    both = gradients.gradient_gram(view, output, (torch.cat((x_ND, after_ND)),))
    own, cross = both[:, :PAIRS, :PAIRS], both[:, PAIRS:, :PAIRS]
    cross = cross * (~pairs.terminated)[None, :, None]
    width = sum(part.numel() for _, part in view.parameters()) // view.members
    found = values.self_excitation(own, cross, subject.gamma, width)
    facts: dict[str, Any] = {"network": view.role, "n": PAIRS}
    unit = "(scaled reward per parameter)^2"
    yield from ensemble(found.seem_E, metric="seem", unit=unit, **facts)
    yield from ensemble(found.norm_E, metric="seem_norm", **facts)
