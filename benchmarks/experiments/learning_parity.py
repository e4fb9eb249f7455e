"""Experiment 11: the published FlashSAC and ours learn alike, by several seeds.

In lockstep (experiment 10) both are fed the same random numbers. Here each draws its own, keeps its
own replay and steps its own environment: networks and batches are made small, so that an hour
holds several seeds; all else is as the published scripts have it, in float32 on one thread.

Said before any run: they learn *alike* if the 95 % bootstrap interval of the difference of mean
returns, ours less theirs, holds 0 both over the run and at its end.

    git clone https://github.com/Holiday-Robot/FlashSAC official
    python -m benchmarks.experiments.learning_parity --reference official
    python -m benchmarks.experiments.learning_parity --report

A quarter of an hour of one core a published seed, a third of that one of ours. A finished run's
evaluations become rows of ``benchmarks/results/learning_parity.csv``; the same command runs what is
missing there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.experiments import command
from supple import compare, scores
from supple.bench.reference import load_official, official_agent
from supple.bench.table import Shape, append, read

ROWS = Path(__file__).parents[1] / "results" / "learning_parity.csv"
COMMAND = "python -m benchmarks.experiments.learning_parity --reference PATH"
TASK = "gym/HalfCheetah-v4"
OURS, THEIRS = "supple", "published"
SEEDS = 3
"""Of fewer nothing is said."""
STEPS, EVERY, EPISODES = 40_000, 5_000, 10
BATCH, ACTOR, CRITIC, MIN_REPLAY = 128, 64, 64, 5_000
FLAGS = (
    *("--preset", "cpu", "--compute.precision", "float32"),
    *("--env-steps", str(STEPS), "--agent.lr-decay", str(10**6 / STEPS)),
    *("--agent.batch-size", str(BATCH), "--agent.min-replay", str(MIN_REPLAY)),
    *("--agent.actor-hidden", str(ACTOR), "--agent.critic-hidden", str(CRITIC)),
    *("--eval.every", str(EVERY), "--eval.episodes", str(EPISODES), "--eval.no-video"),
)


def published_run(official: Any, seed: int) -> Iterator[dict[str, Any]]:
    """Train with the published agent, as its ``train.py`` does; an evaluation's row each."""
    began = time.monotonic()
    name = TASK.partition("/")[2]
    same_step = gymnasium.vector.AutoresetMode.SAME_STEP
    env = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make(name)], autoreset_mode=same_step)
    torch.manual_seed(seed)
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    assert env.action_space.shape is not None  # a box
    agent = official_agent(
        official,
        Shape(obs.shape[1], env.action_space.shape[1], BATCH),
        **{"seed": seed, "buffer_max_length": STEPS, "buffer_min_length": MIN_REPLAY},
        **{"actor_hidden_dim": ACTOR, "critic_hidden_dim": CRITIC},
    )
    for step in range(1, STEPS + 1):
        if agent.can_start_training():
            action = agent.sample_actions(step, {"next_observation": obs}, training=True)
        else:
            action = env.action_space.sample()
        after, reward, terminated, truncated, info = env.step(action)
        last = info["final_obs"][0][None] if terminated[0] or truncated[0] else after
        agent.process_transition(
            {
                "observation": obs,
                "action": action,
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
                "next_observation": last,
            }
        )
        obs = after
        if agent.can_start_training():
            agent.update()
        if step % EVERY == 0:
            value = evaluate(agent, name, seed)
            seconds = round(time.monotonic() - began, 1)
            yield {"step": step, "return": round(value, 1), "seconds": seconds}


def evaluate(agent: Any, name: str, seed: int) -> float:
    """Mean return of deterministic episodes."""
    env = gymnasium.make(name)
    total = 0.0
    for episode in range(EPISODES):
        obs, _ = env.reset(seed=seed + 1000 + episode)
        over = False
        while not over:
            action = agent.sample_actions(0, {"next_observation": obs[None]}, training=False)
            obs, reward, terminated, truncated, _ = env.step(action[0])
            total += float(reward)
            over = terminated or truncated
    return total / EPISODES


def summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A line per code, and what was said before of their difference."""
    curves = command.curves(rows, lambda row: row["variant"])
    lines = []
    for variant in (name for name in (OURS, THEIRS) if name in curves):
        line = {"code": variant, "seeds": str(len(curves[variant]))}
        for name, of in (("over the run", np.mean), ("at its end", lambda run: run[-1])):
            own = np.array([of(run) for run in curves[variant].values()])
            line |= {name: f"{own.mean():.0f}", f"deviation, {name}": f"{own.std(ddof=1):.0f}"}
            if variant == OURS and THEIRS in curves:
                theirs = np.array([of(run) for run in curves[THEIRS].values()])
                low, high = scores.interval95(scores.difference, [own], [theirs])
                said = "alike" if low <= 0 <= high else "apart"
                if min(len(own), len(theirs)) < SEEDS:
                    said = "too few seeds"
                line[f"difference, {name}"] = f"{low:+.0f} to {high:+.0f}: {said}"
            else:
                line[f"difference, {name}"] = "-"
        lines.append(line)
    return lines


def main() -> int:
    """Run what is missing, then report."""
    status = 0
    options = command.with_reference(
        command.parser(__doc__, runs="learning_parity", seeds=range(8))
    )
    if not options.report:
        official = load_official(options.reference)
        torch.set_num_threads(1)
        for seed in dict.fromkeys(options.seeds):
            own = {"task": TASK, "variant": THEIRS, "seed": seed}
            known = {(row["variant"], row["seed"]) for row in read(ROWS)}
            if (THEIRS, str(seed)) not in known:
                with torch.compiler.set_stance("force_eager"):
                    append([own | row for row in published_run(official, seed)], ROWS, COMMAND)
            planned = compare.plan(TASK, [seed], [f"{OURS}:"], FLAGS, options.out)
            status = compare.run_queue(planned, 1)
            command.record(planned, ROWS, COMMAND)
            if status:
                break
    command.say("the published code and ours, each on its own", summary(read(ROWS)))
    return status


if __name__ == "__main__":
    command.start(main)
