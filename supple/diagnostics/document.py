"""The document of a report: what ``report.json`` holds, and all that the page is made from.

``report.schema.json`` beside this file is its schema. Numbers are finite: what has none says why.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from torch import Tensor

from supple import machine
from supple.diagnostics.evidence import LEVELS, Hit, Verdict
from supple.diagnostics.reading import Reading
from supple.diagnostics.targets import Target
from supple.diagnostics.thresholds import level_of, threshold_of

SCHEMA_VERSION = "1.0"
MOST_POINTS = 2000
"""Of a series."""


def schema() -> dict[str, Any]:
    """The shipped JSON schema."""
    text = resources.files("supple.diagnostics").joinpath("report.schema.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


@dataclass(kw_only=True)
class Document:
    """Grows while things are measured; ``to_json`` gives plain values."""

    command: str
    suite: str
    device: str
    seed: int
    targets: list[dict[str, Any]] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)
    hits: dict[int, list[Hit]] = field(default_factory=dict)
    """Readings with a value, by target; not part of the file."""
    _began: float = field(default_factory=time.perf_counter)

    def add_target(self, target: Target) -> None:
        """Describe one checkpoint."""
        agent = target.agent
        networks = {
            name: sum(part.numel() for part in module.parameters())
            for name in ("actor", "critic")
            if (module := getattr(agent, name, None)) is not None
        }
        self.targets.append(
            {
                "id": target.number,
                "label": target.label,
                "run": target.run_name,
                "task": target.settings.task,
                "roles": list(target.roles),
                "env_step": target.env_steps,
                "update": agent.updates,
                "algorithm": target.settings.agent_name,
                "preset": target.settings.preset,
                "parameters": networks,
                "observation": dict(target.spec.observation),
                "actions": target.spec.action.size,
                "hash": target.digest,
            }
        )
        for name in ("recent", "anchor", "rollout"):
            rows = getattr(target.data, name)
            if rows is not None:
                self.add_dataset(target.number, name, rows.episode, source="stored")

    def add_dataset(self, target: int, name: str, episode_N: Tensor, *, source: str) -> None:
        """Say what was looked at."""
        self.datasets.append(
            {
                "name": name,
                "target": target,
                "n": len(episode_N),
                "source": source,
                "episodes": len(episode_N.unique()),
                "normaliser": "each checkpoint applies its own to raw observations",
            }
        )

    def add(self, target: int, reading: Reading, *, before: int | None = None) -> Hit | None:
        """Append a reading; one with a value can be evidence.

        Args:
            target: the checkpoint it is of.
            reading: the number.
            before: the earlier checkpoint, where it is of two.
        """
        line = threshold_of(reading)
        thresholds = None
        if line is not None:
            thresholds = dataclasses.asdict(line)
        interval = reading.ci95
        if interval is not None and not all(map(math.isfinite, interval)):
            interval = None
        self.metrics.append(
            {
                "id": reading.metric,
                "target": target if before is None else [before, target],
                "network": reading.network,
                "layer": reading.layer,
                "member": reading.member,
                "params": dict(reading.params),
                "value": reading.value,
                "ci95": None if interval is None else list(interval),
                "unit": reading.unit,
                "n": reading.n,
                "status": reading.status,
                "reason": reading.reason or None,
                "reference": {k: v for k, v in reading.reference.items() if math.isfinite(v)},
                "thresholds": thresholds,
                "level": level_of(reading),
                "cost_s": round(reading.cost_s, 4),
            }
        )
        if reading.status != "ok":
            self.skip(reading.metric, reading.reason, target=target)
            return None
        hit = Hit(len(self.metrics) - 1, reading)
        self.hits.setdefault(target, []).append(hit)
        return hit

    def skip(self, what: str, why: str, *, target: int | None = None) -> None:
        """Say once what was not measured, and why."""
        entry = {"what": what, "why": why, "target": target}
        if entry not in self.skipped:
            self.skipped.append(entry)

    def add_series(
        self,
        name: str,
        target: int,
        x: Sequence[float],
        y: Sequence[float],
        *,
        xlabel: str,
        ylabel: str = "",
    ) -> None:
        """A curve, at most ``MOST_POINTS`` of it; points without a number are left out."""
        pairs = [
            (float(a), float(b))
            for a, b in zip(x, y, strict=True)
            if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
        ]
        factor = max(1, -(-len(pairs) // MOST_POINTS))
        kept = pairs[::factor]
        self.series.append(
            {
                "id": name,
                "target": target,
                "x_name": xlabel,
                "y_name": ylabel,
                "x": [a for a, _ in kept],
                "y": [b for _, b in kept],
                "thinned": factor,
            }
        )

    def add_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """What the rules found."""
        self.verdicts += [verdict._asdict() for verdict in verdicts]

    def lap(self, name: str) -> None:
        """Count the time since the last lap, or the beginning, to a stage [s]."""
        now = time.perf_counter()
        self.timing[name] = round(self.timing.get(name, 0.0) + now - self._began, 3)
        self._began = now

    def to_json(self) -> dict[str, Any]:
        """Plain values by the schema."""
        return {
            "schema_version": SCHEMA_VERSION,
            "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "tool_version": machine.versions(),
            "command": self.command,
            "suite": self.suite,
            "device": self.device,
            "seed": self.seed,
            "targets": self.targets,
            "datasets": self.datasets,
            "metrics": self.metrics,
            "series": self.series,
            "verdicts": self.verdicts,
            "skipped": self.skipped,
            "notes": self.notes,
            "timing": self.timing,
        }


def latest(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One verdict per rule and run, of the last checkpoint it spoke of; worst first."""
    runs = {target["id"]: target["run"] for target in document["targets"]}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for verdict in document["verdicts"]:
        key = (verdict["rule"], runs[verdict["target"]])
        known = found.get(key)
        if known is None or verdict["target"] > known["target"]:
            found[key] = verdict
    order = [*map(str, LEVELS)]
    return sorted(found.values(), key=lambda v: (-order.index(v["level"]), v["rule"]))


def as_bytes(document: Mapping[str, Any]) -> bytes:
    """The file.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(document, indent=1, allow_nan=False, sort_keys=False).encode() + b"\n"


def without_timing(document: Mapping[str, Any]) -> dict[str, Any]:
    """What two processes with one seed agree on."""
    kept = {k: v for k, v in document.items() if k not in ("created_utc", "timing", "command")}
    kept["metrics"] = [
        {k: v for k, v in metric.items() if k != "cost_s"} for metric in document["metrics"]
    ]
    return kept


def arrays_npz(arrays: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Spectra, directions and matrices under file-safe names."""
    return {name.replace("/", "."): part.detach().cpu().numpy() for name, part in arrays.items()}
