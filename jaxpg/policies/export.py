"""Export: one seed's trained policy as a file for another runtime, which needs no jaxpg.

PyTorch and ONNX get it as a chain of layers. What makes an action of its outputs (a mask, the
choices that it is, tanh, bounds) is in the file, too; PyTorch's says which.
"""

import dataclasses
import io
import json
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg import fast
from jaxpg.core.config import Config, ConfigError, nearest
from jaxpg.core.distributions import NEVER
from jaxpg.core.statistics import CLIP
from jaxpg.files import safetensors
from jaxpg.names import to_torch
from jaxpg.policies.chain import Chain, as_chain, by_feature, forward
from jaxpg.population import own
from jaxpg.population.policy import Policy
from jaxpg.runs.load import Run

SUFFIXES = {
    "torch": ".pt",
    "onnx": ".onnx",
    "stablehlo": ".stablehlo",
    "safetensors": ".safetensors",
}
MODULES = {"relu": "ReLU", "tanh": "Tanh", "elu": "ELU", "silu": "SiLU"}
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


def export(run: Run, seed: int, target: str, *, setting: int | None = None) -> bytes:
    """A seed's policy as a file's content.

    Args:
      run: finished.
      seed: one of its seeds.
      target: of SUFFIXES.
      setting: index in the run's settings; None for the only one.

    Raises:
      ConfigError: if there is no such target, or the package that it needs is not installed.
    """
    if target not in SUFFIXES:
        raise ConfigError(f"--to is {target!r}{nearest(target, SUFFIXES)}")
    about = {
        "made_by": f"jaxpg {version('jaxpg')}",
        "env": run.config.env,
        "seed": str(seed),
        "setting": json.dumps(dict(run.settings[run.which(setting)])),
        "config": json.dumps(dataclasses.asdict(run.config_of(setting))),
    }
    policy = run.policy(seed, setting)
    if target == "safetensors":
        return safetensors(to_torch(policy.params), about)
    if target == "stablehlo":
        return _to_stablehlo(run.config, policy)
    chain = _checked_chain(run.config, policy, target)
    if target == "torch":
        return _to_torch(chain, about)
    try:
        import onnx  # noqa: F401  (which `onnx_graph` is made with)
    except ImportError:
        raise _missing("onnx", "onnx") from None
    from jaxpg.policies import onnx_graph

    return onnx_graph.content(chain, about)


def how_to_load(run: Run, target: str, path: str) -> str:
    """The lines that load it, to be copied."""
    policy = run.policy(run.seeds[0], setting=0)  # all settings have these shapes
    spec = policy.actor.spec
    outputs = "logits"
    if not spec.discrete:
        action = "the mean's tanh, scaled to" if run.config.squash else "the mean, clipped to"
        outputs = f"mean, then log σ unless it is saved; an action is {action} its bounds"
    if spec.masked:
        outputs += f", of which the last {spec.num_actions} of an observation allow those with a 1"
    return HOW[target].format(
        path=path, inputs=spec.obs_size, dtype=run.config.float_type, outputs=outputs
    )


def _checked_chain(config: Config, policy: Policy, target: str) -> Chain:
    """The policy as a chain, if it is one: parts of one's own may be anything.

    Raises:
      ConfigError: if they are something else.
    """
    if policy.algorithm is None:
        return as_chain(config, policy)
    try:
        chain = as_chain(config, policy)
        rng = np.random.default_rng(0)  # far from the middle, too, where one may be clipped
        obs = rng.normal(size=(64, policy.actor.spec.obs_size)) * 10 ** rng.uniform(-2, 3, (64, 1))
        outputs = np.asarray(policy.actor.outputs(policy.params, obs.astype(config.float_type)))
        written = forward(chain, obs)
        if chain.log_std is not None:
            written = np.concatenate([written, np.broadcast_to(chain.log_std, written.shape)], -1)
        unit = np.abs(np.where(outputs == NEVER, 0.0, outputs)).max(axis=-1, keepdims=True) + 1e-3
        np.testing.assert_allclose(written / unit, outputs / unit, rtol=1e-5, atol=1e-3)
        usual, theirs = fast.build(config).distribution, policy.algorithm.distribution
        np.testing.assert_array_equal(theirs.mode(outputs), usual.mode(outputs))
    except (KeyError, ValueError, IndexError, AssertionError):
        raise ConfigError(
            f"--to {target} writes chains of layers and the most probable action, and this "
            "algorithm's networks or distribution are none that its config names: --to stablehlo "
            "holds any"
        ) from None
    return chain


def _to_stablehlo(config: Config, policy: Policy) -> bytes:
    """jax.export's own format: {"action", "logits"}, or {"action", "mean", "log_std"}; of a
    distribution of one's own {"action", "outputs"}."""
    try:
        import flatbuffers  # noqa: F401  (jax imports it on serialising)
    except ImportError:
        raise _missing("stablehlo", "flatbuffers") from None
    actor = policy.actor
    params = jax.tree.map(jnp.asarray, policy.params)
    mode = actor.algorithm.distribution.mode

    def act(obs: jax.Array) -> dict[str, jax.Array]:
        outputs = actor.outputs(params, obs)
        action = mode(outputs)
        if not actor.spec.discrete:
            flat = (obs.shape[0], actor.spec.num_actions)
            action = jax.vmap(actor.interface.decode)(action).reshape(flat)
        if not own.is_ours(mode):
            return {"action": action, "outputs": outputs}
        if actor.spec.discrete:
            return {"action": action, "logits": outputs}
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return {"action": action, "mean": mean, "log_std": log_std}

    shape = jax.export.symbolic_shape(f"batch, {actor.spec.obs_size}")
    observation = jax.ShapeDtypeStruct(shape, config.float_type)
    return bytes(jax.export.export(jax.jit(act), platforms=PLATFORMS)(observation).serialize())


def _to_torch(chain: Chain, about: dict[str, str]) -> bytes:
    """A dictionary that `torch.load(…, weights_only=True)` reads, so that loading runs no code.

    "layers" says how to build the nn.Sequential that "state_dict" fits. (TorchScript is
    deprecated, and `torch.export.load` falls back to unpickling whatever is in the file.)
    Observations are normalised by two convolutions of one number each, which subtract and divide,
    and a Hardtanh: BatchNorm1d would take a batch's own moments until somebody calls eval(), and a
    Linear layer has a weight for each pair of numbers. Convolutions of images
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
        size = len(chain.mean)
        layers.append(["Unflatten", 1, [size, 1]])
        ones, zeros = np.ones_like(chain.std), np.zeros_like(chain.std)
        for scale, shift in ((ones, -chain.mean), (1 / chain.std, zeros)):
            state[f"{len(layers)}.weight"] = torch.from_numpy(scale.reshape(size, 1, 1).copy())
            state[f"{len(layers)}.bias"] = torch.from_numpy(shift.copy())
            layers.append(["Conv1d", size, size, 1, 1, 0, 1, size])  # each number for itself
        layers += [["Flatten"], ["Hardtanh", -CLIP, CLIP]]
    activation = [MODULES[chain.activation]]
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
            weight = by_feature(weight, chain)
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


def _missing(target: str, package: str) -> ConfigError:
    return ConfigError(
        f"--to {target} needs {package}, which is not installed: pip install {package}"
    )
