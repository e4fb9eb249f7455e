"""Verdict rules: each needs its main evidence and an independent support, never one rank alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from supple.diagnostics.evidence import LEVELS, Evidence, Rule, Verdict
from supple.diagnostics.rules import learning, policy, values

RULES: tuple[Rule, ...] = (*learning.RULES, *values.RULES, *policy.RULES)

QUESTIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # question: the rules that answer it, and the metrics one of which must have been measured
    "Can it still learn?": (("V1",), ("fit_gap",)),
    "Are its features healthy?": (("V2",), ("dormant", "dead_var")),
    "Is the value right?": (
        ("V3", "V4", "V5", "V6", "V13"),
        ("value_bias_norm",),
    ),
    "Is the step size stable?": (("V7", "V8"), ("stab_adam",)),
    "Is the policy steady?": (("V11", "V14"), ("ranld_cv",)),
    "Is it robust to its sensors?": (("V10", "V12"), ("ranld_noise_changed",)),
    "Was training steady?": (("V9",), ("ret_mdd_share",)),
}


def judge(evidence: Iterable[Evidence]) -> list[Verdict]:
    """Every rule on every checkpoint, worst first."""
    found = [verdict for each in evidence for rule in RULES if (verdict := rule(each)) is not None]
    return sorted(found, key=lambda verdict: (-LEVELS.index(verdict.level), verdict.rule))
