"""Policy and value networks: two MLPs, or one torso with two heads; for images with convolutions.

Parameters are an `nn.ModuleDict` {network: MLP}; the jax twin has the same names, with `kernel`
for the transposed weight (of a convolution [out, in, 3, 3], there [3, 3, in, out]). They start as
torch's Linear does, or orthogonal; from the draws of `noise`, and as float32 numbers, whatever the
working dtype.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_ref import statistics
from torch_ref.config import Config, ConfigError
from torch_ref.distributions import allowed_only
from torch_ref.noise import split, uniform
from torch_ref.types import EnvSpec, Networks

HIDDEN_GAIN = math.sqrt(2.0)  # of orthogonal kernels, as in OpenAI Baselines
HEAD_GAINS = {"policy": 0.01, "value": 1.0}
KERNEL = 3  # pixels along each side of a convolution's kernel
DRAWS = 12  # uniforms whose sum is all but normal, with variance 1
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}
GRID = 2.0**25  # products of two numbers in [-1, 1] that end 25 bits after the point are exact


class MLP(nn.Sequential):
    """Hidden layers with a nonlinearity after each, then a linear output.

    Args:
      inputs: width of the input (flax infers it).
      hidden_sizes: widths of the hidden layers; none for a bare linear head.
      outputs: width of the output layer; None for a torso, which ends with its last hidden one.
      activation: one of ACTIVATIONS.
      conv_features: of convolutions with a nonlinearity after each, which come first.
      image: height, width and channels of what they see, which is given as a vector.
    """

    def __init__(
        self,
        inputs: int,
        hidden_sizes: tuple[int, ...],
        outputs: int | None,
        activation: str,
        conv_features: tuple[int, ...] = (),
        image: tuple[int, ...] = (),
    ):
        activate = ACTIVATIONS[activation]
        layers: dict[str, nn.Module] = {}
        for i, features in enumerate(conv_features):
            channels = conv_features[i - 1] if i else image[-1]
            layers[f"conv_{i}"] = nn.Conv2d(channels, features, KERNEL)
            layers[f"conv_{activation}_{i}"] = activate()
        if conv_features:
            inputs = math.prod(convolved(image, conv_features))
        for i, size in enumerate(hidden_sizes):
            layers[f"hidden_{i}"] = nn.Linear(inputs, size)
            layers[f"{activation}_{i}"] = activate()
            inputs = size
        if outputs is not None:
            layers["output"] = nn.Linear(inputs, outputs)
        super().__init__(OrderedDict(layers))
        self.conv_features, self.image = conv_features, image

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs [..., K] for inputs [..., D]."""
        if not self.conv_features:
            return super().forward(x)
        leading, x = x.shape[:-1], _channels_first(x.reshape(-1, *self.image))
        for name, layer in self.named_children():
            if name == "hidden_0":
                x = _channels_last(x).reshape(*leading, -1)
            x = layer(x)
        return x


def _channels_first(x: torch.Tensor) -> torch.Tensor:
    """As torch's convolutions have it, [B, channels, height, width]."""
    return x.permute(0, 3, 1, 2)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """As flax's have it, [B, height, width, channels]."""
    return x.permute(0, 2, 3, 1)


def make(config: Config, spec: EnvSpec) -> Networks:
    """The networks that `config` names, for an environment's observations and actions."""
    made = (_shared if config.networks == "shared" else _separate)(config, spec)
    made = normalized(made, config, spec) if config.normalize_obs else made
    return masked(made, spec) if spec.masked else made


def normalized(networks: Networks, config: Config, spec: EnvSpec) -> Networks:
    """The networks on normalised observations, whose moments are "obs" among the parameters."""

    def init(key_policy: np.ndarray, key_value: np.ndarray) -> nn.ModuleDict:
        moments = statistics.of_nothing((spec.obs_size,), config.float_type)
        params = networks.init(key_policy, key_value)
        params["obs"] = nn.ParameterDict(
            {name: nn.Parameter(x, requires_grad=False) for name, x in moments.items()}
        )
        return params

    def on_normalized(network: Callable) -> Callable:
        return lambda params, obs: network(params, statistics.normalize_obs(params["obs"], obs))

    return Networks(init, on_normalized(networks.policy), on_normalized(networks.value))


def masked(networks: Networks, spec: EnvSpec) -> Networks:
    """The networks with a policy that takes no action but those that an observation allows.

    It says so in its last A entries. They are an input of the networks like any other, too.
    """

    def policy(params: nn.ModuleDict, obs: torch.Tensor) -> torch.Tensor:
        allowed = obs[..., spec.obs_size - spec.num_actions :] > 0.5
        return allowed_only(networks.policy(params, obs), allowed)

    return networks._replace(policy=policy)


def _separate(config: Config, spec: EnvSpec) -> Networks:
    seen = _seen(config, spec)

    def init(key_policy: np.ndarray, key_value: np.ndarray) -> nn.ModuleDict:
        sizes, activation = config.hidden_sizes, config.activation
        start = partial(init_mlp, init=config.init)
        made = partial(MLP, spec.obs_size, sizes, activation=activation, **seen)
        policy = made(outputs=_policy_outputs(config, spec))
        params = nn.ModuleDict({"policy": start(key_policy, policy, head="policy")})
        _init_log_std(policy, config, spec)
        if config.critic:
            params["value"] = start(key_value, made(outputs=1), head="value")
        return _cast(params, config)

    return Networks(
        init,
        policy=lambda params, obs: _outputs(params["policy"], obs),
        value=lambda params, obs: params["value"](obs)[..., 0],
    )


def _shared(config: Config, spec: EnvSpec) -> Networks:
    seen = _seen(config, spec)

    def init(key_policy: np.ndarray, key_value: np.ndarray) -> nn.ModuleDict:
        sizes, activation = config.hidden_sizes, config.activation
        key_torso, key_head = split(key_policy, 2)
        start, width = partial(init_mlp, init=config.init), sizes[-1]
        torso = MLP(spec.obs_size, sizes, None, activation, **seen)
        policy = MLP(width, (), _policy_outputs(config, spec), activation)
        params = nn.ModuleDict(
            {
                "torso": start(key_torso, torso),
                "policy": start(key_head, policy, head="policy"),
                "value": start(key_value, MLP(width, (), 1, activation), head="value"),
            }
        )
        _init_log_std(policy, config, spec)
        return _cast(params, config)

    return Networks(
        init,
        policy=lambda params, obs: _outputs(params["policy"], params["torso"](obs)),
        value=lambda params, obs: params["value"](params["torso"](obs))[..., 0],
    )


def init_mlp(key: np.ndarray, mlp: MLP, *, init: str = "uniform", head: str = "value") -> MLP:
    """Weights and biases of a new network.

    Args:
      key: consumed; one key per layer.
      mlp: the module to initialise, in place.
      init: a name in `LAYERS`.
      head: what its output is, "policy" or "value".

    Returns:
      The module, float32.
    """
    layers: dict[str, Any] = {name: m for name, m in mlp.named_children() if hasattr(m, "weight")}
    with torch.no_grad():
        for (name, layer), key_layer in zip(layers.items(), split(key, len(layers)), strict=True):
            gain = HEAD_GAINS[head] if name == "output" else HIDDEN_GAIN
            outputs, *inputs = layer.weight.shape
            kernel, bias = LAYERS[init](key_layer, math.prod(inputs), outputs, gain=gain)
            layer.weight.copy_(_weight(torch.from_numpy(kernel), name))
            layer.bias.copy_(torch.from_numpy(bias))
    return mlp


def _weight(kernel: torch.Tensor, name: str) -> torch.Tensor:
    """A layer's weight, of flax's kernel as it was drawn, [in, out]."""
    if not name.startswith("conv"):
        return kernel.T
    return kernel.reshape(KERNEL, KERNEL, -1, kernel.shape[1]).permute(3, 2, 0, 1)


def convolved(image: tuple[int, ...], conv_features: tuple[int, ...]) -> tuple[int, ...]:
    """Height, width and features of what convolutions make of an image.

    Args:
      image: its height, width and channels.
      conv_features: of at least one convolution.
    """
    lost = (KERNEL - 1) * len(conv_features)
    return image[0] - lost, image[1] - lost, conv_features[-1]


def uniform_layer(
    key: np.ndarray, inputs: int, outputs: int, *, gain: float
) -> tuple[np.ndarray, np.ndarray]:
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
    scale = np.float32(2.0 / math.sqrt(inputs))
    kernel = (uniform(key_kernel, (inputs, outputs)) - 0.5) * scale
    return kernel, (uniform(key_bias, (outputs,)) - 0.5) * scale


def orthogonal_layer(
    key: np.ndarray, inputs: int, outputs: int, *, gain: float
) -> tuple[np.ndarray, np.ndarray]:
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
    noise = np.sum(draws.astype(np.float64), axis=0) - DRAWS / 2
    kernel = (gain * orthogonal(noise)).astype(np.float32)
    return kernel, np.zeros((outputs,), np.float32)


def orthogonal(noise: np.ndarray) -> np.ndarray:
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
    rows = _on_grid((noise if wide else noise.T) / 64)  # so small that 32,768 squares add up
    basis = np.zeros_like(rows)
    for i, row in enumerate(map(_unit, rows)):
        for _ in range(2):
            shares = _on_grid(basis @ row)
            row = _unit(_on_grid(row - basis.T @ shares))
        basis[i] = row
    return basis if wide else basis.T


def _unit(v: np.ndarray) -> np.ndarray:
    return _on_grid(v / np.sqrt(np.sum(v * v)))


def _on_grid(x: np.ndarray) -> np.ndarray:
    return np.round(x * GRID) / GRID


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


def _init_log_std(policy: MLP, config: Config, spec: EnvSpec) -> None:
    if not (spec.discrete or config.sigma == "state"):
        log_std = torch.full((spec.num_actions,), float(config.log_std_init))
        policy.register_parameter("log_std", nn.Parameter(log_std))


def _outputs(policy: MLP, inputs: torch.Tensor) -> torch.Tensor:
    """The network's outputs, with a free log σ appended to the means."""
    outputs = policy(inputs)
    if not hasattr(policy, "log_std"):
        return outputs
    return torch.cat([outputs, policy.get_parameter("log_std").expand_as(outputs)], dim=-1)


def _cast(params: nn.ModuleDict, config: Config) -> nn.ModuleDict:
    return params.to(getattr(torch, config.float_type))


LAYERS = {"uniform": uniform_layer, "orthogonal": orthogonal_layer}
