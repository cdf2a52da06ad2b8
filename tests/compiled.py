"""Functions of the core as programs, each compiled once for all configs of the same static fields.

Called as they are they would be compiled too, but operation by operation: a hundred small programs,
which cost more than the whole.
"""

from functools import cache

import jax

from jaxpg import fast
from jaxpg.core import algorithms, learner, noise, training


def run(function, config, *inputs):
    """function(config, algorithm, *inputs) of a function at the top level of its module."""
    return _program(function, fast.static(config))(training.as_arrays(config), *inputs)


def init(config, seed):
    """A seed's state before the first update. Its operations are those of other configs."""
    return learner.init(training.as_arrays(config), noise.key(seed), algorithm(fast.static(config)))


def fitted(config, **parts):
    """The state of seed 1 before and after one update, and what it saw; with parts of one's own."""
    state = init(config, 1)
    return state, *_watch(fast.static(config), **parts)(training.as_arrays(config), state)


@cache
def algorithm(config):
    """The plain one of a config's static fields."""
    return algorithms.build(config)


@cache
def _program(function, config):
    chosen = algorithm(config)
    return jax.jit(lambda config, *inputs: function(config, chosen, *inputs))


@cache
def _watch(config, **parts):
    chosen = algorithm(config)._replace(**parts)
    return jax.jit(lambda config, state: learner.watch(config, state, chosen))
