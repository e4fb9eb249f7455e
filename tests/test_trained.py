"""Looking at a trained run: eval and play, from anywhere and on any machine."""

import json
import shutil

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from supple import checkpoint, launch
from supple.checkpoint import list_checkpoints
from supple.cli import BAD_INPUT, DONE, FAILED, VERDICT, main
from supple.envs.toy import Counter
from supple.evaluate import evaluate, evaluation_envs
from supple.files import claim
from supple.rng import Generators
from supple.trained import read_settings
from tests.small_runs import finish, one_line, run_until, run_whole, small_settings


@pytest.fixture(scope="module")
def stopped(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_until(small_settings("toy/lqr", folder, env_steps=100, agent=agent), 60)
    return folder


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "copy")


def test_eval_works_inside_a_checkpoint_folder(stopped, monkeypatch, capsys):
    monkeypatch.chdir(list_checkpoints(stopped)[0])
    assert main(["eval", ".", "--episodes", "1", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["env_steps"] == 60


@pytest.mark.parametrize("record", ["{}", "[]", '{"action": 3}'])
def test_a_damaged_spec_is_refused_in_one_line(copy, record, capsys):
    (copy / "spec.json").write_text(record)
    assert main(["eval", str(copy)]) == BAD_INPUT
    assert f"{copy / 'spec.json'} is damaged" in one_line(capsys)


def test_a_missing_spec_is_not_called_damaged(copy, capsys):
    (copy / "spec.json").unlink()
    assert main(["eval", str(copy)]) == BAD_INPUT
    assert f"expected {copy / 'spec.json'}" in one_line(capsys)


def test_a_video_that_cannot_be_written_is_refused_before_filming(copy, monkeypatch, capsys):
    monkeypatch.setattr("supple.evaluate.make_env", lambda *_, **__: pytest.fail("filmed"))
    folder = copy / "folder.mp4"
    folder.mkdir()
    assert main(["play", str(copy), "--video", str(folder)]) == BAD_INPUT
    assert "it is a folder" in one_line(capsys)
    assert main(["play", str(copy), "--video", str(copy / "spec.json" / "a.mp4")]) == BAD_INPUT
    assert "cannot write" in one_line(capsys)


@pytest.mark.parametrize(
    "task", ["toy/lqr", "envpool/Pendulum-v1", "isaaclab/Isaac-Cartpole-Direct"]
)
def test_a_task_that_cannot_be_drawn_is_not_built_and_leaves_no_file(
    copy, task, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("supple.evaluate.make", lambda *_, **__: pytest.fail("built"))
    video = str(tmp_path / "a.mp4")
    assert main(["play", str(copy), "--task", task, "--video", video]) == BAD_INPUT
    said = f"cannot film {task}: {task.partition('/')[0]}/ has no picture to draw"
    assert said in one_line(capsys)
    assert not list(tmp_path.glob("*.mp4"))
    assert not list(tmp_path.glob(".partial*"))


# --- another device --------------------------------------------------------------------------


@pytest.fixture
def from_cuda(copy, agent, monkeypatch):
    """A run as a machine with CUDA leaves it: that device, its flags, its generators' states."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    settings = read_settings(copy)
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
    assert capsys.readouterr().err == "supple: no cuda:1 here, using the CPU\n"
    assert main(["eval", str(from_cuda), "--episodes", "1", "--device", "cpu"]) == DONE
    assert capsys.readouterr().err == ""
    assert main(["eval", str(from_cuda), "--device", "cuda"]) == BAD_INPUT
    assert "--device cuda: this machine has 0" in one_line(capsys)


def test_a_run_from_a_gpu_is_continued_on_the_cpu_and_keeps_its_settings(from_cuda, capsys):
    finish(launch.resumed_run(from_cuda, 120))
    assert read_settings(from_cuda).device == "cuda:1"
    assert read_settings(from_cuda).env_steps == 120


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


class Shown(Counter):
    """Keeps what would be drawn: steps in the episode, and its number."""

    def reset(self, seed=None):
        result = super().reset(seed)
        self.shown = result["observation", "policy"][:, [1, 3]].tolist()
        return result

    def step(self, action):
        result = super().step(action)
        self.shown = result["observation", "policy"][:, [1, 3]].tolist()
        return result


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_a_film_shows_nothing_of_the_episode_after_the_last(autoreset):
    env = Shown(2, torch.device("cpu"), autoreset=autoreset)
    zeros, drawn = torch.zeros(2, env.spec.action.size), []
    evaluate(lambda: lambda obs: zeros, env, episodes=4, on_step=lambda: drawn.append(env.shown[1]))
    # Two rounds; environment 1 runs for five steps, environment 0 for one.
    assert drawn == 2 * [[step, 0] for step in range(5)]


# --- the best checkpoint ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def fell(tmp_path_factory):
    """A run with a checkpoint every 40 steps, whose return rose twice to the same and fell."""
    folder = tmp_path_factory.mktemp("runs") / "fell"
    settings = small_settings("toy/lqr", folder, env_steps=160, agent="ppo")
    settings.checkpoint.every = 40
    run_whole(settings)
    (folder / "metrics.csv").write_text(
        "step,eval/return_mean\n40,-9.0\n80,-2.5\n100,\n120,-2.5\n160,-7.0\n"
    )
    return folder


def test_the_best_checkpoint_is_taken_wherever_a_run_is(fell, tmp_path, capsys):
    assert main(["eval", str(fell), "--best", "--episodes", "1", "--json"]) == DONE
    said = capsys.readouterr()
    assert json.loads(said.out)["env_steps"] == 120
    best = fell / "checkpoints" / "step_120"
    assert said.err.splitlines() == [f"supple: best evaluation -2.5, of {best}"]
    bundle = str(tmp_path / "bundle")
    assert main(["export", str(fell), "--best", "--no-zip", "--out", bundle]) == DONE
    check = ["verify", bundle, "--no-latency", "--episodes", "0"]
    assert main([*check, "--run", str(fell), "--best"]) == DONE
    assert main([*check, "--run", str(fell)]) == VERDICT  # the newest one acts otherwise
    assert main(["play", str(fell), "--best", "--video", str(tmp_path / "a.mp4")]) == BAD_INPUT
    assert str(best) in capsys.readouterr().err  # toy/lqr has no picture to draw


def test_a_best_checkpoint_that_is_not_kept_is_refused_with_those_that_are(fell, tmp_path, capsys):
    run = shutil.copytree(fell, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_120")
    assert main(["eval", str(run), "--best"]) == BAD_INPUT
    error = one_line(capsys)
    assert "the best evaluation, -2.5, was at step 120, of which no checkpoint is kept" in error
    assert error.endswith("instead of --best: step_40, step_80, step_160")
    (run / "metrics.csv").unlink()
    assert main(["eval", str(run), "--best"]) == BAD_INPUT
    assert "has no evaluation to tell its best checkpoint by" in one_line(capsys)
    assert main(["eval", str(tmp_path), "--best"]) == BAD_INPUT
    assert "holds no run" in one_line(capsys)
    assert main(["verify", str(run), "--best"]) == BAD_INPUT
    assert "--best chooses among the checkpoints of --run" in one_line(capsys)


# --- in another environment ------------------------------------------------------------------


class Reached(gymnasium.Env):
    """Numbers of the shape of toy/lqr's; every episode succeeds at its third of four steps."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-2, 2, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        found = {"success": self.steps == 3}
        return np.zeros(2, np.float32), 0.5, False, self.steps == 4, found


def test_a_policy_is_evaluated_in_another_task_of_the_same_interface(stopped, capsys):
    task = ["eval", str(stopped), "--task", f"{__name__}:Reached", "--episodes", "3"]
    assert main([*task, "--json"]) == DONE
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["return_mean"], found["success_once"], found["success_end"]) == (2.0, 1.0, 0.0)
    assert f"action 0 spans [-2.0, 2.0] in {__name__}:Reached, [-4.0, 4.0] in toy/lqr" in said.err
    assert main(task) == DONE
    assert "100% of episodes, 0% at the last step" in capsys.readouterr().out


class Loud(Reached):
    """Prints as it is built and as it is stepped."""

    def __init__(self):
        print("launched")

    def step(self, action):
        print("kernel loaded")
        return super().step(action)


def test_what_a_simulator_prints_is_no_part_of_the_json_line(stopped, capsys):
    assert main(["eval", str(stopped), "--task", f"{__name__}:Loud", "--json"]) == DONE
    said = capsys.readouterr()
    assert json.loads(said.out)["return_mean"] == 2.0
    assert {"launched", "kernel loaded"} <= set(said.err.splitlines())


def test_env_flags_change_where_a_policy_is_evaluated(stopped, capsys):
    def returns(*flags):
        assert main(["eval", str(stopped), "--episodes", "2", "--json", *flags]) == DONE
        return json.loads(capsys.readouterr().out)["return_mean"]

    own = returns()
    assert own == returns("--env.obs-noise", "0") != returns("--env.obs-noise", "1")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--env.history", "2"], "toy/lqr has observation policy 4 and 1 actions, the policy was"),
        (["--task", "toy/counter"], "toy/counter has observation policy 4 and 1 actions"),
        (["--task", "toy/lqrr"], "unknown task toy/lqrr; did you mean toy/lqr?"),
        (["--env.histori", "2"], "unknown flag --env.histori; did you mean --env.history?"),
    ],
)
def test_where_a_policy_cannot_act_is_refused_in_one_line(stopped, flags, text, capsys):
    assert main(["eval", str(stopped), *flags]) == BAD_INPUT
    assert text in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--agent.gamma", "0.5"], "unrecognized arguments: --agent.gamma; see supple COMMAND --h"),
        (["other"], "only flags after supple COMMAND DIR, got other; see supple COMMAND --help"),
        (["--env.obs-noise", "0", "other"], "only flags after supple COMMAND DIR, got other"),
        (["--env.zzzzzzzzzz", "1"], "unknown flag --env.zzzzzzzzzz; see supple COMMAND --help"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "play"])
def test_what_is_no_flag_there_is_refused_by_the_commands_name(
    stopped, command, flags, text, capsys
):
    assert main([command, str(stopped), *flags]) == BAD_INPUT
    assert text.replace("COMMAND", command) in one_line(capsys)


@pytest.mark.parametrize("command", ["eval", "play"])
def test_a_flags_value_is_not_taken_for_the_folder(stopped, command, capsys):
    assert main([command, "--env.obs-noise", "0", str(stopped)]) == BAD_INPUT
    said = f"DIR comes before --env. flags: supple {command} DIR [flags]"
    assert said in one_line(capsys)


def test_as_many_environments_evaluate_on_a_gpu_as_train_there(stopped, monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert evaluation_envs(4096, cuda, 100) == 100
    assert evaluation_envs(64, cuda, 100) == 64
    assert evaluation_envs(1, cuda, 100) == 10
    assert evaluation_envs(1, cpu, 100) == 10
    asked = []

    def count(num_envs, device, episodes):
        asked.append((num_envs, device, episodes))
        return 3

    monkeypatch.setattr("supple.evaluate.evaluation_envs", count)
    assert main(["eval", str(stopped), "--episodes", "7", "--json"]) == DONE
    assert asked == [(2, cpu, 7)]


# --- interrupts ------------------------------------------------------------------------------


def test_ctrl_c_speaks_of_checkpoints_only_in_training(copy, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("supple.evaluate.evaluate", interrupt)
    assert main(["eval", str(copy)]) == FAILED
    assert one_line(capsys) == "supple: error: stopped"
    monkeypatch.setattr("supple.train.train", interrupt)
    assert main(["resume", str(copy)]) == FAILED
    assert f"the last checkpoint is intact: supple resume {copy}" in one_line(capsys)


def test_a_refused_resume_gives_the_folder_back(copy):
    with pytest.raises(ValueError, match="--env-steps must be >= 1") as caught:
        launch.resumed_run(copy, -5)
    (copy / "checkpoints").rename(copy / "elsewhere")
    (copy / "checkpoints" / "step_60").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no checkpoint to resume from") as caught:
        launch.resumed_run(copy)
    claim(copy).close()
    del caught
