"""The instability of one policy in one mode: directions in space and time, and whether they hold.

Joins what the files around it compute: ``lenses`` (decisions and their derivatives), ``directions``
(what states share), ``perturbation`` (finite steps), ``channels`` (names and units).

Shapes: ``N`` states, ``D`` observation width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from supple.diagnostics import directions as di
from supple.diagnostics import sensitivity as se
from supple.diagnostics.channels import Actuators, Gain, Layout, gain_table
from supple.diagnostics.lenses import Lens, lens_of, observed
from supple.diagnostics.perturbation import Responses, respond_to
from supple.diagnostics.policies import Policy
from supple.diagnostics.reading import Reading, reading, undefined
from supple.diagnostics.states import States
from supple.errors import InputError

MOST_STATES = 20_000
"""States whose derivatives are taken."""
MOVED_STATES = 4096
"""States that are moved by finite steps."""
CRITIC_STATES, CRITIC_MOVED = 2048, 512
"""The same in the mode ``critic``, where every state costs as many passes as it has candidates."""
QUANTILES = (0.01, 0.05, 0.5)
"""Of the distance to the decision boundary."""
SHOWN_EPISODES = 3
"""Episodes whose course over time is kept, step by step."""


class Noisy(NamedTuple):
    """What the declared noise of all sensors does; steps are in its standard deviations."""

    worst: Tensor
    """The direction along which it moves the decision most, over all channels, (D,)."""
    distance: Tensor
    """To the decision boundary of each state, (N,)."""
    changed: float
    """Share of states where a deviation of noise, along their own direction, changes the decision:
    finite steps."""


@dataclass(kw_only=True, slots=True)
class Instability:
    """What was found of one policy in one mode. Vectors are over all channels, (D,)."""

    mode: str
    network: str
    source: str
    layout: Layout
    states: int
    episodes: int
    found: di.Directions
    """Of the searched channels."""
    searched: Tensor
    scale: Tensor
    """Standard deviation of each channel, 0 where it is not searched."""
    worst: Tensor
    least: Tensor
    intervals: Mapping[str, tuple[float, float]]
    split: di.Split | str
    """Or why there is none."""
    distance: Tensor
    """To the decision boundary of each state, (N,) [standard deviations]."""
    course: Mapping[str, float] | str
    """Over time, or why there is none."""
    series: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Strength, and alignment with the worst direction, of the first episodes."""
    responses: Responses
    noisy: Noisy | None = None
    """None where no noise is declared, or none moves the decision."""
    gains: list[Gain] = field(default_factory=list)

    @property
    def identified(self) -> bool:
        """Whether a single direction may be named; else only its subspace."""
        split = self.split
        return isinstance(split, di.Split) and di.identified(split.cosine, self.found.gap)

    @property
    def families(self) -> Mapping[str, tuple[float, float]]:
        """Shares of each family of channels: in the worst direction, and in all."""
        own = [name for name, k in zip(self.layout.families, self.searched, strict=True) if k]
        return di.by_group(self.found, own)

    def noise_along(self, direction_D: Tensor) -> float | None:
        """Deviation of the declared sensor noise along a direction; None without declaration.

        Not the length of the noise [spec of the diagnostics, 9.7], most of which is along other
        directions: with many channels it exceeds this several times.

        Args:
            direction_D: unit length, in standard deviations, as the result is.
        """
        noise = self.layout.noise
        if noise is None:
            return None
        kept = self.searched.cpu()
        return float((direction_D.cpu() * noise / self.scale.cpu())[kept].norm())

    def quantile(self, share: float) -> float:
        """Of the distance to the decision boundary [standard deviations]."""
        return _quantile(self.distance, share)


def _quantile(values_N: Tensor, share: float) -> float:
    return float(values_N.sort().values[int(share * (len(values_N) - 1))])


def analyse(
    policy: Policy,
    mode: str,
    states: States,
    layout: Layout,
    generator: torch.Generator,
    *,
    actuators: Actuators | None = None,
    like: Instability | None = None,
) -> Instability:
    """Find, check and confirm the directions of instability.

    Args:
        policy: frozen.
        mode: one of ``policy.modes``.
        states: where it is looked at.
        layout: of the policy's observation; of the critic's in the mode ``critic``.
        generator: draws candidates, random directions and bootstrap samples.
        actuators: with them, the mode ``action`` or ``choice`` also makes the gain table.
        like: another analysis to compare with: its channels are searched, in its standard
            deviations; without it, those that vary here.

    Raises:
        InputError: an unknown mode, or a policy that responds to nothing that varies.
    """
    if mode not in policy.modes:
        reason = f": {policy.no_value}" if mode == "critic" and policy.no_value else ""
        raise InputError(f"mode {mode}: expected one of {', '.join(policy.modes)}{reason}")
    most, moved = (MOST_STATES, MOVED_STATES)
    if mode == "critic":
        most, moved = (CRITIC_STATES, CRITIC_MOVED)
    every, states = states, states.thinned(most)
    lens = lens_of(policy, mode, states, generator)
    obs_ND = lens.obs
    searched = layout.searched(obs_ND) if like is None else like.searched
    scale_D = torch.where(searched, obs_ND.std(0) if like is None else like.scale, 0)
    raw_NRD = lens.factor(obs_ND)
    factor = (raw_NRD * scale_D)[..., searched]
    found = di.directions(factor)
    matrices = di.episode_matrices(factor, states.episode)
    several = len(matrices[1]) >= 2
    local = di.local(factor)

    def everywhere(direction: Tensor) -> Tensor:
        full = direction.new_zeros(*direction.shape[:-1], len(layout))
        full[..., searched] = direction
        return full.float()

    some = slice(None, None, -(-len(obs_ND) // moved))
    held = [part[some] for part in lens.held]
    responses = respond_to(
        lens.respond(obs_ND[some], *held),
        obs_ND[some],
        worst_D=everywhere(found.worst),
        least_D=everywhere(found.least),
        local_ND=everywhere(local.vector_ND[some]),
        scale_D=scale_D,
        kept_D=searched,
        limits=layout.limits(),
        generator=generator,
    )
    intervals = di.bootstrap(*matrices, generator) if several else {}
    series_local, series_states = local, states
    if states.in_order and len(states.obs) < len(every.obs):  # steps are missing between states
        series_states = every.first(SHOWN_EPISODES, most)
        shown_ND, own = observed(policy, mode, series_states, generator)
        series_local = di.local((lens.rows(shown_ND, *own) * scale_D)[..., searched])
    return Instability(
        mode=mode,
        network="critic" if mode == "critic" else "actor",
        source=states.source,
        layout=layout,
        states=len(obs_ND),
        episodes=len(matrices[1]),
        found=found,
        searched=searched,
        scale=scale_D,
        worst=everywhere(found.worst),
        least=everywhere(found.least),
        intervals=intervals,
        split=_split(*matrices),
        distance=lens.distance(obs_ND, scale_D, local.strength_N),
        course=_course((local, states), (series_local, series_states)),
        series=_series(series_local, series_states, found.worst),
        responses=responses,
        noisy=_noisy(lens, raw_NRD, layout, some) if mode in ("action", "choice") else None,
        gains=[]
        if actuators is None or mode not in ("action", "choice")
        else gain_table(_slopes(policy, mode, states, raw_NRD), layout, actuators, obs_ND.std(0)),
    )


def _noisy(lens: Lens, raw_NRD: Tensor, layout: Layout, some: slice) -> Noisy | None:
    """Also of channels that are not searched: what does not vary may yet be misread."""
    if layout.noise is None:
        return None
    noise_D = layout.noise.to(raw_NRD)
    factor = raw_NRD * noise_D
    if not factor.any():
        return None
    local = di.local(factor)
    obs_ND, held = lens.obs[some], [part[some] for part in lens.held]
    step_ND = (noise_D * local.vector_ND[some]).to(obs_ND)
    respond = lens.respond(obs_ND, *held)
    with torch.no_grad():
        far_2N = torch.stack([respond(obs_ND + sign * step_ND) for sign in (1, -1)])
    return Noisy(
        di.directions(factor).worst.float(),
        lens.distance(lens.obs, noise_D, local.strength_N),
        float((far_2N > lens.tolerance).any(0).double().mean()),
    )


def _split(matrix_EDD: Tensor, states_E: Tensor) -> di.Split | str:
    try:
        return di.split_half(matrix_EDD, states_E)
    except InputError as error:  # too few episodes, or one half of them never responds
        return str(error)


def _course(
    looked_at: tuple[di.Local, States], in_steps: tuple[di.Local, States]
) -> dict[str, float] | str:
    """Over the states that were looked at; changes over those between which no step is missing."""
    local, states = looked_at
    if not states.in_order:
        return "the course over time needs whole episodes: give an environment"
    try:
        found = di.over_time(local.strength_N, states.episode)
    except InputError as error:
        return str(error)
    local, states = in_steps
    return found | {"tv": di.variation(local.strength_N, states.episode)}


def _series(local: di.Local, states: States, worst: Tensor) -> list[tuple[Tensor, Tensor]]:
    if not states.in_order:
        return []
    aligned = di.alignment(local.vector_ND, worst)
    own = [states.episode == episode for episode in states.episode.unique()[:SHOWN_EPISODES]]
    return [(local.strength_N[rows].cpu(), aligned[rows].cpu()) for rows in own]


def _slopes(policy: Policy, mode: str, states: States, raw_NRD: Tensor) -> Tensor:
    """Of commands, or of the choices' probabilities, by raw observations."""
    if mode == "action":
        return raw_NRD
    logits = policy.logits
    assert logits is not None
    return se.jacobian(
        lambda obs, memory: torch.softmax(logits(obs, memory), -1), states.obs, states.memory
    )


# --- readings --------------------------------------------------------------------------------


def readings(one: Instability) -> Iterator[Reading]:
    """Every number of one analysis, named ``ranld_...``."""
    facts = {"network": one.network, "n": one.states}
    params = {"mode": one.mode, "data": one.source}

    def number(metric: str, value: float, **more: object) -> Reading:
        return reading(value, metric=f"ranld_{metric}", params=params, **(facts | more))

    null = di.isotropic_concentration(one.states, int(one.searched.sum()))
    reference = {"conc": {"isotropic": null}}
    for metric, name in (
        ("conc", "concentration"),
        ("gain", "gain"),
        ("aniso", "anisotropy"),
        ("coords", "coordinates"),
        ("gap", "gap"),
    ):
        yield number(
            metric,
            getattr(one.found, name),
            ci95=one.intervals.get(name),
            reference=reference.get(metric, {}),
            unit={"gain": "per sd", "coords": "channels"}.get(metric, ""),
        )
    if isinstance(one.split, str):
        yield undefined(one.split, metric="ranld_split_cos", params=params, **facts)
    else:
        yield number("split_cos", one.split.cosine, n=one.episodes)
        yield number("split_subspace", one.split.subspace, n=one.episodes)
        yield number("split_fcq", one.split.quotient, n=one.episodes)
    for family, (direction, everything) in one.families.items():
        own = params | {"family": family}
        yield reading(direction, metric="ranld_group", params=own, **facts)
        yield reading(everything, metric="ranld_group_all", params=own, **facts)
    for metric in ("mean", "cv", "tail", "tv"):
        if isinstance(one.course, str):
            yield undefined(one.course, metric=f"ranld_{metric}", params=params, **facts)
        else:
            yield number(metric, one.course[metric], unit="per sd" if metric == "mean" else "")
    for share in QUANTILES:
        at = params | {"quantile": f"{share:g}"}
        yield reading(one.quantile(share), metric="ranld_dist", params=at, unit="sd", **facts)
    if one.noisy is not None:
        for share in QUANTILES:
            at = params | {"quantile": f"{share:g}"}
            value = _quantile(one.noisy.distance, share)
            yield reading(value, metric="ranld_noise_dist", params=at, unit="sd of noise", **facts)
        yield number("noise_changed", one.noisy.changed)
    elif one.layout.noise is not None and one.mode in ("action", "choice"):
        yield number("noise_changed", 0.0)  # none of the noise moves the decision
    yield from _response_readings(one, params, facts)


def _response_readings(
    one: Instability, params: Mapping[str, str], facts: Mapping[str, object]
) -> Iterator[Reading]:
    times = one.responses.times
    if times is None:
        yield undefined(
            "random directions of 0.1 standard deviations change no decision",
            metric="ranld_times_random",
            params=params,
            **facts,
        )
    else:
        reference = {"required": one.responses.required}
        yield reading(
            times, metric="ranld_times_random", params=params, reference=reference, **facts
        )
