"""A bundle on disk: a folder or a zip of a few flat files, read whole and with limits.

A bundle may come from anywhere. Reading one never leaves its folder, follows a link or inflates
more than ``MAX_BYTES``.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supple.deploy import manifest as manifest_file
from supple.errors import InputError
from supple.files import replace_file, sync_folder, write_synced
from supple.signed_json import sha256

MAX_BYTES = 512 * 2**20
"""Of all files together, inflated."""
MAX_FILES = 64
LEFT_AFTER = 3600.0
"""An export takes seconds; a folder that is older than this was left half-written [s]."""
MAX_MANIFEST_BYTES = 16 * 2**20
NAMES = frozenset(
    (
        *("policy.onnx", "policy_batch.onnx", "policy.pt2", "policy.h", "policy.c"),
        *("golden.safetensors", "diagnostics.json", "deploy.yaml", "README.md"),
        manifest_file.NAME,
    )
)
"""Of all files that ``export`` writes."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time a zip knows: equal bundles give equal archives."""
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError),
)
"""What reading a damaged zip may raise."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's files, and what its manifest says; nothing of it is proved yet."""

    path: Path
    files: Mapping[str, bytes]
    manifest: Mapping[str, Any]

    @property
    def contract(self) -> Mapping[str, Any]:
        """The manifest's field groups."""
        found: Mapping[str, Any] = self.manifest["contract"]
        return found

    def damage(self) -> list[str]:
        """One sentence for each file that is not what the manifest says."""
        found = []
        if not manifest_file.is_signed(self.files[manifest_file.NAME], self.manifest):
            found.append("manifest.json was edited after export: its digest does not fit")
        listed = self.manifest["files"]
        for name, entry in listed.items():
            data = self.files.get(name)
            if data is None:
                found.append(f"{name} is missing")
            elif not isinstance(entry, dict) or len(data) != entry.get("bytes"):
                expected = entry.get("bytes") if isinstance(entry, dict) else entry
                short = isinstance(expected, int) and len(data) < expected
                what = "truncated" if short else "of another size"
                found.append(f"{name} is {what}: expected {expected} bytes, got {len(data)}")
            elif sha256(data) != entry.get("sha256"):
                found.append(f"{name} was changed after export: its SHA-256 does not fit")
        extra = self.files.keys() - listed.keys() - {manifest_file.NAME}
        found += [f"{name} is not listed in manifest.json" for name in sorted(extra)]
        # A compiler would take a math.h from here for its own.
        foreign = (self.files.keys() | listed.keys()) - NAMES - extra
        return found + [f"{name} is no file that export writes" for name in sorted(foreign)]


def read_bundle(path: Path | str) -> Bundle:
    """Read a folder or a zip.

    Raises:
        InputError: nothing there, no bundle, an unreadable manifest, or a hostile archive.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "settings.json").exists():
            raise InputError(
                f"{path} is a run, no bundle: supple export {path} makes one, name that"
            )
        files = _read_folder(path)
    elif path.is_file():
        files = _read_zip(path)
    else:
        raise InputError(f"no bundle at {path}: expected a folder or .zip made by supple export")
    data = files.get(manifest_file.NAME)
    if data is None:
        raise InputError(f"{path} is no bundle: it has no {manifest_file.NAME}")
    if len(data) > MAX_MANIFEST_BYTES:
        raise InputError(
            f"{path}: {manifest_file.NAME} has {len(data)} bytes, more than any bundle"
        )
    return Bundle(path, files, manifest_file.parse(data))


def _read_folder(folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        info = entry.stat(follow_symlinks=False)
        _check_name(folder, entry.name)
        if not stat.S_ISREG(info.st_mode):
            raise InputError(f"{folder}: {entry.name} is no plain file, a bundle holds only those")
        total += info.st_size
        _check_amount(folder, len(files) + 1, total)
        files[entry.name] = Path(entry.path).read_bytes()
    return files


def _read_zip(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_amount(path, len(members), sum(member.file_size for member in members))
            for member in members:
                _check_name(path, member.filename)
                mode = member.external_attr >> 16
                if stat.S_IFMT(mode) and not stat.S_ISREG(mode):
                    raise InputError(f"{path}: {member.filename} is no plain file")
                if member.filename in files:
                    raise InputError(f"{path}: {member.filename} is there twice")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise InputError(f"{path}: {member.filename} is compressed in another way")
                with archive.open(member) as file:
                    files[member.filename] = file.read(member.file_size + 1)
    except InputError:
        raise
    except (OSError, *_DAMAGE) as error:
        # EINVAL: it names a place before its own beginning.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        raise InputError(f"{path} is no intact zip: {error}; export again") from error
    return files


def _check_name(path: Path, name: str) -> None:
    if name.startswith(".") and "/" not in name:
        raise InputError(f"{path}: hidden file {name[:80]!r}, a bundle has none: remove it")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{path}: refused the name {name[:80]!r}: a bundle holds plain file names without"
            " folders"
        )


def _check_amount(path: Path, count: int, total: int) -> None:
    if count > MAX_FILES or total > MAX_BYTES:
        raise InputError(
            f"{path} holds {count} files of {total} bytes: expected at most {MAX_FILES} and"
            f" {MAX_BYTES}; this is no bundle"
        )


# --- writing ---------------------------------------------------------------------------------


def write_bundle(out: Path, files: Mapping[str, bytes], *, archive: bool = False) -> None:
    """Write the folder ``out`` in one step: it appears complete or not at all.

    Args:
        out: the folder.
        files: name to content.
        archive: whether to write ``<out>.zip`` too, a moment before.

    Raises:
        InputError: ``out`` is there already, or cannot be written.
    """
    check_free(out)
    _remove_leftovers(out)
    partial = out.with_name(f".partial-{out.name}-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        for name, data in files.items():
            write_synced(partial / name, data)
        sync_folder(partial)
        with ExitStack() as undo:
            if archive:
                undo.callback(zip_path(out).unlink, missing_ok=True)
                replace_file(zip_path(out), zipped(files))
            os.rename(partial, out)
            undo.pop_all()
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(out.parent)


def _remove_leftovers(out: Path) -> None:
    """What earlier exports of this name left, whose processes were killed.

    By their age: of a folder that machines share a process may be another's.
    """
    own = re.compile(re.escape(f".partial-{out.name}-") + "[0-9]+")
    with suppress(OSError):  # a folder that is not there, or not ours
        for entry in os.scandir(out.parent):
            if own.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > LEFT_AFTER:
                shutil.rmtree(entry.path, ignore_errors=True)


def check_free(out: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        InputError: there is.
    """
    if out.exists() or zip_path(out).exists():
        raise InputError(f"{out} or its .zip is there already: choose another --out")


def zip_path(out: Path) -> Path:
    """Where the archive of a bundle folder is."""
    return out.with_name(f"{out.name}.zip")


def zipped(files: Mapping[str, bytes]) -> bytes:
    """The archive's content; equal files give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(files):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, files[name])
    return buffer.getvalue()
