"""Aggregates over seeds, in numpy. Not here: what is aggregated."""

import numpy as np


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of [S] values, a quarter of them (rounded down) cut from each end (Agarwal et al. 2021)."""
    ordered = np.sort(np.asarray(values, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap_ci95(values: np.ndarray, resamples: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile bootstrap interval of the mean over the first axis of [S, ...]: (low [...], high [...]).

    Seeds are resampled with a fixed generator, so the interval of given values never changes (Efron & Tibshirani 1993).
    """
    values = np.asarray(values, np.float64)
    draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5], axis=0)
    return low, high
