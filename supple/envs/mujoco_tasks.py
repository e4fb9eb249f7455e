"""Observation, reward and end of Gymnasium's MuJoCo tasks, version 5, for ``N`` at once.

The numbers are those tasks' defaults, which a version never changes; tests compare every task with
Gymnasium's own over random states. Models come from the Gymnasium package.
Source: gymnasium/envs/mujoco/*_v5.py at 1.4.0. Deviation: none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    import mujoco

Arrays = dict[str, np.ndarray]
"""Of every environment, (N, ...) float64, by MuJoCo's names."""


class Task:
    """One task on a given model.

    Args:
        model: Gymnasium's.
        dt: seconds between two actions [s].
    """

    reads: ClassVar[tuple[str, ...]] = ()
    """Arrays of MjData it needs besides ``qpos`` and ``qvel``."""
    noise: ClassVar[float] = 0.1
    """Of the first state: positions and velocities lie within it of the model's own."""
    normal_speeds: ClassVar[bool] = False
    """Whether first velocities are normal with that deviation instead."""

    def __init__(self, model: mujoco.MjModel, dt: float) -> None:
        self.model, self.dt = model, dt

    def start(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """First positions (count, nq) and velocities (count, nv)."""
        qpos = self.model.qpos0 + self._uniform(random, (count, self.model.nq))
        size = (count, self.model.nv)
        if self.normal_speeds:
            return qpos, self.noise * random.standard_normal(size)
        return qpos, self._uniform(random, size)

    def _uniform(self, random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        return random.uniform(-self.noise, self.noise, size)

    def progress(self, now: Arrays) -> np.ndarray:
        """Where forward speed is measured: x of the robot [m], (N,)."""
        x: np.ndarray = now["qpos"][:, 0].copy()
        return x

    def observe(self, now: Arrays) -> np.ndarray:
        """(N, D) float64."""
        raise NotImplementedError

    def terminated(self, now: Arrays) -> np.ndarray:
        """(N,) bool."""
        return np.zeros(len(now["qpos"]), dtype=bool)

    def reward(
        self, now: Arrays, before: np.ndarray, action: np.ndarray, terminated: np.ndarray
    ) -> np.ndarray:
        """Of the step to ``now``, (N,) float64.

        Args:
            now: after the step.
            before: ``progress`` before the step.
            action: physical (N, A), clipped to its bounds.
            terminated: of this step.
        """
        raise NotImplementedError


class Runner(Task):
    """Forward speed, minus effort, plus a bonus while healthy."""

    hidden = 1
    """Leading positions, where in the world, that are not observed."""
    speed_limit = np.inf
    """Observed velocities are clipped to it."""
    forward_weight = 1.0
    effort_weight: float
    healthy_bonus = 0.0

    def observe(self, now: Arrays) -> np.ndarray:
        """Positions but the first ones, velocities."""
        speeds = now["qvel"]
        if np.isfinite(self.speed_limit):
            speeds = speeds.clip(-self.speed_limit, self.speed_limit)
        return np.concatenate((now["qpos"][:, self.hidden :], speeds), axis=1)

    def reward(
        self, now: Arrays, before: np.ndarray, action: np.ndarray, terminated: np.ndarray
    ) -> np.ndarray:
        """Speed, bonus and effort; see the class."""
        speed = (self.progress(now) - before) / self.dt
        effort = self.effort_weight * _square_sum(action)
        reward: np.ndarray = self.forward_weight * speed + self.healthy_bonus * ~terminated - effort
        return reward


class HalfCheetah(Runner):
    """Run; never ends."""

    normal_speeds = True
    effort_weight = 0.1


class Swimmer(Runner):
    """Swim; never ends."""

    hidden = 2
    effort_weight = 1e-4


class Hopper(Runner):
    """Hop without falling."""

    noise = 5e-3
    speed_limit = 10.0
    effort_weight = 1e-3
    healthy_bonus = 1.0

    def terminated(self, now: Arrays) -> np.ndarray:
        """Too low, tilted, or a state out of range."""
        height, angle = now["qpos"][:, 1], now["qpos"][:, 2]
        state = np.concatenate((now["qpos"][:, 2:], now["qvel"]), axis=1)
        sane = (np.abs(state) < 100).all(1)
        healthy: np.ndarray = sane & (height > 0.7) & (np.abs(angle) < 0.2)
        return ~healthy


class Walker2d(Runner):
    """Walk without falling."""

    noise = 5e-3
    speed_limit = 10.0
    effort_weight = 1e-3
    healthy_bonus = 1.0

    def terminated(self, now: Arrays) -> np.ndarray:
        """Too low, too high or tilted."""
        height, angle = now["qpos"][:, 1], now["qpos"][:, 2]
        healthy: np.ndarray = (height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0)
        return ~healthy


class Ant(Runner):
    """Run on four legs, hitting the ground gently."""

    reads = ("xpos", "cfrc_ext")
    normal_speeds = True
    hidden = 2
    effort_weight = 0.5
    healthy_bonus = 1.0
    contact_weight = 5e-4

    def progress(self, now: Arrays) -> np.ndarray:
        """X of the torso, as derived."""
        x: np.ndarray = now["xpos"][:, 1, 0].copy()
        return x

    def observe(self, now: Arrays) -> np.ndarray:
        """Positions but the first two, velocities, clipped contact forces of every body."""
        return np.concatenate((super().observe(now), _flat(self._forces(now)[:, 1:])), axis=1)

    def terminated(self, now: Arrays) -> np.ndarray:
        """Too low, too high or diverged."""
        height = now["qpos"][:, 2]
        finite = np.isfinite(now["qpos"]).all(1) & np.isfinite(now["qvel"]).all(1)
        healthy: np.ndarray = finite & (height >= 0.2) & (height <= 1.0)
        return ~healthy

    def reward(
        self, now: Arrays, before: np.ndarray, action: np.ndarray, terminated: np.ndarray
    ) -> np.ndarray:
        """As a runner, minus the contact forces."""
        contact = self.contact_weight * _square_sum(_flat(self._forces(now)))
        return super().reward(now, before, action, terminated) - contact

    def _forces(self, now: Arrays) -> np.ndarray:
        return now["cfrc_ext"].clip(-1.0, 1.0)


class _Human(Runner):
    """What the two humanoids observe."""

    reads = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext", "xipos")
    noise = 1e-2
    hidden = 2
    effort_weight = 0.1

    def observe(self, now: Arrays) -> np.ndarray:
        """Positions but the first two, velocities, inertias and forces of every body and joint."""
        bodies = [_flat(now[name][:, 1:]) for name in ("cinert", "cvel")]
        forces = [now["qfrc_actuator"][:, 6:], _flat(now["cfrc_ext"][:, 1:])]
        return np.concatenate((super().observe(now), *bodies, *forces), axis=1)


class Humanoid(_Human):
    """Run upright."""

    forward_weight = 1.25
    healthy_bonus = 5.0
    contact_weight, most_contact = 5e-7, 10.0

    def progress(self, now: Arrays) -> np.ndarray:
        """X of the centre of mass."""
        mass = self.model.body_mass
        along: np.ndarray = np.einsum("b,nb->n", mass, now["xipos"][:, :, 0]) / mass.sum()
        return along

    def terminated(self, now: Arrays) -> np.ndarray:
        """Too low or too high."""
        height = now["qpos"][:, 2]
        healthy: np.ndarray = (height > 1.0) & (height < 2.0)
        return ~healthy

    def reward(
        self, now: Arrays, before: np.ndarray, action: np.ndarray, terminated: np.ndarray
    ) -> np.ndarray:
        """As a runner, minus the contact forces."""
        contact = self.contact_weight * _square_sum(_flat(now["cfrc_ext"]))
        moving = super().reward(now, before, action, terminated)
        reward: np.ndarray = moving - contact.clip(max=self.most_contact)
        return reward


class HumanoidStandup(_Human):
    """Rise from the ground; never ends."""

    impact_weight, most_impact = 0.5e-6, 10.0

    def reward(
        self, now: Arrays, before: np.ndarray, action: np.ndarray, terminated: np.ndarray
    ) -> np.ndarray:
        """Height over the physics step, minus effort and contact forces."""
        height = now["qpos"][:, 2] / self.model.opt.timestep
        impact = self.impact_weight * _square_sum(_flat(now["cfrc_ext"]))
        effort = self.effort_weight * _square_sum(action)
        reward: np.ndarray = height - effort - impact.clip(max=self.most_impact) + 1
        return reward


class InvertedPendulum(Task):
    """Balance a pole on a cart."""

    noise = 0.01

    def observe(self, now: Arrays) -> np.ndarray:
        """Positions and velocities."""
        return np.concatenate((now["qpos"], now["qvel"]), axis=1)

    def terminated(self, now: Arrays) -> np.ndarray:
        """Tilted or diverged."""
        upright: np.ndarray = np.isfinite(self.observe(now)).all(1)
        upright &= np.abs(now["qpos"][:, 1]) <= 0.2
        return ~upright

    def reward(
        self, now: Arrays, before: np.ndarray, action: np.ndarray, terminated: np.ndarray
    ) -> np.ndarray:
        """One while upright."""
        return (~terminated).astype(float)


class InvertedDoublePendulum(Task):
    """Balance a pole on a pole on a cart."""

    reads = ("qfrc_constraint", "site_xpos")
    normal_speeds = True

    def observe(self, now: Arrays) -> np.ndarray:
        """Cart, sines and cosines of the poles, clipped velocities, force of the cart's limit."""
        poles = now["qpos"][:, 1:]
        speeds, force = now["qvel"].clip(-10, 10), now["qfrc_constraint"][:, :1].clip(-10, 10)
        return np.concatenate(
            (now["qpos"][:, :1], np.sin(poles), np.cos(poles), speeds, force), axis=1
        )

    def terminated(self, now: Arrays) -> np.ndarray:
        """The tip has come down."""
        down: np.ndarray = now["site_xpos"][:, 0, 2] <= 1
        return down

    def reward(
        self, now: Arrays, before: np.ndarray, action: np.ndarray, terminated: np.ndarray
    ) -> np.ndarray:
        """Ten while up, minus the tip's distance from its goal and the poles' speeds."""
        x, _, y = now["site_xpos"][:, 0].T
        first, second = now["qvel"][:, 1:3].T
        away = 0.01 * x**2 + (y - 2) ** 2
        fast = 1e-3 * first**2 + 5e-3 * second**2
        reward: np.ndarray = 10.0 * ~terminated - away - fast
        return reward


class Reacher(Task):
    """Touch a target with the tip of an arm in the plane."""

    reads = ("xpos",)
    reach = 0.2
    """Targets lie within it [m]."""

    def __init__(self, model: mujoco.MjModel, dt: float) -> None:
        super().__init__(model, dt)
        self._tip, self._target = model.body("fingertip").id, model.body("target").id

    def start(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The arm nearly straight, the target anywhere in reach."""
        qpos, _ = super().start(random, count)
        qvel = random.uniform(-0.005, 0.005, (count, self.model.nv))
        qpos[:, -2:] = _drawn(
            random,
            count,
            low=(-self.reach, -self.reach),
            high=(self.reach, self.reach),
            wanted=lambda at: np.linalg.norm(at, axis=1) < self.reach,
        )
        qvel[:, -2:] = 0
        return qpos, qvel

    def observe(self, now: Arrays) -> np.ndarray:
        """Cosines and sines of the joints, target, joint speeds, tip relative to the target."""
        angles = now["qpos"][:, :2]
        parts = (np.cos(angles), np.sin(angles), now["qpos"][:, 2:], now["qvel"][:, :2])
        return np.concatenate((*parts, self._away(now)[:, :2]), axis=1)

    def reward(
        self, now: Arrays, before: np.ndarray, action: np.ndarray, terminated: np.ndarray
    ) -> np.ndarray:
        """Minus distance and effort."""
        reward: np.ndarray = -np.linalg.norm(self._away(now), axis=1) - _square_sum(action)
        return reward

    def _away(self, now: Arrays) -> np.ndarray:
        return now["xpos"][:, self._tip] - now["xpos"][:, self._target]


class Pusher(Task):
    """Push an object to a goal on a table."""

    reads = ("xpos",)

    def __init__(self, model: mujoco.MjModel, dt: float) -> None:
        super().__init__(model, dt)
        self._tip, self._object, self._goal = (
            model.body(name).id for name in ("tips_arm", "object", "goal")
        )

    def start(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The arm at rest, the object anywhere but at the goal."""
        qpos = np.tile(self.model.qpos0, (count, 1))
        qpos[:, -4:-2] = _drawn(
            random,
            count,
            low=(-0.3, -0.2),
            high=(0.0, 0.2),
            wanted=lambda at: np.linalg.norm(at, axis=1) > 0.17,
        )
        qpos[:, -2:] = 0
        qvel = random.uniform(-0.005, 0.005, (count, self.model.nv))
        qvel[:, -4:] = 0
        return qpos, qvel

    def observe(self, now: Arrays) -> np.ndarray:
        """Joints, their speeds, and where tip, object and goal are."""
        where = [now["xpos"][:, body] for body in (self._tip, self._object, self._goal)]
        return np.concatenate((now["qpos"][:, :7], now["qvel"][:, :7], *where), axis=1)

    def reward(
        self, now: Arrays, before: np.ndarray, action: np.ndarray, terminated: np.ndarray
    ) -> np.ndarray:
        """Minus the object's distances to the tip and to the goal, minus effort."""
        there = now["xpos"][:, self._object]
        near = np.linalg.norm(there - now["xpos"][:, self._tip], axis=1)
        away = np.linalg.norm(there - now["xpos"][:, self._goal], axis=1)
        reward: np.ndarray = -0.5 * near - away - 0.1 * _square_sum(action)
        return reward


TASKS: dict[str, type[Task]] = {
    kind.__name__: kind
    for kind in (
        Ant,
        HalfCheetah,
        Hopper,
        Humanoid,
        HumanoidStandup,
        InvertedDoublePendulum,
        InvertedPendulum,
        Pusher,
        Reacher,
        Swimmer,
        Walker2d,
    )
}
"""By the name of Gymnasium's ``<name>-v5``."""


def _drawn(
    random: np.random.Generator,
    count: int,
    *,
    low: tuple[float, float],
    high: tuple[float, float],
    wanted: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Uniform points (count, 2) in a box, drawn again where they are not wanted."""
    points = random.uniform(low, high, (count, 2))
    while (again := ~wanted(points)).any():
        points[again] = random.uniform(low, high, (int(again.sum()), 2))
    return points


def _square_sum(values: np.ndarray) -> np.ndarray:
    total: np.ndarray = np.einsum("nd,nd->n", values, values)
    return total


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)
