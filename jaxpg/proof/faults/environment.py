"""Faults of the environments, their parameters, and the float32 grid."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

from jaxpg.proof.faults.plants import Plant, of, parts, wrap
from torch_ref import algorithms, dynamics


def euler_step_with_the_new_speed() -> Plant:
    """CartPole moves with the speed after the push, not the one before it."""

    def cartpole(original: Callable, *inputs: Any) -> Any:
        world = original(*inputs)

        def step(key: Any, state: Any, action: torch.Tensor) -> tuple:
            after, *rest = world.step(key, state, action)
            x = state.inner.x + 0.02 * after.inner.x_dot
            obs = torch.cat([x[:, None], after.obs[:, 1:]], dim=-1)
            return after._replace(inner=after.inner._replace(x=x), obs=obs), *rest

        return world._replace(step=step)

    return wrap(dynamics, "cartpole", cartpole)


def time_limit_one_step_early() -> Plant:
    """Episodes are cut one step before the time limit."""

    def advance(original: Callable, *inputs: Any) -> tuple:
        *rest, time_limit = inputs
        return original(*rest, time_limit - 1)

    return wrap(dynamics, "advance", advance)


def _given(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Plant:
    """The environment `name` is handed other parameters than were given."""

    def make(original: Callable, *inputs: Any) -> Any:
        world = original(*inputs)

        def reset(*inputs: Any) -> Any:
            state = world.reset(*inputs)
            return state._replace(env_params=change(state.env_params))

        return world._replace(reset=reset)

    return wrap(dynamics, name, make)


def environment_parameter_ignored() -> Plant:
    """CartPole pushes with the force that it has by default, whatever was given."""
    return _given("cartpole", lambda own: {k: x for k, x in own.items() if k != "force_mag"})


def total_mass_that_does_not_follow() -> Plant:
    """CartPole's cart and pole weigh 1.1 kg together, whatever the pole weighs."""
    return _given("cartpole", lambda own: {**own, "masscart": 1.1 - own["masspole"]})


def parameter_of_another_environment() -> Plant:
    """CartPole falls at 10 m/s², the default of Pendulum, where no gravity is given."""
    return mock.patch.object(
        dynamics, "CartPoleParams", partial(dynamics.CartPoleParams, gravity=10.0)
    )


def resets_of_the_default() -> Plant:
    """CartPole of other parameters draws a reset for eight steps, too, so that it may repeat."""

    def cartpole(original: Callable, *inputs: Any) -> Any:
        world = original(*inputs)
        return world._replace(
            spec=world.spec._replace(min_episode_steps=dynamics.CARTPOLE_MIN_STEPS)
        )

    return wrap(dynamics, "cartpole", cartpole)


def parameters_off_the_grid() -> Plant:
    """The optimizer's result is not rounded to float32."""
    return parts(lambda algorithm: {"rounded": algorithms.as_it_is})


def environment_off_the_grid() -> Plant:
    """The environment's state is not rounded to float32."""
    return mock.patch.object(algorithms, "grid_env", lambda env, *_: env)


FAULTS = (
    *of("steps", euler_step_with_the_new_speed, time_limit_one_step_early),
    *of(
        "parameters",
        environment_parameter_ignored,
        total_mass_that_does_not_follow,
        parameter_of_another_environment,
        resets_of_the_default,
    ),
    *of("steps", parameters_off_the_grid, environment_off_the_grid),
)
