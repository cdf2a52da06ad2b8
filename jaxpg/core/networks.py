"""Policy and value networks: two MLPs, or one torso with two heads.

Parameters are `{network: {layer: {"kernel", "bias"}}}`; the torch twin has the same names, with
`weight` for the transposed kernel. They start as torch's Linear does, from float32 draws.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpg.core.config import Config
from jaxpg.core.noise import split, uniform
from jaxpg.core.types import EnvSpec, Networks, Params


class MLP(nn.Module):
    """Hidden layers with a nonlinearity after each, then a linear output.

    Attributes:
      hidden_sizes: widths of the hidden layers; none for a bare linear head.
      outputs: width of the output layer; None for a torso, which ends with its last hidden one.
      activation: "relu" or "tanh".
    """

    hidden_sizes: tuple[int, ...]
    outputs: int | None
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, size in enumerate(self.hidden_sizes):
            x = _dense(size, f"hidden_{i}")(x)
            x = jax.nn.relu(x) if self.activation == "relu" else jnp.tanh(x)
        return x if self.outputs is None else _dense(self.outputs, "output")(x)


def _dense(size: int, name: str) -> nn.Dense:
    # An NVIDIA GPU by itself rounds the factors of a float32 product to 10 bits (TF32).
    precision = jax.lax.Precision.HIGHEST
    return nn.Dense(size, name=name, precision=precision)


def apply(mlp: MLP, params: Params, inputs: jax.Array) -> jax.Array:
    """The module's outputs, [..., K], for inputs [..., D]."""
    return jnp.asarray(mlp.apply({"params": params}, inputs))


def make(config: Config, spec: EnvSpec, apply: Callable = apply) -> Networks:
    """The networks that `config` names, for an environment's observations and actions.

    Args:
      apply: how an MLP is computed, with the arguments of `apply`.
    """
    return (_shared if config.networks == "shared" else _separate)(config, spec, apply)


def _separate(config: Config, spec: EnvSpec, apply: Callable) -> Networks:
    policy = MLP(config.hidden_sizes, _policy_outputs(config, spec), config.activation)
    critic = MLP(config.hidden_sizes, 1, config.activation)

    def init(key_policy: jax.Array, key_value: jax.Array) -> Params:
        params = {"policy": init_mlp(key_policy, policy, spec.obs_size)}
        params["policy"] |= _init_log_std(config, spec)
        if config.critic:
            params["value"] = init_mlp(key_value, critic, spec.obs_size)
        return _cast(params, config)

    return Networks(
        init,
        policy=lambda params, obs: _outputs(params["policy"], partial(apply, policy), obs),
        value=lambda params, obs: apply(critic, params["value"], obs)[..., 0],
    )


def _shared(config: Config, spec: EnvSpec, apply: Callable) -> Networks:
    torso = MLP(config.hidden_sizes, None, config.activation)
    policy = MLP((), _policy_outputs(config, spec), config.activation)
    critic = MLP((), 1, config.activation)

    def init(key_policy: jax.Array, key_value: jax.Array) -> Params:
        key_torso, key_head = split(key_policy, 2)
        params = {
            "torso": init_mlp(key_torso, torso, spec.obs_size),
            "policy": init_mlp(key_head, policy, config.hidden_sizes[-1]),
            "value": init_mlp(key_value, critic, config.hidden_sizes[-1]),
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


def init_mlp(key: jax.Array, mlp: MLP, inputs: int) -> Params:
    """Kernels and biases from U(-1/√fan_in, 1/√fan_in), drawn as (u - ½) · 2/√fan_in.

    Args:
      key: consumed; one key per layer, of which one each for kernel [in, out] and bias [out].
      mlp: the module to initialise.
      inputs: width of its input.

    Returns:
      {layer: {"kernel", "bias"}}, float32.

    Source: torch.nn.Linear.reset_parameters.
    """
    names = [f"hidden_{i}" for i in range(len(mlp.hidden_sizes))]
    sizes = [inputs, *mlp.hidden_sizes]
    if mlp.outputs is not None:
        names.append("output")
        sizes.append(mlp.outputs)
    params: Params = {}
    for i, key_layer in enumerate(split(key, len(names))):
        key_kernel, key_bias = split(key_layer, 2)
        scale = 2.0 / math.sqrt(sizes[i])
        params[names[i]] = {
            "kernel": (uniform(key_kernel, (sizes[i], sizes[i + 1])) - 0.5) * scale,
            "bias": (uniform(key_bias, (sizes[i + 1],)) - 0.5) * scale,
        }
    return params


def _policy_outputs(config: Config, spec: EnvSpec) -> int:
    """Logits; or means; or means and log standard deviations."""
    state_dependent = not spec.discrete and config.sigma == "state"
    return 2 * spec.num_actions if state_dependent else spec.num_actions


def _init_log_std(config: Config, spec: EnvSpec) -> Params:
    if spec.discrete or config.sigma == "state":
        return {}
    return {"log_std": jnp.zeros(spec.num_actions, jnp.float32)}


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
