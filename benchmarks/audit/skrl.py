"""skrl: the estimator of its PPO and A2C, in version 1.4 and 2, in JAX and in PyTorch.

It normalises the advantages itself: what is compared are its returns, less V.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from skrl.agents.jax.ppo import ppo as in_jax
from skrl.agents.torch.ppo import ppo as in_torch

from benchmarks.audit.driver import Audited, Case, main

NEW = version("skrl").startswith("2")
DOCUMENTED = "The option is documented as whether to bootstrap at a timeout."
WHY = {  # by version and option
    (False, False): f"A truncation counts as a termination: V(s') is dropped. {DOCUMENTED}",
    (False, True): "It bootstraps from V of the state in which the action was taken, not of the "
    f"one that it led to. {DOCUMENTED} Version 2 takes the latter.",
    (True, False): "A truncation is no end at all: V of the next row, where another episode "
    f"starts, is bootstrapped from, and the recursion runs on through that episode. {DOCUMENTED} "
    "With it the two agree; [issue 449](https://github.com/Toni-SM/skrl/issues/449) is about both.",
    (True, True): "",
}
Returns = Callable[..., Any]  # of skrl


def gae(
    function: Returns, asarray: Callable, bootstrap: bool, case: Case, gamma: float, lambda_: float
) -> np.ndarray:
    """Called as `record_transition` and `update` of its PPO do."""
    if NEW:
        reward = case.paid(gamma) if bootstrap else case.reward
        ends = {"terminated": case.terminated, "truncated": case.truncated}
    else:  # it adds V of the state in which the action was taken
        reward = case.reward + bootstrap * gamma * np.where(case.truncated, case.value, 0.0)
        ends = {"dones": case.done}
    last = {"last_values" if NEW else "next_values": case.last_value}
    arrays = {"rewards": reward, "values": case.value, **ends, **last}
    options = {"time_limit_bootstrap": bootstrap} if NEW else {}
    returns, _ = function(
        **{name: asarray(np.array(x)) for name, x in arrays.items()},
        discount_factor=gamma,
        lambda_coefficient=lambda_,
        **options,
    )
    returns = np.asarray(returns)
    return returns - case.value.astype(returns.dtype)


def as_float32(array: np.ndarray) -> torch.Tensor:
    """As its memory holds them: γ times a flag is float32 in torch, whatever the rewards are."""
    return torch.from_numpy(array.astype(np.float32) if array.dtype == float else array)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    functions = {"jax": (in_jax._compute_gae, jnp.asarray)}
    if NEW:  # before, it was local to the update
        functions["torch"] = (in_torch.compute_gae, as_float32)
    main(
        "skrl",
        [
            Audited(
                f"{name}.ppo: returns - V",
                "GAE",
                partial(gae, *function, bootstrap),
                f"time_limit_bootstrap={bootstrap}" + ("" if bootstrap else ", the default"),
                WHY[NEW, bootstrap],
            )
            for name, function in functions.items()
            for bootstrap in (False, True)
        ],
    )
