"""Dockerfiles, read by a linter and for what is promised of them; ``make rehearse`` runs one."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulators.venvs import RECIPES

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
# By its path: the folder's name is also that of a published package.
SPEC = importlib.util.spec_from_file_location("rehearse", ROOT / "docker" / "rehearse.py")
assert SPEC is not None and SPEC.loader is not None
rehearse = importlib.util.module_from_spec(SPEC)
sys.modules["rehearse"] = rehearse
SPEC.loader.exec_module(rehearse)
HADOLINT = Path(sys.executable).parent / "hadolint"


def complaints(path):
    done = subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def faults(text):
    """What a Dockerfile breaks of: pinned base, no root, dependencies before source, one index."""
    lines = list(rehearse.lines_of(text))
    kinds = [kind for kind, _ in lines]
    found = []
    if not re.fullmatch(
        r"FROM [\w./-]+:\S*\d{8}\S*|FROM python:\d+\.\d+\.\d+-\S+", " ".join(lines[0])
    ):
        found.append("base")
    if "USER" not in kinds or dict(lines)["USER"] in ("root", "0"):
        found.append("root")
    source = next((n for n, line in enumerate(lines) if line[1].endswith("supple supple")), 0)
    before = [argument for kind, argument in lines[:source] if kind == "RUN"]
    if not any("pip install" in argument for argument in before):
        found.append("layers")
    if not any(argument.startswith("TORCH_INDEX") for kind, argument in lines if kind == "ARG"):
        found.append("index")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_dockerfiles_are_clean_pinned_layered_and_not_root(path):
    text = path.read_text()
    assert complaints(path) == ""
    assert faults(text) == []
    assert f"docker build -f docker/{path.name}" in text.split("FROM")[0]


def test_the_linter_and_our_own_rules_see_a_fault(tmp_path):
    planted = tmp_path / "Dockerfile"
    planted.write_text("FROM debian:latest\nRUN cd /tmp\n")
    assert "DL3007" in complaints(planted)
    assert faults(planted.read_text()) == ["base", "root", "layers", "index"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_reaches_the_engine(path):
    ignored = (ROOT / ".dockerignore").read_text().split()
    for kind, argument in rehearse.lines_of(path.read_text()):
        for word in argument.split()[:-1] if kind == "COPY" else ():
            if not word.startswith("--"):
                assert (ROOT / word).exists(), word
                assert f"!{word.split('/')[0]}" in ignored, word


def test_isaac_labs_versions_are_those_of_its_proof():
    wanted = " ".join(RECIPES["isaaclab"].steps).split()
    text = (ROOT / "docker" / "Dockerfile.isaaclab").read_text()
    assert all(each in text for each in wanted if not each.startswith("pytest"))


def test_lines_are_joined_and_comments_left_out():
    text = "# head\nFROM a:1\n\nRUN one \\\n    && two\n# hadolint ignore=DL3008\nUSER 1000\n"
    assert list(rehearse.lines_of(text)) == [
        ("FROM", "a:1"),
        ("RUN", "one && two"),
        ("USER", "1000"),
    ]


def test_variables_user_and_folder_are_kept_from_line_to_line(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nsupple:x:1000:1000::/home/supple:/bin/sh\n"
    )
    image = rehearse.Image(tmp_path, given={"TORCH_INDEX": "there"}, variables={"PATH": "/bin"})
    assert image.home() == "/root"
    for kind, argument in rehearse.lines_of(
        "ENV PATH=/opt/bin:$PATH\nARG TORCH_INDEX=here\nARG OTHER=x\nUSER 1000\n"
        'WORKDIR /home/supple/a\nENTRYPOINT ["supple"]\nCMD ["doctor"]\n'
    ):
        image.carry_out(kind, argument)
    assert image.variables["PATH"] == "/opt/bin:/bin"
    assert image.arguments == {"TORCH_INDEX": "there", "OTHER": "x"}
    assert (image.home(), image.entrypoint, image.command) == (
        "/home/supple",
        ["supple"],
        ["doctor"],
    )
    assert (tmp_path / "home" / "supple" / "a").is_dir()


def test_files_and_the_contents_of_folders_are_copied(tmp_path):
    image = rehearse.Image(tmp_path, folder="/src")
    image.copy(["LICENSE", "README.md", "./"])
    image.copy(["supple", "supple"])
    assert (tmp_path / "src" / "LICENSE").is_file()
    assert (tmp_path / "src" / "supple" / "envs" / "base.py").is_file()
    assert not list(tmp_path.rglob("__pycache__"))


def test_what_cannot_be_carried_out_is_said(tmp_path):
    with pytest.raises(rehearse.RehearsalError, match="HEALTHCHECK is not known here"):
        rehearse.Image(tmp_path).carry_out("HEALTHCHECK", "NONE")
    with pytest.raises(rehearse.RehearsalError, match="FROM must be debian:NAME-DATE-slim"):
        rehearse.clean_root("nvidia/cuda:13.0.0-base", tmp_path, None)
    assert rehearse.BASE.fullmatch("debian:bookworm-20250520-slim")
