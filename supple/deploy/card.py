"""The bundle's model card, ``README.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def model_card(manifest: Mapping[str, Any], unknown: Sequence[str]) -> str:
    """Task, data, evaluation, diagnostics, safety envelope, in Markdown."""
    contract, evidence = manifest["contract"], manifest["evidence"]
    origin, identity = contract["origin"], manifest["identity"]
    golden = evidence["golden"]
    lines = [
        f"# {origin['task']}: a policy trained by supple",
        "",
        *_table(
            {
                "task": origin["task"],
                "algorithm": origin["agent"],
                "training": f"{origin['env_steps']:,} environment steps, seed {origin['seed']}",
                "run": origin["run"],
                "code": identity["commit"] or "not from a checkout",
                "exported": identity["exported_at"],
                "licence": identity["licence"] or "not chosen",
            }
        ),
        "",
        "## Evaluation",
        "",
        _evaluation(evidence["evaluation"]),
        "",
        "## Diagnostics",
        "",
        _diagnostics(evidence["diagnostics"]),
        "",
        "## Inputs and outputs",
        "",
        _inputs(contract),
        "",
        *_table(_action(contract)),
        "",
        "## What to feed",
        "",
        "What the simulator gave the policy, without noise: each value in the simulator's units,"
        " clipped and scaled as told here. The normaliser is inside the policy.",
        "",
        *(f"* {line}" for line in manifest["feed"]),
        "",
        "## How fast",
        "",
        "A step is work for one thread: `policy.c` starts none, onnxruntime one per core unless"
        " `SessionOptions.intra_op_num_threads` is 1. Where steps come late, keep the process on a"
        " core, before ordinary ones: `taskset -c 2 chrt -f 50 PROGRAM`.",
        "",
        "## Safety envelope",
        "",
        *_table(_safety(contract)),
        "",
        "## Proof",
        "",
        f"`golden.safetensors`: {golden['steps']} steps with {golden['starts']} episode starts,"
        f" from {golden['source']}. `supple verify` replays them in every runtime that is"
        " installed; every file's SHA-256 is in `manifest.json`.",
        "",
        "## Not known",
        "",
        *(f"* `{path}`" for path in unknown),
        "",
    ]
    return "\n".join(lines)


def _table(rows: Mapping[str, Any]) -> list[str]:
    cells = ((key, str(value).replace("|", "\\|")) for key, value in rows.items())
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)]


def _evaluation(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "The run holds no evaluation."
    if found["episodes"] == 1:
        return (
            f"Deterministic return {found['return_mean']:.6g}, of one episode, after"
            f" {found['env_steps']:,} environment steps."
        )
    return (
        f"Deterministic return {found['return_mean']:.6g} ± {found['return_ci95']:.3g} (95 %"
        f" interval of the mean), {found['episodes']} episodes, after"
        f" {found['env_steps']:,} environment steps."
    )


def _diagnostics(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "None were run: `supple diagnose` before `supple export` adds them."
    suite = f"`supple diagnose --suite {found['suite']}`, {found['created_utc']}"
    if not found["verdicts"]:
        return f"No fault found: {suite}."
    lines = [f"{suite}:", ""]
    lines += [
        f"* {each['level']} ({each['rule']}, {each['confidence']}): {each['sentence']}"
        for each in found["verdicts"]
    ]
    return "\n".join(lines)


def _inputs(contract: Mapping[str, Any]) -> str:
    terms = contract["observation"]["terms"]
    names = ", ".join(f"`{term['name']}`" for term in terms[:40])
    more = f" and {len(terms) - 40} more" if len(terms) > 40 else ""
    recurrent = contract["state"]["recurrent"]
    memory = f", and a memory of {recurrent[0]['shape'][1]} numbers" if recurrent else ""
    return f"Observation of {len(terms)} numbers in this order{memory}: {names}{more}."


def _action(contract: Mapping[str, Any]) -> dict[str, Any]:
    action, timing = contract["action"], contract["timing"]
    rows = {
        "actions": ", ".join(f"`{name}`" for name in action["names"]),
        "rule": action["deterministic"],
        "control period": _unit(timing["control_dt"], "s"),
        "action delay in training": _unit(timing["action_delay"], timing["delay_unit"]),
        "control mode": contract["gains"]["control_mode"] or "not known",
    }
    if action["kind"] == "discrete":
        rows["choices"] = action["choices"]
        if start := action.get("start"):
            rows["the simulator's own choices"] = f"choice + {start}: it counts from {start}"
        return rows
    return rows | {"command unit": action["command_unit"] or "the simulator's"}


def _commands(low: Any, high: Any) -> str:
    if low is False and high is False:
        return "not bounded"
    return " to ".join("no bound" if side is False else str(side) for side in (low, high))


def _safety(contract: Mapping[str, Any]) -> dict[str, Any]:
    safety = contract["safety"]
    return {
        "numbers that are not finite": safety["non_finite_rule"],
        "commands": _commands(safety["command_low"], safety["command_high"]),
        "stale state": f"damp after {safety['stale_after']:g} s without one",
        "damping gains": safety["damping"]["gains"] or "not known",
        "tilt limit": _unit(safety["tilt_limit"], "rad"),
    }


def _unit(value: float | None, unit: str) -> str:
    return "not known" if value is None else f"{value:g} {unit}"
