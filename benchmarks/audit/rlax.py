"""rlax: functions of one sequence with a discount per step; they have no flag for a truncation."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rlax

from benchmarks.audit.driver import EPSILON, N_STEPS, Audited, Batch, Case, main, whole

PAID = "γ V(s') paid in the reward"
AS_DM_ENV = "discount γ at a truncation"
WHY = (
    "This is no fault of the function, but what comes of handing it dm_env's time limits as they "
    "are: a last step whose discount stays. It is told of discounts alone and takes V(s') from the "
    "next row, which is another episode's, so the recursion runs on through it. The documentation "
    "says that trajectories need not align with episodes, and does not speak of time limits. With "
    "a discount of 0 and γ V(s') in the reward it is GAE."
)
WEIGHTED = (
    "Padding is told by weights of 0, and the mean is over all rows, padding too: the gradient is "
    "the right one times the share of rows that are valid. So it is documented: a weight per "
    "timestep of the loss."
)


def gae(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    return _gae(case.paid(gamma), gamma * ~case.done, case, gae_lambda)


def gae_as_dm_env(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    return _gae(case.reward, gamma * ~case.terminated, case, gae_lambda)


def _gae(reward: np.ndarray, discount: np.ndarray, case: Case, gae_lambda: float) -> jax.Array:
    def of_one(r: jax.Array, d: jax.Array, v: jax.Array) -> jax.Array:
        return rlax.truncated_generalized_advantage_estimation(r, d, gae_lambda, v)

    return _columns(of_one, reward, discount, case.values)


def lambda_returns(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    def of_one(r: jax.Array, d: jax.Array, v: jax.Array) -> jax.Array:
        return rlax.lambda_returns(r, d, v, gae_lambda)

    return _columns(of_one, *_shifted(case, gamma))


def n_step(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    def of_one(r: jax.Array, d: jax.Array, v: jax.Array) -> jax.Array:
        return rlax.n_step_bootstrapped_returns(r, d, v, N_STEPS)

    return _columns(of_one, *_shifted(case, gamma))


def discounted_returns(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    return _columns(rlax.discounted_returns, *_shifted(case, gamma))


def vtrace_advantage(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    return _vtrace(case, gamma, gae_lambda).pg_advantage


def vtrace_target(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    return _vtrace(case, gamma, gae_lambda).errors + case.value


def _vtrace(case: Case, gamma: float, gae_lambda: float) -> Any:
    def of_one(v: jax.Array, r: jax.Array, d: jax.Array, v_t: jax.Array) -> Any:
        rho = jax.numpy.ones_like(r)
        return rlax.vtrace_td_error_and_advantage(v, v_t, r, d, rho, gae_lambda)

    return _columns(of_one, case.value, *_shifted(case, gamma))


def policy_loss(batch: Batch) -> jax.Array:
    def loss(logits: jax.Array) -> jax.Array:
        rest = (batch.action, batch.advantage, batch.valid.astype(float))
        return rlax.policy_gradient_loss(logits, *map(jax.numpy.asarray, rest))

    return jax.grad(loss)(jax.numpy.asarray(batch.logits))


def surrogate(batch: Batch) -> jax.Array:
    def loss(logits: jax.Array) -> jax.Array:
        log_prob = rlax.softmax().logprob(jax.numpy.asarray(batch.action), logits)
        ratio = jax.numpy.exp(log_prob - batch.old_log_prob)
        return rlax.clipped_surrogate_pg_loss(ratio, jax.numpy.asarray(batch.advantage), EPSILON)

    return jax.grad(loss)(jax.numpy.asarray(batch.logits))


def entropy(batch: Batch) -> jax.Array:
    def loss(logits: jax.Array) -> jax.Array:
        return rlax.entropy_loss(logits, jax.numpy.asarray(batch.valid.astype(float)))

    return jax.grad(loss)(jax.numpy.asarray(batch.logits))


def _shifted(case: Case, gamma: float) -> tuple[np.ndarray, ...]:
    """Rewards, discounts and values of what follows, as rlax has them: V of the next row."""
    return case.paid(gamma), gamma * ~case.done, case.values[1:]


def _columns(function: Callable, *arrays: np.ndarray) -> jax.Array:
    return jax.vmap(function, in_axes=1, out_axes=1)(*arrays)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(
        "rlax",
        [
            Audited("truncated_generalized_advantage_estimation", "GAE", gae, PAID),
            Audited(
                "truncated_generalized_advantage_estimation", "GAE", gae_as_dm_env, AS_DM_ENV, WHY
            ),
            Audited("lambda_returns", "λ-return", lambda_returns, PAID),
            Audited("n_step_bootstrapped_returns", "3-step return", n_step, PAID),
            Audited("discounted_returns", "discounted return", discounted_returns, PAID),
            Audited("vtrace_td_error_and_advantage: errors + V", "λ-return", vtrace_target, PAID),
            Audited("vtrace_td_error_and_advantage: pg_advantage", "GAE", vtrace_advantage, PAID),
            Audited("policy_gradient_loss", "policy gradient loss", policy_loss, why=WEIGHTED),
            Audited("clipped_surrogate_pg_loss", "clipped surrogate", surrogate, can=whole),
            Audited("entropy_loss", "entropy bonus", entropy, why=WEIGHTED),
        ],
    )
