"""``supple bench``: how fast updates and replay are here, beside what the machine could do.

Every variant of one table is timed in turn, round by round, so that a noisy neighbour hits all of
them; medians and their ratios are what to read. The ceiling of an update is its own matrix
products, run alone in the same rounds.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from supple import machine
from supple.agents import FlashSAC, FlashSACSettings
from supple.agents.nets import EXPANSION
from supple.cli import DONE, Parser
from supple.display import Display
from supple.envs.base import Box, EnvSpec
from supple.errors import InputError
from supple.region import Compute, has_bfloat16
from supple.replay import Replay, ReplaySettings

SIZES = ("17x6", "376x17", "310x37")
RING_ROWS = 20_000
MODES = ("eager", "compiled")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: Sequence[str]) -> int:
    """``supple bench``; returns the exit status."""
    parser = Parser(
        prog="supple bench",
        description="Times gradient steps and replay sampling, interleaved, and appends rows to"
        " OUT/bench_update.csv and OUT/bench_replay.csv.",
    )
    parser.add_argument("what", choices=("update", "replay", "all"))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="OBSxACT")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 2048], metavar="B")
    parser.add_argument("--rounds", type=int, default=15, help="timings of every variant")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument(
        "--reference", type=Path, help="a checkout of the official FlashSAC to time in between"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    try:
        options = parser.parse_args(list(arguments))
    except SystemExit:
        return DONE
    for flag, value in (("--rounds", options.rounds), ("--threads", options.threads)):
        if value < 1:
            raise InputError(f"{flag} must be >= 1, got {value}")
    sizes = [_size(text) for text in options.sizes]
    if options.reference and not (options.reference / "flash_rl").is_dir():
        raise InputError(f"--reference {options.reference}: no flash_rl folder in it")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    command = "supple bench " + " ".join(arguments)
    for obs, act in sizes:
        for batch_size in options.batch_sizes:
            shape = Shape(obs, act, batch_size)
            if options.what in ("update", "all"):
                rows = bench_update(shape, options)
                _report(f"update {shape}", rows, options.out / "bench_update.csv", command)
            if options.what in ("replay", "all"):
                rows = bench_replay(shape, options)
                _report(f"replay {shape}", rows, options.out / "bench_replay.csv", command)
    return DONE


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one table."""

    obs: int
    act: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.obs}x{self.act}, batch {self.batch_size}"

    def spec(self) -> EnvSpec:
        """An environment of these sizes."""
        return EnvSpec(
            task_id=f"bench/{self.obs}x{self.act}",
            num_envs=1,
            observation={"policy": self.obs},
            action=Box(low=(-1.0,) * self.act, high=(1.0,) * self.act),
            device=torch.device("cpu"),
        )


def _size(text: str) -> tuple[int, int]:
    obs, cross, act = text.partition("x")
    if not (cross and obs.isdigit() and act.isdigit() and int(obs) and int(act)):
        raise InputError(f"--sizes must look like 376x17, got {text}")
    return int(obs), int(act)


def interleaved(
    variants: dict[str, Callable[[], object]], rounds: int, *, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of every variant in every round; each round starts with another one."""
    names = list(variants)
    for name in names:
        for _ in range(warm_up):
            variants[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            begin = time.perf_counter()
            variants[name]()
            found[name].append(time.perf_counter() - begin)
    return found


# --- updates ------------------------------------------------------------------------------------


def bench_update(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two gradient steps, one with an actor step, sampling included; the default networks."""
    settings = FlashSACSettings(batch_size=shape.batch_size, min_replay=1)
    precisions: list[Literal["float32", "bfloat16"]] = ["float32"]
    if has_bfloat16(torch.device("cpu")):
        precisions.append("bfloat16")
    products = matrix_products(settings, shape)
    flops = sum(2 * e * m * k * n for e, m, k, n in products)
    variants: dict[str, Callable[[], object]] = {}
    ceiling: dict[str, str] = {}
    for precision in precisions:
        for mode in options.modes:
            compute = Compute(precision=precision, compile=mode == "compiled")
            variants[f"supple {mode} {precision}"] = _our_updates(shape, settings, compute)
        ceiling[precision] = f"matrix products {precision}"
        variants[ceiling[precision]] = _products(products, DTYPES[precision])
    if options.reference:
        step = reference_updates(options.reference, shape)
        variants["official eager float32"] = step
        if "bfloat16" in precisions:
            variants["official eager bfloat16"] = lambda: _in_bfloat16(step)
    seconds = interleaved(variants, options.rounds)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        kind = name.split()[-1]
        row = _row(shape, name, [value / 2 for value in values], updates=1)
        row["GFLOP/s"] = f"{flops / medians[name] / 1e9:.0f}"
        row["of ceiling"] = f"{medians[ceiling[kind]] / medians[name]:.2f}"
        official = medians.get("official eager float32")
        row["x official float32"] = f"{official / medians[name]:.2f}" if official else ""
        rows.append(row)
    return rows


def _our_updates(
    shape: Shape, settings: FlashSACSettings, compute: Compute
) -> Callable[[], object]:
    spec = shape.spec()
    agent = FlashSAC(spec, settings, total_env_steps=10**6, compute=compute)
    replay = _filled(spec, compute)

    def step() -> None:
        agent.update(replay)
        agent.update(replay)

    return step


def _filled(spec: EnvSpec, compute: Compute, settings: ReplaySettings | None = None) -> Replay:
    replay = Replay(spec, settings or ReplaySettings(capacity=RING_ROWS), compute=compute)
    random = torch.Generator().manual_seed(0)
    for storage in replay.storage.values():
        storage.copy_(torch.randn(storage.shape, generator=random))
    replay.columns["action"].uniform_(-1, 1, generator=random)
    replay.columns["reward"].normal_(generator=random)
    replay.columns["valid"].fill_(True)
    replay.adopt_prefilled(replay.num_rows, torch.zeros(0, dtype=torch.int64))
    return replay


def matrix_products(settings: FlashSACSettings, shape: Shape) -> list[tuple[int, int, int, int]]:
    """Every matrix product of two gradient steps, one of them with an actor step: (E, M, K, N)."""
    rows, both = shape.batch_size, 2 * shape.batch_size

    def trunk(inputs: int, hidden: int, blocks: int) -> list[tuple[int, int]]:
        wide = EXPANSION * hidden
        return [(inputs, hidden)] + [(hidden, wide), (wide, hidden)] * blocks

    def forward(e: int, m: int, layers: Sequence[tuple[int, int]]) -> list[Any]:
        return [(e, m, k, n) for k, n in layers]

    def to_weights(e: int, m: int, layers: Sequence[tuple[int, int]]) -> list[Any]:
        return [(e, k, m, n) for k, n in layers]

    def to_inputs(e: int, m: int, layers: Sequence[tuple[int, int]]) -> list[Any]:
        return [(e, m, n, k) for k, n in layers]

    members, outputs = settings.num_critics, settings.num_atoms
    critic = trunk(shape.obs + shape.act, settings.critic_hidden, settings.critic_blocks)
    head = [(settings.critic_hidden, outputs)]
    actor = trunk(shape.obs, settings.actor_hidden, settings.actor_blocks)
    heads = [(settings.actor_hidden, shape.act)] * 2
    critic_step = (
        forward(1, rows, actor)
        + forward(1, rows, heads)
        + 2 * (forward(members, both, critic) + forward(members, rows, head))
        + to_weights(members, rows, head)
        + to_inputs(members, rows, head)
        + to_weights(members, both, critic)
        + to_inputs(members, both, critic[1:])
    )
    actor_step = (
        forward(1, both, actor)
        + forward(1, rows, heads)
        + forward(members, rows, critic + head)
        + to_inputs(members, rows, critic + head)
        + to_weights(1, rows, heads)
        + to_inputs(1, rows, heads)
        + to_weights(1, both, actor)
        + to_inputs(1, both, actor[1:])
    )
    return 2 * critic_step + actor_step


def _products(
    shapes: Sequence[tuple[int, int, int, int]], dtype: torch.dtype
) -> Callable[[], object]:
    def factors(e: int, m: int, k: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        left, right = torch.randn(e, m, k), torch.randn(e, k, n)
        return left.to(dtype), right.to(dtype), torch.empty(e, m, n, dtype=dtype)

    known = {shape: factors(*shape) for shape in shapes}

    def run() -> None:
        for shape in shapes:
            left, right, out = known[shape]
            torch.bmm(left, right, out=out)

    return run


# --- the official implementation ----------------------------------------------------------------


def reference_updates(checkout: Path, shape: Shape) -> Callable[[], object]:
    """Two updates of a checkout of Holiday-Robot/FlashSAC with its CPU-simulator settings.

    Eager: its compiled form, ``max-autotune`` on this torch, is for GPUs.
    """
    # Its types name JAX arrays; nothing else of its PyTorch agent needs JAX.
    if "jax" not in sys.modules and importlib.util.find_spec("jax") is None:
        jax, numpy = types.ModuleType("jax"), types.ModuleType("jax.numpy")
        numpy.ndarray = np.ndarray  # type: ignore[attr-defined]
        jax.numpy = numpy  # type: ignore[attr-defined]
        sys.modules |= {"jax": jax, "jax.numpy": numpy}
    sys.path.insert(0, str(checkout))
    try:
        official = importlib.import_module("flash_rl.agents.flashSAC.agent")
    except ImportError as error:
        raise InputError(f"--reference {checkout} cannot be imported: {error}") from error
    finally:
        sys.path.remove(str(checkout))
    from gymnasium.spaces import Box as Space

    ours = FlashSACSettings()
    config = official.FlashSACConfig(
        seed=0,
        normalize_reward=True,
        normalized_G_max=ours.value_max,
        asymmetric_observation=False,
        device_type="cpu",
        buffer_max_length=RING_ROWS,
        buffer_min_length=1,
        buffer_device_type="cpu",
        sample_batch_size=shape.batch_size,
        learning_rate_init=ours.lr_init,
        learning_rate_peak=ours.lr_peak,
        learning_rate_end=ours.lr_end,
        learning_rate_warmup_rate=0.0,
        learning_rate_warmup_step=1,
        learning_rate_decay_rate=1.0,
        learning_rate_decay_step=10**6,
        actor_num_blocks=ours.actor_blocks,
        actor_hidden_dim=ours.actor_hidden,
        actor_bc_alpha=0.0,
        actor_noise_zeta_mu=2.0,
        actor_noise_zeta_max=16,
        actor_update_period=ours.actor_period,
        critic_num_blocks=ours.critic_blocks,
        critic_hidden_dim=ours.critic_hidden,
        critic_num_bins=ours.num_atoms,
        critic_min_v=-ours.value_max,
        critic_max_v=ours.value_max,
        critic_target_update_tau=ours.tau,
        temp_initial_value=ours.initial_temperature,
        temp_target_sigma=ours.target_std,
        temp_target_entropy=0.0,
        gamma=ours.gamma,
        n_step=1,
        use_compile=False,
        compile_mode="default",
        use_amp=False,
        load_optimizer=False,
        load_reward_normalizer=False,
    )
    obs_space = Space(-np.inf, np.inf, (1, shape.obs), np.float32)
    agent = official.FlashSACAgent(obs_space, Space(-1, 1, (1, shape.act), np.float32), {}, config)
    random = np.random.default_rng(0)
    rows = RING_ROWS
    agent.process_transition(
        {
            "observation": random.normal(size=(rows, shape.obs)).astype(np.float32),
            "next_observation": random.normal(size=(rows, shape.obs)).astype(np.float32),
            "action": random.uniform(-1, 1, (rows, shape.act)).astype(np.float32),
            "reward": random.normal(size=rows).astype(np.float32),
            "terminated": np.zeros(rows, np.float32),
            "truncated": np.zeros(rows, np.float32),
        }
    )

    def step() -> None:
        agent.update()
        agent.update()

    return step


def _in_bfloat16(step: Callable[[], object]) -> None:
    """Run with oneDNN's switch that takes float32 products in bfloat16."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        step()
    finally:
        matmul.fp32_precision = before


# --- replay -------------------------------------------------------------------------------------


def bench_replay(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Sampling three-step windows, beside a bare copy of the same rows."""
    spec = shape.spec()
    variants: dict[str, Callable[[], object]] = {}
    for mode in options.modes:
        for dtype in ("float32", "bfloat16"):
            compute = Compute(compile=mode == "compiled")
            settings = ReplaySettings(capacity=RING_ROWS, obs_dtype=dtype)
            replay, random = _filled(spec, compute, settings), torch.Generator().manual_seed(0)
            variants[f"supple {mode} {dtype}"] = partial(
                replay.draw, shape.batch_size, generator=random, n_step=3
            )
    table = _filled(spec, Compute()).storage["policy"]
    index = torch.randint(len(table), (2 * shape.batch_size,))
    variants["index_select float32"] = lambda: table.index_select(0, index)
    seconds = interleaved(variants, options.rounds * 20)
    bare = float(np.median(seconds["index_select float32"]))
    rows = []
    for name, values in seconds.items():
        row = _row(shape, name, values, updates=shape.batch_size)
        row["of index_select"] = f"{bare / float(np.median(values)):.2f}"
        rows.append(row)
    return rows


# --- rows ---------------------------------------------------------------------------------------


def _row(shape: Shape, name: str, seconds: Sequence[float], *, updates: int) -> dict[str, Any]:
    low, middle, high = np.percentile(seconds, [20, 50, 80])
    return {
        "variant": name,
        "obs": shape.obs,
        "act": shape.act,
        "batch": shape.batch_size,
        "p20 ms": f"{low * 1e3:.3f}",
        "p50 ms": f"{middle * 1e3:.3f}",
        "p80 ms": f"{high * 1e3:.3f}",
        "per second": f"{updates / middle:.1f}",
    }


def _report(title: str, rows: list[dict[str, Any]], path: Path, command: str) -> None:
    hidden = ("obs", "act", "batch")
    shown = [{k: str(v) for k, v in row.items() if k not in hidden} for row in rows]
    Display.print_rows(title, shown)
    found = machine.versions()
    where = {
        "date": time.strftime("%Y-%m-%d"),
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "machine": found["processor"],
        "versions": f"supple {found['supple']}, torch {found['torch']}",
        "commit": found["commit"],
        "command": command,
    }
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *where])
        if new:
            writer.writeheader()
        writer.writerows([row | where for row in rows])
