"""PPO with a penalty on the KL, whose weight adapts, instead of the clip.

    maximise E[ρ Ψ] - β KL(π_old ‖ π),    ρ = π(a|s) / π_old(a|s)

Epochs and minibatches are those of `ppo`. After them the KL that the update has come to is measured
on its batch: where it is far from what is desired, β is another in the next update. `scan` is as in
`gradient`.

Source: Schulman et al. 2017 (arXiv:1707.06347), section 4; Heess et al. 2017 (arXiv:1707.02286).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxpg.core import learner, natural, ppo
from jaxpg.core.config import Config
from jaxpg.core.losses import masked_mean
from jaxpg.core.rules import LEAST_WEIGHT, MOST_WEIGHT
from jaxpg.core.types import Algorithm, Batch, Fitted, Learned, Params

# How many times too far, or not far enough, an update may go before β changes. A power of 2 times
# kl_coef is exact: there is nothing to round on the grid.
SLACK = 1.5


def init(config: Config, params: Params) -> jax.Array:
    """β of the first update, a scalar."""
    return jnp.array(config.kl_coef, config.float_type)  # its own: either may be donated


def fit(
    config: Config,
    algorithm: Algorithm,
    learned: Learned,
    batch: Batch,
    *,
    scan: Callable = jax.lax.scan,
) -> tuple[Learned, Fitted]:
    """`ppo.fit` on the surrogate with its penalty, then β for the next update."""
    old, beta = learned.params, learned.fit_state
    penalized = partial(surrogate_objective, old=old, beta=beta)
    learned, fitted = ppo.fit(
        config, algorithm, learned, batch, policy_objective=penalized, scan=scan
    )
    old_outputs = algorithm.networks.policy(old, batch.obs)
    kl = natural.mean_kl(algorithm, old_outputs, learned.params, batch)
    adapted = adapted_weight(beta, kl, desired_kl=config.desired_kl)
    losses = {**fitted.losses, "kl": kl, "kl_weight": beta}
    return learned._replace(fit_state=adapted), fitted._replace(losses=losses)


def adapted_weight(beta: jax.Array, kl: jax.Array, *, desired_kl: float) -> jax.Array:
    """β of the next update, within LEAST_WEIGHT and MOST_WEIGHT.

        β / 2  where D < d / 1.5,    2 β  where D > 1.5 d,    else β

    Args:
      beta: β, a scalar.
      kl: D = KL(π_old ‖ π) at the end of the update, in nats, a scalar.
      desired_kl: d, in nats, > 0, a scalar.

    Source: Schulman et al. 2017 (arXiv:1707.06347), section 4; the bounds are ours.
    """
    factor = jnp.where(kl < desired_kl / SLACK, 0.5, jnp.where(kl > desired_kl * SLACK, 2.0, 1.0))
    return jnp.clip(beta * factor.astype(beta.dtype), LEAST_WEIGHT, MOST_WEIGHT)


def surrogate_objective(
    config: Config,
    algorithm: Algorithm,
    params: Params,
    batch: Batch,
    *,
    old: Params,
    beta: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The surrogate's loss + β KL(π_old ‖ π) - ent_coef · entropy, and what it is made of."""
    outputs = algorithm.networks.policy(params, batch.obs)
    old_outputs = algorithm.networks.policy(old, batch.obs)
    ratio = jnp.exp(learner.log_ratio(algorithm, outputs, batch))
    loss, parts = learner.regularized(config, algorithm, outputs, ratio, batch)
    kl = masked_mean(algorithm.distribution.kl(old_outputs, outputs), batch.valid)
    return loss + beta * kl, parts
