"""PPO: proximal policy optimisation on the replay ring, for continuous and discrete actions.

Shapes: ``T`` rollout steps, ``N`` environments, ``M`` rows of a minibatch, ``L`` steps of a
sequence (1 without a memory), ``S`` sequences; sequences are time-major, M = L S. ``A`` actions,
``P`` numbers of a distribution, ``H`` memory, ``K`` numbers of a packed row.

Source: arXiv:1707.06347; generalised advantage estimation, arXiv:1506.02438; the details, adaptive
learning rate among them, are those of leggedrobotics/rsl_rl@5.5.1, whose update this code
reproduces (tests/parity/test_rsl_rl.py). Deviations, each with a switch back: time-outs bootstrap
from the final observation, minibatches are drawn anew for each pass. A standard deviation is the
exponential of a parameter, which rsl_rl calls "log".
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supple.agents.adam import Adam
from supple.agents.base import Agent, check_facts, check_sizes, concat, critic_groups
from supple.agents.care import Skips
from supple.agents.distributions import (
    Categorical,
    Distribution,
    Gaussian,
    SquashedGaussian,
    bounded,
)
from supple.agents.mlp import Network
from supple.agents.ppo_settings import PPOSettings
from supple.agents.reward_scaling import RewardScaler, RewardScalerSettings
from supple.agents.symmetry import Mirroring, SignedPermutation, half_of, mirroring
from supple.distributed import average, in_step, mean_over_ranks, sum_over_ranks, world
from supple.envs.base import STEP_FIELDS, Box, Discrete, EnvSpec, Groups, Step
from supple.errors import InputError
from supple.machine import keep_freed_memory
from supple.region import Compute, Region, T
from supple.replay import Replay, ReplayPlan, ReplaySettings
from supple.rng import Generators

SLOWEST, FASTEST = 1e-5, 1e-2
"""How far the adaptive learning rate falls and rises; beyond it only moves back, where rsl_rl's
jumps to the bound, whichever way that is."""
STEP = "gradient step"
"""The one kind of them."""
RATE_FACTOR = 1.5
"""What the adaptive rate is multiplied or divided by at each gradient step."""
ACTOR_GAIN, CRITIC_GAIN = 0.01, 1.0
"""Scale of the last layers' start: actions begin near 0, whatever the observation."""
MOST_LOG_RATIO = 20.0
"""Of new to old probability [nats]: its exponential is still far from overflowing."""
LONGEST_COMPILED = 32
"""Steps of a sequence up to which learning through a memory is compiled. Every step becomes a piece
of the graph: 128 of them compile for minutes."""
UNSHOWN = ("activation", "normalise_obs", "distribution", "privileged")
"""Settings without which trained weights mean something else; no shape shows them."""
ARCHITECTURE = ("actor_hidden", "critic_hidden", "memory", "std", "normalise_reward", *UNSHOWN)
"""Settings that say what the networks are."""
AVERAGED = (
    "actor/loss",
    "actor/entropy",
    "actor/kl",
    "actor/clip_fraction",
    "actor/std",
    "actor/grad_norm",
    "critic/loss",
    "critic/grad_norm",
)
"""Metrics that are means over a learning phase's gradient steps, the one that stops it included."""


class PPO(Agent):
    """On-policy actor and critic, feed-forward or recurrent.

    Args:
        spec: the environment's facts.
        settings: hyper-parameters.
        total_env_steps: environment steps of the whole run; sets the learning-rate schedule.
        seed: of every random draw.
        device: where networks live; the environment's own by default.
        replay_device: where the ring lives; it must be ``device``.
        compute: how update steps are computed; eager float32 by default.

    Several processes (``supple/distributed.py``) learn as one with all their environments: as many
    gradient steps, each from a minibatch of every one of them.

    Raises:
        InputError: the sizes do not fit together.
    """

    rank_state = ("reward_scaler", "memory", "generators", "metrics")
    inherited = ("actor", "critic", "distribution")
    learned = (*inherited, "optimizer", "rate")
    facts = "facts"

    def __init__(
        self,
        spec: EnvSpec,
        settings: PPOSettings | None = None,
        *,
        total_env_steps: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        replay_device: torch.device | str | None = None,
        compute: Compute | None = None,
    ) -> None:
        self.settings = settings = settings or PPOSettings()
        self.spec = spec
        self.horizon = settings.rollout_steps
        self.device = torch.device(device or spec.device)
        if torch.device(replay_device or self.device).type != self.device.type:
            raise InputError("PPO learns from one rollout, on the GPU: drop --replay.spill")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.critic_groups = critic_groups(spec) if settings.privileged else self.actor_groups
        self._sequence_steps = settings.sequence_steps or settings.rollout_steps
        if not settings.memory:
            self._sequence_steps = 1
        self._sequences = settings.rollout_steps // self._sequence_steps * spec.num_envs
        if self._sequences < settings.minibatches:
            what, steps = "transitions", "raise --env.num-envs or --agent.rollout-steps"
            if settings.memory:
                what, steps = "sequences", "raise --env.num-envs, or lower --agent.sequence-steps"
            raise InputError(
                f"--agent.minibatches {settings.minibatches} is more than the {self._sequences}"
                f" {what} of a rollout: lower it, or {steps}"
            )
        self._final_bootstrap = settings.timeout_bootstrap == "final" or (
            settings.timeout_bootstrap == "auto" and spec.has_final_obs
        )
        if self._final_bootstrap and not spec.has_final_obs:
            raise InputError(
                f"{spec.task_id} does not report the observation before a reset: set"
                " --agent.timeout-bootstrap auto"
            )
        if settings.timeout_bootstrap == "auto" and not self._final_bootstrap:
            self.remark = (
                f"{spec.task_id} does not report the observation before a reset: a time-out adds"
                " the value of the one before its last step"
            )

        self.generators = Generators(seed, self.device, own=world().seed_words)
        self.distribution = self._build_distribution()
        self.actor = self._build_network(
            self.actor_groups, self.distribution.head_width, settings.actor_hidden, ACTOR_GAIN
        )
        self.critic = self._build_network(
            self.critic_groups, 1, settings.critic_hidden, CRITIC_GAIN
        )
        self._actor_params = [*self.actor.parameters(), *self.distribution.parameters()]
        self._critic_params = list(self.critic.parameters())
        weights = [part for part in (*self._actor_params, *self._critic_params) if part.dim() > 1]
        self._optimizer = Adam(
            [*self._actor_params, *self._critic_params],
            decay=settings.weight_decay,
            decayed=weights,
        )
        self._memory = {
            name: torch.zeros(spec.num_envs, settings.memory, device=self.device)
            for name in ("actor", "critic")
        }
        self._fields = self._row_fields()
        self.extra_spec = {
            name: (width,)
            for name, width in self._fields.items()
            if name in ("draw", "params", "log_prob", "actor_memory", "critic_memory")
            and (name != "draw" or self.distribution.keeps_draw)
        }

        self.reward_scaler = RewardScaler(
            spec.num_envs,
            gamma=settings.gamma,
            value_max=math.inf,
            settings=RewardScalerSettings(enabled=settings.normalise_reward),
            device=self.device,
        )
        self._rate = torch.full((), settings.lr, device=self.device)
        self._going = torch.ones((), dtype=torch.bool, device=self.device)
        self._taken = torch.zeros((), dtype=torch.float64, device=self.device)
        self._seen = torch.zeros((), dtype=torch.float64, device=self.device)
        self._sums = torch.zeros(len(AVERAGED) + 1, device=self.device)

        self.skips = Skips((STEP,), self.device)
        self.compute = compute or Compute()
        self._act_step = self._region(self._explore)
        self._observe_step = self._region(self._observe)
        self._value_step = self._region(self._values)
        learning = self.compute
        if self._sequence_steps > LONGEST_COMPILED:
            learning = dataclasses.replace(self.compute, compile=False)
        self._learn_step = Region(self._learn, state=self._tensors, compute=learning)
        self.updates = 0
        self._total_env_steps = total_env_steps
        self.metrics: dict[str, Tensor] = {}

    def _build_distribution(self) -> Distribution:
        settings, action = self.settings, self.spec.action
        if isinstance(action, Discrete):
            for flag, got, own in (
                ("--agent.distribution", settings.distribution, "gaussian"),
                ("--agent.std", settings.std, "shared"),
            ):
                if got != own:
                    raise InputError(
                        f"{flag} {got} is of continuous actions, {self.spec.task_id} has choices:"
                        " drop the flag"
                    )
            return Categorical(action.n)
        kind = SquashedGaussian if settings.distribution == "squashed" else Gaussian
        return kind(
            action.size,
            initial_std=settings.initial_std,
            state_dependent=settings.std == "state",
            device=self.device,
        )

    def _build_network(
        self, groups: tuple[str, ...], outputs: int, hidden: tuple[int, ...], gain: float
    ) -> Network:
        settings = self.settings
        return Network(
            sum(self.spec.observation[group] for group in groups),
            outputs,
            hidden=hidden,
            activation=settings.activation,
            memory=settings.memory,
            normalise=settings.normalise_obs,
            output_gain=gain,
            generator=self.generators["weights"],
        )

    def _row_fields(self) -> dict[str, int]:
        """What learning reads of a step, and how many numbers each is."""
        widths = self.spec.observation
        fields = {"actor_obs": sum(widths[group] for group in self.actor_groups)}
        if self.critic_groups != self.actor_groups:
            fields["critic_obs"] = sum(widths[group] for group in self.critic_groups)
        distribution = self.distribution
        fields |= {"draw": distribution.draw_width, "params": distribution.width, "log_prob": 1}
        fields |= {"advantage": 1, "value": 1, "target": 1, "valid": 1}
        if self.settings.symmetry:
            fields |= {"own": 1}
        if self.settings.memory:
            fields |= {"fresh": 1}
            fields |= dict.fromkeys(("actor_memory", "critic_memory"), self.settings.memory)
        return fields

    def prepare(self) -> None:
        """Load the mirroring, if there is one; refuse minibatches of which nothing is learned."""
        settings = self.settings
        # Of all processes: what several trained, one of them shows.
        rows = self._sequences // settings.minibatches * self._sequence_steps * world().size
        if settings.normalise_advantage == "minibatch" and rows < 2:
            raise InputError(
                "--agent.normalise-advantage minibatch makes the advantage of a minibatch of one"
                " row 0: lower --agent.minibatches, raise --agent.rollout-steps or"
                " --env.num-envs, or take --agent.normalise-advantage rollout"
            )
        if settings.symmetry:
            self._image  # noqa: B018 - computed once

    @functools.cached_property
    def _images(self) -> Mirroring:
        settings, groups = self.settings, (self.actor_groups, self.critic_groups)
        if not isinstance(self.spec.action, Box):
            raise InputError(
                f"--agent.symmetry needs continuous actions, {self.spec.task_id} has discrete ones:"
                " drop the flag"
            )
        return mirroring(settings.symmetry, self.spec, *groups, self.device)

    @functools.cached_property
    def _image(self) -> SignedPermutation:
        """Mirroring of a whole row of ``_pack``; in an image, ``own`` is 0."""
        observed, privileged, action = self._images
        unsigned = SignedPermutation(action.index, action.sign.abs())
        same, none = (SignedPermutation.of_one(sign, self.device) for sign in (1.0, 0.0))
        parts = {
            "actor_obs": [observed],
            "critic_obs": [privileged],
            "draw": [action],
            "params": [action, unsigned],  # mean and log standard deviation
            "own": [none],
        }
        columns = [part for name in self._fields for part in parts.get(name, [same])]
        return SignedPermutation.side_by_side(columns)

    def architecture(self) -> tuple[str, ...]:
        """Those of actor, critic and distribution."""
        return ARCHITECTURE

    def _region(self, function: Callable[..., T]) -> Region[T]:
        return Region(function, state=self._tensors, compute=self.compute)

    def _tensors(self) -> list[Tensor]:
        """Everything that changes in place within a region."""
        return [
            *self._optimizer.tensors(),
            *self._memory.values(),
            *self.reward_scaler.state_dict().values(),
            self._rate,
            self._going,
            self._taken,
            self._sums,
            *self.skips.tensors(),
        ]

    def ring(self, settings: ReplaySettings) -> ReplaySettings:
        """One rollout, every row of which may end an episode.

        Raises:
            InputError: ``settings`` ask for another ring.
        """
        for item in dataclasses.fields(settings):
            if getattr(settings, item.name) != item.default:
                flag = item.name.replace("_", "-")
                raise InputError(
                    f"--replay.{flag} is not PPO's to choose, which keeps one rollout of"
                    " --agent.rollout-steps: drop the flag"
                )
        capacity = self.horizon * self.spec.num_envs
        return dataclasses.replace(settings, capacity=capacity, final_fraction=1.0)

    def check_room(self, ring: ReplayPlan) -> None:
        """Refuse a rollout that memory does not hold.

        Raises:
            InputError: names the settings to turn.
        """
        ring.check(self.device, "lower --env.num-envs or --agent.rollout-steps")

    # --- acting -----------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Groups, *, explore: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """A draw from the policy, with what learning needs of it; its mode to evaluate."""
        obs_ND = concat(obs, self.actor_groups)
        if not explore:
            head, _ = self.actor.step(obs_ND, self._memory["actor"])
            return self.distribution.mode(head), {}
        noise = self._noise("exploration", self.spec.num_envs)
        if not self.settings.memory:
            return self._act_step(obs_ND, noise)
        return self._act_step(obs_ND, noise, concat(obs, self.critic_groups))

    def _noise(self, name: str, rows: int) -> Tensor:
        draw = torch.rand if self.distribution.uniform else torch.randn
        shape = (rows, self.spec.action.size)
        return draw(shape, generator=self.generators[name], device=self.device)

    def _explore(
        self, obs_ND: Tensor, noise_NA: Tensor, critic_obs_ND: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        distribution, extras = self.distribution, {}
        with self.compute.autocast(self.device):
            head, after = self.actor.step(obs_ND, self._memory["actor"])
            if critic_obs_ND is not None:
                _, critic_after = self.critic.step(critic_obs_ND, self._memory["critic"])
                for name, value in (("actor", after), ("critic", critic_after)):
                    extras[f"{name}_memory"] = self._memory[name].clone()
                    self._memory[name].copy_(value)
        params = distribution.params(head.float())
        draw = distribution.sample(params, noise_NA)
        extras |= {"params": params, "log_prob": distribution.log_prob(params, draw).unsqueeze(-1)}
        if distribution.keeps_draw:
            extras["draw"] = draw
        return distribution.action(draw), extras

    def observe(self, step: Step) -> None:
        """Update the reward statistics; memories end with their episodes."""
        if self.settings.normalise_reward or self.settings.memory:
            self._observe_step(step["reward"], step["terminated"], step["truncated"], step["valid"])

    def _observe(
        self, reward: Tensor, terminated: Tensor, truncated: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        ended = terminated | truncated
        self.reward_scaler.observe(reward, ended, valid)
        goes_on = (~ended & valid).unsqueeze(-1)
        for memory in self._memory.values():
            memory.copy_(torch.where(goes_on, memory, 0.0))
        return {}

    def forget_episodes(self) -> None:
        """Drop memories and running reward sums."""
        for memory in self._memory.values():
            memory.zero_()
        self.reward_scaler.forget_episodes()

    def policy(self) -> nn.Module:
        """The most likely action; with a memory, (obs, memory) -> (action, memory)."""
        return GreedyPolicy(self.actor, self.distribution)

    def greedy(self) -> Callable[[Groups], Tensor]:
        """``policy()`` as a function of observation groups; its memory begins empty."""
        if not self.settings.memory:
            return super().greedy()
        policy, names = self.policy(), self.actor_groups
        memory: list[Tensor] = []

        @torch.no_grad()
        def act(obs: Groups) -> Tensor:
            obs_ND = concat(obs, names)
            before = memory or [obs_ND.new_zeros(len(obs_ND), self.settings.memory)]
            action, after = policy(obs_ND, *before)
            memory[:] = [after]
            chosen: Tensor = action
            return chosen

        return act

    # --- learning ---------------------------------------------------------------------------

    @in_step
    @torch.no_grad()
    def update(self, replay: Replay) -> Mapping[str, Tensor]:
        """Learn from one rollout, then forget it."""
        settings = self.settings
        self.reward_scaler.share()
        rollout = self._rollout(replay)
        rows_RK = self._pack(rollout)
        if settings.lr_schedule == "linear":
            left = (1 - self._seen / self._total_env_steps).clamp_min(0.0)
            self._rate.copy_(self.rate_scale * settings.lr * left)
        self._going.fill_(True)
        self._sums.zero_()
        estimates = self.distribution.estimates_entropy
        batches: tuple[Tensor, ...] = ()
        for epoch in range(settings.epochs):
            if epoch == 0 or settings.reshuffle:
                batches = self._shuffle()
            for index in batches:
                taken = self._taken if settings.kl_stop else self.updates
                self._optimizer.begin(1.0, taken + 1)
                noise = (self._noise("entropy", len(index)),) if estimates else ()
                batch = (self._mirrored(rows_RK.index_select(0, index)), *noise)
                self._learn_step(*batch)
                self.updates += 1
                self.skips.note((STEP,), batch, lambda: copy.deepcopy(self.state_dict()))
        self._normalise_by(rollout)
        self._seen.add_(sum_over_ranks(rollout["valid"].sum()))
        replay.clear()
        means = self._sums / self._sums[-1].clamp_min(1)
        self.metrics |= dict(zip(AVERAGED, means.unbind(), strict=False))
        self.metrics["actor/learning_rate"] = self._rate.clone()
        if settings.kl_stop:  # ``updates`` counts those left out, too
            self.metrics["actor/steps_taken"] = self._taken.clone()
        return self.metrics

    def _mirrored(self, rows_MK: Tensor) -> Tensor:
        """Half of the rows, by chance, as their mirror images."""
        if not self.settings.symmetry:
            return rows_MK
        flip = half_of(len(rows_MK), self.generators["symmetry"])
        return torch.where(flip, self._image(rows_MK), rows_MK)

    def repeat(self, inputs: tuple[Tensor, ...]) -> None:
        """Take one gradient step again."""
        self._optimizer.begin(1.0, self.updates)
        self._going.fill_(True)
        self._learn_step(*inputs)

    def roll_back(self, state: Mapping[str, Any], *, rate_factor: float) -> None:
        """As any agent's; the rate that adapts by itself goes on from the lowered one."""
        super().roll_back(state, rate_factor=rate_factor)
        # The state's own, which an earlier return to the same state had lowered before.
        self._rate.mul_(self.rate_scale / state["counters"]["rate_scale"])

    def _rollout(self, replay: Replay) -> dict[str, Tensor]:
        """The ring's columns, (T, N, ...); observations flat, (T N, D)."""
        window = replay.window()
        now = {group: rows[:-1].flatten(0, 1) for group, rows in window["observation"].items()}
        then = replay.next_observations()
        columns = {name: window[name] for name in (*STEP_FIELDS, *self.extra_spec)}
        draw = window["draw"] if self.distribution.keeps_draw else None
        return columns | {
            "actor_obs": concat(now, self.actor_groups),
            "critic_obs": concat(now, self.critic_groups),
            "next_critic_obs": concat(then, self.critic_groups),
            "draw": self.distribution.draw_of(window["action"]) if draw is None else draw,
        }

    def _normalise_by(self, rollout: Mapping[str, Tensor]) -> None:
        """Fold a rollout's observations into both normalisers."""
        valid = rollout["valid"].flatten()
        for name, network in (("actor_obs", self.actor), ("critic_obs", self.critic)):
            rows, seen = rollout[name], valid
            if self.settings.symmetry:  # else images would lie far from what is normal
                image = getattr(self._images, name)
                rows, seen = torch.cat((rows, image(rows))), valid.repeat(2)
            network.normaliser.observe(rows, seen)

    def _pack(self, rollout: Mapping[str, Tensor]) -> Tensor:
        """Everything that learning reads, one row per step, (T N, K): a minibatch is one gather."""
        valid = rollout["valid"]
        ended = rollout["terminated"] | rollout["truncated"]
        before = () if not self.settings.memory else (rollout["critic_memory"].flatten(0, 1),)
        values = self._value_step(rollout["critic_obs"], rollout["next_critic_obs"], *before)
        value, next_value = (each.view_as(ended) for each in values)
        reward = rollout["reward"] / self.reward_scaler.denominator()
        advantage, target = self.advantages(
            reward=reward,
            value=value,
            next_value=next_value,
            terminated=rollout["terminated"],
            truncated=rollout["truncated"],
            valid=valid,
        )
        spread = _moments(target, valid)[1].square()
        missed = _moments(target - value, valid)[1].square()
        self.metrics["critic/explained_variance"] = 1 - missed / spread.clamp_min(1e-8)
        self.metrics["critic/value"] = _moments(value, valid)[0]
        self.metrics["reward/denominator"] = self.reward_scaler.denominator()
        if self.settings.normalise_advantage == "rollout":
            advantage = _standardised(advantage, valid)
        fresh = torch.zeros_like(valid)
        fresh[1:] = (ended | ~valid)[:-1]
        found = {
            **rollout,
            "advantage": advantage,
            "value": value,
            "target": target,
            "fresh": fresh,
            "own": torch.ones_like(valid),
        }
        columns = [
            found[name].reshape(valid.numel(), width).float()
            for name, width in self._fields.items()
        ]
        # Rows that are no steps may hold NaN, and NaN times weight 0 is NaN.
        return torch.where(valid.flatten().unsqueeze(-1), torch.cat(columns, dim=-1), 0.0)

    def _values(
        self, obs_RD: Tensor, next_obs_RD: Tensor, memory_RH: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Values of the observations and of those after them, before any reset, (T N,) each."""
        with self.compute.autocast(self.device):
            before = obs_RD.new_zeros(len(obs_RD), 0) if memory_RH is None else memory_RH
            value, after = self.critic.step(obs_RD, before)
            next_value, _ = self.critic.step(next_obs_RD, after)
        return value.squeeze(-1).float(), next_value.squeeze(-1).float()

    def advantages(
        self,
        *,
        reward: Tensor,
        value: Tensor,
        next_value: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        valid: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Generalised advantage estimates and value targets, (T, N) each, not yet normalised.

        Args:
            reward: scaled, (T, N) like all others.
            value: of the observation acted on.
            next_value: of the observation after it, before any reset.
            terminated: true ends: nothing follows.
            truncated: time-outs: the next value follows.
            valid: rows that are environment steps; the others get 0 and end what is before them.
        """
        # Here, because importing it takes half a second that the other agents need not wait.
        from torchrl.objectives.value.functional import generalized_advantage_estimate

        settings = self.settings
        ended = terminated | truncated
        cut = ended | ~valid
        cut[:-1] |= ~valid[1:]
        if not self._final_bootstrap:  # leggedrobotics/rsl_rl@5.5.1, algorithms/ppo.py
            reward = reward + settings.gamma * torch.where(truncated & ~terminated, value, 0.0)
            terminated = ended
        found: tuple[Tensor, Tensor] = generalized_advantage_estimate(
            settings.gamma,
            settings.gae_lambda,
            torch.where(valid, value, 0.0),
            torch.where(valid & ~terminated, next_value, 0.0),
            torch.where(valid, reward, 0.0),
            done=cut,
            terminated=terminated,
        )
        return found

    def _shuffle(self) -> tuple[Tensor, ...]:
        """Packed rows of each minibatch of one pass, (M,) each."""
        settings, envs = self.settings, self.spec.num_envs
        size = self._sequences // settings.minibatches
        order = torch.randperm(
            self._sequences, generator=self.generators["minibatches"], device=self.device
        )
        sequence = order[: settings.minibatches * size].view(settings.minibatches, 1, size)
        first = sequence // envs * (self._sequence_steps * envs) + sequence % envs
        steps = torch.arange(self._sequence_steps, device=self.device).view(1, -1, 1)
        return (first + steps * envs).flatten(1).unbind()

    @torch.enable_grad()
    def _learn(self, batch_MK: Tensor, noise_MA: Tensor | None = None) -> dict[str, Tensor]:
        """One gradient step."""
        settings, distribution = self.settings, self.distribution
        parts = batch_MK.split(list(self._fields.values()), dim=-1)
        row = dict(zip(self._fields, parts, strict=True))
        log_prob, advantage, value, target, valid = (
            row[name].squeeze(-1) for name in ("log_prob", "advantage", "value", "target", "valid")
        )
        weight = valid / mean_over_ranks(valid.sum()).clamp_min(1)
        if settings.normalise_advantage == "minibatch":
            advantage = _standardised(advantage, valid.bool())
        with self.compute.autocast(self.device):
            head = self._unroll(self.actor, row, "actor")
            new_value = self._unroll(self.critic, row, "critic").squeeze(-1).float()
        params = distribution.params(head.float())

        log_ratio = distribution.log_prob(params, row["draw"]) - log_prob
        ratio = bounded(log_ratio, -math.inf, MOST_LOG_RATIO).exp()
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        surrogate = -(torch.minimum(advantage * ratio, advantage * clipped) * weight).sum()
        noise_MA = row["draw"] if noise_MA is None else noise_MA  # the latter is not read
        entropy = (distribution.entropy(params, noise_MA) * weight).sum()
        error = (new_value - target).square()
        if settings.clip_value:
            near = value + (new_value - value).clamp(-settings.clip, settings.clip)
            error = torch.maximum(error, (near - target).square())
        value_loss = (error * weight).sum()
        loss = surrogate - settings.entropy_coef * entropy + settings.value_coef * value_loss
        gradients = average(torch.autograd.grad(loss, self._optimizer.params))

        with torch.no_grad():
            # All processes judge by the same number: rates and early stops stay the same in all.
            # An image's policy was another: how far it is off says nothing of the step's size.
            own = weight
            if settings.symmetry:
                own = valid * row["own"].squeeze(-1)
                own = own / mean_over_ranks(own.sum()).clamp_min(1)
            kl = mean_over_ranks((distribution.divergence(row["params"], params) * own).sum())
            looked_at = self._going.clone()
            if settings.lr_schedule == "adaptive":
                self._adapt_rate(kl)
            if settings.kl_stop:
                self._going.logical_and_(kl <= settings.kl_stop)
            split = len(self._actor_params)
            actor_gradients, actor_norm = _clipped(gradients[:split], settings.max_grad_norm)
            critic_gradients, critic_norm = _clipped(gradients[split:], settings.max_grad_norm)
            finite = torch.isfinite(mean_over_ranks(loss))
            good = finite & torch.isfinite(actor_norm) & torch.isfinite(critic_norm)
            self._optimizer.step(
                (*actor_gradients, *critic_gradients),
                factor=self._rate,
                enabled=good & self._going if settings.kl_stop else good,
            )
            self.skips.count(STEP, good)
            self._taken.add_(self._going)
            outside = ((ratio - clipped) != 0).float()
            found = {
                "actor/loss": surrogate,
                "actor/entropy": entropy,
                "actor/kl": kl,
                "actor/clip_fraction": (outside * weight).sum(),
                "actor/std": distribution.spread(params),
                "actor/grad_norm": actor_norm,
                "critic/loss": value_loss,
                "critic/grad_norm": critic_norm,
            }
            values = [*(found[name] for name in AVERAGED), torch.ones_like(kl)]
            self._sums.add_(torch.where(looked_at & good, torch.stack(values), 0.0))
        return {}

    def _unroll(self, network: Network, row: Mapping[str, Tensor], name: str) -> Tensor:
        obs = row.get(f"{name}_obs", row["actor_obs"])
        sequences = len(obs) // self._sequence_steps
        if not self.settings.memory:
            return network.unroll(obs, obs.new_zeros(sequences, 0), obs)
        return network.unroll(obs, row[f"{name}_memory"][:sequences], row["fresh"])

    def _adapt_rate(self, kl: Tensor) -> None:
        """Move the learning rate so that steps keep about ``desired_kl`` from the old policy.

        Before a phase's first step the two are one policy: what divergence is found is rounding.
        """
        aim = self.settings.desired_kl
        moved = self._sums[-1] > 0
        slower = torch.minimum(self._rate, (self._rate / RATE_FACTOR).clamp_min(SLOWEST))
        faster = torch.maximum(self._rate, (self._rate * RATE_FACTOR).clamp_max(FASTEST))
        near = torch.where((kl < aim / 2) & (kl > 0) & moved, faster, self._rate)
        adapted = torch.where(kl > 2 * aim, slower, near)
        self._rate.copy_(torch.where(self._going, adapted, self._rate))

    # --- saving -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, statistics, memories, generators and counters."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "distribution": self.distribution.state_dict(),
            "facts": {name: getattr(self.settings, name) for name in UNSHOWN},
            "optimizer": self._optimizer.state_dict(),
            "reward_scaler": self.reward_scaler.state_dict(),
            "joint_rewards": self.reward_scaler.joint_state(),
            "memory": self._memory,
            "rate": self._rate,
            "taken": self._taken,
            "seen": self._seen,
            "generators": self.generators.state_dict(),
            "metrics": dict(self.metrics),
            "skips": self.skips.state_dict(),
            "counters": {"updates": self.updates, "rate_scale": self.rate_scale},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value.

        A linear schedule goes on to this agent's own ``total_env_steps``: with the recorded ones,
        a run that is extended would have a rate of 0 and learn nothing.
        """
        own = self.state_dict()
        for name in ("actor", "critic", "distribution", "reward_scaler", "memory"):
            check_sizes(own[name], state[name], name)
        check_facts(own["facts"], state.get("facts", {}), "policy")
        for name in ("actor", "critic", "distribution"):
            getattr(self, name).load_state_dict(state[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.reward_scaler.load_state_dict(state["reward_scaler"])
        self.reward_scaler.load_joint_state(state.get("joint_rewards", {}))
        for name, memory in self._memory.items():
            memory.copy_(state["memory"][name])
        self._rate.copy_(state["rate"])
        self._taken.copy_(state["taken"])
        self._seen.copy_(state["seen"])
        self.generators.load_state_dict(state["generators"])
        self.metrics = {name: value.to(self.device) for name, value in state["metrics"].items()}
        self.skips.load_state_dict(state["skips"])
        self.updates = state["counters"]["updates"]
        self.rate_scale = state["counters"]["rate_scale"]


class GreedyPolicy(nn.Module):
    """The most likely action: (M, D) -> (M, A) floats or (M,) int64.

    With a memory: ((M, D), (M, H)) -> the action and the memory after it.

    Args:
        actor: copied.
        distribution: copied.
    """

    def __init__(self, actor: Network, distribution: Distribution) -> None:
        super().__init__()
        self.actor = copy.deepcopy(actor).requires_grad_(False)
        self.distribution = copy.deepcopy(distribution).requires_grad_(False)

    def forward(
        self, obs_MD: Tensor, memory_MH: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The action; with ``memory_MH``, also what to give back at the next step.

        Without it, every row is the first of its episode.
        """
        before = memory_MH
        if before is None:
            before = obs_MD.new_zeros(len(obs_MD), self.actor.memory)
        head, after = self.actor.step(obs_MD, before)
        action = self.distribution.mode(head)
        return action if memory_MH is None else (action, after)


def _moments(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation over valid entries of all processes, 0-d."""
    count = sum_over_ranks(valid.sum())
    mean = sum_over_ranks(torch.where(valid, values, 0.0).sum()) / count.clamp_min(1)
    square = sum_over_ranks(torch.where(valid, values - mean, 0.0).square().sum())
    return mean, (square / (count - 1).clamp_min(1)).sqrt()


def _standardised(values: Tensor, valid: Tensor) -> Tensor:
    mean, std = _moments(values, valid)
    return (values - mean) / (std + 1e-8)


def _clipped(gradients: tuple[Tensor, ...], limit: float) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients scaled down to a joint norm of ``limit`` (0: as they are), and their norm before.

    Source: ``torch.nn.utils.clip_grad_norm_``.
    """
    # On CPUs all at once would stand between other operations of a compiled step (``all_finite``).
    norm = torch.nn.utils.get_total_norm(gradients, foreach=gradients[0].is_cuda)
    if not limit:
        return gradients, norm
    return torch._foreach_mul(gradients, (limit / (norm + 1e-6)).clamp_max(1.0)), norm
