"""Integrating a batch of value flows through a velocity network."""

from supple.kernels.critic_integration.operator import critic_integration
from supple.kernels.critic_integration.reference import (
    Field,
    Form,
    ValueEncoding,
    after_first_layer,
    euler,
    first_layer,
    hidden_layers,
    integrate,
    on_grid,
    path,
    time_features,
    velocity,
)

__all__ = [
    "Field",
    "Form",
    "ValueEncoding",
    "after_first_layer",
    "critic_integration",
    "euler",
    "first_layer",
    "hidden_layers",
    "integrate",
    "on_grid",
    "path",
    "time_features",
    "velocity",
]
