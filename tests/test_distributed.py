"""Runs of several processes: one writer, one set of networks, and an end for all of them."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from supple import checkpoint, distributed, launch, machine
from supple.agents import PPO, FlashSAC
from supple.build import build
from supple.cli import BAD_INPUT, DONE, FAILED, RESUMABLE, main
from supple.errors import InputError
from supple.metrics import read_csv
from supple.world import World, from_environment
from tests.small_runs import deterministic_rows, finish, flags, one_line, run_whole, small_settings
from tests.small_worlds import PATIENCE, child, free_port, in_processes, start, statuses, variables

STEPS, EVERY = 160, 16
RANK_STATE = {"flashsac": FlashSAC.rank_state, "ppo": PPO.rank_state}


pytestmark = pytest.mark.usefixtures("one_thread")


def command(folder, agent="ppo", steps=STEPS, *more):
    sizes = ["--env-steps", str(steps), "--checkpoint.every", str(EVERY), "--log.every", str(EVERY)]
    own = ["--run-dir", str(folder), "--eval.every", str(STEPS), "--threads", "1"]
    return ["train", "toy/lqr", *flags(agent), *sizes, *own, *more]


@pytest.fixture(scope="module")
def whole(agent, tmp_path_factory):
    """The folder of a run of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp(agent) / "run"
    processes = start(2, command(folder, agent), folder.parent / "out")
    assert statuses(processes) == [DONE, DONE]
    return folder


def said(folder, rank):
    return (folder.parent / "out" / f"{rank}.txt").read_text()


def until_saved(folder, steps, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not any(
        checkpoint.step_of(path) >= steps for path in checkpoint.list_checkpoints(folder)
    ):
        assert time.monotonic() < deadline, f"{folder} has no checkpoint of {steps} steps"
        time.sleep(0.002)


# --- one run ----------------------------------------------------------------------------------


def test_the_first_process_alone_writes_and_speaks(whole):
    own = {path.name for path in (whole / "ranks" / "1").iterdir()}
    assert own == {".lock", "checkpoints", "replay"}
    assert len(list(whole.glob("events*"))) == 1
    assert "2 environments in each of 2 processes" in said(whole, 0)
    assert said(whole, 1) == ""


def test_what_ails_another_process_ring_is_said_by_it(tmp_path, capfd):
    """The first judges its own rows: it knows nothing of the others'."""

    def work():
        run = launch.new_run(small_settings("toy/lqr", tmp_path / "run", env_steps=STEPS))
        if not distributed.world().first:
            run.replay._final_evicted.fill_(3)
        finish(run)
        return {}

    in_processes(2, work, tmp_path)
    said = [line for line in capfd.readouterr().err.splitlines() if "lost their final" in line]
    assert len(said) == 1, "once, and by one process"
    assert said[0].startswith("supple: process 1: 3 truncated rows lost their final observation")


def test_a_bad_row_of_another_process_is_said_and_kept_by_it(tmp_path, capfd, monkeypatch):
    folder = tmp_path / "run"

    def work():
        run = launch.new_run(small_settings("toy/lqr", folder, env_steps=STEPS))
        real = run.env.step

        def spoilt(action):
            step = real(action)
            if not distributed.world().first and run.env_steps == STEPS // 2:
                step["reward"][0] = torch.nan
            return step

        monkeypatch.setattr(run.env, "step", spoilt)
        finish(run)
        return {}

    in_processes(2, work, tmp_path)
    lines = [line for line in capfd.readouterr().err.splitlines() if "quarantined" in line]
    assert all(line.startswith("supple: process 1: quarantined ") for line in lines)
    kept = min((folder / "ranks" / "1" / "nan" / "rows" / "checkpoints").glob("step_*"))
    assert lines[0].endswith(f"supple doctor --nan-dump {kept}")
    assert not (folder / "nan").exists()


def test_environment_steps_count_all_processes(whole):
    steps = read_csv(whole / "metrics.csv")["step"]
    assert steps[-1] == STEPS
    first, other = (checkpoint.load(path) for path in parts(whole))
    assert first.state["run"]["vector_steps"] == other.state["run"]["vector_steps"] == STEPS / 4


def test_a_row_says_where_the_time_of_each_process_went(whole):
    columns = read_csv(whole / "metrics.csv")
    for process in ("time", "time/rank1"):
        for part in ("simulator_share", "learning_share"):
            assert all(share and 0 < share < 1 for share in columns[f"{process}/{part}"])
    assert "time/rank2/learning_share" not in columns


def parts(folder, steps=STEPS):
    return [base / "checkpoints" / f"step_{steps}" for base in (folder, folder / "ranks" / "1")]


def test_every_process_has_its_own_environments_and_numbers(whole):
    first, other = (checkpoint.load(path).state for path in parts(whole))
    assert not torch.equal(first["obs"]["policy"], other["obs"]["policy"])
    for name, stream in first["agent"]["generators"]["streams"].items():
        same = torch.equal(stream, other["agent"]["generators"]["streams"][name])
        assert same == (name in ("weights", "remedy")), name


def test_networks_are_saved_once(whole, agent):
    _, other = (checkpoint.load(path).state for path in parts(whole))
    assert set(other["agent"]) == set(RANK_STATE[agent])


# --- ends -------------------------------------------------------------------------------------


def disturbed(agent, folder, disturb):
    """Start it, disturb it after some checkpoints; the statuses, and how long the end took [s]."""
    processes = start(2, command(folder, agent, STEPS, "--max-minutes", "2"), folder.parent / "out")
    until_saved(folder, 3 * EVERY)
    began = time.monotonic()
    disturb(processes)
    return statuses(processes), time.monotonic() - began


def resumes_as_if_nothing_had_been(folder, whole):
    assert statuses(start(2, ["resume", str(folder)], folder.parent / "out")) == [DONE, DONE]
    assert "bit-exact" in said(folder, 0)
    assert deterministic_rows(folder) == deterministic_rows(whole)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_resumes(whole, agent, killed, tmp_path):
    folder = tmp_path / "run"
    found, seconds = disturbed(agent, folder, lambda all_: os.kill(all_[killed], signal.SIGKILL))
    assert found[killed] == -signal.SIGKILL
    assert found[1 - killed] == FAILED
    assert seconds < 30
    error = f"process {killed} of 2 ended before the others; checkpoints are whole: continue with"
    assert error in said(folder, 1 - killed)
    assert "Traceback" not in said(folder, 1 - killed)
    resumes_as_if_nothing_had_been(folder, whole)


def test_a_process_told_to_stop_stops_all_and_the_run_resumes(whole, agent, tmp_path):
    folder = tmp_path / "run"
    found, _ = disturbed(agent, folder, lambda all_: os.kill(all_[1], signal.SIGTERM))
    assert found == [RESUMABLE, RESUMABLE]
    assert "continue: torchrun --nproc-per-node=2 -m supple resume" in said(folder, 0)
    resumes_as_if_nothing_had_been(folder, whole)


def test_a_process_busy_elsewhere_ends_too(tmp_path):
    """In an evaluation, say: no sum tells it that the other is gone."""
    port = free_port()

    def work():
        distributed.join(torch.device("cpu"))
        (tmp_path / str(distributed.world().rank)).touch()
        time.sleep(60)
        return DONE

    processes = [child(variables(rank, 2, port), work) for rank in range(2)]
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    began = time.monotonic()
    os.kill(processes[1], signal.SIGKILL)
    assert statuses(processes) == [FAILED, -signal.SIGKILL]
    assert time.monotonic() - began < 10


def test_processes_that_end_one_after_another_part_in_peace(tmp_path):
    def work():
        time.sleep(0.3 * distributed.world().rank)
        return {}

    in_processes(3, work, tmp_path)


# --- resuming ---------------------------------------------------------------------------------


def copied(whole, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", str(whole), str(folder)], check=True)
    (folder / "result.json").unlink()
    return folder


def test_all_go_back_to_the_newest_checkpoint_whole_in_all(whole, tmp_path):
    folder = copied(whole, tmp_path)
    damaged = parts(folder)[1] / "manifest.json"
    damaged.write_text(damaged.read_text().replace("step", "stop", 1))
    assert statuses(start(2, ["resume", str(folder)], tmp_path / "out")) == [DONE, DONE]
    assert f"at {STEPS - EVERY} env steps, bit-exact" in said(folder, 0)
    assert "process 1 skipped" in said(folder, 1)
    assert deterministic_rows(folder) == deterministic_rows(whole)


def test_one_that_resumes_on_another_processor_holds_nobody_up(tmp_path, capfd):
    """It times anew what ``auto`` is there, and the others with it."""
    folder, port = tmp_path / "run", free_port()
    again = command(folder, "ppo", EVERY, "--compute.precision", "auto")
    assert statuses(start(2, again, tmp_path / "out")) == [DONE, DONE]

    def work():
        if os.environ["RANK"] == "1":
            machine.model_name = lambda device: "another"
        return main(["resume", str(folder), "--env-steps", str(2 * EVERY)])

    processes = [child(variables(rank, 2, port), work) for rank in range(2)]
    assert statuses(processes, patience=60) == [DONE, DONE]
    said = " ".join(capfd.readouterr().out.split())
    assert f"at {EVERY} env steps, not bit-exact: another process computes otherwise" in said


def test_another_number_of_processes_is_refused(whole, capsys):
    assert main(["resume", str(whole)]) == BAD_INPUT
    assert one_line(capsys) == (
        f"supple: error: {whole} was trained by 2 processes, each with its share of the replay"
        f" rows, now there are 1: continue with torchrun --nproc-per-node=2 -m supple resume"
        f" {whole}, or on several machines as then"
    )


def test_several_processes_do_not_go_on_with_what_one_trained(tmp_path, monkeypatch, capsys):
    folder = run_whole(small_settings("toy/lqr", tmp_path / "run", env_steps=4, agent="ppo")).folder
    capsys.readouterr()
    for name, value in variables(0, 2, 1234).items():
        monkeypatch.setenv(name, value)
    assert main(["resume", str(folder)]) == BAD_INPUT
    assert one_line(capsys) == (
        f"supple: error: {folder} was trained by one process, now there are 2: continue with"
        f" python -m supple resume {folder}"
    )


def test_a_restarted_run_continues_in_its_folder(whole, agent, tmp_path):
    folder = copied(whole, tmp_path)
    again = command(folder, agent)
    # Machines count for themselves: one that has only seen another one come back counts none.
    restarted = {"TORCHELASTIC_RESTART_COUNT": ("0", "1"), "TORCHELASTIC_MAX_RESTARTS": "3"}
    assert statuses(start(2, again, tmp_path / "out", **restarted)) == [DONE, DONE]
    assert f"at {STEPS} env steps" in said(folder, 0)
    found = statuses(start(2, again, tmp_path / "out"))
    assert found[0] == BAD_INPUT
    assert "already holds a run" in said(folder, 0)
    ended = "supple: error: process 1: process 0 of 2 ended before the others; see what it said\n"
    assert said(folder, 1) == ended


def test_a_restarted_command_leaves_another_run_alone(whole, agent, tmp_path, monkeypatch, capsys):
    """Torchrun also starts again what was refused because its folder was taken."""
    folder = copied(whole, tmp_path)
    before = (folder / "metrics.csv").read_bytes()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main([*command(folder, agent), "--seed", "1"]) == BAD_INPUT
    assert f"{folder} already holds a run: continue it with" in one_line(capsys)
    assert (folder / "metrics.csv").read_bytes() == before


def test_processes_may_have_gpus_of_their_own(monkeypatch):
    seen = []
    monkeypatch.setattr(distributed, "require_same", lambda tree, *_: seen.append(tree))
    settings = small_settings("toy/lqr", Path("run"), env_steps=100)
    agent = build(settings)[1]
    for device in ("cuda:0", "cuda:1", "auto"):
        launch._require_same(replace(settings, device=device), agent)
    assert seen[0] == seen[1] != seen[2]


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 2, but MASTER_ADDR not set: start with torchrun"),
        ({"RANK": ""}, "WORLD_SIZE is 2, but RANK not set"),
        ({"RANK": "2"}, "the variable RANK must be a whole number from 0 to 1, got '2'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number >= 1, got 'two'"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT must be a whole number from 1 to 65535, got '0'"),
    ],
)
def test_variables_that_make_no_sense_are_refused(changes, error, monkeypatch, capsys):
    for name, value in {**variables(0, 2, 1234), **changes}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "toy/lqr"]) == BAD_INPUT
    assert error in one_line(capsys)


def test_one_process_is_what_it_always_was(monkeypatch):
    for name, value in variables(0, 1, 1234).items():
        monkeypatch.setenv(name, value)
    assert from_environment() == World()
    assert distributed.join(torch.device("cpu")) == World()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("arguments", "more", "error"),
    [
        (["eval", "somewhere"], {}, "supple eval is the work of one process"),
        (["train", "toy/lqr", "--device", "cuda"], {}, "--device cuda: this machine has 0 CUDA"),
        (["train", "toy/lqr", "--seeed", "1"], {}, "unknown flag --seeed"),
        (["train", "toy/lqr"], {"TORCHELASTIC_MAX_RESTARTS": "3"}, "name it with --run-dir"),
    ],
)
def test_what_cannot_work_is_refused_before_the_processes_meet(
    arguments, more, error, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name, value in {**variables(0, 2, 1234), **more}.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == BAD_INPUT
    assert error in one_line(capsys)


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    from supple.machine import resolve_device

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in variables(1, 4, 1234).items():
        monkeypatch.setenv(name, value)
    assert resolve_device("cuda") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="each of 4 processes takes a GPU of its own, this one"):
        resolve_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="needs a GPU of its own, there are 2"):
        resolve_device("cuda")


def test_processes_with_other_settings_are_refused(tmp_path):
    folder = tmp_path / "run"
    commands = {0: command(folder), 1: command(folder, "ppo", STEPS, "--seed", "1")}
    found = statuses(start(2, commands, tmp_path / "out"))
    assert BAD_INPUT in found and DONE not in found
    texts = said(folder, 0) + said(folder, 1)
    assert "process 1 of 2 has other settings, or another way to compute, than process 0" in texts
    assert not folder.exists()


# --- torchrun itself --------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_restarts_what_was_killed_and_the_run_goes_on(tmp_path):
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    there = ["--max-restarts=1", f"--master-port={free_port()}", "-m", "supple"]
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*torchrun, *there, *command(folder, "ppo", 320)], stdout=output, stderr=output
        )
        try:
            until_saved(folder, 3 * EVERY)
            os.kill(worker(folder), signal.SIGKILL)
            assert process.wait(PATIENCE) == DONE
        finally:
            process.terminate()
    text = (tmp_path / "output.txt").read_text()
    assert re.search(r"resumed .*, bit-exact", text)
    assert read_csv(folder / "metrics.csv")["step"][-1] == 320


def worker(folder: Path):
    """The process that holds the lock of the second one's folder."""
    place = (folder / "ranks" / "1" / ".lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        if line.split()[5].endswith(f":{place}"):
            return int(line.split()[4])
    raise AssertionError(f"nobody holds {folder}/ranks/1/.lock")
