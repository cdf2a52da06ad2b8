"""Brax: the estimator of its PPO, which is told of both ends."""

import jax
import numpy as np
from brax.training.agents.ppo.losses import compute_gae

from benchmarks.audit.driver import Audited, Case, main


def target(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    return _compute_gae(case, gamma, gae_lambda)[0]


def advantage(case: Case, gamma: float, gae_lambda: float) -> jax.Array:
    return _compute_gae(case, gamma, gae_lambda)[1]


def _compute_gae(case: Case, gamma: float, gae_lambda: float) -> tuple[jax.Array, jax.Array]:
    ends = (case.truncated.astype(float), case.terminated.astype(float))
    inputs = map(jax.numpy.asarray, (*ends, case.reward, case.value, np.array(case.last_value)))
    return compute_gae(*inputs, lambda_=gae_lambda, discount=gamma)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(
        "brax",
        [
            Audited(
                "ppo.losses.compute_gae: vs",
                "λ-return",
                target,
                why="A truncated step is left out: its target is V(s), and the steps before it "
                "bootstrap from there. V of the state that follows is not among the arguments. The "
                "docstring does not speak of that.",
            ),
            Audited(
                "ppo.losses.compute_gae: advantages",
                "GAE",
                advantage,
                why="For λ < 1 this is not GAE(λ), whose name the docstring gives it, but the "
                "advantage of V-trace with all ratios 1: r + γ v' - V(s), where v' is the λ-return "
                "from the next step. GAE has γ λ where this has γ; at λ = 1 the two are one. A "
                "truncated step has advantage 0.",
            ),
        ],
    )
