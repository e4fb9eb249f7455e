"""Checkpoints: atomic, complete, versioned, and checked before use. No pickle anywhere.

A checkpoint is a folder ``<run>/checkpoints/step_<k>`` with

* ``manifest.json``: format name and version, header, files with sizes and digests, and the tree of
  the state. Plain JSON, except that what JSON lacks is an object whose first key starts with ``$``:
  ``$tensor $array $scalar $tuple $dict $int $float``. Its own digest is the SHA-256 of the file
  with the 64 digits of ``sha256`` replaced by zeros.
* ``state-<i>.safetensors``: the tensors, under generated names. Arrays, and tensors of a dtype that
  safetensors may not know, are stored as their bytes.

``format``, ``version`` and ``sha256`` keep their meaning in every later version.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import struct
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from supple.errors import InputError, SimulatorError
from supple.files import MAY_NOT_WRITE, replace_file, sync_folder, write_synced
from supple.signed_json import UNSIGNED, own_digest, parse, sha256, short, sign

FORMAT = "supple-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
CHUNK_BYTES = 256 * 2**20
"""Tensors are grouped into files of about this size [bytes]; bounds the memory of a save."""
FOLDER = "checkpoints"
"""Of a run, with a folder for each."""
MOST_MANIFEST_BYTES = 32 * 2**20
"""Of a manifest: a larger one is none, and would only fill the memory [bytes]."""
MOST_NAME_LENGTH = 255
"""Of a file, on every file system in use [characters]."""

Leaf: TypeAlias = Tensor | np.ndarray[Any, Any]

_FOLDER_NAME = re.compile(r"step_(\d+)(\.old)?")
_TEMPORARY_NAME = re.compile(r"\.tmp-step_\d+-(\d+)")
_CANNOT_WRITE = (*MAY_NOT_WRITE, errno.ENOTDIR, errno.EEXIST)
_NATIVE_DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and found intact."""

    path: Path
    header: dict[str, Any]
    """What it is: plain values."""
    state: dict[str, Any]
    """The tree that was saved; tensors are on the CPU."""

    @property
    def progress(self) -> dict[str, Any]:
        """What of its simulator outlives a reset, ``Env.progress()``."""
        return dict(self.state.get("progress") or {})  # older ones have none


def save(run_dir: Path, step: int, header: Mapping[str, Any], state: Mapping[str, Any]) -> Path:
    """Write ``run_dir/checkpoints/step_<step>``; it appears complete or not at all.

    Both trees hold dicts (keys str or int), lists, tuples, None, bool, int, float and str; the
    state also dense tensors of any dtype and device, NumPy arrays and scalars. Everything comes
    back with its type and bit for bit, except that tensor subclasses (parameters) come back as
    tensors without gradient, ``OrderedDict`` as dict, and tensors that shared memory as separate
    ones.

    Args:
        run_dir: the run's folder.
        step: environment steps so far, >= 0. Saving a step again replaces its checkpoint.
        header: what the checkpoint is; readable without loading the state.
        state: what to restore.

    Returns:
        The checkpoint's folder.

    Raises:
        TypeError: something else is in a tree; names its place. Nothing was written.
        InputError: the folder cannot be written at all.
        OSError: writing failed, for example on a full disk; earlier checkpoints are intact.
    """
    leaves: list[Leaf] = []
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": UNSIGNED,
        "step": step,
        "header": _encode(dict(header), "header", None),
        "files": {},
        "state": _encode(dict(state), "state", leaves),
    }
    folder = run_dir / FOLDER
    target = folder / f"step_{step}"
    temporary = folder / f".tmp-{target.name}-{os.getpid()}"
    _make_folder(temporary)
    replaced = folder / f"{target.name}.old"
    try:
        for index, chunk in enumerate(_chunks(leaves)):
            data = safetensors.torch.save({name: _dense(leaf) for name, leaf in chunk.items()})
            name = f"state-{index}.safetensors"
            write_synced(temporary / name, data)
            manifest["files"][name] = {"bytes": len(data), "sha256": sha256(data)}
        signed = sign(json.dumps(manifest, indent=1) + "\n")
        _require_short(len(signed))
        write_synced(temporary / MANIFEST, signed)
        sync_folder(temporary)
        if target.exists():
            # A folder cannot be renamed onto another. Killed between the two renames, the old
            # checkpoint is still found under its second name.
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(target, replaced)
        os.rename(temporary, target)
    except BaseException:
        if replaced.exists() and not target.exists():
            os.rename(replaced, target)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    sync_folder(folder.parent)  # has the names of this folder and that of the replay rows
    replace_file(folder / "latest", f"{target.name}\n".encode())
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def require_room(state: Mapping[str, Any]) -> None:
    """Refuse a part of the state that alone is more than a checkpoint's manifest holds.

    Raises:
        InputError: it is.
    """
    _require_short(len(json.dumps(_encode(dict(state), "state", []), indent=1)))


def _require_short(length: int) -> None:
    if length > MOST_MANIFEST_BYTES:
        raise InputError(
            f"a checkpoint's manifest holds at most {MOST_MANIFEST_BYTES} bytes, this one"
            f" {length}: lower --env.num-envs"
        )


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder; every byte is checked before it is used.

    Raises:
        InputError: missing, damaged, foreign or made by a newer version; one line.
    """
    manifest = _read_manifest(path)
    tensors: dict[str, Tensor] = {}
    with following_format(path / MANIFEST):
        for name, expected in manifest["files"].items():
            file = path / plain_name(name)
            tensors |= _read_tensors(file, expected["bytes"], expected["sha256"])
        header = _decode(manifest["header"], {})
        state = _decode(manifest["state"], tensors)
        if not (isinstance(header, dict) and isinstance(state, dict)):
            raise TypeError(f"header and state must be objects, got {header!r} and {state!r}")
    return Checkpoint(path, header, state)


@contextlib.contextmanager
def following_format(path: Path, remedy: str = "use another checkpoint") -> Iterator[None]:
    """Whatever goes wrong while a file's values are put to use is said of the file, in one line.

    A digest proves that a file is as somebody wrote it, not that it holds what this version writes.

    Raises:
        InputError: instead of the errors that wrong types, names, shapes and numbers lead to.
    """
    try:
        yield
    except (InputError, SimulatorError):
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
        SafetensorError,
        struct.error,
    ) as error:
        raise InputError(
            f"{path} does not hold what this version of supple writes:"
            f" {type(error).__name__}, {short(error)}; {remedy}"
        ) from error


def plain_name(name: str) -> str:
    """A file's name that leads nowhere but into its own folder.

    Raises:
        InputError: it is none.
    """
    written = isinstance(name, str) and name.isascii() and name.isprintable()
    if not written or name in ("", ".", "..") or "/" in name or len(name) > MOST_NAME_LENGTH:
        raise InputError(f"expected the plain name of a file, got {short(repr(name))}")
    return name


def read_header(path: Path) -> dict[str, Any]:
    """Only the header of a checkpoint folder; the tensors' files are not looked at.

    Raises:
        InputError: the manifest is missing, damaged, foreign or newer; one line.
    """
    manifest = _read_manifest(path)
    with following_format(path / MANIFEST):
        header: dict[str, Any] = _decode(manifest["header"], {})
    return header


def newest_intact(run_dir: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that passes every check.

    Goes by the folders' step numbers; ``checkpoints/latest`` is there for people and scripts.

    Returns:
        The checkpoint, and one line for each newer one that was skipped.

    Raises:
        InputError: there is none; gives the newest one's reason.
    """
    skipped: list[str] = []
    for path in reversed(list_checkpoints(run_dir)):
        try:
            return load(path), skipped
        except InputError as error:
            skipped.append(str(error))
    if not skipped:
        raise InputError(
            f"{run_dir} has no checkpoint: expected {run_dir / 'checkpoints'}/step_<k>;"
            f" the run stopped before its first one: supple resume {run_dir} begins it again"
        )
    raise InputError(
        f"{run_dir} has no intact checkpoint among {len(skipped)}; the newest: {skipped[0]}"
    )


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, unchecked; leftovers are not listed."""
    found: dict[int, Path] = {}
    folder = run_dir / FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _FOLDER_NAME.fullmatch(path.name)
        if match and path.is_dir():
            # Sorted, "step_5" comes before "step_5.old", which counts only where it is alone.
            found.setdefault(int(match[1]), path)
    return [found[step] for step in sorted(found)]


def run_of(path: Path) -> Path:
    """The folder of the run that a checkpoint's folder is in; any other folder itself."""
    path = path.resolve()
    return path.parent.parent if (path / MANIFEST).exists() else path


def step_of(path: Path) -> int:
    """Environment steps of a listed checkpoint, by its name."""
    match = _FOLDER_NAME.fullmatch(path.name)
    assert match  # ``list_checkpoints`` lists no others
    return int(match[1])


def abandon_after(run_dir: Path, step: int) -> None:
    """Put aside the checkpoints beyond ``step``, which a resume leaves behind; deletes nothing."""
    for path in list_checkpoints(run_dir):
        if step_of(path) > step:
            path.rename(path.with_name(f"abandoned-{path.name}-{time.time_ns()}"))


def clean_leftovers(run_dir: Path) -> None:
    """Remove what killed saves left; folders of saves still running elsewhere are kept."""
    folder = run_dir / FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        temporary = _TEMPORARY_NAME.fullmatch(path.name)
        if temporary and not _is_other_process(int(temporary[1])):
            shutil.rmtree(path, ignore_errors=True)
        match = _FOLDER_NAME.fullmatch(path.name)
        if match and match[2]:
            target = path.with_suffix("")
            if target.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.rename(path, target)


# --- folders and files -----------------------------------------------------------------------


def _make_folder(temporary: Path) -> None:
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise InputError(
            f"cannot write checkpoints to {temporary.parent}: {error.strerror};"
            " make it a writable folder or choose another --run-dir"
        ) from error


def _is_other_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)  # signal 0 only asks whether the process exists
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not path.is_dir():
        raise InputError(f"no checkpoint at {path}: expected a folder with {MANIFEST}")
    size = file.stat().st_size if file.is_file() else 0  # a missing one is said below
    if size > MOST_MANIFEST_BYTES:
        raise InputError(
            f"{file} has {size} bytes: expected at most {MOST_MANIFEST_BYTES};"
            " use another checkpoint"
        )
    data = _read(file)
    manifest = parse(data, file, kind=FORMAT, version=VERSION, remedy="use another checkpoint")
    digest = manifest.get("sha256")
    if digest != own_digest(data, digest):
        raise InputError(
            f"{file} is damaged: expected SHA-256 {short(str(digest))}, got"
            f" {own_digest(data, digest)}; use another checkpoint"
        )
    return manifest


def read_whole(file: Path, size: int, digest: str) -> bytes:
    """A file's content, if it is what a manifest says.

    Raises:
        InputError: missing, unreadable, or of another size or digest.
    """
    found = file.stat().st_size if file.is_file() else size  # a missing one is said below
    if found != size:
        raise InputError(
            f"{file} is damaged: expected {short(size)} bytes, got {found}; use another checkpoint"
        )
    data = _read(file)
    if sha256(data) != digest:
        raise InputError(
            f"{file} is damaged: expected SHA-256 {short(digest)}, got {sha256(data)};"
            " use another checkpoint"
        )
    return data


def _read_tensors(file: Path, size: int, digest: str) -> dict[str, Tensor]:
    data = read_whole(file, size, digest)
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except SafetensorError as error:
        raise InputError(f"{file} is not safetensors: {short(error)}") from error
    # Copies have torch's own alignment, on which the bits of some CPU kernels depend.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing: use another checkpoint") from error
    except OSError as error:
        raise InputError(
            f"{file} cannot be read: {error.strerror}; use another checkpoint"
        ) from error


# --- the tree --------------------------------------------------------------------------------


def _encode(value: Any, where: str, leaves: list[Leaf] | None) -> Any:
    """A tree as JSON values; tensors and arrays go to ``leaves`` (None: they are refused)."""
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if abs(value) < 2**63 else {"$int": hex(value)}
    if kind is float:
        finite = math.isfinite(value)
        return value if finite else {"$float": struct.pack(">d", value).hex()}
    if kind in (dict, OrderedDict):
        return _encode_dict(value, where, leaves)
    if kind in (list, tuple):
        items = [_encode(item, f"{where}[{i}]", leaves) for i, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if isinstance(value, np.generic) and _is_plain(value.dtype):
        return {"$scalar": value.dtype.str, "bytes": value.tobytes().hex()}
    if leaves is not None and kind is np.ndarray and _is_plain(value.dtype):
        leaves.append(value)
        shape = list(value.shape)
        return {"$array": _leaf_name(len(leaves) - 1), "dtype": value.dtype.str, "shape": shape}
    if leaves is not None and isinstance(value, Tensor) and _is_dense(value):
        leaves.append(value)
        dtype = str(value.dtype).removeprefix("torch.")
        shape = list(value.shape)
        return {"$tensor": _leaf_name(len(leaves) - 1), "dtype": dtype, "shape": shape}
    arrays = "" if leaves is None else ", dense tensor, plain array or NumPy scalar"
    raise TypeError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold:"
        f" expected dict, list, tuple, None, bool, int, float, str{arrays}"
    )


def _encode_dict(value: Mapping[Any, Any], where: str, leaves: list[Leaf] | None) -> Any:
    for key in value:
        if type(key) not in (str, int):
            raise TypeError(f"{where} has the key {key!r}: a checkpoint's keys are str or int")
    pairs = [(key, _encode(item, f"{where}[{key!r}]", leaves)) for key, item in value.items()]
    if all(type(key) is str and not key.startswith("$") for key, _ in pairs):
        return dict(pairs)
    return {"$dict": [[_encode(key, where, leaves), item] for key, item in pairs]}


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    tag = next(iter(node), "")
    if not tag.startswith("$"):
        return {key: _decode(item, tensors) for key, item in node.items()}
    value = node[tag]
    match tag:
        case "$tuple":
            return tuple(_decode(item, tensors) for item in value)
        case "$dict":
            return {_decode(key, tensors): _decode(item, tensors) for key, item in value}
        case "$int":
            return int(value, 16)
        case "$float":
            return struct.unpack(">d", bytes.fromhex(value))[0]
        case "$scalar":
            return np.frombuffer(bytes.fromhex(node["bytes"]), np.dtype(value))[0]
        case "$array":
            stored = tensors[value].numpy()
            return stored.view(np.dtype(node["dtype"])).reshape(node["shape"])
        case "$tensor":
            return tensors[value].view(getattr(torch, node["dtype"])).reshape(node["shape"])
    raise ValueError(f"unknown tag {tag}")


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype's string says all of it: no objects, no fields."""
    return not dtype.hasobject and dtype.itemsize > 0 and np.dtype(dtype.str) == dtype


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _leaf_name(index: int) -> str:
    return f"t{index}"


def _dense(leaf: Leaf) -> Tensor:
    """A contiguous copy on the CPU that shares no memory, of a dtype every safetensors knows."""
    if isinstance(leaf, np.ndarray):
        return torch.from_numpy(np.array(leaf, order="C").reshape(-1).view(np.uint8))
    copy = leaf.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copy if copy.dtype in _NATIVE_DTYPES else copy.reshape(-1).view(torch.uint8)


def _chunks(leaves: list[Leaf]) -> Iterator[dict[str, Leaf]]:
    """Named leaves in groups of about ``CHUNK_BYTES``; at least one group, possibly empty."""
    chunk: dict[str, Leaf] = {}
    filled = 0
    for index, leaf in enumerate(leaves):
        if chunk and filled + leaf.nbytes > CHUNK_BYTES:
            yield chunk
            chunk, filled = {}, 0
        chunk[_leaf_name(index)] = leaf
        filled += leaf.nbytes
    yield chunk
