"""mjlab's ONNX properties and Unitree's deploy.yaml, of a walker as its managers describe it."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import yaml

from supple.deploy import manifest
from supple.deploy.bundle import NAMES
from supple.deploy.card import model_card
from supple.deploy.contract import contract
from supple.deploy.export import bundle_files
from supple.deploy.formats import mjlab_properties, unitree_yaml
from supple.deploy.plain import plain_policy
from supple.deploy.terms import feed
from supple.deploy.verify import verify
from supple.envs import managers
from supple.envs.base import Box, Channel, Discrete, EnvSpec
from supple.errors import InputError
from tests.deploy.small_bundles import (
    FRAMES,
    TERMS,
    contract_of,
    described,
    frames,
    plain_spec,
    ppo,
    robot_files,
    robot_spec,
    signed_again,
    trained,
    write,
)


@dataclass
class Part:
    """Some joints of an entity, as ``SceneEntityCfg`` says it."""

    name: str
    joint_names: object = None
    joint_ids: object = field(default_factory=lambda: slice(None))
    body_ids: object = field(default_factory=lambda: slice(None))


@dataclass
class Ranges:
    lin_vel_x: object = (-0.5, 1)
    ang_vel_z: object = (-0.2, 0.2)
    heading: object = None


def told(width, scale=None, clip=None, modifiers=None, **params):
    """A term's width, and its configuration as a manager keeps it."""
    scale = torch.tensor(scale) if isinstance(scale, float | tuple) else scale
    config = SimpleNamespace(
        scale=scale, clip=clip, modifiers=modifiers, params=params, noise=None, history_length=0
    )
    return width, config


def walker(history=0, *, time_major=False, command=None, action_bound=1.0, **terms):
    """The spec that its managers give; a term of None is left out."""
    terms = {
        "base_ang_vel": told(3, scale=0.2),
        "velocity_commands": told(3, command_name="base_velocity"),
        "joint_pos_rel": told(2, asset_cfg=Part("robot", joint_ids=[0, 2])),
        "joint_vel_rel": told(3, scale=0.05, clip=(-100, 100), asset_cfg=Part("robot")),
        "gait_phase": told(2, scale=(1.0, 0.5), period=0.8),
        **terms,
    }
    for _, config in terms.values():
        config.history_length = history
    shapes = [(width * max(history, 1),) for width, _ in terms.values()]
    observed = SimpleNamespace(
        active_terms={"policy": list(terms)},
        group_obs_term_dim={"policy": shapes},
        _group_obs_term_cfgs={"policy": [config for _, config in terms.values()]},
        _group_obs_time_major={"policy": time_major},
    )
    asked = SimpleNamespace(cfg=command or SimpleNamespace(ranges=Ranges()))
    commanding = SimpleNamespace(active_terms=["base_velocity"], get_term=lambda _: asked)
    env = SimpleNamespace(observation_manager=observed, command_manager=commanding)
    acting = SimpleNamespace(active_terms=["joint_pos"], get_term=lambda _: object())
    env.action_manager = acting
    joints = ("hip", "knee", "ankle")
    channels = (
        managers.channels(env, {"policy": ["policy"]}, joints, action_bound=action_bound) or []
    )
    robot = dataclasses.replace(
        described().deployment,
        commands=managers.commands(env),
        history_length=managers.history_length(env, ["policy"]),
        history_order=None,
    )
    return robot_spec(
        observation={"policy": len(channels)},
        channels=tuple(channels),
        deployment=robot,
        # As its adapters have it.
        action=Box(low=(-action_bound,) * 3, high=(action_bound,) * 3, clip=False),
    )


def of_unitree(spec):
    return yaml.safe_load(unitree_yaml(contract_of(spec)))


def of_mjlab(spec):
    return mjlab_properties(contract_of(spec))


def refusals(spec):
    """What both formats say of it."""
    found = []
    for make in (of_mjlab, of_unitree):
        with pytest.raises(InputError) as refused:
            make(spec)
        found.append(str(refused.value))
    assert not any("\n" in text for text in found)
    return found


def test_unitree_gets_terms_and_commands_under_the_simulators_names():
    found = of_unitree(walker())
    ranges = {"lin_vel_x": [-0.5, 1], "ang_vel_z": [-0.2, 0.2], "heading": None}
    assert found["commands"] == {"base_velocity": {"ranges": ranges}}
    bare: dict[str, object] = {"params": {}, "clip": None, "history_length": 1}
    some, every = ({"asset_cfg": {"name": "robot"} | more} for more in ({"joint_ids": [0, 2]}, {}))
    expected = {
        "base_ang_vel": bare | {"scale": [0.2] * 3},
        "velocity_commands": bare
        | {"scale": [1.0] * 3, "params": {"command_name": "base_velocity"}},
        "joint_pos_rel": bare | {"scale": [1.0] * 2, "params": some},
        "joint_vel_rel": bare | {"scale": [0.05] * 3, "clip": [-100.0, 100.0], "params": every},
        "gait_phase": bare | {"scale": [1.0, 0.5], "params": {"period": 0.8}},
    }
    assert list(found["observations"].items()) == list(expected.items())


def test_mjlab_gets_terms_and_commands_under_the_simulators_names():
    found = of_mjlab(walker(history=5))
    assert found["command_names"] == "base_velocity"
    assert found["observation_names"] == (
        "base_ang_vel,velocity_commands,joint_pos_rel,joint_vel_rel,gait_phase"
    )
    assert found["observation_terms_scale"] == "0.2,1.0,1.0,0.05,1.0;0.5"
    assert found["observation_terms_clip"] == "-inf;inf,-inf;inf,-inf;inf,-100.0;100.0,-inf;inf"
    assert found["observation_terms_history_length"] == "5,5,5,5,5"
    assert found["observation_terms_flatten_history_dim"] == "1,1,1,1,1"
    assert of_mjlab(walker())["observation_terms_history_length"] == "0,0,0,0,0"


def test_mjlab_keys_have_full_precision():
    for other in ({"default_position": (0.0, 0.7, -0.3)}, {"control_mode": "torque"}):
        with pytest.raises(InputError, match="default joint position"):
            of_mjlab(described(**other))
    found = of_mjlab(walker())
    assert found["joint_names"] == "hip,knee,ankle"
    assert found["joint_stiffness"] == "20.0,21.123456789,22.0"
    assert found["action_scale"] == "0.25,0.5,0.33"


def test_histories_are_written_as_they_lie():
    by_term, by_time = of_unitree(walker(history=5)), of_unitree(walker(history=5, time_major=True))
    assert {each["history_length"] for each in by_term["observations"].values()} == {5}
    # Unitree's runtime tells terms from groups of terms by the first entry.
    assert list(by_time["observations"])[-1] == "use_gym_history"
    assert by_time["observations"].pop("use_gym_history") is True
    assert by_time["observations"] == by_term["observations"]
    with pytest.raises(InputError, match="begin with the oldest frame"):
        of_mjlab(walker(history=5, time_major=True))
    newest_first = robot_spec()
    assert all("begin with the oldest frame" in text for text in refusals(newest_first))


def test_terms_in_pieces_are_refused():
    pieces = [("a[x]", "a"), ("b", "b"), ("a[y]", "a")]
    made = tuple(
        Channel(name=name, group="policy", term=term, scale=1.0, clip=False)
        for name, term in pieces
    )
    spec = walker()
    spec = dataclasses.replace(spec, channels=made, observation={"policy": len(made)})
    assert all("its terms lie one after another" in text for text in refusals(spec))


@pytest.mark.parametrize(
    ("lacking", "what"),
    [
        ({"base_ang_vel": told(3, scale=object())}, "needs scale of base_ang_vel,"),
        (
            {"base_ang_vel": told(3, scale=0.2, modifiers=["filter"])},
            "needs scale of base_ang_vel; clip of base_ang_vel,",
        ),
    ],
)
def test_what_a_manager_does_not_tell_is_named_and_not_invented(lacking, what):
    for text in refusals(walker(**lacking)):
        assert what in text
        assert "say it in the environment's EnvSpec.deployment and EnvSpec.channels" in text


def test_what_clips_commands_is_written_or_refused():
    spec = walker()
    clipped = dataclasses.replace(
        spec.deployment, action_clip_low=(0.0, 0.6, -0.4), action_clip_high=(0.2, 0.8, 0.1)
    )
    clipped_spec = dataclasses.replace(spec, deployment=clipped)
    found = of_unitree(clipped_spec)["actions"]["JointPositionAction"]
    assert found["clip"] == [[0.0, 0.2], [0.6, 0.8], [-0.4, 0.1]]
    with pytest.raises(InputError, match="its keys do not say what commands are clipped to"):
        of_mjlab(clipped_spec)
    names = ("action_clip_low", "action_clip_high", "action_filter")
    untold = dataclasses.replace(spec.deployment, **dict.fromkeys(names))
    for text in refusals(dataclasses.replace(spec, deployment=untold)):
        assert "action_clip_low; action_clip_high; action_filter, which the run does not" in text


def test_mjlabs_keys_cannot_say_that_actions_are_clipped():
    spec = walker()
    clipping = dataclasses.replace(spec, action=robot_spec().action)
    with pytest.raises(InputError, match=r"do not say that actions are clipped to \[-1, 1\]"):
        of_mjlab(clipping)
    squashed = ppo(clipping, distribution="squashed")
    policy = plain_policy(squashed, clipping)
    found = contract(policy, clipping, groups=("policy",), origin={"run": "r"})
    assert mjlab_properties(found) == of_mjlab(spec)  # what a tanh gives no clip changes


def remembering(**changes):
    """A walker that sees its own last action, given to the simulator thrice as large."""
    own = told(3, scale=2.0, clip=(-6.0, 6.0))
    own[1].func, own[1].params = named("last_action", "isaaclab.envs.mdp"), {"action_name": None}
    for key, value in changes.items():
        setattr(own[1], key, value)
    return walker(last_action=own, action_bound=3.0)


def named(name, module):
    def function(env, action_name=None):
        pass

    function.__name__, function.__module__ = name, module
    return function


def test_the_policys_own_last_action_is_told_by_the_simulator():
    found = contract_of(remembering(history_length=0))["observation"]["last_action"]
    assert found == [
        {"observation": 13 + index, "action": index, "factor": 3.0, "steps": 1}
        for index in range(3)
    ]
    line = feed(contract_of(remembering()))[-1]
    assert line == (
        "last_action (3 wide): clipped to [-6, 6], then times 2; the policy's own action of the"
        " step before, 0 where there is none, times 3 before that, which supple_runner fills in"
    )


@pytest.mark.parametrize(
    "odd",
    [
        {"func": named("last_action", "my_task.mdp")},
        {"func": named("last_processed_action", "isaaclab.envs.mdp")},
        {"params": {"action_name": "gripper"}},
        {"modifiers": ["filter"]},
        {"delay_max_lag": 2},
    ],
)
def test_what_may_be_another_action_is_not_told(odd):
    assert contract_of(remembering(**odd))["observation"]["last_action"] is None


def test_other_runtimes_feed_what_the_network_gave():
    found = of_unitree(remembering())["observations"]["last_action"]
    assert (found["scale"], found["clip"]) == ([6.0] * 3, [-2.0, 2.0])
    assert of_mjlab(remembering())["observation_terms_clip"].endswith(",-2.0;2.0")
    spec = remembering()
    channels = [
        channel.last_action
        and dataclasses.replace(
            channel, last_action=dataclasses.replace(channel.last_action, steps=2)
        )
        for channel in spec.channels
    ]
    late = dataclasses.replace(
        spec, channels=tuple(new or old for new, old in zip(channels, spec.channels, strict=True))
    )
    assert all("last_action is of 2 steps before: drop the flag" in text for text in refusals(late))
    clipping = dataclasses.replace(spec, action=robot_spec().action)
    assert of_unitree(clipping)["observations"]["last_action"]["clip"] == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"index": 3}, r"last_action\[0\] has index 3 and steps 1, expected one of 3 actions"),
        ({"index": 0.0}, "has index 0.0"),
        ({"steps": 0}, "steps 0, expected"),
        ({"factor": "3"}, "the factor '3', expected a number above 0"),
        ({"factor": 0}, "the factor 0, expected"),
    ],
)
def test_a_last_action_said_by_hand_is_checked(wrong, text):
    record = remembering().to_json()
    first = record["channels"][13]
    first["last_action"] |= wrong
    with pytest.raises(InputError, match=text):
        contract_of(EnvSpec.from_json(record))
    first["last_action"] = {"index": 0}
    assert contract_of(EnvSpec.from_json(record))["observation"]["last_action"][0]["factor"] == 1.0
    first["clip"] = None
    with pytest.raises(InputError, match="needs the channel's scale and clip as well"):
        contract_of(EnvSpec.from_json(record))


def test_every_file_of_a_bundle_is_known_by_its_name(tmp_path):
    made = trained(ppo(walker()), walker(), tmp_path)
    assert set(bundle_files(made, also=["mjlab", "unitree"])) == NAMES - {"diagnostics.json"}


def test_a_joint_without_bounds_leaves_the_others_theirs():
    spec = walker()
    ends = {"position_limit_low": (-1.0, -1e9, -2.0), "position_limit_high": (1.0, 1e9, 2.0)}
    robot = dataclasses.replace(spec.deployment, **ends)
    found = of_unitree(dataclasses.replace(spec, deployment=robot))
    bounds = [[-1.0, 1.0], [-math.inf, math.inf], [-2.0, 2.0]]
    assert found["actions"]["JointPositionAction"]["clip"] == bounds
    assert of_unitree(spec)["actions"]["JointPositionAction"]["clip"] is None


def test_parameters_and_ranges_are_only_needed_where_they_are_written():
    odd = walker(base_ang_vel=told(3, sensor=object()))
    with pytest.raises(InputError, match="needs params of base_ang_vel, which"):
        of_unitree(odd)
    assert of_mjlab(odd)["command_names"] == "base_velocity"
    for command in (SimpleNamespace(), SimpleNamespace(ranges={"lin_vel_x": object()})):
        unranged = walker(command=command)
        with pytest.raises(InputError, match="needs the ranges of the command base_velocity, whi"):
            of_unitree(unranged)
        assert of_mjlab(unranged)["command_names"] == "base_velocity"


def test_nothing_is_invented_for_a_spec_of_an_older_run():
    record = walker().to_json()
    for channel in record["channels"]:
        for name in ("term", "scale", "clip", "params"):
            channel.pop(name)
    record["deployment"].pop("commands")
    older = EnvSpec.from_json(record)
    for text in refusals(older):
        shown = "base_ang_vel[0], base_ang_vel[1], base_ang_vel[2] and 10 more"
        assert f"needs scale of {shown}; clip of {shown}; commands, which" in text
    contract = contract_of(older)
    assert feed(contract) == [
        "13 of 13 terms, scale and clip not known: base_ang_vel[0], base_ang_vel[1],"
        " base_ang_vel[2], velocity_commands[0], velocity_commands[1], velocity_commands[2],"
        " joint_pos_rel[0], joint_pos_rel[1], ..."
    ]
    entry = contract["observation"]["terms"][0]
    assert [entry[name] for name in ("source", "scale", "clip", "clip_before_scale")] == [None] * 4
    assert contract["commands"]["names"] is None


def test_a_bundle_from_before_terms_were_told_still_verifies(tmp_path):
    files = robot_files(tmp_path / "run")
    older = signed_again(files, lambda record: record.pop("feed"))
    report = verify(write(tmp_path / "bundle", older), episodes=0, latency=False)
    assert not report.failed


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"scale": "0.2"}, "the scale of base_ang_vel\\[0\\] is '0.2', expected a number"),
        ({"scale": float("nan")}, "is nan, expected a number"),
        ({"clip": 5}, "the clip of base_ang_vel\\[0\\] is 5, expected \\[low, high\\], or false"),
        ({"clip": True}, "is True, expected"),
        ({"clip": [1, -1]}, "is \\(1, -1\\), expected"),
    ],
)
def test_what_is_said_by_hand_is_checked(wrong, text):
    record = walker().to_json()
    record["channels"] = [record["channels"][0] | wrong, *record["channels"][1:]]
    with pytest.raises(InputError, match=text):
        contract_of(EnvSpec.from_json(record))


@pytest.mark.parametrize("commands", [["base_velocity"], {"base_velocity": [-1, 1]}])
def test_commands_said_by_hand_are_names_with_ranges(commands):
    record = walker().to_json()
    record["deployment"]["commands"] = commands
    with pytest.raises(InputError, match="expected names with their ranges"):
        contract_of(EnvSpec.from_json(record))


def test_a_term_without_its_newest_frame_is_no_history_of_theirs():
    made = tuple(
        Channel(name="a", group="policy", history=age, scale=1.0, clip=False) for age in (2, 1)
    )
    spec = dataclasses.replace(walker(), channels=made, observation={"policy": 2})
    assert feed(contract_of(spec)) == ["a (1 wide, 3 frames): not clipped, not scaled"]
    assert all("begin with the oldest frame" in text for text in refusals(spec))


def test_what_managers_tell_outlives_json():
    spec = walker(history=2)
    assert EnvSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_unitree_needs_the_robots_own_joint_order():
    spec = walker()
    robot = dataclasses.replace(spec.deployment, robot_joint_names=None)
    with pytest.raises(InputError, match="needs robot_joint_names, which"):
        of_unitree(dataclasses.replace(spec, deployment=robot))


def test_manifest_and_card_say_what_to_feed(tmp_path):
    spec = walker(history=5, joint_pos_rel=told(2, scale=object(), clip=(0, 1)))
    files = bundle_files(trained(ppo(spec), spec, tmp_path))
    record = manifest.parse(files[manifest.NAME])
    assert record["feed"] == [
        "base_ang_vel (3 wide, 5 frames): not clipped, times 0.2",
        "velocity_commands (3 wide, 5 frames): not clipped, not scaled",
        "joint_pos_rel (2 wide, 5 frames): clipped to [0, 1], then scale not known",
        "joint_vel_rel (3 wide, 5 frames): clipped to [-100, 100], then times 0.05",
        "gait_phase (2 wide, 5 frames): not clipped, times [1, 0.5]",
    ]
    card = model_card(record, [])
    assert all(f"* {line}\n" in card for line in record["feed"])
    assert "`feed` in manifest.json" in files["policy.h"].decode()


def test_unitree_gains_lie_where_the_robots_joints_are():
    names = ("neck", "ankle", "hip", "tail", "knee")
    spec = walker()
    robot = dataclasses.replace(spec.deployment, robot_joint_names=names)
    found = of_unitree(dataclasses.replace(spec, deployment=robot))
    assert found["joint_ids_map"] == [2, 4, 1]
    assert found["stiffness"] == [0.0, 22.0, 20.0, 0.0, 21.123456789]


def test_unitree_yaml_is_safe_and_in_the_robots_order():
    oldest_first = robot_spec(channels=frames(reversed(range(FRAMES))))
    text = unitree_yaml(contract_of(oldest_first))
    assert "!!" not in text
    found = yaml.safe_load(text)
    assert found["joint_ids_map"] == [1, 2, 0]
    assert found["stiffness"] == [22.0, 20.0, 21.123456789]
    assert found["default_joint_pos"] == [0.1, 0.7, -0.3]
    assert found["step_dt"] == 0.02
    assert found["actions"]["JointPositionAction"]["scale"] == [0.25, 0.5, 0.33]
    assert list(found["observations"]) == [*TERMS, "use_gym_history"]
    assert found["observations"]["pitch"]["history_length"] == 2


@pytest.mark.parametrize("mode", ["torque", "delta"])
def test_unitrees_runtime_takes_positions_and_velocities(mode):
    spec = walker()
    other = dataclasses.replace(spec.deployment, control_mode=mode)
    with pytest.raises(InputError, match=f"position or velocity commands, .* is {mode}"):
        of_unitree(dataclasses.replace(spec, deployment=other))


def test_formats_say_what_they_lack(tmp_path):
    spec = plain_spec()
    with pytest.raises(
        InputError, match=r"--also mjlab needs joint_names; .* which the run does not know"
    ):
        bundle_files(trained(ppo(spec), spec, tmp_path), also=["mjlab"])
    choosing = plain_spec(action=Discrete(n=4))
    assert all("this policy chooses" in text for text in refusals(choosing))
