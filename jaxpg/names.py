"""The names that torch gives to our parameters, and back. numpy only."""

from typing import Any

import numpy as np


def to_torch(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Parameters by their torch names, kernels transposed to weights.

    Args:
      params: {network: {layer: {"kernel" [..., in, out], "bias" [..., out]}}} and the leaf
        `log_std` where σ is a free parameter; leading axes (seeds) are kept.

    Returns:
      {"network.layer.weight" [..., out, in], "network.layer.bias", "network.log_std"}.
    """
    named = {}
    for network, layers in params.items():
        for layer, leaves in layers.items():
            if layer == "log_std":
                named[f"{network}.log_std"] = np.asarray(leaves)
                continue
            weight = np.swapaxes(np.asarray(leaves["kernel"]), -1, -2)
            named[f"{network}.{layer}.weight"] = np.ascontiguousarray(weight)
            named[f"{network}.{layer}.bias"] = np.asarray(leaves["bias"])
    return named


def from_torch(named: dict[str, np.ndarray]) -> dict[str, Any]:
    """The parameters that `to_torch` gave these names."""
    params: dict[str, Any] = {}
    for name, leaf in named.items():
        network, *layer, kind = name.split(".")
        if not layer:
            params.setdefault(network, {})[kind] = leaf
            continue
        leaves = params.setdefault(network, {}).setdefault(layer[0], {})
        if kind == "weight":
            leaves["kernel"] = np.ascontiguousarray(np.swapaxes(leaf, -1, -2))
        else:
            leaves[kind] = leaf
    return params
