from types import SimpleNamespace

import gymnasium


class StandInCfg:
    def __init__(self):
        track = SimpleNamespace(weight=1.0, params={"std": 0.5, "joints": {".*_hip": 0.1}})
        self.rewards = SimpleNamespace(track=track, torque=SimpleNamespace(weight=-1))
        self.scene = SimpleNamespace(num_envs=1)
        self.sim = SimpleNamespace(device="cpu", physics=SimpleNamespace(use_cuda_graph=True))
        self.is_finite_horizon, self.compute_final_obs = False, False
        self.terrain, self.curriculum, self.seed = "rough", True, None
        self.pose = (0.0, 1.0)


def parse_env_cfg(task_name, device, num_envs, overrides=()):
    config = gymnasium.spec(task_name).kwargs["env_cfg_entry_point"]()
    config.scene.num_envs, config.sim.device = num_envs, device
    return config
