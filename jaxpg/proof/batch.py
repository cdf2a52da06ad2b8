"""jaxpg and torch_ref on one shared batch: Ψ, losses, every gradient leaf, whole updates.

The batch is synthetic and holds every event; the parameters are drawn in numpy and go to torch
through `torch_ref.convert`. Names are torch's. Nothing here is compiled: that is the caller's part.
"""

import dataclasses
import math
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import torch_ref.algorithms
import torch_ref.config
import torch_ref.gradient
import torch_ref.learner
import torch_ref.natural
import torch_ref.penalty
import torch_ref.ppo
import torch_ref.training
import torch_ref.types
from jaxpg import core, fast
from jaxpg.core import learner, noise, training
from jaxpg.core.config import Config
from jaxpg.core.rules import validate
from jaxpg.core.types import Algorithm, Params, RewardScale, Trajectory
from jaxpg.proof import synthetic
from torch_ref import convert
from torch_ref import noise as torch_noise

CLIP = 0.02  # below the norm of every gradient on a synthetic batch, so that clipping is active
KNOWN: dict[str, Any] = {"count": np.array(1e4), "mean": np.array(0.2), "var": np.array(0.01)}
"""Moments before the batch: of so many rows, and so alike, that some of the batch is clipped."""


class Side(NamedTuple):
    """One package, ready to update."""

    config: Any
    algorithm: Any
    state: Any
    trajectory: Any


def small(config: Config) -> Config:
    """The config at the synthetic batch's size, with rates that show and a ring that wraps."""
    return dataclasses.replace(
        config,
        num_envs=synthetic.N,
        num_steps=synthetic.T,
        max_episode_steps=synthetic.T,
        total_steps=4 * synthetic.N * synthetic.T,
        total_episodes=4 * synthetic.N,  # four updates, so that the schedule shows
        buffer_size=20,  # fewer than a batch's valid rows
        batch_size=16,
        learning_rate=1e-2,
        value_learning_rate=3e-2,
        max_grad_norm=None if config.max_grad_norm is None else CLIP,
        epochs=min(config.epochs, 3),
        minibatches=synthetic.N if config.minibatched else 1,
        target_kl=None if config.target_kl is None else 0.1,  # reached in the middle of an update
    )


@cache
def parameters(config: Config, seed: int) -> Params:
    """Shared parameters: normal draws, kernels over √fan_in, all else times 0.2; numpy float64."""
    rng = np.random.default_rng([seed, 1])

    def draw(leaf: Any) -> np.ndarray:
        scale = math.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2
        return rng.normal(size=leaf.shape, scale=scale)

    params, moments = learner.apart(config, _shapes(config).params)
    params = jax.tree.map(draw, params)
    if moments:
        mean = draw(moments["obs"]["mean"])
        params["obs"] = {**KNOWN, "mean": mean, "var": np.geomspace(0.04, 2.0, len(mean))}
    return params


def reward_scale(config: Config, seed: int) -> RewardScale | None:
    """The shared scale of rewards, with episodes that go on; numpy float64."""
    if not config.normalize_reward:
        return None
    returns: Any = np.random.default_rng([seed, 4]).normal(size=config.num_envs)
    return RewardScale(returns, KNOWN)


def fields(config: Config, seed: int) -> dict[str, np.ndarray]:
    """The shared batch."""
    spec = torch_ref.algorithms.build(twin(config)).env.spec
    return synthetic.arrays(config.collect, distribution(config), seed, spec.obs_size)


def distribution(config: Config) -> str:
    """What the config's actions are distributed like, of `synthetic.OBS_SIZE`."""
    return "squashed" if config.squash else synthetic.ENVS[config.env]


def twin(config: Config) -> torch_ref.config.Config:
    """The same config as torch_ref's."""
    return torch_ref.config.Config(**dataclasses.asdict(config))


def jax_side(config: Config, seed: int = 0) -> Side:
    """jaxpg with the shared parameters, moments and batch, and all else in its state zero."""
    traced = training.as_arrays(validate(config))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _shapes(config))
    given = (parameters(config, seed), reward_scale(config, seed))
    params, scale = jax.tree.map(lambda x: jnp.asarray(x, config.float_type), given)
    key = noise.streams(noise.key(seed))[2]
    trajectory = synthetic.for_jax(fields(config, seed), config.float_type)
    algorithm = inject(fast.build(traced), trajectory)
    fit_state = algorithm.init_fit(traced, params)
    state = zeros._replace(params=params, reward_scale=scale, key=key, fit_state=fit_state)
    return Side(traced, algorithm, state, trajectory)


def torch_side(config: Config, seed: int = 0) -> Side:
    """The same of torch_ref."""
    traced = torch_ref.training.as_tensors(torch_ref.rules.validate(twin(config)))
    trajectory = synthetic.for_torch(fields(config, seed), config.float_type)
    algorithm = inject(torch_ref.algorithms.build(traced), trajectory)
    state = torch_ref.learner.init(traced, torch_noise.key(seed), algorithm)
    state.params.load_state_dict(convert.to_torch(parameters(config, seed)))
    scale = reward_scale(config, seed)
    if scale is not None:
        tensors = jax.tree.map(lambda x: torch.tensor(x, dtype=trajectory.reward.dtype), scale)
        state = state._replace(reward_scale=torch_ref.types.RewardScale(*tensors))
    return Side(traced, algorithm, state, trajectory)


def inject(algorithm: Any, trajectory: Any) -> Any:
    """The algorithm with a `collect` that returns this trajectory; of either package."""
    return algorithm._replace(collect=lambda env, act, params, state, noise: (state, trajectory))


def gradients(
    config: Config, algorithm: Algorithm, params: Params, trajectory: Trajectory
) -> tuple[dict[str, jax.Array], Params]:
    """Ψ, the value target and each objective by name; and the gradient of the objectives' sum."""
    batch = learner.estimate(config, algorithm, params, trajectory)
    params, moments = learner.apart(config, params)

    def total(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        found = _objectives(core, config, algorithm, {**params, **moments}, batch)
        return jnp.sum(jnp.stack(list(found.values()))), found

    gradient, found = jax.grad(total, has_aux=True)(params)
    return {"advantage": batch.advantage, "target": batch.target, **found}, gradient


def absolute_terms(
    config: Config, algorithm: Algorithm, params: Params, trajectory: Trajectory
) -> Params:
    """Σ |term| over the samples whose terms make up each gradient entry: what rounding scales with.

    A term is the Jacobian of one sample's network outputs, times the objective's slope in them.
    """
    networks, obs = algorithm.networks, trajectory.obs
    batch = learner.estimate(config, algorithm, params, trajectory)
    whole = params
    params, moments = learner.apart(config, params)

    def outputs(params: Params, obs: jax.Array) -> dict[str, jax.Array]:
        params = {**params, **moments}
        value = {"value": networks.value(params, obs)} if config.critic else {}
        return {"policy": networks.policy(params, obs), **value}

    def total(given: dict[str, jax.Array]) -> jax.Array:
        heads: Any = {name: lambda params, obs, name=name: given[name] for name in given}
        fixed = algorithm._replace(networks=networks._replace(**heads))
        return jnp.sum(jnp.stack(list(_objectives(core, config, fixed, whole, batch).values())))

    def term(obs: jax.Array, slope: dict[str, jax.Array]) -> Params:
        return jax.vjp(lambda params: outputs(params, obs), params)[1](slope)[0]

    slopes = jax.grad(total)(outputs(params, obs))
    samples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (obs, slopes))
    return jax.tree.map(lambda x: jnp.sum(jnp.abs(x), axis=0), jax.vmap(term)(*samples))


def torch_gradients(side: Side) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """As `gradients`, by torch's autograd; the gradient by torch's names."""
    config, algorithm, state, trajectory = side
    params = state.params
    batch = torch_ref.learner.estimate(config, algorithm, params, trajectory)
    found = _objectives(torch_ref, config, algorithm, params, batch)
    torch.stack(list(found.values())).sum().backward()
    gradient = {name: p.grad for name, p in params.named_parameters() if p.grad is not None}
    return {"advantage": batch.advantage, "target": batch.target, **found}, gradient


def _objectives(
    package: Any, config: Config, algorithm: Any, params: Any, batch: Any
) -> dict[str, Any]:
    """What each optimizer minimises, on the batch as its only minibatch; so does one that replays.
    The package is jaxpg.core or torch_ref, whose names are the same."""
    if config.normalize_over == "minibatch":
        psi = package.ppo.normalize(batch.advantage, batch.valid)  # ppo's: faults are planted there
        batch = batch._replace(advantage=psi)
    # Of π_old itself, where the KL has no slope: updates show what it does.
    penalized = partial(package.penalty.surrogate_objective, old=params, beta=config.kl_coef)
    policy = {
        "gradient": package.gradient.policy_objective,
        "npg": package.natural.surrogate_objective,
        "trpo": package.natural.surrogate_objective,
        "ppo": package.ppo.surrogate_objective,
        "ppo_penalty": penalized,
    }[config.fit]
    value = package.gradient.value_objective
    joint = package.gradient.joint_objective(policy, value)
    objectives = {"policy": policy, "value": value, "joint": joint}
    parts = ("joint",) if config.joint else ("policy", "value") if config.critic else ("policy",)
    return {
        f"{part}_objective": objectives[part](config, algorithm, params, batch)[0] for part in parts
    }


@cache
def _shapes(config: Config) -> Any:
    """jaxpg's first state as shapes, without its key: nothing is compiled."""
    traced = training.as_arrays(validate(config))
    algorithm = fast.build(traced)
    state: Any = jax.eval_shape(lambda: learner.init(traced, noise.key(0), algorithm))
    return state._replace(key=None)
