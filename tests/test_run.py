"""The edges of a run: its end, its folder, its schedule."""

import errno
import importlib.metadata
import json
import os
from pathlib import Path

import pytest
import torch

from supple import checkpoint, launch, machine, train
from supple.agents import FlashSAC
from supple.diagnostics.targets import load_targets
from supple.envs.registry import ADAPTERS, PACKAGES, packages_of
from supple.envs.toy import make_toy
from supple.errors import InputError, SimulatorError, say_once
from supple.files import cache_folder, claim
from supple.metrics import METRICS, read_csv
from supple.run import RESULT
from supple.trained import load_trained
from tests.small_runs import (
    assert_same,
    deterministic_rows,
    finish,
    newest_state,
    reached,
    result,
    run_until,
    run_whole,
    small_settings,
)


@pytest.fixture
def settings_of(agent, tmp_path):
    def made(**changes):
        settings = small_settings("toy/lqr", tmp_path / "run", env_steps=100, agent=agent)
        for name, value in changes.items():
            setattr(settings, name, value)
        return settings

    return made


def stop_in(run, method):
    """As Ctrl-C during the last call of a method of the run."""
    original = getattr(run, method)

    def stopped(*arguments):
        if run.env_steps >= run.settings.env_steps:
            run.stopped = True
        return original(*arguments)

    setattr(run, method, stopped)


@pytest.mark.parametrize("method", ["record", "evaluate", "save"])
def test_a_run_stopped_while_it_ends_is_complete(settings_of, method):
    run = launch.new_run(settings_of())
    stop_in(run, method)
    finish(run)
    assert run.complete
    assert result(run.folder)["env_steps"] == 100


def test_a_run_that_died_after_its_last_step_is_completed_by_resume(settings_of):
    run = run_whole(settings_of())
    expected = result(run.folder)
    (run.folder / RESULT).unlink()
    again = finish(launch.resumed_run(run.folder))
    assert result(run.folder)["return_mean"] == expected["return_mean"]
    assert again.complete
    steps = read_csv(run.folder / "metrics.csv")["step"]
    assert len(steps) == len(set(steps))
    with pytest.raises(InputError, match="already trained 100 of 100"):
        launch.resumed_run(run.folder)


def test_a_video_that_fails_costs_the_run_nothing(settings_of, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("supple.run.film", fail)
    settings = settings_of()
    settings.eval.video = True
    run = run_whole(settings)
    assert run.complete
    assert (run.folder / RESULT).exists()


@pytest.mark.parametrize(("env_steps", "log_every"), [(100, 2), (105, 15), (104, 100)])
def test_every_step_has_at_most_one_row_and_the_last_one_is_evaluated(
    settings_of, env_steps, log_every
):
    settings = settings_of(env_steps=env_steps)
    settings.log.every = log_every
    run = run_whole(settings)
    columns = read_csv(run.folder / "metrics.csv")
    assert len(columns["step"]) == len(set(columns["step"]))
    assert columns["eval/return_mean"][-1] is not None
    assert columns["critic/loss"][-1] is not None


def test_rows_that_are_not_valid_repeat_no_evaluation(agent, settings_of):
    settings = settings_of(env_steps=90)
    settings.env.num_envs = 2
    settings.eval.every = 20
    if agent == "flashsac":
        settings.agent.n_step = 1  # no window of three avoids every third row
    run = launch.new_run(settings)
    original, at = run.env.step, []  # type: ignore[var-annotated]

    def every_third_is_a_bridge(action):
        step = original(action)
        at.append(None)
        if len(at) % 3 == 0:
            step["valid"] = torch.zeros_like(step["valid"])
        return step

    run.env.step = every_third_is_a_bridge  # type: ignore[method-assign]
    evaluated = []
    evaluate = run.evaluate

    def count_evaluations():
        evaluated.append(run.env_steps)
        return evaluate()

    run.evaluate = count_evaluations  # type: ignore[method-assign]
    finish(run)
    late = [at - due for at, due in zip(evaluated, (20, 40, 60, 80, 90), strict=True)]
    assert all(0 <= each < reached(agent, 1) for each in late)


def test_a_simulator_without_valid_rows_ends_the_run(settings_of, monkeypatch):
    monkeypatch.setattr("supple.run.MOST_BRIDGES", 30)
    run = launch.new_run(settings_of(env_steps=200))
    original = run.env.step

    def stuck(action):
        step = original(action)
        step["valid"] &= run.env_steps < 100
        return step

    run.env.step = stuck  # type: ignore[method-assign]
    with pytest.raises(SimulatorError, match="none of the last 30 steps was valid"):
        finish(run)
    assert run.env_steps < 200


def test_a_simulator_that_returns_no_tensordict_is_named(settings_of):
    run = launch.new_run(settings_of())
    original = run.env.step
    run.env.step = lambda action: original(action).to_dict()  # type: ignore[method-assign]
    with pytest.raises(SimulatorError, match="step returned a dict, expected a TensorDict"):
        finish(run)


def test_evaluation_on_a_gpu_is_built_before_the_first_step(settings_of, monkeypatch):
    def refuse(*_, purpose, **__):
        raise SimulatorError(f"no memory for {purpose}")

    monkeypatch.setattr("supple.run.make_env", refuse)
    monkeypatch.setattr("supple.envs.registry.ON_GPU", ("toy",))
    run = launch.new_run(settings_of())
    with pytest.raises(SimulatorError, match="no memory for evaluation"):
        finish(run)
    assert run.env_steps == 0


def test_a_simulator_that_fails_on_resume_is_not_the_checkpoints_fault(settings_of, monkeypatch):
    run = launch.new_run(settings_of())
    finish(run)
    resumed = launch.resumed_run(run.folder, 2 * run.settings.env_steps)

    def fail(*_):
        raise SimulatorError("the worker died")

    for name in ("reset", "load_state_dict"):
        monkeypatch.setattr(resumed.env, name, fail)
    with pytest.raises(SimulatorError, match="the worker died"), resumed:
        resumed.start()


def test_a_resumed_run_says_every_commit_it_was_made_with(settings_of, monkeypatch):
    run = launch.new_run(settings_of())
    versions = run.folder / "versions.json"
    now = json.loads(versions.read_text())
    finish(run)
    for commit, expected in (("b", ["b"]), ("b", ["b"]), ("c", ["b", "c"])):
        monkeypatch.setattr("supple.machine.versions", lambda *_, c=commit: now | {"commit": c})
        resumed = launch.resumed_run(run.folder, 2 * run.settings.env_steps)
        resumed.__exit__(None, None, None)
        found = json.loads(versions.read_text())
        assert found == now | {"commit": ", ".join([now["commit"], *expected])}


def test_another_version_of_the_simulator_is_named_where_a_run_is_read(
    tmp_path, monkeypatch, capsys
):
    version = importlib.metadata.version

    def other(package):
        return "0.0.1" if package == "mujoco" else version(package)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", other)
        run_until(small_settings("gym/Pendulum-v1", folder, env_steps=100), 50)
        assert json.loads((folder / "versions.json").read_text())["mujoco"] == "0.0.1"
    says = f"supple: the simulator is another than in training: mujoco 0.0.1 -> {version('mujoco')}"
    load_trained(folder)
    load_trained(folder)
    assert capsys.readouterr().err.splitlines().count(says) == 1
    say_once.cache_clear()  # another command
    load_targets([folder], device="cpu")
    assert says in capsys.readouterr().err
    finish(launch.resumed_run(folder))
    assert f"not bit-exact: mujoco 0.0.1 -> {version('mujoco')}\n" in capsys.readouterr().out
    assert json.loads((folder / "versions.json").read_text())["mujoco"] == version("mujoco")


@pytest.mark.parametrize("task", ["dmc/dog-run", "genesis/go2-walk", "my_lab.robots:make"])
def test_the_packages_of_a_tasks_simulator_are_recorded(task, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: f"{package} 7")
    found = machine.versions(packages_of(task))
    (name,) = {"dm-control", "genesis-world", "my_lab"} & found.keys()
    assert found[name] == f"{name} 7"


def test_the_packages_of_every_simulator_are_known():
    assert PACKAGES.keys() == ADAPTERS.keys() - {"toy"}


def test_a_run_before_its_first_checkpoint_starts_again(settings_of):
    settings = settings_of()
    with launch.new_run(settings) as run:
        run.start()  # killed here
    resumed = finish(launch.resumed_run(run.folder))
    assert resumed.complete
    steps = [step or 0.0 for step in read_csv(run.folder / "metrics.csv")["step"]]
    assert steps == sorted(set(steps))


def test_a_folder_in_use_is_refused(settings_of):
    run = run_until(settings_of(), 50)
    with claim(run.folder), pytest.raises(InputError, match="in use by another supple process"):
        launch.resumed_run(run.folder)
    finish(launch.resumed_run(run.folder))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_of_somebody_else_is_refused_in_a_line(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(InputError, match=r"cannot write .*: .*; use an account that may, or copy"):
        claim(tmp_path)


def test_what_is_compiled_is_kept_where_an_account_has_no_home(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    assert cache_folder().name == "supple"


def test_a_simulation_that_no_checkpoint_holds_is_refused_before_the_first_step(
    settings_of, monkeypatch
):
    monkeypatch.setattr(checkpoint, "MOST_MANIFEST_BYTES", 100)
    with launch.new_run(settings_of()) as run, pytest.raises(InputError, match="num-envs"):
        run.start()


def test_runs_of_the_same_second_get_folders_of_their_own(settings_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    folders = []
    for _ in range(3):
        with launch.new_run(settings_of(run_dir="")) as run:
            folders.append(run.folder.name)
    assert folders == [f"20260101-000000-seed0{end}" for end in ("", "_2", "_3")]


@pytest.mark.parametrize("name", ["spec.json", "metrics.csv", "videos", "nan"])
def test_a_users_files_are_never_written_over(settings_of, tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds {name}, which a run would write over"):
        launch.new_run(settings_of())
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "mine"


def test_a_resume_from_an_older_checkpoint_puts_the_newer_ones_aside(settings_of):
    settings = settings_of()
    settings.checkpoint.every = 20
    run = run_until(settings, 60)
    newest = run.folder / "checkpoints" / "step_60"
    (newest / "manifest.json").write_text("{")
    finish(launch.resumed_run(run.folder))
    names = {path.name for path in (run.folder / "checkpoints").iterdir() if path.is_dir()}
    assert any(name.startswith("abandoned-step_60") for name in names)
    assert load_trained(run.folder).env_steps == 100


def test_a_folder_with_nothing_but_settings_starts_again(settings_of):
    with launch.new_run(settings_of()) as run:
        pass
    for name in ("spec.json", "versions.json"):  # killed between the first file and the second
        (run.folder / name).unlink()
    finish(launch.resumed_run(run.folder))
    assert load_trained(run.folder).env_steps == 100


def test_steps_never_fall_back_when_rows_turn_out_not_valid(agent, settings_of):
    """As on a GPU, where rows that are not valid are only known at a synchronisation."""
    run = run_until(settings_of(), 50)
    there = reached(agent, 50)
    run._invalid += 10
    run._synchronise()
    assert run.env_steps == there
    run.stopped = False
    run.save()
    again = launch.resumed_run(run.folder)
    with again.display, again:
        again.start()
        assert again.env_steps == there
    assert read_csv(run.folder / "metrics.csv")["step"][-1] == there


def test_films_are_made_at_intervals_and_change_nothing_else(settings_of, agent, monkeypatch):
    filmed = []
    monkeypatch.setattr("supple.run.film", lambda *given, **_: filmed.append(given[2].name))
    settings = settings_of()
    settings.eval.every, settings.eval.video_every = 20, 40
    folder = run_until(settings, 50).folder
    finish(launch.resumed_run(folder))
    # The 20th step has none yet; the last one's would be the final film, which is not asked for.
    assert filmed == [f"step_{reached(agent, step)}.mp4" for step in (40, 80)]
    filmed_rows = deterministic_rows(folder)
    settings = settings_of(run_dir=f"{folder}-unfilmed")
    settings.eval.every = 20
    assert deterministic_rows(run_whole(settings).folder) == filmed_rows
    assert len(filmed) == 2


def test_a_run_stopped_at_its_end_is_not_filmed(settings_of, monkeypatch):
    filmed = []
    monkeypatch.setattr("supple.run.film", lambda *_, **__: filmed.append(1))
    settings = settings_of()
    settings.eval.video = True
    run = launch.new_run(settings)
    stop_in(run, "evaluate")
    finish(run)
    assert (run.folder / RESULT).exists()
    assert not filmed


def test_updates_may_come_in_bouts(tmp_path):
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=400, n_step=3)
    settings.agent.update_every = 8
    run = launch.new_run(settings)
    assert isinstance(run.agent, FlashSAC)
    at = []
    learn = run.agent.learn

    def noting(*arguments):
        at.append(run.env_steps)
        return learn(*arguments)

    run.agent.learn = noting  # type: ignore[method-assign]
    finish(run)
    # Two environments, half a gradient step for each of their steps, once 40 rows are there.
    assert at == [step for step in range(48, 401, 16) for _ in range(8)]


def test_the_last_row_keeps_its_episodes_where_the_final_evaluation_comes_late(agent, tmp_path):
    """A kill after the last save, before ``result.json``: evaluated again, the row stays whole."""
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=200, agent=agent)
    run_whole(settings)
    before = deterministic_rows(tmp_path / "run")
    assert before["train/episodes"][-1]
    speed = read_csv(tmp_path / "run" / METRICS)["time/env_steps_per_s"]
    _, state = newest_state(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    finish(launch.resumed_run(tmp_path / "run"))
    assert deterministic_rows(tmp_path / "run") == before
    assert read_csv(tmp_path / "run" / METRICS)["time/env_steps_per_s"] == speed
    assert_same(state, newest_state(tmp_path / "run")[1])  # the sets for diagnostics too


@pytest.mark.parametrize("overlap", [False, True])
def test_rows_say_which_share_of_the_time_went_where(agent, settings_of, overlap):
    if overlap and agent == "ppo":
        pytest.skip("learns once per rollout")
    settings = settings_of(overlap=overlap)
    settings.log.every = 20
    columns = read_csv(run_whole(settings).folder / "metrics.csv")
    shares = (columns["time/simulator_share"], columns["time/learning_share"])
    assert len(shares[0]) == len(columns["step"]) >= 5
    for simulator, learning in zip(*shares, strict=True):
        assert simulator and learning
        assert simulator > 0
        assert learning > 0
        assert simulator + learning <= 1


def test_the_loop_fits_one_screen():
    assert len(Path(train.__file__).read_text().splitlines()) <= 40


def test_settings_that_a_program_changed_are_checked_before_the_run(settings_of, tmp_path):
    for change, text in (
        (lambda s: setattr(s.agent, "gamma", 1.5), r"--agent.gamma must be in \(0, 1\), got 1.5"),
        (lambda s: setattr(s.agent, "gamma", "x"), "settings.agent.gamma: expected .*, got 'x'"),
        (lambda s: setattr(s.env, "num_envs", 0), r"num-envs must be in \[1, 1048576\], got 0"),
    ):
        settings = settings_of()
        change(settings)
        with pytest.raises(InputError, match=text):
            launch.new_run(settings)
    settings = settings_of()
    settings.agent_name = "ppo" if settings.agent_name == "flashsac" else "flashsac"
    with pytest.raises(InputError, match=r"settings.agent is a .*, expected .*, which agent_name"):
        launch.new_run(settings)
    assert not list(tmp_path.iterdir())


def test_a_run_says_that_a_callable_builds_as_many_as_it_likes(tmp_path, monkeypatch, capsys):
    def four_toys():
        return make_toy("lqr", 4, torch.device("cpu"))

    monkeypatch.setattr("supple.envs.custom.load", lambda task: four_toys)
    with launch.new_run(small_settings("own:toys", tmp_path / "run", env_steps=100)):
        pass
    assert "4 environments, which is how many own:toys builds" in capsys.readouterr().out
