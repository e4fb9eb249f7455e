"""Runs that write no replay rows to the disk, ``--checkpoint.keep-replay 0``."""

import json

import pytest
import torch

from supple import checkpoint, launch
from supple.agents import FlashSAC
from supple.cli import DONE, main
from supple.configs.base import CheckpointSettings, Settings
from supple.deploy.bundle import read_bundle
from supple.diagnostics.online import stored_sets
from supple.divergence import named_tensors
from supple.errors import InputError
from supple.trained import read_settings
from tests.small_runs import (
    assert_resumes_with_the_same_bits,
    assert_same,
    deterministic_rows,
    finish,
    finish_at,
    flags,
    newest_state,
    run_until,
    run_whole,
    small_settings,
)
from tests.small_worlds import start, statuses

NOT_KEPT = "its replay rows were not kept (--checkpoint.keep-replay 0), the ring starts empty"
MIN_REPLAY = 40
"""As in ``small_settings``."""


def settings_of(folder, *, keep=0, task="toy/lqr", env_steps=300, **more):
    settings = small_settings(task, folder, env_steps=env_steps, **more)
    settings.checkpoint.every, settings.checkpoint.keep_replay = 50, keep
    return settings


def keep_from_now_on(folder, keep):
    settings = read_settings(folder)
    settings.checkpoint.keep_replay = keep
    (folder / "settings.json").write_text(launch.as_text(settings))


def rows_files(folder):
    return sorted((folder / "replay").glob("*"))


def test_training_is_the_same_and_leaves_no_rows(agent, tmp_path):
    for name, keep in (("kept", 2), ("not", 0)):
        run_whole(settings_of(tmp_path / name, keep=keep, agent=agent))
    assert not (tmp_path / "not" / "replay").exists()
    assert deterministic_rows(tmp_path / "kept") == deterministic_rows(tmp_path / "not")
    (_, state), (_, other) = (newest_state(tmp_path / name) for name in ("kept", "not"))
    assert_same(state, other)


def test_a_resume_learns_again_once_the_ring_has_enough(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    run_until(settings_of(folder, n_step=3), 150)
    saved = newest_state(folder)[1]["agent"]
    counters = saved["counters"]
    assert counters["updates"] > 0
    run = launch.resumed_run(folder)
    start, record, course = run.start, run.record, []

    def started():
        obs = start()
        own = run.agent.state_dict()
        assert own["counters"] == counters | {"learning": False}
        assert_same(own["generators"], saved["generators"])
        assert_same(dict(named_tensors(own)), dict(named_tensors(saved)))
        assert run.replay.size == 0
        return obs

    def watched(*step):
        course.append((run.env_steps, run.agent.updates))
        return record(*step)

    monkeypatch.setattr(run, "start", started)
    monkeypatch.setattr(run, "record", watched)
    finish(run)
    out = " ".join(capsys.readouterr().out.split())
    assert f"at 150 env steps, not bit-exact: {NOT_KEPT}" in out
    waited = [env_steps for env_steps, updates in course if updates == counters["updates"]]
    assert waited == list(range(150, 150 + MIN_REPLAY, 2))
    assert run.env_steps == 300
    assert run.agent.updates == counters["updates"] + 0.5 * (150 - MIN_REPLAY + 2)
    state = newest_state(folder)[1]["agent"]
    # The policy acted all the while: nothing was drawn for uniform actions.
    streams = [each["generators"]["streams"]["warm_up"] for each in (saved, state)]
    assert torch.equal(*streams)
    assert not (folder / "replay").exists()


def test_minibatches_hold_nothing_but_what_came_since(tmp_path, monkeypatch):
    """Rows nobody wrote are zeros."""
    folder = tmp_path / "run"
    run_until(settings_of(folder), 150)
    run = launch.resumed_run(folder)
    assert isinstance(run.agent, FlashSAC)
    learn, seen = run.agent.learn, []

    def watched(batch, *noise):
        seen.append((batch.actor_obs_2BD != 0).any(-1).all())
        return learn(batch, *noise)

    monkeypatch.setattr(run.agent, "learn", watched)
    finish(run)
    assert seen
    assert all(seen)


def test_an_agent_that_empties_its_ring_resumes_bit_for_bit(tmp_path, capsys):
    assert_resumes_with_the_same_bits(
        lambda folder: settings_of(folder, agent="ppo"), tmp_path, at=150
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "at 152 env steps, bit-exact" in out
    assert not (tmp_path / "parts" / "replay").exists()


def test_stopped_again_while_it_waits(tmp_path, capsys):
    folder = tmp_path / "run"
    run_until(settings_of(folder), 150)
    before = newest_state(folder)[1]
    finish_at(launch.resumed_run(folder), 152)
    found, after = newest_state(folder)
    assert found.header["env_steps"] == 152
    assert_same(before["agent"]["actor"], after["agent"]["actor"])
    finish(launch.resumed_run(folder))
    counters = [state["agent"]["counters"] for state in (after, newest_state(folder)[1])]
    assert counters[0]["updates"] < counters[1]["updates"]
    assert capsys.readouterr().out.count("not bit-exact") == 2


def test_nothing_is_read_from_an_empty_ring(agent, tmp_path, capsys):
    """Killed before it summed up: it evaluates and saves without a step."""
    folder = tmp_path / "run"
    settings = settings_of(folder, agent=agent, env_steps=100)
    # Enough for constant observations to be looked for.
    if agent == "ppo":
        settings.env.num_envs, settings.agent.rollout_steps = 32, 40
    else:
        settings.replay.capacity = 3000
    run_whole(settings)
    (folder / "result.json").unlink()
    before = stored_sets(newest_state(folder)[0].state["diagnostics"]).recent
    finish(launch.resumed_run(folder))
    assert (folder / "result.json").exists()
    after = stored_sets(newest_state(folder)[0].state["diagnostics"]).recent
    assert before is not None and after is not None
    assert_same(before.state_dict(), after.state_dict())
    assert "did not change over" not in capsys.readouterr().out


def test_a_run_may_begin_to_keep_rows_and_cease(tmp_path, capsys):
    folder = tmp_path / "run"
    run_until(settings_of(folder), 100)
    keep_from_now_on(folder, 2)
    finish_at(launch.resumed_run(folder), 250)
    assert NOT_KEPT in " ".join(capsys.readouterr().out.split())
    assert rows_files(folder)
    keep_from_now_on(folder, 0)
    finish(launch.resumed_run(folder))
    out = " ".join(capsys.readouterr().out.split())
    assert "at 250 env steps, bit-exact" in out
    assert not rows_files(folder), "keeping the newest 0 is keeping none"
    finish(launch.resumed_run(folder, 350))
    assert "at 300 env steps, not bit-exact" in " ".join(capsys.readouterr().out.split())


def test_the_policy_is_evaluated_filmed_exported_and_started_from(agent, tmp_path, capsys):
    folder, bundle = tmp_path / "run", tmp_path / "bundle"
    task = "gym/Pendulum-v1"
    run_whole(settings_of(folder, agent=agent, task=task, env_steps=100))
    capsys.readouterr()
    assert main(["eval", str(folder), "--episodes", "1", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["env_steps"] == 100
    assert main(["play", str(folder), "--video", str(tmp_path / "film.webp")]) == DONE
    assert main(["export", str(folder), "--out", str(bundle)]) == DONE
    assert "seeded draws" in read_bundle(bundle).manifest["evidence"]["golden"]["source"]
    assert main(["verify", str(bundle), "--run", str(folder)]) == DONE
    again = settings_of(tmp_path / "again", agent=agent, task=task, env_steps=100)
    again.init_from = str(folder)
    run_whole(again)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_diagnosis_has_the_checkpoints_own_transitions_or_says_so(tmp_path, enabled):
    folder, out = tmp_path / "run", tmp_path / "out"
    settings = settings_of(folder, env_steps=150)
    settings.diagnostics.enabled = enabled
    run_whole(settings)
    assert main(["diagnose", str(folder), "--out", str(out), "--no-html"]) == DONE
    record = json.loads((out / "report.json").read_bytes())
    assert len(record["targets"]) == 3
    assert bool(record["datasets"]) == enabled
    assert any("no replay rows are left" in note for note in record["notes"]) != enabled


@pytest.mark.usefixtures("one_thread")
def test_several_processes_wait_together(tmp_path):
    folder = tmp_path / "run"
    sizes = ["--env-steps", "120", "--checkpoint.every", "60", "--threads", "1"]
    run_dir = ["--run-dir", str(folder), "--checkpoint.keep-replay", "0"]
    command = ["train", "toy/lqr", *flags(), *sizes, *run_dir]
    assert statuses(start(2, command, tmp_path / "out")) == [DONE, DONE]
    extended = ["resume", str(folder), "--env-steps", "240"]
    assert statuses(start(2, extended, tmp_path / "out")) == [DONE, DONE]
    assert NOT_KEPT in " ".join((tmp_path / "out" / "0.txt").read_text().split())
    assert not (folder / "replay").exists()
    assert not (folder / "ranks" / "1" / "replay").exists()
    updates = [
        checkpoint.load(folder / "checkpoints" / f"step_{steps}").state["agent"]["counters"]
        for steps in (120, 240)
    ]
    waited = MIN_REPLAY / 4 - 1  # vector steps of two environments in each of two processes
    assert updates[1]["updates"] - updates[0]["updates"] == 0.5 * (120 - 4 * waited)


def test_less_than_none_is_refused():
    with pytest.raises(InputError, match=r"--checkpoint\.keep-replay must be >= 0, got -1"):
        Settings(checkpoint=CheckpointSettings(keep_replay=-1))
