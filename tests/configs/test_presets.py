import pytest
import torch

from supple.cli import main, train_settings
from supple.configs import AGENTS, default_settings
from supple.envs.registry import ADAPTERS, ON_GPU
from supple.errors import InputError


def own_batch(num_envs, device):
    """A simulator of one's own in batches, as ``docs/examples/my_batch.py``."""


def own_gymnasium(num_envs=1, **options):
    """One that does not say that it knows devices."""


TASKS = {
    "gym/CartPole-v1": "cpu",
    "gym/Humanoid-v5": "cpu",
    "mujoco/Ant": "cpu",
    "envpool/Hopper-v5": "cpu",
    "dmc/cheetah-run": "cpu",
    "metaworld/reach-v3": "cpu",
    "myosuite/myo-reach": "cpu",
    "humanoidbench/h1-walk-v0": "cpu",
    "toy/lqr": "cpu",
    "isaaclab/Isaac-Velocity-Rough-G1-v0": "gpu",
    "mjlab/Mjlab-Velocity-Flat-Unitree-G1": "gpu",
    "maniskill/PokeCube-v1": "gpu",
    "genesis/go2-walk": "gpu",
    "playground/G1JoystickRoughTerrain": "gpu",
    "brax/ant": "gpu",
    f"{__name__}:own_batch": "gpu",
    f"{__name__}:own_gymnasium": "cpu",
}
"""And the preset on a machine with CUDA."""


@pytest.mark.parametrize("task", TASKS)
def test_without_a_preset_the_simulator_decides(task, monkeypatch):
    for cuda, expected in ((True, TASKS[task]), (False, "laptop")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        for agent in AGENTS:
            assert default_settings(task, agent=agent).preset == expected
        assert default_settings(task, preset="gpu").env.num_envs == 1024


def test_every_simulator_is_in_the_table():
    assert {task.partition("/")[0] for task in TASKS if "/" in task} == set(ADAPTERS)
    assert set(ON_GPU) <= set(ADAPTERS)


def test_a_task_that_does_not_exist_is_refused_as_before(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="cannot import no_such for task no_such:make"):
        train_settings(["no_such:make"])
    with pytest.raises(InputError, match="unknown simulator gim"):
        train_settings(["gim/CartPole-v1"])


@pytest.mark.parametrize("command", [["list"], ["train", "--help"]])
def test_the_rule_is_said_where_one_looks_for_it(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "laptop without CUDA; with it gpu for isaaclab, mjlab" in said


@pytest.mark.parametrize(
    ("flags", "env_steps", "capacity"),
    [
        ("", 36_000, 36_000),
        ("--env-steps 3000", 3_000, 36_000),
        ("--env-steps 200000", 200_000, 200_000),
        ("--env_steps=200000", 200_000, 200_000),
        ("--env-steps 5000000", 5_000_000, 1_000_000),
        ("--env-steps 200000 --replay.capacity 36000", 200_000, 36_000),
    ],
)
def test_the_laptops_ring_grows_with_the_run(flags, env_steps, capacity):
    settings = train_settings(["toy/lqr", "--preset", "laptop", *flags.split()])
    assert (settings.env_steps, settings.replay.capacity) == (env_steps, capacity)


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_rings_of_other_presets_stay(preset):
    given = ["toy/lqr", "--preset", preset]
    usual = train_settings(given).replay.capacity
    for steps in ("3000", "500000000"):
        assert train_settings([*given, "--env-steps", steps]).replay.capacity == usual


def test_a_length_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"--env-steps must be >= 1, got 0"):
        train_settings(["toy/lqr", "--env-steps", "0"])
    with pytest.raises(
        InputError, match=r"^--env-steps must be an integer, in digits, got 1e6; see"
    ):
        train_settings(["toy/lqr", "--env-steps", "1e6"])
