"""Rules about values: bias (V3, V4), support (V5), self-excitation (V6), flows (V13)."""

from __future__ import annotations

from supple.diagnostics.evidence import (
    Evidence,
    Hit,
    Rule,
    Verdict,
    confidence,
    places,
    those,
)
from supple.diagnostics.suite.values import BOOTSTRAPPED, BY_DEVIATION
from supple.diagnostics.thresholds import THRESHOLDS

CLEAR = 0.1
"""V6's number where it was measured fewer times: a healthy Pendulum showed 0.004 and 0.016, a
chain whose next feature is twice as large 1."""
IN_A_ROW = 5
"""Measurements in which V6's number must be positive."""
GROWS = 0.1
"""Above all earlier checkpoints by this share, values support V6: healthy Hoppers have positive
numbers all the time, and values that creep up."""
IGNORED = 0.9
"""Share of an error on the way that is left at the end of a flow that ignores its state."""


def overestimation(evidence: Evidence) -> Verdict | None:
    """V3: values exceed achieved returns."""
    main = _bias(evidence)
    if main is None or main.value <= 0.2:
        return None
    interval = main.reading.ci95
    if interval is not None and interval[0] <= 0.1:
        return None
    excited, clipped = evidence.highest("seem_norm"), evidence.highest("support_clip")
    size = evidence.one("q_abs")
    supports = those(
        (excited, excited is not None and excited.value > 0),
        (size, evidence.rising(size)),
        (clipped, clipped is not None and clipped.value > 0.01),
    )
    level = THRESHOLDS["value_bias_norm"].level(main.value)
    return Verdict(
        rule="V3",
        level="bad" if level == "bad" and interval is not None else "warn",
        confidence=confidence(interval is not None, len(supports), 0),
        target=evidence.target,
        sentence=(
            f"Predicted values at {evidence.label} exceed achieved returns by"
            f" {main.value:.0%} {_of_what(main)}."
        ),
        evidence=[main.place, *places(*supports)],
        against=[],
        actions=evidence.advise("pessimism", "slower target", "lower gamma", "terminations"),
        reconsider="More episodes (--episodes) narrow the interval.",
    )


def misordered(evidence: Evidence) -> Verdict | None:
    """V4: states are not ranked in the order of their returns, or valued far too low."""
    bias, order = _bias(evidence), _of_target(evidence, "value_rank")
    low = bias is not None and bias.value < -0.3
    wrong = order is not None and order.value < 0.5
    if not (low or wrong):
        return None
    used = evidence.lowest("support_use")
    supports = those((used, used is not None and used.value < 0.05), (bias, low), (order, wrong))
    if not (low and wrong):
        # A pessimistic ensemble is meant to be low. In a steady gait all states earn alike, so weak
        # order and a narrow range follow from the task: a healthy HalfCheetah has both.
        return None
    assert bias is not None
    assert order is not None
    # Where every episode is cut early, returns end in the critic's own values: a healthy Pendulum,
    # whose states soon all earn alike, then seemed both misordered and too low.
    doubtful = BOOTSTRAPPED in bias.reading.reason
    return Verdict(
        rule="V4",
        level="warn" if doubtful else "bad",
        confidence="low" if doubtful else confidence(False, len(supports), 0),
        target=evidence.target,
        sentence=(
            f"The critic at {evidence.label} does not rank states in the order of their returns"
            f" (rank correlation {order.value:.2f}) and values them too low by"
            f" {-bias.value:.0%} {_of_what(bias)}."
        ),
        evidence=places(*supports),
        against=[],
        actions=evidence.advise("reward scale", "more steps", "larger critic"),
        reconsider="Episodes that all earn nearly the same cannot be ranked; check their spread.",
    )


def _of_what(bias: Hit) -> str:
    if BY_DEVIATION in bias.reading.reason:
        return "of their standard deviation (their mean is near 0)"
    return "of their mean"


def saturated_support(evidence: Evidence) -> Verdict | None:
    """V5: targets lie outside what the critic can say."""
    main = evidence.highest("support_clip")
    if main is None or THRESHOLDS["support_clip"].level(main.value) != "bad":
        return None
    edge = evidence.highest("support_edge")
    supports = those((edge, edge is not None and edge.value > 0.1))
    ends = main.reading.reference
    span = f" [{ends['value_min']:g}, {ends['value_max']:g}]" if ends else ""
    return Verdict(
        rule="V5",
        # An untrained critic spreads its mass evenly, and some of it always moves out.
        level="bad" if supports else "warn",
        confidence=confidence(bool(supports), len(supports), 0 if supports else 1),
        target=evidence.target,
        sentence=(
            f"{main.value:.0%} of the target mass at {evidence.label} lies outside the value"
            f" range{span}."
        ),
        evidence=[main.place, *places(*supports)],
        against=[],
        actions=evidence.advise("wider range", "reward scale", "lower gamma"),
        reconsider="Nothing clips once rewards are scaled to the range.",
    )


def self_excitation(evidence: Evidence) -> Verdict | None:
    """V6: bootstrapping feeds value errors back, in several measurements in a row."""
    main = evidence.highest("seem_norm")
    if main is None or main.value <= 0:
        return None
    lately = evidence.lately(main)[-IN_A_ROW:]
    lasting = len(lately) == IN_A_ROW and all(value > 0 for value in lately)
    churn, size = evidence.highest("churn_q"), evidence.one("q_abs")
    supports = those((churn, evidence.rising(churn, GROWS)), (size, evidence.rising(size, GROWS)))
    clear = len(lately) < IN_A_ROW and main.value > CLEAR
    if not supports or not (lasting or clear):
        return None
    return Verdict(
        rule="V6",
        level="warn",
        confidence="medium" if lasting else "low",
        target=evidence.target,
        sentence=f"At {evidence.label} bootstrapping amplifies value errors.",
        evidence=[main.place, *places(*supports)],
        against=[],
        actions=evidence.advise("normalise", "project", "slower target", "more capacity of data"),
        reconsider="Target networks damp this; values that stop growing would clear it.",
    )


def degenerate_flow(evidence: Evidence) -> Verdict | None:
    """V13: integration steps do nothing, are too few, or amplify errors."""
    straight, coarse = evidence.lowest("flow_straight"), evidence.highest("flow_conv")
    recovery = evidence.highest("flow_recovery")
    noise = evidence.highest("flow_noise_share")
    left = _least_left(evidence, straight)
    # Deviation from the spec of the diagnostics, 8, which calls every straight flow degenerate: the
    # ideal field (y - z) / (1 - t) is straight, too, and leaves nothing of an error on the way. One
    # that ignores its state leaves all of it.
    flat = straight is not None and straight.value < 0.005
    flat = flat and left is not None and left.value >= IGNORED
    findings = [
        (straight, flat, "is straight: its steps do no more than one would"),
        (coarse, coarse is not None and coarse.value > 0.05, "is integrated too coarsely"),
        (recovery, recovery is not None and recovery.value > 1.0, "amplifies errors on the way"),
    ]
    mains = [(hit, text) for hit, holds, text in findings if hit is not None and holds]
    if not mains:
        return None
    supports = those((noise, noise is not None and noise.value > 0.1))
    amplifies = recovery is not None and THRESHOLDS["flow_recovery"].level(recovery.value) == "bad"
    wholly = flat and straight is not None and straight.value < 1e-4
    return Verdict(
        rule="V13",
        level="bad" if amplifies or wholly else "warn",
        confidence=confidence(True, len(supports) + len(mains) - 1, 0),
        target=evidence.target,
        sentence=f"The flow at {evidence.label} {', and '.join(text for _, text in mains)}.",
        evidence=[*(hit.place for hit, _ in mains), *places(*those((left, flat)), *supports)],
        against=[],
        actions=evidence.advise("flow noise", "flow steps"),
        reconsider="A critic of a nearly deterministic value may be straight and right.",
    )


def _least_left(evidence: Evidence, straight: Hit | None) -> Hit | None:
    """Of an error put into the flow of the same member, over the times at which it was put in."""
    if straight is None:
        return None
    found = evidence.find("flow_recovery")
    own = [hit for hit in found if hit.reading.member == straight.reading.member]
    return min(own, key=lambda hit: hit.value, default=None)


RULES: tuple[Rule, ...] = (
    overestimation,
    misordered,
    saturated_support,
    self_excitation,
    degenerate_flow,
)


def _bias(evidence: Evidence) -> Hit | None:
    return _of_target(evidence, "value_bias_norm")


def _of_target(evidence: Evidence, metric: str) -> Hit | None:
    """Of what targets use: the ensemble's minimum where it is reported, else the mean."""
    found = list(evidence.find(metric))
    for member in ("min", "mean"):
        for hit in found:
            if hit.reading.member == member:
                return hit
    return next(iter(found), None)
