"""Mutated files of a run are loaded correctly or refused in one line.

A short form by default; ``make fuzz`` (SUPPLE_FUZZ=1000) mutates every kind of file a thousand
times. Signed mutations carry the digest that a checkpoint wants, as an attacker's file would.
"""

import contextlib
import copy
import json
import os
import random
import resource
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from supple import checkpoint, launch
from supple.cli import ran_out_of_memory
from supple.deploy import manifest as manifest_file
from supple.deploy.bundle import read_bundle, write_bundle, zip_path, zipped
from supple.deploy.export import bundle_files
from supple.deploy.verify import verify
from supple.errors import InputError
from supple.signed_json import UNSIGNED, sha256, sign
from supple.trained import load_trained
from tests.small_runs import run_until, small_settings

COUNT = int(os.environ.get("SUPPLE_FUZZ", "40"))
SECONDS, MEMORY = 60, 1024
"""What one mutation may take, with room for slow machines [s], and what all of them may add to the
peak of this process, which may have run other tests [MiB]."""
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1, 3.5, 1e308, 2**40, 2**63, 2**70, "", "x", "..", "../../outside"),
    *("/etc/passwd", "/dev/zero", "a\x00b", "step_1", "cuda", "nan", "float32", "load", "O"),
    "\ud800",
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
        load_trained(folder)
        run = launch.resumed_run(folder)
        with run.display, run:
            run.start()
    except InputError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
        return "refused"
    except Exception as error:
        if not ran_out_of_memory(error):  # of which the command makes one line, too
            raise
        return "refused"
    return "loaded"


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def limited(seconds):
    """Nothing made to harm may keep a process busy for longer."""

    def late(number, frame):
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def fuzz(tmp_path, keep_row):
    """``fuzz(count, mutate, judge)``: how often each of ``count`` mutations came to what.

    ``mutate(random, place)`` writes into an empty folder and says what it changed and where.
    """

    def fuzzed(count, mutate, judge):
        outside = tmp_path / "outside"
        outside.write_text("untouched")
        came_to: Counter[str] = Counter()
        wrong, before = [], peak_mib()
        for number in range(count):
            place = tmp_path / "place"
            place.mkdir()
            what, path = mutate(random.Random(number), place)
            try:
                with limited(SECONDS):
                    came_to[judge(path)] += 1
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                wrong.append(f"mutation {number}, {what}: {said[:300]}")
            shutil.rmtree(place)
        assert peak_mib() - before < MEMORY
        assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:10])
        assert outside.read_text() == "untouched"
        assert {path.name for path in tmp_path.iterdir()} == {"outside"}
        keep_row("SUPPLE_FUZZ", count, **came_to)
        return came_to

    return fuzzed


@pytest.fixture
def fuzz_run(runs, fuzz):
    """``fuzz_run(agent, mutate)``: every mutation on a copy of a whole run."""

    def fuzzed(agent, mutate):
        def on_a_copy(rng, place):
            shutil.copytree(runs[agent], place / "run")
            return mutate(rng, place / "run"), place / "run"

        return fuzz(COUNT, on_a_copy, attempt)

    return fuzzed


AGENTS = pytest.mark.parametrize("agent", ["flashsac", "ppo"])


@pytest.mark.parametrize(
    ("agent", "kind"),
    [
        *(("flashsac", kind) for kind in ("checkpoint", "rows", "settings.json", "spec.json")),
        ("ppo", "checkpoint"),
    ],
)
def test_damaged_bytes(fuzz_run, agent, kind):
    def mutate(rng, folder):
        file = rng.choice(files(folder, kind))
        whole = (folder / file).read_bytes()
        data = damaged(rng, whole)
        while data == whole:  # two sections may be alike
            data = damaged(rng, whole)
        (folder / file).write_bytes(data)
        return file

    came_to = fuzz_run(agent, mutate)
    if kind in ("checkpoint", "rows"):
        assert came_to["loaded"] == 0
    assert came_to["refused"] > COUNT / 4


@AGENTS
@pytest.mark.parametrize("below", [("header",), ("state",), ("files",), ()], ids=str)
def test_hostile_but_well_signed_manifests(fuzz_run, agent, below):
    def mutate(rng, folder):
        file = checkpoint.list_checkpoints(folder)[-1] / checkpoint.MANIFEST
        manifest = changed(rng, json.loads(file.read_text()), below)
        if "sha256" in manifest:
            manifest["sha256"] = UNSIGNED
        file.write_bytes(sign(json.dumps(manifest)))
        return below

    assert fuzz_run(agent, mutate)["refused"] > COUNT / 4


@pytest.mark.parametrize("name", ["vector_steps", "seconds"])
def test_a_runs_counts_that_are_no_numbers_are_refused(runs, tmp_path, name):
    folder = shutil.copytree(runs["ppo"], tmp_path / "run")
    file = checkpoint.list_checkpoints(folder)[-1] / checkpoint.MANIFEST
    manifest = json.loads(file.read_text())
    manifest["state"]["run"][name] = "x"
    file.write_bytes(sign(json.dumps(manifest | {"sha256": UNSIGNED})))
    assert attempt(folder) == "refused"


@AGENTS
@pytest.mark.parametrize("name", ["settings.json", "spec.json"])
def test_hostile_settings_and_facts(fuzz_run, agent, name):
    def mutate(rng, folder):
        record = changed(rng, json.loads((folder / name).read_text()))
        (folder / name).write_text(json.dumps(record))
        return name

    assert fuzz_run(agent, mutate)["refused"] > COUNT / 4


# --- bundles -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(runs):
    """The files of a bundle, by name."""
    return bundle_files(load_trained(runs["flashsac"]))


def judged(path):
    """What ``supple verify`` says of a bundle: refused, at fault, or nothing wrong with it."""
    try:
        report = verify(path, episodes=0, latency=False)
    except InputError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
        return "refused"
    for found in report.verdicts:
        assert "\n" not in found.detail
    return "at fault" if report.failed else "passed"


def resigned(files, **changes):
    """The files with some of them changed and a manifest that stands by them, as an attacker's."""
    files = {**files, **changes}
    record = manifest_file.parse(files[manifest_file.NAME])
    for name, data in changes.items():
        record["files"][name] = {"bytes": len(data), "sha256": sha256(data)}
    return files | {manifest_file.NAME: manifest_file.sign(record)}


def untouched(path):
    """Whether every byte is as it was written; nothing of the bundle is run."""
    try:
        found = read_bundle(path)
    except InputError as error:
        assert "\n" not in str(error)
        return "refused"
    return "at fault" if found.damage() else "passed"


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "zip"])
def test_damaged_bundles(bundle, fuzz, archive):
    def mutate(rng, place):
        path = place / "bundle"
        if archive:
            zip_path(path).write_bytes(damaged(rng, zipped(bundle)))
            return "zip", zip_path(path)
        name = rng.choice(sorted(bundle))
        data = damaged(rng, bundle[name])
        while data == bundle[name]:
            data = damaged(rng, bundle[name])
        write_bundle(path, {**bundle, name: data})
        return name, path

    came_to = fuzz(COUNT, mutate, untouched)
    # A zip has bytes that say nothing: times, or what lies beside its members.
    assert came_to["passed"] <= (COUNT / 4 if archive else 0)


@pytest.mark.parametrize("below", [("contract",), ("files",), ("evidence",), ()], ids=str)
def test_hostile_but_well_signed_bundles(bundle, fuzz, monkeypatch, below):
    monkeypatch.setattr("supple.deploy.verify._start", lambda *_: [])  # takes a second each

    def mutate(rng, place):
        path = place / "bundle"
        record = changed(rng, manifest_file.parse(bundle[manifest_file.NAME]), below)
        for name in ("format", "version", "sha256"):
            record.pop(name, None)
        try:
            data = manifest_file.sign(record)
        except ValueError:  # what JSON cannot say
            data = b"{}"
        write_bundle(path, {**bundle, manifest_file.NAME: data})
        return below, path

    came_to = fuzz(COUNT, mutate, judged)
    assert came_to["refused"] + came_to["at fault"] >= (0 if below else COUNT / 4)


def test_damaged_but_well_signed_policies(bundle, fuzz):
    """What every runtime and the golden vectors make of files that are not what they were."""
    names = [name for name in sorted(bundle) if name.startswith(("policy", "golden"))]

    def mutate(rng, place):
        path = place / "bundle"
        name = names[rng.randrange(len(names))]
        write_bundle(path, resigned(bundle, **{name: damaged(rng, bundle[name])}))
        return name, path

    fuzz(max(4, COUNT // 10), mutate, judged)
