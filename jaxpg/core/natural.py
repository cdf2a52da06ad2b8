"""Natural gradients: steps whose length is measured between policies, not between parameters.

    g = ∇L(θ),    F = E[∇ log π ∇ log πᵀ],    x = (F + c I)⁻¹ g

F is the Fisher matrix, the curvature of the mean KL(π_old ‖ π) at π = π_old. It is never written
down: conjugate gradients find x from products with it. NPG goes -α x. TRPO goes along -x as far as
a bound on the KL allows, and not at all where that does not improve the policy. `scan` is as in
`gradient`.

Source: Kakade 2001, A natural policy gradient (NIPS 14); Schulman et al. 2015 (arXiv:1502.05477).
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxpg.core import gradient, learner
from jaxpg.core.config import Config
from jaxpg.core.losses import masked_mean
from jaxpg.core.rules import MOST_CG_STEPS
from jaxpg.core.types import Algorithm, Batch, Fitted, Learned, Params

RESIDUAL = 1e-10  # |r|² at which conjugate gradients stop, as in OpenAI Baselines
SHRINK = 0.8  # from one attempt of the line search to the next, as in Spinning Up


def fit_npg(
    config: Config,
    algorithm: Algorithm,
    learned: Learned,
    batch: Batch,
    *,
    scan: Callable = jax.lax.scan,
) -> tuple[Learned, Fitted]:
    """θ - α_u x, then value_steps steps of the critic (if there is one)."""
    params = learned.params
    found = natural_gradient(config, algorithm, params, batch)
    rate = learner.rates(config, learned.update)["policy"]
    after = placed(algorithm, params, as_vector(params) - rate * found.direction)
    kl = mean_kl(algorithm, algorithm.networks.policy(params, batch.obs), after, batch)
    learned, critic = gradient.fit_value(config, algorithm, learned, batch, scan=scan)
    return _together(learned, after, found, {"kl": kl}, critic)


def fit_trpo(
    config: Config,
    algorithm: Algorithm,
    learned: Learned,
    batch: Batch,
    *,
    scan: Callable = jax.lax.scan,
) -> tuple[Learned, Fitted]:
    """The longest step along -x that is good enough, then value_steps steps of the critic (if there
    is one)."""
    params = learned.params
    found = natural_gradient(config, algorithm, params, batch)
    step = step_length(found.curvature, max_kl=config.max_kl) * found.direction
    after, told = line_search(config, algorithm, params, batch, step)
    learned, critic = gradient.fit_value(config, algorithm, learned, batch, scan=scan)
    return _together(learned, after, found, told, critic)


class Natural(NamedTuple):
    """A natural gradient, and what it was found from; P parameters."""

    parts: dict[str, jax.Array]  # of the objective, by name
    gradient: Params  # g
    norm: jax.Array  # |g|
    direction: jax.Array  # x [P]
    curvature: jax.Array  # xᵀ (F + c I) x


def natural_gradient(config: Config, algorithm: Algorithm, params: Params, batch: Batch) -> Natural:
    """x = (F + c I)⁻¹ g with c = `damping`, as far as `cg_steps` steps find it."""

    def objective(policy: Params) -> tuple:
        return surrogate_objective(config, algorithm, {**params, "policy": policy}, batch)

    gradient, parts = jax.grad(objective, has_aux=True)(params["policy"])
    g, _ = ravel_pytree(gradient)
    fisher = fisher_product(algorithm, params, batch)

    def product(vector: jax.Array) -> jax.Array:
        return fisher(vector) + config.damping * vector

    x = conjugate_gradients(product, g, steps=config.cg_steps)
    return Natural(parts, gradient, jnp.sqrt(dot(g, g)), x, dot(x, product(x)))


def surrogate_objective(
    config: Config, algorithm: Algorithm, params: Params, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of ρ = π(a|s) / π_old(a|s) in the place of log π - ent_coef · entropy, and the two
    apart."""
    outputs = algorithm.networks.policy(params, batch.obs)
    ratio = jnp.exp(learner.log_ratio(algorithm, outputs, batch))
    return learner.regularized(config, algorithm, outputs, ratio, batch)


def mean_kl(
    algorithm: Algorithm, old_outputs: jax.Array, params: Params, batch: Batch
) -> jax.Array:
    """KL(π_old ‖ π) in nats, its mean over valid steps.

    Args:
      old_outputs: of the policy network, which are π_old, [T, N, K].
      params: π.
    """
    outputs = algorithm.networks.policy(params, batch.obs)
    return masked_mean(algorithm.distribution.kl(old_outputs, outputs), batch.valid)


def fisher_product(algorithm: Algorithm, params: Params, batch: Batch) -> Callable:
    """v ↦ F v, both float [P]: how ∇ KL(π_old ‖ π) changes along v, at π = π_old.

    It is the derivative of the gradient in one direction, forward over reverse. Over the actions F
    is an exact expectation; over the states it is a mean over those in the batch.

    Source: Pearlmutter 1994 (Neural Computation 6); Schulman et al. 2015, appendix C.
    """
    policy, unravel = ravel_pytree(params["policy"])
    old_outputs = algorithm.networks.policy(params, batch.obs)

    def divergence(policy: jax.Array) -> jax.Array:
        return mean_kl(algorithm, old_outputs, {**params, "policy": unravel(policy)}, batch)

    _, product = jax.linearize(jax.grad(divergence), policy)
    return product


def conjugate_gradients(
    product: Callable, b: jax.Array, *, steps: jax.Array | int, tolerance: float = RESIDUAL
) -> jax.Array:
    """x with A x = b, of a symmetric positive definite A, from x = 0 in at most so many steps.

        α = |r|² / pᵀ A p,   x ← x + α p,   r' = r - α A p,   p ← r' + (|r'|² / |r|²) p

    with r = p = b at first. In exact arithmetic the residuals r are orthogonal, and P steps
    suffice. In floating point they cease to be, once a large eigenvalue's part is found, and then
    rounding grows, by 10^15 in ten steps on some batches. So what a new residual has of those
    before it is taken away.

    Args:
      product: p ↦ A p, both float [P].
      b: float [P].
      steps: at most so many, in [0, MOST_CG_STEPS].
      tolerance: |r|² at which it is done, absolute: a gradient as small as that has no direction.

    Source: Hestenes & Stiefel 1952; Shewchuk 1994, An introduction to the conjugate gradient method
    without the agonizing pain; Parlett 1998, The symmetric eigenvalue problem, §13.
    """
    chex.assert_rank(b, 1)

    def unfinished(carry: tuple) -> jax.Array:
        done, *_, square = carry
        return (done < steps) & ~(square <= tolerance)  # so written, NaN is not an end

    def step(carry: tuple) -> tuple:
        done, x, r, p, basis, square = carry
        basis = basis.at[done].set(r / jnp.sqrt(square))
        image = product(p)
        alpha = square / dot(p, image)
        x, r = x + alpha * p, r - alpha * image
        r = jax.lax.fori_loop(0, done + 1, lambda i, r: r - dot(basis[i], r) * basis[i], r)
        after = dot(r, r)
        return done + 1, x, r, r + after / square * p, basis, after

    basis = jnp.zeros((MOST_CG_STEPS, *b.shape), b.dtype)
    start = (jnp.int32(0), jnp.zeros_like(b), b, b, basis, dot(b, b))
    return jax.lax.while_loop(unfinished, step, start)[1]


def step_length(curvature: jax.Array, *, max_kl: float) -> jax.Array:
    """β = √(2 δ / xᵀ (F + c I) x): ½ (β x)ᵀ (F + c I) (β x) is δ. 0 where nothing curves.

    Args:
      curvature: xᵀ (F + c I) x, a scalar.
      max_kl: δ > 0, a scalar.

    Source: Schulman et al. 2015, appendix C; the damping in it as in the authors' code.
    """
    curves = curvature > 0.0
    return jnp.where(curves, jnp.sqrt(2.0 * max_kl / jnp.where(curves, curvature, 1.0)), 0.0)


def line_search(
    config: Config, algorithm: Algorithm, params: Params, batch: Batch, step: jax.Array
) -> tuple[Params, dict[str, jax.Array]]:
    """θ less the longest of step, ρ step, ρ² step, … (ρ = SHRINK, `backtrack_steps` of them) with
    KL(π_old ‖ π) ≤ `max_kl` and a better surrogate; θ itself, if none has both.

    Args:
      step: float [P].

    Returns:
      The parameters, and by name: `kl` of the step taken, `full_kl` of the whole one, and whether
      one was `accepted`, 1 or 0.

    Source: Schulman et al. 2015, appendix C.
    """
    start = as_vector(params)
    old_outputs = algorithm.networks.policy(params, batch.obs)
    before, _ = surrogate_objective(config, algorithm, params, batch)

    def unfinished(carry: tuple) -> jax.Array:
        tried, *_, accepted = carry
        return (tried < config.backtrack_steps) & ~accepted

    def attempt(carry: tuple) -> tuple:
        tried, share, _, _, full_kl, _ = carry
        after = placed(algorithm, params, start - share * step)
        kl = mean_kl(algorithm, old_outputs, after, batch)
        loss, _ = surrogate_objective(config, algorithm, after, batch)
        full_kl = jnp.where(tried == 0, kl, full_kl)
        accepted = (kl <= config.max_kl) & (loss < before)
        return tried + 1, share * SHRINK, after, kl, full_kl, accepted

    one, zero = jnp.ones((), before.dtype), jnp.zeros((), before.dtype)
    carry = (jnp.int32(0), one, params, zero, zero, jnp.zeros((), bool))
    *_, after, kl, full_kl, accepted = jax.lax.while_loop(unfinished, attempt, carry)
    after = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), after, params)
    kl = jnp.where(accepted, kl, 0.0)
    return after, {"kl": kl, "full_kl": full_kl, "accepted": accepted.astype(before.dtype)}


def as_vector(params: Params) -> jax.Array:
    """The policy's parameters, float [P]."""
    return ravel_pytree(params["policy"])[0]


def placed(algorithm: Algorithm, params: Params, policy: jax.Array) -> Params:
    """The parameters with these of the policy, float [P], rounded on the grid."""
    _, unravel = ravel_pytree(params["policy"])
    return {**params, "policy": algorithm.rounded(unravel(policy))}


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Σ a b."""
    return jnp.sum(a * b)  # not a product of matrices, which some machines round


def _together(
    learned: Learned, after: Params, found: Natural, told: dict[str, jax.Array], critic: Fitted
) -> tuple[Learned, Fitted]:
    """The policy's step and the critic's fit as one."""
    losses = {**found.parts, "policy_grad_norm": found.norm, **told, **critic.losses}
    gradients = {"policy": jax.tree.map(lambda x: x[None], found.gradient), **critic.gradients}
    learned = learned._replace(params={**learned.params, "policy": after["policy"]})
    return learned, Fitted(losses, gradients)
