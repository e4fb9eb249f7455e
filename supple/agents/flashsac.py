"""FlashSAC: soft actor-critic made stable by norm bounds, in the much-data, few-updates regime.

Shapes: ``N`` environments, ``B`` minibatch rows, ``A`` actions, ``E`` critic members.
Source: FlashSAC, arXiv:2604.04539, and Holiday-Robot/FlashSAC@87edc90, whose recorded updates this
code reproduces (tests/parity/test_flashsac.py). Deviations, each with a switch back: exact n-step
bootstrap discount, reward sums reset after the terminal step, ``target_entropy`` is honoured.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from supple.agents.actor import Actor, FoldedPolicy, squashed_sample
from supple.agents.adam import Adam
from supple.agents.base import Agent, check_facts, check_sizes, concat, critic_groups
from supple.agents.care import Skips, all_finite, undo_unless
from supple.agents.critics import (
    CategoricalCritic,
    Critic,
    CriticSize,
    ScalarCritic,
    check_critic,
)
from supple.agents.exploration import HeldNoise
from supple.agents.flashsac_settings import FlashSACSettings
from supple.agents.flow_critics import BoundedFlowCritic, FlowRange, PublishedFlowCritic
from supple.agents.nets import Trunk, norm_deviation, project_
from supple.agents.remedies import linear_weights, reset_dormant_, shrink_and_perturb_
from supple.agents.reward_scaling import RewardScaler
from supple.agents.symmetry import Mirroring, half_of, mirroring
from supple.distributed import average, in_step, lowest, mean_over_ranks, world
from supple.envs.base import Box, EnvSpec, Groups, Step
from supple.errors import InputError
from supple.machine import keep_freed_memory
from supple.region import Compute, Region, T
from supple.replay import AgeBias, Replay, ReplayPlan
from supple.rng import Generators

ARCHITECTURE = (
    *("critic", "actor_hidden", "actor_blocks", "critic_hidden", "critic_blocks", "num_critics"),
    *("critic_norm", "value_max", "reward_scaler.enabled"),
)
"""Settings that say what the networks are."""
FLOW_ARCHITECTURE = tuple(
    f"flow.{name}"
    for name in (
        *("width", "depth", "activation", "norm", "kappa", "noise_rule", "value_encoding", "edges"),
        *("sigma_bins", "support_margin", "time_encoding", "time_features", "predict"),
    )
)
"""The same of a flow critic."""


class Batch(NamedTuple):
    """One minibatch; rewards are raw, the first B observation rows current, the last B next."""

    actor_obs_2BD: Tensor
    critic_obs_2BD: Tensor
    action_BA: Tensor
    reward_B: Tensor
    terminated_B: Tensor
    """1.0 where the window ended in a true termination, else 0.0."""
    discount_B: Tensor
    """gamma^(steps taken); not yet masked by ``terminated``."""


class FlashSAC(Agent):
    """Soft actor-critic with norm-bounded networks, reward scaling and held exploration noise.

    Args:
        spec: the environment's facts.
        settings: hyper-parameters.
        total_env_steps: environment steps of the whole run; sets the learning-rate schedule.
        seed: of every random draw.
        device: where networks live; the environment's own by default.
        replay_device: where the ring lives that ``update`` is given; ``device`` by default.
        compute: how update steps are computed; eager float32 by default.

    Several processes (``supple/distributed.py``) learn as one with all their environments and a
    minibatch of ``batch_size`` from each: ``utd`` and ``min_replay`` count all their transitions.

    Raises:
        InputError: discrete actions, or no final observations without the flag that allows it.
    """

    rank_state = ("reward_scaler", "noise", "generators", "metrics")
    inherited = ("actor", "critic", "target_critic", "log_alpha")
    learned = (*inherited, "optimizers")
    facts = "critic_facts"

    def __init__(
        self,
        spec: EnvSpec,
        settings: FlashSACSettings | None = None,
        *,
        total_env_steps: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        replay_device: torch.device | str | None = None,
        compute: Compute | None = None,
    ) -> None:
        settings = settings or FlashSACSettings()
        if not isinstance(spec.action, Box):
            raise InputError(
                f"FlashSAC needs continuous actions, {spec.task_id} has {spec.action.size} discrete"
                " ones: take --agent ppo, or choose a continuous-action task (supple list)"
            )
        if not spec.has_final_obs and not settings.allow_missing_final_obs:
            raise InputError(
                f"{spec.task_id} does not report the observation before a reset, so time-outs would"
                " bootstrap from the wrong state: set --agent.allow-missing-final-obs to accept it"
            )
        self.settings = settings
        self.spec = spec
        self.horizon = settings.update_every
        self.device = torch.device(device or spec.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.critic_groups = critic_groups(spec)
        self._num_actions = spec.action.size
        actor_width = sum(spec.observation[group] for group in self.actor_groups)
        critic_width = sum(spec.observation[group] for group in self.critic_groups)

        sampling = {"replay": torch.device(replay_device or self.device)}
        self.generators = Generators(seed, self.device, sampling, world().seed_words)
        self._widths = (actor_width, critic_width + self._num_actions)
        self.actor, self.critic = self.build_networks(self.generators["weights"])
        if type(self).build_critic is not FlashSAC.build_critic:
            check_critic(self.critic, self.device)
            if settings.critic != FlashSACSettings().critic:
                self.remark = (
                    f"{type(self).__name__} builds its critic itself: --agent.critic"
                    f" {settings.critic} is only what it makes of it"
                )
        if settings.remedy.reset_dormant_every:
            _blocks(self.critic)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(
            torch.full((1,), math.log(settings.initial_temperature), device=self.device)
        )
        # No square of target_std, which may be too small or too large for a float.
        entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(settings.target_std)
        self.target_entropy = (
            self._num_actions * entropy
            if settings.target_entropy is None
            else settings.target_entropy
        )

        self._actor_params = list(self.actor.parameters())
        self._critic_params = list(self.critic.parameters())
        self._target_params: list[Tensor] = list(self.target_critic.parameters())
        self._optimizers = {
            "actor": self._adam(self.actor),
            "critic": self._adam(self.critic),
            "temperature": Adam([self.log_alpha]),
        }
        self.skips = Skips(("actor", "critic"), self.device)
        self.compute = compute or Compute()
        self._act_step = self._region(self._explore)
        self._observe_step = self._region(self._observe)
        self._actor_step = self._region(self._update_actor)
        self._critic_step = self._region(self._update_critic)
        self._schedule_updates = total_env_steps * settings.utd

        self.reward_scaler = RewardScaler(
            spec.num_envs,
            gamma=settings.gamma,
            value_max=settings.value_max,
            settings=settings.reward_scaler,
            device=self.device,
        )
        self.noise = HeldNoise(
            spec.num_envs, self._num_actions, settings.noise, self.generators["exploration"]
        )
        self.updates = 0
        self._actor_updates = 0
        self._budget = 0.0
        self._learning = False
        self._acting = False
        """Whether the policy acts, rather than uniform random numbers."""
        self.metrics: dict[str, Tensor] = {}

    def _adam(self, network: nn.Module) -> Adam:
        decay = self.settings.remedy.weight_decay
        return Adam(list(network.parameters()), decay=decay, decayed=linear_weights(network))

    def build_networks(self, generator: torch.Generator) -> tuple[Actor, Critic]:
        """Untrained networks of this agent's sizes, as it begins with them: projected."""
        settings, (actor_inputs, critic_inputs) = self.settings, self._widths
        size = CriticSize(
            inputs=critic_inputs,
            hidden=settings.critic_hidden,
            blocks=settings.critic_blocks,
            members=settings.num_critics,
            norm=settings.critic_norm,
        )
        actor = self.build_actor(actor_inputs, generator)
        critic = self.build_critic(size, generator)
        if not isinstance(critic, Critic):
            raise InputError(
                f"{type(self).__name__}.build_critic returned {type(critic).__name__}, expected a"
                " supple.agents.critics.Critic"
            )
        for network in (actor, critic):
            project_(network)
        return actor, critic

    def build_actor(self, inputs: int, generator: torch.Generator) -> Actor:
        """An untrained actor of this agent's sizes.

        Args:
            inputs: width of what it observes.
            generator: draws its weights.
        """
        settings = self.settings
        return Actor(
            inputs,
            self._num_actions,
            hidden=settings.actor_hidden,
            blocks=settings.actor_blocks,
            generator=generator,
        )

    def build_critic(self, size: CriticSize, generator: torch.Generator) -> Critic:
        """An untrained critic of the kind the settings name; agents of one's own return theirs.

        Args:
            size: of its networks.
            generator: draws its weights.
        """
        settings = self.settings
        if settings.critic == "scalar":
            return ScalarCritic(size, generator=generator)
        if settings.critic == "flow":
            return BoundedFlowCritic(
                size, settings=settings.flow, value_max=settings.value_max, generator=generator
            )
        if settings.critic == "flow_official":
            spans = FlowRange.of(settings.flow, settings.value_max)
            return PublishedFlowCritic(
                size, settings=settings.flow, spans=spans, generator=generator
            )
        return CategoricalCritic(
            size,
            num_atoms=settings.num_atoms,
            value_max=settings.value_max,
            generator=generator,
        )

    def architecture(self) -> tuple[str, ...]:
        """Those of actor and critic; of the flow, where the critic is one."""
        return ARCHITECTURE + (FLOW_ARCHITECTURE if self.settings.critic.startswith("flow") else ())

    def start_from(self, state: Mapping[str, Any]) -> None:
        """As any agent's; the policy then acts from the first step, without uniform actions."""
        super().start_from(state)
        self._acting = True

    def _region(self, function: Callable[..., T]) -> Region[T]:
        return Region(function, state=self._tensors, compute=self.compute)

    def _tensors(self) -> list[Tensor]:
        """Everything that changes in place."""
        networks = (self.actor, self.critic, self.target_critic)
        found = [buffer for network in networks for buffer in network.buffers()]
        for optimizer in self._optimizers.values():
            found += optimizer.tensors()
        found += self.reward_scaler.state_dict().values()
        found += self.noise.state_dict().values()
        return found + self._target_params + self.skips.tensors()

    def check_room(self, ring: ReplayPlan) -> None:
        """Refuse rings in which learning could never begin."""
        rows, settings = ring.num_rows, self.settings
        # All rows are there only when the head has come to their end, which bouts may step over:
        # after recorded rows they begin anywhere.
        room = (rows - (settings.update_every > 1)) * ring.num_envs * world().size
        if room < settings.min_replay:
            raise InputError(
                f"learning begins at --agent.min-replay {settings.min_replay} transitions, the ring"
                f" holds {room}: raise --replay.capacity, or lower"
                " --agent.min-replay"
            )
        if settings.n_step >= rows:
            raise InputError(
                f"--agent.n-step {settings.n_step} needs more rows than the ring's {rows} (one per"
                " vector step): raise --replay.capacity, or lower --agent.n-step"
            )

    def check_length(self, env_steps: int, prefilled: int, unseen: int = 0) -> None:
        """Refuse a run that ends before learning would begin."""
        wanted, there = self.settings.min_replay, prefilled * world().size
        if env_steps + there - unseen < wanted:
            recorded = f" after {there} recorded ones" if there else ""
            recorded += f", of which --overlap learns from all but {unseen}" if unseen else ""
            raise InputError(
                f"learning begins at --agent.min-replay {wanted} transitions, the run ends at"
                f" --env-steps {env_steps}{recorded}: raise --env-steps, or lower"
                " --agent.min-replay"
            )

    # --- acting -----------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Groups, *, explore: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Uniform while warming up, then tanh(mean + std * held noise); tanh(mean) to evaluate."""
        if explore and not self._acting:
            shape = (self.spec.num_envs, self._num_actions)
            uniform = torch.rand(shape, generator=self.generators["warm_up"], device=self.device)
            return 2 * uniform - 1, {}
        obs_ND = concat(obs, self.actor_groups)
        if explore:
            return self._act_step(obs_ND, *self.noise.draw()), {}
        mean_NA, _ = self.actor(obs_ND, train=False)
        return torch.tanh(mean_NA), {}

    def _explore(self, obs_ND: Tensor, fresh_NA: Tensor, uniform: Tensor) -> Tensor:
        mean_NA, log_std_NA = self.actor(obs_ND, train=False)
        return torch.tanh(mean_NA + log_std_NA.exp() * self.noise.hold(fresh_NA, uniform))

    def observe(self, step: Step) -> None:
        """Update the reward statistics, and end what exploration holds with its episode."""
        self._observe_step(step["reward"], step["terminated"], step["truncated"], step["valid"])

    def _observe(
        self, reward: Tensor, terminated: Tensor, truncated: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        done = terminated | truncated
        self.reward_scaler.observe(reward, done, valid)
        if self.noise.per_env:
            self.noise.end_episodes(done)
        return {}

    def forget_episodes(self) -> None:
        """Drop held noise and running reward sums."""
        self.noise.forget_episodes()
        self.reward_scaler.forget_episodes()

    def forget_ring(self) -> None:
        """Wait for ``min_replay`` transitions again; the policy that was learned goes on acting."""
        self._learning = False

    def policy(self) -> nn.Module:
        """tanh(mean), batch norms folded away."""
        return FoldedPolicy(self.actor)

    # --- learning ---------------------------------------------------------------------------

    @in_step
    def update(self, replay: Replay) -> Mapping[str, Tensor]:
        """Take as many gradient steps as ``utd`` grants for ``horizon`` vector steps.

        Every row of those counts: which of them are no steps only the device knows.
        """
        settings, size = self.settings, world().size
        if not self._learning:
            ready = replay.size * size >= settings.min_replay and replay.can_sample(settings.n_step)
            self._learning = lowest(int(ready)) == 1
            if not self._learning:
                return {}
            self._acting = True
        self.reward_scaler.share()
        self._budget += settings.utd * self.spec.num_envs * size * self.horizon
        while self._budget >= 1:
            self._budget -= 1
            self.learn(self._mirrored(self._sample(replay)), *self._draw_noise())
        return self.metrics

    def _sample(self, replay: Replay) -> Batch:
        settings = self.settings
        drawn = replay.draw(
            settings.batch_size,
            generator=self.generators["replay"],
            n_step=settings.n_step,
            gamma=settings.gamma,
            exact_discount=settings.exact_discount,
            age_bias=AgeBias(settings.replay_age_decay, settings.replay_age_floor),
        )
        return Batch(
            actor_obs_2BD=concat(drawn.observation, self.actor_groups),
            critic_obs_2BD=concat(drawn.observation, self.critic_groups),
            action_BA=drawn.action,
            reward_B=drawn.reward,
            terminated_B=drawn.terminated.float(),
            discount_B=drawn.discount,
        )

    def prepare(self) -> None:
        """Load the mirroring, if there is one."""
        if self.settings.symmetry:
            self._images  # noqa: B018 - computed once

    @functools.cached_property
    def _images(self) -> Mirroring:
        settings, groups = self.settings, (self.actor_groups, self.critic_groups)
        return mirroring(settings.symmetry, self.spec, *groups, self.device)

    def _mirrored(self, batch: Batch) -> Batch:
        """Half of the rows, by chance, as their mirror images."""
        if not self.settings.symmetry:
            return batch
        flip = half_of(len(batch.action_BA), self.generators["symmetry"])
        both = flip.repeat(2, 1)
        observed, privileged, action = (
            torch.where(chosen, image(row), row)
            for chosen, image, row in zip((both, both, flip), self._images, batch[:3], strict=True)
        )
        return batch._replace(actor_obs_2BD=observed, critic_obs_2BD=privileged, action_BA=action)

    def _draw_noise(self) -> tuple[Tensor, ...]:
        """Normal numbers for all actions, and what the critic wants for the actor and itself."""
        rows, draws = self.settings.batch_size, self.critic.draws
        noise = torch.randn(
            (1 + self.settings.next_actions, rows, self._num_actions),
            generator=self.generators["policy"],
            device=self.device,
        )
        next_noise = noise[1:].flatten(0, 1)
        own = draws.value + draws.target + draws.loss
        if own == 0:
            return noise[0], next_noise
        uniform_BR = torch.rand(
            (rows, draws.value + own), generator=self.generators["critic"], device=self.device
        )
        for_actor, for_critic = uniform_BR.split((draws.value, own), dim=-1)
        return noise[0], next_noise, for_actor.contiguous(), for_critic.contiguous()

    def learn(
        self,
        batch: Batch,
        actor_noise_BA: Tensor,
        next_noise_BA: Tensor,
        actor_uniform_BR: Tensor | None = None,
        critic_uniform_BR: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        """One gradient step: actor and temperature (every ``actor_period``), critic, target.

        Args:
            batch: the minibatch, raw rewards.
            actor_noise_BA: standard-normal draws for the current actions.
            next_noise_BA: standard-normal draws for the next actions, (J B, A) for J of them.
            actor_uniform_BR: ``critic.draws.value`` uniform numbers per row, where it has draws.
            critic_uniform_BR: those of all its draws: value, target, loss.

        Returns:
            0-d metrics on the device.
        """
        settings = self.settings
        denominator = self.reward_scaler.denominator()
        optimizers = self._optimizers
        kinds: tuple[str, ...] = ("critic",)
        if self.updates % settings.actor_period == 0:
            kinds = ("actor", "critic")
            rate = self.rate_scale * self.learning_rate(self._actor_updates)
            for name in ("actor", "temperature"):
                optimizers[name].begin(rate, self._actor_updates + 1)
            self.metrics |= self._actor_step(
                batch.actor_obs_2BD,
                batch.critic_obs_2BD,
                batch.action_BA,
                actor_noise_BA,
                *(() if actor_uniform_BR is None else (actor_uniform_BR,)),
            )
            self._actor_updates += 1
        rate = self.rate_scale * self.learning_rate(self.updates)
        optimizers["critic"].begin(rate, self.updates + 1)
        own = () if critic_uniform_BR is None else (critic_uniform_BR,)
        self.metrics |= self._critic_step(*batch, denominator, next_noise_BA, *own)
        self.metrics["reward/denominator"] = denominator
        self.updates += 1
        given = (*batch, actor_noise_BA, next_noise_BA, actor_uniform_BR, critic_uniform_BR)
        self.skips.note(
            kinds,
            tuple(value for value in given if value is not None),
            lambda: copy.deepcopy(self.state_dict()),
        )
        self._remedy(batch)
        return self.metrics

    def repeat(self, inputs: tuple[Tensor, ...]) -> None:
        """Take one gradient step again, with its actor step."""
        fields = len(Batch._fields)
        self.updates -= self.updates % self.settings.actor_period
        self.learn(Batch(*inputs[:fields]), *inputs[fields:])

    def _remedy(self, batch: Batch) -> None:
        """What the settings prescribe against lost plasticity, when it is due."""
        remedy = self.settings.remedy
        shrinks, resets = (
            every > 0 and self.updates % every == 0
            for every in (remedy.shrink_every, remedy.reset_dormant_every)
        )
        if not (shrinks or resets):
            return
        actor, critic = self.build_networks(self.generators["remedy"])
        if shrinks:
            for network, fresh in ((self.actor, actor), (self.critic, critic)):
                shrink_and_perturb_(network, fresh, remedy.shrink)
        if resets:
            rows = len(batch.action_BA)
            x_BD = torch.cat((batch.critic_obs_2BD[:rows], batch.action_BA), dim=-1)
            adam = self._optimizers["critic"]
            trunk, fresh_trunk = _blocks(self.critic), _blocks(critic)
            count = reset_dormant_(trunk, fresh_trunk, x_BD, remedy.dormant_threshold, adam)
            self.metrics["critic/units_reset"] = count.float()
        for network, bound in (
            (self.actor, self.settings.project_actor),
            (self.critic, self.settings.project_critic),
        ):
            if bound:
                project_(network)

    def _update_actor(
        self,
        actor_obs_2BD: Tensor,
        critic_obs_2BD: Tensor,
        action_BA: Tensor,
        noise_BA: Tensor,
        uniform_BR: Tensor | None = None,
    ) -> dict[str, Tensor]:
        settings = self.settings
        rows = action_BA.shape[0]
        statistics = list(self.actor.buffers())
        before = [value.clone() for value in statistics]
        alpha = self.log_alpha.detach().exp()
        with self.compute.autocast(self.device):
            # Next observations ride along so that batch norm sees the mixture the critic sees.
            mean_BA, log_std_BA = self.actor(actor_obs_2BD, train=True, rows=rows)
            new_action_BA, log_prob_B = squashed_sample(mean_BA, log_std_BA, noise_BA)
            x_BD = torch.cat((critic_obs_2BD[:rows], new_action_BA), dim=-1)
            prediction = self.critic(x_BD, train=False)
        value_B = self.critic.climbed(prediction, uniform_BR)
        loss = (alpha * log_prob_B - value_B).mean()
        if settings.bc_alpha > 0:
            distance = (new_action_BA - action_BA).square().mean()
            scale = mean_over_ranks(value_B.detach().abs().mean())
            loss = loss + settings.bc_alpha * scale * distance
        good = self._descend("actor", loss, self._actor_params)
        undo_unless(good, statistics, before)
        if settings.project_actor:
            project_(self.actor)

        entropy = mean_over_ranks(-log_prob_B.detach().mean())
        temperature_loss = (self.log_alpha.exp() * (entropy - self.target_entropy)).squeeze()
        gradients = torch.autograd.grad(temperature_loss, self.log_alpha)
        good = good & all_finite(temperature_loss, gradients)
        self._optimizers["temperature"].step(gradients, enabled=good)
        return {
            "actor/loss": loss.detach(),
            "actor/entropy": entropy,
            "actor/mean_action": new_action_BA.detach().mean(),
            "actor/std": log_std_BA.detach().exp().mean(),
            "temperature/value": alpha.squeeze(),
            "temperature/loss": temperature_loss.detach(),
        }

    def _descend(self, name: str, loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """One step of an optimiser, left out unless all is finite; whether it was, 0-d bool."""
        gradients = average(torch.autograd.grad(loss, parameters))
        good = all_finite(mean_over_ranks(loss), gradients)
        self._optimizers[name].step(gradients, enabled=good)
        self.skips.count(name, good)
        return good

    def _next_actions(self, obs_BD: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
        """Actions in the next states, and their log-probabilities.

        Args:
            obs_BD: what the policy sees there, B rows.
            noise_BA: J B rows for J actions in each.
        """
        mean_BA, log_std_BA = self.actor(obs_BD, train=False)
        if (drawn := self.settings.next_actions) > 1:
            mean_BA, log_std_BA = mean_BA.repeat(drawn, 1), log_std_BA.repeat(drawn, 1)
        return squashed_sample(mean_BA, log_std_BA, noise_BA)

    def _update_critic(
        self,
        actor_obs_2BD: Tensor,
        critic_obs_2BD: Tensor,
        action_BA: Tensor,
        reward_B: Tensor,
        terminated_B: Tensor,
        discount_B: Tensor,
        denominator: Tensor,
        noise_BA: Tensor,
        uniform_BR: Tensor | None = None,
    ) -> dict[str, Tensor]:
        rows, drawn = action_BA.shape[0], self.settings.next_actions
        draws = self.critic.draws
        counts = (draws.value, draws.target, draws.loss)
        parts = (None, None, None) if uniform_BR is None else uniform_BR.split(counts, dim=-1)
        for_value, for_target, for_loss = parts
        statistics = [*self.critic.buffers(), *self.target_critic.buffers()]
        before = [value.clone() for value in statistics]
        with self.compute.autocast(self.device):
            with torch.no_grad():
                next_action_BA, log_prob_B = self._next_actions(actor_obs_2BD[rows:], noise_BA)
                if drawn > 1:
                    again = critic_obs_2BD[rows:].repeat(drawn - 1, 1)
                    critic_obs_2BD = torch.cat((critic_obs_2BD, again))
                    reward_B, discount_B = reward_B.repeat(drawn), discount_B.repeat(drawn)
                    terminated_B = terminated_B.repeat(drawn)
                actions = torch.cat((action_BA, next_action_BA))
                x_2BD = torch.cat((critic_obs_2BD, actions), dim=-1)
                # Both networks see current and next rows in one batch and in train mode:
                # prediction and target share one normalisation frame.
                after = self.target_critic(x_2BD, train=True, rows=slice(rows, None))
            prediction = self.critic(x_2BD, train=True, rows=slice(rows))
        with torch.no_grad():
            entropy_B = self.log_alpha.exp() * log_prob_B
            discount_B = discount_B * (1 - terminated_B)
            if for_target is not None and drawn > 1:
                for_target = torch.cat(for_target.chunk(drawn, dim=-1))
            target, clipped = self.target_critic.target(
                after, reward_B / denominator, discount_B, entropy_B, for_target
            )
            if drawn > 1:
                target = self.target_critic.averaged(target.unflatten(0, (drawn, rows)))
            value = self.critic.value(prediction, for_value).mean()
        loss = self.critic.loss(prediction, target, for_loss)
        good = self._descend("critic", loss, self._critic_params)
        undo_unless(good, statistics, before)
        if self.settings.project_critic:
            project_(self.critic)
        with torch.no_grad():
            online = self._optimizers["critic"].params
            torch._foreach_lerp_(self._target_params, online, self.settings.tau)
        return {
            "critic/loss": loss.detach(),
            "critic/value": value,
            "critic/clipped_mass": clipped,
            "critic/max_entropy_bonus": entropy_B.abs().max(),
        }

    def learning_rate(self, count: int) -> float:
        """Rate of the optimiser step after ``count`` steps of the same optimiser.

        Actor and temperature step once per ``actor_period`` but share the critic's schedule, so
        they traverse only the first part of the cosine: the published numbers contain this.
        """
        settings = self.settings
        total = int(settings.lr_decay * self._schedule_updates)
        warmup = int(settings.lr_warmup * self._schedule_updates)
        if count < warmup:
            return settings.lr_init + (settings.lr_peak - settings.lr_init) * count / warmup
        if count >= total:
            return settings.lr_end
        phase = math.pi * (count - warmup) / (total - warmup)
        fall = 0.5 * (1 + math.cos(phase))
        return settings.lr_end + (settings.lr_peak - settings.lr_end) * fall

    def diagnostics(self) -> dict[str, Tensor]:
        """Norm invariants, mean gradients and learning rates, 0-d; computed only when called."""
        found: dict[str, Tensor] = {}
        steps = {"actor": self._actor_updates, "critic": self.updates}
        for name, network in (("actor", self.actor), ("critic", self.critic)):
            for kind, worst in norm_deviation(network).items():
                found[f"{name}/{kind}_norm_deviation"] = worst
            found[f"{name}/mean_grad_norm"] = self._optimizers[name].mean_gradient_norm(steps[name])
            rate = self.rate_scale * self.learning_rate(max(steps[name] - 1, 0))
            found[f"{name}/learning_rate"] = torch.full((), rate, device=self.device)
        return found

    # --- saving -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, statistics, noise, generators and counters."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "target_critic": self.target_critic.state_dict(),
            # Rewards are scaled to value_max, so every critic's values are in units of it.
            "critic_facts": {"value_max": self.settings.value_max, **self.critic.facts()},
            "log_alpha": self.log_alpha.detach(),
            "optimizers": {
                name: optimizer.state_dict() for name, optimizer in self._optimizers.items()
            },
            "reward_scaler": self.reward_scaler.state_dict(),
            "joint_rewards": self.reward_scaler.joint_state(),
            "noise": self.noise.state_dict(),
            "generators": self.generators.state_dict(),
            "metrics": dict(self.metrics),
            "skips": self.skips.state_dict(),
            "counters": {
                "rate_scale": self.rate_scale,
                "updates": self.updates,
                "actor_updates": self._actor_updates,
                "budget": self._budget,
                "learning": self._learning,
                "acting": self._acting,
                "schedule_updates": self._schedule_updates,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value; the schedule keeps its recorded length."""
        own = self.state_dict()
        for name in ("actor", "critic", "target_critic", "reward_scaler", "noise"):
            check_sizes(own[name], state[name], name)
        check_facts(own["critic_facts"], state.get("critic_facts", {}), "critic")
        for name in ("actor", "critic", "target_critic"):
            getattr(self, name).load_state_dict(state[name])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.reward_scaler.load_state_dict(state["reward_scaler"])
        self.reward_scaler.load_joint_state(state.get("joint_rewards", {}))
        self.noise.load_state_dict(state["noise"])
        self.generators.load_state_dict(state["generators"])
        self.metrics = {name: value.to(self.device) for name, value in state["metrics"].items()}
        self.skips.load_state_dict(state["skips"])
        counters = state["counters"]
        self.rate_scale = counters["rate_scale"]
        self.updates = counters["updates"]
        self._actor_updates = counters["actor_updates"]
        self._budget = counters["budget"]
        self._learning = counters["learning"]
        self._acting = counters.get("acting", self._learning)
        self._schedule_updates = counters["schedule_updates"]


def _blocks(critic: Critic) -> Trunk:
    """The trunk whose blocks' dormant units are reset.

    Raises:
        InputError: a critic of one's own has none, or no blocks in it.
    """
    trunk = getattr(critic, "trunk", None)
    if not isinstance(trunk, Trunk) or not trunk.block:
        raise InputError(
            "--agent.remedy.reset-dormant-every works on the blocks of a critic's trunk, and"
            f" {type(critic).__name__} has none: drop the flag, or derive it from HeadCritic"
        )
    return trunk
