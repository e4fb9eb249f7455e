"""The matrices of ``toy/lqr`` and its known answers.

The system is ``x' = A x + B u``, the reward ``-(x^T Q x + u^T R u)``. Legend of shape suffixes:
``S`` states (2), ``A`` controls (1).
"""

from __future__ import annotations

import torch
from torch import Tensor

LQR_A = ((0.95, 0.2), (-0.2, 0.9))
LQR_B = ((0.0,), (0.25,))
LQR_Q = ((1.0, 0.0), (0.0, 0.1))
LQR_R = ((0.1,),)
_LQR_SETTLED = 2000
"""Backward steps after which the infinite-horizon recursion has long stopped changing."""


def riccati(discount: float = 1.0, steps: int | None = None) -> tuple[Tensor, Tensor]:
    """The optimal cost and gain of ``toy/lqr`` by the discrete Riccati recursion.

    Args:
        discount: factor per step, 0 < discount <= 1.
        steps: steps left in the horizon; None is the infinite horizon, finite for discount 1 too
            because the system is stable.

    Returns:
        ``P`` (S, S) and ``K`` (A, S), float64 on the CPU: the discounted cost to go is ``x^T P x``
        and the best control now is ``u = -K x``.

    Source: D. Bertsekas, Dynamic Programming and Optimal Control, vol. 1, section 3.1, on the
        system (sqrt(discount) A, sqrt(discount) B).
    """
    a, b, q, r = _matrices()
    p, k = torch.zeros_like(q), torch.zeros_like(b.T)
    for _ in range(_LQR_SETTLED if steps is None else steps):
        k = torch.linalg.solve(r + discount * b.T @ p @ b, discount * b.T @ p @ a)
        p = q + discount * a.T @ p @ (a - b @ k)
    return p, k


def lyapunov(gain_AS: Tensor, discount: float = 1.0, steps: int | None = None) -> Tensor:
    """The cost matrix of the policy ``u = -K x`` on ``toy/lqr``: its return is ``-x^T P x``.

    Args:
        gain_AS: ``K`` (A, S); the closed loop must be stable for an infinite horizon.
        discount: factor per step.
        steps: steps in the horizon; None is infinite.

    Returns:
        ``P`` (S, S), float64 on the CPU.
    """
    a, b, q, r = _matrices()
    k = gain_AS.to("cpu", torch.float64)
    p = torch.zeros_like(q)
    for _ in range(_LQR_SETTLED if steps is None else steps):
        p = q + k.T @ r @ k + discount * (a - b @ k).T @ p @ (a - b @ k)
    return p


def _matrices() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, q, r = (torch.tensor(m, dtype=torch.float64) for m in (LQR_A, LQR_B, LQR_Q, LQR_R))
    return a, b, q, r
