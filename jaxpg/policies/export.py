"""Export: one seed's trained policy as a file for another runtime, which needs no jaxpg.

Whatever the networks were, a policy is one chain of layers from a flat observation [batch, D]
(one-hot where the environment's is a number; normalised by the chain itself, where the networks saw
it so; an image row by row and pixel by pixel) to logits, or to the mean and log σ of an action.
What makes an action of these (a mask, the choices that it is, tanh, bounds) is in the file, too;
PyTorch's says which.
"""

import dataclasses
import io
import json
import math
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg import fast
from jaxpg.core.config import Config, ConfigError, nearest
from jaxpg.core.distributions import NEVER
from jaxpg.core.statistics import EPSILON, MOST
from jaxpg.files import safetensors
from jaxpg.names import to_torch
from jaxpg.population.policy import Policy
from jaxpg.runs.load import Run

SUFFIXES = {
    "torch": ".pt",
    "onnx": ".onnx",
    "stablehlo": ".stablehlo",
    "safetensors": ".safetensors",
}
OPSET, IR_VERSION = 17, 8  # of ONNX; every runtime since 2022 reads them
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
HOW = {  # to load each; tests run these lines
    "torch": """\
import torch
from torch import nn

saved = torch.load({path!r}, weights_only=True)
policy = nn.Sequential(*(getattr(nn, name)(*sizes) for name, *sizes in saved["layers"]))
policy.load_state_dict(saved["state_dict"], assign=True)
outputs = policy(torch.zeros(1, {inputs}, dtype=torch.{dtype}))  # {outputs}""",
    "onnx": """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({path!r})
(action,) = session.run(["action"], {{"observation": np.zeros((1, {inputs}), np.{dtype})}})""",
    "stablehlo": """\
import numpy as np
from jax import export

policy = export.deserialize(bytearray(open({path!r}, "rb").read()))
outputs = policy.call(np.zeros((1, {inputs}), np.{dtype}))""",
    "safetensors": """\
from safetensors.numpy import load_file

parameters = load_file({path!r})  # of all networks, by the names that torch gives""",
}


class Chain(NamedTuple):
    """A policy's layers, and what its outputs are."""

    layers: list[tuple[np.ndarray, np.ndarray]]  # weight [out, in] and bias [out]
    activation: str  # "relu" or "tanh", between the layers
    discrete: bool
    log_std: np.ndarray | None  # [A], where σ does not depend on the observation
    low: np.ndarray | None  # [A], bounds of a continuous action
    high: np.ndarray | None
    mean: np.ndarray | None = None  # [D], what is subtracted from an observation
    std: np.ndarray | None = None  # [D], what that is divided by, before it is clipped to ±MOST
    choices: tuple[int, ...] = ()  # as in EnvSpec
    masked: bool = False  # as in EnvSpec
    squash: bool = False  # whether an action is squashed into its bounds, or clipped to them
    # Of convolutions, which come first, weight [out, in, 3, 3] and bias [out]; and what they see.
    convolutions: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    image: tuple[int, ...] = ()  # height, width and channels


def export(run: Run, seed: int, target: str, *, setting: int = 0) -> bytes:
    """A seed's policy as a file's content.

    Args:
      run: finished.
      seed: one of its seeds.
      target: of SUFFIXES.
      setting: index in the run's settings.

    Raises:
      ConfigError: if there is no such target, or the package that it needs is not installed.
    """
    if target not in SUFFIXES:
        raise ConfigError(f"--to is {target!r}{nearest(target, SUFFIXES)}")
    about = {
        "made_by": f"jaxpg {version('jaxpg')}",
        "env": run.config.env,
        "seed": str(seed),
        "setting": json.dumps(dict(run.settings[setting])),
        "config": json.dumps(dataclasses.asdict(run.config)),
    }
    policy = run.policy(seed, setting)
    if target == "safetensors":
        return safetensors(to_torch(policy.params), about)
    if target == "stablehlo":
        return _to_stablehlo(run.config, policy)
    chain = _checked_chain(run.config, policy, target)
    return (_to_torch if target == "torch" else _to_onnx)(chain, about)


def how_to_load(run: Run, target: str, path: str) -> str:
    """The lines that load it, to be copied."""
    policy = run.policy(run.seeds[0])
    spec = policy.actor.spec
    outputs = "logits" if spec.discrete else "mean, then log σ unless it is saved"
    if spec.masked:
        outputs += f", of which the last {spec.num_actions} of an observation allow those with a 1"
    return HOW[target].format(
        path=path, inputs=spec.obs_size, dtype=run.config.float_type, outputs=outputs
    )


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


def _checked_chain(config: Config, policy: Policy, target: str) -> Chain:
    """The policy as a chain, if it is one: parts of one's own may be anything.

    Raises:
      ConfigError: if they are something else.
    """
    if policy.algorithm is None:
        return as_chain(config, policy)
    try:
        chain = as_chain(config, policy)
        obs = np.random.default_rng(0).normal(size=(64, policy.actor.spec.obs_size))
        outputs = np.asarray(policy.actor.outputs(policy.params, obs.astype(config.float_type)))
        means = outputs[..., : len(chain.layers[-1][1])]
        np.testing.assert_allclose(_forward(chain, obs), means, rtol=1e-3, atol=1e-3)
        usual, own = fast.build(config).distribution, policy.algorithm.distribution
        np.testing.assert_array_equal(own.mode(outputs), usual.mode(outputs))
    except (KeyError, ValueError, IndexError, AssertionError):
        raise ConfigError(
            f"--to {target} writes chains of layers and the most probable action, and this "
            "algorithm's networks or distribution are none that its config names: --to stablehlo "
            "holds any"
        ) from None
    return chain


def _forward(chain: Chain, obs: np.ndarray) -> np.ndarray:
    """What the last layer gives for observations [B, D], masked."""
    allowed = obs[:, -len(chain.layers[-1][1]) :] > 0.5  # if it is masked
    if chain.mean is not None and chain.std is not None:
        obs = np.clip((obs - chain.mean) / chain.std, -MOST, MOST)
    activate = np.tanh if chain.activation == "tanh" else partial(np.maximum, 0.0)
    if chain.convolutions:
        pixels = obs.reshape(-1, *chain.image)
        for weight, bias in chain.convolutions:
            seen = np.lib.stride_tricks.sliding_window_view(pixels, weight.shape[2:], (1, 2))
            pixels = activate(np.einsum("bhwcij,fcij->bhwf", seen, weight) + bias)
        obs = pixels.reshape(len(obs), -1)
    for i, (weight, bias) in enumerate(chain.layers):
        obs = (activate(obs) if i else obs) @ weight.T + bias
    return np.where(allowed, obs, NEVER) if chain.masked else obs


def _to_stablehlo(config: Config, policy: Policy) -> bytes:
    """jax.export's own format: {"action", "logits"}, or {"action", "mean", "log_std"}."""
    try:
        import flatbuffers  # noqa: F401  (jax imports it on serialising)
    except ImportError:
        raise _missing("stablehlo", "flatbuffers") from None
    actor = policy.actor
    params = jax.tree.map(jnp.asarray, policy.params)

    def act(obs: jax.Array) -> dict[str, jax.Array]:
        outputs = actor.outputs(params, obs)
        action = actor.algorithm.distribution.mode(outputs)
        if actor.spec.discrete:
            return {"action": action, "logits": outputs}
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        action = jax.vmap(actor.interface.decode)(action).reshape(mean.shape)
        return {"action": action, "mean": mean, "log_std": log_std}

    shape = jax.export.symbolic_shape(f"batch, {actor.spec.obs_size}")
    observation = jax.ShapeDtypeStruct(shape, config.float_type)
    return bytes(jax.export.export(jax.jit(act), platforms=PLATFORMS)(observation).serialize())


def _to_torch(chain: Chain, about: dict[str, str]) -> bytes:
    """A dictionary that `torch.load(…, weights_only=True)` reads, so that loading runs no code.

    "layers" says how to build the nn.Sequential that "state_dict" fits. (TorchScript is
    deprecated, and `torch.export.load` falls back to unpickling whatever is in the file.)
    Observations are normalised by two Linear layers, which subtract and divide, and a Hardtanh:
    torch's BatchNorm1d would take a batch's own moments until somebody calls eval(). Convolutions
    are three-dimensional, with kernels as deep as there are channels: the pixels of an observation
    have theirs last, and no layer of torch's puts them first.
    """
    try:
        import torch
    except ImportError:
        raise _missing("torch", "torch") from None
    layers: list[list[Any]] = []
    state = {}

    def linear(weight: np.ndarray, bias: np.ndarray) -> None:
        state[f"{len(layers)}.weight"] = torch.from_numpy(weight.copy())
        state[f"{len(layers)}.bias"] = torch.from_numpy(bias.copy())
        layers.append(["Linear", weight.shape[1], weight.shape[0]])

    if chain.mean is not None and chain.std is not None:
        linear(np.eye(len(chain.mean), dtype=chain.mean.dtype), -chain.mean)
        linear(np.diag(1 / chain.std), np.zeros_like(chain.std))
        layers.append(["Hardtanh", -MOST, MOST])
    activation = [{"relu": "ReLU", "tanh": "Tanh"}[chain.activation]]
    if chain.convolutions:
        layers.append(["Unflatten", 1, [1, *chain.image]])
    for i, (weight, bias) in enumerate(chain.convolutions):
        # [out, in, 3, 3] as [out, 1, 3, 3, in] of the pixels, [out, in, 3, 3, 1] of what is left
        deep = weight.transpose(0, 2, 3, 1)[:, None] if i == 0 else weight[..., None]
        state[f"{len(layers)}.weight"] = torch.from_numpy(deep.copy())
        state[f"{len(layers)}.bias"] = torch.from_numpy(bias.copy())
        layers += [["Conv3d", deep.shape[1], deep.shape[0], list(deep.shape[2:])], activation]
    for i, (weight, bias) in enumerate(chain.layers):
        if i:
            layers.append(activation)
        elif chain.convolutions:
            layers.append(["Flatten"])
            weight = _by_feature(weight, chain)
        linear(weight, bias)
    content: dict[str, Any] = {"layers": layers, "state_dict": state, "about": about}
    for name in ("log_std", "low", "high"):
        value = getattr(chain, name)
        if value is not None:
            content[name] = torch.from_numpy(value.copy())
    content |= {name: getattr(chain, name) for name in ("choices", "masked", "squash")}
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _by_feature(weight: np.ndarray, chain: Chain) -> np.ndarray:
    """The first hidden layer's weight, for what convolutions leave as [features, height, width]."""
    features = chain.convolutions[-1][1].shape[0]
    apart = weight.reshape(len(weight), -1, features).swapaxes(1, 2)
    return np.ascontiguousarray(apart.reshape(weight.shape))


def _to_onnx(chain: Chain, about: dict[str, str]) -> bytes:
    """A graph of Gemm, Conv, Relu or Tanh and what makes an action of their outputs, made with
    onnx's helper and checked by its checker."""
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise _missing("onnx", "onnx") from None
    if any(weight.dtype == np.float64 for weight, _ in chain.convolutions):
        raise ConfigError(
            "--to onnx cannot have convolutions in float64, which onnxruntime does not compute: "
            "take torch or stablehlo"
        )
    constants: dict[str, Any] = {}
    nodes, at = [], "observation"
    if chain.mean is not None and chain.std is not None:
        bounds = {"least": -MOST, "most": MOST}
        constants |= {name: np.array(x, chain.std.dtype) for name, x in bounds.items()}
        constants |= {"obs_mean": chain.mean, "obs_std": chain.std}
        nodes.append(helper.make_node("Sub", [at, "obs_mean"], ["centred"]))
        nodes.append(helper.make_node("Div", ["centred", "obs_std"], ["scaled"]))
        nodes.append(helper.make_node("Clip", ["scaled", *bounds], ["normalised"]))
        at = "normalised"
    operator = {"relu": "Relu", "tanh": "Tanh"}[chain.activation]
    if chain.convolutions:
        constants["image"] = np.array([-1, *chain.image])
        nodes.append(helper.make_node("Reshape", [at, "image"], ["pixels"]))
        nodes.append(helper.make_node("Transpose", ["pixels"], ["pixels_0"], perm=[0, 3, 1, 2]))
        for i, (weight, bias) in enumerate(chain.convolutions):
            names = [f"pixels_{i}", f"conv_weight_{i}", f"conv_bias_{i}"]
            constants |= {names[1]: weight, names[2]: bias}
            nodes.append(helper.make_node("Conv", names, [f"convolved_{i}"]))
            nodes.append(helper.make_node(operator, [f"convolved_{i}"], [f"pixels_{i + 1}"]))
        nodes.append(
            helper.make_node("Flatten", [f"pixels_{len(chain.convolutions)}"], ["features"])
        )
        at = "features"
    for i, (weight, bias) in enumerate(chain.layers):
        if i == 0 and chain.convolutions:
            weight = _by_feature(weight, chain)
        if i:
            nodes.append(helper.make_node(operator, [at], [f"hidden_{i}"]))
            at = f"hidden_{i}"
        last = i == len(chain.layers) - 1
        name = _network_output(chain) if last else f"linear_{i}"
        constants |= {f"weight_{i}": weight, f"bias_{i}": bias}
        inputs = [at, f"weight_{i}", f"bias_{i}"]
        nodes.append(helper.make_node("Gemm", inputs, [name], transB=1))
        at = name
    floating = chain.layers[0][0].dtype
    floats = helper.np_dtype_to_tensor_dtype(floating)
    inputs_size = math.prod(chain.image) if chain.image else chain.layers[0][0].shape[1]
    actions = len(chain.layers[-1][1])
    if chain.discrete:
        if chain.masked:
            ends = {"from": inputs_size - actions, "to": inputs_size, "axis": 1}
            constants |= {name: np.array([x], np.int64) for name, x in ends.items()}
            constants |= {"half": np.array(0.5, floating), "never": np.array(NEVER, floating)}
            nodes.append(helper.make_node("Slice", ["observation", *ends], ["mask"]))
            nodes.append(helper.make_node("Greater", ["mask", "half"], ["allowed"]))
            nodes.append(helper.make_node("Where", ["allowed", at, "never"], ["logits"]))
        if chain.choices:
            constants["sizes"] = np.array(chain.choices, np.int64)
            parts = [f"choice_{i}" for i in range(len(chain.choices))]
            best = [f"best_{part}" for part in parts]
            nodes.append(helper.make_node("Split", ["logits", "sizes"], parts, axis=-1))
            nodes += [helper.make_node("ArgMax", [x], [f"best_{x}"], axis=-1) for x in parts]
            nodes.append(helper.make_node("Concat", best, ["action"], axis=-1))
        else:
            nodes.append(helper.make_node("ArgMax", ["logits"], ["action"], axis=-1, keepdims=0))
        shape: list[Any] = ["batch", len(chain.choices)] if chain.choices else ["batch"]
        action = helper.make_tensor_value_info("action", onnx.TensorProto.INT64, shape)
        outputs = {"logits": actions}
    else:
        if chain.log_std is None:
            actions //= 2
            nodes.append(helper.make_node("Split", [at], ["mean", "log_std"], axis=-1))
        else:
            constants["sigma"] = chain.log_std
            nodes.append(helper.make_node("Shape", ["mean"], ["shape"]))
            nodes.append(helper.make_node("Expand", ["sigma", "shape"], ["log_std"]))
        at = "mean"
        constants |= {"low": chain.low, "high": chain.high}
        if chain.squash and chain.low is not None and chain.high is not None:
            middle, reach = (chain.low + chain.high) / 2, (chain.high - chain.low) / 2
            constants |= {"middle": middle, "reach": reach}
            nodes.append(helper.make_node("Tanh", ["mean"], ["tanh"]))
            nodes.append(helper.make_node("Mul", ["tanh", "reach"], ["spread"]))
            nodes.append(helper.make_node("Add", ["spread", "middle"], ["squashed"]))
            at = "squashed"
        nodes.append(helper.make_node("Max", [at, "low"], ["raised"]))
        nodes.append(helper.make_node("Min", ["raised", "high"], ["action"]))
        action = helper.make_tensor_value_info("action", floats, ["batch", actions])
        outputs = {"mean": actions, "log_std": actions}
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", floats, ["batch", inputs_size])],
        [
            action,
            *(helper.make_tensor_value_info(x, floats, ["batch", n]) for x, n in outputs.items()),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(
        graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="jaxpg"
    )
    helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _network_output(chain: Chain) -> str:
    """What the last layer's outputs are called."""
    if chain.discrete:
        return "unmasked" if chain.masked else "logits"
    return "mean" if chain.log_std is not None else "mean_and_log_std"


def _missing(target: str, package: str) -> ConfigError:
    return ConfigError(
        f"--to {target} needs {package}, which is not installed: pip install {package}"
    )
