"""Runs small enough for a test: tiny networks, seconds."""

import json
import types
from typing import Any

import torch

from supple import checkpoint, launch
from supple.configs import default_settings
from supple.envs.toy import Lqr
from supple.envs.wrappers import Wrapper
from supple.metrics import read_csv
from supple.train import train

COMMON_FLAGS = [
    *("--preset", "laptop", "--device", "cpu", "--eval.episodes", "1", "--log.every", "1"),
    *("--env.num-envs", "2", "--eval.no-video"),
]
AGENT_FLAGS = {
    "flashsac": [
        *("--agent.min-replay", "40", "--agent.batch-size", "16", "--replay.capacity", "1000"),
        *("--agent.utd", "0.5", "--agent.n-step", "1", "--agent.num-atoms", "11"),
        *("--agent.actor-hidden", "8", "--agent.critic-hidden", "8", "--agent.actor-blocks", "1"),
        *("--agent.critic-blocks", "1", "--agent.update-every", "1"),
    ],
    "ppo": [
        *("--agent", "ppo", "--agent.rollout-steps", "2", "--agent.minibatches", "2"),
        *("--agent.epochs", "1", "--agent.actor-hidden", "8", "--agent.critic-hidden", "8"),
    ],
}


class Spoilt(Wrapper):
    """The regulator, of whose steps something is spoilt."""

    def __init__(self, num_envs, device):
        env = Lqr(num_envs, device)
        super().__init__(env, env.spec)
        self.steps = 0

    def step(self, action):
        step = self.env.step(action)
        self.steps += 1
        self.spoil(step)
        return step

    def spoil(self, step):
        """Change the step in place; ``steps`` counts it already."""
        raise NotImplementedError


def flags(agent="flashsac"):
    """The same smallness as command-line flags."""
    return [*AGENT_FLAGS[agent], *COMMON_FLAGS]


def reached(agent, env_steps, num_envs=2):
    """Where a run of small settings stands once it has so many environment steps."""
    at_once = num_envs * (2 if agent == "ppo" else 1)
    return -(-env_steps // at_once) * at_once


def small_settings(task, folder, *, env_steps, agent="flashsac", num_envs=2, **changes):
    settings = default_settings(task, agent=agent, preset="laptop")
    settings.device = "cpu"
    settings.env_steps = env_steps
    settings.run_dir = str(folder)
    settings.env.num_envs = num_envs
    settings.eval.episodes = 1
    settings.eval.every = env_steps // 2
    settings.eval.video = False
    settings.log.every = num_envs
    settings.checkpoint.every = env_steps
    small: Any = settings.agent
    if agent == "ppo":
        small.rollout_steps = small.minibatches = 2
        small.epochs = 1
        small.actor_hidden = small.critic_hidden = (8,)
    else:
        settings.replay.capacity = max(env_steps // 2, 64)  # wraps within the run
        small.min_replay, small.batch_size, small.utd = 40, 16, 0.5
        small.actor_hidden = small.critic_hidden = 8
        small.actor_blocks = small.critic_blocks = 1
        small.update_every, small.num_atoms = 1, 11
    for name, value in changes.items():
        setattr(small, name, value)
    return settings


def finish(run):
    with run.display, run:
        train(run)
    return run


def stop_at_once(run):
    """Instead of ``train``: Ctrl-C before the first step."""
    run.stopped = True
    train(run)


def run_whole(settings):
    return finish(launch.new_run(settings))


def run_until(settings, env_steps):
    """Stop as Ctrl-C would, at a given step."""
    return finish_at(launch.new_run(settings), env_steps)


def finish_at(run, env_steps):
    record = run.record

    def record_and_stop(*step):
        obs = record(*step)
        run.stopped = run.env_steps >= env_steps
        return obs

    run.record = record_and_stop
    return finish(run)


def deterministic_rows(folder):
    columns = read_csv(folder / "metrics.csv")
    return {
        name: values for name, values in columns.items() if not name.startswith(("time/", "diag/"))
    }


def newest_state(folder):
    found, skipped = checkpoint.newest_intact(folder)
    assert not skipped
    state = dict(found.state)
    state["run"] = {k: v for k, v in state["run"].items() if k not in ("seconds", "sinks")}
    return found, state


def assert_same(left, right, where="state"):
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif hasattr(left, "tobytes"):
        assert left.tobytes() == right.tobytes(), where
    else:
        assert left == right, where


def assert_resumes_with_the_same_bits(settings_of, folder, *, at):
    """A run stopped ``at`` so many steps and resumed ends as one that never was; its state."""
    whole, parts = folder / "whole", folder / "parts"
    run_whole(settings_of(whole))
    run_until(settings_of(parts), at)
    finish(launch.resumed_run(str(parts)))  # as a program names it
    assert deterministic_rows(whole) == deterministic_rows(parts)
    (_, state), (_, other) = newest_state(whole), newest_state(parts)
    assert_same(state, other)
    return state


def one_line(capsys):
    """What the program said as it refused or failed: one line and no more."""
    said = capsys.readouterr().err
    assert said.startswith("supple: error: "), said
    assert said.count("\n") == len(said.splitlines()) == 1, said
    return said.rstrip("\n")


def result(folder):
    return json.loads((folder / "result.json").read_text())


class FakeWandb(types.ModuleType):
    """Keeps what W&B would have been told."""

    def __init__(self):
        super().__init__("wandb")
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))
        return self

    def Video(self, path):  # noqa: N802 - wandb's own name
        return f"film of {path}"

    def define_metric(self, name, step_metric):
        self.calls.append(("define", name, step_metric))

    def log(self, row):
        self.calls.append(("log", row))

    def finish(self):
        self.calls.append(("finish",))
