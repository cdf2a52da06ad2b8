"""A trained policy as one chain of layers, whatever the networks were, to be written for others.

From a flat observation [batch, D] (one-hot where the environment's is a number; normalised by the
chain itself, where the networks saw it so; an image row by row and pixel by pixel) to logits, or to
the mean and log σ of an action.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpg.core.config import Config
from jaxpg.core.distributions import NEVER
from jaxpg.core.statistics import CLIP, EPSILON
from jaxpg.names import to_torch
from jaxpg.population.policy import Policy

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": partial(np.maximum, 0.0),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "silu": lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)),
}


class Chain(NamedTuple):
    """A policy's layers, and what its outputs are."""

    layers: list[tuple[np.ndarray, np.ndarray]]  # weight [out, in] and bias [out]
    activation: str  # of ACTIVATIONS, between the layers
    discrete: bool
    log_std: np.ndarray | None  # [A], where σ does not depend on the observation
    low: np.ndarray | None  # [A], bounds of a continuous action
    high: np.ndarray | None
    mean: np.ndarray | None = None  # [D], what is subtracted from an observation
    std: np.ndarray | None = None  # [D], what that is divided by, before it is clipped to ±CLIP
    choices: tuple[int, ...] = ()  # as in EnvSpec
    masked: bool = False  # as in EnvSpec
    squash: bool = False  # whether an action is squashed into its bounds, or clipped to them
    # Of convolutions, which come first, weight [out, in, 3, 3] and bias [out]; and what they see.
    convolutions: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    image: tuple[int, ...] = ()  # height, width and channels


def as_chain(config: Config, policy: Policy) -> Chain:
    """The policy as one chain of layers, a shared torso included."""
    named = to_torch(policy.params)
    networks = ("torso", "policy") if config.networks == "shared" else ("policy",)

    def of(*layers: str) -> list[tuple[np.ndarray, np.ndarray]]:
        every = [f"{network}.{layer}" for network in networks for layer in layers]
        return [(named[f"{x}.weight"], named[f"{x}.bias"]) for x in every if f"{x}.bias" in named]

    layers = of(*(f"hidden_{i}" for i in range(len(config.hidden_sizes))), "output")
    rest: dict[str, Any] = {}
    spec, decode = policy.actor.spec, policy.actor.interface.decode
    if config.conv_features:
        convolutions = of(*(f"conv_{i}" for i in range(len(config.conv_features))))
        rest = {"convolutions": tuple(convolutions), "image": spec.image}
    if config.normalize_obs:
        std = np.sqrt(named["obs.var"] + EPSILON)
        rest |= {"mean": named["obs.mean"], "std": std.astype(config.float_type)}
    if spec.discrete:
        rest |= {"choices": spec.choices, "masked": spec.masked}
        return Chain(layers, config.activation, True, None, None, None, **rest)
    low, high = (
        np.asarray(decode(jnp.full(spec.num_actions, end))).reshape(-1).astype(config.float_type)
        for end in (-jnp.inf, jnp.inf)
    )
    rest |= {"squash": config.squash}
    return Chain(layers, config.activation, False, named.get("policy.log_std"), low, high, **rest)


def forward(chain: Chain, obs: np.ndarray) -> np.ndarray:
    """What the last layer gives for observations [B, D], masked."""
    allowed = obs[:, -len(chain.layers[-1][1]) :] > 0.5  # if it is masked
    if chain.mean is not None and chain.std is not None:
        obs = np.clip((obs - chain.mean) / chain.std, -CLIP, CLIP)
    activate = ACTIVATIONS[chain.activation]
    if chain.convolutions:
        pixels = obs.reshape(-1, *chain.image)
        for weight, bias in chain.convolutions:
            seen = np.lib.stride_tricks.sliding_window_view(pixels, weight.shape[2:], (1, 2))
            pixels = activate(np.einsum("bhwcij,fcij->bhwf", seen, weight) + bias)
        obs = pixels.reshape(len(obs), -1)
    for i, (weight, bias) in enumerate(chain.layers):
        obs = (activate(obs) if i else obs) @ weight.T + bias
    return np.where(allowed, obs, NEVER) if chain.masked else obs


def by_feature(weight: np.ndarray, chain: Chain) -> np.ndarray:
    """The first hidden layer's weight, for what convolutions leave as [features, height, width]."""
    features = chain.convolutions[-1][1].shape[0]
    apart = weight.reshape(len(weight), -1, features).swapaxes(1, 2)
    return np.ascontiguousarray(apart.reshape(weight.shape))
