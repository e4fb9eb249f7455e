"""The plots of a report in the order of the page; each is left out where its data are missing.

All read the document and what ``analyse`` found; none measures anything. They are made by subject
in the files beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from supple.diagnostics.report import learning_figures as learning
from supple.diagnostics.report import policy_figures as policy
from supple.diagnostics.report import value_figures as values
from supple.diagnostics.report.source import Figure, Source, over_checkpoints


def figures(source: Source) -> list[Figure]:
    """All plots, in the order of the page."""
    found = []
    for make in MAKERS:
        found += list(make(source))
    return found


MAKERS: tuple[Callable[[Source], Iterator[Figure]], ...] = (
    learning.returns,
    over_checkpoints(
        "Can it still learn?",
        "Ability to fit new targets",
        [(n, "fit_gap", {"network": n, "member": "mean"}) for n in ("critic", "value", "actor")],
        "gap to a new network",
        "0: as plastic as a new network.",
    ),
    learning.learning_curves,
    learning.overwriting,
    learning.cosines,
    over_checkpoints(
        "Are its features healthy?",
        "Inactive units",
        [
            (
                f"{n}, {text}",
                metric,
                {"network": n, "layer": "all", "member": "mean", "threshold": t},
            )
            for n in ("critic", "value", "actor")
            for metric, text, t in (
                ("dormant", "inactive", 0.1),
                ("grad_dormant", "no gradient", 0.01),
            )
        ],
        "% of units",
        "Growth over training matters, not the level: untrained networks have some too.",
    ),
    over_checkpoints(
        "Are its features healthy?",
        "Dimensions of the last features",
        [
            (f"{n}, {text}", metric, {"network": n, "layer": "penultimate", "member": "mean"})
            for n in ("critic", "value", "actor")
            for metric, text in (("erank", "effective rank"), ("pca_rank", "99 % of variance"))
        ],
        "share of the width",
        "Falling below half of its own maximum supports a loss of plasticity; alone it is none.",
        share_of_width=True,
    ),
    learning.spectra,
    over_checkpoints(
        "Are its features healthy?",
        "Length of the features",
        [(n, "feat_norm", {"network": n, "member": "mean"}) for n in ("critic", "value", "actor")],
        "mean length",
        "Before the last norm. Steady growth together with sinking rank is a warning.",
    ),
    over_checkpoints(
        "Is the value right?",
        "Self-excitation of bootstrapping",
        [(n, "seem_norm", {"network": n}) for n in ("critic", "value")],
        "largest growth rate / norm",
        "Above 0 value errors feed themselves along one direction; a target network damps it.",
    ),
    over_checkpoints(
        "Is the value right?",
        "Size of the values",
        [(n, "q_abs", {"network": n, "member": "mean"}) for n in ("critic", "value")],
        "mean |value| [scaled]",
        "Growth without end, with self-excitation above 0, is bootstrapping that feeds itself.",
    ),
    over_checkpoints(
        "Is the value right?",
        "Value bias",
        [(n, "value_bias_norm", {"network": n}) for n in ("critic", "value")],
        "bias / mean return",
        "0 is right, above 0 is too high. Bars: 95 % over episodes.",
    ),
    values.against_returns,
    values.atoms,
    values.flow,
    over_checkpoints(
        "Is the step size stable?",
        "Curvature against the step size",
        [(n, "stab_adam", {"network": n}) for n in ("critic", "value", "actor")],
        "ratio, 1 is the limit",
        "0.5 to 1.2 is the normal zone of large-step training; above 2 for long is not.",
    ),
    learning.sweep,
    over_checkpoints(
        "Is the policy steady?",
        "Saturated commands",
        [("commands at their limits", "act_sat", {})],
        "share",
        "A saturated command cannot be disturbed: robustness figures for it mean little.",
    ),
    policy.churn,
    policy.time,
    policy.space,
    policy.response,
    policy.distance,
    policy.shifts,
    policy.methods,
)
