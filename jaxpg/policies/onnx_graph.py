"""A policy's chain of layers as an ONNX graph, which ends in the action.

Needs the package onnx.
"""

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from jaxpg.core.config import ConfigError
from jaxpg.core.distributions import NEVER
from jaxpg.core.statistics import CLIP
from jaxpg.policies.chain import Chain, by_feature

OPSET, IR_VERSION = 17, 8  # every runtime since 2022 reads them
OPERATORS = {"relu": "Relu", "tanh": "Tanh", "elu": "Elu"}


def content(chain: Chain, about: dict[str, str]) -> bytes:
    """The file, made with onnx's helper and checked by its checker.

    Args:
      about: whose policy it is, kept beside the graph.

    Raises:
      ConfigError: if it has convolutions in float64.
    """
    if any(weight.dtype == np.float64 for weight, _ in chain.convolutions):
        raise ConfigError(
            "--to onnx cannot have convolutions in float64, which onnxruntime does not compute: "
            "take torch or stablehlo"
        )
    graph = _Graph()
    at = _layers(graph, chain, _features(graph, chain))
    outputs = (_choice if chain.discrete else _bounded)(graph, chain, at)
    floats = helper.np_dtype_to_tensor_dtype(chain.layers[0][0].dtype)
    shape: list[Any] = ["batch"]
    if chain.choices or not chain.discrete:
        shape.append(len(chain.choices) or outputs["mean"])
    made = helper.make_graph(
        graph.nodes,
        "policy",
        [helper.make_tensor_value_info("observation", floats, ["batch", _inputs(chain)])],
        [
            helper.make_tensor_value_info(
                "action", onnx.TensorProto.INT64 if chain.discrete else floats, shape
            ),
            *(helper.make_tensor_value_info(x, floats, ["batch", n]) for x, n in outputs.items()),
        ],
        [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(
        made, opset_imports=[opset], ir_version=IR_VERSION, producer_name="jaxpg"
    )
    helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Graph:
    """Nodes in their order, and the constants that they take."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """A node; the name of its first output."""
        self.nodes.append(helper.make_node(operator, inputs, list(outputs), **attributes))
        return outputs[0]


def _inputs(chain: Chain) -> int:
    """D."""
    return math.prod(chain.image) if chain.image else chain.layers[0][0].shape[1]


def _features(graph: _Graph, chain: Chain) -> str:
    """An observation as it is normalised, and what convolutions make of it."""
    at = "observation"
    if chain.mean is not None and chain.std is not None:
        bounds = {"least": -CLIP, "most": CLIP}
        graph.constants |= {name: np.array(x, chain.std.dtype) for name, x in bounds.items()}
        graph.constants |= {"obs_mean": chain.mean, "obs_std": chain.std}
        graph.add("Sub", [at, "obs_mean"], "centred")
        graph.add("Div", ["centred", "obs_std"], "scaled")
        at = graph.add("Clip", ["scaled", *bounds], "normalised")
    if not chain.convolutions:
        return at
    graph.constants["image"] = np.array([-1, *chain.image])
    graph.add("Reshape", [at, "image"], "pixels")
    at = graph.add("Transpose", ["pixels"], "pixels_0", perm=[0, 3, 1, 2])
    for i, (weight, bias) in enumerate(chain.convolutions):
        names = f"conv_weight_{i}", f"conv_bias_{i}"
        graph.constants |= dict(zip(names, (weight, bias), strict=True))
        graph.add("Conv", [at, *names], f"convolved_{i}")
        at = _activated(graph, chain, f"convolved_{i}", f"pixels_{i + 1}")
    return graph.add("Flatten", [at], "features")


def _layers(graph: _Graph, chain: Chain, at: str) -> str:
    """What the last layer gives."""
    for i, (weight, bias) in enumerate(chain.layers):
        if i == 0 and chain.convolutions:
            weight = by_feature(weight, chain)
        if i:
            at = _activated(graph, chain, at, f"hidden_{i}")
        last = i == len(chain.layers) - 1
        graph.constants |= {f"weight_{i}": weight, f"bias_{i}": bias}
        inputs, name = [at, f"weight_{i}", f"bias_{i}"], _last(chain) if last else f"linear_{i}"
        at = graph.add("Gemm", inputs, name, transB=1)
    return at


def _activated(graph: _Graph, chain: Chain, at: str, name: str) -> str:
    if chain.activation == "silu":  # which has no operator of its own until opset 24
        return graph.add("Mul", [at, graph.add("Sigmoid", [at], f"{name}_gate")], name)
    return graph.add(OPERATORS[chain.activation], [at], name)


def _last(chain: Chain) -> str:
    """What the last layer's outputs are called."""
    if chain.discrete:
        return "unmasked" if chain.masked else "logits"
    return "mean" if chain.log_std is not None else "mean_and_log_std"


def _choice(graph: _Graph, chain: Chain, at: str) -> dict[str, int]:
    """The most probable of the actions that are allowed; the other outputs, and their widths."""
    actions = len(chain.layers[-1][1])
    if chain.masked:
        ends = {"from": _inputs(chain) - actions, "to": _inputs(chain), "axis": 1}
        graph.constants |= {name: np.array([x], np.int64) for name, x in ends.items()}
        floating = chain.layers[0][0].dtype
        graph.constants |= {"half": np.array(0.5, floating), "never": np.array(NEVER, floating)}
        graph.add("Slice", ["observation", *ends], "mask")
        graph.add("Greater", ["mask", "half"], "allowed")
        graph.add("Where", ["allowed", at, "never"], "logits")
    if chain.choices:
        graph.constants["sizes"] = np.array(chain.choices, np.int64)
        parts = [f"choice_{i}" for i in range(len(chain.choices))]
        graph.add("Split", ["logits", "sizes"], *parts, axis=-1)
        best = [graph.add("ArgMax", [part], f"best_{part}", axis=-1) for part in parts]
        graph.add("Concat", best, "action", axis=-1)
    else:
        graph.add("ArgMax", ["logits"], "action", axis=-1, keepdims=0)
    return {"logits": actions}


def _bounded(graph: _Graph, chain: Chain, at: str) -> dict[str, int]:
    """The mean, squashed or clipped into its bounds; the other outputs, and their widths."""
    actions = len(chain.layers[-1][1])
    if chain.log_std is None:
        actions //= 2
        graph.add("Split", [at], "mean", "log_std", axis=-1)
    else:
        graph.constants["sigma"] = chain.log_std
        graph.add("Shape", ["mean"], "shape")
        graph.add("Expand", ["sigma", "shape"], "log_std")
    at = "mean"
    assert chain.low is not None
    assert chain.high is not None
    graph.constants |= {"low": chain.low, "high": chain.high}
    if chain.squash:
        middle, reach = (chain.low + chain.high) / 2, (chain.high - chain.low) / 2
        graph.constants |= {"middle": middle, "reach": reach}
        graph.add("Tanh", ["mean"], "tanh")
        graph.add("Mul", ["tanh", "reach"], "spread")
        at = graph.add("Add", ["spread", "middle"], "squashed")
    graph.add("Max", [at, "low"], "raised")
    graph.add("Min", ["raised", "high"], "action")
    return {"mean": actions, "log_std": actions}
