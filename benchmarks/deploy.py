"""What a bundle costs and how true it is: one policy step's time, and parity.

    python benchmarks/deploy.py latency
    python benchmarks/deploy.py parity RUN...

``latency`` times FlashSAC's default actor (128 wide, 2 blocks, 17 observations, 6 actions) with
random weights: 10 repeats over 2,000 observations, of each percentile the median, one thread.
``parity`` exports each run and verifies it with every check, among them 10,000 random observations
and the closed loop. Every result becomes a row of ``benchmarks/results/deploy_*.csv``.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from supple import machine
from supple.agents import FlashSAC, FlashSACSettings
from supple.bench import table
from supple.deploy import c_source, onnx_file, torch_file
from supple.deploy.bundle import read_bundle
from supple.deploy.contract import action_names, observation_names
from supple.deploy.export import export
from supple.deploy.latency import measure
from supple.deploy.plain import plain_policy
from supple.deploy.runtimes import CRuntime, OnnxRuntime, Runtime, TorchRuntime
from supple.deploy.verify import verify
from supple.envs.base import Box, EnvSpec

RESULTS = Path(__file__).parent / "results"
OBSERVATIONS, ACTIONS, WIDTH, BLOCKS = 17, 6, 128, 2
ROWS, REPEATS = 2000, 10


def latency() -> Iterator[dict[str, object]]:
    """Microseconds of one step in every runtime and with every C compiler here."""
    box = Box(low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS)
    spec = EnvSpec(
        task_id="bench",
        num_envs=1,
        observation={"policy": OBSERVATIONS},
        action=box,
        device=torch.device("cpu"),
    )
    settings = FlashSACSettings(actor_hidden=WIDTH, actor_blocks=BLOCKS)
    policy = plain_policy(FlashSAC(spec, settings, total_env_steps=1), spec).eval()
    labels = c_source.Labels(
        contract="0" * 64,
        action_names=action_names(spec),
        observation_names=observation_names(spec, ("policy",)),
        control_dt=None,
        version="0",
    )
    source, header = c_source.source(policy, labels), c_source.header(policy, labels)
    runtimes: dict[str, Runtime] = {}
    for compiler in filter(shutil.which, ("gcc", "clang")):
        files = (source.encode(), header.encode())
        runtimes[f"C, {_compiler(compiler)}"] = CRuntime(
            *files, 0, sizes=(ACTIONS, ACTIONS), compiler=compiler
        )
    runtimes["onnxruntime"] = OnnxRuntime(onnx_file.onnx_bytes(policy, batch=1, metadata={}), 0)
    runtimes["torch"] = TorchRuntime(torch_file.torch_bytes(policy, contract="{}"), 0)
    rows = np.random.default_rng(0).standard_normal((ROWS, OBSERVATIONS)).astype(np.float32)
    for name, runtime in runtimes.items():
        found = measure(runtime, rows[: ROWS if name != "torch" else 200], repeats=REPEATS)
        yield {
            "runtime": name,
            "policy": f"{OBSERVATIONS}x{ACTIONS}, {WIDTH} wide, {BLOCKS} blocks",
            **{f"p{p} us": f"{getattr(found, f'p{p}'):.2f}" for p in (50, 95, 99)},
            "steps": found.steps,
            "repeats": found.repeats,
        }
        runtime.close()


def _compiler(name: str) -> str:
    done = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def parity(runs: Sequence[Path]) -> Iterator[dict[str, object]]:
    """Export and verify runs; the largest differences that verify found."""
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.monotonic()
            bundle = export(run, Path(folder) / "bundle")
            exported = time.monotonic()
            origin = read_bundle(bundle).contract["origin"]
            report = verify(bundle, run=run)
            verified = time.monotonic()
        details = {found.check: f"{found.status}: {found.detail}" for found in report.verdicts}
        worst = {key: _worst(text) for key, text in details.items() if "worst" in text}
        yield {
            "task": origin["task"],
            "agent": origin["agent"],
            "env steps": origin["env_steps"],
            "verdict": "FAILED" if report.failed else "passed",
            "checks": len(report.verdicts),
            "worst golden onnxruntime": worst.get("golden, onnxruntime", ""),
            "worst golden C": worst.get("golden, C", ""),
            "worst of 10000 random": worst.get("10,000 random observations", ""),
            "closed loop": details.get("closed loop", ""),
            "C p99 us": f"{report.latency['C'].p99:.2f}" if "C" in report.latency else "",
            "export s": f"{exported - begin:.1f}",
            "verify s": f"{verified - exported:.1f}",
        }


def _worst(text: str) -> str:
    found = re.search(r"worst ([\d.e+-]+)", text)
    return found.group(1) if found else ""


def write(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    """Append rows with where they are from."""
    import onnxruntime

    made = {
        "date": time.strftime("%Y-%m-%d"),
        "load": f"{os.getloadavg()[0]:.1f}",
        **table.origin(machine.versions(), gpu=False),
        "command": f"python benchmarks/deploy.py {sys.argv[1]}",
    }
    made["versions"] += f", onnxruntime {onnxruntime.__version__}"
    for row in rows:
        table.add([{**row, **made}], path)
        print(row, flush=True)


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("latency", "parity"))
    parser.add_argument("runs", nargs="*", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = latency() if options.what == "latency" else parity(options.runs)
    write(RESULTS / f"deploy_{options.what}.csv", rows)


if __name__ == "__main__":
    main()
