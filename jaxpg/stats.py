"""Statistics over seeds: robust location and bootstrap intervals. numpy and scipy only."""

import numpy as np
from scipy import stats

RESAMPLES = 2_000
SOLVED = {  # the mean return of 100 episodes that gymnasium calls solved
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
}


def iqm(x: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean: the mean of the middle half.

    Args:
      x: one score per seed along `axis`.

    Source: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice
    (arXiv:2108.13264).
    """
    return stats.trim_mean(x, 0.25, axis=axis)


def iqm_interval(x: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile-bootstrap interval of the IQM over seeds (axis 0).

    Args:
      x: scores, [S, ...].
      confidence: coverage, in (0, 1).

    Returns:
      Low and high, [...] each; both are the IQM itself for a single seed.
    """
    if len(x) == 1:
        return iqm(x), iqm(x)
    result = stats.bootstrap(
        (x,),
        iqm,
        axis=0,
        n_resamples=RESAMPLES,
        batch=max(1, min(100, 10**7 // x.size)),  # at most 80 MB of resamples at a time
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),  # the same data give the same interval
    )
    return result.confidence_interval.low, result.confidence_interval.high
