"""Confidence intervals of a mean from few values."""

from __future__ import annotations

import math

from supple.errors import InputError

# 97.5 % quantiles of Student's t for 1, 2, … 30 degrees of freedom.
_T975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_Z975 = 1.959964


def t975(freedom: int) -> float:
    """97.5 % quantile of Student's t; beyond 30 degrees by a series, right to 1e-4.

    Raises:
        InputError: ``freedom`` below 1, as of a single value.
    """
    if freedom < 1:
        raise InputError(f"Student's t needs 1 degree of freedom, got {freedom}: give more values")
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z = _Z975
    first = (z**3 + z) / (4 * freedom)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def half_width95(std: float, count: int) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t; 0 for one value.

    Args:
        std: sample standard deviation.
        count: how many values.
    """
    return t975(count - 1) * std / math.sqrt(count) if count > 1 else 0.0
