"""Every planted fault is caught by a sentence that names it; hostile bundles are refused."""

import dataclasses
import errno
import json
import re
import stat
import struct
import sys
import zipfile
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import numpy_helper

from supple.cli import main
from supple.deploy import checks, known, manifest, simulator
from supple.deploy.bundle import read_bundle
from supple.deploy.bundle import zipped as zipped_files
from supple.deploy.checks import FAILED, PASSED, SKIPPED
from supple.deploy.explain import worst_error
from supple.deploy.export import bundle_files
from supple.deploy.runtimes import Outputs
from supple.deploy.simulator import compare_returns, joints_move
from supple.deploy.verify import verify
from supple.envs import EnvSettings, make
from supple.envs.base import Deployment
from supple.errors import InputError
from supple.evaluate import Evaluation
from tests.deploy.small_bundles import (
    TERMS,
    clipped_spec,
    contract_of,
    flashsac,
    plain_spec,
    ppo,
    robot_files,
    robot_spec,
    signed_again,
    trained,
    write,
)
from tests.small_runs import run_whole, small_settings


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return robot_files(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(checks, "RANDOM_ROWS", 300)


def report_of(tmp_path, files):
    return verify(write(tmp_path / "bundle", files), episodes=0, latency=False)


def faults(tmp_path, files):
    """All sentences of failed checks."""
    return "\n".join(v.detail for v in report_of(tmp_path, files).verdicts if v.status == FAILED)


def on_contract(change):
    """A fault in the manifest's contract, every digest made to fit."""

    def plant(files):
        def edit(record):
            change(record["contract"])
            record["contract_sha256"] = manifest.contract_digest(record["contract"])

        return signed_again(files, edit)

    return plant


def on_onnx(change):
    """A fault in both ONNX graphs, every digest made to fit."""

    def plant(files):
        files = dict(files)
        for name in ("policy.onnx", "policy_batch.onnx"):
            model = onnx.load_model_from_string(files[name])
            change({tensor.name: tensor for tensor in model.graph.initializer})
            files[name] = model.SerializeToString()
        return signed_again(files)

    return plant


def edited(tensor, change):
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))


def swap(values):
    values[0], values[1] = values[1], values[0]


def always_finite(files):
    """Graphs by which the runner would never brake."""
    files = dict(files)
    for name in ("policy.onnx", "policy_batch.onnx"):
        model = onnx.load_model_from_string(files[name])
        node = next(node for node in model.graph.node if node.output[0] == "finite")
        node.op_type = "Less"
        node.input[:] = ["zero", "half"]
        files[name] = model.SerializeToString()
    return signed_again(files)


def swap_rows(tensors):
    for part in ("weight", "bias"):
        edited(tensors[f"body.3.{part}"], lambda value: value[[1, 0, 2]])


def swap_commands(tensors):
    swap_rows(tensors)
    for name in ("scale", "offset"):
        edited(tensors[name], lambda value: value[[1, 0, 2]])


def other_history(tensors):
    order = np.r_[len(TERMS) : 2 * len(TERMS), : len(TERMS)]
    for name in ("normaliser.mean", "normaliser.denominator"):
        edited(tensors[name], lambda value: value[order])
    edited(tensors["body.0.weight"], lambda value: value[:, order])


def golden_history(files):
    tensors = safetensors.torch.load(files["golden.safetensors"])
    tensors["observation"] = tensors["observation"].roll(len(TERMS), 1).contiguous()
    return signed_again({**files, "golden.safetensors": safetensors.torch.save(tensors)})


def other_normaliser(contract):
    contract["normaliser"]["mean"] = [value + 1 for value in contract["normaliser"]["mean"]]


def scaled(contract):
    scale = next(s for s in contract["action"]["pipeline"] if s["step"] == "scale")
    scale["values"] = [1.1 * value for value in scale["values"]]


def renamed(contract):
    contract["observation"]["terms"][3]["name"] = "roll"


PLANTED = {
    "joints swapped in the manifest": (
        on_contract(lambda contract: swap(contract["joints"]["policy_names"])),
        [
            "joints.policy_names[0] is 'knee' in manifest.json, 'hip' in policy.pt2, policy.onnx",
            "joints are in another order",
        ],
    ),
    "joints swapped in the graph": (
        on_onnx(swap_rows),
        ["policy.onnx: the joints hip and knee are swapped in its actions"],
    ),
    "joints swapped behind the graph": (
        on_onnx(swap_commands),
        ["policy.onnx: the joints hip and knee are swapped in its actions"],
    ),
    "index map of the robot": (
        on_contract(lambda contract: swap(contract["joints"]["policy_to_robot"])),
        ["joints.policy_to_robot is [2, 1, 0]: expected [1, 2, 0]"],
    ),
    "action scale times 1.1 in the manifest": (
        on_contract(scaled),
        [
            "action.pipeline[2].values[0] is 0.275",
            "a unit of action hip moves hip by 0.25: expected 0.275, the action scale differs",
        ],
    ),
    "action scale times 1.1 in the graph": (
        on_onnx(lambda tensors: edited(tensors["scale"], lambda value: np.float32(1.1) * value)),
        ["policy.onnx: the action scale differs: commands of"],
    ),
    "a graph that calls everything finite": (
        always_finite,
        ["policy.onnx does not tell by its output 'finite' what was finite"],
    ),
    "normaliser of another run in the manifest": (
        on_contract(other_normaliser),
        ["the normaliser listed is not the one in policy.onnx: mean of hip_pos differs"],
    ),
    "normaliser of another run in the graph": (
        on_onnx(lambda tensors: edited(tensors["normaliser.mean"], lambda value: value + 1)),
        ["the normaliser listed is not the one in policy.onnx: mean of hip_pos differs"],
    ),
    "history reversed in the manifest": (
        on_contract(lambda contract: contract["history"].update(direction="oldest_first")),
        ["history.direction is 'oldest_first' in manifest.json, 'newest_first' in policy.pt2"],
    ),
    "history reversed in the graph": (
        on_onnx(other_history),
        ["policy.onnx: the history is reversed: it answers as golden when frames run the other"],
    ),
    "history reversed in the golden vectors": (
        golden_history,
        ["the history is reversed: golden frames grow newer where the manifest says older"],
    ),
    "observation term renamed": (
        on_contract(renamed),
        [
            "observation.terms[3].name is 'roll' in manifest.json, 'pitch' in policy.pt2",
            "observation 'roll' of manifest.json is 'pitch' in policy.c",
        ],
    ),
    "manifest edited by hand": (
        lambda files: {
            **files,
            "manifest.json": files["manifest.json"].replace(
                b'"control_dt": 0.02', b'"control_dt": 0.01'
            ),
        },
        [
            "manifest.json was edited after export",
            "timing.control_dt is 0.01 in manifest.json, 0.02 in policy.pt2",
        ],
    ),
    "graph cut off": (
        lambda files: {**files, "policy.onnx": files["policy.onnx"][:-100]},
        ["policy.onnx is truncated: expected", "onnxruntime cannot load it"],
    ),
    "golden vectors cut off": (
        lambda files: {**files, "golden.safetensors": files["golden.safetensors"][:-100]},
        ["golden.safetensors is truncated: expected", "golden.safetensors is damaged"],
    ),
    "C changed": (
        lambda files: {**files, "policy.c": files["policy.c"].replace(b"0.25f", b"0.75f", 1)},
        ["policy.c was changed after export", "policy.c: "],
    ),
    "C that calls out": (
        lambda files: {**files, "policy.c": files["policy.c"] + b"int x9 = system(0);"},
        ["policy.c says 'system', which no generated policy does"],
    ),
    "a file too many": (
        lambda files: {**files, "extra.bin": b"1"},
        ["extra.bin is not listed in manifest.json"],
    ),
    "a header for the compiler": (
        lambda files: signed_again({**files, "math.h": b"#define tanhf(x) 0\n"}),
        ["math.h is no file that export writes"],
    ),
    "a file too few": (
        lambda files: {name: data for name, data in files.items() if name != "policy.h"},
        ["policy.h is missing"],
    ),
    "a control period of another simulator": (
        on_contract(lambda contract: contract["timing"].update(control_dt=0.01)),
        ["timing.control_dt is 0.01, sim_dt * decimation 0.02"],
    ),
    "unknown fields hidden": (
        lambda files: signed_again(files, lambda record: record["unknown"].pop()),
        ["the list of unknown fields does not fit"],
    ),
    "a contract of another shape": (
        on_contract(lambda contract: contract["normaliser"].pop("mean")),
        ["normaliser.mean is missing in manifest.json"],
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_named(fault, files, tmp_path):
    plant, sentences = PLANTED[fault]
    planted = plant(dict(files))
    assert planted != files
    found = faults(tmp_path, planted)
    for sentence in sentences:
        assert sentence in found


def test_commands_that_the_simulator_clips_are_told_from_a_wrong_scale(tmp_path):
    spec = clipped_spec()
    files = bundle_files(trained(ppo(spec), spec, tmp_path))
    found = {each.check: each for each in report_of(tmp_path, files).verdicts}
    assert {each.check: each.detail for each in found.values() if each.status == FAILED} == {}
    assert found["action mapping"].detail == "commands are offset + scale * action, clipped"
    (tmp_path / "other").mkdir()
    wrong = faults(tmp_path / "other", on_contract(scaled)(files))
    assert "the command of knee is not offset + scale * action, clipped" in wrong


def test_an_intact_bundle_passes_every_check(files, tmp_path):
    found = report_of(tmp_path, signed_again(files)).verdicts
    assert {each.check: each.detail for each in found if each.status == FAILED} == {}
    passed = {each.check for each in found if each.status == PASSED}
    assert {"files", "contract", "normaliser", "history", "swapped joints fail"} <= passed
    assert {"golden, torch", "golden, onnxruntime", "golden, C", "NaN and Inf, C"} <= passed
    assert "action mapping" in passed


def test_status_4_and_the_fault_on_the_command_line(files, tmp_path, capsys):
    plant, sentences = PLANTED["history reversed in the manifest"]
    folder = write(tmp_path / "bundle", plant(dict(files)))
    assert main(["verify", str(folder), "--no-latency", "--episodes", "0"]) == 4
    out = capsys.readouterr().out
    assert sentences[0] in out and "checks failed" in out


@pytest.fixture
def of_nobody(tmp_path):
    """A bundle of a run that knows nothing of a robot."""
    spec = plain_spec()
    return write(tmp_path / "bundle", bundle_files(trained(ppo(spec), spec, tmp_path)))


def test_what_is_not_known_is_said_at_the_end(of_nobody, capsys):
    assert main(["verify", str(of_nobody), "--no-latency", "--episodes", "0"]) == 0
    *_, unknown, last = capsys.readouterr().out.splitlines()
    told = "not known: joint names, the robot's joint order, control mode, gains, default pose,"
    assert unknown.startswith(told) and unknown.endswith(": unknown in manifest.json)")
    assert re.fullmatch(r"\d+ checks passed, 2 skipped", last)
    assert known.sentence([]) == ""
    assert known.not_known(["contract.joints.position_limit.soft.low", "identity.licence"]) == []
    assert known.not_known(["contract.observation.terms[3].scale"]) == [
        "observation scales and clips"
    ]


def test_what_is_required_gives_status_4_where_it_lacks(of_nobody, files, tmp_path, capsys):
    small = ["--no-latency", "--episodes", "0", "--json"]
    assert main(["verify", str(of_nobody), *small, "--require", "c", "joints", "timing"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert not found["failed"] and found["skipped"] == 2
    assert "gains" in found["not_known"]
    assert "contract.gains.stiffness" in found["unknown"]
    joints, timing = found["missing"]
    assert joints.startswith("--require joints: contract.joints.policy_names is not known, ")
    assert timing.endswith("contract.timing.control_dt is not known, 'latency' was not checked")
    robot = write(tmp_path / "robot", files)
    assert main(["verify", str(robot), *small, "--require", "c", "onnx", "joints", "gains"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert main(["verify", str(robot), *small, "--require", "simulator"]) == 4
    assert main(["verify", str(robot), "--require", "wings"]) == 2


def test_one_runtime_agrees_with_nobody(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("PATH", "")  # no compiler
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    folder = str(write(tmp_path / "bundle", files))
    assert main(["verify", folder, "--no-latency", "--episodes", "0", "--require", "c"]) == 4
    out = capsys.readouterr().out
    assert "torch alone: no second runtime here" in out
    assert "5 skipped" in out and "all checks passed" not in out
    assert "--require c: 'golden, C' was not checked" in out


def test_latency_is_reported_for_every_runtime(files, tmp_path, capsys):
    folder = write(tmp_path / "bundle", files)
    assert main(["verify", str(folder), "--episodes", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["latency_us"]
    assert set(found) == {"torch", "onnxruntime", "C"}
    for times in found.values():
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]


def test_an_error_of_the_action_may_grow_with_the_scale_but_no_further():
    contract = {
        "action": {"kind": "continuous", "pipeline": [{"step": "scale", "values": [100.0]}]}
    }
    zero = np.zeros((1, 1), np.float32)
    expected = Outputs(zero, zero, np.zeros((1, 0)))
    # 5e-4 N·m at a scale of 100 is an error of 5e-6 in the action, 2e-3 one of 2e-5.
    for command, worst in ((5e-4, 5e-6), (2e-3, 2e-5)):
        found = Outputs(zero, zero + np.float32(command), np.zeros((1, 0)))
        assert worst_error(found, expected, contract, 1e-5) == pytest.approx(worst, rel=1e-5)


def test_a_single_choice_is_always_the_right_one():
    one = Outputs(np.zeros((2, 1), np.int64), np.ones((2, 1), np.float32), np.zeros((2, 0)))
    assert worst_error(one, one, {"action": {"kind": "discrete", "pipeline": []}}, 1e-5) == 0


# --- hostile bundles ---------------------------------------------------------------------------


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def packed(name, kind):
    member = zipfile.ZipInfo(name)
    member.compress_type = kind
    return member


def link(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


HOSTILE = {
    "a path out of the folder": ([("../evil", b"")], "refused the name '../evil'"),
    "an absolute path": ([("/etc/passwd", b"")], "refused the name '/etc/passwd'"),
    "a folder": ([("a/b", b"")], "refused the name 'a/b'"),
    "a hidden name": ([(".profile", b"")], "hidden file '.profile'"),
    "a link": ([(link("manifest.json"), b"/etc/passwd")], "is no plain file"),
    "a name twice": ([("a", b"1"), ("a", b"2")], "is there twice"),
    "too many files": ([(f"f{i}", b"") for i in range(100)], "holds 100 files"),
    "no manifest": ([("a", b"")], "it has no manifest.json"),
    "no JSON": ([("manifest.json", b"{")], "manifest.json is damaged: expected JSON"),
    "another compression": (
        [(packed("manifest.json", zipfile.ZIP_LZMA), b"{}")],
        "manifest.json is compressed in another way",
    ),
    "deep JSON": ([("manifest.json", b"[" * 100_000)], "manifest.json is damaged"),
    "another format": ([("manifest.json", b"{}")], "expected format supple-bundle, got None"),
    "a manifest without groups": (
        [("manifest.json", b'{"format": "supple-bundle", "version": 1}')],
        "sha256 is missing or no str",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_refused_in_one_line(kind, tmp_path, capsys):
    members, text = HOSTILE[kind]
    assert main(["verify", str(zipped(tmp_path / "bundle.zip", members))]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [tmp_path / "bundle.zip"]


def test_a_zip_bomb_is_refused_before_it_inflates(tmp_path, monkeypatch):
    monkeypatch.setattr("supple.deploy.bundle.MAX_BYTES", 2**19)
    bomb = zipped(tmp_path / "bomb.zip", [("bomb", bytes(2**20))])
    assert bomb.stat().st_size < 2**12
    with pytest.raises(InputError, match="1048576 bytes: expected at most"):
        read_bundle(bomb)


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path):
    path = zipped(tmp_path / "bundle.zip", [("manifest.json", bytes(2**20))])
    data = path.read_bytes()
    for size in (struct.pack("<I", 2**20),):
        data = data.replace(size, struct.pack("<I", 8))
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"no intact zip|damaged"):
        read_bundle(path)


@pytest.mark.parametrize("kept", [10, 2000, -30])
def test_a_zip_cut_off_is_refused(kept, files, tmp_path):
    path = tmp_path / "bundle.zip"
    path.write_bytes(zipped_files(files)[:kept])
    with pytest.raises(InputError, match="is no intact zip"):
        read_bundle(path)


def test_a_zip_that_names_a_place_before_its_beginning_is_damaged(files, tmp_path):
    path = tmp_path / "bundle.zip"
    data = bytearray(zipped_files(files))
    struct.pack_into("<I", data, data.rindex(b"PK\5\6") + 16, len(data))  # of the directory
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"^{path} is no intact zip: .*; export again$"):
        read_bundle(path)


def test_a_disk_that_cannot_be_read_damages_no_zip(files, tmp_path, monkeypatch):
    path = tmp_path / "bundle.zip"
    path.write_bytes(zipped_files(files))

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "open", broken)
    with pytest.raises(InputError, match=rf"^cannot read {path}: Input/output error$"):
        read_bundle(path)


def test_links_in_a_folder_are_refused(files, tmp_path):
    folder = write(tmp_path / "bundle", files)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="link is no plain file"):
        read_bundle(folder)


def test_a_header_that_claims_to_be_huge_is_a_fault(files, tmp_path):
    huge = struct.pack("<Q", 2**62) + b"{}" * 100
    assert "golden.safetensors is damaged" in faults(
        tmp_path, {**files, "golden.safetensors": huge}
    )


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(InputError, match="no bundle at"):
        read_bundle(tmp_path / "missing")


def golden_with(**changes):
    def plant(files):
        tensors = safetensors.torch.load(files["golden.safetensors"])
        tensors |= {name: change(tensors[name]) for name, change in changes.items()}
        return signed_again({**files, "golden.safetensors": safetensors.torch.save(tensors)})

    return plant


def graphs_of_another(files):
    spec = plain_spec()
    other = bundle_files(trained(ppo(spec), spec, Path("elsewhere")))
    graphs = ("policy.onnx", "policy_batch.onnx", "policy.pt2", "policy.c", "policy.h")
    return signed_again({**files, **{name: other[name] for name in graphs}})


ODD = {
    "golden without axes": (
        golden_with(observation=lambda _: torch.tensor(1.0)),
        "golden.safetensors is damaged: observation is () of torch.float32",
    ),
    "golden of other axes": (
        golden_with(memory=lambda _: torch.zeros(256)),
        "memory is (256,) of torch.float32, expected 2 axes",
    ),
    "golden of another type": (
        golden_with(observation=lambda rows: rows.double()),
        "observation is (256, 8) of torch.float64",
    ),
    "golden cut short": (
        golden_with(action=lambda rows: rows[:100].contiguous()),
        "action is (100, 3) of torch.float32, expected 2 axes of torch.float32 and 256 rows",
    ),
    "golden that is not finite": (
        golden_with(command=lambda rows: rows * float("nan")),
        "command is not finite",
    ),
    "golden of another robot": (
        golden_with(observation=lambda rows: rows[:, :5].contiguous()),
        "onnxruntime cannot run it",
    ),
    "graphs of another robot": (graphs_of_another, "torch cannot run it"),
    "terms that are numbers": (
        on_contract(lambda contract: contract["observation"].update(terms=[1, 2])),
        "has not the expected form",
    ),
    "markup and control characters": (
        on_contract(lambda contract: contract["joints"].update(policy_names=["[/b]", "\x1b[1m"])),
        "joints.policy_names is ['[/b]', '\\x1b[1m'] in manifest.json",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_bundle_gets_a_verdict(kind, files, tmp_path):
    plant, sentence = ODD[kind]
    assert sentence in faults(tmp_path, plant(dict(files)))


def test_a_manifest_that_two_readers_could_read_differently_is_refused(files, tmp_path):
    for change, text in ((b"NaN", "got NaN"), (b'0.02, "control_dt": 0.5', "control_dt twice")):
        odd = files["manifest.json"].replace(b'"control_dt": 0.02', b'"control_dt": ' + change)
        folder = write(tmp_path / change.hex(), {**files, "manifest.json": odd})
        with pytest.raises(InputError, match=text):
            read_bundle(folder)


# --- closed loop -------------------------------------------------------------------------------


def evaluation(mean, half):
    return Evaluation(
        return_mean=mean, return_std=1.0, return_ci95=half, length_mean=9.0, episodes=5
    )


@pytest.mark.parametrize(
    ("mean", "status"), [(10.0, PASSED), (12.9, PASSED), (13.1, FAILED), (7.1, PASSED)]
)
def test_returns_are_equal_within_both_intervals(mean, status):
    recorded = {"return_mean": 10.0, "return_ci95": 2.0, "episodes": 5}
    assert compare_returns("closed loop", evaluation(mean, 1.0), recorded).status == status


def test_without_an_interval_nothing_is_claimed():
    recorded = {"return_mean": 10.0, "return_ci95": 0.0, "episodes": 1}
    for missing in (None, recorded):
        found = compare_returns("closed loop", evaluation(10.0, 1.0), missing)
        assert found.status == SKIPPED and "--run" in found.detail
    one = dataclasses.replace(evaluation(10.0, 0.0), episodes=1)
    found = compare_returns("closed loop", one, recorded | {"episodes": 5})
    assert found.status == SKIPPED and "--episodes" in found.detail


@pytest.fixture
def cheetah():
    """The contract's part that MuJoCo is asked about."""
    joints = ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
    gears = [120.0, 90.0, 60.0, 120.0, 60.0, 30.0]
    return {
        "origin": {"task": "gym/HalfCheetah-v5"},
        "joints": {"policy_names": joints},
        "gains": {"control_mode": "torque"},
        "action": {
            "pipeline": [{"step": "scale", "values": gears}],
            "simulator": {"low": [-1.0] * 6, "high": [1.0] * 6},
        },
    }


def test_each_action_loads_its_own_joint_in_mujoco(cheetah):
    assert joints_move(cheetah).status == PASSED


def test_mujoco_tells_swapped_joints_scales_and_names(cheetah):
    swap(cheetah["joints"]["policy_names"])
    found = joints_move(cheetah)
    assert found.status == FAILED and "a unit of action bshin puts 0 N·m on bshin" in found.detail
    swap(cheetah["joints"]["policy_names"])
    cheetah["action"]["pipeline"][0]["values"][2] = 66.0
    assert "bfoot puts 60 N·m on bfoot: expected 66" in joints_move(cheetah).detail
    cheetah["joints"]["policy_names"][0] = "tail"
    assert "no joint 'tail'" in joints_move(cheetah).detail


def test_a_robot_of_nobody_is_skipped(cheetah):
    cheetah["joints"]["policy_names"] = Deployment().joint_names
    assert joints_move(cheetah).status == SKIPPED


def test_a_policy_with_a_history_acts_in_the_environment_it_was_trained_with(tmp_path):
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=40, agent="ppo")
    settings.env.history = 3
    run_whole(settings)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]) == 0
    record = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["contract"]
    assert record["history"]["length"] == 3
    report = verify(tmp_path / "bundle", episodes=2, latency=False)
    found = {verdict.check: verdict.detail for verdict in report.verdicts}
    assert found["closed loop"].startswith("return ")
    with pytest.raises(InputError, match=r"origin\.env is not of this version of supple"):
        simulator._env_settings({"histori": 3}, 1, own=True)


def test_both_policies_are_evaluated_where_the_curriculum_was(monkeypatch):
    progress, seen = {"common_step_counter": 7}, []

    class Env:
        count = 0
        spec = plain_spec()

        def progress(self):
            return {"common_step_counter": self.count}

        def load_progress(self, progress):
            self.count = progress["common_step_counter"]

        def close(self):
            pass

    def evaluate(policy, env, **options):
        seen.append(env.count)
        env.count += 5
        return evaluation(10.0, 1.0)

    monkeypatch.setattr(simulator, "make", lambda task, settings, device: Env())
    monkeypatch.setattr(simulator, "evaluate", evaluate)
    observation = {"groups": ["policy"], "terms": []}
    contract = {"origin": {"task": "toy/lqr"}, "observation": observation}
    recorded = {"return_mean": 10.0, "return_ci95": 1.0, "episodes": 5}
    checked: Any = simulator.closed_loop
    loop = partial(checked, contract, object(), episodes=5, recorded=recorded, add=print)
    run = SimpleNamespace(settings=SimpleNamespace(task="toy/lqr"), progress=progress, greedy=None)
    assert loop(trained=run).status == PASSED
    assert seen == [7, 7]
    alone = loop()
    assert alone.status == SKIPPED
    assert "curriculum" in alone.detail
    assert "--run" in alone.detail


@pytest.mark.parametrize("error", [RuntimeError, OSError, AttributeError, SystemError])
def test_a_simulator_that_cannot_be_made_or_breaks_down_is_skipped(
    error, files, tmp_path, monkeypatch, capsys
):
    def broken(*_, **options):
        raise error("no\n GPU here")

    monkeypatch.setattr(simulator, "make", broken)
    folder = str(write(tmp_path / "bundle", files))
    assert main(["verify", folder, "--no-latency", "--json"]) == 0
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)["verdicts"]}
    why = f"no simulator: {error.__name__}: no GPU here"
    assert found["closed loop"] == {"check": "closed loop", "status": SKIPPED, "detail": why}
    monkeypatch.undo()
    monkeypatch.setattr(simulator, "evaluate", broken)
    loop: Any = simulator.closed_loop
    observation = {"groups": ["policy"], "terms": []}
    contract = {"origin": {"task": "toy/lqr"}, "observation": observation}
    loop = partial(loop, episodes=2, recorded=None, add=print)
    skipped = loop(contract, object())
    assert skipped.detail == f"the simulator broke down: {error.__name__}: no GPU here"
    contract["observation"] = {"groups": ["eyes"]}
    assert loop(contract, object()).status == FAILED


def test_observation_terms_are_those_of_the_simulator():
    spec = robot_spec()
    assert spec.channels is not None
    found = simulator.terms_agree(contract_of(spec), spec)
    assert (found.status, found.detail) == (PASSED, "8 entries as test/robot describes them")

    def told(*channels):
        return simulator.terms_agree(
            contract_of(spec), dataclasses.replace(spec, channels=channels)
        )

    hip, knee, *rest = spec.channels
    swapped = told(knee, hip, *rest)
    assert swapped.status == FAILED
    assert (
        "observation 0 is 'hip_pos', in the simulator 'knee_pos'; observation 1" in swapped.detail
    )
    for change, text in (
        ({"scale": 0.5}, "scale of hip_pos is 1.0, in the simulator 0.5"),
        ({"clip": (-1.0, 1.0)}, "clip of hip_pos is False, in the simulator [-1.0, 1.0]"),
        ({"unit": "m"}, "unit of hip_pos is 'rad', in the simulator 'm'"),
    ):
        assert told(dataclasses.replace(hip, **change), knee, *rest).detail == text
    # What only the run's spec.json tells is nobody's to deny.
    assert told(dataclasses.replace(hip, scale=None, clip=None), knee, *rest).status == PASSED
    assert told(hip, knee).status == SKIPPED
    # Nor what an older bundle did not know.
    older = contract_of(spec)
    older["observation"]["terms"][0]["scale"] = None
    assert simulator.terms_agree(older, spec).status == PASSED
    fewer = contract_of(spec)
    fewer["observation"]["terms"].pop()
    assert "lists 7 entries, the simulator 8" in simulator.terms_agree(fewer, spec).detail


def test_swapped_channels_fail_in_the_simulator(tmp_path):
    task = "gym/InvertedPendulum-v5"
    with closing(make(task, EnvSettings())) as env:
        spec = env.spec
    made = trained(flashsac(spec), spec, tmp_path)
    made.settings.task = task
    first, second, *rest = spec.channels or ()
    other = dataclasses.replace(
        made, spec=dataclasses.replace(spec, channels=(second, first, *rest))
    )
    for each, status in ((made, PASSED), (other, FAILED)):
        folder = write(tmp_path / status, bundle_files(each))
        report = verify(folder, episodes=1, latency=False)
        found = {verdict.check: verdict.status for verdict in report.verdicts}
        assert found["observation terms"] == status


def test_the_simulator_runs_where_it_is_asked_to(files, tmp_path, monkeypatch):
    seen = []

    def make(*_, device):
        seen.append(device)
        raise OSError

    monkeypatch.setattr(simulator, "make", make)
    monkeypatch.setattr("supple.deploy.verify.resolve_device", torch.device)  # none is here
    folder = write(tmp_path / "bundle", files)
    verify(folder, latency=False, device="cuda")
    verify(folder, latency=False)
    assert seen == ["cuda", "cpu"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="--device"):
        verify(folder, device="tpu")


def test_a_robot_that_cannot_be_made_is_skipped(cheetah, monkeypatch):
    monkeypatch.setattr("gymnasium.make", lambda name: 1 / 0)
    found = joints_move(cheetah)
    assert found.status == SKIPPED and found.detail.startswith("no simulator: ZeroDivisionError")


def test_a_bundle_alone_configures_no_simulator(cheetah):
    recorded = {"config": ["xml_file=theirs.xml"]}
    with pytest.raises(InputError, match=r"--env\.config is not taken from a bundle alone"):
        simulator._env_settings(recorded, 2, own=False)
    assert list(simulator._env_settings(recorded, 2, own=True).config) == recorded["config"]
    cheetah["origin"]["env"] = recorded
    found = joints_move(cheetah)
    assert (found.status, found.detail) == (SKIPPED, "--env.config changed it")
