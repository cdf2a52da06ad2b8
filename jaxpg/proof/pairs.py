"""What both packages compute from one config and one seed: pairs of functions, ours and theirs.

Each gives tensors by name; a run gives a record of them for each update. Ours are compiled, as
users run them, and kept, because every fault is held against the same ones.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import torch_ref.algorithms
import torch_ref.learner
import torch_ref.trace
import torch_ref.training
from jaxpg import fast
from jaxpg.core import learner, noise, trace, training
from jaxpg.core.config import Config
from jaxpg.core.distributions import NEVER
from jaxpg.core.types import Algorithm
from jaxpg.names import to_torch
from jaxpg.proof import batch
from jaxpg.proof.batch import twin
from torch_ref import noise as torch_noise

RUN_UPDATES = {  # before chaos parts two runs; on the grid, enough for a fault to show
    "float32": 3,
    "float64": 5,
    "float32_grid": 3,
    "float24_grid": 3,
}


class Pair(NamedTuple):
    """The same computation in both packages."""

    ours: Callable[[Config, int], Any]
    theirs: Callable[[Config, int], Any]


# Noise and initial parameters, bit for bit.


@cache
def our_noise(config: Config, seed: int) -> dict[str, np.ndarray]:
    """All draws of an update, its index being the seed, and the first reset."""
    return draws(config, seed, seed)


def draws(config: Config, seed: int, update: int) -> dict[str, np.ndarray]:
    """All draws of one update, and the first reset; keys as the numbers that they are."""
    drawn = _drawing(config)(noise.streams(noise.key(seed))[2], update)
    return {name: _bits(leaf) for name, leaf in drawn.items()}


@cache
def _drawing(config: Config) -> Callable:
    spec = fast.build(config).env.spec
    steps = learner.max_steps(config, spec)

    def draw(key: jax.Array, update: jax.Array) -> dict[str, Any]:
        drawn = noise.draw(key, update, config, spec, steps)._asdict()
        return drawn | {"first_reset": noise.first_reset(key, config, spec)}

    return jax.jit(
        lambda key, update: {k: v for k, v in draw(key, update).items() if v is not None}
    )


def their_noise(config: Config, seed: int) -> dict[str, Any]:
    """The same of torch_ref."""
    own = twin(config)
    spec = torch_ref.algorithms.build(own).env.spec
    steps = torch_ref.learner.max_steps(own, spec)
    key = torch_noise.streams(torch_noise.key(seed))[2]
    drawn = torch_noise.draw(key, seed, own, spec, steps)._asdict()
    return drawn | {"first_reset": torch_noise.first_reset(key, own, spec)}


@cache
def our_parameters(config: Config, seed: int) -> dict[str, np.ndarray]:
    """The parameters that a seed begins with."""
    return to_torch(_initial(config)(*noise.streams(noise.key(seed))[:2]))


@cache
def _initial(config: Config) -> Callable:
    return jax.jit(fast.build(config).networks.init)


def their_parameters(config: Config, seed: int) -> dict[str, torch.Tensor]:
    """The same of torch_ref."""
    keys = torch_noise.streams(torch_noise.key(seed))[:2]
    return torch_ref.algorithms.build(twin(config)).networks.init(*keys).state_dict()


# Distributions, on outputs and noise that hold the rare events.


def outputs(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Network outputs float64, uniforms float32 and actions: 64 random rows, and four rare ones.

    Logits: u exactly on the CDF of (½, ½), twice; then u at each end of its range, with the action
    whose probability is e^-40, and with the other one. Gaussians: u at each end; squashed, and
    actions so large that their tanh is 1. Choices at once: the third of the first is not allowed.
    """
    rng = np.random.default_rng([seed, 2])
    uniform = (rng.integers(2**23, size=68) * 2.0**-23).astype(np.float32)
    uniform[64:] = (0.5, 0.5, 0.0, 1 - 2.0**-23)
    given = rng.normal(size=(68, 2))
    distribution = batch.distribution(config)
    if distribution in ("gaussian", "squashed"):
        action = rng.normal(size=(68, 1))
        if distribution == "squashed":
            action[64:, 0] = (20.0, -20.0, 25.0, 30.0)
        return {"outputs": given, "uniform": uniform[:, None], "action": action}
    number = np.arange(68) % 2
    if distribution == "masked":
        given = rng.normal(size=(68, 5))
        given[:, 2] = NEVER
        uniform = np.stack([uniform, rng.permutation(uniform)], axis=-1)
        return {"outputs": given, "uniform": uniform, "action": np.stack([number, 1 - number], -1)}
    given[64:66], given[66:], number[66:] = 0.0, ((40.0, 0.0), (0.0, 40.0)), 1
    return {"outputs": given, "uniform": uniform, "action": number}


@cache
def our_distribution(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Actions, sampled and most probable, log π, entropy and KL, and the slopes of the last three
    in the outputs."""
    distribution = fast.build(config).distribution
    given, uniform, action = map(jnp.asarray, outputs(config, seed).values())
    others = jnp.roll(given, 1, axis=0)
    with_slope = {
        "kl": lambda given: distribution.kl(others, given),
        "log_prob": lambda given: distribution.log_prob(given, action),
        "entropy": distribution.entropy,
    }
    results = {"action": distribution.sample(given, uniform), "mode": distribution.mode(given)}
    for name, function in with_slope.items():
        results[name], pullback = jax.vjp(function, given)
        (results[f"slope.{name}"],) = pullback(jnp.ones_like(results[name]))
    return _numpy(results)


def their_distribution(config: Config, seed: int) -> dict[str, torch.Tensor]:
    """The same of torch_ref."""
    distribution = torch_ref.algorithms.build(twin(config)).distribution
    given, uniform, action = map(torch.from_numpy, outputs(config, seed).values())
    others = given.roll(1, 0)
    given.requires_grad_()
    with_slope = {
        "kl": lambda given: distribution.kl(others, given),
        "log_prob": lambda given: distribution.log_prob(given, action),
        "entropy": distribution.entropy,
    }
    results = {"action": distribution.sample(given, uniform), "mode": distribution.mode(given)}
    for name, function in with_slope.items():
        results[name] = function(given)
        (results[f"slope.{name}"],) = torch.autograd.grad(results[name].sum(), given)
    return results


# One shared batch: gradients, and whole updates.


@cache
def our_gradients(config: Config, seed: int) -> dict[str, Any]:
    """Ψ, target, objectives, every gradient leaf; and "scale", what rounding is relative to."""
    side = batch.jax_side(config, seed)
    gradients, terms = _differentiating(config)
    inputs = (side.config, side.state.params, side.trajectory)
    results, gradient = gradients(*inputs)
    tensors = _numpy(results) | prefixed("gradient", to_torch(gradient))
    scale = {name: np.abs(x).max(initial=1.0) if x.ndim == 0 else x for name, x in tensors.items()}
    if config.float_type == "float32":
        scale |= prefixed("gradient", to_torch(terms(*inputs)))
    return tensors | {"scale": scale}


@cache
def _differentiating(config: Config) -> tuple[Callable, Callable]:
    algorithm = fast.build(config)

    def compiled(function: Callable) -> Callable:
        return jax.jit(lambda config, *inputs: function(config, algorithm, *inputs))

    return compiled(batch.gradients), compiled(batch.absolute_terms)


def their_gradients(config: Config, seed: int) -> dict[str, torch.Tensor]:
    """The same of torch_ref, without the scale."""
    results, gradient = batch.torch_gradients(batch.torch_side(config, seed))
    return results | prefixed("gradient", gradient)


@cache
def our_updates(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Metrics of each of two updates on the batch, every gradient, and parameters after it."""
    side = batch.jax_side(config, seed)
    state, results = side.state, dict[str, np.ndarray]()
    for count in range(1, 3):
        state, metrics, gradients = _updating(config)(side.config, state, side.trajectory)
        seen = _numpy(metrics.named()) | prefixed("params", to_torch(state.params))
        results |= prefixed(f"update_{count}", seen | our_gradients_by_step(gradients))
    return results


def our_gradients_by_step(gradients: dict[str, Any]) -> dict[str, np.ndarray]:
    """What a fit gave to its optimizers, by step and torch's names."""
    found = dict[str, np.ndarray]()
    for name, steps in gradients.items():
        for i in range(len(jax.tree.leaves(steps)[0])):
            step = jax.tree.map(lambda x: x[i], steps)
            named = to_torch(step if name == "joint" else {name: step})
            found |= prefixed(f"gradient_{i}", named)
    return found


@cache
def _updating(config: Config) -> Callable:
    algorithm = fast.build(config)

    def update(config: Config, state: Any, trajectory: Any) -> tuple:
        state, seen = learner.watch(config, state, batch.inject(algorithm, trajectory))
        return state, seen.metrics, seen.gradients

    return jax.jit(update)


def their_updates(config: Config, seed: int) -> dict[str, torch.Tensor]:
    """The same of torch_ref."""
    side = batch.torch_side(config, seed)
    state, results = side.state, dict[str, torch.Tensor]()
    for count in range(1, 3):
        state, met = torch_ref.learner.watch(side.config, state, side.algorithm)
        params = {name: leaf.clone() for name, leaf in state.params.state_dict().items()}
        seen = met.metrics.named() | prefixed("params", params)
        results |= prefixed(f"update_{count}", seen | their_gradients_by_step(met.gradients))
    return results


def their_gradients_by_step(gradients: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The same of torch_ref."""
    found = dict[str, torch.Tensor]()
    for name, steps in gradients.items():
        for i, step in enumerate(steps):
            found |= prefixed(f"gradient_{i}", step if name == "joint" else prefixed(name, step))
    return found


# The optimizer alone.


def optimizer_inputs(seed: int) -> tuple[dict[str, np.ndarray], ...]:
    """Three gradients of one parameter group, with norms far below and far above a clip of 0.5."""
    rng = np.random.default_rng([seed, 3])
    shapes = {"weight": (5, 4), "bias": (5,)}
    return tuple(
        {name: size * rng.normal(size=shape) for name, shape in shapes.items()}
        for size in (0.01, 3.0, 0.03)
    )


@cache
def our_steps(config: Config, seed: int) -> dict[str, np.ndarray]:
    """What each of three steps on given gradients moves parameters by that start at 0.

    Not where they are: steps of one size and opposite signs, as RMSprop's first two may be, leave
    next to nothing, of which a rounding of the terms would be a large part.
    """
    traced, algorithm = training.as_arrays(config), fast.build(config)
    given = jax.tree.map(jnp.asarray, optimizer_inputs(seed))
    params = jax.tree.map(jnp.zeros_like, given[0])
    state = algorithm.optimizer(traced).init(params)
    rate: Any = traced.learning_rate
    results: dict[str, np.ndarray] = {}
    for step, gradient in enumerate(given):

        def objective(params: Any) -> tuple[jax.Array, dict]:
            terms = jax.tree.map(lambda x, g: jnp.sum(x * g), params, gradient)
            return jnp.sum(jnp.stack(jax.tree.leaves(terms))), {}

        before = params
        (params, state), _ = learner.descend(traced, algorithm, rate, objective, (before, state))
        moved = jax.tree.map(jnp.subtract, params, before)
        results |= prefixed(f"step_{step}", _numpy(moved))
    return results


def their_steps(config: Config, seed: int) -> dict[str, torch.Tensor]:
    """The same of torch_ref, whose gradients are those of linear objectives."""
    traced = torch_ref.training.as_tensors(twin(config))
    algorithm = torch_ref.algorithms.build(twin(config))
    rate: Any = traced.learning_rate
    given = [{k: torch.from_numpy(x) for k, x in g.items()} for g in optimizer_inputs(seed)]
    module = torch.nn.ParameterDict({k: torch.zeros_like(x) for k, x in given[0].items()})
    optimizer = algorithm.optimizer(traced, module.parameters())
    results: dict[str, torch.Tensor] = {}
    for step, gradient in enumerate(given):

        def objective() -> tuple[torch.Tensor, dict]:
            return torch.stack([(module[k] * g).sum() for k, g in gradient.items()]).sum(), {}

        before = {name: param.detach().clone() for name, param in module.items()}
        torch_ref.learner.descend(traced, algorithm, rate, objective, module, optimizer)
        moved = {name: param.detach() - before[name] for name, param in module.items()}
        results |= prefixed(f"step_{step}", moved)
    return results


# Whole runs, which share nothing but the seed.


@cache
def our_run(config: Config, seed: int) -> list[dict[str, np.ndarray]]:
    """The records of the first updates."""
    return list(trace.records(config, seed, _length(config), _built(config)))


@cache
def _built(config: Config) -> Algorithm:
    """One object, so that its program is compiled once."""
    return fast.build(config)


def their_run(config: Config, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """The same of torch_ref."""
    return torch_ref.trace.records(twin(config), seed, _length(config))


def _length(config: Config) -> int:
    length = RUN_UPDATES[config.arithmetic]
    if config.grid_bits is not None and config.collect == "steps":  # an episode must end
        length = max(length, -(-64 // config.num_steps))
    return length


def _numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def _bits(leaf: Any) -> np.ndarray:
    """Keys as the numbers that they are."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def prefixed(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under names that begin with PREFIX and a dot."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


NOISE = Pair(our_noise, their_noise)
PARAMETERS = Pair(our_parameters, their_parameters)
DISTRIBUTION = Pair(our_distribution, their_distribution)
STEPS = Pair(our_steps, their_steps)
GRADIENTS = Pair(our_gradients, their_gradients)
UPDATES = Pair(our_updates, their_updates)
RUN = Pair(our_run, their_run)
