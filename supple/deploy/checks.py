"""What ``supple verify`` asks of a bundle; every check gives one verdict and one sentence.

Shapes: ``T`` rows, ``D`` observation width, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from supple.deploy import manifest as manifest_file
from supple.deploy.contract import UNKNOWN_IN, unknown
from supple.deploy.explain import command_unit, explain, relative_error, worst_error
from supple.deploy.golden import SPREAD, TOLERANCE, Golden, history_pairs
from supple.deploy.hostile import CannotRunError
from supple.deploy.onnx_file import FINITE
from supple.deploy.runtimes import Outputs, Runtime

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"
RANDOM_ROWS = 10_000
DISTINCT = 10 * TOLERANCE
"""Golden commands of two joints must differ by more, or a swap could not be seen."""
SHOWN = 6
"""Differences that a sentence names before it counts the rest."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check's result."""

    check: str
    status: str
    detail: str


@dataclass(frozen=True, slots=True)
class Vectors:
    """Golden vectors as arrays."""

    observation: np.ndarray
    start: np.ndarray
    outputs: Outputs

    @staticmethod
    def of(golden: Golden) -> Vectors:
        """The same numbers."""
        action = golden.action.float().reshape(len(golden.action), -1).numpy()
        outputs = Outputs(action, golden.command.numpy(), golden.memory.numpy())
        return Vectors(golden.observation.numpy(), golden.start.numpy(), outputs)


def verdict(check: str, faults: Sequence[str], fine: str) -> Verdict:
    """Passed with ``fine``, or failed with the first faults."""
    if not faults:
        return Verdict(check, PASSED, fine)
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return Verdict(check, FAILED, "; ".join(faults[:SHOWN]) + more)


# --- the manifest by itself --------------------------------------------------------------------


def contract_agrees(manifest: Mapping[str, Any], runtimes: Sequence[Runtime]) -> Verdict:
    """Every file was exported with this very contract; names what differs."""
    contract = manifest["contract"]
    faults = [*_inner_faults(contract), *_listed_faults(contract, runtimes)]
    for runtime in runtimes:
        faults += _named_faults(contract, runtime)
    if manifest.get("unknown") != unknown({part: manifest.get(part, {}) for part in UNKNOWN_IN}):
        faults.append("the list of unknown fields does not fit the manifest's nulls")
    if manifest.get("contract_sha256") != manifest_file.contract_digest(contract):
        faults.append("contract_sha256 is not the contract's digest: it was edited")
    files = ", ".join(runtime.file for runtime in runtimes)
    return verdict("contract", list(dict.fromkeys(faults)), f"manifest.json agrees with {files}")


def _listed_faults(contract: Mapping[str, Any], runtimes: Sequence[Runtime]) -> Iterator[str]:
    """What differs from the contracts that graphs carry, files of one opinion together."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for runtime in runtimes:
        if isinstance(runtime.contract, dict):
            for path, listed, baked in manifest_file.differences(contract, runtime.contract):
                where.setdefault((path, _brief(listed), _brief(baked)), []).append(runtime.file)
    for (path, own, other), files in where.items():
        yield f"{path} is {own} in manifest.json, {other} in {', '.join(files)}"


def _named_faults(contract: Mapping[str, Any], runtime: Runtime) -> Iterator[str]:
    """What differs from a file that carries names and a digest only."""
    if isinstance(runtime.contract, dict):
        return
    if runtime.names is not None:
        found = {"action": list(contract["action"]["names"])}
        found["observation"] = [term["name"] for term in contract["observation"]["terms"]]
        for kind, names in found.items():
            baked_names = runtime.names[kind]
            for listed, baked in zip(names, baked_names, strict=False):
                if listed != baked:
                    yield f"{kind} {listed!r} of manifest.json is {baked!r} in {runtime.file}"
            if len(names) != len(baked_names):
                counts = f"{len(names)} {kind}s, {runtime.file} has {len(baked_names)}"
                yield f"manifest.json lists {counts}"
        if runtime.contract != manifest_file.contract_digest(contract):
            yield f"{runtime.file} was exported with another contract than manifest.json holds"
    else:
        yield f"{runtime.file} carries no contract"


def _inner_faults(contract: Mapping[str, Any]) -> Iterator[str]:
    """What a contract says must not contradict itself."""
    joints, action = contract["joints"], contract["action"]
    names, robot = joints.get("policy_names"), joints.get("robot_names")
    for label, listed in (("joint", names or []), ("observation", _terms(contract))):
        twice = sorted({name for name in listed if listed.count(name) > 1})
        if twice:
            yield f"{label} {twice[0]!r} is there twice"
    if names is not None and action["kind"] == "continuous" and names != action["names"]:
        yield "joints.policy_names and action.names differ: joints are in another order"
    if names and robot:
        forward, back = joints.get("policy_to_robot"), joints.get("robot_to_policy")
        wanted = [robot.index(name) if name in robot else None for name in names]
        if forward != wanted:
            yield f"joints.policy_to_robot is {_brief(forward)}: expected {_brief(wanted)}"
        inverse = [names.index(name) if name in names else None for name in robot]
        if back != inverse:
            yield f"joints.robot_to_policy is {_brief(back)}: expected {_brief(inverse)}"
    timing = contract["timing"]
    if timing["sim_dt"] is not None and timing["decimation"] is not None:
        control_dt = timing["sim_dt"] * timing["decimation"]
        if not np.isclose(control_dt, timing["control_dt"] or control_dt, rtol=1e-6):
            yield f"timing.control_dt is {timing['control_dt']}, sim_dt * decimation {control_dt}"
    ages = [term.get("history") or 0 for term in contract["observation"]["terms"]]
    length = contract["history"].get("length")
    if length is not None and max(ages, default=0) >= length:
        yield f"history.length is {length}, but a term is {max(ages)} frames old"


def _terms(contract: Mapping[str, Any]) -> list[str]:
    return [str(term["name"]) for term in contract["observation"]["terms"]]


def normaliser_agrees(contract: Mapping[str, Any], runtimes: Sequence[Runtime]) -> Verdict:
    """Listed = baked, number by number, and the divisor follows from its own rule."""
    listed, faults = contract["normaliser"], []
    names = _terms(contract)
    mean = np.array(listed.get("mean", np.zeros(len(names))), np.float32)
    divisor = np.array(listed.get("denominator", np.ones(len(names))), np.float32)
    if listed["enabled"]:
        std, epsilon = np.array(listed["std"], np.float64), listed["epsilon"]
        inside = listed["denominator_rule"] == "sqrt(std^2 + epsilon)"
        wanted = np.sqrt(std**2 + epsilon) if inside else std + epsilon
        if wanted.shape != divisor.shape or not np.allclose(wanted, divisor, rtol=1e-5, atol=0):
            faults.append("the normaliser's denominator does not follow from its std and epsilon")
    for runtime in runtimes:
        baked = runtime.normaliser
        if baked is None:
            if listed["enabled"]:
                faults.append(f"{runtime.file} holds no normaliser, manifest.json lists one")
            continue
        for label, own, other in (("mean", mean, baked[0]), ("denominator", divisor, baked[1])):
            if own.shape != other.shape or not np.array_equal(own, other):
                same = own.shape == other.shape
                which = names[int(np.argmax(own != other))] if same else "its width"
                faults.append(
                    f"the normaliser listed is not the one in {runtime.file}: {label} of {which}"
                    " differs; is it of another run?"
                )
                break
    fine = "listed = baked" if listed["enabled"] else "none, and none is baked"
    return verdict("normaliser", faults, fine)


def history_runs(contract: Mapping[str, Any], vectors: Vectors) -> Verdict:
    """In golden observations a frame is one step later the next older one."""
    pairs = history_pairs(contract["observation"]["terms"])
    if not pairs:
        length = contract["history"]["length"]
        why = "one frame only" if length == 1 else "its entries' ages are not described"
        return Verdict("history", SKIPPED, why)
    inside = ~vectors.start[1:]
    newer, older = (list(each) for each in zip(*pairs, strict=True))
    now, before = vectors.observation[1:][inside], vectors.observation[:-1][inside]
    forwards = np.array_equal(now[:, older], before[:, newer])
    backwards = np.array_equal(now[:, newer], before[:, older])
    faults = []
    if not forwards:
        faults.append(
            "the history is reversed: golden frames grow newer where the manifest says older"
            if backwards
            else "golden frames do not follow each other as the manifest's history says"
        )
    length = contract["history"]["length"]
    return verdict("history", faults, f"{length} frames, {contract['history']['direction']}")


# --- runtimes ----------------------------------------------------------------------------------


def replays_golden(runtime: Runtime, vectors: Vectors, contract: Mapping[str, Any]) -> Verdict:
    """The runtime answers golden observations as the trained policy did."""
    check = f"golden, {runtime.name}"
    try:
        found = runtime.replay(vectors.observation, vectors.start)
        if found.command.shape != vectors.outputs.command.shape:
            shapes = f"{vectors.outputs.command.shape}, got {found.command.shape}"
            return Verdict(check, FAILED, f"expected commands of shape {shapes}")
        worst = worst_error(found, vectors.outputs, contract, TOLERANCE)
        if worst <= TOLERANCE:
            return Verdict(check, PASSED, f"{len(vectors.start)} steps, worst {worst:.1e}")
        sentence = explain(
            runtime,
            found,
            vectors.outputs,
            observation=vectors.observation,
            start=vectors.start,
            contract=contract,
            tolerance=TOLERANCE,
        )
    except CannotRunError as error:
        return Verdict(check, FAILED, f"{runtime.file}: {error}")
    return Verdict(check, FAILED, f"{runtime.file}: {sentence} (worst {worst:.1e})")


def random_rows(contract: Mapping[str, Any], memory: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations and memories to compare runtimes on, (RANDOM_ROWS, D) and (RANDOM_ROWS, H)."""
    random = np.random.default_rng(0)
    width = len(contract["observation"]["terms"])
    noise = random.standard_normal((RANDOM_ROWS, width)).clip(-SPREAD, SPREAD)
    listed = contract["normaliser"]
    if listed["enabled"]:
        noise = np.array(listed["mean"]) + np.array(listed["std"]) * noise
    return noise.astype(np.float32), random.uniform(-1, 1, (RANDOM_ROWS, memory)).astype(np.float32)


def runtimes_agree(
    contract: Mapping[str, Any], runtimes: Sequence[Runtime]
) -> tuple[Verdict, Outputs | None]:
    """All runtimes answer random observations alike; also the first one's answers."""
    check = f"{RANDOM_ROWS:,} random observations"
    if not runtimes:
        return Verdict(check, FAILED, "no runtime could be started"), None
    reference, *others = runtimes
    rows = random_rows(contract, reference.memory)
    try:
        expected = reference.rows(*rows)
        expected = Outputs(expected.action.astype(np.float32), expected.command, expected.memory)
    except CannotRunError as error:
        return Verdict(check, FAILED, f"{reference.file}: {error}"), None
    faults, worst = [], 0.0
    for other in others:
        try:
            found = other.rows(*rows)
        except CannotRunError as error:
            faults.append(f"{other.file}: {error}")
            continue
        apart = worst_error(found, expected, contract, TOLERANCE)
        worst = max(worst, apart)
        if not apart <= TOLERANCE:
            faults.append(f"{other.file} differs from {reference.file} by {apart:.1e}")
    if not others:
        return Verdict(check, SKIPPED, f"{reference.name} alone: no second runtime here"), expected
    names = ", ".join(runtime.name for runtime in runtimes)
    return verdict(check, faults, f"{names} agree, worst {worst:.1e}"), expected


def mapping_holds(contract: Mapping[str, Any], answers: Outputs) -> Verdict:
    """A unit of action i moves command i, by the listed scale, and no other."""
    action = contract["action"]
    if action["kind"] == "discrete":
        same = np.array_equal(answers.action[:, 0], answers.command.argmax(1))
        faults = [] if same else ["the choice is not the one with the best score"]
        return verdict("action mapping", faults, f"argmax of {action['choices']} scores")
    steps = {step["step"]: step for step in action["pipeline"]}
    scale = np.array(steps["scale"]["values"])
    offset = np.array(steps["offset"]["values"])
    names, faults = action["names"], []
    bounded = answers.action.astype(np.float64)
    if steps["clip"]["low"] is not False:
        bounded = bounded.clip(steps["clip"]["low"], steps["clip"]["high"])
    limits = _joint_clip(steps["joint_clip"])
    if steps["squash"]["function"] == "tanh" and np.abs(answers.action).max() > 1:
        faults.append("actions leave [-1, 1] although the manifest lists a tanh")
    measured = _unit_responses(bounded, answers.command.astype(np.float64))
    if measured is None or limits is not None:
        rule, wanted = "offset + scale * action", offset + scale * bounded
        if limits is not None:
            rule, wanted = f"{rule}, clipped", wanted.clip(*limits)
        error = relative_error(answers.command, wanted, command_unit(contract))
        odd = np.flatnonzero(error.max(0) > TOLERANCE)
        faults += [f"the command of {names[i]} is not {rule}" for i in odd]
        return verdict("action mapping", faults, f"commands are {rule}")
    response, zero = measured
    size = np.maximum(1, np.abs(scale))
    for i, j in zip(*np.nonzero(np.abs(response - np.diag(scale)) > 1e-3 * size), strict=True):
        expected = scale[i] if i == j else 0.0
        faults.append(
            f"a unit of action {names[i]} moves {names[j]} by {response[i, j]:.4g}: expected"
            f" {expected:.4g}" + (", the action scale differs" if i == j else "")
        )
    for i in np.flatnonzero(np.abs(zero - offset) > 1e-3 * np.maximum(1, np.abs(offset))):
        faults.append(f"action 0 puts {names[i]} at {zero[i]:.4g}: expected {offset[i]:.4g}")
    return verdict("action mapping", faults, f"unit action on each of {len(names)} moves its own")


def _joint_clip(step: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """What commands are clipped to, (A,) each; None where they are not, or nobody told."""
    if not step["low"] or not step["high"]:
        return None
    # The contract has infinity as text.
    low, high = (np.array([float(each) for each in step[side]]) for side in ("low", "high"))
    return low, high


def _unit_responses(
    action: np.ndarray, command: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """How commands move per unit of each action, (A, A), and commands at action 0, (A,).

    Fitted to random observations; None where the actions hardly move independently.
    """
    inputs = np.column_stack((action, np.ones(len(action))))
    if np.linalg.cond(inputs) > 1e4:
        return None
    fitted = np.linalg.lstsq(inputs, command, rcond=None)[0]
    return fitted[:-1], fitted[-1]


def permutation_shows(contract: Mapping[str, Any], vectors: Vectors) -> Verdict:
    """Shuffling any two joints must fail golden vectors: each pair differs somewhere."""
    check, command = "swapped joints fail", vectors.outputs.command
    names = contract["action"]["names"]
    if command.shape[1] < 2:
        return Verdict(check, SKIPPED, "one action only")
    if contract["action"]["kind"] == "discrete":
        names = [f"choice {index}" for index in range(command.shape[1])]
    faults, pairs = [], list(combinations(range(command.shape[1]), 2))
    for one, other in pairs:
        swapped = command.copy()
        swapped[:, [one, other]] = command[:, [other, one]]
        if relative_error(swapped, command, command_unit(contract)).max() <= DISTINCT:
            faults.append(f"golden vectors cannot tell {names[one]} from {names[other]}")
    return verdict(check, faults, f"all {len(pairs)} swaps are seen")


def non_finite_is_safe(runtime: Runtime, contract: Mapping[str, Any], vectors: Vectors) -> Verdict:
    """NaN or infinity in any channel gives the declared safe action and harms no memory."""
    check = f"NaN and Inf, {runtime.name}"
    width = vectors.observation.shape[1]
    obs = np.repeat(vectors.observation[:1], 3 * width, axis=0)
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        obs[np.arange(width) + row * width, np.arange(width)] = value
    memory = np.full((len(obs), runtime.memory), 0.25, np.float32)
    action = contract["action"]
    safe = np.atleast_1d(np.array(action["safe_action"], np.float32))
    names = _terms(contract)
    try:
        found = runtime.rows(obs, memory)
        said = runtime.finite(
            np.vstack((vectors.observation[:1], obs)), memory[[0, *range(len(obs))]]
        )
    except CannotRunError as error:
        return Verdict(check, FAILED, f"{runtime.file}: {error}")
    faults = [
        f"{runtime.file} acts {_brief(found.action[row].tolist())} on {obs[row, row % width]} in"
        f" {names[row % width]}: expected the safe action {_brief(safe.tolist())}"
        for row in np.flatnonzero((found.action != safe).any(1))
    ]
    if action["kind"] == "continuous":
        wanted = np.array(contract["safety"]["safe_command"], np.float32)
        if not np.allclose(found.command, wanted, rtol=1e-6, atol=1e-6):
            faults.append(f"{runtime.file} does not command the declared safe command")
    if said is not None and not (said[0] and not said[1:].any()):
        faults.append(f"{runtime.file} does not tell by its output {FINITE!r} what was finite")
    if not np.array_equal(found.memory, memory):
        faults.append(f"{runtime.file} lets a number that is not finite into its memory")
    return verdict(check, faults, f"safe action in all {len(obs)} cases")


def _brief(value: Any) -> str:
    text = "missing" if value is ... else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
