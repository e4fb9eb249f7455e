"""Environment, agent and ring from settings."""

from __future__ import annotations

from collections.abc import Callable

import torch

from supple import machine
from supple.agents import Agent, agent_class
from supple.configs.base import Settings
from supple.diagnostics.subject import subject_of
from supple.distributed import world
from supple.envs import make
from supple.envs.base import Env, EnvSpec
from supple.errors import InputError
from supple.replay import Replay, SpilledReplay
from supple.replay.plan import plan_ring
from supple.rng import derive_seed


def build_agent(settings: Settings, spec: EnvSpec) -> Agent:
    """The agent the settings describe, for an environment of this spec."""
    device = machine.resolve_device(settings.device)
    envs = spec.num_envs * world().size
    steps = settings.agent.gradient_steps(settings.env_steps, envs)
    compute = settings.compute.resolve(device, gradient_steps=steps)
    if compute.cuda_graphs and world().size > 1:
        raise InputError(
            "--compute.cuda-graphs is for one process, exchanges between several were never proved"
            " in graphs: drop the flag"
        )
    if compute.precision == "tf32":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    agent: Agent = agent_class(settings.agent_name)(
        spec,
        settings.agent,
        total_env_steps=settings.env_steps,
        seed=settings.seed,
        device=device,
        replay_device="cpu" if settings.replay.spill else device,
        compute=compute,
    )
    return agent


def build(
    settings: Settings, say: Callable[[str], None] = lambda _: None
) -> tuple[Env, Agent, Replay]:
    """The environment, agent and ring that the settings describe; checks before it allocates.

    Args:
        settings: of the run.
        say: told what the ring will take, before it does.

    Raises:
        InputError: the task, agent and memory do not fit together.
    """
    device = machine.resolve_device(settings.device)
    machine.use(device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    seed = derive_seed(settings.seed, "train", *world().seed_words)
    env = make(settings.task, settings.env, device=device, seed=seed)
    try:
        agent = build_agent(settings, env.spec)
        agent.prepare()
        if settings.diagnostics.enabled:
            subject_of(agent, seed=settings.seed)  # refuses networks it cannot look into
        if settings.overlap and agent.horizon > 1:
            raise InputError(
                f"--overlap learns at every step, {settings.agent_name} here every"
                f" {agent.horizon}: drop the flag (FlashSAC: or set --agent.update-every 1)"
            )
        if settings.replay.spill and device.type != "cuda":
            raise InputError(f"--replay.spill needs a CUDA device, got {device}: drop the flag")
        ring = agent.ring(settings.replay)
        plan = plan_ring(env.spec, ring, agent.extra_spec)
        agent.check_room(plan)
        say(str(plan))
        replay = (SpilledReplay if ring.spill else Replay)(
            env.spec,
            ring,
            extra_spec=agent.extra_spec,
            device=device,
            compute=agent.compute,
        )
    except BaseException:
        env.close()
        raise
    return env, agent, replay
