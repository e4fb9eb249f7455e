"""Simulators that no registry offers for this machine: their contracts on stand-ins.

Shapes are those the simulators themselves report (HumanoidBench h1: 51 and 19; ManiSkill's batches
of torch tensors, partial resets by ``env_idx``, infos that belong to the reset afterwards).
"""

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from supple.configs.base import Settings
from supple.envs import EnvSettings, known_tasks, make
from supple.envs import maniskill as maniskill_adapter
from supple.envs.check import check_env
from supple.envs.gym import wrap_factory
from supple.envs.maniskill import ManiSkill
from supple.envs.registry import most_envs
from supple.errors import InputError
from supple.evaluate import make_env

LIMIT = 6
CPU = torch.device("cpu")


class FakeManiSkill:
    """One buffer for everything, ``terminated`` at success, success cleared by a reset."""

    num_envs, device = 3, "cpu"

    def __init__(self):
        self.single_action_space = spaces.Box(-1, 1, (4,))
        self.obs = torch.zeros(self.num_envs, 6)
        self.info = {"success": torch.zeros(self.num_envs, dtype=torch.bool)}

    @property
    def unwrapped(self):
        return self

    def reset(self, seed=None, options=None):
        if seed is not None:
            torch.manual_seed(seed)
        rows = (options or {}).get("env_idx", torch.arange(self.num_envs))
        self.obs[rows] = 0
        self.obs[rows, 0] = torch.rand(len(rows))
        self.info["success"][rows] = False
        return self.obs, self.info

    def step(self, action):
        self.obs[:, 1] += 1
        self.obs[:, 2:] = action
        self.info["success"][:] = self.obs[:, 1] >= LIMIT - 1
        success = self.info["success"]
        return self.obs, self.obs[:, 1], success, torch.zeros_like(success), self.info

    def close(self):
        pass


def maniskill():
    return ManiSkill(FakeManiSkill(), task_id="maniskill/fake", limit=LIMIT)


def test_maniskills_contract_is_kept():
    found = check_env(maniskill, steps=40)
    assert not [finding for finding in found if not finding.ok]


def test_on_the_cpu_maniskill_steps_one_environment(monkeypatch):
    built = []

    def build(name, settings, **_):
        built.append(settings.num_envs)
        return maniskill()

    monkeypatch.setattr("supple.envs.maniskill.build", build)
    settings = Settings(task="maniskill/PullCube-v1", device="cpu")
    make_env(settings, num_envs=10, purpose="evaluation").close()
    assert built == [1]
    with pytest.raises(InputError, match=r"at most 1 environment on the CPU, got --env.num-envs 2"):
        make(settings.task, EnvSettings(num_envs=2))
    assert most_envs(settings.task, torch.device("cuda")) > 10
    assert most_envs("toy/lqr", torch.device("cpu")) > 10


@pytest.fixture
def built(monkeypatch):
    """What ``gymnasium.make`` is given for ManiSkill's tasks, whose reward modes may be set."""
    modes = {"Dense": ("normalized_dense", "dense", "sparse", "none"), "Hard": ["none", "sparse"]}
    modes |= {"Ant": ("dense", "none"), "Empty": ["none"]}
    registered = {
        name: SimpleNamespace(cls=SimpleNamespace(SUPPORTED_REWARD_MODES=each))
        for name, each in modes.items()
    }
    for module in ("mani_skill", "mani_skill.envs", "mani_skill.utils"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    registration: Any = ModuleType("mani_skill.utils.registration")
    registration.REGISTERED_ENVS = registered
    monkeypatch.setitem(sys.modules, registration.__name__, registration)
    monkeypatch.setattr("supple.envs.installed.is_installed", lambda _: True)
    given: dict[str, Any] = {}

    def note(name, **options):
        given.update(options)
        fake: Any = FakeManiSkill()
        fake.spec = SimpleNamespace(max_episode_steps=LIMIT)
        return fake

    monkeypatch.setattr(gymnasium, "make", note)
    return given


@pytest.mark.parametrize(
    ("device", "backends"),
    [
        ("cuda:1", {"sim_backend": "cuda:1", "render_backend": "cuda:1"}),
        ("cuda", {"sim_backend": "cuda:0", "render_backend": "cuda:0"}),
        ("cpu", {"sim_backend": "cpu"}),
    ],
)
def test_maniskill_simulates_and_draws_on_the_runs_own_gpu(built, device, backends):
    maniskill_adapter.build("Dense", EnvSettings(), device=torch.device(device), render=True)
    assert {name: value for name, value in built.items() if "backend" in name} == backends


@pytest.mark.parametrize(
    ("task", "mode"), [("Dense", "normalized_dense"), ("Ant", "dense"), ("Hard", "sparse")]
)
def test_maniskills_rewards_are_the_densest_a_task_has_which_is_said(built, capsys, task, mode):
    maniskill_adapter.build(task, EnvSettings(), device=CPU, render=False)
    assert built["reward_mode"] == mode
    said = f"supple: maniskill/{task} has no normalized_dense reward: it gives its {mode} one\n"
    assert capsys.readouterr().err == (said if mode != "normalized_dense" else "")


def test_maniskills_tasks_without_a_reward_are_refused(built):
    with pytest.raises(InputError, match=r"maniskill/Empty has no reward, only the modes none: "):
        maniskill_adapter.build("Empty", EnvSettings(), device=CPU, render=False)
    assert not built


def test_success_in_maniskill_ends_no_episode_and_outlives_the_reset():
    env = maniskill()
    env.reset(0)
    steps = [env.step(torch.zeros(3, 4)) for _ in range(LIMIT)]
    assert not any(step["terminated"].any() for step in steps)
    assert [bool(step["truncated"].all()) for step in steps] == [False] * (LIMIT - 1) + [True]
    assert [bool(step["success"].all()) for step in steps] == [False] * (LIMIT - 2) + [True, True]
    assert steps[-1]["reward"].tolist() == [LIMIT] * 3
    assert steps[-1]["final_observation", "policy"][:, 1].tolist() == [LIMIT] * 3
    assert steps[-1]["observation", "policy"][:, 1].tolist() == [0] * 3


class FakeHumanoidBench(gymnasium.Env[Any, Any]):
    """h1-walk's spaces: 51 float64 numbers without bounds, 19 targets, a limit in the id."""

    def __init__(self):
        self.observation_space = spaces.Box(-math.inf, math.inf, (51,), np.float64)
        self.action_space = spaces.Box(-2.0, 2.0, (19,), np.float32)
        self.spec = SimpleNamespace(max_episode_steps=LIMIT)  # type: ignore[assignment]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.start = 0, self.np_random.random()
        return self._obs(np.zeros(19)), {}

    def step(self, action):
        self.steps += 1
        info = {"success": 0.0, "success_subtasks": 0}
        return self._obs(action), 1.0, self.steps == 4, self.steps >= LIMIT, info

    def _obs(self, action):
        return np.concatenate(([self.start, self.steps], action, np.zeros(30)))


def test_humanoidbenchs_contract_is_kept():
    def build():
        return wrap_factory(
            lambda render_mode=None: FakeHumanoidBench(),
            EnvSettings(num_envs=2, patience=0),
            task_id="humanoidbench/fake",
            device=torch.device("cpu"),
            render=False,
        )

    assert not [finding for finding in check_env(build, steps=40) if not finding.ok]
    assert (dict(build().spec.observation), build().spec.action.size) == ({"policy": 51}, 19)


@pytest.mark.parametrize(
    ("task", "how"),
    [
        ("humanoidbench/h1-walk-v0", "git clone"),
        ("maniskill/PullCube-v1", r"pip install -e \"\.\[maniskill\]\""),
        ("isaaclab/Isaac-Cartpole-Direct", "make sim-isaaclab"),
        ("playground/CartpoleBalance", "make sim-playground"),
        ("brax/ant", "make sim-brax"),
        ("myosuite/myoHandPoseFixed-v0", "make sim-myosuite"),
        ("metaworld/reach-v3", "make sim-metaworld"),
        ("dmc/dog-run", "make sim-dmc"),
        ("mjlab/Mjlab-Cartpole-Balance", "make sim-mjlab"),
        ("genesis/go2-walk", "make sim-genesis"),
    ],
)
def test_a_simulator_that_is_not_installed_says_how_to_get_it(task, how):
    simulator, _, name = task.partition("/")
    found = known_tasks()[simulator]
    assert name in found.tasks
    if found.status.startswith("installed"):  # the environments of make sim-<name>
        return
    with pytest.raises(InputError, match=how):
        make(task, EnvSettings())
