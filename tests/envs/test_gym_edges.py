"""Where Gymnasium environments surprise: shared memory, foreign state, dead workers, odd spaces."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from supple.envs import EnvSettings, check_task, gym_facts, known_tasks, make
from supple.envs.base import Box
from supple.envs.check import check_env
from supple.envs.gym import GymVector, wrap_factory
from supple.envs.gym_state import ManagedEnv
from supple.envs.toy import make_toy
from supple.errors import InputError, SimulatorError

CPU = torch.device("cpu")


class Plain(gymnasium.Env[Any, Any]):
    """Counts in one buffer that it returns again and again; ends after three steps."""

    action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,))
    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (1,), dtype=np.float32)

    def __init__(self):
        self.count = np.zeros(1, dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count[:] = 0
        return self.count, {}

    def step(self, action):
        self.count += 1
        end = bool(self.count[0] == 3)
        return self.count, 1.0, end, False, {"is_success": end} if end else {}


def wrapped(factory, vectorization="sync"):
    settings = EnvSettings(num_envs=2, vectorization=vectorization, patience=0)
    return wrap_factory(factory, settings, task_id="own", device=CPU, render=False)


class Wide(Plain):
    observation_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)


class Listed(Plain):
    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward, reward]), *rest


class Swapped(Plain):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, terminated, truncated, -0.7 * reward, info


class Four(Plain):
    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class Worthless(Plain):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, None, *rest


class Alone(Plain):
    def reset(self, *, seed=None, options=None):
        return super().reset()[0]


class Listed2(Plain):
    def reset(self, *, seed=None, options=None):
        return [3.0, -7.0]


class Raising(Plain):
    def step(self, action):
        raise ValueError("its own")


class Disconnected(Plain):
    def step(self, action):
        raise BrokenPipeError("the bridge at 10.0.0.7 hung up")


@pytest.mark.parametrize(
    ("factory", "error", "text"),
    [
        (Wide, SimulatorError, r"an observation has the shape \(1,\), its space says \(2,\)"),
        (Listed, SimulatorError, r"a reward has the shape \(2,\), expected one number"),
        (Swapped, SimulatorError, r"Swapped.step returned -0.7 for truncated, expected \(obser"),
        (Four, SimulatorError, r"Four.step returned a tuple of 4, expected \(observation, reward"),
        (Worthless, SimulatorError, r"Worthless.step returned None for the reward"),
        (Alone, SimulatorError, r"Alone.reset returned a ndarray, expected \(observation, info\)"),
        (Listed2, SimulatorError, r"Listed2.reset returned a list of 2, expected \(obs"),
        (Raising, ValueError, "^its own$"),
        (
            Disconnected,
            SimulatorError,
            "own: BrokenPipeError during a step: the bridge at 10.0.0.7 hung up",
        ),
    ],
)
def test_what_fits_into_no_array_is_named(factory, error, text):
    env = wrapped(factory)
    with pytest.raises(error, match=text):
        env.reset(0)
        env.step(torch.zeros(2, 1))


@pytest.mark.parametrize(
    "kind",
    [
        *(bool, int, float, np.bool_, np.uint8, torch.tensor),
        lambda flag: np.array([flag]),
        lambda flag: torch.tensor([int(flag)]),
        lambda flag: np.array(int(flag)),
    ],
)
def test_flags_may_be_what_stands_for_a_bool(kind):
    class Odd(Plain):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return [obs, reward, kind(terminated), kind(truncated), info]

    with closing(wrapped(Odd)) as env:
        env.reset(0)
        ended = [env.step(torch.zeros(2, 1))["terminated"].tolist() for _ in range(3)]
    assert ended == [[False] * 2, [False] * 2, [True] * 2]


def test_a_class_without_spaces_is_refused():
    class Spaceless(gymnasium.Env[Any, Any]):
        action_space = Plain.action_space

    with pytest.raises(InputError, match="own: Spaceless has no observation_space, expected a"):
        wrapped(Spaceless)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_reused_observation_buffer_does_not_spoil_the_final_observation(vectorization):
    env = wrapped(Plain, vectorization=vectorization)
    env.reset(0)
    for expected in (1, 2, 3):
        step = env.step(torch.zeros(2, 1))
        assert step["final_observation", "policy"].tolist() == [[expected]] * 2
    assert step["observation", "policy"].tolist() == [[0], [0]]
    env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_success_stays_once_seen_and_belongs_to_the_step_not_to_the_reset(mode):
    class Misleading(Plain):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0], {"is_success": True}

    env = GymVector(SyncVectorEnv([Misleading] * 2, autoreset_mode=mode), task_id="own", device=CPU)
    env.reset(0)
    steps = [env.step(torch.zeros(2, 1)) for _ in range(9)]
    seen = [step.get("success", None) for step in steps]
    assert seen[:2] == [None, None]
    for step, success in list(zip(steps, seen, strict=True))[2:]:
        assert torch.equal(success, step["terminated"])


class Careless(SyncVectorEnv):
    """Resets on the next step, and there pays and ends once more."""

    def step(self, actions):
        obs, reward, terminated, truncated, info = super().step(actions)
        bridge = obs[:, 0] == 0
        return obs, reward + 7 * bridge, terminated | bridge, truncated, info


def test_a_bridge_row_is_empty_whatever_the_simulator_says_of_it():
    env = GymVector(Careless([Plain] * 2), task_id="own", device=CPU)
    env.reset(0)
    steps = [env.step(torch.zeros(2, 1)) for _ in range(6)]
    assert [bool(step["valid"].all()) for step in steps] == [True, True, True, False, True, True]
    assert not steps[3]["reward"].any()
    assert not steps[3]["terminated"].any()


def test_a_vector_environment_that_names_no_autoreset_mode_is_refused():
    vector = SyncVectorEnv([Plain] * 2)
    del vector.metadata["autoreset_mode"]
    with pytest.raises(InputError, match=r"autoreset_mode.*= None: expected one of") as error:
        GymVector(vector, task_id="own", device=CPU)
    assert "\n" not in str(error.value)


def test_a_vector_environment_that_takes_one_seed_gets_one():
    vector = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point")
    env = GymVector(vector, task_id="own", device=CPU)
    first = env.reset(1)["observation", "policy"]
    assert torch.equal(env.reset(1)["observation", "policy"], first)
    assert env.spec.max_episode_steps == 500


def test_seeds_fit_simulators_that_hold_them_in_32_bits():
    seeds = []

    class Narrow(Plain):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed)

    wrapped(Narrow).reset(3)
    assert len(set(seeds[-2:])) == 2
    assert all(0 <= seed < 2**31 for seed in seeds[-2:])


def test_discrete_choices_count_from_zero_whatever_the_space_starts_at():
    taken = []

    class Offset(Plain):
        action_space = spaces.Discrete(3, start=5)

        def step(self, action):
            taken.append(int(action))
            return super().step(action)

    env = wrapped(Offset)
    env.reset(0)
    taken.clear()
    env.step(torch.tensor([0, 2]))
    assert taken == [5, 7]


def test_actions_of_another_shape_are_refused():
    env = wrapped(Plain)
    env.reset(0)
    with pytest.raises(InputError, match=r"own: action has shape \(2,\), expected \(2, 1\)"):
        env.step(torch.zeros(2))


def test_a_critic_group_without_policy_never_reaches_the_policy():
    class Leaky(Plain):
        observation_space = spaces.Dict(
            critic=spaces.Box(-1, 1, (2,)), state=spaces.Box(-1, 1, (2,))
        )

    with pytest.raises(InputError, match=r"critic but none named policy"):
        wrapped(Leaky)


def test_a_stateful_wrapper_around_mujoco_takes_back_the_claim_of_exact_resume():
    def stacked(**options):
        return gymnasium.wrappers.FrameStackObservation(
            gymnasium.make("InvertedPendulum-v5", **options), 2
        )

    assert not wrapped(stacked).spec.exact_resume
    assert make("gym/InvertedPendulum-v5", EnvSettings()).spec.exact_resume


def rewards(env, count=40):
    action = torch.full((env.spec.num_envs, env.spec.action.size), 0.3)
    return torch.stack([env.step(action)["reward"] for _ in range(count)])


@pytest.mark.parametrize("task", ["gym/Ant-v5", "gym/MountainCarContinuous-v0"])
def test_one_saved_state_can_be_loaded_more_than_once(task):
    env = make(task, EnvSettings(num_envs=2))
    rewards(env, 5)
    state = env.state_dict()
    first = rewards(env)
    for _ in range(2):
        env.load_state_dict(state)
        assert torch.equal(rewards(env), first)


def test_a_loaded_state_is_not_changed_by_stepping_on():
    env = ManagedEnv(Plain())
    env.reset(seed=0)
    env.step(np.zeros(1))
    state = env.get_state()
    for _ in range(2):
        env.restored_state = state
        assert env.step(np.zeros(1))[0] == 2


def test_a_saved_state_names_no_file_and_changes_no_picture():
    def leaves(tree):
        if isinstance(tree, dict | list | tuple):
            for part in tree.values() if isinstance(tree, dict) else tree:
                yield from leaves(part)
        else:
            yield tree

    env = make("gym/HalfCheetah-v5", EnvSettings())
    state = env.state_dict()
    assert {leaf for leaf in leaves(state) if isinstance(leaf, str)} == {"PCG64"}
    drawn = make("gym/HalfCheetah-v5", EnvSettings(), render=True)
    drawn.load_state_dict(state)
    assert isinstance(drawn, GymVector)
    assert drawn._env.envs[0].unwrapped.render_mode == "rgb_array"
    drawn.close()


def test_a_state_of_another_number_of_environments_is_refused():
    env, other = (make("gym/Pendulum-v1", EnvSettings(num_envs=n)) for n in (2, 3))
    with pytest.raises(InputError, match=r"holds 2 environments, expected 3.*num_envs=2"):
        other.load_state_dict(env.state_dict())


def test_workers_start_as_the_platform_does_whatever_was_imported():
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)  # as torchrl does when imported
    try:
        env = make("gym/Pendulum-v1", EnvSettings(num_envs=2, vectorization="async"))
        assert isinstance(env, GymVector)
        workers = {type(process)._start_method for process in env._env.processes}
        env.close()
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert workers == {multiprocessing.get_all_start_methods()[0]}


def test_a_dead_worker_is_an_error_and_closing_does_not_hang():
    env = make("gym/Pendulum-v1", EnvSettings(num_envs=2, vectorization="async"))
    assert isinstance(env, GymVector)
    processes = env._env.processes
    os.kill(processes[1].pid, signal.SIGKILL)
    processes[1].join()
    began = time.monotonic()
    with pytest.raises(SimulatorError, match=r"gym/Pendulum-v1: a worker process died"):
        for _ in range(3):
            env.step(torch.zeros(2, 1))
    env.close()
    assert time.monotonic() - began < 5
    assert not any(process.is_alive() for process in processes)


def test_closing_while_a_worker_is_waited_for_does_not_hang():
    env = make("gym/Pendulum-v1", EnvSettings(num_envs=2, vectorization="async"))
    assert isinstance(env, GymVector)
    env.reset(0)
    env._env.step_async(np.zeros((2, 1), np.float32))  # Ctrl-C before the answer
    os.kill(env._env.processes[1].pid, signal.SIGSTOP)
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < 5
    assert not any(process.is_alive() for process in env._env.processes)


def test_a_script_that_closes_nothing_ends():
    script = (
        "from supple.envs import EnvSettings, make\n"
        "env = make('gym/Pendulum-v1', EnvSettings(num_envs=2, vectorization='async'))\n"
        "env.reset(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_workers_survive_ctrl_c():
    env = wrapped(Plain, vectorization="async")
    env.reset(0)
    for process in env._env.processes:
        os.kill(process.pid, signal.SIGINT)
    assert env.step(torch.zeros(2, 1))["reward"].tolist() == [1, 1]
    assert all(process.is_alive() for process in env._env.processes)
    env.close()


def test_ctrl_c_still_ends_a_run_that_is_itself_a_child_process(monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    before = signal.getsignal(signal.SIGINT)
    wrapped(Plain, vectorization="async").close()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_grouped_observations_keep_their_final_values(vectorization):
    class Grouped(Plain):
        observation_space = spaces.Dict(
            policy=spaces.Box(-9, 9, (1,)),
            critic=spaces.Tuple((spaces.Discrete(4), spaces.Box(-9, 9, (1,)))),
        )

        def grouped(self, obs, *rest):
            return {"policy": obs, "critic": (int(obs[0]), 2 * obs)}, *rest

        def reset(self, *, seed=None, options=None):
            return self.grouped(*super().reset(seed=seed))

        def step(self, action):
            return self.grouped(*super().step(action))

    env = wrapped(Grouped, vectorization=vectorization)
    env.reset(0)
    step = [env.step(torch.zeros(2, 1)) for _ in range(3)][-1]
    assert step["final_observation", "policy"].tolist() == [[3]] * 2
    assert step["final_observation", "critic"].tolist() == [[0, 0, 0, 1, 6]] * 2
    assert step["observation", "critic"].tolist() == [[1, 0, 0, 0, 0]] * 2
    env.close()


@pytest.mark.parametrize("takes_render_mode", [False, True])
def test_an_environment_without_a_picture_says_so(takes_render_mode, monkeypatch):
    class Unseen(Plain):
        def __init__(self, render_mode):
            super().__init__()
            self.render_mode = render_mode

    entry: Any = Unseen if takes_render_mode else Plain
    spec = gymnasium.envs.registration.EnvSpec(id="Unseen-v0", entry_point=entry)
    monkeypatch.setitem(gymnasium.registry, "Unseen-v0", spec)
    env = make("gym/Unseen-v0", EnvSettings(), render=True)
    with pytest.raises(NotImplementedError, match=r"gym/Unseen-v0 has no "):
        env.render()


@pytest.mark.parametrize("render", [False, True])
def test_a_value_that_an_environment_without_a_picture_refuses_is_a_line(render, monkeypatch):
    class Sized(Plain):
        def __init__(self, size=1):
            super().__init__()
            if size < 1:
                raise ValueError("too small")

    entry: Any = Sized
    spec = gymnasium.envs.registration.EnvSpec(id="Sized-v0", entry_point=entry)
    monkeypatch.setitem(gymnasium.registry, "Sized-v0", spec)
    with pytest.raises(InputError, match=r"size=0: gym/Sized-v0 cannot be made so: .*too small"):
        make("gym/Sized-v0", EnvSettings(config=("size=0",)), render=render)


def test_arguments_reach_an_id_whose_module_is_to_be_imported(tmp_path, monkeypatch):
    (tmp_path / "registers_swing.py").write_text(
        "import gymnasium\n"
        "pendulum = gymnasium.spec('Pendulum-v1').entry_point\n"
        "gymnasium.register('Swing-v0', entry_point=pendulum)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = make("gym/registers_swing:Swing-v0", EnvSettings(config=("g=3",)))
    assert isinstance(env, GymVector)
    assert env._env.envs[0].unwrapped.g == 3
    gymnasium.registry.pop("Swing-v0")


def test_a_missing_drawing_library_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = make("gym/Pendulum-v1", EnvSettings(), render=True)
    with pytest.raises(InputError, match=r"cannot draw: .*pygame") as error:
        env.render()
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r'gym/Ant-v5 needs packages .*-e "\.\[mujoco\]"'):
        make("gym/Ant-v5", EnvSettings())


def test_building_a_mujoco_robot_is_silent(capfd, recwarn):
    make("gym/HalfCheetah-v5", EnvSettings(num_envs=2)).close()
    assert capfd.readouterr() == ("", "")
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]


@pytest.mark.parametrize("task", ["toy/lqr", "gym/Pendulum-v1"])
def test_make_starts_from_its_seed(task):
    def first(seed):
        env = make(task, EnvSettings(num_envs=2), seed=seed)
        return env.step(torch.zeros(2, env.spec.action.size))["observation", "policy"]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def qpos_channels(env):
    return [channel.name for channel in env.spec.channels if channel.name.endswith("_pos")]


@pytest.mark.parametrize(
    ("task", "positions", "first"),
    [
        ("HalfCheetah-v4", 8, "rootz_pos"),
        ("Ant-v4", 13, "root_z_pos"),
        ("Ant-v5", 13, "root_z_pos"),
    ],
)
def test_channels_follow_the_models_joints_in_old_versions_too(task, positions, first):
    names = qpos_channels(make(f"gym/{task}", EnvSettings()))
    assert (len(names), names[0]) == (positions, first)


def test_channels_of_an_observation_in_another_order_are_unknown():
    def reversed_ant(**options):
        env = gymnasium.make("Ant-v5", **options)
        return gymnasium.wrappers.TransformObservation(
            env, lambda obs: obs[::-1].copy(), env.observation_space
        )

    assert wrapped(reversed_ant).spec.channels is None


def test_ids_that_moved_away_are_not_listed_and_imports_in_ids_are_left_to_gymnasium():
    assert not {"HalfCheetah-v2", "HalfCheetah-v3"} & set(known_tasks()["gym"].tasks)
    with pytest.raises(InputError, match=r"did you mean .*gym/HalfCheetah-v"):
        check_task("gym/HalfCheetah-v3")
    check_task("gym/some_package:Robot-v0")


def fixed_size(num_envs):
    from supple.envs.toy import make_toy

    return make_toy("lqr", 5, CPU)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"action": Box(low=(-np.inf,), high=(np.inf,), clip=False)}, "finite low < high"),
        ({"action": Box(low=[-1.0], high=[1.0])}, "plain int, float, str and tuples"),  # type: ignore[arg-type]
        ({"action": Box(low=np.zeros(1), high=np.ones(1))}, "not JSON serializable"),  # type: ignore[arg-type]
        ({"observation": {"obs": 2}}, "expected one named 'policy'"),
    ],
    ids=["no bounds", "lists", "arrays", "no policy"],
)
def test_facts_that_no_export_or_resume_could_use_are_refused_before_training(
    facts, said, monkeypatch
):
    def own():
        toy = make_toy("lqr", 2, CPU)
        toy.spec = replace(toy.spec, **facts)
        return toy

    monkeypatch.setattr("supple.envs.custom.load", lambda task: own)
    with pytest.raises(InputError, match=said):
        make("own_sim:own", EnvSettings(num_envs=2))


def factory_of_factories():
    return Plain


def factory_of_fixed_size(num_envs):
    return fixed_size


def test_callables_are_held_to_what_they_were_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_sim", sys.modules[__name__])
    with pytest.raises(InputError, match=r"built 5 environments, asked for num_envs=2"):
        make("own_sim:fixed_size", EnvSettings(num_envs=2))
    with pytest.raises(InputError, match=r"built 5 environments, asked for num_envs=2"):
        make("own_sim:factory_of_fixed_size", EnvSettings(num_envs=2))
    assert make("own_sim:factory_of_factories", EnvSettings(num_envs=2)).spec.num_envs == 2


def test_the_checker_passes_a_mujoco_robot_across_episodes():
    findings = check_env(lambda: make("gym/Hopper-v5", EnvSettings(num_envs=2)), steps=120)
    assert all(finding.ok for finding in findings), findings


def test_the_camera_follows_a_robot_that_runs_away():
    mujoco = pytest.importorskip("mujoco")
    env = make("gym/HalfCheetah-v5", EnvSettings(), render=True)
    assert isinstance(env, GymVector)
    env.reset(0)
    robot = env._env.envs[0].unwrapped
    for position in (0.0, 50.0):
        robot.data.qpos[0] = position
        mujoco.mj_forward(robot.model, robot.data)
        red, _, blue = np.moveaxis(env.render().astype(int), -1, 0)
        assert (red - blue > 40).sum() > 1000, "no orange robot in the picture"
    env.close()


def any_number_of_toys(**options):
    return make_toy("lqr", options.get("num_envs", 2), torch.device("cpu"))


def test_a_callable_that_was_not_told_how_many_may_not_build_another_number(monkeypatch):
    monkeypatch.setattr("supple.envs.custom.load", lambda task: any_number_of_toys)
    with closing(make("own:toys", EnvSettings(num_envs=2))) as env:
        assert env.spec.num_envs == 2
    with pytest.raises(InputError, match="it is told how many if it names num_envs"):
        make("own:toys", EnvSettings(num_envs=64))


class Drawn(gymnasium.Env[Any, Any]):
    action_space, observation_space = Plain.action_space, Plain.observation_space

    def __init__(self, **options):
        self.render_mode = options.get("render_mode")

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)


def test_a_class_that_takes_anything_is_told_how_to_draw(monkeypatch):
    monkeypatch.setattr("supple.envs.custom.load", lambda task: Drawn)
    with closing(make("own:drawn", EnvSettings(), render=True)) as env:
        assert np.asarray(env.render()).ndim == 3


TWICE = """<mujoco><worldbody><body><joint name="{name}"/><geom size="1"/></body></worldbody>
<actuator><position joint="{name}" kp="1"/>{more}</actuator></mujoco>"""


@pytest.mark.parametrize(("name", "more"), [("hip", '<velocity joint="hip"/>'), ("hip", "")])
def test_joints_that_are_driven_twice_are_not_described(name, more):
    model = mujoco.MjModel.from_xml_string(TWICE.format(name=name, more=more))
    robot: Any = SimpleNamespace(unwrapped=SimpleNamespace(model=model))
    action = Box(low=(-1.0,) * model.nu, high=(1.0,) * model.nu)
    found = gym_facts.deployment(robot, action)
    assert (found is None) == bool(more)
