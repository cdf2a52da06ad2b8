"""Proximal policy optimisation: many steps on one batch, near the policy that acted.

    maximise E[min(ρ Ψ, clip(ρ, 1 - ε, 1 + ε) Ψ)],    ρ = π(a|s) / π_old(a|s)

An epoch goes through the batch in an order of its own, a minibatch of steps (or of whole episodes)
at a time. π_old is the policy that acted, and its probabilities are those of acting. `scan` is as
in `gradient`.

Source: Schulman et al. 2017 (arXiv:1707.06347); what implementations add to it, Huang et al. 2022,
The 37 implementation details of proximal policy optimization (ICLR blog track).
"""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp

from jaxpg.core import gradient, learner, ring
from jaxpg.core.advantages import masked_range, normalize
from jaxpg.core.config import Config
from jaxpg.core.losses import masked_mean
from jaxpg.core.types import Algorithm, Batch, Fitted, Learned, Params


def fit(
    config: Config,
    algorithm: Algorithm,
    learned: Learned,
    batch: Batch,
    *,
    policy_objective: Callable | None = None,
    value_objective: Callable | None = None,
    scan: Callable = jax.lax.scan,
) -> tuple[Learned, Fitted]:
    """`epochs` passes over the batch, each in `minibatches` steps of every optimizer.

    With `target_kl` a step that would begin further than that from π_old is left out, and all
    after it, but never the first; their gradients are 0. What is reported is a mean over the steps
    taken.

    Args:
      policy_objective, value_objective: your own, with the arguments of `surrogate_objective` and
        `gradient.value_objective`; a joint loss is made of them, too. A minibatch's Ψ is already
        normalised where `normalize_over` says so.

    Raises:
      ConfigError: if there are parameters that no loss is of.
    """
    rates = learner.rates(config, learned.update)
    learner.check_groups(learner.groups(config, learned.params))
    policy = policy_objective or surrogate_objective
    value = value_objective or gradient.value_objective
    joint = gradient.joint_objective(policy, value)
    minimised = {"policy": policy, "value": value, "joint": joint}

    def epoch(carry: tuple, round_keys: jax.Array) -> tuple[tuple, tuple]:
        return scan(step, carry, minibatches(config, batch, round_keys), length=config.minibatches)

    def step(carry: tuple, part: Batch) -> tuple[tuple, tuple]:
        params, opt_state, limit = carry
        if config.normalize_over == "minibatch":
            part = part._replace(advantage=normalize(part.advantage, part.valid))
        after, states, gradients, seen = params, {}, {}, dict[str, jax.Array]()
        for name, group in learner.groups(config, params).items():

            def objective(group: Params) -> tuple:
                whole = learner.with_group(params, name, group)
                return minimised[name](config, algorithm, whole, part)

            start = (group, opt_state[name])
            (group, state), descent = learner.descend(
                config, algorithm, rates[name], objective, start
            )
            after, states[name] = learner.with_group(after, name, group), state
            gradients[name] = descent.gradient
            seen |= {**descent.parts, NORMS[name]: descent.norm}
        taken = jnp.ones((), bool)
        if config.target_kl is not None:
            taken = ~(seen["approx_kl"] > limit)
            limit = jnp.where(taken, config.target_kl, -jnp.inf)
        kept = jax.tree.map(partial(jnp.where, taken), (after, states), (params, opt_state))
        gradients = jax.tree.map(lambda g: jnp.where(taken, g, 0.0), gradients)
        return (*kept, limit), (gradients, seen, taken)

    start = (learned.params, learned.opt_state, jnp.full((), jnp.inf, config.float_type))
    (params, opt_state, _), steps = jax.lax.scan(epoch, start, batch.order)
    gradients, seen, taken = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
    zero = jnp.zeros((), config.float_type)
    losses = {"value_loss": zero, "value_grad_norm": zero}
    losses |= {name: masked_mean(x, taken) for name, x in seen.items()}
    losses["explained_variance"] = explained_variance(batch.value, batch.target, batch.valid)
    return learned._replace(params=params, opt_state=opt_state), Fitted(losses, gradients)


def minibatches(config: Config, batch: Batch, round_keys: jax.Array) -> Batch:
    """The batch in a random order, cut into M parts of equal size.

    Args:
      round_keys: the order's random bits, uint32 [ROUNDS].

    Returns:
      Leaves [M, 1, T · N / M, ...], of single steps; of whole episodes [M, T, N / M, ...].
    """
    batch = batch._replace(samples=None, order=None)
    if config.collect == "steps":
        batch = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), batch)
    size = batch.valid.shape[1]
    index = jnp.arange(size, dtype=jnp.uint32)
    chosen = ring.permute(index, jnp.uint32(size), round_keys).astype(jnp.int32)

    def cut(x: jax.Array) -> jax.Array:
        parts = x[:, chosen].reshape(len(x), config.minibatches, -1, *x.shape[2:])
        return parts.swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def surrogate_objective(
    config: Config, algorithm: Algorithm, params: Params, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped surrogate's loss - ent_coef · entropy, and what it is made of."""
    outputs = algorithm.networks.policy(params, batch.obs)
    log_ratio = learner.log_ratio(algorithm, outputs, batch)
    clipped = clipped_ratio(log_ratio, batch.advantage, clip_coef=config.clip_coef)
    loss, parts = learner.regularized(config, algorithm, outputs, clipped, batch)
    beyond = jnp.abs(jnp.expm1(log_ratio)) > config.clip_coef
    return loss, {
        **parts,
        "approx_kl": approximate_kl(log_ratio, batch.valid),
        "clip_fraction": masked_mean(beyond.astype(loss.dtype), batch.valid),
    }


def clipped_ratio(log_ratio: jax.Array, advantage: jax.Array, *, clip_coef: float) -> jax.Array:
    """What of ρ counts: min(ρ Ψ, clip(ρ, 1 - ε, 1 + ε) Ψ) is this times Ψ.

        min(ρ, 1 + ε) where Ψ ≥ 0,    max(ρ, 1 - ε) where Ψ < 0

    Where the ratio has already gone where Ψ wants it, further than ε, its slope is 0.

    Args:
      log_ratio: log ρ, float [...].
      advantage: Ψ, float [...].
      clip_coef: ε > 0, a scalar.

    Raises:
      AssertionError: on tracing, if the shapes differ.

    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    ratio = jnp.exp(log_ratio)
    upper, lower = jnp.minimum(ratio, 1.0 + clip_coef), jnp.maximum(ratio, 1.0 - clip_coef)
    return jnp.where(advantage >= 0.0, upper, lower)


def approximate_kl(log_ratio: jax.Array, valid: jax.Array) -> jax.Array:
    """KL(π_old ‖ π) in nats, estimated by the mean over valid steps of (ρ - 1) - log ρ, which is
    never negative.

    Args:
      log_ratio: log ρ of actions that π_old took, float [...].
      valid: bool [...].

    Source: Schulman 2020, Approximating KL divergence (joschu.net); its estimator k3.
    """
    return masked_mean(jnp.expm1(log_ratio) - log_ratio, valid)


def explained_variance(value: jax.Array, target: jax.Array, valid: jax.Array) -> jax.Array:
    """1 - Var(target - V) / Var(target) over valid steps; 0 where the target does not vary.

    Args:
      value: V(s) before the fit, float [...].
      target: float [...].
      valid: bool [...].
    """

    def variance(x: jax.Array) -> jax.Array:
        return masked_mean((x - masked_mean(x, valid)) ** 2, valid)

    least, largest = masked_range(target, valid)
    varies = largest > least  # the variance, rounded, is not 0 where they are equal
    whole = jnp.where(varies, variance(target), 1.0)
    return jnp.where(varies, 1.0 - variance(target - value) / whole, 0.0)


NORMS = {
    "policy": "policy_grad_norm",
    "value": "value_grad_norm",
    "joint": "policy_grad_norm",
}
