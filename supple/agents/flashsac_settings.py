"""Settings of FlashSAC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from supple.agents.exploration import NoiseSettings
from supple.agents.flow_settings import MOST_LAYERS, FlowSettings
from supple.agents.remedies import RemedySettings
from supple.agents.reward_scaling import RewardScalerSettings
from supple.errors import InputError, require_rules, require_values

CRITICS = ("categorical", "scalar", "flow", "flow_official")
READ_BY = {
    "flow": ("flow", "flow_official"),
    "num_atoms": ("categorical",),
    **dict.fromkeys(
        ("critic_hidden", "critic_blocks", "critic_norm", "project_critic"), CRITICS[:3]
    ),
}
"""Settings that mean nothing to some critics, and the critics that read them."""


@dataclass(kw_only=True, slots=True)
class FlashSACSettings:
    """The class has the published values for CPU simulators; presets and recipes change them.

    ``critic="flow_official"`` goes with ``flow=flow_settings.published()`` and as many
    ``next_actions`` as that has ``target_samples``: the command line sets both by itself, a library
    user passes them.
    """

    critic: Literal["categorical", "scalar", "flow", "flow_official"] = "categorical"
    """How values are represented; actor, data and budget stay the same."""
    gamma: float = 0.99
    """Discount per environment step, in (0, 1)."""
    n_step: int = 1
    """Rewards summed before the bootstrap."""
    exact_discount: bool = True
    """Bootstrap with gamma^(steps really taken); False always uses gamma^n, as the reference."""
    batch_size: int = 512
    """Transitions per gradient step, >= 2; from each process where several learn as one."""
    utd: float = 1.0
    """Gradient steps per environment transition (update-to-data ratio), however many environments
    and processes there are. Rows that are no steps (quarantined, or where a simulator resets in the
    step after) count, too."""
    update_every: int = 1
    """Vector steps between two bouts of gradient steps; ``utd`` counts them as before."""
    min_replay: int = 10_000
    """Transitions of all processes, collected with uniform actions before learning starts."""
    symmetry: str = ""
    """``module:callable`` that mirrors the robot (docs/your-simulator.md): half of the rows then
    teach as their mirror images. Empty: none."""
    replay_age_decay: int = 0
    """Vector steps over which the sampling weight of a row would fall to 0; 0 samples uniformly."""
    replay_age_floor: float = 0.05
    """Weight that old rows keep where ``replay_age_decay`` is on, relative to the newest row's."""
    actor_hidden: int = 128
    """Width of the actor's blocks, >= 1."""
    actor_blocks: int = 2
    """Residual blocks of the actor, >= 0."""
    critic_hidden: int = 256
    """Width of each critic's blocks, >= 1; flow_official has --agent.flow.width instead."""
    critic_blocks: int = 2
    """Residual blocks of each critic, >= 0; flow_official has --agent.flow.depth instead."""
    num_critics: int = 2
    """Critic ensemble size; the target takes the smaller value."""
    next_actions: int = 1
    """Actions drawn per next state, over which the target is averaged; a flow critic's target
    samples are shared out among them. Batch norm then sees as many next states."""
    num_atoms: int = 101
    """Atoms of the categorical critic."""
    value_max: float = 5.0
    """G_max: scaled returns lie in [-value_max, value_max]."""
    project_actor: bool = True
    """Restore the actor's unit norms after each of its updates."""
    project_critic: bool = True
    """Restore the critics' unit norms after each update."""
    critic_norm: Literal["batch", "layer", "none"] = "batch"
    """Norm inside the critics' blocks; the input is always batch-normalised."""
    actor_period: int = 2
    """Critic updates per actor and temperature update; the first update is one."""
    tau: float = 0.01
    """Step of the target network's exponential average."""
    initial_temperature: float = 0.01
    """Entropy temperature alpha at the start."""
    target_std: float = 0.15
    """Action standard deviation whose Gaussian entropy is the entropy target."""
    target_entropy: float | None = None
    """Entropy target [nats]; overrides target_std."""
    lr_init: float = 3e-4
    """Learning rate that the warm-up rises from; of no effect at lr_warmup's default."""
    lr_peak: float = 3e-4
    """The learning rate: of all networks, after the warm-up, before it falls."""
    lr_end: float = 1.5e-4
    """Learning rate it falls to."""
    lr_warmup: float = 1e-6
    """Fraction of the schedule spent rising from lr_init to lr_peak."""
    lr_decay: float = 1.0
    """Fraction of the run over which the cosine falls from lr_peak to lr_end."""
    bc_alpha: float = 0.0
    """Weight of an optional behaviour-cloning term in the actor loss."""
    allow_missing_final_obs: bool = False
    """Accept environments that cannot tell the observation before a reset; time-outs then
    bootstrap from the next episode's first observation, which is wrong."""
    flow: FlowSettings = field(default_factory=FlowSettings)
    remedy: RemedySettings = field(default_factory=RemedySettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    reward_scaler: RewardScalerSettings = field(default_factory=RewardScalerSettings)

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        rules: tuple[tuple[str, bool, str], ...] = (
            ("critic", self.critic in CRITICS, f"one of {', '.join(CRITICS)}"),
            ("gamma", 0 < self.gamma < 1, "in (0, 1)"),
            ("n_step", self.n_step >= 1, ">= 1"),
            ("batch_size", self.batch_size >= 2, ">= 2 (batch norm needs two rows)"),
            ("utd", 0 < self.utd <= 1e6, "in (0, 1e6]"),
            ("update_every", self.update_every >= 1, ">= 1"),
            ("min_replay", self.min_replay >= 1, ">= 1"),
            ("replay_age_decay", self.replay_age_decay >= 0, ">= 0"),
            ("replay_age_floor", 0 < self.replay_age_floor <= 1, "in (0, 1]"),
            ("actor_hidden", self.actor_hidden >= 1, ">= 1"),
            ("actor_blocks", 0 <= self.actor_blocks <= MOST_LAYERS, f"in [0, {MOST_LAYERS}]"),
            ("critic_hidden", self.critic_hidden >= 1, ">= 1"),
            ("critic_blocks", 0 <= self.critic_blocks <= MOST_LAYERS, f"in [0, {MOST_LAYERS}]"),
            ("num_critics", self.num_critics >= 1, ">= 1"),
            ("next_actions", self.next_actions >= 1, ">= 1"),
            ("num_atoms", self.num_atoms >= 2, ">= 2"),
            ("value_max", self.value_max > 0, "> 0"),
            ("actor_period", self.actor_period >= 1, ">= 1"),
            ("tau", 0 < self.tau <= 1, "in (0, 1]"),
            ("initial_temperature", self.initial_temperature > 0, "> 0"),
            ("target_std", self.target_std > 0, "> 0"),
            ("lr_init", self.lr_init >= 0, ">= 0"),
            ("lr_peak", self.lr_peak > 0, "> 0"),
            ("lr_end", self.lr_end >= 0, ">= 0"),
            ("lr_warmup", 0 <= self.lr_warmup < 1, "in [0, 1)"),
            ("lr_decay", 0 < self.lr_decay <= 1e6, "in (0, 1e6]"),
            ("bc_alpha", self.bc_alpha >= 0, ">= 0"),
            ("remedy.weight_decay", self.remedy.weight_decay >= 0, ">= 0"),
            ("remedy.shrink_every", self.remedy.shrink_every >= 0, ">= 0"),
            ("remedy.shrink", 0 <= self.remedy.shrink < 1, "in [0, 1)"),
            ("remedy.reset_dormant_every", self.remedy.reset_dormant_every >= 0, ">= 0"),
            ("remedy.dormant_threshold", self.remedy.dormant_threshold >= 0, ">= 0"),
            ("noise.exponent", self.noise.exponent >= 0, ">= 0"),
            ("noise.max_hold", self.noise.max_hold >= 1, ">= 1"),
            ("reward_scaler.peak_decay", 0 < self.reward_scaler.peak_decay <= 1, "in (0, 1]"),
        )
        require_values(self, "--agent.")
        require_rules(self, "--agent.", rules)
        if self.critic == "flow_official" and self.remedy.reset_dormant_every:
            raise InputError(
                "--agent.remedy.reset-dormant-every works on the blocks of a trunk, and"
                " --agent.critic flow_official has none: drop the flag, or take --agent.critic flow"
            )
        if self.critic_blocks == 0 and self.remedy.reset_dormant_every:
            raise InputError(
                "--agent.remedy.reset-dormant-every works on the critic's blocks, and"
                " --agent.critic-blocks 0 leaves none: drop one of the two flags"
            )
        samples = self.flow.target_samples
        if self.critic.startswith("flow") and samples % self.next_actions:
            raise InputError(
                "--agent.next-actions must divide --agent.flow.target-samples,"
                f" got {self.next_actions} and {samples}"
            )

    def gradient_steps(self, env_steps: int, num_envs: int) -> float:
        """How many a run of so many environment steps takes, whatever ``num_envs`` is."""
        return env_steps * self.utd
