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

    Without `compute` its arguments are only shapes, and it is about no steps. `learning` is an
    update whose rollout is given: of what is drawn for it nothing is computed.
    """
    import jax
    import jax.numpy as jnp

    from jaxpg.core import algorithms, learner, noise
    from jaxpg.population import population

    algorithm = algorithms.build(config)
    (chunk,) = population.make_chunks(config, range(lanes), [{}], lanes)
    traced = jax.tree.map(jnp.asarray, chunk.config)

    def typed(state: Any) -> Any:
        return state._replace(key=noise.typed(state.key))

    def start(config: Config, key_data: Any) -> Any:
        keys = noise.typed(key_data)
        state = learner.init(config, keys, algorithm)
        return state._replace(key=jax.random.key_data(state.key))

    def draw(config: Config, state: Any) -> Any:
        spec = algorithm.env.spec
        steps = learner.max_steps(config, spec)
        return noise.draw(typed(state).key, state.update, config, spec, steps)

    def rollout(config: Config, state: Any) -> Any:
        found = []

        def keep(*arguments: Any) -> Any:
            found.append(algorithm.collect(*arguments))
            return found[0]

        learner.update(config, typed(state), algorithm._replace(collect=keep))
        return found[0]

    def update(config: Config, state: Any) -> Any:
        after, metrics = learner.update(config, typed(state), algorithm)
        return after._replace(key=state.key), metrics

    def learning(config: Config, state: Any, collected: Any) -> Any:
        env_state, trajectory = collected
        acted = trajectory.acted._replace(obs=trajectory.obs)  # as in an update, the same array
        collected = (env_state, trajectory._replace(acted=acted))
        given = algorithm._replace(collect=lambda *_: collected)
        after, metrics = learner.update(config, typed(state), given)
        return after._replace(key=state.key), metrics

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
