"""Agents with uneven statistics, a robot to put them on, and bundles made of both."""

import dataclasses
import json
import math
from typing import Any

import torch

from supple.agents import PPO, FlashSAC, FlashSACSettings, PPOSettings
from supple.configs import default_settings
from supple.deploy import manifest
from supple.deploy.contract import contract
from supple.deploy.export import bundle_files
from supple.deploy.plain import plain_policy
from supple.envs.base import Box, Channel, Deployment, Discrete, EnvSpec, LastAction
from supple.signed_json import sha256
from supple.trained import Trained

JOINTS = ("hip", "knee", "ankle")
TERMS = ("hip_pos", "knee_pos", "ankle_pos", "pitch")
FRAMES = 2


def frames(ages):
    """All terms of one age after another."""
    return tuple(
        Channel(name=name, group="policy", unit="rad", history=age, scale=1.0, clip=False)
        for age in ages
        for name in TERMS
    )


def robot_spec(**changes):
    """Three position-controlled joints, two frames of four terms, another joint order on board."""
    channels = frames(range(FRAMES))
    robot = Deployment(
        joint_names=JOINTS,
        robot_joint_names=("ankle", "hip", "knee"),
        control_mode="position",
        stiffness=(20.0, 21.123456789, 22.0),
        damping=(0.5, 0.625, 0.75),
        default_position=(0.1, 0.7, -0.3),
        action_scale=(0.25, 0.5, 0.33),
        action_offset=(0.1, 0.7, -0.3),
        action_clip_low=False,
        action_clip_high=False,
        action_filter=False,
        history_length=FRAMES,
        history_order="newest_first",
        sim_dt=0.005,
        decimation=4,
        commands={},
    )
    facts = {
        "task_id": "test/robot",
        "num_envs": 4,
        "observation": {"policy": FRAMES * len(TERMS)},
        "action": Box(low=(-1.0,) * 3, high=(1.0,) * 3),
        "device": torch.device("cpu"),
        "control_dt": 0.02,
        "deployment": robot,
        "channels": channels,
    }
    return EnvSpec(**{**facts, **changes})


def described(**changes):
    """The robot, described otherwise."""
    spec = robot_spec()
    assert spec.deployment
    return dataclasses.replace(spec, deployment=dataclasses.replace(spec.deployment, **changes))


def contract_of(spec):
    return contract(plain_policy(ppo(spec), spec), spec, groups=("policy",), origin={"run": "r"})


def remembering_spec():
    """The robot, whose policy sees its own last actions: doubled, clipped, halved; one is late."""
    shown: dict[str, Any] = {"group": "policy", "scale": 0.5, "clip": (-0.8, 0.8)}
    channels = [Channel(name=name, group="policy", scale=1.0, clip=False) for name in TERMS]
    channels += [
        Channel(
            name=f"actions[{joint}]",
            term="actions",
            history=age,
            last_action=LastAction(index=index, factor=2.0),
            **shown,
        )
        for age in (1, 0)
        for index, joint in enumerate(JOINTS)
    ]
    late = LastAction(index=1, steps=3)
    channels.append(Channel(name="late", group="policy", scale=1.0, clip=False, last_action=late))
    return robot_spec(channels=tuple(channels), observation={"policy": len(channels)})


def plain_spec(observation=5, action=None, **changes):
    """Nothing is known of this one but its widths."""
    return robot_spec(
        observation={"policy": observation},
        action=action or Box(low=(-2.0, 0.0), high=(2.0, 1.0)),
        deployment=None,
        channels=None,
        control_dt=None,
        **changes,
    )


def stir(module, seed=0):
    """Move every statistic and weight away from its start, as training would."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.rand(value.shape, generator=random, dtype=value.dtype)
            if name.endswith(("running_var", "std", "_square")):
                value.copy_(0.2 + 2 * noise)
            else:
                value.add_(0.4 * (noise - 0.5))


def flashsac(spec, seed=0, **changes):
    settings = FlashSACSettings(actor_hidden=16, actor_blocks=1, critic_hidden=8, **changes)
    agent = FlashSAC(spec, settings, total_env_steps=100, seed=seed)
    stir(agent.actor, seed)
    return agent


def ppo(spec, seed=0, **changes):
    sizes = {"rollout_steps": 4, "minibatches": 1, "actor_hidden": (16, 12)}
    agent = PPO(spec, PPOSettings(**{**sizes, **changes}), total_env_steps=100, seed=seed)
    stir(agent.actor, seed)
    return agent


def trained(agent, spec, folder, **changes):
    kind = "ppo" if isinstance(agent, PPO) else "flashsac"
    settings = default_settings("toy/asymmetric", agent=kind, preset="laptop")
    facts = {"env_steps": 100, "header": {"replay": {"segments": []}}, "progress": {}}
    return Trained(folder=folder, settings=settings, agent=agent, spec=spec, **{**facts, **changes})


def clipped_spec():
    """The robot, unbounded but for what the simulator clips its commands to."""
    low, high = (-math.inf, 0.6, -0.35), (0.15, math.inf, -0.32)
    robot = described(action_clip_low=low, action_clip_high=high)
    return dataclasses.replace(robot, action=Box(low=(-1.0,) * 3, high=(1.0,) * 3, clip=False))


def agents():
    """Name to (agent, spec): every kind of policy there is."""
    robot, plain, clipped = robot_spec(), plain_spec(), clipped_spec()
    choices = plain_spec(action=Discrete(n=4))
    unclipped = plain_spec(action=Box(low=(-1.0,) * 2, high=(1.0,) * 2, clip=False))
    seeing = dataclasses.replace(plain, observation={"policy": 5, "critic": 7})
    return {
        "flashsac": (flashsac(robot), robot),
        "flashsac asymmetric": (flashsac(seeing), seeing),
        "ppo": (ppo(plain), plain),
        "ppo clipped behind scale and offset": (ppo(clipped), clipped),
        "ppo unclipped elu": (ppo(unclipped, activation="elu"), unclipped),
        "ppo squashed": (ppo(plain, distribution="squashed", activation="relu"), plain),
        "ppo with a deviation of the state": (ppo(plain, std="state"), plain),
        "ppo without a normaliser": (ppo(plain, normalise_obs=False), plain),
        "ppo discrete": (ppo(choices), choices),
        "ppo recurrent": (ppo(plain, memory=6), plain),
        "ppo recurrent discrete": (ppo(choices, memory=6), choices),
        "ppo asymmetric": (ppo(seeing), seeing),
    }


def robot_files(folder, seed=0):
    """The files of a bundle for the robot."""
    spec = robot_spec()
    return bundle_files(trained(flashsac(spec, seed), spec, folder))


def write(folder, files):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def signed_again(files, change=None):
    """The same bundle with ``change(manifest)`` applied and every digest made to fit."""
    record = json.loads(files[manifest.NAME])
    if change:
        change(record)
    for name in [name for name in files if name != manifest.NAME]:
        data = files[name]
        record["files"][name] = {"bytes": len(data), "sha256": sha256(data)}
    for key in ("format", "version", "sha256"):
        record.pop(key)
    return {**files, manifest.NAME: manifest.sign(record)}
