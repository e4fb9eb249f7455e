"""Tasks of one's own in Isaac Lab and mjlab, on packages that stand in for both."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from supple.envs import EnvSettings, check_task, known_tasks, make
from supple.envs.isaaclab import IsaacLab
from supple.envs.mjlab import Mjlab
from supple.envs.remote import RemoteEnv
from supple.errors import InputError

PACKAGES = ("isaaclab", "isaaclab_tasks", "mjlab", "own_robots")


@pytest.fixture
def stand_ins(monkeypatch):
    """Installed for the length of a test."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("stand_ins")))
    registered = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(registered)
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    ("task", "adapter"),
    [
        ("isaaclab/Isaac-Stand-In", IsaacLab),
        ("isaaclab/own_robots:Own-Robot", IsaacLab),
        ("mjlab/Mjlab-Stand-In", Mjlab),
        ("mjlab/own_robots:Own-Robot", Mjlab),
        ("own_robots:bare", IsaacLab),
        ("own_robots:made", IsaacLab),
    ],
)
def test_a_task_of_ones_own_is_as_good_as_any(task, adapter):
    env = make(task, EnvSettings(num_envs=3))
    assert type(env) is adapter
    assert (env.spec.task_id, env.spec.num_envs, env.spec.has_final_obs) == (task, 3, True)
    assert env.step(torch.zeros(3, 2))["valid"].all()
    env.close()


@pytest.mark.usefixtures("stand_ins")
def test_ids_need_no_prefix_once_they_are_registered():
    with pytest.raises(InputError, match="unknown task isaaclab/Own-Robot"):
        check_task("isaaclab/Own-Robot")
    check_task("isaaclab/own_robots:Own-Robot")
    check_task("isaaclab/Own-Robot")
    assert known_tasks()["isaaclab"].tasks == ("Isaac-Stand-In", "Own-Robot")
    with pytest.raises(InputError, match="unknown task isaaclab/CartPole-v1"):
        check_task("isaaclab/CartPole-v1")


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("simulator", ["isaaclab", "mjlab"])
def test_a_module_or_an_id_that_is_not_there_is_named(simulator):
    with pytest.raises(InputError, match=r"cannot import nobodys for task \w+/nobodys:Own-Robot"):
        check_task(f"{simulator}/nobodys:Own-Robot")
    with pytest.raises(InputError, match=rf"unknown task {simulator}/own_robots:Other"):
        check_task(f"{simulator}/own_robots:Other")


@pytest.mark.parametrize("simulator", ["isaaclab", "mjlab"])
def test_without_the_simulator_a_task_of_ones_own_says_what_to_install(simulator):
    with pytest.raises(InputError, match=f"make sim-{simulator}"):
        make(f"{simulator}/own_robots:Own-Robot", EnvSettings())


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    "task", ["isaaclab/Isaac-Stand-In", "isaaclab/own_robots:Own-Robot", "mjlab/Mjlab-Stand-In"]
)
def test_a_configuration_is_changed_before_the_environment_is_built(task):
    pairs = ("rewards.track.weight=2.5", "rewards.torque=null")
    env: Any = make(task, EnvSettings(num_envs=3, config=pairs))
    rewards = env._env.cfg.rewards
    found = rewards if isinstance(rewards, dict) else vars(rewards)
    assert (found["track"].weight, found["torque"]) == (2.5, None)
    env.close()
    for pair, text in (
        ("rewards.trak.weight=2", rf"{task.split(':')[-1]} .* did you mean rewards.track\?"),
        ("scene.num_envs=9", "takes it from --env.num-envs"),
    ):
        with pytest.raises(InputError, match=text):
            make(task, EnvSettings(config=(pair,)))
    again: Any = make(task, EnvSettings())  # nothing of it stays in the registry
    rewards = again._env.cfg.rewards
    found = rewards if isinstance(rewards, dict) else vars(rewards)
    assert found["track"].weight == 1.0
    again.close()


@pytest.mark.usefixtures("stand_ins")
def test_isaac_lab_is_given_a_seed_before_it_builds(monkeypatch):
    built, made = [], gymnasium.make

    def note(name, cfg):
        built.append(cfg.seed)
        return made(name, cfg=cfg)

    monkeypatch.setattr(gymnasium, "make", note)
    for seed, pairs in ((1, ()), (1, ()), (2, ()), (1, ("seed=7",))):
        make("isaaclab/Isaac-Stand-In", EnvSettings(config=pairs), seed=seed).close()
    first, again, other, own = built
    assert first == again != other
    assert own == 7


def simulated(**presets):
    """How a task is simulated whose configuration has these presets of its physics."""
    from isaaclab_tasks.utils import StandInCfg

    gymnasium.registry.pop("Own-Physics", None)
    gymnasium.register(
        "Own-Physics",
        entry_point="isaaclab.envs:ManagerBasedRLEnv",
        disable_env_checker=True,
        kwargs={"env_cfg_entry_point": type("OwnCfg", (StandInCfg,), {"presets": presets})},
    )
    env: Any = make("isaaclab/Own-Physics", EnvSettings())
    found = env._env.cfg.sim
    env.close()
    return found


@pytest.mark.usefixtures("stand_ins")
def test_without_isaac_sim_only_what_asks_for_it_is_put_on_newton():
    from isaaclab_tasks.utils import NewtonCfg, PhysxCfg

    assert known_tasks()["isaaclab"].status == "installed without Isaac Sim: on Newton"
    kamino, newton = partial(NewtonCfg, solver="kamino"), partial(NewtonCfg, solver="mjwarp")
    assert simulated(default=kamino, newton_mjwarp=newton).physics.solver == "kamino"
    assert simulated(default=PhysxCfg, newton_mjwarp=newton).physics.solver == "mjwarp"
    with pytest.raises(InputError, match=r"on Newton: .*; tasks without Newton need Isaac Sim"):
        simulated(default=PhysxCfg)


@pytest.mark.usefixtures("stand_ins")
def test_with_isaac_sim_a_task_keeps_its_physics_and_this_runs_device(monkeypatch):
    from isaaclab_tasks.utils import NewtonCfg, PhysxCfg

    monkeypatch.setattr("supple.envs.installed.is_installed", lambda _: True)
    assert known_tasks()["isaaclab"].status.startswith("installed, with Isaac Sim for the tasks")
    found = simulated(default=PhysxCfg, newton_mjwarp=NewtonCfg)
    assert (type(found.physics), found.device) == (PhysxCfg, "cpu")


@pytest.mark.usefixtures("stand_ins")
def test_wrappers_that_would_be_lost_are_refused():
    with pytest.raises(InputError, match="is wrapped in a Changed: return it bare"):
        make("own_robots:wrapped", EnvSettings(num_envs=2))


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("task", ["isaaclab/own_robots:Own-Robot", "own_robots:bare"])
def test_a_second_one_lives_in_a_process_of_its_own(task):
    first = make(task, EnvSettings(num_envs=3))
    configured = task.startswith("isaaclab/")  # the other is built by its callable
    config = ("step_dt=0.05",) if configured else ()
    second = make(task, EnvSettings(num_envs=2, config=config))
    assert type(second) is RemoteEnv
    assert second.spec.control_dt == (0.05 if configured else 0.02)
    assert second.spec.num_envs == 2
    assert second.step(torch.zeros(2, 2))["valid"].all()
    second.close()
    first.close()


ON_KIT = """
import importlib
import sys
import isaaclab.app
from supple.cli import main
from supple.errors import SimulatorError

def broken(*_, **__):
    raise SimulatorError("the arm fell off")

module, _, name = sys.argv[1].rpartition(".")
setattr(importlib.import_module(module), name, broken)
isaaclab.app.KIT = True
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("where", ["supple.train.train", "gymnasium.make"])
def test_isaac_sim_ends_the_process_last_and_with_its_status(tmp_path, where):
    path = os.pathsep.join((str(Path(__file__).with_name("stand_ins")), str(Path.cwd())))
    train = ["train", "isaaclab/Isaac-Stand-In", "--preset", "laptop", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", ON_KIT, where, *train, "--run-dir", str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("supple: error: the arm fell off\n")
