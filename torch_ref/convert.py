"""Weights between flax parameters and torch state_dicts, through numpy. Imports no jax.

A flax tree is {network: {layer: {"kernel" [in, out], "bias" [out]}}}, with the leaf `log_std`
where σ is a free parameter, and "obs" is the moments of observations; torch's name for the kernel
is `network.layer.weight`, [out, in]. A convolution's kernel is [height, width, in, out], its weight
[out, in, height, width].
"""

from typing import Any

import numpy as np
import torch

LEAVES = ("log_std", "count", "mean", "var")  # that are in no layer


def to_torch(params: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The state_dict of a flax tree; load it with `params.load_state_dict`.

    Args:
      params: leaves are arrays that numpy understands.
    """
    state_dict = {}
    for network, layers in params.items():
        for layer, leaves in layers.items():
            if layer in LEAVES:
                state_dict[f"{network}.{layer}"] = torch.tensor(np.asarray(leaves))
                continue
            kernel = np.asarray(leaves["kernel"])
            weight = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
            state_dict[f"{network}.{layer}.weight"] = torch.tensor(weight)
            state_dict[f"{network}.{layer}.bias"] = torch.tensor(np.asarray(leaves["bias"]))
    return state_dict


def to_flax(state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The flax tree of a state_dict, leaves numpy arrays; the inverse of `to_torch`.

    Raises:
      ValueError: for a name that is not one of ours.
    """
    params: dict[str, Any] = {}
    for name, tensor in state_dict.items():
        array = tensor.detach().cpu().numpy().copy()
        match name.split("."):
            case [network, leaf] if leaf in LEAVES:
                params.setdefault(network, {})[leaf] = array
            case [network, layer, "weight"]:
                kernel = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
                params.setdefault(network, {}).setdefault(layer, {})["kernel"] = kernel.copy()
            case [network, layer, "bias"]:
                params.setdefault(network, {}).setdefault(layer, {})["bias"] = array
            case _:
                raise ValueError(
                    f"{name!r} is not network.layer.weight, network.layer.bias or one of "
                    f"{', '.join(f'network.{leaf}' for leaf in LEAVES)}"
                )
    return params
