"""How a machine computes the core fastest: the same parts, of other primitives.

A form is a set of primitives (`core.algorithms.Primitives`), chosen by the backend: what XLA:CPU
computes fastest, NVIDIA GPUs' kernels, or hardly anything. Only jaxpg's own parts are made of
them: what you replace is called as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxpg.core import algorithms, training
from jaxpg.core.algorithms import PLAIN, Primitives, as_it_is
from jaxpg.core.arithmetic import round_floats
from jaxpg.core.config import FIELDS, TRACED, Config
from jaxpg.core.rules import validate
from jaxpg.core.types import Algorithm, LearnerState, Metrics
from jaxpg.fast import backend, blocks, dense, kernels, lanes


def build(config: Config, round_floats: Callable = round_floats) -> Algorithm:
    """The algorithm that a config names, made for this machine.

    Args:
      config: validated.
      round_floats: to the grid, as of `core.algorithms.build`.

    Raises:
      ConfigError: if the environment is unknown or not supported.
    """
    config = static(config)  # traced fields reach the parts as arguments
    algorithm = algorithms.build(config, round_floats, primitives=primitives(config))
    in_one_kernel = backend.form() == "fused" and config.collect == "steps"
    return kernels.collecting(algorithm) if in_one_kernel else algorithm


def train(
    config: Config, key: jax.Array, algorithm: Algorithm | None = None
) -> tuple[LearnerState, Metrics]:
    """Train one seed for the whole budget.

    Pure: `jax.jit(jax.vmap(partial(train, config)))(keys)` trains many seeds, and a vmap over
    traced fields of the config many settings. In float32 its last bits depend on whether JAX's
    64-bit mode is on; those of `train_population` do not.

    Args:
      config: what to train; its traced fields may be traced.
      key: of the seed, from `jaxpg.key`; consumed.
      algorithm: `jaxpg.build(config)` with parts of your own; None for exactly that.

    Returns:
      The final state, and Metrics whose leaves are [U], U = config.num_updates.

    Raises:
      ConfigError: if the config has no meaning.
    """
    config = training.as_arrays(validate(config))
    return training.train(config, key, algorithm or build(config))


def static(config: Config) -> Config:
    """The config's static fields, by which what is compiled can be found again; the others are
    their defaults, and traced parameters of the environment 0."""
    defaults: dict[str, Any] = {name: FIELDS[name].default for name in TRACED}
    names = jax.tree.map(lambda _: 0.0, config.env_params)
    return dataclasses.replace(config, env_params=names, **defaults)


def primitives(config: Config) -> Primitives:
    """Those of this backend's form.

    A natural gradient differentiates its network forwards too, which blocks and kernels are not
    made for.
    """
    chosen = _of_form(config)
    return chosen._replace(network=as_it_is) if config.natural else chosen


def _of_form(config: Config) -> Primitives:
    everywhere = PLAIN._replace(while_loop=lanes.while_loop, optimizer=in_one_vector)
    match backend.form():
        case "cpu":
            return everywhere._replace(
                rows=lanes.rows,
                apply=dense.apply,
                steps=lanes.first_apart,
                sample=lanes.sample,
                network=blocks.of_whole_episodes
                if config.collect == "episodes"
                else blocks.of_rows,
                learn=lanes.in_turns,
            )
        case "fused":
            return everywhere._replace(
                scan=kernels.scan,
                steps=lanes.first_apart,
                network=kernels.network if config.collect == "steps" else blocks.of_whole_episodes,
            )
        case _:
            return everywhere


def in_one_vector(optimizer: Callable) -> Callable:
    """(config) -> the optax.GradientTransformation of all leaves as one vector.

    In every form: what an optimizer keeps is saved, and may be gone on with in another one.
    """

    def made(config: Config) -> optax.GradientTransformation:
        leaves = optimizer(config)
        one = optax.flatten(leaves)

        def init(params: Any) -> Any:
            return (one if jax.tree.leaves(params) else leaves).init(params)

        def update(gradient: Any, state: Any, params: Any = None) -> Any:
            return (one if jax.tree.leaves(gradient) else leaves).update(gradient, state, params)

        return optax.GradientTransformation(init, update)

    return made
