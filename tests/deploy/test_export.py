import dataclasses
import json
import math
import os
import shutil
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from supple.cli import main
from supple.deploy import card, export, manifest
from supple.deploy.bundle import read_bundle, write_bundle
from supple.deploy.contract import action_names, unknown
from supple.deploy.export import bundle_files
from supple.deploy.golden import Golden, history_pairs
from supple.deploy.known import not_known
from supple.deploy.verify import verify
from supple.envs import EnvSettings, make
from supple.envs.base import Box, Channel, Discrete
from supple.errors import InputError
from supple.signed_json import sha256
from tests.deploy.small_bundles import (
    FRAMES,
    JOINTS,
    TERMS,
    clipped_spec,
    contract_of,
    described,
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


@pytest.fixture(scope="module")
def record(files):
    return manifest.parse(files[manifest.NAME])


def test_a_bundle_has_every_file_and_its_digest(files, record):
    assert set(files) == {
        *("policy.onnx", "policy_batch.onnx", "policy.pt2", "policy.h", "policy.c"),
        *("golden.safetensors", "README.md", "manifest.json"),
    }
    for name, entry in record["files"].items():
        assert entry == {"bytes": len(files[name]), "sha256": sha256(files[name])}


def test_the_contract_carries_what_the_robot_needs(record):
    contract = record["contract"]
    assert contract["joints"]["policy_names"] == list(JOINTS)
    assert contract["joints"]["robot_names"] == ["ankle", "hip", "knee"]
    assert contract["joints"]["policy_to_robot"] == [1, 2, 0]
    assert contract["joints"]["robot_to_policy"] == [2, 0, 1]
    assert contract["gains"]["stiffness"] == [20.0, 21.123456789, 22.0]  # full precision
    assert contract["timing"] | {} == {
        **{"control_dt": 0.02, "sim_dt": 0.005, "decimation": 4, "allowed_latency": None},
        **{"action_delay": None, "observation_delay": None, "delay_unit": "control steps"},
    }
    steps = {step["step"]: step for step in contract["action"]["pipeline"]}
    assert steps["scale"]["values"] == [0.25, 0.5, 0.33]
    assert list(steps)[:4] == ["squash", "clip", "scale", "offset"]
    history = {"length": 2, "layout": "time_major", "direction": "newest_first", "fill": None}
    assert contract["history"] == history
    names = [term["name"] for term in contract["observation"]["terms"]]
    assert names == [*TERMS, *(f"{name}@1" for name in TERMS)]
    assert contract["safety"]["command_high"] == pytest.approx([0.35, 1.2, 0.03])
    assert contract["safety"]["stale_after"] == pytest.approx(0.06)
    assert contract["safety"]["damping"]["gains"] == [0.5, 0.625, 0.75]


def test_unknown_fields_are_null_and_listed(record):
    listed = record["unknown"]
    for path in (
        *("contract.timing.action_delay", "contract.history.fill", "evidence.evaluation"),
        *("contract.observation.terms[*].frame", "contract.joints.armature"),
        *("identity.licence", "evidence.latency", "evidence.golden.raw_state"),
    ):
        assert path in listed
    assert "contract.joints.policy_names" not in listed


def test_the_normaliser_is_listed_as_it_is_baked(record):
    listed = record["contract"]["normaliser"]
    agent = flashsac(robot_spec())
    assert listed["mean"] == agent.actor.trunk.input_norm.running_mean[0].tolist()
    std, eps = torch.tensor(listed["std"], dtype=torch.float64), listed["epsilon"]
    assert torch.allclose((std**2 + eps).sqrt().float(), torch.tensor(listed["denominator"]))


def test_golden_vectors_hold_a_reset_and_frames_that_follow_each_other(files, record):
    golden = Golden.from_bytes(files["golden.safetensors"])
    assert len(golden.observation) >= 100 and golden.start.sum() == 2
    assert "seeded draws" in record["evidence"]["golden"]["source"]
    newest, older = golden.observation.split(len(TERMS), dim=1)
    inside = ~golden.start[1:]
    assert torch.equal(older[1:][inside], newest[:-1][inside])
    assert torch.equal(older[golden.start], newest[golden.start])
    assert len(history_pairs(record["contract"]["observation"]["terms"])) == len(TERMS) * (
        FRAMES - 1
    )


def test_equal_runs_give_equal_bundles(files, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    spec = robot_spec()
    first, second = (
        bundle_files(trained(flashsac(spec), spec, tmp_path / "run")) for _ in range(2)
    )
    assert first == second
    assert b"1970-01-01T00:00:00Z" in first["manifest.json"]


def test_the_card_says_task_safety_and_what_is_not_known(files):
    card = files["README.md"].decode()
    for text in ("toy/asymmetric", "damp after 0.06 s", "The run holds no evaluation.", "armature"):
        assert text in card
    assert "`SessionOptions.intra_op_num_threads` is 1" in card


def test_a_robot_is_braked_by_gains_that_brake():
    effort = (10.0, 20.0, 30.0)
    found = contract_of(described(damping=(0.0, 0.0, 0.0), effort_limit=effort))["safety"]
    assert found["damping"] == {"gains": [1.0, 2.0, 3.0], "source": "effort limit at 10.0 rad/s"}
    found = contract_of(described(damping=(0.0, 1.0, 1.0), effort_limit=None))["safety"]
    assert found["damping"]["gains"] is None


def test_commands_stay_within_the_robots_own_limits():
    low, high = (-0.1, 0.0, -1e9), (0.3, 2.0, 1e9)
    position = {"position_limit_low": low, "position_limit_high": high}
    free = Box(low=(-1.0,) * 3, high=(1.0,) * 3, clip=False)

    def bounds(action=free, **changes):
        spec = dataclasses.replace(described(**changes), action=action)
        safety = contract_of(spec)["safety"]
        return safety["command_low"], safety["command_high"]

    assert bounds() == (False, False)
    assert bounds(**position) == ([-0.1, 0.0, None], [0.3, 2.0, None])
    # Clipped actions reach offset ± scale: 0.1 ± 0.25, 0.7 ± 0.5, -0.3 ± 0.33.
    found = bounds(action=robot_spec().action, **position)
    assert found == (pytest.approx([-0.1, 0.2, -0.63]), pytest.approx([0.3, 1.2, 0.03]))
    effort = {"effort_limit": (10.0, 0.0, 30.0), "velocity_limit": (1.0, 2.0, 3.0)}
    found = bounds(control_mode="torque", **position, **effort)
    assert found == ([-10.0, None, -30.0], [10.0, None, 30.0])
    assert bounds(control_mode="velocity", **effort)[0] == [-1.0, -2.0, -3.0]
    assert bounds(control_mode="delta", **position, **effort) == (False, False)
    # What one joint, or one side, lacks takes nothing from the others.
    mixed = {"effort_limit": (10.0, math.inf, 1e9), "velocity_limit": (1.0, math.inf, 3.0)}
    assert bounds(control_mode="torque", **mixed) == ([-10.0, None, None], [10.0, None, None])
    assert bounds(control_mode="velocity", **mixed)[1] == [1.0, None, 3.0]
    sided = {"position_limit_low": (-math.inf, -1.0, -1e9), "position_limit_high": (1.5, 1e9, 2.0)}
    assert bounds(**sided) == ([None, -1.0, None], [1.5, None, 2.0])


def test_half_of_an_action_map_is_refused():
    with pytest.raises(InputError, match="expected both or neither"):
        contract_of(described(action_offset=None))


def test_what_flags_put_on_is_in_the_contract(tmp_path):
    flags = EnvSettings(history=3, action_delay=2, obs_noise=0.5, action_scale=0.1)
    with closing(make("gym/Pendulum-v1", flags)) as env:
        found = contract_of(env.spec)
    assert found["timing"]["action_delay"] == 2
    assert found["history"] | {"layout": 0} == {
        **{"length": 3, "layout": 0, "direction": "newest_first"},
        "fill": "the first frame repeats",
    }
    assert found["observation"]["trained_with"] == {
        **{"obs_noise": 0.5, "declared_noise": 0.0, "obs_bias": 0.0}
    }
    assert found["action"]["trained_with"] == {"action_scale": 0.1, "action_offset": 0.0}
    with closing(make("gym/HalfCheetah-v5", EnvSettings())) as env:
        assert contract_of(env.spec)["timing"]["action_delay"] == 0  # known: at once


def test_histories_are_told_apart_by_hand():
    def history(*channels):
        made = tuple(Channel(name=n, group="policy", history=age) for n, age in channels)
        spec = robot_spec(channels=made, observation={"policy": len(made)})
        found = contract_of(spec)["history"]
        return found["layout"], found["direction"]

    assert history(("a", 0), ("b", 0), ("a", 1), ("b", 1)) == ("time_major", "newest_first")
    assert history(("a", 1), ("b", 1), ("a", 0), ("b", 0)) == ("time_major", "oldest_first")
    assert history(("a", 1), ("a", 0), ("b", 1), ("b", 0)) == ("term_major", "oldest_first")
    # A term of two entries, as IsaacLab lays it out, and one without a history at the end.
    frames = (("a[x]", 1), ("a[y]", 1), ("a[x]", 0), ("a[y]", 0), ("b", 1), ("b", 0), ("c", 0))
    assert history(*frames) == ("term_major", "oldest_first")
    # Three blocks of one age each, for three frames, and yet by term: "b" has one frame only.
    mixed = [(f"a[{axis}]", age) for age in (2, 1, 0) for axis in "xy"]
    assert history(*mixed, ("b", 0)) == ("term_major", "oldest_first")
    assert history(("b", 0), *mixed) == ("term_major", "oldest_first")


def test_a_description_of_another_robot_is_refused():
    robot = robot_spec().deployment
    assert robot is not None
    for change, text in (
        ({"stiffness": (1.0, 2.0)}, r"deployment.stiffness has 2 entries, expected 3"),
        ({"joint_names": (*JOINTS, "toe")}, r"deployment.joint_names has 4 entries, expected 3"),
        ({"robot_joint_names": ("hip", "toe")}, r"robot_joint_names lacks ankle, knee"),
    ):
        odd = robot_spec(deployment=dataclasses.replace(robot, **change))
        with pytest.raises(InputError, match=text):
            contract_of(odd)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"stiffness": "abc"}, "stiffness is 'abc', expected a list, or null"),
        ({"stiffness": 20.0}, r"stiffness is 20\.0, expected a list, or null"),
        ({"damping": (0.5, "0.5", 0.5)}, "damping holds '0.5', expected numbers"),
        ({"damping": (0.5, None, 0.5)}, "damping holds None, expected numbers"),
        ({"default_position": (0.1, math.nan, 0.1)}, "default_position holds nan, expected n"),
        ({"action_scale": (0.1, True, 0.1)}, "action_scale holds True, expected numbers"),
        ({"action_offset": (0.1, math.inf, 0.1)}, "action_offset holds inf, expected numbers"),
        ({"effort_limit": ("80", 80.0, 80.0)}, "effort_limit holds '80', expected numbers, inf"),
        ({"position_limit_low": (math.nan,) * 3}, "position_limit_low holds nan"),
        ({"action_clip_low": (0.0, "a", 0.0)}, "action_clip_low holds 'a', expected numbers"),
        ({"action_clip_high": True}, "action_clip_high is True, expected a list, false where"),
        ({"action_filter": 0.5}, r"action_filter is 0\.5, expected false, or null"),
        ({"joint_names": ("hip", 2, "ankle")}, "joint_names holds 2, expected joint names"),
        ({"joint_names": ("hip", "hip", "knee")}, "joint_names names 'hip' more than once"),
        ({"joint_names": ("hip", "", "")}, "joint_names names '' more than once"),
        ({"commands": {"v": {"x": [math.nan, 1]}}}, r"commands: the range of v.x is \[nan, 1\]"),
        ({"robot_joint_names": "hip"}, "robot_joint_names is 'hip', expected a list"),
        ({"control_mode": "Position"}, "control_mode is 'Position', expected torque, position"),
        ({"control_mode": ["position"]}, "control_mode is .*, expected torque, position"),
        ({"history_order": "newest"}, "history_order is 'newest', expected newest_first, oldest"),
        ({"sim_dt": "0.005"}, "sim_dt is '0.005', expected seconds above 0, or null"),
        ({"allowed_latency": 0}, "allowed_latency is 0, expected seconds above 0, or null"),
        ({"decimation": 4.5}, r"decimation is 4\.5, expected a whole number >= 1, or null"),
        ({"action_delay": -1}, "action_delay is -1, expected a whole number >= 0, or null"),
    ],
)
def test_what_is_told_by_hand_is_of_its_kind(told, text):
    with pytest.raises(InputError, match=rf"^EnvSpec\.deployment\.{text}") as refused:
        contract_of(described(**told))
    assert "\n" not in str(refused.value)


def test_half_of_a_clip_is_refused():
    ends: dict[str, Any] = {"action_clip_low": (0.0, 0.0, 0.0), "action_clip_high": (1.0,) * 3}
    for change, text in (
        ({"action_clip_high": None}, "is not below its action_clip_high: expected two lists"),
        ({"action_clip_low": (2.0, 0.0, 0.0)}, "is not below its action_clip_high"),
        ({"action_clip_low": False, "action_clip_high": None}, "two lists, false twice or null"),
        ({"action_scale": None, "action_offset": None}, "action_clip_low without action_scale"),
    ):
        with pytest.raises(InputError, match=text):
            contract_of(described(**(ends | change)))


def test_a_clip_or_filter_that_nobody_told_is_unknown_and_not_absent():
    def steps(**told):
        found = contract_of(described(**told))
        listed = [path for path in unknown(found) if "pipeline" in path]
        return {step["step"]: step for step in found["action"]["pipeline"]}, listed

    names = ("action_clip_low", "action_clip_high", "action_filter")
    known, listed = steps()
    assert (known["joint_clip"]["low"], known["low_pass"]["values"], listed) == (False, False, [])
    _, listed = steps(**dict.fromkeys(names))
    assert len(listed) == 4 and set(not_known(listed)) == set()
    whole = [f"contract.{path}" for path in listed]
    assert not_known(whole) == ["clips and filters of commands"]
    clipped = contract_of(clipped_spec())["action"]["pipeline"][4]
    assert clipped == {
        **{"step": "joint_clip", "low": ["-inf", 0.6, -0.35]},
        "high": [0.15, "inf", -0.32],
    }
    with closing(make("gym/HalfCheetah-v5", EnvSettings())) as env:
        torque = contract_of(env.spec)["action"]["pipeline"]
    assert [step for step in torque if None in step.values()] == []


def test_the_latency_that_is_allowed_can_be_told():
    timing = contract_of(described(allowed_latency=0.015))["timing"]
    assert timing["allowed_latency"] == 0.015
    assert "timing.allowed_latency" in unknown(contract_of(described()))


def test_limits_without_end_may_be_told():
    endless = described(effort_limit=(math.inf,) * 3, position_limit_low=(-math.inf,) * 3)
    assert contract_of(endless)["joints"]["effort_limit"] is None


def test_gains_of_0_and_limits_without_end_are_unknown_and_brake_nothing():
    none = {"stiffness": (0.0,) * 3, "damping": (0.0,) * 3, "effort_limit": (80.0, 1e9, 80.0)}
    found = contract_of(described(**none))
    assert {"gains.stiffness", "gains.damping", "joints.effort_limit[1]"} <= set(unknown(found))
    assert found["joints"]["effort_limit"] == [80.0, None, 80.0]
    assert found["safety"]["damping"] == {"gains": None, "source": None}
    pushed = contract_of(described(**none | {"effort_limit": (80.0,) * 3}))
    assert pushed["safety"]["damping"]["gains"] == [8.0] * 3
    undamped = contract_of(described(damping=(0.0,) * 3))  # what a spring has is told
    assert undamped["gains"]["damping"] == [0.0] * 3


def test_a_channel_may_have_an_at_in_its_name():
    terms = [{"name": "imu@2", "history": 0}, {"name": "imu@2@1", "history": 1}]
    assert history_pairs(terms) == [(0, 1)]


def test_choices_that_do_not_count_from_0_are_told():
    assert "start" not in contract_of(plain_spec(action=Discrete(n=4)))["action"]
    spec = plain_spec(action=Discrete(n=4, start=-1))
    files = bundle_files(trained(ppo(spec), spec, Path("run")))
    assert manifest.parse(files["manifest.json"])["contract"]["action"]["start"] == -1
    assert "choice + -1: it counts from -1" in files["README.md"].decode()


@pytest.mark.parametrize("moment", ["now", "-1x", "9" * 17])
def test_a_time_of_export_that_is_none_is_refused(moment, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)
    spec = robot_spec()
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH must be seconds since 1970, got"):
        bundle_files(trained(flashsac(spec), spec, tmp_path / "run"))


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    names = ("b-1", "b-2", "b-notes-1", "c-1")
    left, fresh, *others = (tmp_path / f".partial-{name}" for name in names)
    for folder in (left, fresh, *others):
        folder.mkdir()
        if folder != fresh:
            os.utime(folder, (0, 0))
    write_bundle(tmp_path / "b", {"README.md": b"x"})
    assert not left.exists() and all(folder.exists() for folder in (fresh, *others))


def test_the_card_tells_sides_and_episodes_apart():
    one_sided = described(
        position_limit_low=(-math.inf,) * 3,
        position_limit_high=(1.0, 1.5, 2.0),
    )
    spec = dataclasses.replace(one_sided, action=Box(low=(-9,) * 3, high=(9,) * 3, clip=False))
    assert card._safety(contract_of(spec))["commands"] == "no bound to [1.0, 1.5, 2.0]"
    assert card._safety(contract_of(plain_spec(action=Discrete(n=4))))["commands"] == "not bounded"
    found = {"return_mean": -6.14, "return_ci95": 0.0, "episodes": 1, "env_steps": 9}
    assert card._evaluation(found) == (
        "Deterministic return -6.14, of one episode, after 9 environment steps."
    )


def test_empty_slots_of_a_board_are_no_joint_twice():
    sdk = (*JOINTS[::-1], "", "")
    found = contract_of(described(robot_joint_names=sdk))["joints"]
    assert found["policy_to_robot"] == [2, 1, 0]


def test_choices_are_not_named_after_joints():
    robot = robot_spec(action=Discrete(n=4))
    assert action_names(robot) == ["choice"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, agent):
    folder = tmp_path_factory.mktemp("runs") / agent
    return run_whole(small_settings("toy/asymmetric", folder, env_steps=1200, agent=agent)).folder


def test_export_needs_no_simulator_and_verify_passes(run, agent, tmp_path, monkeypatch, capsys):
    out = tmp_path / "bundle"
    with monkeypatch.context() as without:
        without.setattr("supple.build.make", None)
        without.setattr("supple.evaluate.make", None)
        assert main(["export", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"{out}.zip", str(out)]
    assert "supple: not known: joint names, the robot's joint order" in said.err
    with zipfile.ZipFile(f"{out}.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == read_bundle(out).files
    source = read_bundle(out).manifest["evidence"]["golden"]["source"]
    assert source.startswith("the replay rows" if agent == "flashsac" else "seeded draws")
    arguments = ["verify", f"{out}.zip", "--run", str(run), "--no-latency", "--episodes", "2"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["failed"]
    status = {each["check"]: each["status"] for each in found["verdicts"]}
    for check in ("golden, torch", "golden, onnxruntime", "golden, C", "closed loop"):
        assert status[check] == "passed"
    assert status["the run itself"] == "passed"


def test_a_run_may_be_renamed_and_another_run_is_named(run, agent, tmp_path, capsys):
    out = export.export(str(run), str(tmp_path / "bundle"), archive=False)
    moved = shutil.copytree(run, tmp_path / "moved")
    report = verify(str(out), run=str(moved), episodes=0, latency=False)
    assert {v.check: v.status for v in report.verdicts}["the run itself"] == "passed"
    other = small_settings("toy/lqr", tmp_path / "other", env_steps=100, agent=agent)
    report = verify(out, run=run_whole(other).folder, episodes=1, latency=False)
    details = {verdict.check: verdict.detail for verdict in report.verdicts}
    assert details["closed loop"] == "the run is of toy/lqr, this is of toy/asymmetric"
    for command, folder, text in (
        ("verify", run, f"{run} is a run, no bundle: supple export {run} makes one"),
        ("eval", out, "that of a bundle, for the robot, not of a run's checkpoint"),
    ):
        assert main([command, str(folder)]) == 2
        assert text in capsys.readouterr().err


def test_golden_actions_of_another_width_than_the_runs_are_a_fault(run, tmp_path):
    found = dict(read_bundle(export.export(run, tmp_path / "bundle", archive=False)).files)
    tensors = safetensors.torch.load(found["golden.safetensors"])
    tensors["action"] = tensors["action"].repeat(1, 3)
    odd = signed_again({**found, "golden.safetensors": safetensors.torch.save(tensors)})
    report = verify(write(tmp_path / "odd", odd), run=run, episodes=0, latency=False)
    details = {verdict.check: verdict.detail for verdict in report.verdicts}
    assert (
        details["the run itself"]
        == "its golden vectors are not those of the run at 1,200 env steps"
    )


def test_an_export_that_is_stopped_leaves_nothing_behind(files, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    for name in ("sync_folder", "replace_file", "os.rename"):
        with monkeypatch.context() as stopped:
            stopped.setattr(f"supple.deploy.bundle.{name}", stop)
            with pytest.raises(KeyboardInterrupt):
                write_bundle(tmp_path / "bundle", files, archive=True)
        assert list(tmp_path.iterdir()) == []
    write_bundle(tmp_path / "bundle", files, archive=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.zip"]


def test_a_run_that_was_killed_while_writing_can_be_exported(run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    with (copied / "metrics.jsonl").open("a") as rows:
        rows.write('{"step": 12')
    for rows_file in (copied / "replay").glob("rows-*"):
        rows_file.write_bytes(rows_file.read_bytes()[:-10])
    out = export.export(copied, tmp_path / "bundle", archive=False)
    assert "seeded draws" in read_bundle(out).manifest["evidence"]["golden"]["source"]
    (copied / "versions.json").write_text("{")
    with pytest.raises(InputError, match=r"versions\.json does not hold .* put the file aside"):
        export.export(copied, tmp_path / "again", archive=False)


def test_a_place_that_is_taken_is_refused(run, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    assert main(["export", str(run), "--out", str(tmp_path / "taken")]) == 2
    assert "is there already: choose another --out" in capsys.readouterr().err
    assert main(["export", str(run), "--also", "tflite"]) == 2
    assert "--also tflite: expected mjlab or unitree" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "taken")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_the_verdicts_of_a_diagnosis_are_in_the_card(tmp_path):
    verdict = {"rule": "V2", "level": "warn", "confidence": "high", "sentence": "Units sleep."}
    report = {
        "suite": "quick",
        "created_utc": "2026-11-25T10:00:00Z",
        "targets": [
            {"id": 0, "run": tmp_path.name, "env_step": 300},
            {"id": 1, "run": tmp_path.name, "env_step": 200},
            {"id": 2, "run": "another", "env_step": 300},
        ],
        "verdicts": [
            verdict | {"target": 0, "evidence": [1]},
            verdict | {"target": 1, "rule": "V3"},
            verdict | {"target": 2, "rule": "V4"},
        ],
    }
    assert export._diagnostics(tmp_path, 300) is None
    path = tmp_path / "diagnostics" / "report.json"
    path.parent.mkdir()
    path.write_text(json.dumps(report))
    assert export._diagnostics(tmp_path, 100) is None  # this checkpoint was not looked at
    found = export._diagnostics(tmp_path, 300)
    assert found is not None
    assert found["verdicts"] == [verdict]
    assert "* warn (V2, high): Units sleep." in card._diagnostics(found)
    assert "No fault found: `supple diagnose --suite quick`" in card._diagnostics(
        found | {"verdicts": []}
    )
    path.write_text(json.dumps(report | {"verdicts": [3]}))
    with pytest.raises(InputError, match=r"report\.json does not hold what .* run supple diagnose"):
        export._diagnostics(tmp_path, 300)
