"""Policy and value networks: two MLPs, or one torso with two heads; for images with convolutions.

Parameters are `{network: {layer: {"kernel", "bias"}}}`; the torch twin has the same names, with
`weight` for the transposed kernel (of a convolution [3, 3, in, out], there [out, in, 3, 3]). They
start as torch's Linear does, or orthogonal; from float32 draws, and as float32 numbers, whatever
the working dtype.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpg.core import statistics
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.distributions import allowed_only
from jaxpg.core.noise import split, uniform
from jaxpg.core.types import EnvSpec, Networks, Params

HIDDEN_GAIN = math.sqrt(2.0)  # of orthogonal kernels, as in OpenAI Baselines
HEAD_GAINS = {"policy": 0.01, "value": 1.0}
KERNEL = 3  # pixels along each side of a convolution's kernel
DRAWS = 12  # uniforms whose sum is all but normal, with variance 1
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "elu": jax.nn.elu, "silu": jax.nn.silu}
GRID = 2.0**25  # products of two numbers in [-1, 1] that end 25 bits after the point are exact


class MLP(nn.Module):
    """Hidden layers with a nonlinearity after each, then a linear output.

    Attributes:
      hidden_sizes: widths of the hidden layers; none for a bare linear head.
      outputs: width of the output layer; None for a torso, which ends with its last hidden one.
      activation: one of ACTIVATIONS.
      conv_features: of convolutions with a nonlinearity after each, which come first.
      image: height, width and channels of what they see, which is given as a vector.
    """

    hidden_sizes: tuple[int, ...]
    outputs: int | None
    activation: str
    conv_features: tuple[int, ...] = ()
    image: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        activate = ACTIVATIONS[self.activation]
        if self.conv_features:
            x = x.reshape(*x.shape[:-1], *self.image)
            for i, features in enumerate(self.conv_features):
                x = activate(_conv(features, f"conv_{i}")(x))
            x = x.reshape(*x.shape[:-3], -1)
        for i, size in enumerate(self.hidden_sizes):
            x = activate(_dense(size, f"hidden_{i}")(x))
        return x if self.outputs is None else _dense(self.outputs, "output")(x)


# An NVIDIA GPU by itself rounds the factors of a float32 product to 10 bits (TF32).
PRECISION = jax.lax.Precision.HIGHEST


def _conv(features: int, name: str) -> nn.Conv:
    kernel = (KERNEL, KERNEL)
    return nn.Conv(features, kernel, padding="VALID", name=name, precision=PRECISION)


def _dense(size: int, name: str) -> nn.Dense:
    return nn.Dense(size, name=name, precision=PRECISION)


def apply(mlp: MLP, params: Params, inputs: jax.Array) -> jax.Array:
    """The module's outputs, [..., K], for inputs [..., D]."""
    return jnp.asarray(mlp.apply({"params": params}, inputs))


def make(config: Config, spec: EnvSpec, apply: Callable = apply) -> Networks:
    """The networks that `config` names, for an environment's observations and actions.

    Args:
      apply: how an MLP is computed, with the arguments of `apply`.
    """
    made = (_shared if config.networks == "shared" else _separate)(config, spec, apply)
    made = normalized(made, config, spec) if config.normalize_obs else made
    return masked(made, spec) if spec.masked else made


def normalized(networks: Networks, config: Config, spec: EnvSpec) -> Networks:
    """The networks on normalised observations, whose moments are "obs" among the parameters."""

    def init(key_policy: jax.Array, key_value: jax.Array) -> Params:
        moments = statistics.of_nothing((spec.obs_size,), config.float_type)
        return {"obs": moments, **networks.init(key_policy, key_value)}

    def on_normalized(network: Callable) -> Callable:
        return lambda params, obs: network(params, statistics.normalize_obs(params["obs"], obs))

    return Networks(init, on_normalized(networks.policy), on_normalized(networks.value))


def masked(networks: Networks, spec: EnvSpec) -> Networks:
    """The networks with a policy that takes no action but those that an observation allows.

    It says so in its last A entries. They are an input of the networks like any other, too.
    """

    def policy(params: Params, obs: jax.Array) -> jax.Array:
        allowed = obs[..., spec.obs_size - spec.num_actions :] > 0.5
        return allowed_only(networks.policy(params, obs), allowed)

    return networks._replace(policy=policy)


def _separate(config: Config, spec: EnvSpec, apply: Callable) -> Networks:
    made = partial(MLP, config.hidden_sizes, activation=config.activation, **_seen(config, spec))
    policy, critic = made(outputs=_policy_outputs(config, spec)), made(outputs=1)

    def init(key_policy: jax.Array, key_value: jax.Array) -> Params:
        start = partial(init_mlp, inputs=spec.obs_size, init=config.init)
        params = {"policy": start(key_policy, policy, head="policy")}
        params["policy"] |= _init_log_std(config, spec)
        if config.critic:
            params["value"] = start(key_value, critic, head="value")
        return _cast(params, config)

    return Networks(
        init,
        policy=lambda params, obs: _outputs(params["policy"], partial(apply, policy), obs),
        value=lambda params, obs: apply(critic, params["value"], obs)[..., 0],
    )


def _shared(config: Config, spec: EnvSpec, apply: Callable) -> Networks:
    torso = MLP(config.hidden_sizes, None, config.activation, **_seen(config, spec))
    policy = MLP((), _policy_outputs(config, spec), config.activation)
    critic = MLP((), 1, config.activation)

    def init(key_policy: jax.Array, key_value: jax.Array) -> Params:
        key_torso, key_head = split(key_policy, 2)
        start, width = partial(init_mlp, init=config.init), config.hidden_sizes[-1]
        params = {
            "torso": start(key_torso, torso, spec.obs_size),
            "policy": start(key_head, policy, width, head="policy"),
            "value": start(key_value, critic, width, head="value"),
        }
        params["policy"] |= _init_log_std(config, spec)
        return _cast(params, config)

    def features(params: Params, obs: jax.Array) -> jax.Array:
        return apply(torso, params["torso"], obs)

    return Networks(
        init,
        policy=lambda params, obs: _outputs(
            params["policy"], partial(apply, policy), features(params, obs)
        ),
        value=lambda params, obs: apply(critic, params["value"], features(params, obs))[..., 0],
    )


def init_mlp(
    key: jax.Array, mlp: MLP, inputs: int, *, init: str = "uniform", head: str = "value"
) -> Params:
    """Kernels and biases of a new network.

    Args:
      key: consumed; one key per layer.
      mlp: the module to initialise.
      inputs: width of its input.
      init: a name in `LAYERS`.
      head: what its output is, "policy" or "value".

    Returns:
      {layer: {"kernel", "bias"}}, float32.
    """
    layers: dict[str, tuple[int, int]] = {}
    if mlp.conv_features:
        channels = [mlp.image[-1], *mlp.conv_features]
        pairs = ((KERNEL**2 * before, after) for before, after in pairwise(channels))
        layers |= {f"conv_{i}": sizes for i, sizes in enumerate(pairs)}
        inputs = math.prod(convolved(mlp.image, mlp.conv_features))
    widths = [inputs, *mlp.hidden_sizes]
    layers |= {f"hidden_{i}": sizes for i, sizes in enumerate(pairwise(widths))}
    if mlp.outputs is not None:
        layers["output"] = (widths[-1], mlp.outputs)
    params: Params = {}
    for (name, sizes), key_layer in zip(layers.items(), split(key, len(layers)), strict=True):
        gain = HEAD_GAINS[head] if name == "output" else HIDDEN_GAIN
        kernel, bias = LAYERS[init](key_layer, *sizes, gain=gain)
        if name.startswith("conv"):
            kernel = kernel.reshape(KERNEL, KERNEL, -1, sizes[1])
        params[name] = {"kernel": kernel, "bias": bias}
    return params


def convolved(image: tuple[int, ...], conv_features: tuple[int, ...]) -> tuple[int, ...]:
    """Height, width and features of what convolutions make of an image.

    Args:
      image: its height, width and channels.
      conv_features: of at least one convolution.
    """
    lost = (KERNEL - 1) * len(conv_features)
    return image[0] - lost, image[1] - lost, conv_features[-1]


def uniform_layer(
    key: jax.Array, inputs: int, outputs: int, *, gain: float
) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias from U(-1/√fan_in, 1/√fan_in), drawn as (u - ½) · 2/√fan_in.

    Args:
      key: consumed; one key each for kernel and bias.
      inputs, outputs: widths.
      gain: without meaning here.

    Returns:
      Kernel [in, out] and bias [out], float32.

    Source: torch.nn.Linear.reset_parameters.
    """
    key_kernel, key_bias = split(key, 2)
    scale = 2.0 / math.sqrt(inputs)
    kernel = (uniform(key_kernel, (inputs, outputs)) - 0.5) * scale
    return kernel, (uniform(key_bias, (outputs,)) - 0.5) * scale


def orthogonal_layer(
    key: jax.Array, inputs: int, outputs: int, *, gain: float
) -> tuple[jax.Array, jax.Array]:
    """An orthogonal kernel, of all directions alike, times the gain; no bias.

    Args:
      key: consumed; the key of the kernel is that of a uniform one.
      inputs, outputs: widths.
      gain: by how much it lengthens what it does not shorten.

    Returns:
      Kernel [in, out] and bias [out], float32.

    Source: Saxe et al. 2014 (arXiv:1312.6120).
    """
    key_kernel, _ = split(key, 2)
    draws = uniform(key_kernel, (DRAWS, inputs, outputs))
    with jax.enable_x64(True):  # where all else is float32, too
        noise = jnp.sum(draws.astype(jnp.float64), axis=0) - DRAWS / 2
        kernel = (gain * orthogonal(noise)).astype(jnp.float32)
    return kernel, jnp.zeros((outputs,), jnp.float32)


def orthogonal(noise: jax.Array) -> jax.Array:
    """The matrix with orthonormal rows, or columns where they are fewer, from Gram and Schmidt.

        v ← v / |v|,   then twice   v ← v - Q Qᵀ v,   v ← v / |v|

    of each row v in its order, Q the rows before it: the Q of a QR decomposition whose R has a
    positive diagonal. Every number is rounded to 25 bits after the point before it is multiplied.
    So products and their sums are exact in float64, in whatever order they are summed, and the
    result is the same to the bit wherever division and square root are rounded as IEEE 754 asks.

    Args:
      noise: float64 [in, out].

    Source: Giraud et al. 2005, The loss of orthogonality in the Gram-Schmidt orthogonalization
    process (why twice).
    """
    wide = noise.shape[0] <= noise.shape[1]

    def extend(basis: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
        i, row = inputs
        row = _unit(row)
        for _ in range(2):
            shares = _on_grid(jnp.sum(basis * row[None], axis=1))
            row = _unit(_on_grid(row - jnp.sum(basis * shares[:, None], axis=0)))
        return basis.at[i].set(row), None

    rows = _on_grid((noise if wide else noise.T) / 64)  # so small that 32,768 squares add up
    basis, _ = jax.lax.scan(extend, jnp.zeros_like(rows), (jnp.arange(len(rows)), rows))
    return basis if wide else basis.T


def _unit(v: jax.Array) -> jax.Array:
    return _on_grid(v / jnp.sqrt(jnp.sum(v * v)))


def _on_grid(x: jax.Array) -> jax.Array:
    return jnp.round(x * GRID) / GRID


def _seen(config: Config, spec: EnvSpec) -> dict[str, Any]:
    """An MLP's conv_features and image.

    Raises:
      ConfigError: if it is to convolve what is no image, or nothing is left of it.
    """
    if not config.conv_features:
        return {}
    if not spec.image:
        raise ConfigError(
            "conv_features needs an environment that observes an image, [height, width] or "
            f"[height, width, channels]; {config.env} observes a vector of {spec.obs_size}"
        )
    if min(convolved(spec.image, config.conv_features)) < 1:
        raise ConfigError(
            f"each of conv_features takes {KERNEL - 1} off an image's height and width; got "
            f"{len(config.conv_features)} of them, and {config.env} observes {list(spec.image)}"
        )
    return {"conv_features": config.conv_features, "image": spec.image}


def _policy_outputs(config: Config, spec: EnvSpec) -> int:
    """Logits; or means; or means and log standard deviations."""
    state_dependent = not spec.discrete and config.sigma == "state"
    return 2 * spec.num_actions if state_dependent else spec.num_actions


def _init_log_std(config: Config, spec: EnvSpec) -> Params:
    if spec.discrete or config.sigma == "state":
        return {}
    return {"log_std": jnp.full(spec.num_actions, config.log_std_init, jnp.float32)}


def _outputs(params: Params, policy: Callable, inputs: jax.Array) -> jax.Array:
    """The network's outputs, with a free log σ appended to the means."""
    layers = {name: layer for name, layer in params.items() if name != "log_std"}
    outputs = policy(layers, inputs)
    if "log_std" not in params:
        return outputs
    log_std = jnp.broadcast_to(params["log_std"], outputs.shape)
    return jnp.concatenate([outputs, log_std], axis=-1)


def _cast(params: Params, config: Config) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(config.float_type), params)


LAYERS = {"uniform": uniform_layer, "orthogonal": orthogonal_layer}
