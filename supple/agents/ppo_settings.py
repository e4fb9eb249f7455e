"""Settings of PPO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from supple.errors import InputError, require_rules, require_values


@dataclass(kw_only=True, slots=True)
class PPOSettings:
    """The class has rsl_rl's values for Isaac Lab; presets and recipes change them."""

    gamma: float = 0.99
    """Discount per environment step, in (0, 1)."""
    gae_lambda: float = 0.95
    """Weight of longer advantage estimates, in [0, 1]."""
    rollout_steps: int = 24
    """Vector steps between two learning phases."""
    epochs: int = 5
    """Passes over each rollout."""
    minibatches: int = 4
    """Gradient steps per pass, each from a minibatch of every process where several learn as one;
    rows that do not divide evenly sit out a pass."""
    clip: float = 0.2
    """The probability ratio is clipped to 1 - clip ... 1 + clip."""
    clip_value: bool = True
    """Clip the value's change too, by the same number."""
    value_coef: float = 1.0
    """Weight of the squared value error."""
    entropy_coef: float = 0.005
    """Weight of the entropy bonus."""
    max_grad_norm: float = 1.0
    """Each network's gradient is scaled down to this norm; 0 does not clip."""
    weight_decay: float = 0.0
    """Weights, but not biases, shrink by this times the learning rate at each step, as in AdamW."""
    lr: float = 1e-3
    """Adam's learning rate, at the start."""
    lr_schedule: Literal["adaptive", "linear", "fixed"] = "adaptive"
    """adaptive keeps the divergence of a step near desired_kl, itself in [1e-5, 1e-2] unless lr is
    not; linear falls to 0 at the run's end, the new end where a run is extended."""
    desired_kl: float = 0.01
    """KL divergence per learning phase that the adaptive rate aims at [nats]."""
    kl_stop: float = 0.0
    """Leave out the rest of a learning phase once the divergence exceeds this [nats]; 0 never."""
    normalise_obs: bool = True
    """Subtract mean and divide by standard deviation of all observations so far."""
    normalise_reward: bool = False
    """Divide rewards by the standard deviation of the running discounted reward sum."""
    normalise_advantage: Literal["rollout", "minibatch", "off"] = "rollout"
    """Over which rows advantages get mean 0 and standard deviation 1."""
    distribution: Literal["gaussian", "squashed"] = "gaussian"
    """Of continuous actions: gaussian is unbounded and clipped by the environment, squashed goes
    through tanh. Discrete actions are categorical."""
    std: Literal["shared", "state"] = "shared"
    """Whether one standard deviation per action serves all states, or the network says it."""
    initial_std: float = 1.0
    """Standard deviation of actions at the start, in [0.001, 10]."""
    actor_hidden: tuple[int, ...] = (256, 128, 64)
    """Widths of the actor's hidden layers."""
    critic_hidden: tuple[int, ...] = (256, 128, 64)
    """Widths of the critic's hidden layers."""
    activation: Literal["elu", "relu", "tanh"] = "elu"
    """Between layers."""
    memory: int = 0
    """Width of a GRU in front of actor and critic each; 0 has none."""
    sequence_steps: int = 0
    """Steps through which a memory is trained; 0 is the whole rollout, which it must divide. More
    than 32 are not compiled, which would take minutes."""
    privileged: bool = True
    """Whether the critic sees the observation group ``critic``, where there is one."""
    timeout_bootstrap: Literal["auto", "final", "pre_step"] = "auto"
    """The state whose value a time-out adds: the final one, or the one before the last step, as
    rsl_rl does. auto takes pre_step only where the simulator cannot tell the final one."""
    symmetry: str = ""
    """``module:callable`` that mirrors the robot (docs/your-simulator.md): half of the rows then
    teach as their mirror images. Empty: none."""
    reshuffle: bool = True
    """Draw new minibatches for each pass; False goes through the same ones again, as rsl_rl."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        rules: tuple[tuple[str, bool, str], ...] = (
            ("gamma", 0 < self.gamma < 1, "in (0, 1)"),
            ("gae_lambda", 0 <= self.gae_lambda <= 1, "in [0, 1]"),
            ("rollout_steps", self.rollout_steps >= 2, ">= 2"),
            ("epochs", self.epochs >= 1, ">= 1"),
            ("minibatches", self.minibatches >= 1, ">= 1"),
            ("clip", self.clip > 0, "> 0"),
            ("value_coef", self.value_coef >= 0, ">= 0"),
            ("entropy_coef", self.entropy_coef >= 0, ">= 0"),
            ("max_grad_norm", self.max_grad_norm >= 0, ">= 0"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("lr", self.lr > 0, "> 0"),
            ("desired_kl", self.desired_kl > 0, "> 0"),
            ("kl_stop", self.kl_stop >= 0, ">= 0"),
            ("initial_std", 1e-3 <= self.initial_std <= 10, "in [0.001, 10]"),
            ("actor_hidden", min(self.actor_hidden, default=1) >= 1, "widths >= 1"),
            ("critic_hidden", min(self.critic_hidden, default=1) >= 1, "widths >= 1"),
            ("memory", self.memory >= 0, ">= 0"),
            ("sequence_steps", self.sequence_steps >= 0, ">= 0"),
        )
        require_values(self, "--agent.")
        require_rules(self, "--agent.", rules)
        if self.sequence_steps and self.rollout_steps % self.sequence_steps:
            raise InputError(
                f"--agent.sequence-steps must divide --agent.rollout-steps {self.rollout_steps},"
                f" got {self.sequence_steps}"
            )

        if self.symmetry and self.memory:
            raise InputError(
                "--agent.symmetry needs --agent.memory 0: what a memory holds has no mirror image"
            )

    def gradient_steps(self, env_steps: int, num_envs: int) -> float:
        """How many a run of so many environment steps takes."""
        rollouts = math.ceil(env_steps / (self.rollout_steps * num_envs))
        return rollouts * self.epochs * self.minibatches
