"""``supple chain``: train or take a run, export, verify, and let the C++ runner move a robot.

The robot is a simulator in another process; see ``robot.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from supple.deploy.robot import WAIT_S
from supple.envs.gym_packages import (
    draw_without_display,
    drawing,
    floor_beneath,
    follow_robot,
    quiet_mujoco,
)
from supple.errors import InputError, SimulatorError
from supple.evaluate import picture_writer

BAD_INPUT = 2
"""Exit status of a runner or robot that refuses."""
GRACE_S = 15.0
"""What a process may take beyond its seconds [s]."""


@dataclass(frozen=True, slots=True)
class Drive:
    """How runner and robot came through together."""

    status: int
    """The runner's exit status."""
    runner: dict[str, Any]
    """Its summary; empty where it refused."""
    robot: dict[str, Any]
    error: str
    """What the runner said on stderr."""


def build_runner(bundle: Path, folder: Path, *, options: Sequence[str] = ()) -> Path:
    """Compile the runner for one bundle.

    Args:
        bundle: its folder.
        folder: where to build.
        options: further options of CMake.

    Raises:
        InputError: no CMake or compiler, or it does not build; names the first error.
    """
    cmake = shutil.which("cmake")
    if cmake is None:
        raise InputError("the runner needs CMake and a C++ compiler: apt install cmake g++")
    with as_file(package_files("supple.deploy") / "runtime") as source:
        configure = [
            cmake,
            "-S",
            str(source),
            "-B",
            str(folder),
            f"-DSUPPLE_BUNDLE={bundle.resolve()}",
        ]
        for command in ([*configure, *options], [cmake, "--build", str(folder)]):
            status, text = _run_group(command)
            if status != 0:
                lines = text.strip().splitlines()
                raise InputError(f"the runner does not build: {' '.join(lines[:4])[:400]}")
    return folder / "supple_runner"


def _run_group(command: Sequence[str]) -> tuple[int, str]:
    """Exit status and what was said; stopped, the compilers that CMake started end with it."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            out, error = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, error or out


def drive(
    runner: Path,
    bundle: Path,
    *,
    seconds: float,
    loss: float = 0.0,
    delay: float = 0.0,
    seed: int = 0,
    record: Path | None = None,
    log: Path | None = None,
    robot_options: Sequence[str] = (),
    runner_options: Sequence[str] = (),
) -> Drive:
    """Start robot and runner and wait for both.

    Args:
        runner: the built program.
        bundle: what both read.
        seconds: how long the robot moves [s].
        loss: probability that a packet is lost, in each direction.
        delay: mean delay of each packet [s].
        seed: of the robot's start and its weather.
        record: where the robot writes its poses.
        log: where the runner writes a line per tick.
        robot_options: further arguments of the robot.
        runner_options: further arguments of the runner.

    Raises:
        SimulatorError: the robot did not start or did not end.
    """
    command = [sys.executable, "-m", "supple.deploy.robot", str(bundle)]
    command += ["--seconds", str(seconds), "--loss", str(loss), "--delay", str(delay)]
    command += ["--seed", str(seed), *robot_options]
    if record:
        command += ["--record", str(record)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as robot:
        try:
            assert robot.stdout is not None and robot.stderr is not None
            port = robot.stdout.readline().strip()
            if not port:
                text = robot.stderr.read().strip()
                if robot.wait() == BAD_INPUT:
                    raise InputError(text)
                raise SimulatorError(f"the robot did not start: {_last_line(text)}")
            given = [str(runner), str(bundle), "--port", port, "--seconds", str(seconds)]
            given += ["--log", str(log)] if log else []
            limit = seconds + GRACE_S + WAIT_S
            done = subprocess.run(
                [*given, *runner_options],
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
            if done.returncode == BAD_INPUT:  # refused: the robot would wait for it
                robot.kill()
            out, text = robot.communicate(timeout=seconds + GRACE_S)
            if done.returncode == 0 and robot.returncode != 0:
                raise SimulatorError(f"the robot broke down: {_last_line(text)}")
        except subprocess.TimeoutExpired as error:
            raise SimulatorError("runner or robot did not come to an end") from error
        finally:
            robot.kill()
    return Drive(done.returncode, _last_json(done.stdout), _last_json(out), done.stderr.strip())


def film(task: str, record: Path, video: Path, *, fps: float) -> None:
    """Draw the recorded poses.

    Raises:
        InputError: no mp4 writer, or nothing to draw with.
    """
    import gymnasium

    poses = load_file(record)
    draw_without_display()
    with quiet_mujoco():
        env = gymnasium.make(task.removeprefix("gym/"), render_mode="rgb_array")
    partial = video.with_name(f".partial-{video.name}")
    try:
        with quiet_mujoco():
            env.reset(seed=0)
        follow_robot(env)
        robot: Any = env.unwrapped
        with picture_writer(str(partial), fps) as writer, drawing(task):
            for qpos, qvel in zip(poses["qpos"], poses["qvel"], strict=True):
                robot.set_state(qpos, qvel)
                with floor_beneath(robot):
                    writer.append_data(np.ascontiguousarray(env.render()))
        os.replace(partial, video)
    finally:
        partial.unlink(missing_ok=True)
        env.close()


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _last_json(text: str) -> dict[str, Any]:
    try:
        record = json.loads(_last_line(text))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
