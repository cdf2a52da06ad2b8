"""The names that torch gives to our parameters, and back. numpy only."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters by their torch names, kernels transposed to weights.

    Args:
      params: {network: {layer: {"kernel" [..., in, out], "bias" [..., out]}}} and the leaf
        `log_std` where σ is a free parameter; of a layer "conv_…" the kernel is
        [..., height, width, in, out]. Leading axes (seeds) are kept. Networks of one's own may lie
        deeper, and have other leaves, which keep their names.

    Returns:
      {"network.layer.weight" [..., out, in], "network.layer.bias", "network.log_std"}; the weight
      of a convolution is [..., out, in, height, width].
    """
    return dict(_named(params, ()))


def from_torch(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters that `to_torch` gave these names."""
    params: dict[str, Any] = {}
    for name, leaf in named.items():
        *path, kind = name.split(".")
        leaves = params
        for part in path:
            leaves = leaves.setdefault(part, {})
        if kind == "weight":
            back = _axes(path, leaf)[::-1]
            leaves["kernel"] = np.ascontiguousarray(np.moveaxis(leaf, *back))
        else:
            leaves[kind] = leaf
    return params


def _named(params: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    for name, leaf in params.items():
        if isinstance(leaf, Mapping):
            yield from _named(leaf, (*path, name))
        elif name == "kernel":
            weight = np.moveaxis(np.asarray(leaf), *_axes(path, leaf))
            yield ".".join((*path, "weight")), np.ascontiguousarray(weight)
        else:
            yield ".".join((*path, name)), np.asarray(leaf)


def _axes(path: Sequence[str], leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """From where a kernel's last two axes, in and out, go to make it a weight, and to where."""
    convolves = path[-1:] and path[-1].startswith("conv_") and np.ndim(leaf) >= 4
    return (-2, -1), (-3, -4) if convolves else (-1, -2)
