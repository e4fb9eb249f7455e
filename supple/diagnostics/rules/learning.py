"""Rules about learning: plasticity (V1), dead capacity (V2), step sizes (V7, V8), returns (V9)."""

from __future__ import annotations

from itertools import takewhile
from typing import NamedTuple

from supple.diagnostics.evidence import (
    Evidence,
    Hit,
    Rule,
    Verdict,
    above_fresh,
    confidence,
    places,
    those,
)
from supple.diagnostics.reading import ALL, MEAN
from supple.diagnostics.suite.learning import coarsely
from supple.diagnostics.thresholds import THRESHOLDS, level_of

ALIGNED = 0.5
"""Mean |cosine| of single samples' gradients above which they support V1."""
FELL_TO = 0.5
"""A rank below this share of its own maximum supports V1."""
CONSECUTIVE = 3
"""Measurements in a row in which V7's ratio must exceed its line."""
FROZEN = 0.01
"""Step sizes below this share of their reference support V8."""
STEPS = ("update_ratio", "angle_step", "eps_frac")
"""Some of these are measured of every network that V8 judges."""
ROUNDING = 1e-7
"""Smallest share of itself by which float32 can change: restoring norms alone turns weights by
less, also where the learning rate is 0 and no step is expected."""


def plasticity_loss(evidence: Evidence) -> Verdict | None:
    """V1: new targets are learned worse than by a new network."""
    line = THRESHOLDS["fit_gap"]
    gaps = [hit for hit in evidence.find("fit_gap") if line.level(hit.value) != "ok"]
    # A large gap that may be chance must not hide a smaller one that is sure.
    sure = [hit for hit in gaps if hit.reading.ci95 is None or hit.reading.ci95[0] > 0.1]
    # Of two functions and two twins the interval is far too narrow, and the worst member is luck:
    # by the seed, that of a healthy Pendulum had a gap of 0.05, 0.25 or 0.35, measured wholly 0.06.
    sure = [hit for hit in sure if hit.reading.member == MEAN or not coarsely(hit.reading)]
    found = [(hit, _signs_of_loss(evidence, hit.reading.network)) for hit in sure]
    found = [(hit, supports) for hit, supports in found if supports or not coarsely(hit.reading)]
    if not found:
        return None
    main, supports = max(found, key=lambda each: each[0].value)
    interval, network = main.reading.ci95, main.reading.network
    who = network if main.reading.member == MEAN else f"{network}'s worst member"
    level = line.level(main.value)
    if not supports:
        level = "warn"  # the referee alone: real, but nothing says why
    clear = interval is not None and interval[0] > 0.2
    coarse = coarsely(main.reading)
    lost = "may have lost" if coarse else "has lost"
    return Verdict(
        rule="V1",
        level="bad" if level == "bad" else "warn",
        confidence="low" if coarse else confidence(clear, len(supports), 0),
        target=evidence.target,
        sentence=(
            f"The {who} at {evidence.label} closes {max(1 - main.value, 0):.0%} of the error"
            f" that a new network closes on the same new targets: it {lost} part of its ability to"
            f" learn.{f' Measured coarsely: {coarse}.' if coarse else ''}"
        ),
        evidence=[main.place, *(hit.place for hit in supports)],
        against=[],
        actions=evidence.advise(
            "fewer updates", "fewer epochs", "normalise", "weight decay", "shrink", "reset units"
        ),
        reconsider="A gap below 0.1 with more inputs and steps (--suite full) would clear it.",
    )


def _signs_of_loss(evidence: Evidence, network: str) -> list[Hit]:
    """What beside the referee says that a network lost plasticity."""
    gradient = evidence.highest("grad_dormant", network, threshold=0.01)
    ranks = [evidence.one(metric, network) for metric in ("srank", "erank")]
    update, weight = (evidence.one(metric, network) for metric in ("update_ratio", "w_rms"))
    cosine = evidence.one("grad_cos", network, of="absolute")
    return those(
        (gradient, above_fresh(gradient, 2, 10)),
        *((r, r is not None and r.value < FELL_TO * evidence.own_max(r)) for r in ranks),
        (update, evidence.falling(update) and evidence.rising(weight)),
        (cosine, above_fresh(cosine, 2, ALIGNED)),
    )


def dead_capacity(evidence: Evidence) -> Verdict | None:
    """V2: most units of a layer do nothing, or never change."""
    dormant, dead = _inactive(evidence, "dormant", threshold=0.1), _inactive(evidence, "dead_var")
    mains = [hit for hit in (dormant, dead) if hit is not None]
    if not mains:
        return None
    main = max(mains, key=lambda hit: hit.value)
    network, layer = main.reading.network, main.reading.layer
    mains = [hit for hit in mains if hit.reading.network == network]
    gap = evidence.highest("fit_gap", network)
    gradient = evidence.highest("grad_dormant", network, threshold=0.01)
    supports = [
        *those((gap, gap is not None and gap.value > 0.1)),
        *those((gradient, above_fresh(gradient, 2, 10))),
        *(hit for hit in mains if hit is not main),
    ]
    if not supports:
        return None
    severe = any(hit.value > (50 if hit is dormant else 30) for hit in mains)
    return Verdict(
        rule="V2",
        level="bad" if severe else "warn",
        confidence=confidence(True, len(supports), 0),
        target=evidence.target,
        sentence=(
            f"{main.value:.0f} % of the units of the {network}"
            f"{'' if layer == ALL else f', layer {layer},'} are inactive at {evidence.label}"
            f"{_of_fresh(main)}."
        ),
        evidence=[main.place, *(hit.place for hit in supports)],
        against=[],
        actions=evidence.advise(
            "reset units", "shrink", "normalise", "fewer updates", "input scale"
        ),
        reconsider="The same units active on other states (a broader data set) would clear it.",
    )


def step_too_large(evidence: Evidence) -> Verdict | None:
    """V7: curvature exceeds what the step size allows, again and again."""
    main = evidence.highest("stab_adam")
    line = THRESHOLDS["stab_adam"].warn or 2.0
    if main is None or main.value <= line:
        return None
    count = len(list(takewhile(lambda value: value > line, reversed(evidence.lately(main)))))
    loss = evidence.one("grad_norm", main.reading.network)
    fall = evidence.highest("ret_mdd_share")
    sweep = evidence.highest("lr_sens")
    supports = [
        *those((loss, evidence.rising(loss))),
        *those((fall, fall is not None and fall.value > 0.3 and _beyond_noise(fall))),
        *those((sweep, sweep is not None and sweep.value > 0.5)),
    ]
    if not supports:
        return None  # healthy critics train far beyond the limit: a Go1 that walks at 46 times it
    lasting = count >= CONSECUTIVE
    return Verdict(
        rule="V7",
        level="bad" if lasting else "warn",
        confidence=confidence(lasting, len(supports), 0),
        target=evidence.target,
        sentence=(
            f"The {main.reading.network}'s curvature at {evidence.label} exceeds the step-size"
            f" limit {main.value:.1f} times{_in_a_row(count)}."
        ),
        evidence=[main.place, *(hit.place for hit in supports)],
        against=[],
        actions=evidence.advise("lower rate", "warm up", "larger batch"),
        reconsider="Ratios between 0.5 and 1.2 are the normal zone of large-step training.",
    )


def frozen(evidence: Evidence) -> Verdict | None:
    """V8: parameters no longer move."""
    signs = {network: _stopped(evidence, network) for network in evidence.networks(*STEPS)}
    stopped = {network: found for network, found in signs.items() if found is not None}
    if not stopped:
        return None
    stands = any(one.stands for one in stopped.values())
    return Verdict(
        rule="V8",
        level="bad" if stands else "warn",
        confidence=confidence(stands, max(len(one.signs) for one in stopped.values()) - 1, 0),
        target=evidence.target,
        sentence=(
            f"At {evidence.label} the parameters of the {' and the '.join(stopped)} no longer move."
        ),
        evidence=[hit.place for one in stopped.values() for hit in one.signs],
        against=[],
        actions=evidence.advise("raise rate", "reward scale"),
        reconsider="Nothing, if training is meant to be over.",
    )


class _Stopped(NamedTuple):
    """A network that no longer moves."""

    signs: list[Hit]
    stands: bool
    """By its steps, not only by what comes of them."""


def _stopped(evidence: Evidence, network: str) -> _Stopped | None:
    """One network alone: another that moves says nothing of it."""
    moved = evidence.highest("angle_step", network) or evidence.highest("update_ratio", network)
    epsilon = evidence.highest("eps_frac", network)
    churns = (evidence.highest(f"churn_{of}", network) for of in ("mean", "act", "q"))
    churn = next(filter(None, churns), None)
    expected = moved.reading.reference.get("expected", 0.0) if moved is not None else 0.0
    stands = moved is not None and moved.value < max(FROZEN * expected, ROUNDING)
    eaten = epsilon is not None and epsilon.value > 0.5
    still = churn is not None and churn.value < 1e-6
    if not (stands or (eaten and still)):
        return None
    return _Stopped(those((moved, stands), (epsilon, eaten), (churn, still)), stands)


def unsteady(evidence: Evidence) -> Verdict | None:
    """V9: returns fell by more than noise explains."""
    fall = evidence.highest("ret_mdd_share")
    if fall is None or not evidence.last_of_run:
        return None
    level = THRESHOLDS["ret_mdd_share"].level(fall.value)
    if level == "ok" or not _beyond_noise(fall):
        return None
    flips, steps = evidence.highest("churn_flip"), evidence.highest("stab_adam")
    supports = those(
        (flips, flips is not None and flips.value > 0.1),
        (steps, steps is not None and steps.value > 2),
    )
    recover = evidence.highest("ret_recover")
    # One evaluation does not tell a fall that stays from one of those that pass.
    just_now = fall.reading.reference.get("low_evaluations") == 1
    if recover is not None:
        after = f" and needed {recover.value:,.0f} steps to recover"
    else:
        after = " in the last evaluation" if just_now else " and did not recover"
    return Verdict(
        rule="V9",
        level="bad" if level == "bad" and recover is None and not just_now else "warn",
        confidence=confidence("noise_floor" in fall.reading.reference, len(supports), 0),
        target=evidence.target,
        sentence=f"The return fell by {fall.value:.0%} of the learned range{after}.",
        evidence=[fall.place, *places(recover), *(hit.place for hit in supports)],
        against=[],
        actions=evidence.advise("keep best", "smaller late rate", "lower rate"),
        reconsider="More episodes per evaluation would tell a fall from luck more surely.",
    )


RULES: tuple[Rule, ...] = (plasticity_loss, dead_capacity, step_too_large, frozen, unsteady)


def _beyond_noise(fall: Hit) -> bool:
    """Whether a fall of the return exceeds what evaluations that differ by luck alone show."""
    floor = fall.reading.reference.get("noise_floor")
    return floor is None or fall.value > floor


def _inactive(evidence: Evidence, metric: str, **params: float | str) -> Hit | None:
    """The worst layer, if that is most of its units, or network over networks and data sets.

    In a healthy HalfCheetah up to 47 % of a layer were dormant, where none are in a new one.
    """
    found = [
        hit
        for hit in evidence.find(metric, "", **params)
        if (level := level_of(hit.reading)) == "bad"
        or (level == "warn" and hit.reading.layer == ALL)
    ]
    # Many quiet units are the design of some networks: untrained ones have them too.
    found = [hit for hit in found if hit.fresh() is None or above_fresh(hit, 2, 0)]
    return max(found, key=lambda hit: (hit.value, hit.reading.layer != ALL), default=None)


def _of_fresh(hit: Hit) -> str:
    fresh = hit.fresh()
    return "" if fresh is None else f" (a new network: {fresh:.0f} %)"


def _in_a_row(count: int) -> str:
    return f", in {count} measurements in a row" if count > 1 else ""
