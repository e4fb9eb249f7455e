"""The agent interface: all that the training loop, evaluation and export know of a learner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supple.agents.care import Skips
from supple.agents.reward_scaling import RewardScaler
from supple.envs.base import EnvSpec, Groups, Step
from supple.errors import InputError
from supple.region import Compute
from supple.replay import Replay, ReplayPlan, ReplaySettings


def critic_groups(spec: EnvSpec) -> tuple[str, ...]:
    """Observation groups a critic reads: ``critic`` where it exists, completed by ``policy``."""
    if "critic" not in spec.observation:
        return ("policy",)
    return ("critic",) if spec.critic_contains_policy else ("policy", "critic")


def concat(groups: Groups, names: tuple[str, ...]) -> Tensor:
    """Join observation groups along the feature axis, without a copy where there is one."""
    if len(names) == 1:
        only: Tensor = groups[names[0]]
        return only
    return torch.cat([groups[name] for name in names], dim=-1)


def check_sizes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> None:
    """Refuse tensors of another architecture or number of environments, before anything is loaded.

    Raises:
        InputError: a tensor is missing, unexpected or of another shape.
    """
    for key in own.keys() | state.keys():
        expected = tuple(own[key].shape) if key in own else "nothing"
        got = tuple(state[key].shape) if key in state else "nothing"
        if expected != got:
            raise InputError(
                f"checkpoint does not fit this agent: {name}.{key} expected {expected}, got {got};"
                " use the settings and task the checkpoint was trained with"
            )


def check_facts(own: Mapping[str, Any], state: Mapping[str, Any], name: str) -> None:
    """Refuse weights that other settings gave their meaning.

    What a recording of an earlier version does not say is not asked.

    Raises:
        InputError: a plain value is another one.
    """
    for key, got in state.items():
        expected = own.get(key, "nothing")
        if expected != got:
            raise InputError(
                f"checkpoint does not fit this agent: {name} expected {key} {expected}, got {got};"
                " use the settings the checkpoint was trained with"
            )


class Agent(ABC):
    """A learner. ``act`` and ``update`` hold no host synchronisation and no branch on data."""

    horizon: int = 1
    """Vector steps between two calls of ``update``."""
    extra_spec: Mapping[str, tuple[int, ...]] = {}
    """Further replay columns that ``act`` fills: name to shape per environment, float32."""
    actor_groups: tuple[str, ...] = ("policy",)
    critic_groups: tuple[str, ...] = ("policy",)
    device: torch.device
    metrics: Mapping[str, Tensor]
    """0-d metrics of the newest update, on the device; empty before the first."""
    updates: int
    """Gradient steps so far."""
    compute: Compute
    """How updates run: eager or compiled, and in which precision."""
    rank_state: tuple[str, ...] = ()
    """Entries of ``state_dict`` that are each process's own, where several learn together; the
    others are the same bits in all."""
    skips: Skips
    """Gradient steps that were left out because they were not finite."""
    reward_scaler: RewardScaler
    """Between the environments' rewards and the critic's."""
    learned: tuple[str, ...] = ()
    """Parts of ``state_dict`` that gradient steps change."""
    inherited: tuple[str, ...] = ()
    """Parts of ``state_dict`` that ``start_from`` takes over, besides the rewards' moments."""
    facts: str = ""
    """Part of ``state_dict`` that says what the weights mean where no shape does, in plain values;
    states of earlier versions lack it."""
    rate_scale: float = 1.0
    """Multiplies every learning rate."""
    remark: str = ""
    """What a run says of its agent at its start."""

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Load what learning needs and nothing else does; learning would do it by itself, later.

        Raises:
            InputError: it is not there, or not what it has to be.
        """

    def ring(self, settings: ReplaySettings) -> ReplaySettings:
        """The ring this agent wants, given what the run's settings say of it.

        Raises:
            InputError: they ask for one it cannot use.
        """
        return settings

    def check_room(self, ring: ReplayPlan) -> None:  # noqa: B027 - most rings will do
        """Refuse a ring in which learning could never begin.

        Raises:
            InputError: names the settings to turn.
        """

    def check_length(  # noqa: B027 - most will do
        self, env_steps: int, prefilled: int, unseen: int = 0
    ) -> None:
        """Refuse a run in which learning would never begin.

        Args:
            env_steps: of all processes.
            prefilled: transitions that this process's ring begins with.
            unseen: the newest steps of all processes, which updates beside the simulator miss.

        Raises:
            InputError: names the settings to turn.
        """

    @abstractmethod
    def act(self, obs: Groups, *, explore: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose actions.

        Args:
            obs: observation groups, each (N, D).
            explore: False is deterministic and changes no state.

        Returns:
            Actions (N, A) in the policy's own scale, or choices (N,) int64, and the values of
            ``extra_spec``'s columns.
        """

    @abstractmethod
    def observe(self, step: Step) -> None:
        """Update running statistics from one environment step (``envs/base.py``), warm-up too."""

    @abstractmethod
    def update(self, replay: Replay) -> Mapping[str, Tensor]:
        """Learn from the replay ring.

        Returns:
            ``metrics``: of the newest gradient step, this call's or an earlier one's; the next
            one may write over them.
        """

    def repeat(self, inputs: tuple[Tensor, ...]) -> None:
        """Take one gradient step again, of what ``skips`` noted of it."""
        raise NotImplementedError

    def roll_back(self, state: Mapping[str, Any], *, rate_factor: float) -> None:
        """Take over what was learned in another state, and multiply the learning rates.

        Counters, random streams, reward statistics and running episodes stay as they are.
        """
        self.load_state_dict(self.state_dict() | {name: state[name] for name in self.learned})
        self.rate_scale *= rate_factor
        self.skips.forget()

    def architecture(self) -> tuple[str, ...]:
        """The settings, by dotted name, by which networks mean the same to two agents."""
        return ()

    def start_from(self, state: Mapping[str, Any]) -> None:
        """Take over what another agent of this ``architecture`` had become.

        Networks, targets, the statistics that belong to them and the rewards' moments. Optimisers,
        counters, random streams and running episodes stay as they are.

        Args:
            state: of its ``state_dict()``; the number of environments may differ.

        Raises:
            InputError: the state belongs to an agent of other sizes, or settings.
        """
        own = self.state_dict()
        scaler = own["reward_scaler"] | {
            name: value for name, value in state["reward_scaler"].items() if name != "sum"
        }
        # Of several processes, what they had found together.
        scaler |= state.get("joint_rewards", {})
        taken = {name: state[name] for name in self.inherited}
        taken |= {name: state[name] for name in (self.facts,) if name in state}
        self.load_state_dict(own | taken | {"reward_scaler": scaler})

    def diagnostics(self) -> dict[str, Tensor]:
        """Further 0-d numbers on the device, computed only when a metric row is written."""
        return {}

    @abstractmethod
    def policy(self) -> nn.Module:
        """The deterministic policy as it is now, a copy that stays so.

        (B, sum of ``actor_groups``' widths) -> actions (B, A), or choices (B,) int64.
        """

    def greedy(self) -> Callable[[Groups], Tensor]:
        """``policy()`` as a function of observation groups, each (N, D), as episodes begin."""
        policy, names = self.policy(), self.actor_groups

        @torch.no_grad()
        def act(obs: Groups) -> Tensor:
            action: Tensor = policy(concat(obs, names))
            return action

        return act

    @abstractmethod
    def forget_episodes(self) -> None:
        """Every environment was reset without a step: drop per-episode memory (noise, sums)."""

    def forget_ring(self) -> None:  # noqa: B027 - what learns on-policy waits for its rollout
        """The ring starts empty: take no gradient step before it has what learning begins with."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit: nested dicts of tensors and plain values."""

    def shared_state(self) -> dict[str, Any]:
        """What of ``state_dict`` is the same bits in all processes that learn together."""
        return {
            name: part for name, part in self.state_dict().items() if name not in self.rank_state
        }

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value.

        Raises:
            InputError: the state belongs to an agent of other sizes, or settings.
        """
