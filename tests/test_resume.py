"""A stopped run continues as if it had never stopped."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from supple import build, checkpoint, launch
from supple.checkpoint import list_checkpoints
from supple.cli import main
from supple.errors import InputError
from supple.metrics import WANDB_ID
from supple.run import RESULT
from supple.trained import load_trained, read_settings
from tests.small_runs import (
    FakeWandb,
    assert_same,
    deterministic_rows,
    finish,
    flags,
    newest_state,
    run_until,
    run_whole,
    small_settings,
)


def test_the_size_of_the_ring_is_said_before_it_is_allocated(tmp_path, monkeypatch, capsys):
    def no_memory(*_, **__):
        raise MemoryError

    folder = tmp_path / "run"
    run_until(small_settings("toy/lqr", folder, env_steps=100), 50)
    assert capsys.readouterr().out.count("replay: 64 transitions (32 rows x 2 environments)") == 1
    monkeypatch.setattr(build, "Replay", no_memory)
    for begin in (
        lambda: launch.resumed_run(folder),
        lambda: launch.new_run(small_settings("toy/lqr", tmp_path / "new", env_steps=100)),
    ):
        with pytest.raises(MemoryError):
            begin()
        assert "replay: 64 transitions" in capsys.readouterr().out


@pytest.mark.parametrize("trained", ["bfloat16", "float32"])
def test_a_precision_that_was_timed_stays_on_the_same_kind_of_processor(
    tmp_path, monkeypatch, trained
):
    other = {"bfloat16": "float32", "float32": "bfloat16"}[trained]
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=100)
    settings.compute.precision = "auto"
    monkeypatch.setattr("supple.region.gains_by_bfloat16", lambda device: trained == "bfloat16")
    run_until(settings, 50)
    monkeypatch.setattr("supple.region.gains_by_bfloat16", lambda device: trained != "bfloat16")
    for agent in (load_trained(tmp_path / "run").agent, resumed_agent(tmp_path / "run")):
        assert agent.compute.precision == trained
    monkeypatch.setattr("supple.machine.model_name", lambda device: "another processor")
    assert resumed_agent(tmp_path / "run").compute.precision == other
    assert read_settings(tmp_path / "run").compute.precision == "auto"


def resumed_agent(folder):
    run = launch.resumed_run(folder)
    with run.display, run:
        return run.agent


@pytest.mark.parametrize(
    ("agent", "task", "changes", "overlap"),
    [
        ("flashsac", "toy/counter", {"n_step": 3}, False),
        ("flashsac", "toy/lqr", {"n_step": 1}, False),
        ("flashsac", "toy/lqr", {"n_step": 3}, True),
        ("flashsac", "gym/Pendulum-v1", {"n_step": 3}, False),
        ("flashsac", "gym/Pendulum-v1", {"n_step": 3}, True),
        ("flashsac", "gym/HalfCheetah-v5", {"n_step": 1}, False),
        ("flashsac", "gym/Ant-v5", {"n_step": 3}, False),
        ("ppo", "toy/counter", {"memory": 4}, False),
        ("ppo", "toy/lqr", {"kl_stop": 0.01, "rollout_steps": 6}, False),
        ("ppo", "toy/asymmetric", {"std": "state"}, False),
        ("ppo", "gym/CartPole-v1", {"memory": 3}, False),
        ("ppo", "gym/Pendulum-v1", {"distribution": "squashed", "entropy_coef": 0.01}, False),
        ("ppo", "gym/HalfCheetah-v5", {"lr_schedule": "adaptive"}, False),
    ],
)
def test_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    agent, task, changes, overlap, tmp_path, monkeypatch
):
    # A slow disk would leave a segment to the save, when rows may have lost their final observation
    # to others: another name for the same rows once they are loaded.
    monkeypatch.setattr("supple.replay.segments.MOST_WAITING", 10**6)

    def settings(folder):
        made = small_settings(task, folder, env_steps=2 * 300, agent=agent, **changes)
        made.overlap = overlap
        return made

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_whole(settings(whole))
    # About 233 vector steps: Pendulum and Ant are then in the middle of an episode, with open
    # windows.
    run_until(settings(parts), 466)
    assert 466 <= newest_state(parts)[0].header["env_steps"] < 480
    finish(launch.resumed_run(parts))

    rows = deterministic_rows(whole)
    assert len(rows["step"]) == -(-300 // changes.get("rollout_steps", 2 if agent == "ppo" else 1))
    assert rows == deterministic_rows(parts)
    (first, state), (second, other) = newest_state(whole), newest_state(parts)
    assert_same(state, other)
    names = [[entry["name"] for entry in f.header["replay"]["segments"]] for f in (first, second)]
    assert names[0] == names[1], "segment names carry the hash of their rows"


def test_resuming_twice_and_extending_changes_nothing_either(agent, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = small_settings("toy/lqr", whole, env_steps=400, agent=agent)
    capacity = 1000 if agent == "flashsac" else settings.replay.capacity
    settings.replay.capacity = capacity
    run_whole(settings)
    settings = small_settings("toy/lqr", parts, env_steps=200, agent=agent)
    settings.replay.capacity = capacity
    settings.eval.every = settings.checkpoint.every = 200
    run_until(settings, 90)
    finish(launch.resumed_run(parts))
    finish(launch.resumed_run(parts, 400))
    assert read_settings(parts).env_steps == 400
    # The learning-rate schedule keeps its length, so only what it does not touch is the same; PPO's
    # would have come to 0 and goes on to the new end.
    assert deterministic_rows(whole)["step"] == deterministic_rows(parts)["step"]
    found, _ = newest_state(parts)
    state = found.state["agent"]
    if agent == "flashsac":
        assert state["counters"]["schedule_updates"] == 200 * 0.5
    else:
        assert state["rate"].item() == pytest.approx(settings.agent.lr * 4 / 400)  # not yet 0


def test_a_simulator_without_saved_state_starts_afresh_and_says_so(
    agent, tmp_path, capsys, monkeypatch
):
    from supple.envs.toy import Lqr

    folder = tmp_path / "run"
    init = Lqr.__init__

    def without(self, num_envs, device):
        import dataclasses

        init(self, num_envs, device)
        self.spec = dataclasses.replace(self.spec, exact_resume=False)

    monkeypatch.setattr(Lqr, "__init__", without)
    run_until(small_settings("toy/lqr", folder, env_steps=600, agent=agent), 310)
    run = finish(launch.resumed_run(folder))
    assert "cannot restore its state" in capsys.readouterr().out
    assert run.env_steps == 600
    if agent == "ppo":
        return  # its ring is empty then
    replay = run.replay
    # The row before the reset was cut: 155 vector steps had been made, ring rows are 300 / 2.
    cut = (155 - 1) % replay.num_rows
    assert replay.columns["truncated"][cut].all()
    assert replay.columns["valid"][cut].all()


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    else:
        path.unlink()


@pytest.fixture(scope="module")
def stopped_twice(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = small_settings("toy/lqr", folder, env_steps=600, agent=agent)
    settings.checkpoint.every = 100
    run_until(settings, 250)
    return folder


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("part", ["tensors", "manifest", "rows"])
def test_a_damaged_newest_checkpoint_is_skipped_with_its_reason(
    agent, stopped_twice, tmp_path, part, how, capsys
):
    if (agent, part) == ("ppo", "rows"):
        pytest.skip("PPO has forgotten its rows whenever it is saved")
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(stopped_twice), str(folder)], check=True)
    *_, before, newest = list_checkpoints(folder)
    if part == "rows":
        own = {e["name"] for e in checkpoint.read_header(newest)["replay"]["segments"]}
        other = {e["name"] for e in checkpoint.read_header(before)["replay"]["segments"]}
        target = folder / "replay" / min(own - other)
    else:
        target = next(newest.glob("manifest.json" if part == "manifest" else "*.safetensors"))
    damage(target, how)
    found, skipped = launch.newest_resumable(folder)
    assert found.path.name == before.name
    assert len(skipped) == 1
    assert target.name in skipped[0] or newest.name in skipped[0]
    finish(launch.resumed_run(folder))
    assert "skipped a damaged checkpoint" in capsys.readouterr().out


def test_nothing_to_resume_is_refused(agent, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        launch.resumed_run(tmp_path)
    folder = tmp_path / "run"
    run_whole(small_settings("toy/lqr", folder, env_steps=100, agent=agent))
    with pytest.raises(InputError, match="already trained 100 of 100 env steps: extend it"):
        launch.resumed_run(folder)


def test_a_refused_resume_changes_nothing(agent, tmp_path):
    folder = tmp_path / "run"
    run_until(small_settings("toy/lqr", folder, env_steps=400, agent=agent), 200)
    before = (folder / "settings.json").read_bytes()
    with pytest.raises(InputError, match="already trained 200 of 50 env steps"):
        launch.resumed_run(folder, 50)
    table = folder / "metrics.csv"
    table.write_text("x" + table.read_text())
    with pytest.raises(InputError):
        launch.resumed_run(folder, 300)
    assert (folder / "settings.json").read_bytes() == before


def test_a_resume_that_wandb_refuses_leaves_a_finished_run_as_it_was(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=100)
    settings.log.wandb = "robots"
    folder = run_whole(settings).folder
    before = {name: (folder / name).read_bytes() for name in ("settings.json", RESULT)}

    def refuse(**_):
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(fake, "init", refuse)
    with pytest.raises(InputError, match="api_key not configured"):
        launch.resumed_run(folder, 200)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_resume_goes_on_in_the_run_that_the_checkpoint_names(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=200)
    settings.log.wandb = "robots"
    folder = run_until(settings, 100).folder
    (folder / WANDB_ID).unlink()  # as of runs made before there was one
    finish(launch.resumed_run(folder))
    first, second = (call[1]["id"] for call in fake.calls if call[0] == "init")
    assert first == second == (folder / WANDB_ID).read_text()


def test_rings_in_which_learning_never_begins_are_refused(tmp_path):
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=400)
    settings.replay.capacity, settings.agent.min_replay = 100, 200
    with pytest.raises(InputError, match=r"the ring holds 100: raise --replay\.capacity"):
        launch.new_run(settings)
    settings.replay.capacity, settings.agent.min_replay, settings.agent.n_step = 20, 10, 20
    with pytest.raises(InputError, match="n-step 20 needs more rows than the ring"):
        launch.new_run(settings)
    assert not (tmp_path / "run").exists()


def wait_for_rows(run, folder):
    """Until a process writes metrics."""
    deadline = time.monotonic() + 60
    metrics = folder / "metrics.csv"
    while not (metrics.exists() and metrics.stat().st_size > 2000):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("agent", "asked"),
    [("flashsac", signal.SIGINT), ("ppo", signal.SIGINT), ("flashsac", signal.SIGHUP)],
)
def test_ctrl_c_and_a_closed_terminal_save_and_say_how_to_resume(agent, asked, tmp_path):
    folder = tmp_path / "my run"
    command = [sys.executable, "-m", "supple.cli", "train", "toy/lqr", "--run-dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [*command, *flags(agent), "--env-steps", "1000000", "--compute.compile", "off"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    wait_for_rows(run, folder)
    run.send_signal(asked)
    time.sleep(0.01)  # as a terminal and a program in between may both do
    run.send_signal(asked)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 3
    assert f"supple resume '{folder}'" in out
    assert out.splitlines()[-1] == str(folder)
    found, _ = launch.newest_resumable(folder)
    assert found.header["env_steps"] > 0


def test_a_stop_of_the_whole_process_group_saves_with_worker_processes(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "supple.cli", "train", "gym/Pendulum-v1", *flags()]
    own = ["--run-dir", str(folder), "--env.vectorization", "async", "--compute.compile", "off"]
    run = subprocess.Popen(
        [*command, *own, "--env-steps", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_rows(run, folder)
    os.killpg(run.pid, signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 3, err
    assert out.splitlines()[-1] == str(folder)
    assert launch.newest_resumable(folder)[0].header["env_steps"] > 0
    with pytest.raises(ProcessLookupError):  # nobody is left behind
        os.killpg(run.pid, 0)


def test_a_second_ctrl_c_stops_at_once_and_says_what_there_is(agent, tmp_path, monkeypatch, capsys):
    def twice(run):
        run.start()
        run._request_stop(signal.SIGINT, None)
        monkeypatch.setattr("supple.run.SAME_REQUEST_S", 0.0)
        run._request_stop(signal.SIGINT, None)

    monkeypatch.setattr("supple.train.train", twice)
    folder = tmp_path / "run"
    assert main(["train", "toy/lqr", "--run-dir", str(folder), *flags(agent)]) == 1
    said = capsys.readouterr().err
    assert "stopped at once; no checkpoint yet, it starts again" in said
    assert said.count("\n") == 1


def test_a_run_may_be_started_from_another_thread(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_whole, small_settings("toy/lqr", tmp_path / "run", env_steps=100))
        run.result()


def test_thread_count_is_part_of_what_must_match(agent, tmp_path, capsys):
    folder = tmp_path / "run"
    run_until(small_settings("toy/lqr", folder, env_steps=200, agent=agent), 100)
    threads = torch.get_num_threads()
    settings = read_settings(folder)
    settings.threads = threads + 1
    (folder / "settings.json").write_text(launch.as_text(settings))
    try:
        finish(launch.resumed_run(folder))
    finally:
        torch.set_num_threads(threads)
    assert f"not bit-exact: threads {threads} -> {threads + 1}" in capsys.readouterr().out


@pytest.mark.parametrize("critic", ["scalar", "flow", "flow_official"])
def test_every_critic_trains_stops_and_resumes_with_the_same_bits(tmp_path, critic):
    def settings_of(name):
        settings = small_settings("toy/lqr", tmp_path / name, env_steps=120)
        settings.agent.critic = critic
        flow = settings.agent.flow
        flow.width, flow.target_samples, flow.train_samples = 8, 2, 3
        flow.readout = "distilled" if critic == "flow_official" else "integrate"
        return settings

    whole = run_whole(settings_of("whole"))
    run_until(settings_of("cut"), 80)
    again = finish(launch.resumed_run(tmp_path / "cut"))
    assert deterministic_rows(again.folder) == deterministic_rows(whole.folder)
