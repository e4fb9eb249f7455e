"""A run that starts from another run's networks."""

import shutil

import pytest
import torch

from supple import checkpoint, launch
from supple.build import build_agent
from supple.cli import BAD_INPUT, DONE, main
from supple.errors import InputError
from supple.trained import load_trained, read_settings
from tests.small_runs import (
    assert_same,
    deterministic_rows,
    finish,
    flags,
    newest_state,
    run_until,
    run_whole,
    small_settings,
)
from tests.small_worlds import in_processes

MOMENTS = ("peak", "mean", "var", "count")


@pytest.fixture(scope="module")
def source(agent, tmp_path_factory):
    """A trained run's folder."""
    folder = tmp_path_factory.mktemp("source") / "run"
    run_whole(small_settings("toy/lqr", folder, env_steps=200, agent=agent))
    return folder


@pytest.fixture
def settings_of(agent, source, tmp_path):
    def made(name="run", **changes):
        settings = small_settings(
            "toy/lqr", tmp_path / name, env_steps=100, agent=agent, num_envs=4, **changes
        )
        settings.init_from, settings.seed = str(source), 5
        return settings

    return made


def obs_of(run):
    return run.env.reset(0)["observation"].to_dict()


def test_networks_and_statistics_are_the_sources_and_nothing_else_is(source, settings_of):
    run = launch.new_run(settings_of())
    with run.display, run:
        own, trained = run.agent.state_dict(), load_trained(source).agent.state_dict()
        for name in run.agent.inherited:
            assert_same(own[name], trained[name])
        for name in MOMENTS:
            assert torch.equal(own["reward_scaler"][name], trained["reward_scaler"][name])
        assert run.agent.updates == 0
        fresh = build_agent(run.settings, run.env.spec).state_dict()
        rest = own.keys() - {*run.agent.inherited, "reward_scaler", "counters"}
        assert rest >= {"generators", "skips"}
        assert_same({n: fresh[n] for n in rest}, {n: own[n] for n in rest})


def test_the_first_actions_are_those_of_the_sources_policy(agent, source, settings_of):
    settings = settings_of()
    run = launch.new_run(settings)
    with run.display, run:
        obs = obs_of(run)
        trained = load_trained(source)
        assert torch.equal(run.agent.greedy()(obs), trained.greedy()(obs))
        # Exploring, too: the same as an agent of this run's seed that has learned as much.
        other = build_agent(settings, run.env.spec)
        other.roll_back(checkpoint.newest_intact(source)[0].state["agent"], rate_factor=1.0)
        if agent == "flashsac":
            other._learning = other._acting = True  # type: ignore[attr-defined]
        first, again = (each.act(obs, explore=True)[0] for each in (run.agent, other))
        assert torch.equal(first, again)


def test_a_checkpoint_folder_may_be_named(source, settings_of):
    settings = settings_of()
    settings.init_from = str(checkpoint.list_checkpoints(source)[-1])
    assert run_whole(settings).complete


def test_it_resumes_with_the_same_bits_without_the_source(source, settings_of, tmp_path):
    moved = shutil.copytree(source, tmp_path / "source")
    folders = []
    for name, run in (("whole", run_whole), ("parts", lambda made: run_until(made, 24))):
        settings = settings_of(name)  # 24 steps: FlashSAC has not begun to learn
        settings.init_from = str(moved)
        folders.append(run(settings).folder)
    shutil.rmtree(moved)
    assert finish(launch.resumed_run(folders[1])).complete
    assert deterministic_rows(folders[0]) == deterministic_rows(folders[1])
    assert_same(newest_state(folders[0])[1], newest_state(folders[1])[1])


def test_it_starts_again_from_the_source_before_its_first_checkpoint(source, settings_of):
    with launch.new_run(settings_of()) as run:
        run.start()  # killed here
    again = launch.resumed_run(run.folder)
    with again.display, again:
        obs = obs_of(again)
        assert torch.equal(again.agent.greedy()(obs), load_trained(source).greedy()(obs))


@pytest.mark.usefixtures("one_thread")
def test_all_processes_start_from_the_same(source, settings_of, tmp_path):
    settings = settings_of()
    width = load_trained(source).spec.observation["policy"]

    def work():
        run = launch.new_run(settings)
        with run.display, run:
            scaler = run.agent.state_dict()["reward_scaler"]
            moments = {name: scaler[name] for name in MOMENTS}
            return moments | {"action": run.agent.greedy()({"policy": torch.ones(4, width)})}

    first, other = in_processes(2, work, tmp_path / "out")
    assert_same(first, other)
    trained = load_trained(source)
    expected = {name: trained.agent.state_dict()["reward_scaler"][name] for name in MOMENTS}
    expected["action"] = trained.greedy()({"policy": torch.ones(4, width)})
    assert_same(first, expected)


def test_others_are_refused_in_one_line_and_nothing_is_written(
    agent, source, settings_of, tmp_path, capsys
):
    width = (16,) if agent == "ppo" else 16
    with pytest.raises(InputError) as caught:
        launch.new_run(settings_of(actor_hidden=width))
    usual = (8,) if agent == "ppo" else 8
    assert f"networks with --agent.actor-hidden {width}, as this run asks for, got {usual}" in str(
        caught.value
    )
    settings = settings_of()
    settings.task = "toy/asymmetric"
    with pytest.raises(InputError, match=r"expected networks with observation \{"):
        launch.new_run(settings)
    settings.init_from = str(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no run"):
        launch.new_run(settings)
    other = "flashsac" if agent == "ppo" else "ppo"
    given = ["--init-from", str(source), "--run-dir", str(tmp_path / "run")]
    assert main(["train", "toy/lqr", *flags(other), *given]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert f"expected networks with --agent {other}, as this run asks for, got {agent}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("critic", ["scalar", "flow", "flow_official"])
def test_every_critic_starts_from_its_own_kind(critic, tmp_path):
    def settings_of(name):
        settings = small_settings("toy/lqr", tmp_path / name, env_steps=80)
        settings.agent.critic = critic
        flow = settings.agent.flow
        flow.width, flow.target_samples, flow.train_samples = 8, 2, 3
        return settings

    run_whole(settings_of("source"))
    settings = settings_of("run")
    settings.init_from = str(tmp_path / "source")
    assert run_whole(settings).complete
    other = settings_of("other")
    other.init_from, other.agent.critic = settings.init_from, "categorical"
    with pytest.raises(InputError, match=f"--agent.critic categorical, .* got {critic}"):
        launch.new_run(other)
    if critic == "scalar":  # its values would be in other units
        settings = settings_of("raw")
        settings.init_from, settings.agent.reward_scaler.enabled = other.init_from, False
        with pytest.raises(InputError, match=r"--agent.reward-scaler.enabled False, .* got True"):
            launch.new_run(settings)
    if critic == "flow":
        settings = settings_of("kappa")
        settings.init_from, settings.agent.flow.kappa = other.init_from, 0.5
        with pytest.raises(InputError, match=r"--agent.flow.kappa 0\.5, .* got 0\.1"):
            launch.new_run(settings)


def test_the_flag_is_recorded(source, agent, tmp_path):
    given = ["--init-from", str(source), "--run-dir", str(tmp_path / "run"), "--env-steps", "40"]
    assert main(["train", "toy/lqr", *flags(agent), *given]) == DONE
    assert read_settings(tmp_path / "run").init_from == str(source)
