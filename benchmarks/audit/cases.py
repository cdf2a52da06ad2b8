"""Trajectories and batches, and what jaxpg makes of them: the reference, in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.audit.driver import EPSILON, N_STEPS, Batch, Case, Question
from jaxpg.core import advantages, losses, ppo
from jaxpg.core.distributions import categorical

T, N = 40, 3  # enough steps that dropping small powers of γ λ shows
GAMMAS, LAMBDAS = (1.0, 0.9), (0.0, 0.5, 1.0)
EVENTS = {  # rows that end: terminated, truncated
    "a cut": ((), ()),
    "termination": ((4, 30), ()),
    "termination, last row": ((T - 1,), ()),
    "truncation": ((), (4, 30)),
    "truncation, last row": ((), (T - 1,)),
    "padding": ((30,), ()),
}
"""A cut is a view that ends in the middle of an episode. After an end another episode follows in
the same column, or padding, whose rows hold 9 and are not compared."""
PADDED = 31  # rows before the padding
BATCHES = {"whole batch": 12, "padded batch": 8}  # rows that are valid, of 12


def events(seed: int = 0) -> dict[str, Case]:
    """A trajectory for each of `EVENTS`, of normal numbers."""
    cases = {name: _drawn(*rows, seed) for name, rows in EVENTS.items()}
    for field in cases["padding"][:3]:
        field[PADDED:] = 9.0
    return cases


def batches(seed: int = 0) -> dict[str, Batch]:
    """Batches of three actions, some of whose ratios are clipped."""
    rng = np.random.default_rng(seed)
    logits, action = rng.normal(size=(12, 3)), rng.integers(3, size=12)
    log_prob = np.asarray(categorical.log_prob(jnp.asarray(logits), jnp.asarray(action)))
    old = log_prob + 0.3 * rng.normal(size=12)
    fields = (logits, action, old, rng.normal(size=12))
    return {name: Batch(*fields, np.arange(12) < rows) for name, rows in BATCHES.items()}


def questions() -> list[Question]:
    """Each event at each γ and λ."""
    return [(name, gamma, x) for name in EVENTS for gamma in GAMMAS for x in LAMBDAS]


def gae(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    return np.asarray(_gae(*case, gamma=gamma, gae_lambda=gae_lambda))


def lambda_return(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    return gae(case, gamma, gae_lambda) + case.value


def td_error(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    return np.asarray(_td_error(*case[:4], gamma=gamma))


def discounted_return(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    reward, _, *rest = case
    return np.asarray(_discounted_return(reward, *rest, gamma=gamma))


def n_step_return(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    """The discounted return of a view of n rows, which the end of the trajectory shortens."""
    rows = [
        discounted_return(Case(*(x[t : t + N_STEPS] for x in case)), gamma, gae_lambda)[0]
        for t in range(len(case.reward))
    ]
    return np.stack(rows)


def policy_loss(batch: Batch) -> jax.Array:
    def loss(logits: jax.Array) -> jax.Array:
        log_prob = categorical.log_prob(logits, jnp.asarray(batch.action))
        return losses.policy_loss_steps(log_prob, *map(jnp.asarray, batch[3:]))

    return jax.grad(loss)(jnp.asarray(batch.logits))


def surrogate(batch: Batch) -> jax.Array:
    def loss(logits: jax.Array) -> jax.Array:
        log_ratio = categorical.log_prob(logits, jnp.asarray(batch.action)) - batch.old_log_prob
        advantage, valid = map(jnp.asarray, batch[3:])
        clipped = ppo.clipped_ratio(log_ratio, advantage, clip_coef=EPSILON)
        return losses.policy_loss_steps(clipped, advantage, valid)

    return jax.grad(loss)(jnp.asarray(batch.logits))


def entropy_bonus(batch: Batch) -> jax.Array:
    def loss(logits: jax.Array) -> jax.Array:
        return -losses.masked_mean(categorical.entropy(logits), jnp.asarray(batch.valid))

    return jax.grad(loss)(jnp.asarray(batch.logits))


LOSSES: dict[str, Callable[..., Any]] = {
    "policy gradient loss": policy_loss,
    "clipped surrogate": surrogate,
    "entropy bonus": entropy_bonus,
}
REFERENCE: dict[str, Callable[..., Any]] = {
    **LOSSES,
    "GAE": gae,
    "λ-return": lambda_return,
    "TD error": td_error,
    "discounted return": discounted_return,
    f"{N_STEPS}-step return": n_step_return,
}


def _drawn(terminated: tuple[int, ...], truncated: tuple[int, ...], seed: int) -> Case:
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, T, N))
    next_value = np.concatenate([value[1:], rng.normal(size=(1, N))])
    flags = np.zeros((2, T, N), bool)
    for flag, rows in zip(flags, (terminated, truncated), strict=True):
        flag[list(rows)] = True
    ended = flags.any(axis=0)
    next_value[ended] = rng.normal(size=(T, N))[ended]  # of the true successor, not the next start
    return Case(reward, value, next_value, *flags)


_gae, _td_error, _discounted_return = map(
    jax.jit, (advantages.gae, advantages.td_error, advantages.discounted_return)
)
