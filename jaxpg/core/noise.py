"""Randomness as data: which key draws what. Nothing else in the package draws.

    key_policy, key_value, key_run = split(key(seed), 3)
    key_reset, key_action, key_env, key_replay, key_order = split(fold_in(key_run, update_index), 5)

Update u of a run takes its noise from index u + 1; index 0 is the very first reset. What else an
integer seed may be for has other keys than training (`USES`), so that fresh episodes are fresh: a
key is for `split` or for `fold_in`, which give the same keys, never for both. All draws
are threefry-2x32 in jax's partitionable layout and float32, whatever the working dtype, so that
the numpy twin draws the same bits. They are those of jax.random, whose layout is a setting of the
process, and which takes twice as long on a CPU, where it rolls the rounds up in a loop.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg.core.config import Config, ConfigError
from jaxpg.core.types import EnvSpec, Noise

# Of an integer seed; the first word of its key. Validation is evaluating while it trains, and
# continuation is training from what was trained.
USES = ("training", "evaluation", "rendering", "validation", "continuation")
ROUNDS = 8  # words of random bits that a permutation takes


def key(seed: int, use: str = "training") -> jax.Array:
    """The random key of an integer seed.

    Args:
      seed: an integer in [0, 2^32).
      use: what for, one of `USES`.

    Raises:
      ConfigError: for anything else (jax.random.key would alias it to another seed).
    """
    return typed(jax.device_put(_key_data(seed, use)))


def keys(seeds: Any, use: str = "training") -> jax.Array:
    """The keys of S integer seeds, [S]; seed k's key does not depend on its position.

    Raises:
      ConfigError: as of `key`; or if it is one seed, and not several.
    """
    if not np.iterable(seeds):
        raise ConfigError(f"keys are of several seeds, as of range(8); got {seeds!r}")
    data = np.array([_key_data(seed, use) for seed in seeds], np.uint32)
    return typed(jax.device_put(data.reshape(-1, 2)))


def typed(words: jax.Array) -> jax.Array:
    """The keys [...] whose data are these words, uint32 [..., 2]."""
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def split(key: jax.Array, shape: int | tuple[int, ...]) -> jax.Array:
    """Independent keys, [*shape]; the given one is consumed."""
    shape = (shape,) if isinstance(shape, int) else shape
    return typed(jnp.stack(_threefry(key, *_counters(shape)), axis=-1))


def fold_in(key: jax.Array, index: int | jax.Array) -> jax.Array:
    """The key of one index in [0, 2^32) of a stream."""
    return typed(jnp.stack(_threefry(key, jnp.uint32(0), jnp.asarray(index, jnp.uint32))))


def bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random bits, uint32 [*shape]."""
    high, low = _threefry(key, *_counters(shape))
    return high ^ low


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform draws from {0, 2^-23, …, 1 - 2^-23}, float32 [*shape]."""
    return (bits(key, shape) >> 9).astype(jnp.float32) * jnp.float32(2.0**-23)


def streams(key: jax.Array) -> jax.Array:
    """key_policy, key_value and key_run of a seed's key.

    Raises:
      ConfigError: if it is no key, or more than one.
    """
    if not _is_of_one_seed(key):
        raise ConfigError(
            "a seed's key must be jaxpg.key(seed); those of jaxpg.keys(seeds) go through jax.vmap; "
            f"got {key.aval if isinstance(key, jax.Array) else repr(key)}"
        )
    return split(key, 3)


def first_reset(key_run: jax.Array, config: Config, spec: EnvSpec) -> jax.Array:
    """The noise that places N environments at their first state."""
    key_reset, *_ = split(fold_in(key_run, 0), 5)
    return _reset_noise(key_reset, (config.num_envs,), spec)


def draw(
    key_run: jax.Array, update: int | jax.Array, config: Config, spec: EnvSpec, num_steps: int
) -> Noise:
    """All noise of one update.

    An environment cannot end twice within `spec.min_episode_steps` steps, so one reset per
    environment and block of that many steps is enough.

    Args:
      update: index of the update, from 0, int32.
      num_steps: T, steps that the update may take.
    """
    key_reset, key_action, key_env, key_replay, key_order = split(fold_in(key_run, update + 1), 5)
    steps = (num_steps, config.num_envs)
    blocks = -(-num_steps // spec.min_episode_steps)
    return Noise(
        reset=_reset_noise(key_reset, (blocks, config.num_envs), spec),
        action=uniform(key_action, (*steps, *spec.action_shape)),
        env=split(key_env, steps),
        replay=bits(key_replay, (config.value_steps, ROUNDS)) if config.replays else None,
        order=bits(key_order, (config.epochs, ROUNDS)) if config.minibatched else None,
    )


def _reset_noise(key: jax.Array, shape: tuple[int, ...], spec: EnvSpec) -> jax.Array:
    if spec.reset_uniforms:
        return uniform(key, (*shape, spec.reset_uniforms))
    return split(key, shape)


def _is_of_one_seed(key: Any) -> bool:
    if not isinstance(key, jax.Array | np.ndarray):
        return False
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return key.shape == (2,) and key.dtype == jnp.uint32


def _key_data(seed: int, use: str = "training") -> np.ndarray:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool | np.bool_) or not 0 <= number < 2**32:
        raise ConfigError(f"a seed must be an integer in [0, 2^32); got {seed!r}")
    return np.array([USES.index(use), number], np.uint32)


def _counters(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """High and low words of 0, 1, 2, …, uint32 [*shape] each; fewer than 2^32 of them."""
    count = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return jnp.zeros_like(count), count


@jax.jit  # outside of another jit too, a hundred operations are one
def _threefry(key: jax.Array, x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32, 20 rounds: 64 bits of counter to 64 random bits.

    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3 (SC'11).
    """
    first, second = jax.random.key_data(key)
    schedule = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    x0, x1 = x0 + schedule[0], x1 + schedule[1]
    for group in range(5):
        for rotation in rotations[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << rotation) | (x1 >> (32 - rotation))
            x1 = x0 ^ x1
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1
