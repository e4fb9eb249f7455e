"""Deterministic evaluation: undiscounted returns of whole episodes."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supple import machine
from supple.checkpoint import list_checkpoints, step_of
from supple.configs.base import Settings
from supple.display import format_return
from supple.envs import make
from supple.envs.base import Box, Discrete, Env, EnvSpec, Groups
from supple.envs.registry import most_envs, require_drawing
from supple.errors import InputError, NotFiniteError, how_to_install
from supple.intervals import half_width95
from supple.metrics import best_evaluation
from supple.rng import derive_seed

Policy = Callable[[Groups], Tensor]
"""Observation groups, each (N, D), to actions (N, A) or choices (N,)."""
MAX_CPU_ENVS = 10
"""Evaluation environments on CPU simulators; more would only cost memory."""
MAX_EPISODE_STEPS = 10_000
"""Where a task has no time limit of its own, evaluation cuts its episodes here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What evaluation found; means are over episodes."""

    return_mean: float
    return_std: float
    """Sample standard deviation over episodes (0 for a single one)."""
    return_ci95: float
    """Half-width of the 95 % confidence interval of the mean (Student's t; 0 for one episode)."""
    length_mean: float
    episodes: int
    success_once: float | None = None
    """Fraction of episodes with success at any step; None where the task reports none."""
    success_end: float | None = None
    """Fraction of episodes with success at the last step."""

    def __str__(self) -> str:
        """The mean with its interval, which one episode has none of."""
        if self.episodes == 1:
            return f"{format_return(self.return_mean)} (1 episode, no interval)"
        interval = f"95 % interval, {self.episodes} episodes"
        return f"{format_return(self.return_mean)} ± {format_return(self.return_ci95)} ({interval})"

    def metrics(self) -> dict[str, float]:
        """As columns of a metrics row."""
        row = {
            "eval/return_mean": self.return_mean,
            "eval/return_std": self.return_std,
            "eval/return_ci95": self.return_ci95,
            "eval/length_mean": self.length_mean,
        }
        if self.success_once is not None and self.success_end is not None:
            row |= {"eval/success_once": self.success_once, "eval/success_end": self.success_end}
        return row


@torch.no_grad()
def evaluate(
    greedy: Callable[[], Policy],
    env: Env,
    *,
    episodes: int,
    seed: int | None = None,
    on_step: Callable[[], None] | None = None,
) -> Evaluation:
    """Run whole episodes and average their undiscounted returns.

    Works in rounds: all environments start together and each counts until its first end, so that
    short episodes are not over-represented.

    Args:
        greedy: called when episodes begin; gives what maps observation groups to actions (N, A),
            which must be deterministic and may remember earlier calls (a recurrent policy).
        env: an environment of its own, never the one being trained in.
        episodes: how many, >= 1; the last round uses only as many environments as are missing.
        seed: of the first round's reset; later rounds continue the environment's own stream.
        on_step: called after the reset and after each vector step but a round's last (used to
            record pictures).

    Raises:
        InputError: ``episodes`` < 1.
        NotFiniteError: a return or an action is not finite.
    """
    if episodes < 1:
        raise InputError(f"episodes must be >= 1, got {episodes}")
    returns: list[Tensor] = []
    lengths: list[Tensor] = []
    once: list[Tensor] = []
    end: list[Tensor] = []
    missing, reported = episodes, False
    while missing > 0:
        obs, act = env.reset(seed)["observation"], greedy()
        seed = None
        if on_step:
            on_step()
        counted = min(env.spec.num_envs, missing)
        total = torch.zeros(env.spec.num_envs, dtype=torch.float64, device=env.spec.device)
        length = torch.zeros_like(total)
        running = torch.ones_like(total, dtype=torch.bool)
        succeeded = torch.zeros_like(running)
        last = torch.zeros_like(running)
        for _ in range(env.spec.max_episode_steps or MAX_EPISODE_STEPS):
            step = env.step(act(obs)).to_dict()
            live = running & step["valid"]
            total += torch.where(live, step["reward"], 0)
            length += live
            success = step.get("success", None)
            if success is not None:
                reported = True
                succeeded |= live & success
                last = torch.where(live, success, last)
            running &= ~(live & (step["terminated"] | step["truncated"]))
            obs = step["observation"]
            if not bool(running[:counted].any()):
                break  # what would be drawn now begins another episode
            if on_step:
                on_step()
        returns.append(total[:counted])
        lengths.append(length[:counted])
        once.append(succeeded[:counted])
        end.append(last[:counted])
        missing -= counted
    values = torch.cat(returns).cpu()
    if not bool(torch.isfinite(values).all()):
        raise NotFiniteError(f"{env.spec.task_id}: a return is not finite during evaluation")
    std = float(values.std()) if episodes > 1 else 0.0
    return Evaluation(
        return_mean=float(values.mean()),
        return_std=std,
        return_ci95=half_width95(std, episodes),
        length_mean=float(torch.cat(lengths).mean()),
        episodes=episodes,
        success_once=float(torch.cat(once).double().mean()) if reported else None,
        success_end=float(torch.cat(end).double().mean()) if reported else None,
    )


def record_video(
    greedy: Callable[[], Policy],
    env: Env,
    path: str,
    *,
    seed: int | None,
    fps: float,
    max_seconds: float,
) -> Evaluation:
    """Film one deterministic episode of environment 0.

    Args:
        greedy: as in ``evaluate``.
        env: one environment made with ``render=True``.
        path: the ``.mp4`` to write, or a moving picture in ``.webp`` or ``.gif``; its folder must
            exist.
        seed: of the reset.
        fps: pictures per second of simulated time.
        max_seconds: film no more than this much of the episode [s]; software rendering is slow.

    Raises:
        InputError: the mp4 writer is not installed, or the environment cannot draw.
    """
    with picture_writer(path, fps) as writer:
        try:
            env.reset(seed)
            env.render()
        except NotImplementedError as error:
            raise InputError(f"cannot film {env.spec.task_id}: {error}") from error
        left = max(max_seconds * fps, 1)  # a file without a picture is none

        def film_step() -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                writer.append_data(np.ascontiguousarray(env.render()))

        return evaluate(greedy, env, episodes=1, seed=seed, on_step=film_step)


def picture_writer(path: str, fps: float) -> Any:
    """A ``with`` block's writer, which takes pictures by ``append_data`` and makes the file.

    Raises:
        InputError: the mp4 writer is not installed.
    """
    if not path.endswith(".mp4"):
        return MovingPicture(path, fps)
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401 - the writer itself
    except ImportError as error:
        raise InputError(
            f"writing mp4 needs imageio and imageio-ffmpeg: {how_to_install('mujoco')}"
        ) from error
    return imageio.get_writer(path, fps=fps, macro_block_size=2)


class MovingPicture:
    """A ``.webp`` or ``.gif`` that moves on a page, without end; half as large as what was drawn.

    Args:
        path: the file to write when the ``with`` block ends without an error.
        fps: pictures a second.
    """

    def __init__(self, path: str, fps: float) -> None:
        # A GIF counts hundredths of a second, and pages show it slowly below two of them.
        gif = path.endswith(".gif")
        self._every = max(1, math.ceil(fps / 50)) if gif else 1
        between = 1000 * self._every / fps
        self._path, self._milliseconds = path, 10 * round(between / 10) if gif else round(between)
        self._pictures: list[Any] = []

    def append_data(self, picture: np.ndarray[Any, Any]) -> None:
        """Add a picture, (H, W, 3) uint8."""
        from PIL import Image  # runs that draw nothing do without

        self._pictures.append(Image.fromarray(picture).reduce(2))

    def __enter__(self) -> MovingPicture:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._pictures:
            first, *rest = self._pictures[:: self._every]
            first.save(
                self._path,
                save_all=True,
                append_images=rest,
                duration=self._milliseconds,
                loop=0,
            )


def evaluation_envs(num_envs: int, device: torch.device, episodes: int) -> int:
    """How many environments evaluate together.

    Args:
        num_envs: how many train.
        device: of their tensors; simulated on a GPU, as many as train take no longer than one.
        episodes: of one evaluation.
    """
    # A CPU simulator's tensors may be on a GPU, too, and one environment would train alone there.
    most = max(num_envs, MAX_CPU_ENVS) if device.type == "cuda" else MAX_CPU_ENVS
    return min(episodes, most)


def require_same_interface(spec: EnvSpec, trained: EnvSpec, groups: Sequence[str]) -> None:
    """Refuse an environment that a policy cannot act in.

    Args:
        spec: of the environment.
        trained: of the one it was trained in.
        groups: observation groups that the policy reads.

    Raises:
        InputError: a group is missing or of another width, or actions are of another kind or size.
    """
    expected, got = _interface(trained, groups), _interface(spec, groups)
    if expected != got:
        raise InputError(
            f"{spec.task_id} has {got}, the policy was trained with {expected}: choose a --task and"
            " an --env.history that give the same"
        )


def other_bounds(spec: EnvSpec, trained: EnvSpec) -> str:
    """What to say where a policy's action is another command than it was in training; else empty.

    Both take as many actions.
    """
    if isinstance(spec.action, Box) and isinstance(trained.action, Box):
        here, there = (list(zip(a.low, a.high, strict=True)) for a in (spec.action, trained.action))
        for index, (now, then) in enumerate(zip(here, there, strict=True)):
            if not np.allclose(now, then):
                return (
                    f"the policy's action {index} spans {list(now)} in {spec.task_id}, {list(then)}"
                    f" in {trained.task_id}, where it was trained"
                )
    return ""


def _interface(spec: EnvSpec, groups: Sequence[str]) -> str:
    widths = [f"{name} {spec.observation.get(name, 'missing')}" for name in groups]
    kind = "choices" if isinstance(spec.action, Discrete) else "actions"
    return f"observation {', '.join(widths)} and {spec.action.size} {kind}"


def best_checkpoint(run: Path) -> tuple[Path, float]:
    """The checkpoint of a run's best evaluation, the later of equals, and its mean return.

    Raises:
        InputError: nothing was evaluated yet, or that checkpoint is not kept; says which are.
    """
    found = best_evaluation(run)
    if found is None:
        raise InputError(f"{run} has no evaluation to tell its best checkpoint by: drop --best")
    step, mean = found
    kept = {step_of(path): path for path in list_checkpoints(run)}
    if step not in kept:
        names = ", ".join(path.name for path in kept.values()) or "none"
        raise InputError(
            f"{run}: the best evaluation, {mean:.6g}, was at step {step}, of which no checkpoint is"
            f" kept: give one of {run / 'checkpoints'} instead of --best: {names}"
        )
    return kept[step], mean


def make_env(
    settings: Settings,
    *,
    num_envs: int,
    purpose: str,
    render: bool = False,
    progress: Mapping[str, Any] | None = None,
) -> Env:
    """An environment of the run's task with other seeds than the training one's.

    Args:
        settings: the run's.
        num_envs: how many step together; fewer where the simulator takes no more.
        purpose: what the seeds are drawn for.
        render: whether it can draw.
        progress: what of the training environment outlives a reset, ``Env.progress()``.
    """
    device = machine.resolve_device(settings.device)
    num_envs = min(num_envs, most_envs(settings.task, device))
    env = make(
        settings.task,
        dataclasses.replace(settings.env, num_envs=num_envs),
        device=device,
        seed=derive_seed(settings.seed, purpose),
        render=render,
    )
    if progress:
        try:
            env.load_progress(progress)
        except BaseException:
            env.close()
            raise
    return env


def film(
    settings: Settings,
    greedy: Callable[[], Policy],
    path: Path,
    *,
    seed: int,
    max_seconds: float,
    progress: Mapping[str, Any] | None = None,
    accept: Callable[[EnvSpec], None] | None = None,
) -> Evaluation:
    """Film one episode of the run's task to ``path``, which appears only when complete.

    ``progress`` is as in ``make_env``; ``accept`` may refuse the environment by raising.

    Raises:
        InputError: the environment cannot draw, or ``path`` cannot be written.
    """
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file in it")
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        require_drawing(settings.task)
        made = make_env(settings, num_envs=1, purpose="video", render=True, progress=progress)
        with closing(made) as env:
            if accept:
                accept(env.spec)
            found = record_video(
                greedy,
                env,
                str(partial),
                seed=derive_seed(seed, "video"),
                fps=1 / env.spec.control_dt if env.spec.control_dt else 30,
                max_seconds=max_seconds,
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return found
