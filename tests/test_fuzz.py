"""Mutated files of a run are loaded correctly or refused in one line.

A short form by default; ``make fuzz`` (SUPPLE_FUZZ=1000) mutates every kind of file a thousand
times. Signed mutations carry the digest that a checkpoint wants, as an attacker's file would.
"""

import copy
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from supple import checkpoint, launch
from supple.errors import InputError
from supple.signed_json import UNSIGNED, sign
from tests.small_runs import run_until, small_settings

COUNT = int(os.environ.get("SUPPLE_FUZZ", "40"))
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1, 3.5, 1e308, 2**40, 2**63, 2**70, "", "x", "..", "../../outside"),
    *("/etc/passwd", "/dev/zero", "a\x00b", "step_1", "cuda", "nan", "float32", "load", "O"),
    *([], {}, [[]], [1, 2, 3], [2**62, 4], {"$tensor": "t0", "dtype": "load", "shape": [1]}),
    *({"$float": "00"}, {"$scalar": "|O", "bytes": "00"}, {"$array": "t0", "dtype": "O"}),
    *({"$dict": [[{"a": 1}, 2]]}, {"$tuple": 3}, {"$int": "z"}, {"$what": 1}, "x" * 10_000),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each agent, a run that was stopped and can be resumed."""
    folders = {agent: tmp_path_factory.mktemp("fuzz") / agent for agent in ("flashsac", "ppo")}
    for agent, folder in folders.items():
        run_until(small_settings("toy/lqr", folder, env_steps=200, agent=agent), 90)
    return folders


def files(folder, kind):
    """What the newest checkpoint needs."""
    newest = checkpoint.list_checkpoints(folder)[-1]
    if kind == "checkpoint":
        found = [path.relative_to(folder) for path in newest.iterdir()]
    elif kind == "rows":
        segments = checkpoint.read_header(newest)["replay"]["segments"]
        found = [Path("replay") / entry["name"] for entry in segments]
    else:
        found = [Path(kind)]
    assert found, kind
    return sorted(found)


def damaged(rng, data):
    """A flipped bit, a cut, an exchange of two sections, an insertion or nothing left."""
    data = bytearray(data)
    first, second = sorted(rng.randrange(len(data)) for _ in range(2))
    kind = rng.randrange(5)
    if kind == 0:
        data[first] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[first:]
    elif kind == 2:
        middle = (first + second) // 2
        data[first:second] = data[middle:second] + data[first:middle]
    elif kind == 3:
        data[first:first] = rng.randbytes(rng.choice([1, 8, 4096]))
    else:
        data.clear()
    return bytes(data)


def places(node, path=()):
    """Where every value of a JSON tree is."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def changed(rng, record, below=()):
    """The record with one value replaced, removed, added to or renamed."""
    record = copy.deepcopy(record)
    path = rng.choice([place for place in places(record) if place[: len(below)] == below])
    parent = record
    for key in path[:-1]:
        parent = parent[key]
    key, kind = path[-1], rng.randrange(6)
    if kind == 0 and isinstance(parent, dict):
        parent[rng.choice(["", "..", "$dict", "extra", "a/b"])] = parent.pop(key)
    elif kind == 1:
        del parent[key]
    else:
        parent[key] = copy.deepcopy(rng.choice(HOSTILE))
    return record


def attempt(folder):
    """Load as ``eval`` does, then as ``resume`` does; how far it came."""
    try:
        launch.load_trained(folder)
        run = launch.resumed_run(folder)
        with run.display, run:
            run.start()
    except InputError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
        return "refused"
    return "loaded"


def fuzz(run, tmp_path, mutate):
    """Mutate ``COUNT`` copies; how often each came to what."""
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    came_to = {"refused": 0, "loaded": 0}
    for number in range(COUNT):
        folder = tmp_path / "place" / "run"
        shutil.copytree(run, folder)
        what = mutate(random.Random(number), folder)
        try:
            came_to[attempt(folder)] += 1
        except Exception as error:
            pytest.fail(f"mutation {number}, {what}: {type(error).__name__}: {error}")
        shutil.rmtree(tmp_path / "place")
    assert outside.read_text() == "untouched"
    assert {path.name for path in tmp_path.iterdir()} == {"outside"}
    return came_to


AGENTS = pytest.mark.parametrize("agent", ["flashsac", "ppo"])


@pytest.mark.parametrize(
    ("agent", "kind"),
    [
        *(("flashsac", kind) for kind in ("checkpoint", "rows", "settings.json", "spec.json")),
        ("ppo", "checkpoint"),
    ],
)
def test_damaged_bytes(runs, tmp_path, agent, kind):
    def mutate(rng, folder):
        file = rng.choice(files(folder, kind))
        whole = (folder / file).read_bytes()
        data = damaged(rng, whole)
        while data == whole:  # two sections may be alike
            data = damaged(rng, whole)
        (folder / file).write_bytes(data)
        return file

    came_to = fuzz(runs[agent], tmp_path, mutate)
    if kind in ("checkpoint", "rows"):
        assert came_to["loaded"] == 0
    assert came_to["refused"] > COUNT / 4


@AGENTS
@pytest.mark.parametrize("below", [("header",), ("state",), ("files",), ()], ids=str)
def test_hostile_but_well_signed_manifests(runs, tmp_path, agent, below):
    def mutate(rng, folder):
        file = checkpoint.list_checkpoints(folder)[-1] / checkpoint.MANIFEST
        manifest = changed(rng, json.loads(file.read_text()), below)
        if "sha256" in manifest:
            manifest["sha256"] = UNSIGNED
        file.write_bytes(sign(json.dumps(manifest)))
        return below

    assert fuzz(runs[agent], tmp_path, mutate)["refused"] > COUNT / 4


@AGENTS
@pytest.mark.parametrize("name", ["settings.json", "spec.json"])
def test_hostile_settings_and_facts(runs, tmp_path, agent, name):
    def mutate(rng, folder):
        record = changed(rng, json.loads((folder / name).read_text()))
        (folder / name).write_text(json.dumps(record))
        return name

    assert fuzz(runs[agent], tmp_path, mutate)["refused"] > COUNT / 4
