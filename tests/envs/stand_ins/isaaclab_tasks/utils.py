from types import SimpleNamespace

import gymnasium


class StandInCfg:
    def __init__(self):
        terms = {"track": SimpleNamespace(weight=1.0), "torque": SimpleNamespace(weight=-1)}
        self.rewards = SimpleNamespace(**terms)
        self.scene = SimpleNamespace(num_envs=1)
        self.sim = SimpleNamespace(device="cpu", physics=SimpleNamespace(use_cuda_graph=True))
        self.is_finite_horizon, self.compute_final_obs = False, False
        self.decimation, self.step_dt = 4, 0.02


def parse_env_cfg(task_name, device, num_envs, overrides=()):
    config = gymnasium.spec(task_name).kwargs["env_cfg_entry_point"]()
    config.scene.num_envs, config.sim.device = num_envs, device
    return config
