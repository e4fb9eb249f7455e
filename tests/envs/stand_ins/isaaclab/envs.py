import gymnasium

from isaaclab.app import LAUNCHED
from tests.envs.fake_isaaclab import FakeIsaacLab


class ManagerBasedRLEnv(FakeIsaacLab, gymnasium.Env):
    def __init__(self, cfg, render_mode=None, **_):
        assert cfg in LAUNCHED
        super().__init__(num_envs=cfg.scene.num_envs)
        self.cfg, self.step_dt = cfg, cfg.step_dt
