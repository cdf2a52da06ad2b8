"""Randomness as data: which key draws what. Nothing else in the package draws.

    key_policy, key_value, key_run = split(key(seed), 3)
    key_reset, key_action, key_env, key_replay, key_order = split(fold_in(key_run, update_index), 5)

Update u of a run takes its noise from index u + 1; index 0 is the very first reset. What else an
integer seed may be for has other keys than training (`USES`), so that fresh episodes are fresh: a
key is for `split` or for `fold_in`, which give the same keys, never for both. All draws
are threefry-2x32 in jax's partitionable layout and float32, whatever the working dtype, so that
the jax twin draws the same bits. In numpy, because torch's uint32 neither adds nor shifts: a key
is uint32 [2], an array of keys [..., 2].
"""

import math
import operator
from typing import Any

import numpy as np
import torch

from torch_ref.config import Config, ConfigError
from torch_ref.types import EnvSpec, Noise

# Of an integer seed; the first word of its key. Validation is evaluating while it trains, and
# continuation is training from what was trained.
USES = ("training", "evaluation", "rendering", "validation", "continuation")
ROUNDS = 8  # words of random bits that a permutation takes


def key(seed: int, use: str = "training") -> np.ndarray:
    """The random key of an integer seed.

    Args:
      seed: an integer in [0, 2^32).
      use: what for, one of `USES`.

    Raises:
      ConfigError: for anything else.
    """
    return _key_data(seed, use)


def keys(seeds: Any, use: str = "training") -> np.ndarray:
    """The keys of S integer seeds, [S, 2]; seed k's key does not depend on its position.

    Raises:
      ConfigError: as of `key`; or if it is one seed, and not several.
    """
    if not np.iterable(seeds):
        raise ConfigError(f"keys are of several seeds, as of range(8); got {seeds!r}")
    return np.array([_key_data(seed, use) for seed in seeds], np.uint32).reshape(-1, 2)


def split(key: np.ndarray, shape: int | tuple[int, ...]) -> np.ndarray:
    """Independent keys, [*shape, 2]; the given one is consumed."""
    shape = (shape,) if isinstance(shape, int) else shape
    return np.stack(_threefry(key, *_counters(shape)), axis=-1)


def fold_in(key: np.ndarray, index: int) -> np.ndarray:
    """The key of one index in [0, 2^32) of a stream."""
    return np.stack(_threefry(key, np.uint32(0), np.uint32(index)))


def bits(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Random bits, uint32 [*shape]."""
    high, low = _threefry(key, *_counters(shape))
    return high ^ low


def uniform(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform draws from {0, 2^-23, …, 1 - 2^-23}, float32 [*shape]."""
    mantissa = bits(key, shape) >> np.uint32(9)
    return mantissa.astype(np.float32) * np.float32(2.0**-23)


def streams(key: np.ndarray) -> np.ndarray:
    """key_policy, key_value and key_run of a seed's key.

    Raises:
      ConfigError: if it is no key, or more than one.
    """
    if not _is_of_one_seed(key):
        raise ConfigError(
            "a seed's key must be torch_ref.key(seed); of those of torch_ref.keys(seeds) one at a "
            f"time; got {key!r}"
        )
    return split(key, 3)


def first_reset(key_run: np.ndarray, config: Config, spec: EnvSpec) -> torch.Tensor | np.ndarray:
    """The noise that places N environments at their first state."""
    key_reset, *_ = split(fold_in(key_run, 0), 5)
    return _reset_noise(key_reset, (config.num_envs,), spec)


def draw(key_run: np.ndarray, update: int, config: Config, spec: EnvSpec, num_steps: int) -> Noise:
    """All noise of one update.

    An environment cannot end twice within `spec.min_episode_steps` steps, so one reset per
    environment and block of that many steps is enough.

    Args:
      update: index of the update, from 0.
      num_steps: T, steps that the update may take.
    """
    key_reset, key_action, key_env, key_replay, key_order = split(fold_in(key_run, update + 1), 5)
    steps = (num_steps, config.num_envs)
    blocks = -(-num_steps // spec.min_episode_steps)
    return Noise(
        reset=_reset_noise(key_reset, (blocks, config.num_envs), spec),
        action=torch.from_numpy(uniform(key_action, (*steps, *spec.action_shape))),
        env=split(key_env, steps),
        replay=bits(key_replay, (config.value_steps, ROUNDS)) if config.replays else None,
        order=bits(key_order, (config.epochs, ROUNDS)) if config.minibatched else None,
    )


def _reset_noise(
    key: np.ndarray, shape: tuple[int, ...], spec: EnvSpec
) -> torch.Tensor | np.ndarray:
    if spec.reset_uniforms:
        return torch.from_numpy(uniform(key, (*shape, spec.reset_uniforms)))
    return split(key, shape)


def _is_of_one_seed(key: Any) -> bool:
    return isinstance(key, np.ndarray) and key.shape == (2,) and key.dtype == np.uint32


def _key_data(seed: int, use: str = "training") -> np.ndarray:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool | np.bool_) or not 0 <= number < 2**32:
        raise ConfigError(f"a seed must be an integer in [0, 2^32); got {seed!r}")
    return np.array([USES.index(use), number], np.uint32)


# Counters and the block cipher, as inside jax.random.


def _counters(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """High and low words of 0, 1, 2, …, uint32 [*shape] each."""
    count = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    return (count >> np.uint64(32)).astype(np.uint32), count.astype(np.uint32)


def _threefry(key: np.ndarray, x0: Any, x1: Any) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32, 20 rounds: 64 bits of counter to 64 random bits.

    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3 (SC'11).
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^32
        x0, x1 = x0 + schedule[0], x1 + schedule[1]
        for group in range(5):
            for rotation in rotations[group % 2]:
                x0 = x0 + x1
                x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
                x1 = x0 ^ x1
            x0 = x0 + schedule[(group + 1) % 3]
            x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1
