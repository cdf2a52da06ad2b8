"""rejax: the estimator of its PPO, which is told of one end."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
from rejax.algos.ppo import PPO, Trajectory

from benchmarks.audit.driver import Audited, Case, main


def gae(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    return _calculate_gae(case, gamma, gae_lambda)[0]


def target(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    return _calculate_gae(case, gamma, gae_lambda)[1]


def _calculate_gae(case: Case, gamma: float, gae_lambda: float) -> tuple[jax.Array, jax.Array]:
    """The last value is 0 after an end, as its `train_iteration` makes it."""
    settings = SimpleNamespace(gamma=gamma, gae_lambda=gae_lambda)
    columns = {"reward": case.reward, "value": case.value, "done": case.done}
    unused = dict.fromkeys(("obs", "action", "log_prob"))
    trajectory = Trajectory(**{name: jnp.asarray(x) for name, x in columns.items()}, **unused)
    last_value = jnp.where(case.done[-1], 0, case.last_value)
    return PPO.calculate_gae(settings, trajectory, last_value)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    why = (
        "It is told of `done` alone, which in gymnax is true at a time limit, too: a truncation "
        "counts as a termination, and V(s') is dropped. The function has no docstring."
    )
    main(
        "rejax",
        [
            Audited("PPO.calculate_gae: advantages", "GAE", gae, why=why),
            Audited("PPO.calculate_gae: targets", "λ-return", target, why=why),
        ],
    )
