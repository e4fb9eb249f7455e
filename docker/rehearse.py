"""Carry out a Dockerfile without an engine: every line of it, in a clean Debian root.

    python docker/rehearse.py docker/Dockerfile.cpu FOLDER

As root, with ``debootstrap``. FOLDER becomes the image; what a failing line printed is on the
screen, and the status is 1. A base with a Python of its own cannot be had this way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

CONTEXT = Path(__file__).resolve().parents[1]
BASE = re.compile(r"debian:([a-z]+)-\d{8}-slim")
PASSED = re.compile(r"PIP_\w+|\w+_proxy|\w+_PROXY")
"""Variables that say how this machine reaches package indexes; an engine takes them too."""
OWN_CERTIFICATES = "/usr/local/share/ca-certificates"
"""Those that an administrator added, a proxy's say: the image trusts them as this machine does."""
SHARED = ("/proc", "/dev")


class RehearsalError(Exception):
    """A line that does not work, or that this cannot carry out."""


def lines_of(text: str) -> Iterator[tuple[str, str]]:
    """Instruction and argument of each logical line of a Dockerfile."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(kept)).splitlines():
        if line.strip():
            instruction, _, argument = line.strip().partition(" ")
            yield instruction, argument.strip()


@dataclass
class Image:
    """A root folder and what the lines so far have set."""

    root: Path
    given: dict[str, str] = field(default_factory=dict)
    """``--build-arg``, by name."""
    variables: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def carry_out(self, instruction: str, argument: str) -> None:
        """One line after FROM.

        Raises:
            RehearsalError: it does not work, or is of a kind that is not known here.
        """
        match instruction:
            case "RUN":
                self.run(argument)
            case "COPY":
                self.copy(shlex.split(argument))
            case "ENV":
                for pair in shlex.split(argument):
                    name, _, value = pair.partition("=")
                    self.variables[name] = Template(value).safe_substitute(self.variables)
            case "ARG":
                name, _, value = argument.partition("=")
                self.arguments[name] = self.given.get(name, value)
            case "USER":
                self.user = argument
            case "WORKDIR":
                self.folder = argument
                self.inside(argument).mkdir(parents=True, exist_ok=True)
            case "ENTRYPOINT":
                self.entrypoint = json.loads(argument)
            case "CMD":
                self.command = json.loads(argument)
            case _:
                raise RehearsalError(f"{instruction} is not known here")

    def inside(self, path: str) -> Path:
        """Where a path of the image lies on this machine."""
        return self.root / (Path(self.folder) / path).relative_to("/")

    def run(self, command: str) -> None:
        """Run a shell line as the image's user, in its folder, with its variables only."""
        passed = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
        variables = passed | {"HOME": self.home()} | self.arguments | self.variables
        line = f"cd {self.folder} && {command}"
        who = ["chroot", f"--userspec={self.user}", str(self.root)]
        what = ["env", "-i", *(f"{k}={v}" for k, v in variables.items()), "sh", "-c", line]
        if subprocess.run([*who, *what], check=False).returncode:
            raise RehearsalError(f"failed: {command}")

    def home(self) -> str:
        """Of the image's user."""
        users = (self.root / "etc/passwd").read_text().splitlines()
        return next(
            (user[5] for user in (line.split(":") for line in users) if self.user in user[0:3:2]),
            "/",
        )

    def copy(self, words: list[str]) -> None:
        """Files of the repository to the image; a folder's contents, as COPY does it."""
        *sources, target = [word for word in words if not word.startswith("--")]
        for source in sources:
            origin, place = CONTEXT / source, self.inside(target)
            if origin.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(origin, place, dirs_exist_ok=True, ignore=ignored)
            elif target.endswith("/"):
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin, place)
            else:
                shutil.copy2(origin, place)
        owner = next((word.partition("=")[2] for word in words if word.startswith("--chown")), "")
        if owner:
            where = [str(Path(self.folder) / target)]
            subprocess.run(["chroot", self.root, "chown", "-R", owner, *where], check=True)


def clean_root(base: str, root: Path, prepared: Path | None) -> None:
    """Unpack what FROM names.

    Raises:
        RehearsalError: it is no dated Debian image.
    """
    found = BASE.fullmatch(base)
    if not found:
        raise RehearsalError(
            f"FROM must be debian:NAME-DATE-slim to be carried out here, got {base}"
        )
    if prepared:
        subprocess.run(["cp", "-a", f"{prepared}/.", str(root)], check=True)
    else:
        command = ["debootstrap", "--variant=minbase", found[1], str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    # As Debian's own images have it: waiting for the disk after every file takes most of the time.
    (root / "etc/dpkg/dpkg.cfg.d/docker-apt-speedup").write_text("force-unsafe-io\n")
    shutil.copy2("/etc/resolv.conf", root / "etc/resolv.conf")
    shutil.copytree(OWN_CERTIFICATES, root / OWN_CERTIFICATES[1:], dirs_exist_ok=True)


def share(root: Path, folder: str, *, writable: bool = False) -> None:
    """Show a folder of this machine inside the root; it vanishes with this process."""
    inside = root / folder.lstrip("/")
    inside.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--rbind", folder, str(inside)], check=True)
    if not writable:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(inside)], check=True)


def rehearse(options: argparse.Namespace) -> None:
    """Carry the file out, then what the image runs by itself, then what was asked for besides.

    Raises:
        RehearsalError: a line does not work.
    """
    lines = list(lines_of(options.dockerfile.read_text()))
    if not lines or lines[0][0] != "FROM":
        raise RehearsalError(f"{options.dockerfile} must begin with FROM")
    root = options.folder.resolve()
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise RehearsalError(f"{root} must be empty")
    clean_root(lines[0][1], root, options.base)
    for folder in SHARED:
        share(root, folder, writable=True)
    for folder in options.show:
        share(root, folder)
    image = Image(root, given=dict(each.split("=", 1) for each in options.build_arg))
    image.variables["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for instruction, argument in lines[1:]:
        print(f"== {instruction} {argument}", flush=True)
        image.carry_out(instruction, argument)
    for command in (shlex.join([*image.entrypoint, *image.command]), *options.then):
        print(f"== {command}", flush=True)
        image.run(command)


def main() -> int:
    """Read the arguments; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("folder", type=Path, help="where the image is made; empty or new")
    parser.add_argument("--base", type=Path, help="an unpacked root to copy, for debootstrap's")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--show",
        action="append",
        default=[],
        metavar="FOLDER",
        help="of this machine, to read inside",
    )
    parser.add_argument("--then", action="append", default=[], metavar="COMMAND", help="at the end")
    options = parser.parse_args()
    if not os.environ.get("REHEARSING"):  # mounts of its own, which end with it
        again = ["unshare", "--mount", sys.executable, *sys.argv]
        return subprocess.run(again, check=False, env=os.environ | {"REHEARSING": "1"}).returncode
    try:
        rehearse(options)
    except RehearsalError as error:
        print(error, file=sys.stderr)
        return 1
    print("every line works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
