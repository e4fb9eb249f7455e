import gymnasium

from isaaclab_tasks.utils import StandInCfg

gymnasium.register(
    "Isaac-Stand-In",
    entry_point="isaaclab.envs:ManagerBasedRLEnv",
    disable_env_checker=True,
    kwargs={"env_cfg_entry_point": StandInCfg},
)
