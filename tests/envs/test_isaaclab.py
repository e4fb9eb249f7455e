"""Isaac Lab's contract on a stand-in; the simulator itself where it is installed."""

import math
import os
from types import SimpleNamespace
from typing import Any

import mujoco
import pytest
import torch

from supple.envs import EnvSettings, isaaclab, make, managers, mjlab
from supple.envs.base import Deployment
from supple.envs.check import check_env
from supple.envs.isaaclab import IsaacLab
from supple.errors import InputError, SimulatorError
from tests.envs.fake_isaac import FAILS_AT, LIMIT
from tests.envs.fake_isaaclab import FakeIsaacLab

J2 = ("hip", "knee")
B2 = (("b", 1), ("b", 0))


def wrapped(**options):
    return IsaacLab(FakeIsaacLab(**options), task_id="isaaclab/fake")


def test_a_joints_scale_is_per_unit_of_the_policys_action():
    term = SimpleNamespace(_joint_names=["hip", "knee"], _scale=0.5, _offset=0.1)
    facts = managers.action_facts(term, 3.0, None)  # the policy's 1 is the simulator's 3
    assert facts["action_scale"] == (1.5, 1.5)
    assert facts["action_offset"] == (0.1, 0.1)


def named(kind, **fields):
    """An action term whose class has this name."""
    return type(kind, (), fields)()


def acting(module="isaaclab.envs.mdp", **config):
    """A joint action of a simulator, or of a task that processes actions in its own way."""

    def process_actions(self, actions):
        pass

    process_actions.__module__ = module
    methods = {"process_actions": process_actions, "apply_actions": process_actions}
    fields = {"_joint_names": ["hip", "knee"], "_scale": 0.5, "_offset": 0.1}
    return named("JointPositionAction", cfg=SimpleNamespace(**config), **methods, **fields)


@pytest.mark.parametrize(
    ("term", "low", "high", "filtered"),
    [
        (acting(clip=None), False, False, False),
        (acting("mjlab.envs.mdp", clip=None), False, False, False),
        (acting(clip={"h.*": (-0.2, 0.3)}), (-0.2, -math.inf), (0.3, math.inf), False),
        (acting(clip=(-1, 1)), None, None, False),
        (acting(), None, None, False),
        (acting("my_task", clip={"hip": (-0.2, 0.3)}), None, None, None),
    ],
)
def test_what_clips_commands_is_known_of_the_simulators_own_actions(term, low, high, filtered):
    facts = managers.action_facts(term, 3.0, None)  # clipped in the command's unit
    found = Deployment(**facts)
    assert (found.action_clip_low, found.action_clip_high) == (low, high)
    assert found.action_filter is filtered


def managed(term, **terms):
    """An environment of one action term and some observation terms, each (width, config)."""
    observed = SimpleNamespace(
        active_terms={"policy": list(terms)},
        group_obs_term_dim={"policy": [(width,) for width, _ in terms.values()]},
        _group_obs_term_cfgs={"policy": [config for _, config in terms.values()]},
    )
    acting = SimpleNamespace(active_terms=["arm"], get_term=lambda _: term)
    return SimpleNamespace(action_manager=acting, observation_manager=observed)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JointPositionAction", "position"),
        ("RelativeJointPositionAction", "delta"),
        ("JointPositionToLimitsAction", None),
        ("DifferentialInverseKinematicsAction", None),
    ],
)
def test_only_commands_of_joints_are_taken_for_such(kind, mode):
    term = named(kind, _joint_names=["hip", "knee"], _scale=torch.ones(3, 6))
    assert managers.mode_of(term) == mode
    assert (managers.joint_action(managed(term)) is term) == (mode is not None)


def test_noise_is_scaled_entry_by_entry_and_actions_follow_their_term():
    term = named("JointPositionAction", _joint_names=["knee", "hip"])
    noise = SimpleNamespace(operation="add", n_min=-0.3, n_max=0.3)
    scaled = SimpleNamespace(scale=torch.tensor([1.0, 2.0]), noise=noise, clip=None)
    plain = SimpleNamespace(scale=None, noise=None, clip=None)
    env = managed(term, joint_pos=(2, scaled), actions=(2, plain))
    found = managers.channels(env, {"policy": ["policy"]}, ("hip", "knee"))
    assert found is not None
    assert [channel.name for channel in found] == [
        *("joint_pos[hip]", "joint_pos[knee]", "actions[knee]", "actions[hip]"),
    ]
    sizes = [channel.noise for channel in found]
    assert sizes == [pytest.approx(0.6 / 12**0.5), pytest.approx(1.2 / 12**0.5), None, None]


def observing(places, asset="robot", names=("hip", "knee")):
    """What a term takes of the scene, resolved, as in its parameters."""
    return SimpleNamespace(name=asset, joint_names=list(names), joint_ids=places)


@pytest.mark.parametrize(
    ("params", "entries"),
    [
        ({}, ["hip", "knee"]),
        ({"asset_cfg": observing(slice(None))}, ["hip", "knee"]),
        ({"asset_cfg": observing([1, 0])}, ["knee", "hip"]),  # preserve_order
        ({"asset_cfg": observing(torch.tensor([1, 0]))}, ["knee", "hip"]),
        ({"asset_cfg": observing([0, 1], asset="cabinet")}, ["0", "1"]),
        ({"asset_cfg": observing([0, 7])}, ["0", "1"]),
        ({"one": observing([0]), "other": observing([1])}, ["0", "1"]),
    ],
)
@pytest.mark.parametrize("field", ["asset_name", "entity_name"])
def test_entries_are_named_after_the_joints_that_they_show(params, entries, field):
    config = SimpleNamespace(**{field: "robot"})
    term = named("JointPositionAction", _joint_names=["hip", "knee"], cfg=config)
    shown = SimpleNamespace(scale=None, noise=None, clip=None, params=params)
    found = managers.channels(managed(term, joint_pos=(2, shown)), {"p": ["policy"]}, J2)
    assert [channel.name for channel in found or ()] == [f"joint_pos[{each}]" for each in entries]


def test_a_joint_that_slides_is_in_metres():
    term = named("JointPositionAction", _joint_names=["hip", "knee"])
    plain = SimpleNamespace(scale=None, noise=None, clip=None)
    env = managed(term, joint_pos=(2, plain), joint_vel=(2, plain), phase=(1, plain))
    found = managers.channels(env, {"policy": ["policy"]}, J2, sliding={"knee"})
    assert [channel.unit for channel in found or ()] == ["rad", "m", "rad/s", "m/s", None]


def test_an_entry_of_some_of_the_joints_is_named_too():
    term = named("JointPositionAction", _joint_names=["knee"], cfg=SimpleNamespace(asset_name="r"))
    params = {"asset_cfg": observing([1], asset="r")}
    one = SimpleNamespace(scale=None, noise=None, clip=None, params=params, history_length=2)
    found = managers.channels(managed(term, joint_vel=(2, one)), {"policy": ["policy"]}, J2)
    # One entry needs no name; what it shows is in its parameters.
    assert [(channel.name, channel.history) for channel in found or ()] == [
        *(("joint_vel", 1), ("joint_vel", 0)),
    ]


@pytest.mark.parametrize(
    ("flat", "joined", "axis", "frames"),
    [
        (False, True, -1, True),
        (False, True, 2, True),
        (False, True, 1, False),
        (True, True, -1, False),
        (False, False, -1, False),
    ],
)
def test_frames_that_are_kept_apart_and_joined_along_the_last_axis_lie_frame_by_frame(
    flat, joined, axis, frames
):
    told = {"scale": None, "noise": None, "clip": None, "history_length": 2}
    config = SimpleNamespace(flatten_history_dim=flat, **told)
    env = managed(named("JointEffortAction"), a=(2, config), b=(2, config))
    manager = env.observation_manager
    manager.group_obs_term_dim = {"policy": [(2, 1), (2, 1)]}
    manager._group_obs_concatenate = {"policy": joined}
    manager._group_obs_concatenate_dim = {"policy": axis}
    found = managers.channels(env, {"policy": ["policy"]}, ())
    assert [(channel.name, channel.history) for channel in found or ()] == (
        [("a", 1), ("b", 1), ("a", 0), ("b", 0)] if frames else [("a", 1), ("a", 0), *B2]
    )


def test_a_group_that_joins_others_has_their_entries_in_that_order():
    plain = SimpleNamespace(scale=None, noise=None, clip=None, history_length=0)
    env = managed(named("JointEffortAction"), phase=(1, plain))
    manager = env.observation_manager
    for table in (manager.active_terms, manager.group_obs_term_dim, manager._group_obs_term_cfgs):
        table["proprio"] = table["policy"]
    manager.active_terms["proprio"] = ["height"]
    found = managers.channels(env, {"policy": ["proprio", "policy"]}, ())
    assert [(channel.name, channel.group) for channel in found or ()] == [
        *(("height", "policy"), ("phase", "policy")),
    ]
    assert managers.history_length(env, ["proprio", "policy"]) == 1


def test_terms_tell_scale_clip_and_parameters_and_groups_may_lie_frame_by_frame():
    told = {"noise": None, "history_length": 2, "params": {"period": 0.8}}
    phase = SimpleNamespace(scale=torch.tensor((0.2, 2.0)), clip=(-1, 1), modifiers=None, **told)
    filtered = SimpleNamespace(scale=None, clip=None, modifiers=["filter"], **told)
    env = managed(named("JointEffortAction"), phase=(4, phase), height=(2, filtered))

    def found(*names):
        channels = managers.channels(env, {"policy": ["policy"]}, ())
        return [tuple(getattr(channel, name) for name in names) for channel in channels or ()]

    assert found("term", "scale", "clip", "history") == [
        *(("phase", scale, (-1.0, 1.0), age) for age in (1, 0) for scale in (0.2, 2.0)),
        # What a modifier did before them nobody can say with a scale and a clip.
        *(("height", None, None, age) for age in (1, 0)),
    ]
    assert found("params") == [({"period": 0.8},)] * 6
    env.observation_manager._group_obs_time_major = {"policy": True}
    assert found("term", "history") == [
        (term, age) for age in (1, 0) for term in ("phase", "phase", "height")
    ]


def test_commands_tell_their_ranges():
    ranges = {"lin_vel_x": (-0.5, 1.0), "heading": None}
    terms = {
        "twist": SimpleNamespace(cfg=SimpleNamespace(ranges=ranges)),
        "grown": SimpleNamespace(cfg=SimpleNamespace(ranges=ranges, limit_ranges={"x": (-2, 2)})),
        "motion": SimpleNamespace(cfg=SimpleNamespace()),
        "odd": SimpleNamespace(cfg=SimpleNamespace(ranges={"x": object()})),
    }
    manager = SimpleNamespace(active_terms=list(terms), get_term=terms.get)
    assert managers.commands(SimpleNamespace(command_manager=manager)) == {
        "twist": {"lin_vel_x": [-0.5, 1.0], "heading": None},
        "grown": {"x": [-2, 2]},
        "motion": None,
        "odd": None,
    }
    assert managers.commands(SimpleNamespace()) is None


def test_the_robots_joint_order_is_its_sdks_where_that_is_told_and_else_unknown():
    robot = SimpleNamespace(joint_names=["a", "b"], cfg=SimpleNamespace(joint_sdk_names=["b", "a"]))
    assert managers.sdk_joint_names(robot) == ("b", "a")
    robot.cfg = SimpleNamespace()
    assert managers.sdk_joint_names(robot) is None
    assert known_of(randomised()).robot_joint_names is None


def group(kinds, names, *, configured=None, **held):
    """An actuator group and its configuration, whose class and bases have these names."""
    config: type = object
    for kind in kinds.split():
        config = type(f"{kind}Cfg", (config,), {})
    own = config()
    for name, value in (configured or {}).items():
        setattr(own, name, value)
    tensors = {name: torch.tensor([value] * 3) for name, value in held.items()}
    return SimpleNamespace(joint_names=names, **tensors), own


def drives(*groups, joints=("hip", "knee")):
    named = {str(index): each for index, (each, _) in enumerate(groups)}
    configs = {str(index): each for index, (_, each) in enumerate(groups)}
    robot = SimpleNamespace(actuators=named, cfg=SimpleNamespace(actuators=configs))
    return isaaclab._drives(robot, joints)


def test_gains_are_those_of_the_actuator_groups_and_not_of_the_solvers_drives():
    found = drives(
        group("DCMotor", ["toe"], stiffness=[1.0]),
        group(
            *("IdealPDActuator DCMotor", ["knee"]),
            **{"stiffness": [40.0], "damping": [1.5], "effort_limit": [23.5]},
        ),
        group(
            *("ImplicitActuator", ["hip", "waist"]),
            **{"stiffness": [20.0, 60.0], "damping": [0.5, 2.0], "effort_limit_sim": [9.0, 9.0]},
        ),
    )
    assert found == {
        "stiffness": (20.0, 40.0),
        "damping": (0.5, 1.5),
        "effort_limit": (9.0, 23.5),
    }


def test_the_gains_of_a_learned_actuator_and_of_unknown_ones_stay_unknown():
    held = {"stiffness": [0.0, 0.0], "damping": [0.0, 0.0], "effort_limit": [80.0, 80.0]}
    net = group("IdealPDActuator DCMotor ActuatorNetLSTM", ["hip", "knee"], **held)
    assert drives(net) == {"stiffness": None, "damping": None, "effort_limit": (80.0, 80.0)}
    own = group("Muscle", ["hip", "knee"], stiffness=[3.0, 3.0])
    assert drives(own) == dict.fromkeys(("stiffness", "damping", "effort_limit"))
    assert drives(group("ImplicitActuator", ["hip"], stiffness=[3.0]))["stiffness"] is None


def test_gains_of_a_group_that_newton_executes_are_its_configurations():
    told = {"stiffness": {".*hip": 20.0, "knee": 40.0}, "damping": 0.5, "effort_limit": None}
    _, config = group("IdealPDActuator", [], configured=told)
    groups = type("Collection", (dict,), {"_group_joint_names": {"legs": ["knee", "hip"]}})
    robot = SimpleNamespace(
        actuators=groups(legs=(object(), object())), cfg=SimpleNamespace(actuators={"legs": config})
    )
    assert isaaclab._drives(robot, ("hip", "knee")) == {
        "stiffness": (20.0, 40.0),
        "damping": (0.5, 0.5),
        "effort_limit": None,
    }


def randomised(kind="JointPositionAction", **config):
    """Two environments that differ in all but scale and speed, and what was configured."""
    told = SimpleNamespace(joint_pos={"hip": 0.3})
    data = {
        "default_joint_pos": [[0.31, 0.02], [0.28, -0.01]],
        "joint_pos_limits": [[[-1.0, 1.1], [-2.0, 2.0]], [[-1.0, 1.2], [-2.0, 2.0]]],
        "joint_vel_limits": [[30.0, 30.0]] * 2,
    }
    rows = {name: torch.tensor(value) for name, value in data.items()}
    robot = SimpleNamespace(
        joint_names=["hip", "knee"],
        data=SimpleNamespace(**rows),
        actuators={},
        cfg=SimpleNamespace(init_state=told),
    )
    fields = {"_joint_names": ["hip", "knee"], "_joint_ids": slice(None), "_asset": robot}
    own = {"_scale": 0.25, "_offset": rows["default_joint_pos"], "cfg": SimpleNamespace(**config)}
    return named(kind, **fields, **own)


def known_of(term):
    env = managed(term)
    env.physics_dt, env.cfg = 0.005, SimpleNamespace(decimation=4)
    return isaaclab._deployment(env, term, ["policy"], 1.0)


def test_what_a_randomisation_drew_is_not_taken_for_the_robots():
    found = known_of(randomised(use_default_offset=True))
    assert found.default_position == found.action_offset == (0.3, 0.0)
    assert found.action_scale == (0.25, 0.25)
    assert found.position_limit_low == (-1.0, -2.0)
    assert found.position_limit_high is None
    assert found.velocity_limit == (30.0, 30.0)
    assert known_of(randomised(offset={"hip": 0.1})).action_offset == pytest.approx((0.1, 0.0))


SCENE = """<mujoco><worldbody>
<body><joint name="robot/hip"/><geom size=".1"/>
<body pos="0 0 .3"><joint name="robot/knee"/><geom size=".1"/></body>
<body pos="0 0 .4"><joint name="robot/finger" type="slide"/><geom size=".1"/></body></body>
<body pos="1 0 0"><joint name="opponent/hip"/><geom size=".1"/></body></worldbody>
<tendon><fixed name="grip"><joint joint="robot/finger" coef="1"/></fixed></tendon>
<actuator><position joint="robot/hip" kp="100" kv="5" forcerange="-80 80"/>
<position joint="robot/knee" kp="60" kv="3" forcerange="-40 40"/>
<position joint="opponent/hip" kp="5" kv="1" forcerange="-4 4"/>
<position tendon="grip" kp="2000" kv="20" forcerange="-7 7"/>{more}</actuator></mujoco>"""


def scene(change=("", ""), more=""):
    return mujoco.MjModel.from_xml_string(SCENE.replace(*change).replace("{more}", more))


def test_gains_are_those_of_the_actuator_that_drives_the_joint_itself():
    # Of another entity, or on a tendon with a joint's number, there are others.
    legs = ["robot/hip", "robot/knee"]
    assert mjlab._gains(scene(), legs) == {
        "stiffness": (100.0, 60.0),
        "damping": (5.0, 3.0),
        "effort_limit": (80.0, 40.0),
    }
    assert mjlab._gains(scene(), ["opponent/hip"])["stiffness"] == (5.0,)
    assert mjlab._gains(scene(), ["robot/finger"]) == {}  # by a tendon only
    assert mjlab._gains(scene(more='<motor joint="robot/hip"/>'), legs) == {}  # by two


def test_behind_a_gear_a_limit_is_the_joints_and_gains_are_not_known():
    model = scene(('joint="robot/hip"', 'joint="robot/hip" gear="-9"'))
    found = mjlab._gains(model, ["robot/hip", "robot/knee"])
    assert (found["stiffness"], found["damping"]) == (None, None)
    assert found["effort_limit"] == (720.0, 40.0)
    data = mujoco.MjData(model)
    data.ctrl[0] = 1e6
    mujoco.mj_forward(model, data)
    assert abs(data.qfrc_actuator[0]) == 720.0


def test_mjlab_is_asked_for_what_it_compiled_and_configured():
    term = randomised(use_default_offset=True)
    term._entity, term.target_ids, term.target_names = term._asset, [0, 1], ["hip", "knee"]
    limits = torch.tensor([[[-1.0, 1.0], [-2.0, 2.0]]] * 2)
    term._entity.data.default_joint_pos_limits = limits
    term._entity.cfg.init_state.joint_pos = {"h.*": 0.3, "k.*": -0.6}
    env = managed(term)
    env.physics_dt, env.cfg = 0.005, SimpleNamespace(decimation=4)
    env.sim = SimpleNamespace(mj_model=scene())
    term.cfg.entity_name = "robot"
    found = mjlab._deployment(env, ["policy"], 1.0)
    assert found is not None
    assert (found.stiffness, found.effort_limit) == ((100.0, 60.0), (80.0, 40.0))
    assert found.robot_joint_names is None
    assert found.default_position == found.action_offset == (0.3, -0.6)
    assert found.position_limit_low == (-1.0, -2.0)
    assert found.position_limit_high == (1.0, 2.0)


def test_without_a_known_offset_a_scale_maps_nothing():
    found = known_of(randomised("JointVelocityAction", use_default_offset=True))
    assert (found.action_scale, found.action_offset) == (None, None)
    gains = group("ImplicitActuator", ["hip", "knee"], configured={"stiffness": {"hip": 20.0}})
    gains[0].stiffness = torch.tensor([[19.0, 41.0], [22.0, 38.0]])
    assert drives(gains)["stiffness"] is None  # the knee's is the asset's, which nobody kept
    gains[1].stiffness["knee"] = 40.0
    assert drives(gains)["stiffness"] == (20.0, 40.0)


def test_isaac_labs_contract_is_kept():
    found = check_env(wrapped, steps=60)
    assert not [finding for finding in found if not finding.ok]


def test_groups_timing_and_bounds_are_read():
    spec = wrapped().spec
    assert dict(spec.observation) == {"policy": 4, "critic": 5}
    assert (spec.control_dt, spec.has_final_obs) == (0.02, True)
    assert (spec.deployment.sim_dt, spec.deployment.decimation) == (0.005, 4)
    assert not spec.action.clip


def test_a_final_observation_left_from_an_earlier_end_is_refused():
    env = wrapped()
    env.reset(0)
    for _ in range(FAILS_AT):
        step = env.step(torch.zeros(3, 2))
    assert step["final_observation", "policy"][1, 2] == FAILS_AT
    env._env.cfg.compute_final_obs = False
    with pytest.raises(SimulatorError, match="without extras"):
        for _ in range(FAILS_AT):
            env.step(torch.zeros(3, 2))


class ModifierBase:
    """As Isaac Lab's modifiers that remember: a running sum."""

    def __init__(self):
        self.sum = torch.zeros(3)

    def __call__(self, data):
        self.sum = self.sum + data
        return self.sum


class Summing(FakeIsaacLab):
    """Its observation goes through a modifier, by a manager that is asked once more at ends."""

    def __init__(self):
        super().__init__()
        self.filter = ModifierBase()
        self.observation_manager = SimpleNamespace(
            compute=self.compute,
            active_terms={"policy": [], "critic": []},
            group_obs_term_dim={"policy": [], "critic": []},
            _group_obs_term_cfgs={"policy": [], "critic": []},
            _group_obs_class_instances=[self.filter, object()],
        )

    def compute(self, update_history=False):
        self.compute_observations()
        summed = self.filter(self.obs_buf[:, 2])[:, None].clone()
        return {"policy": summed, "critic": summed.clone()}

    def groups(self):
        last = torch.equal(self.steps, self.before)  # a second look at the same step
        self.before = self.steps.clone()
        return self.observation_manager.compute(update_history=not last)

    before = torch.zeros(3)

    def step(self, actions):
        self.advance(actions)
        ended = self.terminated | self.time_outs
        if ended.any():
            self.extras["final_obs"] = self.observation_manager.compute()
            self.begin_again(ended.nonzero().squeeze(-1))
            self.filter.sum[ended] = 0
        self.obs = self.observation_manager.compute(update_history=True)
        return self.obs, self.rew_buf, self.terminated, self.time_outs, self.extras

    def reset(self, seed=None, options=None):
        self.begin_again(torch.arange(self.num_envs))
        self.filter.sum = torch.zeros(3)
        return self.observation_manager.compute(update_history=True), self.extras


def test_a_filter_is_not_moved_on_where_another_environment_ended():
    env = IsaacLab(Summing(), task_id="isaaclab/summing")
    env.reset(0)
    seen = [env.step(torch.zeros(3, 2)) for _ in range(FAILS_AT + 1)]
    assert seen[FAILS_AT - 1]["terminated"].tolist() == [False, True, False]
    sums = [step["observation", "policy"][0].item() for step in seen]
    assert sums == [1.0, 3.0, 6.0, 10.0, 15.0]
    assert seen[FAILS_AT - 1]["final_observation", "policy"][1].item() == 10.0


class Forgetful(FakeIsaacLab):
    """As HumanoidAmpEnv: whatever computes its observation begins new extras."""

    def groups(self):
        observed = super().groups()
        self.extras = {"amp_obs": observed["policy"]}
        return observed

    def _reset_envs_from_buffer(self):
        rows = (self.terminated | self.time_outs).nonzero().squeeze(-1)
        if len(rows):
            self.extras["final_obs"] = self.groups()
            self.begin_again(rows)
        return rows

    def step(self, actions):
        self.advance(actions)
        self._reset_envs_from_buffer()
        return self.result()


def test_a_final_observation_is_kept_where_the_task_begins_new_extras():
    env = IsaacLab(Forgetful(), task_id="isaaclab/forgetful")
    env.reset(0)
    for count in range(1, 2 * LIMIT):
        step = env.step(torch.zeros(3, 2))
        ended = step["terminated"] | step["truncated"]
        assert ended[1] == (count % FAILS_AT == 0)
        if ended[1]:
            assert step["final_observation", "policy"][1, 2] == FAILS_AT
            assert step["observation", "policy"][1, 2] == 0


@pytest.mark.parametrize("final", [True, False])
def test_terms_whose_newest_frame_a_final_observation_lacks_are_named(final, capsys):
    plain, framed, late = (
        SimpleNamespace(noise=None, scale=None, clip=None, history_length=length, delay_max_lag=lag)
        for length, lag in ((0, 0), (2, 0), (0, 1))
    )
    fake: Any = FakeIsaacLab(final=final)
    terms = {"phase": (2, plain), "height": (2, framed), "rate": (2, late)}
    known = managed(named("JointEffortAction"), **terms)
    fake.observation_manager = known.observation_manager
    manager = fake.observation_manager
    for table in (manager.active_terms, manager.group_obs_term_dim, manager._group_obs_term_cfgs):
        table["critic"] = table["policy"]
    IsaacLab(fake, task_id=f"isaaclab/framed-{final}")
    said = capsys.readouterr().err
    each = "policy/height, policy/rate, critic/height, critic/rate"
    assert (f"lack the newest frame of {each}, as" in said) == final


def test_the_time_limit_of_a_finite_horizon_is_an_end_of_the_task():
    env = wrapped(finite=True)
    env.reset(0)
    steps = [env.step(torch.zeros(3, 2)) for _ in range(LIMIT)]
    assert steps[-1]["terminated"].tolist() == [True, True, True]
    assert not any(step["truncated"].any() for step in steps)


@pytest.mark.sim("isaaclab_tasks")
def test_the_published_tasks_are_registered():
    assert set(isaaclab.TASKS) <= set(isaaclab.tasks())


@pytest.mark.sim("isaaclab_tasks")
def test_on_newton_a_task_keeps_the_solver_it_was_tuned_with():
    config = isaaclab._config(
        "Isaac-Velocity-Flat-G1", EnvSettings(num_envs=4), torch.device("cpu")
    )
    assert config.sim.physics.solver_cfg.njmax == 95  # the solver's own default is another
    assert config.compute_final_obs


@pytest.mark.sim("isaaclab_tasks")
@pytest.mark.parametrize(
    ("task", "solver"),
    [
        ("Isaac-Lift-Soft-Franka", "CouplerProxyCfg"),  # the only one it has
        ("IsaacContrib-Velocity-Flat-AnymalC", "MJWarpSolverCfg"),  # Isaac Sim's own by default
    ],
)
def test_every_task_that_has_newton_runs_on_it(task, solver):
    config = isaaclab._config(task, EnvSettings(num_envs=4), torch.device("cpu"))
    assert type(config.sim.physics.solver_cfg).__name__ == solver


@pytest.mark.sim("isaaclab_tasks")
def test_a_task_that_asks_for_isaac_sim_is_refused_where_it_is_not():
    with pytest.raises(InputError, match=r"on Newton: .*; tasks without Newton need Isaac Sim"):
        isaaclab._config(
            "IsaacContrib-Lift-Cube-Franka", EnvSettings(num_envs=4), torch.device("cpu")
        )


@pytest.fixture(scope="module")
def cartpole():
    if "ISAACSIM_ASSET_ROOT" not in os.environ:
        pytest.fail("needs assets: run it with make sim-isaaclab")
    env = make("isaaclab/Isaac-Cartpole-Direct", EnvSettings(num_envs=4), seed=0)
    yield env
    env.close()


@pytest.mark.sim("isaaclab_tasks")
def test_the_real_cartpole_reports_the_state_at_a_time_out(cartpole):
    cartpole.reset(0)
    cartpole._env.episode_length_buf[1] = cartpole.spec.max_episode_steps
    before = cartpole._env.episode_length_buf.clone()
    step = cartpole.step(torch.zeros(4, 1))
    assert step["truncated"].tolist() == [False, True, False, False]
    assert before[1] > cartpole._env.episode_length_buf[1]
    final, now = step["final_observation", "policy"], step["observation", "policy"]
    assert not torch.equal(final[1], now[1])
    assert torch.equal(final[0], now[0])


@pytest.mark.sim("isaaclab_tasks")
def test_a_second_environment_lives_in_a_process_of_its_own(cartpole):
    other = make("isaaclab/Isaac-Cartpole-Direct", EnvSettings(num_envs=2), seed=1)
    assert type(other).__name__ == "RemoteEnv"
    first = other.reset(3)["observation", "policy"]
    assert torch.equal(other.reset(3)["observation", "policy"], first)
    other.close()
