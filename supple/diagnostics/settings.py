"""Settings of the diagnostics while training."""

from __future__ import annotations

from dataclasses import dataclass

from supple.errors import require_rules


@dataclass(kw_only=True, slots=True)
class DiagnosticsSettings:
    """What is measured while training; it never changes what is learned."""

    enabled: bool = True
    """Write diag/ columns, and keep transitions in checkpoints for ``supple diagnose``."""
    tier1_period: int = 1000
    """Updates between two measurements of features, units, steps and outputs."""
    tier2_period: int = 0
    """Updates between two of curvature, gradient noise and self-excitation; 0 is a twentieth of the
    run's, within ``tier1_period`` and 20,000."""
    max_overhead: float = 0.03
    """Share of the wall-clock that measuring may take; periods are stretched to keep it."""
    anchor_size: int = 2048
    """Transitions kept for comparisons across time."""
    recent_size: int = 2048
    """Newest transitions that tier 1 measures on."""

    def periods(self, updates: float) -> tuple[int, int]:
        """Of both tiers, in a run of so many updates."""
        planned = max(self.tier1_period, min(20_000, int(updates / 20)))
        return self.tier1_period, self.tier2_period or planned

    def __post_init__(self) -> None:
        """Refuse values that cannot run."""
        rules = (
            ("tier1_period", self.tier1_period >= 1, ">= 1"),
            ("tier2_period", self.tier2_period >= 0, ">= 0"),
            ("max_overhead", 0 < self.max_overhead <= 1, "in (0, 1]"),
            ("anchor_size", self.anchor_size >= 1, ">= 1"),
            ("recent_size", self.recent_size >= 1, ">= 1"),
        )
        require_rules(self, "--diagnostics.", rules)
