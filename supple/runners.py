"""Our agents inside others' loops: FlashSAC as an algorithm of rsl_rl's own runner.

Isaac Lab's and mjlab's train scripts build rsl_rl's ``OnPolicyRunner``, which finds its algorithm
by name. Naming ``supple.runners:FlashSAC`` there is all it takes, for example
``train Mjlab-Cartpole-Balance --agent.algorithm.class-name supple.runners:FlashSAC``. Their loop,
logger, checkpoints and videos stay theirs. ``num_steps_per_env`` becomes ``--agent.update-every``;
``gamma`` is theirs; every other flag of ``supple train`` that shapes the agent or its ring is read
from the algorithm's entry ``flags``, or the variable ``SUPPLE_FLAGS``, ``--preset`` too.

Checkpoints hold the agent, not its ring: one is written every few dozen iterations, and a ring has
gigabytes. Training that is resumed fills an empty one first. Several GPUs are refused.

The interface has no place for the observation before a reset. Where ``extras["final_obs"]`` comes,
it is taken; elsewhere a time-out bootstraps from the state before the last step, as rsl_rl's PPO
does.
"""

from __future__ import annotations

import copy
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from supple.agents.base import Agent
from supple.configs.base import flat
from supple.envs.base import EnvSpec, step_result
from supple.envs.torch_sim import unbounded
from supple.errors import InputError
from supple.quarantine import Quarantine
from supple.replay import Replay

WHOLE = ("actor", "critic", "optimizer")
"""What of rsl_rl's ``load_cfg`` makes up an agent."""
FOLLOWED = (
    *("agent.", "replay.", "compute.", "care."),
    *("agent_name", "preset", "env.action_bound", "env.reward_limit", "env.on_bad"),
)
"""Settings, or how their names begin, that shape the agent and its ring."""
OUR_LOOPS = ("replay.spill", "replay.prefill")
"""Of these, what only ``supple train`` can follow."""


class FlashSAC:
    """What rsl_rl's ``OnPolicyRunner`` asks of an algorithm, around our agent and ring."""

    rnd = None
    intrinsic_rewards = None

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        quarantine: Quarantine,
        groups: Mapping[str, list[str]],
        action_bound: float,
    ) -> None:
        self._agent, self._replay, self._groups = agent, replay, groups
        self._quarantine = quarantine
        self._bound = action_bound
        self._obs: dict[str, Tensor] = {}
        self._action = torch.empty(0)
        self.learning_rate = 0.0

    @classmethod
    def construct_algorithm(
        cls, obs: TensorDict, env: Any, cfg: dict[str, Any], device: str
    ) -> FlashSAC:
        """Build agent and ring for a ``VecEnv``, from the runner's own configuration.

        Raises:
            InputError: a flag is unknown or does not fit, or several GPUs are asked for.
        """
        from supple.build import build_agent
        from supple.cli import parsed_settings

        own = cfg["algorithm"]
        if cfg.get("multi_gpu"):
            raise InputError("supple.runners:FlashSAC learns on one GPU: start one process")
        groups = _resolve_groups(obs, cfg.get("obs_groups") or {})
        flags = shlex.split(own.get("flags") or os.environ.get("SUPPLE_FLAGS", ""))
        preset = "gpu" if torch.device(device).type == "cuda" else "laptop"
        steps = int(cfg["num_steps_per_env"])
        length = str(max(1, int(cfg["max_iterations"])) * steps * env.num_envs)  # 0: only to play
        task, last = ["rsl_rl/task", "--preset"], ["--env-steps", length]
        settings = parsed_settings([*task, preset, *flags, *last])
        if settings.agent_name != "flashsac":
            raise InputError(
                f"supple.runners:FlashSAC learns with flashsac, got --agent {settings.agent_name}:"
                " leave the flag out; rsl_rl's own PPO is one already"
            )
        before = flat(parsed_settings([*task, settings.preset, *last]))
        for name, value in flat(settings).items():
            followed = name.startswith(FOLLOWED) and name not in OUR_LOOPS
            if not followed and value != before[name]:
                raise InputError(
                    f"supple.runners:FlashSAC cannot follow --{name.replace('_', '-')}, the"
                    " runner's loop has no place for it: leave the flag out, or train with supple"
                    " train"
                )
        settings.device = device
        settings.seed = int(cfg.get("seed", 0))
        agent_settings: Any = settings.agent
        agent_settings.update_every = steps
        agent_settings.gamma = float(own.get("gamma", agent_settings.gamma))
        agent_settings.allow_missing_final_obs = True
        own["rnd_cfg"] = None  # read by the runner's logger
        spec = EnvSpec(
            task_id="rsl_rl/task",
            num_envs=env.num_envs,
            observation={name: _joined(obs, parts).shape[1] for name, parts in groups.items()},
            action=unbounded(env.num_actions, settings.env.action_bound),
            device=torch.device(device),
            critic_contains_policy=set(groups["policy"]) <= set(groups.get("critic", [])),
            # The one before the step stands in where none comes: ``process_env_step``.
            has_final_obs=True,
        )
        agent = build_agent(settings, spec)
        agent.prepare()
        replay = Replay(
            spec, agent.ring(settings.replay), device=spec.device, compute=agent.compute
        )
        quarantine = Quarantine.of(spec, settings, agent.compute)
        return cls(agent, replay, quarantine, groups, settings.env.action_bound)

    def act(self, obs: TensorDict) -> Tensor:
        """Actions with exploration, in the simulator's units."""
        # The runner collects in inference mode; its tensors could never meet autograd.
        with torch.inference_mode(False), torch.no_grad():
            self._obs = self._quarantine.first(self._named(obs))
            self._action, _ = self._agent.act(self._obs, explore=True)
            return self._action * self._bound

    def process_env_step(
        self, obs: TensorDict, rewards: Tensor, dones: Tensor, extras: dict[str, Any]
    ) -> None:
        """Store one vector step, but for what of it is no number."""
        with torch.inference_mode(False), torch.no_grad():
            ended = dones.clone().bool()
            time_outs = extras.get("time_outs")
            truncated = torch.zeros_like(ended)
            if time_outs is not None:
                truncated = ended & time_outs.clone().bool().to(ended.device)
            final = extras.pop("final_obs", None)
            step = step_result(
                observation=self._named(obs),
                reward=rewards.clone().float().reshape(-1),
                terminated=ended & ~truncated,
                truncated=truncated,
                final_observation=self._obs if final is None else self._named(final),
            ).to_dict()
            action, step = self._quarantine.admit(self._action, step)
            self._agent.observe(step)
            self._replay.add(self._obs, action, step)

    def compute_returns(self, obs: TensorDict) -> None:
        """Nothing: values are learned from the ring."""

    def update(self) -> dict[str, float]:
        """Learn; the numbers the runner logs.

        Raises:
            SimulatorError: bad rows that the flags forbid, or so many that nothing can be learned.
        """
        self._quarantine.judge()
        metrics = {name: float(value) for name, value in self._agent.update(self._replay).items()}
        quarantined, news = self._quarantine.report()
        for text in news:
            print(f"supple: {text}", file=sys.stderr)
        metrics |= quarantined
        if skipped := self._agent.skips.skipped():
            metrics["agent/skipped_updates"] = float(skipped)
        self.learning_rate = float(self._agent.diagnostics()["actor/learning_rate"])
        return metrics

    def train_mode(self) -> None:
        """Nothing: the agent knows when it explores."""

    def eval_mode(self) -> None:
        """Nothing, likewise."""

    def get_policy(self) -> RunnerPolicy:
        """The deterministic policy as it is now."""
        return RunnerPolicy(self._agent.policy(), self._groups["policy"], self._bound)

    def save(self) -> dict[str, Any]:
        """What the runner puts into its checkpoint."""
        return {"supple": self._agent.state_dict()}

    def load(self, loaded: Mapping[str, Any], load_cfg: Any = None, strict: bool = True) -> bool:
        """Continue from ``save``'s value, in any number of environments; the ring starts empty.

        Args:
            loaded: the runner's checkpoint.
            load_cfg: what rsl_rl asks for, None for everything. Unless actor, critic and optimiser
                are among it, networks and statistics are taken over, and nothing else.
            strict: not read, nothing may be missing.

        Returns:
            Whether the runner counts on from there.
        """
        agent, state = self._agent, loaded["supple"]
        wanted = dict.fromkeys((*WHOLE, "iteration"), True) if load_cfg is None else load_cfg
        if all(wanted.get(name) for name in WHOLE):
            # The environments were never those of the checkpoint: what there is one of for each
            # stays as it is, and is forgotten.
            own = agent.state_dict()
            scaler = state["reward_scaler"] | {"sum": own["reward_scaler"]["sum"]}
            agent.load_state_dict(state | {"reward_scaler": scaler, "noise": own["noise"]})
        else:
            agent.start_from(state)
        agent.forget_ring()
        agent.forget_episodes()
        return bool(wanted.get("iteration"))

    def _named(self, obs: Mapping[str, Any]) -> dict[str, Tensor]:
        return {name: _joined(obs, parts) for name, parts in self._groups.items()}


class RunnerPolicy(nn.Module):
    """A policy as rsl_rl calls, scripts and exports it: observation groups to actions.

    Args:
        policy: (B, D) to (B, A) in [-1, 1].
        groups: of the observation, joined in this order.
        bound: what the policy's 1 means to the simulator.
    """

    is_recurrent = False
    input_names = ("obs",)
    output_names = ("actions",)

    def __init__(self, policy: nn.Module, groups: list[str], bound: float) -> None:
        super().__init__()
        self.policy, self._groups, self._bound = policy, groups, bound
        self.output_std = torch.zeros(1)  # logged by the runner; exploration is held noise

    def forward(self, obs: Any) -> Tensor:
        """Actions for observation groups, or for the policy's own (B, D)."""
        rows = obs if isinstance(obs, Tensor) else _joined(obs, self._groups)
        actions: Tensor = self.policy(rows) * self._bound
        return actions

    def reset(self, dones: Tensor | None = None) -> None:
        """Nothing: it remembers nothing."""

    def as_jit(self) -> nn.Module:
        """A traced copy on the CPU, as ``export_policy_to_jit`` scripts and saves it."""
        own = copy.deepcopy(self).cpu()
        traced: nn.Module = torch.jit.trace(own, own.get_dummy_inputs())
        return traced

    def as_onnx(self, verbose: bool = False) -> RunnerPolicy:
        """Itself: ``torch.onnx.export`` calls it with ``get_dummy_inputs()``."""
        return self

    def get_dummy_inputs(self) -> tuple[Tensor]:
        """One row of zeros."""
        first = next(part for part in self.policy.parameters() if part.ndim == 2)
        return (torch.zeros(1, first.shape[1]),)


def _resolve_groups(obs: TensorDict, asked: Mapping[str, Any]) -> dict[str, list[str]]:
    """Our two groups from the runner's ``obs_groups``, or from equally named ones.

    Raises:
        InputError: the actor's groups are not in the observation.
    """
    actor = list(asked.get("actor") or [name for name in ("policy", "actor") if name in obs])
    critic = list(asked.get("critic") or [name for name in ("critic",) if name in obs])
    missing = [name for name in (*actor, *critic) if name not in obs]
    if missing or not actor:
        raise InputError(
            f"obs_groups names {', '.join(missing) or 'nothing'} for the actor; the environment"
            f" observes {', '.join(map(str, obs.keys()))}"
        )
    groups = {"policy": actor}
    return groups if not critic or critic == actor else {**groups, "critic": critic}


def _joined(obs: Mapping[str, Any], parts: list[str]) -> Tensor:
    """(N, D) float32, a copy that is no inference tensor."""
    return torch.cat([obs[part].clone().float() for part in parts], dim=-1)
