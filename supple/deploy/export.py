"""``supple export``: from a run's checkpoint to a bundle, without a simulator."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from supple import machine
from supple.checkpoint import following_format
from supple.deploy import c_source, golden, manifest, onnx_file, torch_file
from supple.deploy.bundle import check_free, write_bundle
from supple.deploy.card import model_card
from supple.deploy.contract import (
    UNKNOWN_IN,
    action_names,
    contract,
    observation_names,
    unknown,
)
from supple.deploy.formats import FORMATS, mjlab_properties, unitree_yaml
from supple.deploy.golden import Golden, answer
from supple.deploy.plain import PlainPolicy, plain_policy
from supple.deploy.terms import feed
from supple.errors import InputError
from supple.run import REPLAY_FOLDER, RESULT
from supple.signed_json import sha256
from supple.trained import Trained, load_trained
from supple.version import __version__

PUT_ASIDE = "put the file aside to export without what it says"


def export(
    run: Path | str,
    out: Path | str | None = None,
    *,
    also: Sequence[str] = (),
    archive: bool = True,
) -> Path:
    """Write the bundle of a run's newest intact checkpoint, or of one checkpoint folder.

    Args:
        run: either of them.
        out: the folder to write; by default ``bundle`` in the run's folder.
        also: further formats, of ``FORMATS``.
        archive: whether to write ``<out>.zip`` too.

    Returns:
        The bundle's folder.

    Raises:
        InputError: no such run, a policy that cannot be exported, or a place that is taken.
    """
    for name in also:
        if name not in FORMATS:
            raise InputError(f"--also {name}: expected {' or '.join(FORMATS)}")
    onnx_file.require_onnx()
    trained = load_trained(run, device="cpu")
    out = Path(out or trained.folder / "bundle")
    check_free(out)
    files = bundle_files(trained, also=also)
    write_bundle(out, files, archive=archive)
    return out


def bundle_files(trained: Trained, *, also: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file of the bundle by name, ``manifest.json`` included."""
    agent, spec = trained.agent, trained.spec
    policy = plain_policy(agent, spec).eval()
    groups = agent.actor_groups
    record = contract(policy, spec, groups=groups, origin=_origin(trained))
    vectors, source = _golden(trained, policy, record)
    parity = _own_parity(policy, vectors)
    files = _graphs(policy, record, also)
    labels = c_source.Labels(
        contract=manifest.contract_digest(record),
        action_names=action_names(spec),
        observation_names=observation_names(spec, groups),
        control_dt=spec.control_dt,
        version=__version__,
    )
    files["policy.h"] = c_source.header(policy, labels).encode()
    files["policy.c"] = c_source.source(policy, labels).encode()
    files["golden.safetensors"] = vectors.to_bytes()
    evidence = {
        "golden": {
            "file": "golden.safetensors",
            "steps": len(vectors.observation),
            "starts": int(vectors.start.sum()),
            "source": source,
            "tolerance": golden.TOLERANCE,
            "met_at_export": parity,
            "raw_state": None,
        },
        "latency": None,
        "evaluation": _evaluation(trained),
        "diagnostics": _diagnostics(trained.folder, trained.env_steps),
    }
    if evidence["diagnostics"] is not None:
        files["diagnostics.json"] = _json(evidence["diagnostics"])
    body: dict[str, Any] = {
        "identity": _identity(trained.folder),
        "contract_sha256": labels.contract,
        "contract": record,
        "feed": feed(record),
        "evidence": evidence,
    }
    body["unknown"] = unknown({part: body[part] for part in UNKNOWN_IN})
    files["README.md"] = model_card(body, body["unknown"]).encode()
    body["files"] = {
        name: {"bytes": len(data), "sha256": sha256(data)} for name, data in sorted(files.items())
    }
    files[manifest.NAME] = manifest.sign(body)
    return files


def _graphs(
    policy: PlainPolicy, record: Mapping[str, Any], also: Sequence[str]
) -> dict[str, bytes]:
    text = manifest.canonical(record)
    metadata = {onnx_file.CONTRACT_KEY: text}
    files: dict[str, bytes] = {}
    if "mjlab" in also:
        metadata |= mjlab_properties(record)
    if "unitree" in also:
        files["deploy.yaml"] = unitree_yaml(record).encode()
    files["policy.onnx"] = onnx_file.onnx_bytes(policy, batch=1, metadata=metadata)
    files["policy_batch.onnx"] = onnx_file.onnx_bytes(policy, batch=None, metadata=metadata)
    files["policy.pt2"] = torch_file.torch_bytes(policy, contract=text)
    return files


def _golden(trained: Trained, policy: PlainPolicy, record: Mapping[str, Any]) -> tuple[Golden, str]:
    """Golden vectors, and in words where their observations are from."""
    found = golden.recorded(
        trained.folder / REPLAY_FOLDER, trained.header["replay"], trained.agent.actor_groups
    )
    if found is not None:
        source = f"the replay rows of checkpoint step_{trained.env_steps}"
    else:
        seed = trained.settings.seed
        found = golden.drawn(policy, record["observation"]["terms"], seed)
        source = f"seeded draws (seed {seed}) with the normaliser's mean and deviation"
    return answer(trained.agent.policy(), policy, *found), source


@torch.no_grad()
def _own_parity(policy: PlainPolicy, vectors: Golden) -> float:
    """Largest relative difference of the plain layers from the training policy's actions.

    Raises:
        InputError: it is above the tolerance: the export would not be that policy.
    """
    worst, memory = 0.0, torch.zeros(1, policy.memory_width)
    for row, first in enumerate(vectors.start.tolist()):
        before = (torch.zeros_like(memory) if first else memory,) if policy.memory_width else ()
        outputs = policy(vectors.observation[row : row + 1], *before)
        expected = vectors.action[row].double()
        error = (outputs[0][0].double() - expected).abs() / expected.abs().clamp_min(1)
        worst = max(worst, float(error.nan_to_num(torch.inf).max()))
        memory = outputs[-1]
    if not worst <= golden.TOLERANCE:
        raise InputError(
            f"the exported layers differ from the training policy by {worst:.2g}: expected at most"
            f" {golden.TOLERANCE}; this is a fault of supple, please report it"
        )
    return worst


def _origin(trained: Trained) -> dict[str, Any]:
    return {
        "task": trained.settings.task,
        "agent": trained.settings.agent_name,
        "run": trained.folder.name,
        "seed": trained.settings.seed,
        "env_steps": trained.env_steps,
        "env": dataclasses.asdict(trained.settings.env),
    }


def _identity(folder: Path) -> dict[str, Any]:
    """Who made the bundle and from what; ``SOURCE_DATE_EPOCH`` fixes the time of export."""
    now = machine.versions()
    commit = now.pop("commit")
    given = os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time()))
    try:
        moment = time.gmtime(int(given))
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"SOURCE_DATE_EPOCH must be seconds since 1970, got {given[:40]!r}"
        ) from error
    versions = folder / "versions.json"
    with following_format(versions, PUT_ASIDE):
        trained_with = json.loads(versions.read_text()) if versions.is_file() else None
    return {
        "commit": commit.removesuffix("-dirty"),
        "dirty": commit.endswith("-dirty"),
        "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", moment),
        "exported_with": now,
        "trained_with": trained_with,
        "licence": None,  # the trainer's to choose
    }


def _evaluation(trained: Trained) -> dict[str, Any] | None:
    """The run's own deterministic evaluation of this checkpoint, if it made one by then."""
    names = ("return_mean", "return_ci95", "episodes", "env_steps")
    result = trained.folder / RESULT
    with following_format(result, PUT_ASIDE):
        record = json.loads(result.read_text()) if result.is_file() else {}
        if record.get("env_steps") == trained.env_steps:
            return {name: record[name] for name in names}
    rows = trained.folder / "metrics.jsonl"
    with following_format(rows, PUT_ASIDE):
        # What follows the last line's end is a row that a killed run was writing.
        lines = rows.read_text().split("\n")[:-1] if rows.is_file() else []
        for row in map(json.loads, reversed(lines)):
            if row["step"] == trained.env_steps and "eval/return_mean" in row:
                return {
                    "return_mean": row["eval/return_mean"],
                    "return_ci95": row["eval/return_ci95"],
                    "episodes": trained.settings.eval.episodes,
                    "env_steps": row["step"],
                }
    return None


def _diagnostics(folder: Path, env_steps: int) -> dict[str, Any] | None:
    """What ``supple diagnose`` said of this checkpoint, where it was asked."""
    report = folder / "diagnostics" / "report.json"
    if not report.is_file():
        return None
    kept = ("rule", "level", "confidence", "sentence")
    with following_format(report, "run supple diagnose again, or put the file aside"):
        record = json.loads(report.read_text())
        own = [
            target["id"]
            for target in record["targets"]
            if target["run"].split("/")[-1] == folder.name and target["env_step"] == env_steps
        ]
        if not own:
            return None
        return {
            "suite": str(record["suite"]),
            "created_utc": str(record["created_utc"]),
            "verdicts": [
                {name: each[name] for name in kept}
                for each in record["verdicts"]
                if each["target"] in own
            ],
        }


def _json(record: Any) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()
