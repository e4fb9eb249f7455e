"""``--env.config``: what is changed, what is refused, and that it comes back with the run."""

import contextlib
import dataclasses
import json
import sys
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import torch

from supple import launch
from supple.cli import train_settings
from supple.configs.base import from_json, to_json
from supple.envs import EnvSettings, make, playground
from supple.envs.config import arguments, override, pairs, parameters
from supple.envs.gym import GymVector
from supple.envs.toy import make_toy
from supple.errors import InputError
from tests.small_runs import finish, run_until, small_settings


@dataclasses.dataclass
class Term:
    weight: float = 1.0
    params: dict[str, Any] = dataclasses.field(default_factory=lambda: {"std": 0.5, ".*_hip": 0})
    func: Any = len


class Tree:
    def __init__(self):
        self.rewards = {"track": Term(), "torque": Term(-1)}
        self.sim = SimpleNamespace(dt=0.01, steps=4, gpu=True, name="mine", range=(0.0, 1.0))
        self.seed = None
        self._hidden = 1


def changed(*config):
    tree = Tree()
    override(tree, config, "t", fixed={"sim.dt": "--dt"})
    return tree


def test_values_are_json_of_the_kind_that_is_there_else_text():
    tree = changed(
        *("rewards.track.weight=2", "rewards.track.params.std=0.1", "rewards.torque=null"),
        *("sim.steps=8", "sim.gpu=false", "sim.name=12", "sim.range=[1, 2]", "seed=rough"),
    )
    assert tree.rewards["track"].weight == 2.0
    assert type(tree.rewards["track"].weight) is float
    assert tree.rewards["track"].params["std"] == 0.1
    assert tree.rewards["torque"] is None
    assert (tree.sim.steps, tree.sim.gpu, tree.sim.name) == (8, False, "12")
    assert tree.sim.range == (1, 2)
    assert tree.seed == "rough"


def test_keys_may_hold_dots_themselves():
    assert changed("rewards.track.params..*_hip=0.3").rewards["track"].params[".*_hip"] == 0.3


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ("rewards.trak.weight=2", r"rewards.trak.weight: t knows .* mean rewards.track\?"),
        ("rewards.track.wieght=2", r"did you mean rewards.track.weight\?"),
        ("zzz=1", r"zzz: t knows no such entry; there are rewards, sim, seed$"),
        ("_hidden=2", "_hidden: t knows no such entry"),
        ("sim.steps.more=2", "sim.steps.more: t knows no such entry; there are none"),
        ("sim.gpu=True", "sim.gpu: t expects true or false, got True"),
        ("sim.steps=many", "sim.steps: t expects a number, got many"),
        ("sim.range=1", r"sim.range: t expects a list such as \[1, 2\], got 1"),
        ("rewards.track=3", "rewards.track: t expects one of its keys after a dot, or null"),
        ("rewards.track.func=len", "func: t expects"),
        ("sim.dt=0.1", "sim.dt: t takes it from --dt"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(pair, text):
    with pytest.raises(InputError, match=text) as error:
        changed(pair)
    assert str(error.value).startswith("--env.config ")
    assert "\n" not in str(error.value)


def test_something_that_only_resembles_a_dict_may_refuse_by_itself():
    class Typed:
        def __init__(self):
            self._values = {"length": 1000}

        def keys(self):
            return self._values.keys()

        def __getitem__(self, name):
            return self._values[name]

        def __setitem__(self, name, value):
            if type(value) is not int:
                raise TypeError("length is an int")
            self._values[name] = value

    typed = Typed()
    override(typed, ["length=5"], "t", fixed={})
    assert typed["length"] == 5
    with pytest.raises(InputError, match=r"length: t refuses 0.5: length is an int"):
        override(typed, ["length=0.5"], "t", fixed={})


@pytest.mark.parametrize("config", [("weight",), ("=2",), ("a=1", "a=2")])
def test_settings_take_pairs_of_different_keys(config):
    with pytest.raises(InputError, match=r"--env.config (takes KEY=VALUE, got|has a twice)"):
        EnvSettings(config=config)
    assert pairs(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


class Base:
    def __init__(self, gravity=9.81, *, wind=(0.0, 0.0)):
        pass


class Derived(Base):
    def __init__(self, mass=1, rewards={"track": 1.0}, **options):  # noqa: B006
        super().__init__(**options)


def test_a_callables_arguments_are_known_by_its_signature():
    def find(factory, *config):
        return arguments(factory, config, "t", fixed={"num_envs": "--env.num-envs"})

    config = ("gravity=1", "wind=[1, 2]", "rewards.track=2")
    assert find(Derived, *config) == {"gravity": 1.0, "wind": (1, 2), "rewards": {"track": 2.0}}
    assert find(Derived, "rewards.track=3") == {"rewards": {"track": 3.0}}
    assert find(Derived, "mass=0.5") == {"mass": 0.5}
    assert find(lambda num_envs, **others: None, "new=text") == {"new": "text"}
    with pytest.raises(InputError, match=r"gravty: t knows .* did you mean gravity\?"):
        find(Derived, "gravty=1")
    with pytest.raises(InputError, match=r"num_envs: t takes it from --env.num-envs"):
        find(lambda num_envs: None, "num_envs=3")
    with pytest.raises(InputError, match=r"a.b: t knows no such entry"):
        find(lambda **others: None, "a.b=3")
    assert Derived.__init__.__defaults__ == (1, {"track": 1.0})
    assert parameters(type("Bare", (), {})) == ({}, False)  # and no picture's render_mode


@pytest.mark.sim("mujoco")
def test_gymnasiums_keyword_arguments_reach_the_environment():
    config = ("forward_reward_weight=0", "ctrl_cost_weight=0", "max_episode_steps=7")
    env = make("gym/HalfCheetah-v5", EnvSettings(num_envs=2, config=config))
    assert isinstance(env, GymVector)
    assert env.spec.max_episode_steps == 7
    assert env.step(torch.ones(2, 6))["reward"].tolist() == [0.0, 0.0]
    env.close()
    for pair, text in (
        ("forward_weight=1", "did you mean forward_reward_weight"),
        ("frame_skip=many", "frame_skip: gym/HalfCheetah-v5 expects a number"),
        ("render_mode=human", "render_mode: gym/HalfCheetah-v5 takes it from supple"),
        ("max_episode_steps=0", "max_episode_steps=0: gym/HalfCheetah-v5 cannot be made so: Val"),
        ("frame_skip=0", "frame_skip=0: gym/HalfCheetah-v5 cannot be made so: ZeroDivisionError"),
    ):
        with pytest.raises(InputError, match=text):
            make("gym/HalfCheetah-v5", EnvSettings(config=(pair,)))


@pytest.mark.sim("envpool")
def test_envpools_configuration_reaches_the_pool():
    config = ("max_episode_steps=7", "kp=20", "noise_level=0")
    name = "envpool/MuJoCoPlayground/Go1JoystickFlatTerrain-v1"
    env = make(name, EnvSettings(num_envs=2, config=config))
    assert env.spec.max_episode_steps == 7
    assert env.spec.deployment is not None
    assert env.spec.deployment.stiffness == (20.0,) * 12
    steps = [env.step(torch.zeros(2, 12)) for _ in range(7)]
    assert steps[-1]["truncated"].all()
    env.close()
    for pair, text in (
        ("kpp=1", r"did you mean kp\?"),
        ("max_episode_steps=1.5", "refuses it; expected a whole number"),
        ("num_envs=3", "takes it from --env.num-envs"),
        ("max_episode_steps=-1", "takes 1 step or more"),
    ):
        with pytest.raises(InputError, match=text):
            make(name, EnvSettings(config=(pair,)))


class LikeConfigDict:
    """What Playground's configurations are: keys by attribute and by index, and no ``Mapping``."""

    def __init__(self, **values):
        self.__dict__["_values"] = values

    def keys(self):
        return self._values.keys()

    def __contains__(self, name):
        return name in self._values

    def __getitem__(self, name):
        return self._values[name]

    def __setitem__(self, name, value):
        self._values[name] = value

    def __getattr__(self, name):
        return self._values[name]


def test_playgrounds_configuration_is_changed_before_the_task_is_loaded(monkeypatch):
    def default(name):
        scales = LikeConfigDict(tracking_lin_vel=1.0)
        rewards = LikeConfigDict(scales=scales)
        return LikeConfigDict(
            episode_length=1000, action_repeat=1, impl="warp", reward_config=rewards
        )

    loaded: Any = SimpleNamespace(
        get_default_config=default, load=lambda name, config: config, ALL_ENVS=("Robot",)
    )
    monkeypatch.setattr(playground, "_registry", lambda: loaded)
    monkeypatch.setattr(playground, "Playground", lambda env, *_, **facts: (env, facts["limit"]))
    monkeypatch.setattr(playground, "computing_on", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("supple.envs.installed.require", lambda *_: None)

    def build(*config) -> Any:
        settings = EnvSettings(config=config)
        return playground.build("Robot", settings, device=torch.device("cpu"), render=False)

    env, limit = build("reward_config.scales.tracking_lin_vel=2", "episode_length=500")
    assert (env.reward_config.scales.tracking_lin_vel, env.impl, limit) == (2.0, "jax", 500)
    assert build("impl=warp")[0].impl == "warp"
    with pytest.raises(InputError, match=r"mean reward_config.scales.tracking_lin_vel\?"):
        build("reward_config.scales.tracking_lin_val=2")


@pytest.mark.parametrize("task", ["toy/lqr", "mujoco/HalfCheetah"])
def test_simulators_without_a_configuration_refuse_one(task):
    with pytest.raises(InputError, match=r"--env.config a=1: \w+/ takes none, drop the flag"):
        make(task, EnvSettings(config=("a=1",)))


def own_env(num_envs, device, task="lqr"):
    return make_toy(task, num_envs, device)


def own_gym_env(render_mode=None, gravity=10.0):
    return gymnasium.make("Pendulum-v1", render_mode=render_mode, g=gravity)


@pytest.fixture
def own_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_sim", sys.modules[__name__])


@pytest.mark.usefixtures("own_module")
def test_ones_own_callable_takes_keyword_arguments():
    env = make("own_sim:own_env", EnvSettings(config=("task=counter",)))
    assert env.spec.task_id == "toy/counter"
    vector: Any = make("own_sim:own_gym_env", EnvSettings(num_envs=2, config=("gravity=3.5",)))
    assert [one.unwrapped.g for one in vector._env.envs] == [3.5, 3.5]
    vector.close()
    with pytest.raises(InputError, match=r"gravty: own_sim:own_gym_env knows .* mean gravity\?"):
        make("own_sim:own_gym_env", EnvSettings(config=("gravty=3",)))


@pytest.mark.usefixtures("own_module")
def test_it_is_recorded_and_comes_back_with_the_run(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    settings = small_settings("own_sim:own_env", folder, env_steps=60)
    settings.env.config = ("task=counter",)
    run_until(settings, 20)
    assert json.loads((folder / "settings.json").read_text())["env"]["config"] == ["task=counter"]
    built = []

    def own_env(num_envs, device, task="lqr"):
        built.append(task)
        return make_toy(task, num_envs, device)

    monkeypatch.setattr(sys.modules[__name__], "own_env", own_env)
    finish(launch.resumed_run(folder))
    assert built == ["counter", "counter"]  # training and evaluation


def test_flags_take_several_and_settings_without_the_field_none():
    flags = ["toy/lqr", "--env.config", "a=1", "b.c=x", "--env.num-envs", "3"]
    given = train_settings(flags)
    assert given.env.config == ("a=1", "b.c=x")
    assert from_json(to_json(given)).env.config == ("a=1", "b.c=x")
    assert EnvSettings().config == ()
