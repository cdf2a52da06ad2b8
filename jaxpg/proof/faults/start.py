"""Faults of the noise and of the parameters that training starts with."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from jaxpg.proof.faults.plants import Plant, of, wrap
from torch_ref import networks, noise


def swapped_keys() -> Plant:
    """The policy starts from the critic's key, and the critic from the policy's."""
    return wrap(noise, "streams", lambda original, key: original(key)[[1, 0, 2]])


def one_key_used_twice() -> Plant:
    """Actions are drawn with the key of the resets."""

    def draw(original: Callable, key_run: Any, update: int, *rest: Any) -> Any:
        drawn = original(key_run, update, *rest)
        key_reset, *_ = noise.split(noise.fold_in(key_run, update + 1), 4)
        action = noise.uniform(key_reset, tuple(drawn.action.shape))
        return drawn._replace(action=torch.from_numpy(action))

    return wrap(noise, "draw", draw)


def noise_of_the_update_before() -> Plant:
    """An update takes the noise that the one before it took."""

    def draw(original: Callable, key_run: Any, update: int, *rest: Any) -> Any:
        return original(key_run, update - 1, *rest)

    return wrap(noise, "draw", draw)


def uniform_with_24_bits() -> Plant:
    """Uniforms take 24 random bits, jax's 23."""

    def uniform(key: Any, shape: Any) -> np.ndarray:
        bits = noise.bits(key, shape) >> np.uint32(8)
        return bits.astype(np.float32) * np.float32(2.0**-24)

    return mock.patch.object(noise, "uniform", uniform)


def initial_kernel_transposed() -> Plant:
    """A square layer starts with the transpose of its kernel."""

    def init_mlp(original: Callable, *inputs: Any, **choices: Any) -> Any:
        mlp = original(*inputs, **choices)
        for layer in mlp.children():
            if isinstance(layer, torch.nn.Linear) and layer.in_features == layer.out_features:
                layer.weight.data = layer.weight.data.T.clone()
        return mlp

    return wrap(networks, "init_mlp", init_mlp)


def gains_of_the_heads_swapped() -> Plant:
    """The policy's output starts with gain 1, the value's with 0.01."""
    return mock.patch.dict(networks.HEAD_GAINS, policy=1.0, value=0.01)


def hidden_gain_forgotten() -> Plant:
    """Hidden layers start with gain 1, and not √2."""
    return mock.patch.object(networks, "HIDDEN_GAIN", 1.0)


def orthogonal_with_the_signs_of_lapack() -> Plant:
    """Q of a QR decomposition as it comes, whatever the signs of R's diagonal."""

    def orthogonal(noise: np.ndarray) -> np.ndarray:
        wide = noise.shape[0] <= noise.shape[1]
        q, _ = np.linalg.qr(noise.T if wide else noise)
        return q.T if wide else q

    return mock.patch.object(networks, "orthogonal", orthogonal)


def orthogonal_by_columns() -> Plant:
    """A square kernel's columns are made orthonormal in their order, and not its rows."""
    return wrap(networks, "orthogonal", lambda original, noise: original(noise.T).T)


def orthogonal_from_uniform_noise() -> Plant:
    """Noise of one draw an entry, which has more of some directions than of others."""
    return mock.patch.object(networks, "DRAWS", 1)


def biases_beside_orthogonal_kernels() -> Plant:
    """Biases start as torch's do, and not at 0."""

    def layer(key: Any, inputs: int, outputs: int, *, gain: float) -> Any:
        kernel, _ = networks.orthogonal_layer(key, inputs, outputs, gain=gain)
        return kernel, networks.uniform_layer(key, inputs, outputs, gain=gain)[1]

    return mock.patch.dict(networks.LAYERS, orthogonal=layer)


FAULTS = (
    *of(
        "episodes",
        swapped_keys,
        one_key_used_twice,
        noise_of_the_update_before,
        uniform_with_24_bits,
        initial_kernel_transposed,
    ),
    *of(
        "orthogonal",
        gains_of_the_heads_swapped,
        hidden_gain_forgotten,
        orthogonal_with_the_signs_of_lapack,
        orthogonal_by_columns,
        orthogonal_from_uniform_noise,
        biases_beside_orthogonal_kernels,
    ),
)
