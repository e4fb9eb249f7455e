"""``supple verify``: every check on one bundle, as a report.

A bundle may come from anywhere: what is read, compiled or run is limited in ``bundle.py`` and
``runtimes.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from supple.deploy import checks, simulator
from supple.deploy.bundle import Bundle, read_bundle
from supple.deploy.checks import FAILED, SKIPPED, Vectors, Verdict, verdict
from supple.deploy.golden import Golden
from supple.deploy.hostile import CannotRunError
from supple.deploy.known import missing, not_known
from supple.deploy.latency import Latency, measure
from supple.deploy.manifest import differences
from supple.deploy.runtimes import (
    CRuntime,
    OnnxBatchRuntime,
    OnnxRuntime,
    Runtime,
    TorchRuntime,
)
from supple.errors import InputError
from supple.machine import resolve_device

if TYPE_CHECKING:
    from supple.trained import Trained

EPISODES = 10
LATENCY_ROWS, LATENCY_REPEATS = 200, 10
_MALFORMED = (
    *(LookupError, TypeError, ValueError, AttributeError, StopIteration),
    *(ArithmeticError, RecursionError),
)
"""What reading a contract of another shape may raise."""


@dataclass(slots=True)
class Report:
    """What was found."""

    bundle: str
    unknown: list[str]
    """Fields of the manifest, as it lists them."""
    verdicts: list[Verdict] = field(default_factory=list)
    latency: dict[str, Latency] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return self.count(FAILED) > 0

    def count(self, status: str) -> int:
        """How many verdicts have it."""
        return sum(found.status == status for found in self.verdicts)

    def missing(self, required: Sequence[str]) -> list[str]:
        """What of ``--require`` is not known or was not checked, a line each."""
        checked = {found.check for found in self.verdicts if found.status != SKIPPED}
        return missing(required, self.unknown, checked)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "bundle": self.bundle,
            "failed": self.failed,
            "skipped": self.count(SKIPPED),
            "not_known": not_known(self.unknown),
            "unknown": self.unknown,
            "verdicts": [dataclasses.asdict(found) for found in self.verdicts],
            "latency_us": {name: dataclasses.asdict(each) for name, each in self.latency.items()},
        }


def verify(
    path: Path | str,
    *,
    run: Path | str | None = None,
    episodes: int = EPISODES,
    latency: bool = True,
    device: str = "",
) -> Report:
    """Check a bundle.

    Args:
        path: its folder or zip.
        run: the run it was made from, if at hand: contract and actions are compared with it.
        episodes: of the closed loop; 0 leaves it out.
        latency: whether steps are timed.
        device: of the simulator; by default the run's own, or the CPU where that is missing.

    Raises:
        InputError: no bundle, or a hostile one; ``run`` is no run; or there is no such device.
    """
    run = None if run is None else Path(run)
    bundle, device = read_bundle(path), _simulator_device(run, device)
    listed = bundle.manifest.get("unknown")  # whether it fits is a check of its own
    report = Report(str(path), list(map(str, listed)) if isinstance(listed, list) else [])
    add = report.verdicts.append
    damage = bundle.damage()
    add(verdict("files", damage, f"{len(bundle.files)} files as they were written"))
    golden = _golden(bundle, add)
    if golden is None:
        return report
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as stack:
            runtimes = _start(bundle, golden, add)
            for runtime in runtimes:
                stack.callback(runtime.close)
            _check(
                *(bundle, Vectors.of(golden), runtimes, report),
                run=run,
                episodes=episodes,
                device=device,
            )
            if latency:
                _time(bundle, golden, runtimes, report)
    finally:
        torch.set_num_threads(threads)
    return report


def _simulator_device(run: Path | None, device: str) -> str:
    from supple.checkpoint import run_of
    from supple.trained import on_this_machine, read_settings

    if run is None:
        return str(resolve_device(device or "cpu"))
    return on_this_machine(read_settings(run_of(run.resolve())), device).device


def _golden(bundle: Bundle, add: Callable[[Verdict], None]) -> Golden | None:
    try:
        return Golden.from_bytes(bundle.files["golden.safetensors"])
    except KeyError:
        add(Verdict("golden vectors", FAILED, "golden.safetensors is missing"))
    except InputError as error:
        add(Verdict("golden vectors", FAILED, str(error)))
    return None


def _start(bundle: Bundle, golden: Golden, add: Callable[[Verdict], None]) -> list[Runtime]:
    """Every runtime that takes the bundle; the others get a verdict."""
    files, memory = bundle.files, golden.memory.shape[1]
    discrete = not golden.action.is_floating_point()
    sizes = (1 if discrete else golden.action.shape[1], golden.command.shape[1])
    makers: dict[str, Callable[[], Runtime]] = {
        "policy.pt2": lambda: TorchRuntime(files["policy.pt2"], memory),
        "policy.onnx": lambda: OnnxRuntime(files["policy.onnx"], memory),
        "policy_batch.onnx": lambda: OnnxBatchRuntime(files["policy_batch.onnx"], memory),
        "policy.c": lambda: CRuntime(files["policy.c"], files["policy.h"], memory, sizes=sizes),
    }
    started = []
    for name, make_runtime in makers.items():
        try:
            started.append(make_runtime())
        except KeyError as error:
            add(Verdict(f"start {name}", FAILED, f"{error.args[0]} is missing"))
        except CannotRunError as error:
            absent = str(error).startswith(("not installed", "no C compiler"))
            add(Verdict(f"start {name}", SKIPPED if absent else FAILED, f"{name}: {error}"))
    return started


def _check(
    bundle: Bundle,
    vectors: Vectors,
    runtimes: Sequence[Runtime],
    report: Report,
    *,
    run: Path | None,
    episodes: int,
    device: str,
) -> None:
    contract = bundle.contract
    single = [runtime for runtime in runtimes if not isinstance(runtime, OnnxBatchRuntime)]
    guarded: list[tuple[str, Callable[[], Verdict]]] = [
        ("contract", partial(checks.contract_agrees, bundle.manifest, runtimes)),
        ("normaliser", partial(checks.normaliser_agrees, contract, runtimes)),
        ("history", partial(checks.history_runs, contract, vectors)),
        ("swapped joints fail", partial(checks.permutation_shows, contract, vectors)),
    ]
    for runtime in runtimes:
        name = f"golden, {runtime.name}"
        guarded.append((name, partial(checks.replays_golden, runtime, vectors, contract)))
    for runtime in single:
        name = f"NaN and Inf, {runtime.name}"
        guarded.append((name, partial(checks.non_finite_is_safe, runtime, contract, vectors)))
    guarded.append(("random observations", partial(_agreement, contract, runtimes, report)))
    guarded.append(("joints in the simulator", partial(simulator.joints_move, contract)))
    for name, check in guarded:
        report.verdicts.append(_guard(name, check))
    trained = None
    if run is not None:
        trained = _compare_with_run(bundle, vectors, run, report)
    if episodes:
        batch = [r for r in runtimes if isinstance(r, OnnxBatchRuntime | TorchRuntime)]
        check = partial(
            simulator.closed_loop,
            contract,
            batch[-1] if batch else None,
            episodes=episodes,
            recorded=bundle.manifest["evidence"].get("evaluation"),
            add=report.verdicts.append,
            trained=trained,
            device=device,
        )
        report.verdicts.append(_guard("closed loop", check))


def _agreement(contract: Mapping[str, Any], runtimes: Sequence[Runtime], report: Report) -> Verdict:
    """Runtimes agree; what they answered then also proves the mapping."""
    agreed, answers = checks.runtimes_agree(contract, runtimes)
    if answers is not None:
        mapping = partial(checks.mapping_holds, contract, answers)
        report.verdicts.append(_guard("action mapping", mapping))
    return agreed


def _guard(name: str, check: Callable[[], Verdict]) -> Verdict:
    try:
        return check()
    except _MALFORMED as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        return Verdict(name, FAILED, f"the manifest's contract has not the expected form: {text}")
    except CannotRunError as error:
        return Verdict(name, FAILED, str(error))


def _compare_with_run(bundle: Bundle, vectors: Vectors, run: Path, report: Report) -> Trained:
    """Contract and golden actions against the run's own checkpoint, which it returns."""
    from supple.deploy.export import bundle_files
    from supple.deploy.manifest import NAME, parse
    from supple.trained import load_trained

    trained = load_trained(run, device="cpu")
    fresh = bundle_files(trained)
    own = parse(fresh[NAME])["contract"]
    faults = [
        f"{path} is {checks._brief(listed)} in the bundle, {checks._brief(wanted)} in the run"
        for path, listed, wanted in differences(dict(bundle.contract), own)
        if path != "origin.run"  # a run's folder may be renamed
    ]
    expected = Vectors.of(Golden.from_bytes(fresh["golden.safetensors"]))
    own, given = expected.outputs.action, vectors.outputs.action
    same = np.array_equal(expected.observation, vectors.observation) and own.shape == given.shape
    if not same or not np.allclose(own, given, atol=1e-5):
        faults.append(
            f"its golden vectors are not those of the run at {trained.env_steps:,} env steps"
        )
    report.verdicts.append(verdict("the run itself", faults, f"contract and actions of {run.name}"))
    return trained


def _time(bundle: Bundle, golden: Golden, runtimes: Sequence[Runtime], report: Report) -> None:
    """Latency tables, and whether the fastest runtime keeps the control period."""
    rows = golden.observation[:LATENCY_ROWS].numpy()
    best: tuple[str, float] | None = None
    period = bundle.contract["timing"].get("control_dt")
    for runtime in runtimes:
        if isinstance(runtime, OnnxBatchRuntime):
            continue
        try:
            found = measure(runtime, rows, repeats=LATENCY_REPEATS)
        except CannotRunError as error:
            report.verdicts.append(Verdict("latency", FAILED, f"{runtime.file}: {error}"))
            continue
        report.latency[runtime.name] = found
        if best is None or found.p99 < best[1]:
            best = (runtime.name, found.p99)
    if best is not None:
        fastest = f"fastest: {best[0]}, p99 {best[1]:.0f} us on one thread"
        late = isinstance(period, float) and best[1] > 1e6 * period
        faults = [f"{fastest}; the control period is {1e6 * period:.0f} us"] if late else []
        report.verdicts.append(verdict("latency", faults, fastest))
