"""Genesis of paper: joints that go where they are told, in as much of its interface as is used."""

from types import SimpleNamespace

import torch

from supple.envs.genesis_go2 import JOINTS
from supple.envs.genesis_task import from_euler

LEAN = 0.1
"""How far the joints' angles, added up, lean the trunk [rad/rad]."""


class Scene:
    """Steps its entities."""

    def __init__(self, num_envs, entities, dt):
        self.n_envs, self._entities, self._dt = num_envs, entities, dt
        self.rigid_solver = SimpleNamespace(n_geoms=3, set_geoms_friction_ratio=self._set_friction)
        self.friction = torch.ones(num_envs, 3)
        self.destroyed = 0

    def _set_friction(self, ratios, envs_idx):
        self.friction[envs_idx] = ratios

    def step(self):
        for entity in self._entities:
            entity.step(self._dt)

    def destroy(self):
        self.destroyed += 1


class Go2:
    """Leans by its joints' angles, walks by their rates, and strikes the ground with every foot."""

    def __init__(self, num_envs):
        legs = [f"{leg}_{part}" for leg in ("FL", "FR") for part in ("thigh", "calf", "foot")]
        self.links = [SimpleNamespace(name=name) for name in ("base", *legs)]
        self.qpos = torch.zeros(num_envs, 19)
        self.rates = torch.zeros(num_envs, 12)
        self.force = torch.zeros(num_envs, len(self.links), 3)
        self.mass, self.center = torch.full((num_envs, 1), 7.0), torch.zeros(num_envs, 1, 3)
        self.drive = lambda dt: torch.zeros_like(self.rates)

    def get_joint(self, name):
        place = JOINTS.index(name)
        return SimpleNamespace(qs_idx_local=[7 + place], dofs_idx_local=[6 + place])

    def set_dofs_kp(self, gains, dofs):
        assert len(gains) == len(dofs) == 12

    set_dofs_kv = set_dofs_kp

    def get_dofs_limit(self, dofs):
        return torch.full((12,), -3.0), torch.full((12,), 3.0)

    def get_dofs_force_range(self, dofs):
        return torch.full((12,), -20.0), torch.full((12,), 20.0)

    def set_qpos(self, qpos, envs_idx):
        self.qpos = torch.where(envs_idx[:, None], qpos, self.qpos)
        self.rates = torch.where(envs_idx[:, None], 0.0, self.rates)

    def get_pos(self):
        return self.qpos[:, :3]

    def get_quat(self):
        return self.qpos[:, 3:7]

    def get_vel(self):
        return self.rates[:, :3]

    def get_ang(self):
        return self.rates[:, 3:6]

    def get_dofs_position(self, dofs):
        return self.qpos[:, 7:]

    def get_dofs_velocity(self, dofs):
        return self.rates

    def get_links_net_contact_force(self):
        return self.force

    def get_links_mass(self, links):
        return self.mass

    def get_links_COM(self, links):  # noqa: N802 - Genesis' spelling
        return self.center

    def set_links_mass(self, mass, links, envs_idx):
        self.mass[envs_idx] = mass

    def set_links_COM(self, center, links, envs_idx):  # noqa: N802
        self.center[envs_idx] = center

    def control_dofs_position(self, target, dofs):
        self.drive = lambda dt: (target - self.qpos[:, 7:]) / (2 * dt)

    def control_dofs_force(self, force, dofs):
        self.drive = lambda dt: force

    def step(self, dt):
        self.rates = self.drive(dt)
        qpos = self.qpos.clone()
        qpos[:, 7:] += dt * self.rates
        lean = LEAN * (qpos[:, 7:] - qpos.new_tensor((0.0, 0.9, -1.5) * 4)).sum(1)
        still = torch.zeros_like(lean)
        qpos[:, 3:7] = from_euler(torch.stack((lean, still, still), dim=1))
        self.qpos = qpos


class Panda:
    """Its first six joints are its hand's position and its roll, pitch and yaw."""

    def __init__(self, num_envs):
        self.qpos = torch.zeros(num_envs, 9)

    def get_link(self, name):
        return SimpleNamespace(
            get_pos=lambda: self.qpos[:, :3], get_quat=lambda: from_euler(self.qpos[:, 3:6])
        )

    def set_dofs_kp(self, gains):
        assert len(gains) == 9

    set_dofs_kv = set_dofs_kp

    def set_dofs_force_range(self, low, high):
        assert (low < high).all()

    def set_qpos(self, qpos, envs_idx):
        self.qpos = torch.where(envs_idx[:, None], qpos, self.qpos)

    def get_dofs_position(self):
        return self.qpos

    def get_jacobian(self, link):
        return torch.eye(6, 9).expand(len(self.qpos), 6, 9)

    def control_dofs_position(self, target):
        self.target = target

    def step(self, dt):
        self.qpos = self.target


class Cube:
    """Stays where it is put."""

    def set_pos(self, place):
        self.place = place

    def set_quat(self, attitude):
        self.attitude = attitude

    def step(self, dt):
        pass


def made(kind, num_envs=3):
    """A task on its stand-in."""
    if kind.__name__ == "PandaGrasp":
        entities = {"arm": Panda(num_envs), "box": Cube()}
    else:
        entities = {"robot": Go2(num_envs)}
    scene = Scene(num_envs, tuple(entities.values()), kind.scene_dt)
    return kind(scene, entities, torch.device("cpu"))
