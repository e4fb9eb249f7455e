"""Rules about the policy: fragile directions (V10), bursts (V11), shifts (V12), saturation (V14).

Nothing is said of a direction before finite steps have confirmed it.
"""

from __future__ import annotations

from torch import Tensor

from supple.diagnostics.closed_loop import REVERSED
from supple.diagnostics.closed_loop import WORST as WORST_SHIFT
from supple.diagnostics.evidence import Evidence, Rule, Verdict, confidence, places, those
from supple.diagnostics.instability import Instability
from supple.diagnostics.thresholds import THRESHOLDS

NAMED = 3
"""Channels that a verdict names."""
TRANSFERS = 0.6
"""Share of the quotient of undisturbed episodes that one of disturbed ones has to fall below."""
PINNED = 0.9
"""Share of the time at one and the same limit that bang-bang control does not explain."""
CONCENTRATED = 0.9
"""Share of the worst direction in all sensitivity that supports V10 however few channels there are.
Deviation from the spec of the diagnostics, 16: five times what directions without a common cause
would give is more than 1 with up to five channels."""
MARGIN = 0.05
"""Share of states whose decision the sensors' noise may change."""


def fragile_direction(evidence: Evidence) -> Verdict | None:
    """V10: sensor noise within specification changes the decision."""
    for mode in ("action", "choice"):
        one = evidence.analyses.get(mode)
        if one is not None and one.responses.confirmed:
            return _fragile(evidence, one)
    return None


def _fragile(evidence: Evidence, one: Instability) -> Verdict | None:
    if one.noisy is None:
        return None  # nothing was declared: no specification to fall short of
    near = evidence.lowest("ranld_noise_dist", mode=one.mode, quantile=f"{MARGIN:g}")
    losses = [
        evidence.highest("ranld_drop", shift=shift)
        for shift in (WORST_SHIFT, f"{WORST_SHIFT}{REVERSED}")
    ]
    loss = max(filter(None, losses), key=lambda hit: hit.value, default=None)
    close = near is not None and near.value < 1 and one.noisy.changed >= MARGIN
    costly = loss is not None and loss.value > 0.2
    if not (close or costly):
        return None
    conc = evidence.highest("ranld_conc", mode=one.mode)
    null = conc.reading.reference.get("isotropic", 1.0) if conc is not None else 1.0
    geometry = evidence.lowest("rdm_noise")
    times = evidence.highest("ranld_times_random", mode=one.mode)
    supports = those(
        # Of a single channel, whose share is 1 by itself, it says nothing.
        (conc, null < 1 and conc is not None and conc.value > min(5 * null, CONCENTRATED)),
        (geometry, geometry is not None and geometry.value < 0.9),
    )
    against = [] if one.identified else places(evidence.lowest("ranld_split_cos", mode=one.mode))
    return Verdict(
        rule="V10",
        level="bad" if (close and costly) or (close and supports) else "warn",
        confidence=confidence(close and costly, len(supports), len(against)),
        target=evidence.target,
        sentence=_fragile_sentence(evidence, one),
        evidence=[*places(times, *those((near, close), (loss, costly))), *places(*supports)],
        against=against,
        actions=evidence.advise("noise", "filter"),
        reconsider=(
            "A task may be sensitive by nature (balance): compare with a reference controller or an"
            " earlier good checkpoint."
        ),
    )


def _fragile_sentence(evidence: Evidence, one: Instability) -> str:
    assert one.noisy is not None
    channels = ", ".join(name for name, _ in leading_channels(one, one.noisy.worst, NAMED))
    if not one.gains:
        return (
            f"Sensor noise within its declared size on {channels} changes the decision at"
            f" {evidence.label}."
        )
    gain = one.gains[0]
    noise = one.layout.noise
    assert noise is not None
    size = float(noise[one.layout.names.index(gain.sensor)])
    unit = one.layout.channels[one.layout.names.index(gain.sensor)].unit
    moves = f"{gain.actuator} by {gain.share:.0%} of its half range"
    if one.mode == "choice":
        moves = f"the probability of {gain.actuator} by {100 * gain.share:.0f} percentage points"
    return (
        f"An error within sensor specification, mostly on {channels}, changes the decision at"
        f" {evidence.label}: {size:g}{f' {unit}' if unit else ''} on {gain.sensor} alone moves, to"
        f" first order, {moves}."
    )


def leading_channels(one: Instability, direction_D: Tensor, most: int) -> list[tuple[str, float]]:
    """The channels of a direction, with their share of its energy."""
    square = direction_D.square()
    order = square.argsort(descending=True)[:most].tolist()
    return [(one.layout.names[index], float(square[index])) for index in order]


def bursts(evidence: Evidence) -> Verdict | None:
    """V11: the command is far more sensitive at some moments than at most."""
    # In the mode `choice` strength vanishes wherever the policy is sure: bursts by construction.
    one = evidence.analyses.get("action")
    spread, tail = (evidence.highest(f"ranld_{name}", mode="action") for name in ("cv", "tail"))
    wide = spread is not None and spread.value > (THRESHOLDS["ranld_cv"].warn or 1.5)
    long = tail is not None and tail.value > (THRESHOLDS["ranld_tail"].warn or 5.0)
    if one is None or not (wide or long) or not one.responses.beats_random(0.1):
        return None
    supports = those((spread, wide), (tail, long))
    times = f"{tail.value:.1f} times its median" if tail is not None else "far above its mean"
    return Verdict(
        rule="V11",
        level="warn",
        confidence=confidence(False, len(supports), 0),
        target=evidence.target,
        sentence=(
            f"The policy's sensitivity at {evidence.label} comes in bursts: it reaches {times} for"
            " 1 % of the time."
        ),
        evidence=places(*supports),
        against=[],
        actions=evidence.advise("states", "noise"),
        reconsider="Contacts and changes of command are sensitive by nature: look at the moments.",
    )


def robustness_does_not_transfer(evidence: Evidence) -> Verdict | None:
    """V12: under a disturbance the policy is sensitive to other inputs, and earns less."""
    one = evidence.analyses.get("action", evidence.analyses.get("choice"))
    if one is None or isinstance(one.split, str) or not one.identified:
        return None  # there is no one direction to compare with
    nominal = evidence.one("ranld_split_fcq", mode=one.mode)
    line = min(THRESHOLDS["ranld_fcq"].warn or 0.5, TRANSFERS * one.split.quotient)
    for quotient in evidence.find("ranld_fcq"):
        shift = quotient.reading.params.get("shift", "")
        loss = evidence.highest("ranld_drop", shift=shift)
        if quotient.value >= line or loss is None or loss.value <= 0.2:
            continue
        low = loss.reading.ci95[0] if loss.reading.ci95 is not None else 0.0
        return Verdict(
            rule="V12",
            level="warn",
            confidence=confidence(low > 0.2, 0, 0),
            target=evidence.target,
            sentence=(
                f"Under “{shift}” the policy at {evidence.label} is sensitive to other inputs than"
                f" nominally and loses {loss.value:.0%} of what it earns."
            ),
            evidence=[quotient.place, loss.place, *places(nominal)],
            against=[],
            actions=evidence.advise("include shift", "noise"),
            reconsider="A disturbance larger than the robot will ever meet tells little.",
        )
    return None


def saturated(evidence: Evidence) -> Verdict | None:
    """V14: some joint's commands sit at their limits."""
    # The mean over joints hides one of twelve that is at its limit all the time.
    joints = [hit for hit in evidence.find("act_sat") if "joint" in hit.reading.params]
    main = max(joints, key=lambda hit: hit.value, default=evidence.one("act_sat"))
    if main is None or main.value <= (THRESHOLDS["act_sat"].warn or 0.3):
        return None
    edge, growth = evidence.one("std_edge"), evidence.one("logit_pre")
    joint = main.reading.params.get("joint", "Some joint")
    pinned = evidence.highest("act_pinned", joint=joint)
    signs = those(
        (edge, edge is not None and edge.value > 0.3),
        (growth, growth is not None and growth.value > 10),
    )
    supports = [*signs, *those((pinned, pinned is not None and pinned.value > PINNED))]
    if not supports:
        return None  # bang-bang control is the optimum of some tasks
    return Verdict(
        rule="V14",
        # Some tasks hold a joint against its limit.
        level="bad" if main.value > 0.9 and signs else "warn",
        confidence=confidence(False, len(supports), 0),
        target=evidence.target,
        sentence=(
            f"{joint} is at its limits {main.value:.0%} of the time at {evidence.label};"
            " robustness figures for it mean little."
        ),
        evidence=[main.place, *places(*supports)],
        against=[],
        actions=evidence.advise("entropy", "limits"),
        reconsider="Tasks whose best control is bang-bang saturate rightly.",
    )


RULES: tuple[Rule, ...] = (fragile_direction, bursts, robustness_does_not_transfer, saturated)
