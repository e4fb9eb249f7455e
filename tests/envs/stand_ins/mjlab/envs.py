from types import SimpleNamespace

from tests.envs.fake_mjlab import FakeMjlab


class StandInCfg:
    def __init__(self):
        self.rewards = {"track": SimpleNamespace(weight=1.0), "torque": SimpleNamespace(weight=-1)}
        self.scene = SimpleNamespace(num_envs=1)
        self.is_finite_horizon, self.auto_reset, self.decimation = False, True, 4


class ManagerBasedRlEnv(FakeMjlab):
    def __init__(self, cfg, device, render_mode=None):
        super().__init__(num_envs=cfg.scene.num_envs)
        self.cfg = cfg
