"""One's own tasks, registered as Isaac Lab's and mjlab's extensions do."""

import gymnasium
from isaaclab.app import LAUNCHED
from isaaclab.envs import ManagerBasedRLEnv
from isaaclab_tasks.utils import StandInCfg
from mjlab.tasks.registry import register_mjlab_task

assert not LAUNCHED, "imported after the launch, which reads what is registered here"
gymnasium.register(
    "Own-Robot",
    entry_point="isaaclab.envs:ManagerBasedRLEnv",
    disable_env_checker=True,
    kwargs={"env_cfg_entry_point": StandInCfg},
)
register_mjlab_task("Own-Robot", StandInCfg())


class Changed(gymnasium.Wrapper):
    """Not one of gymnasium.make's."""


def configured(num_envs):
    config = StandInCfg()
    config.scene.num_envs, config.compute_final_obs = num_envs, True
    LAUNCHED.append(config)
    return config


def bare(num_envs):
    return ManagerBasedRLEnv(configured(num_envs))


def made(num_envs):
    return gymnasium.make("Own-Robot", cfg=configured(num_envs))


def wrapped(num_envs):
    return Changed(made(num_envs))
