"""What ``critic_integration`` refuses, before any kernel runs.

Shapes: as in ``reference.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.errors import InputError
from supple.kernels.critic_integration.reference import Field, Form


def require_inputs(
    field: Field, form: Form, start_EBM: Tensor, condition: Tensor, time_KEH: Tensor
) -> None:
    """Refuse what does not belong together.

    Raises:
        InputError: names the tensor.
    """
    weights = {f"field.{name}": part for name, part in field._asdict().items() if part is not None}
    inputs = {"noise": start_EBM, "condition": condition, "time": time_KEH}
    _require_one_kind(weights | inputs, field.out_EH)
    axes = {"noise": 3, "time": 3, "field.out_EH": 2, "field.hidden_LEHH": 4}
    for name, count in axes.items():
        given = (weights | inputs)[name]
        if given.dim() != count:
            raise InputError(
                f"critic_integration: {name} must have {count} axes, got {tuple(given.shape)}"
            )
    (members, width), (rows, samples) = field.out_EH.shape, start_EBM.shape[1:]
    _require_shapes(weights, _field_shapes(field, form))
    _require_shapes(
        inputs,
        {
            "noise": ((1, rows, samples), (members, rows, samples)),
            "condition": (
                (members, rows, width),
                (members, rows, samples, width),
                (members, rows, 1, width),
            ),
            "time": ((max(1, len(time_KEH)), members, width),),
        },
    )


def require_options(table_points: int, products: torch.dtype | None) -> None:
    """Refuse tables without an interval and products of integers.

    Raises:
        InputError: names the option.
    """
    if table_points < 0 or table_points == 1:
        raise InputError(f"table_points must be 0 (exact) or >= 2, got {table_points}")
    if products is not None and not products.is_floating_point:
        raise InputError(f"products must be a floating dtype, got {products}")


def _require_one_kind(tensors: dict[str, Tensor], like: Tensor) -> None:
    """One floating dtype and one device; of CUDA float32, as the kernels compute."""
    dtype, device = like.dtype, like.device
    if not dtype.is_floating_point or (device.type == "cuda" and dtype != torch.float32):
        allowed = "float32" if device.type == "cuda" else "a floating dtype"
        raise InputError(f"critic_integration: weights on {device} must be {allowed}, got {dtype}")
    for name, given in tensors.items():
        if given.dtype != dtype or given.device != device:
            raise InputError(
                f"critic_integration: {name} must be {dtype} on {device}, as field.out_EH is, got"
                f" {given.dtype} on {given.device}"
            )


def _field_shapes(field: Field, form: Form) -> dict[str, tuple[tuple[int, ...], ...]]:
    (members, width), depth = field.out_EH.shape, len(field.hidden_LEHH) + 1
    norms = (depth + form.norm_first, members, width)
    return {
        "field.value_EHZ": ((members, width, form.encoding.features),),
        "field.hidden_LEHH": ((depth - 1, members, width, width),),
        "field.bias_LEH": ((depth - 1, members, width),),
        "field.gain_LEH": (norms,),
        "field.shift_LEH": (norms,),
        "field.out_EH": ((members, width),),
        "field.out_bias_E": ((members,),),
    }


def _require_shapes(
    tensors: dict[str, Tensor], expected: dict[str, tuple[tuple[int, ...], ...]]
) -> None:
    for name, given in tensors.items():
        if tuple(given.shape) not in expected[name]:
            shapes = " or ".join(map(str, expected[name]))
            raise InputError(
                f"critic_integration: {name} must be {shapes}, got {tuple(given.shape)}"
            )
