"""The runtimes a bundle is replayed in: torch, onnxruntime, and the machine's C compiler.

Shapes: ``T`` rows, ``D`` observation width, ``A`` actions, ``H`` memory (0 without one).

Nothing of a bundle is trusted: torch's archive is checked for pickles and expressions before torch
reads it; C is compiled only where it is made of the words a generated policy has, and runs in a
process of its own.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import zipfile
import zlib
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

C_FLAGS = ("-std=c99", "-O3", "-march=native", "-Wall", "-Wextra", "-Werror", "-pedantic")
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


class CannotRunError(Exception):
    """This runtime is not here, or does not take the bundle's file; says why in one line."""


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
            raise CannotRunError(f"torch cannot load it: {_short(error)}") from error
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
        outputs: tuple[Tensor, ...] = self._module(*inputs)
        return tuple(output.numpy() for output in outputs)

    def rows(self, observation: np.ndarray, memory: np.ndarray) -> Outputs:
        """Every row by itself, all in one call."""
        found = self.one(observation, memory)
        after = found[2] if self.memory else memory
        return Outputs(found[0].reshape(len(observation), -1), found[1], after)


class OnnxRuntime(Runtime):
    """``policy.onnx`` by onnxruntime, on one thread."""

    name, file = "onnxruntime", "policy.onnx"

    def __init__(self, data: bytes, memory: int) -> None:
        super().__init__(memory)
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise CannotRunError('not installed: pip install "supple[export]"') from error
        try:
            model = onnx.load_model_from_string(data)
            if any(tensor.external_data for tensor in model.graph.initializer):
                raise CannotRunError("it keeps weights in other files, which a bundle never does")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 4
            self._session: Any = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except CannotRunError:
            raise
        except Exception as error:  # protobuf and onnxruntime raise kinds of their own
            raise CannotRunError(f"onnxruntime cannot load it: {_short(error)}") from error
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
        inputs = {"observation": obs}
        if self.memory:
            inputs["memory_in"] = memory
        return tuple(self._session.run(None, inputs))


class OnnxBatchRuntime(OnnxRuntime):
    """``policy_batch.onnx``, many rows in a call."""

    name, file = "onnxruntime, batch", "policy_batch.onnx"

    def rows(self, observation: np.ndarray, memory: np.ndarray) -> Outputs:
        """Every row by itself, all in one call."""
        found = self.one(observation, memory)
        after = found[2] if self.memory else memory
        return Outputs(found[0].reshape(len(observation), -1), found[1], after)


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
                raise CannotRunError(f"{found} does not compile it: {_short(done.stderr)}")
            self._read_info()
        except (OSError, subprocess.TimeoutExpired) as error:
            self.close()
            raise CannotRunError(f"{found} failed: {_short(error)}") from error
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
        parts = np.split(rows, np.cumsum([1, *self._sizes]), axis=1)
        return Outputs(*parts[1:])

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
            raise CannotRunError(f"its process failed: {_short(error)}") from error
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


# --- what is refused before anything reads it --------------------------------------------------

_EXPRESSION = re.compile(r"Symbol\('\w+'(, positive=True)?(, integer=True)?\)")
_MAX_ARCHIVE_BYTES = 512 * 2**20


def refuse_hostile_archive(data: bytes) -> None:
    """Refuse a ``.pt2`` in which torch would unpickle or evaluate something.

    Raises:
        CannotRunError: no archive, a pickled tensor or object, or an expression that is no symbol.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MAX_ARCHIVE_BYTES:
                raise CannotRunError("it inflates to more than any policy")
            for member in archive.infolist():
                content = archive.read(member)
                folder = member.filename.partition("/")[2]
                if folder.startswith("data/sample_inputs/") and content:
                    raise CannotRunError("it carries pickled sample inputs")
                if folder.startswith(("data/weights/", "data/constants/")) and content[:2] == b"PK":
                    raise CannotRunError("it carries pickled tensors")
                if member.filename.endswith(".json") and not folder.startswith("extra/"):
                    _refuse_pickles_and_code(json.loads(content))
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise CannotRunError(f"it is no intact archive: {_short(error)}") from error


def _refuse_pickles_and_code(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _refuse_pickles_and_code(item)
    if not isinstance(node, dict):
        return
    if node.get("use_pickle"):
        raise CannotRunError("it carries pickled objects")
    expression = node.get("expr_str")
    if expression is not None and not _EXPRESSION.fullmatch(str(expression)):
        raise CannotRunError(f"it carries an expression to evaluate: {_short(expression)}")
    for item in node.values():
        _refuse_pickles_and_code(item)


_WORD = re.compile(r"[A-Za-z_]\w*")
_C_TEXT = re.compile(r'"(?:[^"\\\n]|\\[0-7]{3})*"|/\*.*?\*/|\b\d[\w.]*(?:[eE][+-]\w+)?', re.DOTALL)
_GENERATED = re.compile(r"(?:SUPPLE_POLICY|supple_policy)_\w+|[xwb]\d+")
_KNOWN_WORDS = frozenset(
    (
        *("static", "const", "float", "char", "int", "void", "extern", "restrict", "return"),
        *("for", "if", "else", "sizeof", "typedef", "struct", "uint32_t", "C"),
        *("memcpy", "memset", "tanhf", "expf", "sqrtf"),
        *("dense", "all_finite", "rms_norm", "sigmoid", "reset", "update", "new"),
        *("w", "b", "x", "y", "row", "rows", "inputs", "k", "i", "sum", "bits", "count", "factor"),
        *("eps", "state", "observation", "action", "command", "raw", "bounded", "scale", "offset"),
        *("best", "fine", "memory", "last_action"),
    )
)
_DIRECTIVE = re.compile(
    r'#(?:include (?:"policy\.h"|<math\.h>|<stdint\.h>|<string\.h>)'
    r"|ifndef SUPPLE_POLICY_H|ifdef __cplusplus|endif"
    r"|define SUPPLE_POLICY_[A-Z_]+(?: [0-9.e+-]+)?)"
)


def refuse_foreign_code(source: bytes, name: str) -> None:
    """Refuse C that says anything a generated policy never says, so that it cannot call out.

    Raises:
        CannotRunError: names the first such word.
    """
    try:
        text = source.decode("ascii")
    except UnicodeDecodeError as error:
        raise CannotRunError(f"{name} is not plain ASCII, a generated policy is") from error
    lines = text.split("\n")
    for line in lines:
        if line.lstrip().startswith("#") and not _DIRECTIVE.fullmatch(line.strip()):
            raise CannotRunError(f"{name} says {_short(line)!r}, which no generated policy does")
    code = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    code = _C_TEXT.sub(" ", code)
    for odd in ("#", "\\", '"', "%:", "??", "'"):
        if odd in code:
            raise CannotRunError(f"{name} holds {odd!r}, which no generated policy does")
    for word in _WORD.findall(code):
        if word not in _KNOWN_WORDS and not _GENERATED.fullmatch(word):
            raise CannotRunError(f"{name} says {word!r}, which no generated policy does")


def _record(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _short(text: object) -> str:
    return " ".join(str(text).split())[:160]
