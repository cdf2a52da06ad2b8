"""Faults of the running moments that observations and rewards are scaled by."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from jaxpg.proof.faults.plants import Plant, of, parts, wrap
from torch_ref import learner, statistics


def _moments(change: Callable[..., Any]) -> Plant:
    """The moments with a batch among them become change(the original, moments, x, valid)."""
    return wrap(statistics, "merge", change)


def variance_with_ddof_1() -> Plant:
    """A batch's variance is the one that torch.var gives."""

    def merge(original: Callable, moments: Any, x: torch.Tensor, valid: torch.Tensor) -> Any:
        found, count = original(moments, x, valid), valid.sum()
        more = x[valid].var(0) - x[valid].var(0, correction=0)
        return {**found, "var": found["var"] + count / found["count"] * more}

    return _moments(merge)


def distance_of_the_means_forgotten() -> Plant:
    """The variance is the mean of the two variances, however far the means are apart."""

    def merge(original: Callable, moments: Any, x: torch.Tensor, valid: torch.Tensor) -> Any:
        found = original(moments, x, valid)
        weight, shift = valid.sum() / found["count"], x[valid].mean(0) - moments["mean"]
        return {**found, "var": found["var"] - weight * (1.0 - weight) * shift * shift}

    return _moments(merge)


def padding_among_the_observations() -> Plant:
    """The zeros after an episode's end are counted as observations, and as returns."""
    return _moments(lambda original, moments, x, valid: original(moments, x, valid | ~valid))


def moments_of_the_last_batch_alone() -> Plant:
    """What was met before the batch is forgotten."""

    def merge(original: Callable, moments: Any, x: torch.Tensor, valid: torch.Tensor) -> Any:
        found = original({**moments, "count": torch.zeros_like(moments["count"])}, x, valid)
        return {**found, "count": moments["count"] + found["count"]}

    return _moments(merge)


def learned_with_the_moments_that_follow() -> Plant:
    """The batch's own moments normalise it where it is learned from, and not where it was met."""

    def learn(config: Any, algorithm: Any, learned: Any, trajectory: Any, *rest: Any) -> Any:
        moments = learned.params["obs"]
        before = {name: x.clone() for name, x in moments.items()}
        _place(moments, statistics.merge(moments, trajectory.obs, trajectory.valid))
        found = learner.learn(config, algorithm, learned, trajectory, *rest)
        _place(moments, before)
        return found

    return parts(lambda algorithm: {"learn": learn})


def _place(moments: Any, values: Any) -> None:
    for name, x in values.items():
        moments[name].copy_(x)


def successors_not_normalised() -> Plant:
    """V(s_{t+1}) is that of the observation as it is."""

    def estimate(original: Callable, config: Any, algorithm: Any, params: Any, t: Any) -> Any:
        moments = params["obs"]
        raw = t.next_obs * (moments["var"] + statistics.EPSILON).sqrt() + moments["mean"]
        return original(config, algorithm, params, t._replace(next_obs=raw))

    return wrap(learner, "estimate", estimate)


def observations_not_clipped() -> Plant:
    """However far from their mean, observations are what they are."""
    return _unclipped("normalize_obs")


def rewards_not_clipped() -> Plant:
    """However large for the returns' deviation, rewards are what they are."""
    return _unclipped("scale_reward")


def _unclipped(name: str) -> Plant:
    def unclipped(original: Callable, *inputs: Any, **coefficients: Any) -> Any:
        with mock.patch.object(statistics, "CLIP", float("inf")):
            return original(*inputs, **coefficients)

    return wrap(statistics, name, unclipped)


def epsilon_outside_the_root() -> Plant:
    """Observations are divided by σ + ε instead of √(σ² + ε)."""

    def normalize(original: Callable, moments: Any, obs: torch.Tensor) -> torch.Tensor:
        var = (moments["var"].sqrt() + statistics.EPSILON) ** 2 - statistics.EPSILON
        return original({**moments, "var": var}, obs)

    return wrap(statistics, "normalize_obs", normalize)


def returns_without_a_discount() -> Plant:
    """The returns that rewards are scaled by are plain sums."""
    return wrap(
        statistics, "return_so_far", lambda original, *inputs, gamma: original(*inputs, gamma=1.0)
    )


def returns_that_begin_with_the_update() -> Plant:
    """What an episode has brought before this update is not in its return."""
    return wrap(
        statistics,
        "return_so_far",
        lambda original, reward, done, start, **rest: original(reward, done, 0.0 * start, **rest),
    )


def returns_that_go_on_after_the_end() -> Plant:
    """An episode's return begins with that of the one before it."""
    return wrap(
        statistics,
        "return_so_far",
        lambda original, reward, done, start, **rest: original(reward, done & ~done, start, **rest),
    )


def rewards_less_their_mean() -> Plant:
    """The mean of the returns is subtracted from each reward."""

    def scale(original: Callable, scale: Any, t: Any, **rest: Any) -> Any:
        following, scaled = original(scale, t, **rest)
        mean, var = following.moments["mean"], following.moments["var"]
        return following, scaled._replace(reward=scaled.reward - mean / var.sqrt())

    return wrap(statistics, "scale_reward", scale)


def rewards_scaled_by_what_was_before() -> Plant:
    """The returns of an update do not scale its own rewards."""

    def scale(original: Callable, scale: Any, t: Any, **rest: Any) -> Any:
        following, _ = original(scale, t, **rest)
        with mock.patch.object(statistics, "merge", lambda moments, *rows: moments):
            return following, original(scale, t, **rest)[1]

    return wrap(statistics, "scale_reward", scale)


def moments_off_the_grid() -> Plant:
    """The moments of observations are not rounded to float32."""

    def build(algorithm: Any) -> dict[str, Any]:
        return {"rounded": lambda tree: tree if isinstance(tree, dict) else algorithm.rounded(tree)}

    return parts(build)


FAULTS = (
    *of("moments", variance_with_ddof_1, distance_of_the_means_forgotten),
    *of("moments of episodes", padding_among_the_observations),
    *of(
        "moments",
        moments_of_the_last_batch_alone,
        learned_with_the_moments_that_follow,
        successors_not_normalised,
        observations_not_clipped,
        rewards_not_clipped,
        epsilon_outside_the_root,
    ),
    *of("moments of episodes", returns_without_a_discount),
    *of(
        "moments",
        returns_that_begin_with_the_update,
        returns_that_go_on_after_the_end,
        rewards_less_their_mean,
        rewards_scaled_by_what_was_before,
        moments_off_the_grid,
    ),
)
