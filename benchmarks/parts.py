"""The parts of an update, each compiled alone, as the lanes of a chunk run them."""

import functools
from typing import Any, NamedTuple

from benchmarks import measure
from benchmarks.contenders import VPG
from jaxpg.core.config import Config

NAMES = {
    "noise": "random numbers",
    "rollout": "random numbers, and the environments' steps",
    "learning": "estimates, gradients and optimizer steps of a given rollout",
    "update": "all of it",
}


class Part(NamedTuple):
    """One part."""

    function: Any  # jitted
    arguments: tuple  # that it can be called with
    env_steps: int  # that a call is about, of all lanes


def speed(name: str, seconds: float) -> dict[str, float]:
    """Environment steps a second of one part of `vpg`, on every core at once."""
    measure.start_as_jaxpg()
    from jaxpg.population import population

    part = make(name, VPG, population.default_lanes())
    rate = measure.rate_of_all_cores(part.function, part.arguments, part.env_steps, seconds)
    return {"rate": rate}


def make(name: str, config: Config, lanes: int, compute: bool = True) -> Part:
    """A part of an update of so many lanes, which have just begun.

    Without `compute` its arguments are only shapes, and it is about no steps.
    """
    import jax
    import jax.numpy as jnp

    import jaxpg
    from jaxpg.core import learner, noise
    from jaxpg.core.types import Learned
    from jaxpg.population import population

    algorithm = jaxpg.build(config)
    (chunk,) = population.make_chunks(config, range(lanes), [{}], lanes)
    traced = jax.tree.map(jnp.asarray, chunk.config)

    def typed(state: Any) -> Any:
        return state._replace(key=noise.typed(state.key))

    def start(config: Config, key_data: Any) -> Any:
        state = learner.init(config, noise.typed(key_data), algorithm)
        return state._replace(key=jax.random.key_data(state.key))

    def draw(config: Config, state: Any) -> Any:
        spec = algorithm.env.spec
        steps = learner.max_steps(config, spec)
        return noise.draw(typed(state).key, state.update, config, spec, steps)

    def rollout(config: Config, state: Any) -> Any:
        return learner.collect(algorithm, state.params, state.env_state, draw(config, state))

    def update(config: Config, state: Any) -> Any:
        after, metrics = learner.update(config, typed(state), algorithm)
        return after._replace(key=state.key), metrics

    def learning(config: Config, state: Any, collected: Any) -> Any:
        learned = Learned(state.params, state.opt_state, state.update)
        order = draw(config, state).order
        return algorithm.learn(config, algorithm, learned, collected[1], None, order)

    @jax.jit
    @jax.vmap
    def begin(config: Config, key_data: Any) -> Any:
        state = start(config, key_data)
        return state, rollout(config, state)

    start_lanes = begin if compute else functools.partial(jax.eval_shape, begin)
    state, collected = start_lanes(traced, jnp.asarray(chunk.keys))
    arguments = (traced, state, collected) if name == "learning" else (traced, state)
    parts = {"noise": draw, "rollout": rollout, "learning": learning, "update": update}
    function = jax.jit(jax.vmap(parts[name]))
    return Part(function, arguments, int(collected[1].valid.sum()) if compute else 0)
