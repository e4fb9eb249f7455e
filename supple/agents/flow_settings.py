"""Settings of the flow critics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from supple.errors import require_rules, require_values
from supple.kernels.critic_integration.reference import LEAST_SIGMA

MOST_LAYERS = 1000
"""More than any network in use: nobody's settings may fill the memory layer by layer."""


@dataclass(kw_only=True, slots=True)
class FlowSettings:
    """The class has the values of ``--agent.critic flow``, ``published()`` those of flow_official.

    The command line takes those of the critic it is given. Values are in scaled reward units, in
    [-G, G] with G = ``--agent.value-max``.
    """

    width: int = 256
    """Hidden width H of the velocity network."""
    depth: int = 2
    """Hidden layers L of the velocity network."""
    activation: Literal["relu", "gelu"] = "relu"
    """Of the velocity network; gelu in its tanh form."""
    norm: Literal["rms", "layer"] = "rms"
    """Of the velocity network; before each activation in ``flow``, behind it in the other."""
    kappa: float = 0.1
    """Width of the noise interval relative to that of the value range, in (0, 1]."""
    noise_rule: Literal["scaled", "paper"] = "scaled"
    """scaled: the value range shrunk towards 0; paper: an interval ending at the largest value."""
    target_steps: int = 8
    """Euler steps K of the bootstrap target (and of what a distilled critic regresses onto)."""
    read_steps: int = 4
    """Euler steps K of the value the actor climbs."""
    target_samples: int = 8
    """Noise samples M averaged in a target."""
    train_samples: int = 8
    """Noise samples M per transition in the velocity loss."""
    read_samples: int = 2
    """Noise samples M averaged in the value the actor climbs."""
    value_encoding: Literal["hlgauss", "scalar"] = "hlgauss"
    """How the velocity network reads the flow state."""
    table_points: int = 257
    """Grid points between which an integration interpolates what the first layer makes of a state;
    0 encodes every state exactly."""
    edges: int = 51
    """Edges of the hlgauss bins, one more than bins."""
    sigma_bins: float = 16.0
    """Standard deviation of the hlgauss encoding [bins]."""
    support_margin: float = 0.02
    """How far the encoding's support reaches beyond the value range, relative to G."""
    time_encoding: Literal["fourier", "cos_rep", "cos"] = "fourier"
    """fourier: as the paper describes; cos: as the released code; cos_rep: its first release."""
    time_features: int = 64
    """Numbers of the fourier and cos_rep encodings."""
    aggregate: Literal["min", "mean"] = "min"
    """Over members, for each noise sample, before samples are averaged."""
    backup: Literal["expected", "distributional"] = "expected"
    """expected: one target per transition; distributional: one per noise sample."""
    predict: Literal["velocity", "endpoint"] = "velocity"
    """endpoint is the control without velocities."""
    train_time: Literal["uniform", "zero"] = "uniform"
    """zero is the control without dense supervision; it reads in one step."""
    readout: Literal["distilled", "integrate", "one_step", "last_step"] = "integrate"
    """What the actor climbs: a network distilled from the flow, or the flow with the gradient
    through all its steps, through a single step from the noise, or through the last step only."""
    reduction: Literal["mean", "sum"] = "mean"
    """Of the velocity loss over noise samples."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        self.check()

    def check(self) -> None:
        """Refuse values that cannot work, also after fields were changed.

        Raises:
            InputError: names the flag.
        """
        require_values(self, "--agent.flow.")
        least = LEAST_SIGMA * (self.edges - 1) if self.value_encoding == "hlgauss" else 0.0
        one_step = self.target_steps == self.read_steps == 1
        same = self.target_samples == self.train_samples
        rules: tuple[tuple[str, bool, str], ...] = (
            ("width", self.width >= 1, ">= 1"),
            ("depth", 2 <= self.depth <= MOST_LAYERS, f"in [2, {MOST_LAYERS}]"),
            ("kappa", 0 < self.kappa <= 1, "in (0, 1]"),
            ("target_steps", self.target_steps >= 1, ">= 1"),
            ("read_steps", self.read_steps >= 1, ">= 1"),
            ("target_samples", self.target_samples >= 1, ">= 1"),
            ("train_samples", self.train_samples >= 1, ">= 1"),
            ("read_samples", self.read_samples >= 1, ">= 1"),
            ("table_points", self.table_points >= 0 and self.table_points != 1, "0 or >= 2"),
            ("edges", self.edges >= 3, ">= 3"),
            ("sigma_bins", self.sigma_bins >= least, f">= {least:g}, a fifth of the bins"),
            ("support_margin", self.support_margin >= 0, ">= 0"),
            ("time_features", self.time_features >= 1, ">= 1"),
            (
                "train_time",
                self.train_time == "uniform" or one_step,
                "uniform, or zero with target_steps and read_steps 1",
            ),
            (
                "readout",
                self.readout != "last_step" or self.predict == "velocity",
                "distilled, integrate or one_step where end points are predicted",
            ),
            (
                "backup",
                self.backup == "expected" or same,
                "expected, or distributional with target_samples equal to train_samples",
            ),
        )
        require_rules(self, "--agent.flow.", rules)


def published() -> FlowSettings:
    """What CMU-AIRe/floq trains with (arXiv:2509.06863), but for the time encoding.

    The code reads time as cos(t), the paper says Fourier features; ``fourier`` fits better.
    """
    return FlowSettings(
        width=512,
        depth=4,
        activation="gelu",
        norm="layer",
        table_points=0,
        read_steps=8,
        read_samples=8,
        aggregate="mean",
        readout="distilled",
        reduction="sum",
    )
