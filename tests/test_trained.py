"""Looking at a trained run: eval and play, from anywhere and on any machine."""

import json
import shutil

import pytest
import torch

from supple import checkpoint, launch
from supple.checkpoint import list_checkpoints
from supple.cli import BAD_INPUT, DONE, FAILED, main
from supple.envs.toy import Counter
from supple.evaluate import evaluate
from supple.files import claim
from supple.rng import Generators
from tests.small_runs import finish, run_until, small_settings


@pytest.fixture(scope="module")
def stopped(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_until(small_settings("toy/lqr", folder, env_steps=100, agent=agent), 60)
    return folder


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "copy")


def error_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_eval_works_inside_a_checkpoint_folder(stopped, monkeypatch, capsys):
    monkeypatch.chdir(list_checkpoints(stopped)[0])
    assert main(["eval", ".", "--episodes", "1", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["env_steps"] == 60


@pytest.mark.parametrize("record", ["{}", "[]", '{"action": 3}'])
def test_a_damaged_spec_is_refused_in_one_line(copy, record, capsys):
    (copy / "spec.json").write_text(record)
    assert main(["eval", str(copy)]) == BAD_INPUT
    assert f"{copy / 'spec.json'} is damaged" in error_line(capsys)


def test_a_missing_spec_is_not_called_damaged(copy, capsys):
    (copy / "spec.json").unlink()
    assert main(["eval", str(copy)]) == BAD_INPUT
    assert f"expected {copy / 'spec.json'}" in error_line(capsys)


def test_a_video_that_cannot_be_written_is_refused_before_filming(copy, monkeypatch, capsys):
    monkeypatch.setattr("supple.evaluate.make_env", lambda *_, **__: pytest.fail("filmed"))
    folder = copy / "folder.mp4"
    folder.mkdir()
    assert main(["play", str(copy), "--video", str(folder)]) == BAD_INPUT
    assert "it is a folder" in error_line(capsys)
    assert main(["play", str(copy), "--video", str(copy / "spec.json" / "a.mp4")]) == BAD_INPUT
    assert "cannot write" in error_line(capsys)


def test_a_task_that_cannot_be_drawn_leaves_no_file(copy, tmp_path, capsys):
    assert main(["play", str(copy), "--video", str(tmp_path / "a.mp4")]) == BAD_INPUT
    assert not list(tmp_path.glob("*.mp4"))
    assert not list(tmp_path.glob(".partial*"))


# --- another device --------------------------------------------------------------------------


@pytest.fixture
def from_cuda(copy, agent, monkeypatch):
    """A run as a machine with CUDA leaves it: that device, its flags, its generators' states."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    settings = launch.read_settings(copy)
    settings.device = "cuda:1"
    settings.compute.precision, settings.compute.cuda_graphs = "tf32", True
    settings.replay.spill = agent == "flashsac"
    (copy / "settings.json").write_text(launch.as_text(settings))
    found = checkpoint.load(list_checkpoints(copy)[0])
    for state in (found.state["agent"]["generators"]["streams"], found.state["env"]):
        for name in ("exploration", "policy", "replay", "generator"):
            if name in state:
                state[name] = torch.arange(16, dtype=torch.uint8)
    checkpoint.save(copy, 60, found.header, found.state)
    return copy


def test_a_run_from_a_gpu_is_evaluated_on_the_cpu_and_says_so_once(from_cuda, capsys):
    assert main(["eval", str(from_cuda), "--episodes", "1", "--json"]) == DONE
    assert error_line(capsys) == "supple: no cuda:1 here, using the CPU"
    assert main(["eval", str(from_cuda), "--episodes", "1", "--device", "cpu"]) == DONE
    assert capsys.readouterr().err == ""
    assert main(["eval", str(from_cuda), "--device", "cuda"]) == BAD_INPUT
    assert "--device cuda: this machine has 0" in error_line(capsys)


def test_a_run_from_a_gpu_is_continued_on_the_cpu_and_keeps_its_settings(from_cuda, capsys):
    finish(launch.resumed_run(from_cuda, 120))
    assert launch.read_settings(from_cuda).device == "cuda:1"
    assert launch.read_settings(from_cuda).env_steps == 120


def test_streams_of_another_kind_of_device_begin_anew_from_where_they_were():
    def draw(last):
        generators = Generators(0, torch.device("cpu"))
        state = torch.tensor([1, 2, last], dtype=torch.uint8)
        generators.load_state_dict({"seed": 0, "streams": {"a": state}})
        return torch.rand((), generator=generators["a"])

    assert draw(3) == draw(3) != draw(4)


# --- evaluation ------------------------------------------------------------------------------


class SucceedsAtFirst(Counter):
    """Reports success in its first episode only, and no flag at all afterwards."""

    resets = 0

    def reset(self, seed=None):
        self.resets += 1
        return super().reset(seed)

    def step(self, action):
        result = super().step(action)
        if self.resets == 1:
            result["success"] = torch.ones_like(result["valid"])
        return result


def test_every_round_counts_in_the_success_rate():
    env = SucceedsAtFirst(1, torch.device("cpu"))
    zeros = torch.zeros(1, env.spec.action.size)
    found = evaluate(lambda: lambda obs: zeros, env, episodes=4, seed=0)
    assert (found.success_once, found.success_end) == (0.25, 0.25)


# --- interrupts ------------------------------------------------------------------------------


def test_ctrl_c_speaks_of_checkpoints_only_in_training(copy, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("supple.evaluate.evaluate", interrupt)
    assert main(["eval", str(copy)]) == FAILED
    assert error_line(capsys) == "supple: error: stopped"
    monkeypatch.setattr("supple.train.train", interrupt)
    assert main(["resume", str(copy)]) == FAILED
    assert f"the last checkpoint is intact: supple resume {copy}" in error_line(capsys)


def test_a_refused_resume_gives_the_folder_back(copy):
    with pytest.raises(ValueError, match="--env-steps must be >= 1") as caught:
        launch.resumed_run(copy, -5)
    (copy / "checkpoints").rename(copy / "elsewhere")
    (copy / "checkpoints" / "step_60").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no checkpoint to resume from") as caught:
        launch.resumed_run(copy)
    claim(copy).close()
    del caught
