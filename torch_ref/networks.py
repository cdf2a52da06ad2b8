"""Policy and value networks: two MLPs, or one torso with two heads.

Parameters are an `nn.ModuleDict` {network: MLP}; the jax twin has the same names, with `kernel`
for the transposed weight. They start as torch's Linear does, but from the draws of `noise`.
"""

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from torch_ref.config import Config
from torch_ref.noise import split, uniform
from torch_ref.types import EnvSpec, Networks


class MLP(nn.Sequential):
    """Hidden layers with a nonlinearity after each, then a linear output.

    Args:
      inputs: width of the input (flax infers it).
      hidden_sizes: widths of the hidden layers; none for a bare linear head.
      outputs: width of the output layer; None for a torso, which ends with its last hidden one.
      activation: "relu" or "tanh".
    """

    def __init__(
        self, inputs: int, hidden_sizes: tuple[int, ...], outputs: int | None, activation: str
    ):
        layers: dict[str, nn.Module] = {}
        for i, size in enumerate(hidden_sizes):
            layers[f"hidden_{i}"] = nn.Linear(inputs, size)
            layers[f"{activation}_{i}"] = nn.ReLU() if activation == "relu" else nn.Tanh()
            inputs = size
        if outputs is not None:
            layers["output"] = nn.Linear(inputs, outputs)
        super().__init__(OrderedDict(layers))


def make(config: Config, spec: EnvSpec) -> Networks:
    """The networks that `config` names, for an environment's observations and actions."""
    return (_shared if config.networks == "shared" else _separate)(config, spec)


def _separate(config: Config, spec: EnvSpec) -> Networks:
    def init(key_policy: np.ndarray, key_value: np.ndarray) -> nn.ModuleDict:
        sizes, activation = config.hidden_sizes, config.activation
        policy = MLP(spec.obs_size, sizes, _policy_outputs(config, spec), activation)
        params = nn.ModuleDict({"policy": init_mlp(key_policy, policy)})
        _init_log_std(policy, config, spec)
        if config.critic:
            params["value"] = init_mlp(key_value, MLP(spec.obs_size, sizes, 1, activation))
        return _cast(params, config)

    return Networks(
        init,
        policy=lambda params, obs: _outputs(params["policy"], obs),
        value=lambda params, obs: params["value"](obs)[..., 0],
    )


def _shared(config: Config, spec: EnvSpec) -> Networks:
    def init(key_policy: np.ndarray, key_value: np.ndarray) -> nn.ModuleDict:
        sizes, activation = config.hidden_sizes, config.activation
        key_torso, key_head = split(key_policy, 2)
        policy = MLP(sizes[-1], (), _policy_outputs(config, spec), activation)
        params = nn.ModuleDict(
            {
                "torso": init_mlp(key_torso, MLP(spec.obs_size, sizes, None, activation)),
                "policy": init_mlp(key_head, policy),
                "value": init_mlp(key_value, MLP(sizes[-1], (), 1, activation)),
            }
        )
        _init_log_std(policy, config, spec)
        return _cast(params, config)

    return Networks(
        init,
        policy=lambda params, obs: _outputs(params["policy"], params["torso"](obs)),
        value=lambda params, obs: params["value"](params["torso"](obs))[..., 0],
    )


def init_mlp(key: np.ndarray, mlp: MLP) -> MLP:
    """Weights and biases from U(-1/√fan_in, 1/√fan_in), drawn as (u - ½) · 2/√fan_in.

    Args:
      key: consumed; one key per layer, of which one each for kernel [in, out] and bias [out].
      mlp: the module to initialise, in place.

    Returns:
      The module, float32.

    Source: torch.nn.Linear.reset_parameters.
    """
    layers = [module for module in mlp.children() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for layer, key_layer in zip(layers, split(key, len(layers)), strict=True):
            key_kernel, key_bias = split(key_layer, 2)
            scale = np.float32(2.0 / math.sqrt(layer.in_features))
            kernel = (uniform(key_kernel, (layer.in_features, layer.out_features)) - 0.5) * scale
            bias = (uniform(key_bias, (layer.out_features,)) - 0.5) * scale
            layer.weight.copy_(torch.from_numpy(kernel).T)
            layer.bias.copy_(torch.from_numpy(bias))
    return mlp


def _policy_outputs(config: Config, spec: EnvSpec) -> int:
    """Logits; or means; or means and log standard deviations."""
    state_dependent = not spec.discrete and config.sigma == "state"
    return 2 * spec.num_actions if state_dependent else spec.num_actions


def _init_log_std(policy: MLP, config: Config, spec: EnvSpec) -> None:
    if not (spec.discrete or config.sigma == "state"):
        policy.register_parameter("log_std", nn.Parameter(torch.zeros(spec.num_actions)))


def _outputs(policy: MLP, inputs: torch.Tensor) -> torch.Tensor:
    """The network's outputs, with a free log σ appended to the means."""
    outputs = policy(inputs)
    if not hasattr(policy, "log_std"):
        return outputs
    return torch.cat([outputs, policy.get_parameter("log_std").expand_as(outputs)], dim=-1)


def _cast(params: nn.ModuleDict, config: Config) -> nn.ModuleDict:
    return params.to(getattr(torch, config.float_type))
