from types import SimpleNamespace
from typing import ClassVar

import gymnasium


class NewtonCfg(SimpleNamespace):
    pass


class PhysxCfg(SimpleNamespace):
    """Isaac Sim's."""


class StandInCfg:
    presets: ClassVar = {"default": NewtonCfg}
    """Of ``sim.physics``, where its class is a ``PresetCfg``."""

    def __init__(self):
        terms = {"track": SimpleNamespace(weight=1.0), "torque": SimpleNamespace(weight=-1)}
        self.rewards = SimpleNamespace(**terms)
        self.scene = SimpleNamespace(num_envs=1)
        self.sim = SimpleNamespace(device="cpu", physics=self.presets["default"]())
        self.is_finite_horizon, self.compute_final_obs = False, False
        self.decimation, self.step_dt = 4, 0.02


def parse_env_cfg(task_name, device, num_envs, overrides=()):
    config = gymnasium.spec(task_name).kwargs["env_cfg_entry_point"]()
    for each in overrides:
        name = each.removeprefix("physics=")
        if name not in config.presets:
            raise ValueError(f"Typed preset selector(s) {each} did not match a selectable preset")
        config.sim.physics = config.presets[name]()
    config.scene.num_envs, config.sim.device = num_envs, device
    return config
