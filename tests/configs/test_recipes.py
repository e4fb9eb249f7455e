from pathlib import Path

import pytest

from supple.cli import main, train_settings
from supple.configs import default_settings
from supple.configs.recipes import SIMULATORS, recipes_of


@pytest.mark.parametrize(
    ("task", "gamma", "n_step"),
    [
        ("isaaclab/Isaac-Velocity-Rough-G1-v0", 0.99, 3),
        ("playground/G1JoystickRoughTerrain", 0.97, 1),
        ("envpool/MuJoCoPlayground/Go1JoystickFlatTerrain-v1", 0.97, 1),
        ("envpool/Go1JoystickFlatTerrain-v1", 0.97, 1),
        ("playground/CartpoleBalance", 0.99, 1),
        ("envpool/MyoSuite/myoHandReachFixed-v0", 0.95, 1),
        ("envpool/myoHandReachFixed-v0", 0.95, 1),
        ("envpool/Hopper-v5", 0.99, 1),
        ("maniskill/PokeCube-v1", 0.9, 1),
        ("genesis/go2-walk", 0.95, 1),
        ("myosuite/myo-reach", 0.95, 1),
        ("gym/Humanoid-v5", 0.99, 1),
        ("mujoco/Humanoid", 0.99, 1),
        ("my_sim:make", 0.99, 1),
    ],
)
def test_published_values_of_a_task_are_its_defaults(task, gamma, n_step):
    for preset in ("cpu", "gpu"):
        agent = default_settings(task, agent="flashsac", preset=preset).agent
        assert (agent.gamma, agent.n_step) == (gamma, n_step)  # type: ignore[union-attr]
    assert default_settings(task, agent="ppo", preset="gpu").agent.gamma == gamma


@pytest.mark.parametrize(
    ("task", "agent", "bound"),
    [
        ("isaaclab/Isaac-Open-Drawer-Franka", "flashsac", 3.0),
        ("isaaclab/IsaacContrib-Lift-Cube-Franka", "flashsac", 3.0),
        ("isaaclab/Isaac-Open-Drawer-Franka", "ppo", 1.0),
        ("isaaclab/Isaac-Velocity-Flat-G1", "flashsac", 1.0),
    ],
)
def test_flashsac_moves_isaac_labs_franka_as_far_as_published(task, agent, bound):
    settings = default_settings(task, agent=agent, preset="gpu")
    assert settings.env.action_bound == bound
    if agent == "flashsac":
        assert settings.agent.n_step == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("playground/G1JoystickRoughTerrain", ["push_config.enable=false"]),
        ("playground/T1JoystickFlatTerrain", ["push_config.enable=false"]),
        ("playground/Go1JoystickFlatTerrain", []),
        ("envpool/MuJoCoPlayground/G1JoystickFlatTerrain-v1", []),
    ],
)
def test_playgrounds_humanoids_are_not_pushed_as_published(task, config):
    for agent in ("flashsac", "ppo"):
        assert list(default_settings(task, agent=agent, preset="gpu").env.config) == config
    pushed = train_settings([task, "--preset", "gpu", "--env.config", "push_config.enable=true"])
    assert list(pushed.env.config) == ["push_config.enable=true"]


def test_a_recipe_comes_after_the_preset_and_a_flag_last():
    task = "envpool/MuJoCoPlayground/Go1JoystickFlatTerrain-v1"
    given = train_settings([task, "--preset", "laptop", "--agent.gamma", "0.9"])
    assert given.agent.gamma == 0.9
    assert default_settings(task, preset="laptop").agent.n_step == 3  # type: ignore[union-attr]
    few = ["--replay.final-fraction", "0.01"]
    given = train_settings(["maniskill/PokeCube-v1", "--preset", "gpu", *few])
    assert (given.eval.episodes, given.replay.final_fraction) == (50, 0.01)


@pytest.mark.parametrize("agent", ["flashsac", "ppo"])
def test_maniskills_short_episodes_keep_their_last_observations(agent):
    settings = default_settings("maniskill/PokeCube-v1", agent=agent, preset="gpu")
    assert settings.eval.episodes == 50
    assert settings.replay.final_fraction >= 1.1 / 50  # with those that end in the oldest rows
    usual = default_settings("isaaclab/Isaac-Velocity-Rough-G1-v0", agent=agent, preset="gpu")
    assert usual.eval.episodes == 1024
    if agent == "flashsac":
        assert usual.replay.final_fraction == 0.01


def test_every_file_of_recipes_is_listed(capsys):
    files = {path.stem for path in Path(recipes_of.__code__.co_filename).parent.glob("*.py")}
    assert files - {"__init__"} == set(SIMULATORS)
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for simulator in SIMULATORS:
        for pattern in recipes_of(simulator):
            assert f"{simulator}/{pattern}" in said
