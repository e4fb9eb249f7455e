"""FlashSAC's presets."""

from __future__ import annotations

from collections.abc import Callable

from supple.agents.flashsac_settings import FlashSACSettings
from supple.configs.base import Settings


def laptop(settings: Settings) -> None:
    """Minutes on a CPU: small networks, small batches, three-step returns.

    One environment: at the same number of updates, more environments learned slower here. Eight
    steps, then eight gradient steps: each first one after the other kind finds the processor's
    caches cold. One thread: its products are too small to share, 128-158 updates/s against 95-122
    with two. float32: for its small networks bfloat16 saves a tenth of the time, and returns are
    not clearly the same (benchmarks/results/precision_curves.csv).
    """
    settings.env_steps = 36_000
    settings.threads = 1
    settings.compute.precision = "float32"
    settings.env.num_envs = 1
    settings.replay.capacity = 36_000
    agent = _own(settings)
    agent.batch_size = 128
    agent.utd = 1.0
    agent.update_every = 8
    agent.min_replay = 2_000
    agent.n_step = 3
    agent.tau = 0.02
    agent.actor_hidden, agent.actor_blocks = 64, 1
    agent.critic_hidden, agent.critic_blocks = 64, 1
    agent.lr_init = agent.lr_peak = 1e-3
    agent.lr_end = 5e-4
    flow = agent.flow
    flow.target_steps = flow.read_steps = 4
    flow.width = agent.critic_hidden
    if agent.critic == "flow_official":
        flow.width, flow.depth = 128, 2
        flow.target_samples = flow.train_samples = flow.read_samples = 4


def cpu(settings: Settings) -> None:
    """The paper's settings for CPU simulators, with bfloat16 products where they are fast.

    The published code's are float32, as ``--compute.precision float32`` makes them.
    """
    settings.env_steps = 1_000_000
    settings.env.num_envs = 1
    settings.replay.capacity = 1_000_000
    settings.eval.episodes = 50
    agent = _own(settings)
    agent.batch_size = 512
    agent.utd = 1.0
    agent.min_replay = 10_000


def gpu(settings: Settings) -> None:
    """The paper's settings for GPU simulators, with bfloat16 products, not float16 ones.

    These are the published code's, with the scaled loss they need. float32 on GPUs without
    bfloat16.
    """
    settings.env_steps = 50_000_896
    settings.env.num_envs = 1024
    settings.replay.capacity = 10_000_000
    # Time limits of a hundred steps and more: five in a hundred rows would only cost memory.
    settings.replay.final_fraction = 0.01
    settings.eval.episodes = 1024
    agent = _own(settings)
    agent.batch_size = 2048
    agent.utd = 2 / 1024
    agent.min_replay = 100_000


def quality(settings: Settings) -> None:
    """The ``gpu`` preset with what the published ablation says helps at 12-25 % more time each.

    Width 512/256 (+11 %), four blocks (+9 %), four updates per 1024 transitions (+8 %), batch 4096
    (+6 %), target_std 0.2 (+2 %), each alone relative to the default on the ablation's four tasks.
    """
    gpu(settings)
    agent = _own(settings)
    agent.actor_hidden, agent.critic_hidden = 256, 512
    agent.actor_blocks = agent.critic_blocks = 4
    agent.utd = 4 / 1024
    agent.batch_size = 4096
    agent.target_std = 0.2


PRESETS: dict[str, Callable[[Settings], None]] = {
    "laptop": laptop,
    "cpu": cpu,
    "gpu": gpu,
    "quality": quality,
}


def _own(settings: Settings) -> FlashSACSettings:
    assert isinstance(settings.agent, FlashSACSettings)
    return settings.agent
