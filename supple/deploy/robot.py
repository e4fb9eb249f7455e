"""A stand-in robot: MuJoCo stepping in real time in a process of its own, spoken to over UDP.

``python -m supple.deploy.robot BUNDLE`` prints its port, waits for a runner, moves for a while and
writes what happened. Joints, units and channels are the model's own, rates the manifest's, so that
a runner with another idea of them is found out. Packets get lost and late on the way, seeded.
"""

from __future__ import annotations

import argparse
import heapq
import json
import select
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from safetensors.numpy import save

from supple.deploy.bundle import read_bundle
from supple.deploy.protocol import MAX_BYTES, Kind, is_hello, pack, pack_description, unpack
from supple.envs import gym_facts
from supple.envs.gym_packages import quiet_mujoco
from supple.envs.gym_spaces import ActionMap
from supple.errors import InputError
from supple.files import replace_file

WATCHDOG_S = 0.25
"""Without a packet for so long, the robot lets go by itself [s]."""
WAIT_S = 30.0
"""For a runner [s]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """What happens to packets in both directions."""

    loss: float = 0.0
    """Probability that a packet never arrives."""
    delay: float = 0.0
    """Mean of an exponential delay of each packet [s]; late ones may overtake each other."""
    seed: int = 0


def require_robot(task: str) -> None:
    """Refuse a task that can be no robot here.

    Raises:
        InputError: it is none of Gymnasium's.
    """
    if not task.startswith("gym/") or ":" in task:
        raise InputError(f"{task}: the stand-in robot knows Gymnasium's MuJoCo tasks, gym/<id>")


class Body:
    """A Gymnasium MuJoCo robot with torque-controlled joints, stepped at the simulation's own rate.

    Args:
        contract: names the task; everything else is the model's own.

    Raises:
        InputError: no such robot, or one whose joints cannot be driven one by one.
    """

    def __init__(self, contract: Mapping[str, Any]) -> None:
        task = str(contract["origin"]["task"])
        require_robot(task)
        with quiet_mujoco():
            self._env: gymnasium.Env[Any, Any] = gymnasium.make(task.removeprefix("gym/"))
        robot: Any = self._env.unwrapped
        self._robot = robot
        action = ActionMap(self._env.action_space, 1, task).spec
        found, channels = gym_facts.deployment(self._env, action), gym_facts.channels(self._env)
        if found is None or channels is None or found.control_mode != "torque":
            raise InputError(f"{task}: expected torque-controlled joints and named channels")
        self.joints, self.channels = list(found.joint_names or ()), [c.name for c in channels]
        self.model, self.data = robot.model, robot.data
        self.sim_dt = float(self.model.opt.timestep)
        self._gear = self.model.actuator_gear[:, 0] * self.model.actuator_gainprm[:, 0]
        self._dofs = self.model.jnt_dofadr[self.model.actuator_trnid[:, 0]]

    def reset(self, seed: int) -> None:
        """Start as an episode does."""
        self._env.reset(seed=seed)

    def describe(self) -> dict[str, Any]:
        """What a runner must agree with."""
        return {
            "joints": self.joints,
            "channels": self.channels,
            "control_mode": "torque",
            "unit": "N·m",
        }

    def sense(self) -> np.ndarray:
        """Every channel now."""
        return np.asarray(self._robot._get_obs(), np.float32)

    def step(self, torque: np.ndarray) -> None:
        """One simulation step under joint torques [N·m], limited as the motors are."""
        import mujoco

        limits = self.model.actuator_ctrlrange
        self.data.ctrl[:] = np.clip(torque / self._gear, limits[:, 0], limits[:, 1])
        mujoco.mj_step(self.model, self.data)
        mujoco.mj_rnePostConstraint(self.model, self.data)  # contact forces, which some observe

    def damping(self, gains: np.ndarray) -> np.ndarray:
        """Torques that brake every joint [N·m]."""
        braking: np.ndarray = -gains * self.data.qvel[self._dofs]
        return braking

    def close(self) -> None:
        """Release the simulator."""
        self._env.close()


class Channel:
    """A UDP socket on the loopback address with weather."""

    def __init__(self, port: int, weather: Weather) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", port))
        self._socket.setblocking(False)
        self._weather = weather
        self._random = np.random.default_rng(weather.seed)
        self._waiting: list[tuple[float, int, bool, bytes]] = []
        self._count = 0
        self._peer: Any = None
        self.port: int = self._socket.getsockname()[1]
        self.dropped = 0

    def send(self, data: bytes) -> None:
        """To the runner that spoke first."""
        self._put(data, outgoing=True)

    def reply(self, data: bytes) -> None:
        """At once and whatever the weather."""
        self._emit(data)

    def receive(self) -> list[bytes]:
        """What has arrived by now; delayed packets leave too."""
        while select.select([self._socket], [], [], 0)[0]:
            try:
                data, peer = self._socket.recvfrom(MAX_BYTES)
            except ConnectionError:  # the runner's port is closed already
                continue
            if self._peer is None and is_hello(data):
                self._peer = peer
            if peer == self._peer:
                self._put(data, outgoing=False)
        arrived, now = [], time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, outgoing, data = heapq.heappop(self._waiting)
            if outgoing:
                self._emit(data)
            else:
                arrived.append(data)
        return arrived

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()

    def _put(self, data: bytes, *, outgoing: bool) -> None:
        if self._random.random() < self._weather.loss:
            self.dropped += 1
            return
        late = self._random.exponential(self._weather.delay) if self._weather.delay else 0.0
        self._count += 1
        heapq.heappush(self._waiting, (time.monotonic() + late, self._count, outgoing, data))

    def _emit(self, data: bytes) -> None:
        if self._peer is not None:
            self._socket.sendto(data, self._peer)


@dataclass(slots=True)
class Orders:
    """The newest thing a runner asked for."""

    kind: Kind = Kind.DAMP
    numbers: np.ndarray | None = None
    sequence: int = -1
    arrived: float = 0.0

    def take(self, data: bytes, joints: int, now: float) -> bool:
        """Note a packet; True for a hello, which wants an answer. Overtaken packets are dropped."""
        packet = unpack(data)
        if packet is None:
            return False
        if packet.kind is Kind.HELLO:
            return True
        # The difference of counters that may have wrapped.
        newer = self.sequence < 0 or (packet.sequence - self.sequence) % 2**32 < 2**31
        if packet.kind in (Kind.COMMAND, Kind.DAMP) and len(packet.numbers) == joints and newer:
            self.kind, self.numbers = packet.kind, packet.numbers
            self.sequence, self.arrived = packet.sequence, now
        return False

    def torque(self, body: Body, now: float) -> np.ndarray:
        """What the motors do: the command, braking, or nothing."""
        if self.numbers is None or now - self.arrived > WATCHDOG_S:
            return np.zeros(len(body.joints))
        if not np.isfinite(self.numbers).all():
            return np.zeros(len(body.joints))
        return self.numbers if self.kind is Kind.COMMAND else body.damping(self.numbers)


def live(
    body: Body, channel: Channel, *, seconds: float, frame_dt: float, blind: float | None = None
) -> dict[str, np.ndarray]:
    """Move in real time from the first command on.

    Args:
        body: the robot.
        channel: to the runner.
        seconds: for how long [s].
        frame_dt: how often a pose is noted [s].
        blind: after so many seconds, states become NaN: a broken sensor.

    Returns:
        ``qpos`` and ``qvel`` per frame, ``damped`` per frame (1 where not under command).

    Raises:
        InputError: no runner came.
    """
    orders, sequence, born = Orders(), 0, time.monotonic()
    began: float | None = None
    frames: list[tuple[np.ndarray, np.ndarray, bool]] = []
    due = born
    while began is None or due - began < seconds:
        now = time.monotonic()
        for data in channel.receive():
            if orders.take(data, len(body.joints), now):
                channel.reply(pack_description(body.describe(), data))
        if began is None and orders.sequence >= 0:
            began = due = now
        if began is None and now - born > WAIT_S:
            raise InputError(f"no runner sent a command within {WAIT_S:.0f} s")
        if began is not None:
            torque = orders.torque(body, now)
            if len(frames) <= (due - began) / frame_dt:
                commanded = orders.kind is Kind.COMMAND and now - orders.arrived <= WATCHDOG_S
                frames.append((body.data.qpos.copy(), body.data.qvel.copy(), not commanded))
            body.step(torque)
        state = body.sense()
        if blind is not None and began is not None and due - began > blind:
            state = np.full_like(state, np.nan)
        channel.send(pack(Kind.STATE, sequence, now, state))
        sequence = (sequence + 1) % 2**32
        due += body.sim_dt
        time.sleep(max(0.0, due - time.monotonic()))
    names = ("qpos", "qvel", "damped")
    found = dict(zip(names, map(np.array, zip(*frames, strict=True)), strict=True))
    return {**found, "damped": found["damped"].astype(np.uint8)}


def main(arguments: list[str] | None = None) -> int:
    """Be a robot once; the first line printed is the port, the last a summary in JSON."""
    parser = argparse.ArgumentParser(prog="python -m supple.deploy.robot", allow_abbrev=False)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--loss", type=float, default=0.0, help="probability, both directions")
    parser.add_argument("--delay", type=float, default=0.0, help="mean of each packet's delay [s]")
    parser.add_argument("--blind", type=float, help="states are NaN after so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="poses, as safetensors")
    options = parser.parse_args(arguments)
    weather = Weather(loss=options.loss, delay=options.delay, seed=options.seed)
    try:
        contract = read_bundle(options.bundle).contract
        with (
            closing(Body(contract)) as body,
            closing(Channel(options.port, weather)) as channel,
        ):
            body.reset(options.seed)
            print(channel.port, flush=True)
            frame_dt, start = contract["timing"]["control_dt"], float(body.data.qpos[0])
            found = live(
                body, channel, seconds=options.seconds, frame_dt=frame_dt, blind=options.blind
            )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    moved = float(found["qpos"][-1, 0]) - start
    if options.record:
        replace_file(options.record, save(found))
    damped = int(found["damped"].sum())
    summary = {
        "frames": len(found["damped"]),
        "damped_frames": damped,
        "dropped": channel.dropped,
        "moved": moved,
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
