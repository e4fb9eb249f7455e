"""The runtimes a bundle is replayed in: torch, onnxruntime, and the machine's C compiler.

Shapes: ``T`` rows, ``D`` observation width, ``A`` actions, ``H`` memory (0 without one).

Nothing of a bundle is trusted: ``hostile.py`` looks at a file before anything reads it, and C runs
in a process of its own that can only read its input and write its output.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supple.deploy import onnx_file, torch_file
from supple.deploy.hostile import (
    CannotRunError,
    refuse_foreign_code,
    refuse_foreign_graph,
    refuse_hostile_archive,
    short,
)
from supple.errors import how_to_install

C_FLAGS = (
    *("-std=c99", "-O3", "-march=native", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Werror", "-pedantic"),
)
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 120
"""After which a compiler or a replay is given up [s]."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a policy answered."""

    action: np.ndarray
    """(T, A); choices (T, 1)."""
    command: np.ndarray
    """(T, A)."""
    memory: np.ndarray
    """(T, H), after the step."""


class Runtime(ABC):
    """One way to run the policy."""

    name: str
    file: str
    """The bundle's file it runs."""
    contract: Any = None
    """What the file itself says the contract is: the record, or its digest."""
    names: Mapping[str, list[str]] | None = None
    """Its own names of ``action`` and ``observation``, where it has some."""
    normaliser: tuple[np.ndarray, np.ndarray] | None = None
    """Baked mean and denominator."""

    def __init__(self, memory: int) -> None:
        self.memory = memory

    @abstractmethod
    def one(self, obs: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, ...]:
        """Action, command and, where there is one, memory after one step; (1, D) and (1, H)."""

    def replay(self, observation: np.ndarray, start: np.ndarray) -> Outputs:
        """Steps in sequence: the memory is emptied where ``start``."""
        memory, rows = np.zeros((1, self.memory), np.float32), []
        for obs, first in zip(observation, start, strict=True):
            found = self.one(obs[None], np.zeros_like(memory) if first else memory)
            memory = found[2] if self.memory else memory
            rows.append((found[0].reshape(1, -1), found[1], memory))
        return Outputs(*(np.concatenate(each) for each in zip(*rows, strict=True)))

    def rows(self, observation: np.ndarray, memory: np.ndarray) -> Outputs:
        """Every row by itself, from the memory that is given for it."""
        rows = []
        for obs, before in zip(observation, memory, strict=True):
            found = self.one(obs[None], before[None])
            after = found[2] if self.memory else before[None]
            rows.append((found[0].reshape(1, -1), found[1], after))
        return Outputs(*(np.concatenate(each) for each in zip(*rows, strict=True)))

    def finite(self, observation: np.ndarray, memory: np.ndarray) -> np.ndarray | None:
        """Whether a row was finite by the file's own word, (T,); None where it does not say."""
        return None

    def latency(self, observation: np.ndarray, repeats: int) -> np.ndarray:
        """Microseconds of one step, (repeats, T); the first pass warms up and is left out."""
        memory = np.zeros((1, self.memory), np.float32)
        samples = np.zeros((repeats + 1, len(observation)))
        for repeat in range(repeats + 1):
            for row, obs in enumerate(observation):
                begin = time.perf_counter_ns()
                self.one(obs[None], memory)
                samples[repeat, row] = (time.perf_counter_ns() - begin) / 1000
        return samples[1:]

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release what the runtime holds."""


def _in_one_call(runtime: Runtime, observation: np.ndarray, memory: np.ndarray) -> Outputs:
    """Every row by itself, all in one call."""
    found = runtime.one(observation, memory)
    after = found[2] if runtime.memory else memory
    return Outputs(found[0].reshape(len(observation), -1), found[1], after)


class TorchRuntime(Runtime):
    """``policy.pt2`` by ``torch.export``."""

    name, file = "torch", "policy.pt2"

    def __init__(self, data: bytes, memory: int) -> None:
        super().__init__(memory)
        refuse_hostile_archive(data)
        extra = {torch_file.CONTRACT_FILE: ""}
        try:
            program = torch.export.load(io.BytesIO(data), extra_files=extra)
            self._module = program.module()
        except Exception as error:  # torch raises many kinds for a damaged archive
            raise CannotRunError(f"torch cannot load it: {short(error)}") from error
        self.contract = _record(extra[torch_file.CONTRACT_FILE])
        state = program.state_dict
        if "normaliser.mean" in state:
            baked = (state["normaliser.mean"], state["normaliser.denominator"])
            self.normaliser = (baked[0].numpy(), baked[1].numpy())

    @torch.no_grad()
    def one(self, obs: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, ...]:
        """One step, or several rows at once."""
        inputs = [torch.from_numpy(obs)]
        if self.memory:
            inputs.append(torch.from_numpy(memory))
        try:
            outputs: tuple[Tensor, ...] = self._module(*inputs)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise CannotRunError(f"torch cannot run it: {short(error)}") from error
        return tuple(output.numpy() for output in outputs)

    rows = _in_one_call


class OnnxRuntime(Runtime):
    """``policy.onnx`` by onnxruntime, on one thread."""

    name, file = "onnxruntime", "policy.onnx"

    def __init__(self, data: bytes, memory: int) -> None:
        super().__init__(memory)
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise CannotRunError(f"not installed: {how_to_install('export')}") from error
        try:
            model = onnx.load_model_from_string(data)
            refuse_foreign_graph(model)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 4
            self._session: Any = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except CannotRunError:
            raise
        except Exception as error:  # protobuf and onnxruntime raise kinds of their own
            raise CannotRunError(f"onnxruntime cannot load it: {short(error)}") from error
        self._outputs = ["action", "scores" if _has_output(model, "scores") else "command"]
        self._outputs += ["memory_out"] * bool(memory)
        self._says_finite = _has_output(model, onnx_file.FINITE)
        known = {prop.key: prop.value for prop in model.metadata_props}
        self.contract = _record(known.get(onnx_file.CONTRACT_KEY, ""))
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        if onnx_file.MEAN in tensors and onnx_file.DENOMINATOR in tensors:
            read = onnx.numpy_helper.to_array
            self.normaliser = (
                read(tensors[onnx_file.MEAN]),
                read(tensors[onnx_file.DENOMINATOR]),
            )

    def one(self, obs: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, ...]:
        """One step."""
        return self._run(self._outputs, obs, memory)

    def finite(self, observation: np.ndarray, memory: np.ndarray) -> np.ndarray | None:
        """By the output of that name, which bundles of before have not."""
        if not self._says_finite:
            return None
        pairs, output = zip(observation, memory, strict=True), [onnx_file.FINITE]
        return np.array(
            [np.all(self._run(output, obs[None], before[None])) for obs, before in pairs]
        )

    def _run(
        self, outputs: list[str], obs: np.ndarray, memory: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        inputs = {"observation": obs}
        if self.memory:
            inputs["memory_in"] = memory
        try:
            return tuple(self._session.run(outputs, inputs))
        except Exception as error:  # onnxruntime raises kinds of its own
            raise CannotRunError(f"onnxruntime cannot run it: {short(error)}") from error


class OnnxBatchRuntime(OnnxRuntime):
    """``policy_batch.onnx``, many rows in a call."""

    name, file = "onnxruntime, batch", "policy_batch.onnx"

    rows = _in_one_call


class CRuntime(Runtime):
    """``policy.c`` by this machine's compiler, in a process of its own."""

    name, file = "C", "policy.c"

    def __init__(
        self,
        source: bytes,
        header: bytes,
        memory: int,
        *,
        sizes: tuple[int, int],
        compiler: str = "",
    ) -> None:
        super().__init__(memory)
        self._sizes = sizes  # actions, commands
        found = compiler or next(filter(shutil.which, (os.environ.get("CC", ""), *COMPILERS)), "")
        if not found:
            raise CannotRunError("no C compiler here: apt install gcc, or set CC")
        refuse_foreign_code(source, "policy.c")
        refuse_foreign_code(header, "policy.h")
        self._folder = tempfile.TemporaryDirectory(prefix="supple-verify-")
        folder = Path(self._folder.name)
        (folder / "policy.c").write_bytes(source)
        (folder / "policy.h").write_bytes(header)
        harness = package_files("supple.deploy") / "runtime" / "replay.c"
        (folder / "replay.c").write_bytes(harness.read_bytes())
        self._program = folder / "replay"
        command = [found, *C_FLAGS, "policy.c", "replay.c", "-o", "replay", "-lm"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
            )
            if done.returncode != 0:
                raise CannotRunError(f"{found} does not compile it: {short(done.stderr)}")
            self._read_info()
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            self.close()
            raise CannotRunError(f"{found} failed: {short(error)}") from error
        except CannotRunError:
            self.close()
            raise

    def one(self, obs: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, ...]:
        """One step in a process of its own; ``rows`` is for many."""
        found = self.rows(obs, memory)
        return found.action, found.command, found.memory

    def replay(self, observation: np.ndarray, start: np.ndarray) -> Outputs:
        """Steps in sequence, in one process."""
        blank = np.zeros((len(observation), self.memory), np.float32)
        return self._run(start.astype(np.float32), blank, observation)

    def rows(self, observation: np.ndarray, memory: np.ndarray) -> Outputs:
        """Every row by itself, in one process."""
        return self._run(np.full(len(observation), 2, np.float32), memory, observation)

    def latency(self, observation: np.ndarray, repeats: int) -> np.ndarray:
        """Measured inside the process; at most 4096 rows."""
        blank = np.zeros((len(observation), 1 + self.memory), np.float32)
        given = np.concatenate((blank, observation), axis=1, dtype=np.float32)
        out = self._call(["latency", str(repeats)], given.tobytes())
        if len(out) != 8 * repeats * len(observation):
            raise CannotRunError(f"its process timed {len(out) // 8} steps, not what it was given")
        return np.frombuffer(out, np.float64).reshape(repeats, len(observation))

    def close(self) -> None:
        """Remove the compiled program."""
        self._folder.cleanup()

    def _run(self, mode: np.ndarray, memory: np.ndarray, observation: np.ndarray) -> Outputs:
        given = np.concatenate((mode[:, None], memory, observation), axis=1, dtype=np.float32)
        width = 1 + sum(self._sizes) + self.memory
        out = self._call(["rows"], given.tobytes())
        if len(out) != 4 * width * len(observation):
            raise CannotRunError(f"its process gave {len(out)} bytes for {len(observation)} rows")
        rows = np.frombuffer(out, np.float32).reshape(-1, width)
        status, *parts = np.split(rows, np.cumsum([1, *self._sizes]), axis=1)
        self._check_status(status[:, 0], observation, parts[0])
        return Outputs(*parts)

    @staticmethod
    def _check_status(status: np.ndarray, observation: np.ndarray, action: np.ndarray) -> None:
        """The runner brakes by what the step returns: 1 for the safe action, and only for it."""
        bad = ~np.isfinite(observation).all(1)
        # Numbers so large that a layer overflows give the safe action, too: 0.
        wrong = np.where(status == 1, ~bad & (action != 0).any(1), bad | (status != 0))
        if wrong.any():
            row = int(wrong.argmax())
            what = "is not finite" if bad[row] else "is finite"
            raise CannotRunError(
                f"supple_policy_step returns {status[row]:g} where the observation {what}"
            )

    def _call(self, arguments: list[str], given: bytes) -> bytes:
        try:
            done = subprocess.run(
                [str(self._program), *arguments],
                input=given,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotRunError(f"its process failed: {short(error)}") from error
        if done.returncode != 0:
            raise CannotRunError(f"its process ended with status {done.returncode}")
        return done.stdout

    def _read_info(self) -> None:
        names: dict[str, list[str]] = {"action": [], "observation": []}
        mean, denominator = [], []
        for line in self._call(["info"], b"").decode(errors="replace").split("\n"):
            kind, _, rest = line.partition(" ")
            if kind == "contract":
                self.contract = rest
            elif kind == "action":
                names["action"].append(rest)
            elif kind == "observation":
                one, other, name = rest.split(" ", 2)
                mean.append(float(one))
                denominator.append(float(other))
                names["observation"].append(name)
        self.names = names
        self.normaliser = (np.array(mean, np.float32), np.array(denominator, np.float32))


def _has_output(model: Any, name: str) -> bool:
    return any(output.name == name for output in model.graph.output)


def _record(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
