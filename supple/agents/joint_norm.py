"""Standardisation by the rows of every process, with the gradient through the shared statistics.

Shapes: ``M`` rows of this process, the same number in all, ``F`` features.
Source: torch's SyncBatchNorm, which is made for GPUs alone; Ioffe & Szegedy, arXiv:1502.03167.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supple.distributed import mean_over_ranks


class _Standardised(torch.autograd.Function):
    @staticmethod
    def forward(x_MF: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own_var, own_mean = torch.var_mean(x_MF, 0, correction=0)
        mean, var = own_mean.double(), own_var.double()
        # One exchange. In float64 the squares of means may cancel.
        mean, square = mean_over_ranks(torch.stack((mean, var + mean.square()))).unbind()
        var = (square - mean.square()).clamp_min(0).to(x_MF.dtype)
        mean = mean.to(x_MF.dtype)
        root = torch.rsqrt(var + eps)
        return (x_MF - mean) * root, mean, var, root

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, ...]) -> None:
        normal_MF, mean, var, root = output
        ctx.mark_non_differentiable(mean, var, root)
        ctx.save_for_backward(normal_MF, root)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (normal_MF, root), gradient_MF = ctx.saved_tensors, gradients[0]
        own = torch.stack((gradient_MF.mean(0), (gradient_MF * normal_MF).mean(0)))
        mean, along = mean_over_ranks(own).unbind()
        return root * (gradient_MF - mean - normal_MF * along), None


def standardised(x_MF: Tensor, *, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(var + eps) over the rows of all processes.

    Its gradient is that of the sum of all processes' losses.

    Args:
        x_MF: this process's rows, float32.
        eps: added to the variance.

    Returns:
        The rows, (M, F), and their mean and population variance, (F,) each, without gradient.
    """
    normal_MF, mean, var, _ = _Standardised.apply(x_MF, eps)
    return normal_MF, mean, var
