"""Statistics of few runs: what can be said of an algorithm from three seeds, and how surely.

Scores are given by task, one number per run. Resampling is stratified: each task's runs are drawn
from that task's only. Source: Agarwal et al. 2021, arXiv:2108.13264, and their
``google-research/rliable``, whose trimming and profiles these are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Scores = Sequence[np.ndarray]
"""One array per task: (R,), or (S, R) with ``S`` resamples in front."""

RESAMPLES = 2_000
TRIMMED = 0.25


def interquartile_mean(scores: Scores) -> np.ndarray:
    """Mean of the middle half of all runs; up to three runs, of all of them."""
    runs = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    cut = int(TRIMMED * runs.shape[-1])
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(-1))


def mean(scores: Scores) -> np.ndarray:
    """Mean over tasks of the means over runs."""
    return np.asarray(np.mean([runs.mean(-1) for runs in scores], axis=0))


def median(scores: Scores) -> np.ndarray:
    """Median over tasks of the means over runs; over runs where there is one task."""
    if len(scores) == 1:
        return np.asarray(np.median(scores[0], axis=-1))
    return np.asarray(np.median([runs.mean(-1) for runs in scores], axis=0))


def difference(ours: Scores, theirs: Scores) -> np.ndarray:
    """The mean of ours less that of theirs."""
    return np.asarray(mean(ours) - mean(theirs))


def improvement(ours: Scores, theirs: Scores) -> np.ndarray:
    """Probability that a run of ours is better than one of theirs, mean over tasks; ties half."""
    shares = []
    for x, y in zip(ours, theirs, strict=True):
        higher = x[..., :, None] - y[..., None, :]
        shares.append(((higher > 0) + 0.5 * (higher == 0)).mean((-2, -1)))
    return np.asarray(np.mean(shares, axis=0))


def profile(scores: Scores, levels: np.ndarray) -> np.ndarray:
    """Share of runs above each level, mean over tasks: (P,), or (S, P)."""
    return np.asarray(np.mean([(r[..., None] > levels).mean(-2) for r in scores], axis=0))


def resampled(scores: Scores, random: np.random.Generator) -> list[np.ndarray]:
    """Every task's runs drawn with replacement, ``RESAMPLES`` times: (S, R) each."""
    return [random.choice(runs, (RESAMPLES, len(runs))) for runs in scores]


def interval95(statistic: Callable[..., np.ndarray], *groups: Scores) -> tuple[Any, Any]:
    """95 % percentile interval of a statistic under the stratified bootstrap; the same every time.

    Args:
        statistic: of as many groups of scores as are given.
        groups: of different algorithms, resampled apart.

    Returns:
        Both ends, of the statistic's shape; the value itself twice if no task has two runs.
    """
    random = np.random.default_rng(0)
    values = statistic(*(resampled(each, random) for each in groups))
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    return low, high
