"""The lines that readings are held against, all in one place.

None of them is a finding of the literature unless its mark says so: they are project defaults.

Marks: [L] from the named publication, [R] reconstructed from it, [O] our own, [E] an engineering
default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supple.diagnostics.reading import Reading


@dataclass(frozen=True, slots=True)
class Threshold:
    """Two lines; a side of None is not judged."""

    warn: float | None = None
    bad: float | None = None
    above: bool = True
    """Whether large values are the bad ones."""
    mark: str = "E"
    absolute: bool = False
    """Whether only the size counts, not the sign."""

    def level(self, value: float) -> str:
        """``ok``, ``warn`` or ``bad``."""
        value = abs(value) if self.absolute else value
        for name, line in (("bad", self.bad), ("warn", self.warn)):
            if line is not None and (value >= line if self.above else value <= line):
                return name
        return "ok"


def _below(warn: float) -> Threshold:
    return Threshold(warn, above=False)


THRESHOLDS: Mapping[str, Threshold] = {
    "fit_gap": Threshold(0.2, 0.5),
    "dormant_0.1": Threshold(20, 50),
    "dead_var": Threshold(30, 50),
    "grad_dormant_0.01": Threshold(10, None),
    "feat_cos": Threshold(0.99, None),
    "rdm_noise": _below(0.9),
    "eps_frac": Threshold(0.1, 0.5),
    "stab_adam": Threshold(2.0, None),
    "seem_norm": Threshold(0.0, None),
    "value_bias_norm": Threshold(0.2, 0.5, absolute=True),
    "value_rank": _below(0.5),
    "support_clip": Threshold(0.01, 0.1),
    "support_edge": Threshold(0.1, None),
    "support_use": _below(0.05),
    "churn_flip": Threshold(0.1, None),
    "act_sat": Threshold(0.3, None),
    "std_edge": Threshold(0.3, None),
    "flow_straight": _below(0.005),
    "flow_conv": Threshold(0.05, None),
    "flow_recovery": Threshold(1.0, 1.5),
    "flow_noise_share": Threshold(0.1, None),
    "flow_sigma_ratio": Threshold(0.5, None, mark="R"),
    "ret_mdd_share": Threshold(0.3, 0.5),
    "ranld_cv": Threshold(1.5, None),
    "ranld_tail": Threshold(5.0, None),
    "ranld_drop": Threshold(0.2, 0.5),
    "ranld_fcq": _below(0.5),
}
"""By metric, with its parameter behind it where only one value is judged."""


def threshold_of(reading: Reading) -> Threshold | None:
    """The lines for a reading, if it is judged at all."""
    number = next((v for v in reading.params.values() if isinstance(v, float)), None)
    exact = f"{reading.metric}_{number:g}" if number is not None else reading.metric
    return THRESHOLDS.get(exact, THRESHOLDS.get(reading.metric))


def level_of(reading: Reading) -> str:
    """``ok``, ``warn``, ``bad``, or ``info`` where nothing is judged."""
    line = threshold_of(reading)
    if line is None or reading.value is None:
        return "info"
    return line.level(reading.value)
