"""A run: its folder, clocks, counters, evaluation, checkpoints and metric rows.

The only place where numbers are copied to the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

import torch
from tensordict import TensorDict
from torch import Tensor

from supple import checkpoint, machine, plots
from supple.agents.base import Agent
from supple.beside import Beside
from supple.checkpoint import Checkpoint, following_format
from supple.configs.base import Settings, to_json
from supple.diagnostics.online import Online
from supple.diagnostics.remedies import advice
from supple.display import Display
from supple.distributed import agreed, require_same, world
from supple.divergence import Divergence
from supple.envs.base import STEP_FIELDS, Env, Groups, Step
from supple.envs.registry import packages_of, runs_on_gpu
from supple.episodes import EpisodeStatistics, columns_of
from supple.errors import InputError, NotFiniteError, SimulatorError
from supple.evaluate import Evaluation, evaluate, evaluation_envs, film, make_env
from supple.files import replace_file
from supple.metrics import MetricSinks
from supple.quarantine import Quarantine
from supple.region import TRACING, Joined, Region
from supple.replay import Replay, Segments
from supple.rng import derive_seed
from supple.signals import on_signals, requests_to_stop
from supple.stillness import StillWatch
from supple.wallclock import WallClock

REPLAY_FOLDER = "replay"
"""Where a run's folder keeps the replay rows; checkpoints name the files they need."""
RESULT = "result.json"
"""What a complete run came to; there is none before."""
PLOT_SECONDS = 30.0
"""The learning curve is drawn anew this often, and at the end [s]."""
PLOT_SHARE = 0.005
"""More seldom where drawing would take more than this share of the time."""
MOST_BRIDGES = 1000
"""Steps in a row without a valid row, after which a simulator is taken to be stuck."""
SAME_REQUEST_S = 1.0
"""Signals closer together than this ask for one stop."""
VIDEO_SECONDS = 10.0
"""Simulated seconds of a film made by training; ``supple play`` films whole episodes [s]."""


class Run:
    """Everything the training loop touches. Use as a context manager.

    Args:
        settings: complete settings.
        folder: the run's folder, already prepared.
        env: the training environment.
        agent: the learner.
        replay: its ring.
        display: progress.
        resumed: the checkpoint to continue from.
        lock: held on the folder; released at the end.

    Of several processes that learn together (``supple/distributed.py``) each has a run. They agree
    at ``going`` and ``save``; the first alone evaluates, logs and speaks, and the others' folders,
    within its own, hold what of a checkpoint is theirs.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        folder: Path,
        env: Env,
        agent: Agent,
        replay: Replay,
        display: Display,
        resumed: Checkpoint | None = None,
        lock: IO[str] | None = None,
    ) -> None:
        self.settings = settings
        self._lock = lock
        self.folder = folder
        self.env = env
        self.agent = agent
        self.replay = replay
        self.display = display
        self.stopped = False
        self._stop_asked = 0.0
        self._resumed = resumed
        # A ring of one rollout is emptied before it is saved.
        ahead = replay.num_rows > agent.horizon
        kept = settings.checkpoint.keep_replay > 0
        self._segments = Segments(replay, folder / REPLAY_FOLDER, ahead=ahead, kept=kept)
        self._world = world()
        first = self._world.first
        diagnostics = settings.diagnostics
        if not first:
            diagnostics = dataclasses.replace(diagnostics, enabled=False)
        envs = env.spec.num_envs * self._world.size
        self._online = Online(
            agent,
            replay,
            diagnostics,
            advice=advice(settings),
            seed=settings.seed,
            env_steps=settings.env_steps,
            updates=settings.agent.gradient_steps(settings.env_steps, envs),
        )
        self._divergence = Divergence(
            settings.care,
            agent=agent,
            replay=replay,
            folder=folder,
            header={"settings": to_json(settings), "spec": env.spec.to_json()},
        )
        self._sinks = MetricSinks(
            folder, wandb_project=settings.log.wandb, settings=to_json(settings), writes=first
        )
        self._episodes = EpisodeStatistics(env.spec.num_envs, env.spec.device)
        self._quarantine = Quarantine.of(env.spec, settings, agent.compute)
        self._still = StillWatch()
        self._obs: Groups = {}
        self._vector_steps = 0
        self._invalid = torch.zeros((), dtype=torch.int64, device=env.spec.device)
        self._invalid_here = 0
        self._invalid_known = 0  # over all processes
        self._count_step = Region(self._count, state=self._counters, compute=agent.compute)
        self._recording = Joined(agent.compute)
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._logged = (time.monotonic(), 0, 0)  # time, env steps, updates of the last row
        self.learning, self._simulating = WallClock(), WallClock()
        self._plot_due = time.monotonic() + PLOT_SECONDS
        self._evaluation: Evaluation | None = None
        self._evaluated_at = -1
        self._filmed_at = 0
        self._saved_at = -1
        self._steps_before = 0  # env steps before the current iteration
        self._steps_floor = 0
        self._valid = -1  # rows of this process
        self._moved_at = 0  # vector step of the newest of them
        self._over = False
        self._late = False
        self._eval_env: Env | None = None
        self._signals = contextlib.ExitStack()
        self._simulator = (
            Beside("simulator", partial(machine.use, env.spec.device)) if settings.overlap else None
        )
        self._stepped: Callable[[], TensorDict]

    # --- the loop's side --------------------------------------------------------------------

    def start(self) -> Groups:
        """The first observation: of a reset, or of the resumed simulation."""
        self._started = time.monotonic()
        self._signals.enter_context(
            on_signals(self._request_stop, signal.SIGINT, *requests_to_stop())
        )
        if self._world.first and runs_on_gpu(self.settings.task):
            # They share the GPU's memory: what does not fit fails now, not at a tenth of the run.
            self._eval_env = self._make_eval_env()
        if self._resumed is None:
            self._reset(derive_seed(self.settings.seed, "env", *self._world.seed_words))
            if self.env.spec.exact_resume:  # or its first checkpoint would find out
                checkpoint.require_room(self.env.state_dict())
        else:
            self._restore(self._resumed)
        self._logged = (time.monotonic(), self.env_steps, self.agent.updates)
        return self._obs

    def open_sinks(self) -> None:
        """Before the run starts: make sure that rows will arrive, resumed ones where they did.

        Raises:
            InputError: W&B is wanted and refuses.
        """
        if self._resumed:
            with following_format(self._resumed.path):
                self._sinks.load_state_dict(self._resumed.state["run"]["sinks"])
        self._sinks.begin()

    @property
    def env_steps(self) -> int:
        """Environment steps so far: valid rows over all environments, of all processes.

        Never falls: what a GPU simulator marked as not valid since the last synchronisation counts
        until later steps make up for it.
        """
        rows = self.env.spec.num_envs * self._world.size
        steps = self._vector_steps * rows - self._invalid_known
        return max(steps, self._steps_floor)

    @property
    def complete(self) -> bool:
        """Whether training came to its end, by steps or by time, rather than being stopped."""
        return self._over

    def going(self) -> bool:
        """Whether to take another step."""
        self._steps_before = self.env_steps
        stopped = self.stopped if self._world.size == 1 else self._agree()
        return not stopped and not self._is_over()

    def _agree(self) -> bool:
        """Whether all processes stop here, as one was asked to; steps and time are theirs, too."""
        asked, late, invalid = agreed([self.stopped, self._timed_out(), self._invalid_here])
        self._steps_floor = self.env_steps
        self._invalid_known, self._late = round(invalid), late > 0
        self.stopped = self.stopped or asked > 0
        return asked > 0

    def _timed_out(self) -> bool:
        limit = self.settings.max_minutes * 60
        return limit > 0 and time.monotonic() - self._started >= limit

    def _is_over(self) -> bool:
        timed_out = self._timed_out() if self._world.size == 1 else self._late
        # Once over it stays over, so that the last iteration and ``finish`` agree.
        self._over = self._over or timed_out or self.env_steps >= self.settings.env_steps
        return self._over

    def begin_step(self, action: Tensor) -> None:
        """Start one vector step, on a thread of its own where the settings ask for overlap."""
        if self._simulator:
            self._stepped = self._simulator.submit(self._step_beside, action).result
        else:
            self._stepped = partial(self.env.step, action)

    def _step_beside(self, action: Tensor) -> TensorDict:
        with TRACING:
            return self.env.step(action)

    def end_step(self) -> Step:
        """What the begun step returned.

        Raises:
            SimulatorError: it is no TensorDict.
            Exception: whatever the simulator raised.
        """
        with self._simulating:
            return self._fields("step", self._stepped())

    def _fields(self, what: str, found: Any) -> dict[str, Any]:
        """Of a TensorDict, as a dict, which is faster to read."""
        if not isinstance(found, TensorDict):
            raise SimulatorError(
                f"{self.settings.task}: {what} returned a {type(found).__name__}, expected a"
                f" TensorDict (supple.envs.base.{what}_result makes one); check the simulator with"
                " supple doctor --env"
            )
        fields: dict[str, Any] = found.to_dict()
        return fields

    def record(self, action: Tensor, step: Step, extras: Mapping[str, Tensor]) -> Groups:
        """Count one vector step, show it to the agent and store it.

        Args:
            action: what the agent chose.
            step: what came of it.
            extras: what the agent stores besides.

        Returns:
            The observation to act on next.

        Raises:
            SimulatorError: the simulator broke its contract, or returned bad rows that the settings
                forbid (on GPUs, noticed at the next metric row or checkpoint).
        """
        self._vector_steps += 1
        action, step = self._quarantine.admit(action, step)
        with self._recording:
            self._count_step(*(step[name] for name in STEP_FIELDS))
            self.agent.observe(step)
            self.replay.add(self._obs, action, step, extras)
        self._segments.write_ahead(self._vector_steps_until_save())
        if self.env.spec.device.type == "cpu":
            self._synchronise()
        self._obs = step["observation"]
        return self._obs

    def _count(
        self, reward: Tensor, terminated: Tensor, truncated: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        self._episodes.observe(reward, terminated | truncated, valid)
        self._invalid.add_((~valid).sum())
        return {}

    def _counters(self) -> list[Tensor]:
        return [*self._episodes.state_dict().values(), self._invalid]

    def diagnose(self) -> None:
        """Measure what is due of the networks' health, and act on steps that were left out.

        Where none was, training is the same with and without.

        Raises:
            DivergedError: too many were.
        """
        if self.agent.device.type == "cpu":
            self._look_after()
        self._online.after_update(self.env_steps)

    def _look_after(self) -> None:
        for text in self._divergence.after_update(self.env_steps):
            self.display.notice(text)

    def should_evaluate(self) -> bool:
        """Once per ``eval.every`` environment steps, and at the end."""
        return self._is_over() or self._due(
            self.settings.eval.every or self.settings.env_steps // 10
        )

    def should_log(self) -> bool:
        """Once per ``log.every`` environment steps, and with each evaluation."""
        every = self.settings.log.every or self.settings.env_steps // 200
        return self._due(every) or self._evaluated_at == self.env_steps

    def should_save(self) -> bool:
        """Once per ``checkpoint.every`` environment steps."""
        return self._due(self._save_every())

    def _save_every(self) -> int:
        return max(self.settings.checkpoint.every or self.settings.env_steps // 10, 1)

    def _vector_steps_until_save(self) -> int:
        every = self._save_every()
        at_once = self.env.spec.num_envs * self._world.size
        return (every - self.env_steps % every) // at_once

    def _due(self, every: int) -> bool:
        return self.env_steps // max(every, 1) > self._steps_before // max(every, 1)

    def evaluate(self) -> None:
        """Deterministic episodes in environments of their own; disturbs no training state.

        The first process does it, the others do not wait here.

        Raises:
            SimulatorError: the simulator gave numbers that are none, and the settings end the run
                for it.
        """
        settings = self.settings
        if not self._world.first:
            self._evaluated_at = self.env_steps
            return
        if self._eval_env is None:
            self._eval_env = self._make_eval_env()
        seed = derive_seed(settings.seed, "evaluation", self.env_steps)
        self._evaluated_at = self.env_steps
        self._eval_env.load_progress(self.env.progress())
        try:
            self._evaluation = evaluate(
                self.agent.greedy, self._eval_env, episodes=settings.eval.episodes, seed=seed
            )
        except NotFiniteError as error:
            if settings.env.on_bad == "fail":
                raise
            self._evaluation = None
            self.display.notice(f"no evaluation at {self.env_steps:,} env steps: {error}")
        every = settings.eval.video_every
        if every and self.env_steps // every > self._filmed_at // every and not self._over:
            self._film(f"step_{self.env_steps}")
            self._filmed_at = self.env_steps

    def log(
        self, metrics: Mapping[str, Tensor], written: Mapping[str, float] | None = None
    ) -> None:
        """Write one metric row, refresh the display and, now and then, the curve.

        Args:
            metrics: the agent's, on the device.
            written: an earlier row of this step, which this one replaces: its numbers stay.
        """
        self._synchronise()
        self._look_after()
        timing = self._timing()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            self.replay.check()
        if not self._world.first:
            said = [str(warning.message) for warning in found]
            for text in (*said, *self._quarantined()[1]):
                print(f"supple: process {self._world.rank}: {text}", file=sys.stderr)
            return
        for warning in found:
            self.display.notice(str(warning.message))
        device_values = dict(metrics) | self.agent.diagnostics() | self.replay.metrics()
        row = _to_host(device_values)
        row |= self._episodes.report()
        row |= columns_of(self.env.report())
        row |= self._online.row()
        quarantined, news = self._quarantined()
        row |= quarantined
        for text in (*self._online.news(), *news, *self._still.news(self.replay)):
            self.display.notice(text)
        row |= self._divergence.row() | timing
        row |= written or {}
        if self._evaluation and self._evaluated_at == self.env_steps:
            row |= self._evaluation.metrics()
        self._sinks.write(self.env_steps, row, replace=written is not None)
        self.display.update({"step": self.env_steps, **row})
        if time.monotonic() > self._plot_due:
            self._plot()

    def _quarantined(self) -> tuple[dict[str, float], list[str]]:
        """The metric of bad rows, and what is said of them; the first of these is kept."""
        row, news = self._quarantine.report()
        bad = self._quarantine.bad_row()
        if news:  # what is said of bad rows comes last
            news[-1] = self._divergence.keep(bad, news[-1], self.env_steps)
        return row, news

    def save(self) -> Path:
        """Write a complete checkpoint; the previous one stays until this one is on disk.

        Of several processes the first writes last: its checkpoint says that all are complete.
        """
        self._synchronise()
        self._sinks.flush()
        first = self._world.first
        if first:
            self._meet()
        manifest = self._segments.save()
        spec = self.env.spec
        header = {
            "task": self.settings.task,
            "agent": self.settings.agent_name,
            "env_steps": self.env_steps,
            "spec": spec.to_json(),
            "path": execution_path(self.agent),
            "simulator": machine.installed(packages_of(self.settings.task)),
            "processes": self._world.size,
            "replay": manifest,
        }
        agent = self.agent.state_dict()
        if not first:
            agent = {name: agent[name] for name in self.agent.rank_state}
        state = {
            "agent": agent,
            "replay": self.replay.state_dict(),
            "env": self.env.state_dict() if spec.exact_resume else None,
            "progress": self.env.progress(),
            "obs": dict(self._obs.items()),
            "diagnostics": self._online.state_dict(),
            "run": {
                "vector_steps": self._vector_steps,
                "invalid": self._invalid,
                "quarantine": self._quarantine.state_dict(),
                "seconds": self.seconds,
                "episodes": self._episodes.state_dict(),
                "sinks": self._sinks.state_dict(),
                "divergence": self._divergence.state_dict(),
            },
        }
        path = checkpoint.save(self.folder, self.env_steps, header, state)
        self._saved_at = self.env_steps
        if not first:
            self._meet()
        agreed([0.0])  # what older checkpoints need is deleted when this one is whole
        newest_first = checkpoint.list_checkpoints(self.folder)[::-1]
        kept = newest_first[: self.settings.checkpoint.keep_replay]
        with contextlib.suppress(InputError):  # an older one is damaged: prune at a later save
            self._segments.prune([checkpoint.read_header(each)["replay"] for each in kept])
        return path

    def _meet(self) -> None:
        """Where the first process waits for the others' parts of a checkpoint."""
        same = "they compute otherwise: use machines of one kind, and resume the last checkpoint"
        require_same(self.agent.shared_state(), "networks", same)

    def finish(self) -> None:
        """After the loop: save; where training is complete also evaluate, sum up and film."""
        self._synchronise()
        if self._over and self._evaluated_at != self.env_steps:
            # Out of time, stopped or killed between the last step and the end of its evaluation.
            self.evaluate()
            self.log(self.agent.metrics, self._sinks.row_at(self.env_steps))
            self._saved_at = -1
        if self._saved_at != self.env_steps:
            self.save()
        if self._over and self._evaluation:
            result = {
                "env_steps": self.env_steps,
                "seconds": self.seconds,
                **dataclasses.asdict(self._evaluation),
            }
            replace_file(self.folder / RESULT, json.dumps(result, indent=1).encode())
        self._plot()
        if self._over and self._evaluation and self.settings.eval.video and not self.stopped:
            self._film("final")

    # --- the rest ---------------------------------------------------------------------------

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:  # the last first; a full disk may fail some of them
            if self._lock is not None:
                stack.callback(self._lock.close)
            if self._eval_env is not None:
                stack.callback(self._eval_env.close)
            stack.callback(self.env.close)
            if self._simulator:
                # To stop at once is not to wait for a simulator that hangs.
                stack.callback(self._simulator.shutdown, wait=kind is not KeyboardInterrupt)
            stack.callback(self._segments.close)
            stack.callback(self._sinks.close)
            stack.callback(self._signals.close)

    @property
    def seconds(self) -> float:
        """Wall-clock of this run so far, over all resumes [s]."""
        return self._seconds_before + time.monotonic() - self._started

    def summary(self) -> dict[str, str]:
        """The final table."""
        seconds = max(self.seconds, 1e-9)
        rows = {
            "task": self.settings.task,
            "agent": f"{self.settings.agent_name}, preset {self.settings.preset}",
            "environment steps": f"{self.env_steps:,}",
            "gradient steps": f"{self.agent.updates:,}",
            "wall-clock": f"{seconds / 60:.1f} min, {self.env_steps / seconds:,.0f} env steps/s",
        }
        if self._over and self._evaluation is None:
            rows["evaluation return"] = "none: its numbers were not finite, as said above"
        elif self._evaluation and self._evaluated_at == self.env_steps:
            rows["evaluation return"] = f"{self._evaluation}, deterministic"
        for name, path in (("curve", "progress.png"), ("video", "videos/final.mp4")):
            if (self.folder / path).exists():
                rows[name] = str(self.folder / path)
        return rows

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.stopped:
            # A terminal and the program around this one may both send the same Ctrl-C.
            if now - self._stop_asked < SAME_REQUEST_S:
                return
            raise KeyboardInterrupt
        self.stopped, self._stop_asked = True, now
        self.display.notice("stopping: finishing this step and saving (again to stop at once)")

    def _make_eval_env(self) -> Env:
        spec = self.env.spec
        count = evaluation_envs(spec.num_envs, spec.device, self.settings.eval.episodes)
        return make_env(self.settings, num_envs=count, purpose="evaluation")

    def _synchronise(self) -> None:
        self._quarantine.judge()
        self._invalid_here = int(self._invalid)
        valid = self._vector_steps * self.env.spec.num_envs - self._invalid_here
        if valid > self._valid:
            self._valid, self._moved_at = valid, self._vector_steps
        elif self._vector_steps - self._moved_at > MOST_BRIDGES:
            raise SimulatorError(
                f"{self.settings.task}: none of the last {MOST_BRIDGES} steps was valid in any"
                " environment; supple doctor --env checks it"
            )
        if self._world.size == 1:
            self._steps_floor = self.env_steps
            self._invalid_known = self._invalid_here

    def _timing(self) -> dict[str, float]:
        """Speed since the last row and where the time went, of each process; all meet here."""
        now, steps, updates = time.monotonic(), self.env_steps, self.agent.updates
        then, steps_then, updates_then = self._logged
        self._logged = (now, steps, updates)
        elapsed = max(now - then, 1e-9)
        return {
            "time/seconds": self.seconds,
            "time/env_steps_per_s": (steps - steps_then) / elapsed,
            "time/updates_per_s": (updates - updates_then) / elapsed,
            "time/memory_gib": machine.memory_gib(self.env.spec.device),
            **self._shares(elapsed),
        }

    def _shares(self, elapsed: float) -> dict[str, float]:
        """Parts of the time of every process; the first has the names that a single one has."""
        clocks = {"simulator_share": self._simulating, "learning_share": self.learning}
        table = [[0.0] * len(clocks) for _ in range(self._world.size)]
        table[self._world.rank] = [clock.take() / elapsed for clock in clocks.values()]
        rows = iter(agreed([share for row in table for share in row]))
        names = ["time", *(f"time/rank{rank}" for rank in range(1, self._world.size))]
        return {f"{name}/{share}": next(rows) for name in names for share in clocks}

    def _plot(self) -> None:
        if not self._world.first:
            return
        began = time.monotonic()
        self._sinks.flush()
        plots.progress_png(self.folder, self.folder / "progress.png")
        now = time.monotonic()
        self._plot_due = now + max(PLOT_SECONDS, (now - began) / PLOT_SHARE)

    def _film(self, name: str) -> None:
        video = self.folder / "videos" / f"{name}.mp4"
        try:
            film(
                self.settings,
                self.agent.greedy,
                video,
                seed=self.settings.seed,
                max_seconds=VIDEO_SECONDS,
                progress=self.env.progress(),
            )
            self._sinks.show_video(self.env_steps, video)
        except Exception as error:  # drawing must not cost the run its end
            self.display.notice(f"no video: {error}")

    def start_again(self) -> None:
        """Forget the rows of a run that ended before its first checkpoint."""
        self._sinks.truncate_after(-1)

    def _reset(self, seed: int) -> None:
        found = self._fields("reset", self.env.reset(seed))
        self._obs = self._quarantine.first(found.get("observation", {}))
        self.env.spread_ends(derive_seed(seed, "ends"))

    def _restore(self, resumed: Checkpoint) -> None:
        exact = self.env.spec.exact_resume
        with following_format(resumed.path):
            state, run = resumed.state, resumed.state["run"]
            self.agent.load_state_dict(state["agent"])
            self.replay.load_state_dict(state["replay"])
            has_rows = self._segments.load(resumed.header["replay"])
            self._online.load_state_dict(state.get("diagnostics", {}))
            self._vector_steps = self._moved_at = operator.index(run["vector_steps"])
            self._quarantine.load_state_dict(run["quarantine"])
            self._quarantine.start_from(self._vector_steps)
            self._invalid.copy_(run["invalid"])
            self._invalid_here = int(self._invalid)
            self._seconds_before = float(run["seconds"])
            self._episodes.load_state_dict(run["episodes"])
            if "divergence" in run:
                self._divergence.load_state_dict(run["divergence"])
            self._steps_floor = resumed.header["env_steps"]
            changed = _difference(resumed.header["path"], execution_path(self.agent))
            changed += other_simulator(resumed.header)
            if exact:
                self.env.load_state_dict(state["env"])
                device = self.env.spec.device
                self._obs = {name: value.to(device) for name, value in state["obs"].items()}
            elif resumed.progress:
                self.env.load_progress(resumed.progress)
        invalid, otherwise = agreed([self._invalid_here, bool(changed)])
        self._invalid_known = round(invalid)
        if otherwise and not changed:  # the first alone speaks
            changed.append("another process computes otherwise")
        self._sinks.truncate_after(self.env_steps)
        self._saved_at = self._steps_before = self._filmed_at = self.env_steps
        if not has_rows:
            self.agent.forget_ring()
            changed.append(
                "its replay rows were not kept (--checkpoint.keep-replay 0), the ring starts empty"
                " and learning waits as at the start of a run"
            )
        if not exact:
            self.replay.close_open_rows()
            self.agent.forget_episodes()
            self._episodes.forget_episodes()
            words = ("env", self.env_steps, *self._world.seed_words)
            self._reset(derive_seed(self.settings.seed, *words))
            changed.append("this simulator cannot restore its state, episodes start afresh")
        verdict = f"not bit-exact: {'; '.join(changed)}" if changed else "bit-exact"
        self.display.notice(f"resumed {resumed.path} at {self.env_steps:,} env steps, {verdict}")


def execution_path(agent: Agent) -> dict[str, Any]:
    """What decides the bits of floating-point results, besides the code."""
    return {
        "device": agent.device.type,
        "model": machine.model_name(agent.device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "mode": str(agent.compute),
    }


def other_simulator(header: Mapping[str, Any]) -> list[str]:
    """What decides the simulator's behaviour and is here in another version than at a checkpoint.

    Packages that are not here say nothing: without them nothing is simulated.
    """
    recorded = header.get("simulator", {})
    return _difference(recorded, machine.installed(recorded))


def _to_host(values: Mapping[str, Tensor]) -> dict[str, float]:
    """All numbers in one transfer."""
    if not values:
        return {}
    stacked = torch.stack([value.double().reshape(()) for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
