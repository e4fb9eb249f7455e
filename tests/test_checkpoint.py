import errno
import json
import math
import os
import resource
import shutil
import signal
import struct
import sys
import time
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supple import checkpoint
from supple.errors import InputError
from supple.signed_json import sign

HEADER = {"task": "toy/point", "env_steps": 10}


def small_state(value=1.0):
    return {"agent": {"w": torch.full((64,), value), "b": torch.arange(3)}, "step": 7}


def assert_same(found, expected):
    """Same types, same bits, same order of keys."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        assert [type(key) for key in found] == [type(key) for key in expected]
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.device.type == "cpu" and found.is_contiguous()
        assert found.data_ptr() % 64 == 0  # torch's own alignment
        assert raw(found) == raw(expected)
    elif isinstance(expected, np.ndarray | np.generic):
        assert (found.dtype.str, found.shape) == (expected.dtype.str, expected.shape)
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, float):
        assert struct.pack("d", found) == struct.pack("d", expected)
    else:
        assert found == expected


def raw(tensor):
    dense = tensor.detach().resolve_conj().resolve_neg()
    return (
        dense.clone(memory_format=torch.contiguous_format)
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def round_trip(folder, state, header=HEADER):
    return checkpoint.load(checkpoint.save(folder, 1, header, state))


# --- round trip ------------------------------------------------------------------------------

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
DTYPES += [torch.bool, torch.uint16, torch.complex64, torch.complex128, torch.float8_e4m3fn]
ARRAY_DTYPES = ["<f8", ">f4", "<f2", "<i8", ">u2", "|b1", "<c16", "<U3", "|S2", "<M8[ns]"]
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def tensors(draw):
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
    size = math.prod(shape) * dtype.itemsize
    if dtype is torch.bool:
        data = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    else:
        data = list(draw(st.binary(min_size=size, max_size=size)))  # NaNs of every kind
    flat = torch.tensor(data, dtype=torch.uint8)
    tensor = flat.view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if tensor.ndim > 1 and draw(st.booleans()) else tensor


@st.composite
def arrays(draw):
    dtype, shape = np.dtype(draw(st.sampled_from(ARRAY_DTYPES))), draw(SHAPES)
    size = math.prod(shape)
    values = draw(st.lists(st.integers(0, 99), min_size=size, max_size=size))
    array = np.array(values, dtype="<i8").astype(dtype).reshape(shape)
    return array.T if draw(st.booleans()) else array


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**60, 2**70),
    st.floats(),
    st.text(st.characters(), max_size=5),
    st.sampled_from([np.float32(0.1), np.int64(-3), np.bool_(True), np.float64("nan")]),
    tensors(),
    arrays(),
)
keys = st.one_of(st.text(max_size=4), st.integers(), st.sampled_from(["", "/", "a.b", "$tuple"]))
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(state=st.dictionaries(keys, trees, max_size=4))
def test_every_tree_comes_back_with_its_types_and_bits(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("run")
    assert_same(round_trip(folder, state).state, state)
    shutil.rmtree(folder)


def test_awkward_values_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "views": [base, base[:, 1], base.T, base[1:]],
        "expanded": torch.ones(1, 3).expand(5, 3),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "huge": [10**6000, -(2**63), 2**63, -(10**40)],
        "zeros": (0.0, -0.0, -math.inf, struct.unpack("d", b"\1\2\3\4\5\6\xf8\x7f")[0]),
        "strings": ["\ud800", "ü\n\0", '"$tensor"'],
        "1": "text key",
        1: "int key",
        "mersenne": np.random.RandomState(3).get_state(),
        "longdouble": np.longdouble("0.1"),
    }
    found = round_trip(tmp_path, state)
    assert_same(found.state, state)
    found.state["views"][0].zero_()
    assert found.state["views"][3][0, 0] == 4  # no longer shares memory
    found.state["mersenne"][1][0] = 0  # writable


def test_subclasses_come_back_as_their_plain_kind(tmp_path):
    layer = torch.nn.Linear(2, 3)
    state = {"parameter": layer.weight, "module": layer.state_dict()}
    found = round_trip(tmp_path, state).state
    assert_same(found["parameter"], layer.weight.data)
    assert_same(found["module"], dict(OrderedDict(layer.state_dict())))
    assert not found["parameter"].requires_grad


def test_state_may_span_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 100)
    state = {"t": [torch.full((n,), float(n)) for n in (1, 20, 30, 2, 3)], "empty": torch.ones(0)}
    found = round_trip(tmp_path, state)
    assert len(list(found.path.glob("*.safetensors"))) == 3
    assert_same(found.state, state)


def test_the_manifest_says_what_it_is_and_other_readers_can_read_the_tensors(tmp_path):
    header = {"limits": (math.inf, 1), "task": "é"}
    path = checkpoint.save(tmp_path, 3, header, {"x": torch.tensor([1.5])})
    manifest = json.loads((path / "manifest.json").read_text())
    assert list(manifest)[:4] == ["format", "version", "sha256", "step"]
    assert manifest["format"] == "supple-checkpoint" and manifest["version"] == 1
    assert manifest["state"]["x"] == {"$tensor": "t0", "dtype": "float32", "shape": [1]}
    assert safetensors.torch.load_file(path / "state-0.safetensors")["t0"].item() == 1.5
    assert_same(checkpoint.read_header(path), header)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_3\n"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"a": [0, {"b": len}]}, r"state\['a'\]\[1\]\['b'\] is a builtins.builtin_function"),
        ({"a": {True: 1}}, r"state\['a'\] has the key True"),
        ({"a": torch.ones(2).to_sparse()}, r"state\['a'\] is a torch.Tensor"),
        ({"a": torch.ones(2, device="meta")}, r"state\['a'\] is a torch.Tensor"),
        ({"a": np.array([None])}, r"state\['a'\] is a numpy.ndarray"),
        ({"a": np.zeros(2, "i4,f4")}, r"state\['a'\] is a numpy.ndarray"),
        ({"a": torch.Size([1])}, r"state\['a'\] is a torch.Size"),
        ({"a": {1, 2}}, r"state\['a'\] is a builtins.set"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_its_place(tmp_path, state, text):
    with pytest.raises(TypeError, match=text):
        checkpoint.save(tmp_path, 1, HEADER, state)
    assert not (tmp_path / "checkpoints").exists()


def test_a_header_holds_no_tensors(tmp_path):
    with pytest.raises(TypeError, match=r"header\['x'\] is a torch.Tensor"):
        checkpoint.save(tmp_path, 1, {"x": torch.ones(1)}, {})


# --- damage ----------------------------------------------------------------------------------


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def refuse(path):
    with pytest.raises(InputError) as error:
        checkpoint.load(path)
    return one_line(error)


@pytest.mark.parametrize("name", ["state-0.safetensors", "manifest.json"])
def test_every_flipped_bit_is_noticed(tmp_path, name):
    path = checkpoint.save(tmp_path, 1, HEADER, small_state())
    file = path / name
    data = file.read_bytes()
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        assert str(path) in refuse(path)
    file.write_bytes(data)
    checkpoint.load(path)


@pytest.mark.parametrize("name", ["state-0.safetensors", "manifest.json"])
def test_every_truncation_is_noticed(tmp_path, name):
    path = checkpoint.save(tmp_path, 1, HEADER, small_state())
    file = path / name
    size = file.stat().st_size
    for kept in (size - 1, size // 2, 9, 1, 0):
        os.truncate(file, kept)
        assert f"{file} is damaged: expected" in refuse(path)
    file.unlink()
    assert f"{file} is missing" in refuse(path)


def test_the_text_gives_expected_and_got(tmp_path):
    path = checkpoint.save(tmp_path, 1, HEADER, small_state())
    file = path / "state-0.safetensors"
    size = file.stat().st_size
    with file.open("ab") as out:
        out.write(b"\0")
    assert refuse(path) == (
        f"{file} is damaged: expected {size} bytes, got {size + 1}; use another checkpoint"
    )


def test_foreign_and_newer_folders_are_refused(tmp_path):
    assert refuse(tmp_path / "no") == (
        f"no checkpoint at {tmp_path / 'no'}: expected a folder with manifest.json"
    )
    assert "manifest.json is missing" in refuse(tmp_path)
    file = tmp_path / "manifest.json"
    for text in ('{"format": "other"}', "[1]", "{}", "null", "[" * 100_000):
        file.write_text(text)
        refuse(tmp_path)
    file.write_text('{"format": "other"}')
    assert "expected format supple-checkpoint, got 'other'" in refuse(tmp_path)
    path = checkpoint.save(tmp_path, 1, HEADER, small_state())
    text = (path / "manifest.json").read_text().replace('"version": 1', '"version": 2')
    (path / "manifest.json").write_text(text)
    assert "expected format version 1, got 2, of a newer supple" in refuse(path)


def test_a_well_signed_manifest_that_makes_no_sense_is_refused(tmp_path):
    manifest = {"format": checkpoint.FORMAT, "version": 1, "sha256": "0" * 64, "header": {}}
    for rest in ({}, {"files": {}, "state": {"$tensor": "t9"}}, {"files": {}, "state": {"$x": 1}}):
        (tmp_path / "manifest.json").write_bytes(sign(json.dumps(manifest | rest)))
        assert "does not hold what this version" in refuse(tmp_path)


def test_newest_intact_skips_damaged_ones_and_says_why(tmp_path):
    for step in (9, 10, 11):
        checkpoint.save(tmp_path, step, {"env_steps": step}, small_state(step))
    (tmp_path / "checkpoints" / "latest").write_text("step_404")  # only a hint
    found, skipped = checkpoint.newest_intact(tmp_path)
    assert (found.header["env_steps"], skipped) == (11, [])
    (tmp_path / "checkpoints/step_11/manifest.json").unlink()
    os.truncate(tmp_path / "checkpoints/step_10/state-0.safetensors", 5)
    found, skipped = checkpoint.newest_intact(tmp_path)
    assert found.header["env_steps"] == 9
    assert len(skipped) == 2
    assert "step_11/manifest.json is missing" in skipped[0]
    assert "step_10/state-0.safetensors is damaged: expected" in skipped[1]
    shutil.rmtree(tmp_path / "checkpoints/step_9")
    with pytest.raises(InputError, match=r"no intact checkpoint among 2; the newest: .*step_11"):
        checkpoint.newest_intact(tmp_path)


def test_a_run_without_checkpoints_says_so(tmp_path):
    assert checkpoint.list_checkpoints(tmp_path) == []
    checkpoint.clean_leftovers(tmp_path)
    with pytest.raises(InputError, match="has no checkpoint: expected") as error:
        checkpoint.newest_intact(tmp_path)
    one_line(error)


# --- interrupted saves -----------------------------------------------------------------------


def in_child(action):
    """Run ``action`` in a forked process; its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at_call(number, folder):
    """Kill this process just before the ``number``-th operation on files below ``folder``."""
    count = 0

    def before(operation):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event, arguments):
        touches = event == "open" or event.startswith(("os.", "shutil."))
        if touches and any(str(folder) in str(each) for each in arguments):
            before(event)

    real_fsync = os.fsync

    def fsync(descriptor):
        before("fsync")
        real_fsync(descriptor)

    os.fsync = fsync
    sys.addaudithook(audited)


@pytest.mark.parametrize("new_step", [2, 1], ids=["a new step", "the same step again"])
def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path, new_step):
    found_values = []
    for number in range(1, 200):
        run = tmp_path / str(number)
        checkpoint.save(run, 1, HEADER, small_state(1.0))

        def save_and_die(number=number, run=run):
            die_at_call(number, run)
            checkpoint.save(run, new_step, HEADER, small_state(2.0))

        status = in_child(save_and_die)
        found, skipped = checkpoint.newest_intact(run)
        value = found.state["agent"]["w"][0].item()
        assert_same(found.state, small_state(value))
        assert skipped == []
        found_values.append(value)
        checkpoint.clean_leftovers(run)
        assert checkpoint.newest_intact(run)[0].state["agent"]["w"][0].item() == value
        names = {path.name for path in (run / "checkpoints").iterdir()}
        assert {name for name in names if not name.startswith(".latest")} <= {
            "step_1",
            "step_2",
            "latest",
        }
        checkpoint.save(run, 3, HEADER, small_state(3.0))  # nothing stands in the way
        assert checkpoint.newest_intact(run)[0].state["agent"]["w"][0].item() == 3
        if status == 0:
            break
        assert status == -signal.SIGKILL
    else:
        pytest.fail("the save never finished")
    assert number > 15  # it was really killed at many points
    assert found_values == sorted(found_values) and set(found_values) == {1.0, 2.0}


def test_kills_at_random_times_leave_a_complete_checkpoint(tmp_path):
    def save_for_ever():
        step = 0
        while True:
            step += 1
            checkpoint.save(tmp_path, step % 3, {"n": step}, {"x": torch.full((200_000,), step)})

    for pause in (0.05, 0.11, 0.18):
        pid = os.fork()
        if pid == 0:
            save_for_ever()
        time.sleep(pause)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for path in checkpoint.list_checkpoints(tmp_path):
            found = checkpoint.load(path)
            assert bool((found.state["x"] == found.header["n"]).all())
        checkpoint.clean_leftovers(tmp_path)


def test_a_full_disk_raises_os_error_and_keeps_the_previous(tmp_path):
    checkpoint.save(tmp_path, 1, HEADER, small_state(1.0))
    sizes = [path.stat().st_size for path in (tmp_path / "checkpoints/step_1").iterdir()]
    for limit in (0, 10, min(sizes), min(sizes) + 1, max(sizes) - 1):

        def save_with_little_room(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            for step in (1, 2):
                try:
                    checkpoint.save(tmp_path, step, HEADER, small_state(2.0))
                except InputError:
                    os._exit(4)
                except OSError:
                    continue
                os._exit(3)

        assert in_child(save_with_little_room) == 0
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == ["latest", "step_1"]
        assert_same(checkpoint.newest_intact(tmp_path)[0].state, small_state(1.0))


def test_a_failed_exchange_keeps_the_old_checkpoint_under_its_name(tmp_path, monkeypatch):
    path = checkpoint.save(tmp_path, 1, HEADER, small_state(1.0))
    real = os.rename

    def rename(source, target):
        if ".tmp-" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.save(tmp_path, 1, HEADER, small_state(2.0))
    assert sorted(each.name for each in path.parent.iterdir()) == ["latest", "step_1"]
    assert_same(checkpoint.load(path).state, small_state(1.0))


def test_a_disk_without_room_for_a_folder_is_no_input_error(tmp_path, monkeypatch):
    def mkdir(self, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 1, HEADER, small_state())


def test_files_reach_the_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    done = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        done.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        real_fsync(descriptor)

    def rename(source, target):
        done.append(("rename", os.path.basename(target)))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    checkpoint.save(tmp_path, 5, HEADER, small_state())
    assert done[:5] == [
        ("sync", "state-0.safetensors"),
        ("sync", "manifest.json"),
        ("sync", f".tmp-step_5-{os.getpid()}"),
        ("rename", "step_5"),
        ("sync", "checkpoints"),
    ]


def test_an_unwritable_place_is_an_input_error(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write checkpoints to .*checkpoints: ") as error:
        checkpoint.save(tmp_path, 1, HEADER, small_state())
    one_line(error)


def test_leftovers_of_living_processes_stay(tmp_path):
    folder = tmp_path / "checkpoints"
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    for pid in (dead, os.getpid(), os.getppid()):
        (folder / f".tmp-step_4-{pid}").mkdir(parents=True)
    assert checkpoint.list_checkpoints(tmp_path) == []
    checkpoint.clean_leftovers(tmp_path)
    assert [path.name for path in folder.iterdir()] == [f".tmp-step_4-{os.getppid()}"]


def test_checkpoints_are_listed_by_number(tmp_path):
    for step in (10, 9, 100):
        checkpoint.save(tmp_path, step, {}, {})
    (tmp_path / "checkpoints" / "step_x").mkdir()
    names = [path.name for path in checkpoint.list_checkpoints(tmp_path)]
    assert names == ["step_9", "step_10", "step_100"]
