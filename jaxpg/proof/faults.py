"""Mutation controls: a check that cannot fail proves nothing, so each of these must make it fail.

Every fault is planted in `torch_ref` alone, for as long as its context lasts. `examine` runs the
levels in their order on the fault's control, a small config that passes them all without it, and
reports the first that sees it.
"""

import copy
import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from jaxpg.core.config import Config, EnvParams
from jaxpg.proof import batch
from jaxpg.proof.levels import LEVELS, Level, attempt
from jaxpg.proof.synthetic import DIALS
from torch_ref import (
    advantages,
    algorithms,
    convert,
    distributions,
    env,
    learner,
    losses,
    natural,
    networks,
    noise,
    ppo,
    ring,
    statistics,
)

Plant = AbstractContextManager[Any]

_SMALL = dataclasses.replace(
    batch.small(Config()), hidden_sizes=(5, 5), activation="tanh", gamma=0.9, gae_lambda=0.8
)
_PPO = dataclasses.replace(
    _SMALL,
    fit="ppo",
    epochs=2,
    minibatches=5,
    clip_value=0.1,
    value_steps=1,
    normalize_advantage=True,
    normalize_over="minibatch",
    ent_coef=0.1,
    optimizer_eps=1e-5,
)
_TRPO = dataclasses.replace(  # of two updates the first has its second step, the other has none
    _SMALL,
    collect="episodes",
    fit="trpo",
    max_kl=0.1,
    damping=1e-3,
    cg_steps=20,
    backtrack_steps=3,
    ent_coef=0.1,
)
CONTROLS = {
    "episodes": dataclasses.replace(
        _SMALL,
        collect="episodes",
        reduction="trajectories",
        discounting="absolute",
        normalize_advantage=True,
        ent_coef=0.1,
    ),
    "steps": dataclasses.replace(
        _SMALL,
        estimator="td_error",
        value_target="td0",
        value_data="replay",
        optimizer="sgd",
        max_grad_norm=None,
    ),
    "returns": dataclasses.replace(
        _SMALL,
        collect="episodes",
        estimator="reward_to_go",
        value_target="monte_carlo",
        optimizer="rmsprop",
        max_grad_norm=None,
    ),
    "constant": dataclasses.replace(
        _SMALL, collect="episodes", estimator="reward_to_go", baseline="constant"
    ),
    "group": dataclasses.replace(
        _SMALL,
        collect="episodes",
        estimator="reward_to_go",
        baseline="group",
        group_std=True,
        reduction="trajectory_means",
    ),
    "shared": dataclasses.replace(_SMALL, networks="shared", value_steps=1),
    "orthogonal": dataclasses.replace(_SMALL, init="orthogonal"),
    "gaussian": dataclasses.replace(_SMALL, env="Pendulum-v1"),
    "squashed": dataclasses.replace(_SMALL, env="Pendulum-v1", squash=True, ent_coef=0.1),
    "masked": dataclasses.replace(_SMALL, env=DIALS, ent_coef=0.1, normalize_obs=True),
    "parameters": dataclasses.replace(
        _SMALL,
        env_params=EnvParams({"masspole": 0.3, "length": 0.8, "force_mag": 7.0, "tau": 0.05}),
    ),
    "npg": dataclasses.replace(_SMALL, env="Pendulum-v1", fit="npg", cg_steps=5),
    "trpo": _TRPO,
    "trpo, entropy": dataclasses.replace(_TRPO, ent_coef=1.0, max_kl=0.3),
    "ppo": _PPO,
    "ppo stops": dataclasses.replace(_PPO, target_kl=0.1),
    "ppo joint": dataclasses.replace(_PPO, joint_loss=True, vf_coef=0.3),
    "moments": dataclasses.replace(
        _PPO, joint_loss=True, normalize_obs=True, normalize_reward=True, max_grad_norm=None
    ),
    "moments of episodes": dataclasses.replace(
        _SMALL, collect="episodes", normalize_obs=True, normalize_reward=True
    ),
    "images": dataclasses.replace(
        _SMALL, env="Catch-bsuite", conv_features=(3, 2), hidden_sizes=(5,), frame_stack=2
    ),
    "frames": dataclasses.replace(_SMALL, frame_stack=3),
}
"""Small configs that between them do everything a fault can spoil."""
EXACT = tuple(level for level in LEVELS if "float32" not in level.name)
"""The levels that are tried: those in float32 see nothing that these do not."""


class Fault(NamedTuple):
    """One mistake; its function's docstring says which."""

    plant: Callable[[], Plant]
    control: str  # name of a config in CONTROLS

    @property
    def name(self) -> str:
        return self.plant.__name__.replace("_", " ")

    @property
    def description(self) -> str:
        return (self.plant.__doc__ or "").strip()


class Catch(NamedTuple):
    """How a fault was seen."""

    fault: str
    description: str
    control: str
    level: str | None  # the first that fails; None: the fault passes them all
    where: str  # leaf; in a run update, step and tensor. Without a level: what is wrong
    error: float  # relative; inf where shapes, names or an exception tell
    seconds: float


def examine(fault: Fault, levels: Sequence[Level] = EXACT) -> Catch:
    """Plant a fault and run the levels until one fails; each must pass without the fault."""
    began, config = time.perf_counter(), CONTROLS[fault.control]

    def catch(level: str | None, where: str, error: float) -> Catch:
        seconds = round(time.perf_counter() - began, 2)
        names = (fault.name, fault.description, fault.control)
        return Catch(*names, level, where, error, seconds)

    for level in levels:
        sound = attempt(level, config, 0)
        if not sound.passed:
            return catch(None, f"{level.name} fails without the fault: {sound.where}", sound.error)
        with fault.plant():
            found = attempt(level, config, 0)
        if not found.passed:
            return catch(level.name, found.where, found.error)
    return catch(None, "not caught", 0.0)


# How faults are planted.


def _wrap(module: Any, name: str, change: Callable[..., Any]) -> Plant:
    """module.name(...) becomes change(the original, ...)."""
    original = getattr(module, name)
    return mock.patch.object(
        module, name, lambda *args, **kwargs: change(original, *args, **kwargs)
    )


def _trajectory(change: Callable[[Any], dict[str, Any]]) -> Plant:
    """Ψ and the value target are estimated from a trajectory with other rows."""

    def estimate(original: Callable, *inputs: Any) -> Any:
        config, algorithm, params, t, *samples = inputs
        return original(config, algorithm, params, t._replace(**change(t)), *samples)

    return _wrap(learner, "estimate", estimate)


def _objective(change: Callable[[Any], Any]) -> Plant:
    """The policy's objective has another config."""
    return _wrap(
        learner, "policy_objective", lambda original, config, *rest: original(change(config), *rest)
    )


def _parts(change: Callable[[Any], dict[str, Any]]) -> Plant:
    """The algorithm is built with other parts."""

    def build(original: Callable, *inputs: Any) -> Any:
        algorithm = original(*inputs)
        return algorithm._replace(**change(algorithm))

    return _wrap(algorithms, "build", build)


def _descent(change: Callable[[Any, Any], tuple[Any, Any]]) -> Plant:
    """The optimizer steps with another config and rate."""

    def descend(original: Callable, config: Any, algorithm: Any, rate: Any, *rest: Any) -> Any:
        config, rate = change(config, rate)
        return original(config, algorithm, rate, *rest)

    return _wrap(learner, "descend", descend)


def _fit(change: Callable[[Any], Any]) -> Plant:
    """The fit has another config."""
    return mock.patch.dict(
        algorithms.FITS,
        {
            name: lambda config, *rest, fit=fit: fit(change(config), *rest)
            for name, fit in algorithms.FITS.items()
        },
    )


def _surrogate(change: Callable[..., Any]) -> Plant:
    """PPO's objective of the policy becomes change(the original, config, algorithm, params, …)."""
    original = ppo.surrogate_objective
    return mock.patch.dict(ppo.OBJECTIVES, policy=lambda *inputs: change(original, *inputs))


def _batch(change: Callable[[Any], dict[str, Any]]) -> Plant:
    """PPO is given another batch."""

    def fit(config: Any, algorithm: Any, learned: Any, batch: Any) -> Any:
        return ppo.fit(config, algorithm, learned, batch._replace(**change(batch)))

    return mock.patch.dict(algorithms.FITS, ppo=fit)


def _optimizer(name: str, make: Callable[[Any, Any], torch.optim.Optimizer]) -> Plant:
    return mock.patch.dict(learner.OPTIMIZERS, {name: make})


def _replaced(config: Any, **fields: Callable[[Any], Any]) -> Any:
    changed = {name: change(getattr(config, name)) for name, change in fields.items()}
    return dataclasses.replace(config, **changed)


# Noise and initial parameters.


def swapped_keys() -> Plant:
    """The policy starts from the critic's key, and the critic from the policy's."""
    return _wrap(noise, "streams", lambda original, key: original(key)[[1, 0, 2]])


def one_key_used_twice() -> Plant:
    """Actions are drawn with the key of the resets."""

    def draw(original: Callable, key_run: Any, update: int, *rest: Any) -> Any:
        drawn = original(key_run, update, *rest)
        key_reset, *_ = noise.split(noise.fold_in(key_run, update + 1), 4)
        action = noise.uniform(key_reset, tuple(drawn.action.shape))
        return drawn._replace(action=torch.from_numpy(action))

    return _wrap(noise, "draw", draw)


def noise_of_the_update_before() -> Plant:
    """An update takes the noise that the one before it took."""

    def draw(original: Callable, key_run: Any, update: int, *rest: Any) -> Any:
        return original(key_run, update - 1, *rest)

    return _wrap(noise, "draw", draw)


def uniform_with_24_bits() -> Plant:
    """Uniforms take 24 random bits, jax's 23."""

    def uniform(key: Any, shape: Any) -> np.ndarray:
        bits = noise.bits(key, shape) >> np.uint32(8)
        return bits.astype(np.float32) * np.float32(2.0**-24)

    return mock.patch.object(noise, "uniform", uniform)


def initial_kernel_transposed() -> Plant:
    """A square layer starts with the transpose of its kernel."""

    def init_mlp(original: Callable, *inputs: Any, **choices: Any) -> Any:
        mlp = original(*inputs, **choices)
        for layer in mlp.children():
            if isinstance(layer, torch.nn.Linear) and layer.in_features == layer.out_features:
                layer.weight.data = layer.weight.data.T.clone()
        return mlp

    return _wrap(networks, "init_mlp", init_mlp)


def gains_of_the_heads_swapped() -> Plant:
    """The policy's output starts with gain 1, the value's with 0.01."""
    return mock.patch.dict(networks.HEAD_GAINS, policy=1.0, value=0.01)


def hidden_gain_forgotten() -> Plant:
    """Hidden layers start with gain 1, and not √2."""
    return mock.patch.object(networks, "HIDDEN_GAIN", 1.0)


def orthogonal_with_the_signs_of_lapack() -> Plant:
    """Q of a QR decomposition as it comes, whatever the signs of R's diagonal."""

    def orthogonal(noise: np.ndarray) -> np.ndarray:
        wide = noise.shape[0] <= noise.shape[1]
        q, _ = np.linalg.qr(noise.T if wide else noise)
        return q.T if wide else q

    return mock.patch.object(networks, "orthogonal", orthogonal)


def orthogonal_by_columns() -> Plant:
    """A square kernel's columns are made orthonormal in their order, and not its rows."""
    return _wrap(networks, "orthogonal", lambda original, noise: original(noise.T).T)


def orthogonal_from_uniform_noise() -> Plant:
    """Noise of one draw an entry, which has more of some directions than of others."""
    return mock.patch.object(networks, "DRAWS", 1)


def biases_beside_orthogonal_kernels() -> Plant:
    """Biases start as torch's do, and not at 0."""

    def layer(key: Any, inputs: int, outputs: int, *, gain: float) -> Any:
        kernel, _ = networks.orthogonal_layer(key, inputs, outputs, gain=gain)
        return kernel, networks.uniform_layer(key, inputs, outputs, gain=gain)[1]

    return mock.patch.dict(networks.LAYERS, orthogonal=layer)


# Distributions.


def action_from_less_or_equal() -> Plant:
    """Inverse CDF with u > cdf for u ≥ cdf: differs only where u is exactly on the CDF."""

    def sample(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        cdf = torch.cumsum(torch.softmax(logits, dim=-1), dim=-1)
        return torch.sum(uniform.to(logits.dtype)[..., None] > cdf[..., :-1], dim=-1)

    return _parts(lambda a: {"distribution": a.distribution._replace(sample=sample)})


def log_of_a_clamped_softmax() -> Plant:
    """log π from probabilities clamped to [ε, 1 - ε], as torch's Categorical(probs) has it."""

    def log_prob(logits: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        eps = torch.finfo(logits.dtype).eps
        probs = torch.softmax(logits, dim=-1).clamp(eps, 1 - eps)
        return torch.gather(probs.log(), -1, action[..., None])[..., 0]

    return _parts(lambda a: {"distribution": a.distribution._replace(log_prob=log_prob)})


def variance_for_standard_deviation() -> Plant:
    """A Gaussian's log σ is read as the logarithm of its variance."""

    def halved(function: Callable) -> Callable:
        def other(outputs: torch.Tensor, *rest: Any) -> torch.Tensor:
            mean, log_std = torch.chunk(outputs, 2, dim=-1)
            return function(torch.cat([mean, 0.5 * log_std], dim=-1), *rest)

        return other

    return _parts(lambda a: {"distribution": type(a.distribution)(*map(halved, a.distribution))})


def _log_prob(change: Callable[..., Any]) -> Plant:
    """log π becomes change(the original, outputs, action)."""
    return _distribution("log_prob", change)


def _distribution(name: str, change: Callable[..., Any]) -> Plant:
    """A function of the distribution becomes change(the original, …)."""

    def parts(a: Any) -> dict[str, Any]:
        changed = partial(change, getattr(a.distribution, name))
        return {"distribution": a.distribution._replace(**{name: changed})}

    return _parts(parts)


def slope_of_tanh_forgotten() -> Plant:
    """log π of a squashed action is that of the Gaussian."""
    return _log_prob(lambda original, *inputs: distributions.gaussian_log_prob(*inputs))


def slope_of_tanh_multiplied() -> Plant:
    """The density of a squashed action is the Gaussian's times the slope of tanh, not over it."""
    return _log_prob(
        lambda original, *inputs: 2 * distributions.gaussian_log_prob(*inputs) - original(*inputs)
    )


def slope_of_tanh_as_it_is_written() -> Plant:
    """log(1 - tanh²), which is -∞ where the tanh is rounded to 1."""

    def log_prob(original: Callable, outputs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        slope = torch.log(1.0 - torch.tanh(action) ** 2)
        return distributions.gaussian_log_prob(outputs, action) - slope.sum(-1)

    return _log_prob(log_prob)


def density_at_the_squashed_action() -> Plant:
    """log π takes the action's tanh for what was sampled."""
    return _log_prob(lambda original, outputs, action: original(outputs, torch.tanh(action)))


def tanh_applied_twice() -> Plant:
    """The action is squashed as it is sampled, and once more where the environment is stepped."""
    return _distribution("sample", lambda original, *inputs: torch.tanh(original(*inputs)))


def entropy_before_squashing() -> Plant:
    """The bonus is the Gaussian's entropy, which grows without bounds."""
    return _distribution(
        "entropy", lambda original, outputs: distributions.gaussian_entropy(outputs)
    )


def slope_of_tanh_at_the_mean() -> Plant:
    """The entropy's expectation is the slope's logarithm at the Gaussian's mean."""
    return _both(
        mock.patch.object(distributions, "POINTS", [0.0]),
        mock.patch.object(distributions, "WEIGHTS", [1.0]),
    )


def bounds_not_scaled_to() -> Plant:
    """A squashed action is in (-1, 1), whatever the bounds are."""
    return _wrap(env, "bounded", lambda original, action, *_: torch.tanh(action))


def one_draw_for_all_choices() -> Plant:
    """What the first of choices at once is sampled by samples the others, too."""
    return _distribution(
        "sample",
        lambda original, outputs, uniform: original(outputs, uniform[..., :1].expand_as(uniform)),
    )


def mean_over_choices() -> Plant:
    """log π of choices at once is the mean of theirs, and not the sum."""
    return _log_prob(lambda original, outputs, action: original(outputs, action) / action.shape[-1])


def _mask(change: Callable[..., Any]) -> Plant:
    """What is left of logits becomes change(the original, logits, allowed)."""
    return _wrap(networks, "allowed_only", change)


def mask_in_acting_alone() -> Plant:
    """What is learned from has the probabilities of all actions."""
    return _mask(
        lambda original, logits, allowed: (
            logits if torch.is_grad_enabled() else original(logits, allowed)
        )
    )


def mask_in_learning_alone() -> Plant:
    """Actions are taken, allowed or not, and learned from as if they had been allowed."""
    return _mask(
        lambda original, logits, allowed: (
            original(logits, allowed) if torch.is_grad_enabled() else logits
        )
    )


def mask_as_a_penalty() -> Plant:
    """The logits of what is not allowed are less by 10."""
    return _mask(lambda original, logits, allowed: torch.where(allowed, logits, logits - 10.0))


def mask_of_the_state_that_follows() -> Plant:
    """What is learned from has the masks of the observations after its actions."""

    def change(t: Any) -> dict[str, Any]:
        return {"obs": torch.cat([t.obs[..., :-5], t.next_obs[..., -5:]], dim=-1)}

    return _trajectory(change)


def mask_of_the_normalised_observation() -> Plant:
    """A mask is read after an observation is normalised, so that most of it allows nothing."""

    def make(original: Callable, config: Any, spec: Any) -> Any:
        plain = original(dataclasses.replace(config, normalize_obs=False), spec)
        return networks.normalized(plain, config, spec)

    return _wrap(networks, "make", make)


# Ψ and the value target.


def gamma_off_by_1e_7() -> Plant:
    """γ + 1e-7 in GAE."""
    return _wrap(
        advantages, "gae", lambda gae, *x, gamma, gae_lambda: gae(
            *x, gamma=gamma + 1e-7, gae_lambda=gae_lambda
        )
    )  # fmt: skip


def lambda_off_by_1e_7() -> Plant:
    """λ + 1e-7 in GAE."""
    return _wrap(
        advantages, "gae", lambda gae, *x, gamma, gae_lambda: gae(
            *x, gamma=gamma, gae_lambda=gae_lambda + 1e-7
        )
    )  # fmt: skip


def gae_runs_through_truncations() -> Plant:
    """GAE's recursion is not cut where the view of an episode was."""

    def gae(original: Callable, *inputs: Any, **coefficients: Any) -> torch.Tensor:
        *rest, truncated = inputs
        return original(*rest, torch.zeros_like(truncated), **coefficients)

    return _wrap(advantages, "gae", gae)


def truncation_as_termination() -> Plant:
    """A time limit counts as death: nothing is bootstrapped there."""
    return _trajectory(
        lambda t: {
            "terminated": t.terminated | t.truncated,
            "truncated": torch.zeros_like(t.truncated),
        }
    )


def bootstrap_from_the_reset_observation() -> Plant:
    """V of the row that follows, which after an episode's end begins the next episode."""
    return _trajectory(lambda t: {"next_obs": t.obs.roll(-1, 0)})


def time_off_by_one() -> Plant:
    """γ^(t+1) for γ^t in absolute discounting."""
    return _wrap(
        advantages, "discount_from_start", lambda f, time, *, gamma: f(time + 1, gamma=gamma)
    )


def absolute_for_relative_discount() -> Plant:
    """Ψ is weighted by γ^t where the config asks for the relative one."""

    def make(original: Callable, config: Any) -> Any:
        return original(dataclasses.replace(config, discounting="absolute"))

    return _wrap(algorithms, "make_advantage", make)


def standard_deviation_with_ddof_1() -> Plant:
    """Ψ is divided by the standard deviation that torch.std gives."""
    return _normalize(lambda psi, some: (psi - some.mean()) / (some.std() + 1e-8))


def epsilon_inside_the_root() -> Plant:
    """Ψ is divided by √(σ² + ε) instead of σ + ε."""
    return _normalize(
        lambda psi, some: (psi - some.mean()) / (some.var(correction=0) + 1e-8).sqrt()
    )


def padding_in_the_statistics() -> Plant:
    """Ψ's mean and standard deviation are taken over the padding too."""
    return _normalize(lambda psi, some: (psi - psi.mean()) / (psi.std(correction=0) + 1e-8))


def _normalize(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Plant:
    def normalize(advantage: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.where(valid, change(advantage, advantage[valid]), 0.0)

    return mock.patch.object(advantages, "normalize", normalize)


def average_that_includes_ones_own_return() -> Plant:
    """The constant baseline is the mean of all trajectories, not of the others."""
    return mock.patch.object(
        advantages, "leave_one_out", lambda returns: returns.mean().expand_as(returns)
    )


def group_with_ddof_1() -> Plant:
    """The group's standard deviation is divided by N - 1."""

    def relative(psi: Any, returns: Any, *, std: bool) -> Any:
        return (psi - returns.mean()) / (returns.std() + 1e-8)

    return mock.patch.object(advantages, "relative_to_group", relative)


def group_without_oneself() -> Plant:
    """The group's mean is that of the others."""

    def relative(psi: Any, returns: Any, *, std: bool) -> Any:
        return (psi - advantages.leave_one_out(returns)) / (returns.std(correction=0) + 1e-8)

    return mock.patch.object(advantages, "relative_to_group", relative)


def lengths_with_the_padding() -> Plant:
    """A trajectory's sum is divided by the number of rows, not of valid steps."""

    def loss(log_prob: Any, advantage: Any, valid: Any) -> Any:
        return -torch.where(valid, log_prob * advantage.detach(), 0.0).mean(dim=0).mean()

    return mock.patch.dict(algorithms.POLICY_LOSSES, trajectory_means=loss)


def baseline_broadcast() -> Plant:
    """Returns [T] less values [T, 1]: each return less the mean of all values."""

    def reward_to_go(t: Any, value: torch.Tensor, next_value: torch.Tensor, **rest: Any) -> Any:
        returns = algorithms.monte_carlo(t, value, next_value, **rest)
        return (returns[:, None] - value[None, :]).mean(dim=1)

    return mock.patch.dict(algorithms.ESTIMATORS, reward_to_go=reward_to_go)


def float32_returns() -> Plant:
    """Returns are summed in float32 and put into a float64 run."""

    def discounted_return(original: Callable, *inputs: Any, gamma: Any) -> torch.Tensor:
        reward, next_value, *ends = inputs
        returns = original(reward.float(), next_value.float(), *ends, gamma=gamma.float())
        return returns.to(reward.dtype)

    return _wrap(advantages, "discounted_return", discounted_return)


# Losses and gradients.


def mean_for_sum() -> Plant:
    """The policy loss is a mean over steps where the sum over time is asked for."""
    return mock.patch.dict(algorithms.POLICY_LOSSES, trajectories=losses.policy_loss_steps)


def padding_in_the_mean() -> Plant:
    """Means divide by all steps, not by the valid ones."""

    def masked_mean(x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.where(valid, x, 0.0).mean()

    return mock.patch.object(losses, "masked_mean", masked_mean)


def mask_off_by_one() -> Plant:
    """The loss counts the step after each episode's last, and not its first."""

    def objective(original: Callable, *inputs: Any) -> Any:
        *rest, batch = inputs
        return original(*rest, batch._replace(valid=batch.valid.roll(1, 0)))

    return _wrap(learner, "policy_objective", objective)


def entropy_with_the_wrong_sign() -> Plant:
    """The bonus is a malus."""
    return _objective(lambda config: _replaced(config, ent_coef=lambda x: -x))


def entropy_missing_from_the_loss() -> Plant:
    """Entropy is reported and not differentiated, as in a well-known library for years."""
    return _objective(lambda config: _replaced(config, ent_coef=lambda x: 0.0 * x))


def half_the_value_loss() -> Plant:
    """½ (V - target)² for (V - target)²."""
    return _wrap(learner, "value_loss", lambda original, *inputs: 0.5 * original(*inputs))


def value_loss_broadcast() -> Plant:
    """Values [B, 1] less targets [B]: a [B, B] matrix of errors."""

    def value_loss(value: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> Any:
        error = value[valid][:, None] - target[valid][None, :]
        return (error * error).mean()

    return mock.patch.object(learner, "value_loss", value_loss)


def baseline_not_detached() -> Plant:
    """The policy's loss sends a gradient through Ψ into the critic."""

    def leaking(log_prob: torch.Tensor, advantage: torch.Tensor, valid: torch.Tensor) -> Any:
        return -torch.sum(torch.where(valid, log_prob * advantage, 0.0)) / log_prob.shape[1]

    return _both(
        _no_constants(),
        mock.patch.dict(algorithms.POLICY_LOSSES, trajectories=leaking),
    )


def target_not_detached() -> Plant:
    """The critic's loss sends a gradient through its bootstrapped target."""

    def value_loss(value: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> Any:
        return losses.masked_mean((value - target) ** 2, valid)

    return _both(
        _no_constants(),
        mock.patch.object(learner, "value_loss", value_loss),
    )


def _no_constants() -> Plant:
    """`estimate` without its no_grad."""
    return mock.patch.object(learner, "estimate", inspect.unwrap(learner.estimate))


@contextmanager
def _both(first: Plant, second: Plant) -> Iterator[None]:
    with first, second:
        yield


def transposed_kernel() -> Plant:
    """A square layer's kernel is converted without its transpose."""

    def to_torch(original: Callable, params: Any) -> Any:
        converted = original(params)
        for name, weight in converted.items():
            if weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
                converted[name] = weight.T.clone()
        return converted

    return _wrap(convert, "to_torch", to_torch)


def missing_bias_gradient() -> Plant:
    """The output layer's bias is never updated."""

    def init_mlp(original: Callable, *inputs: Any, **choices: Any) -> Any:
        mlp = original(*inputs, **choices)
        mlp.output.bias.register_hook(torch.zeros_like)
        return mlp

    return _wrap(networks, "init_mlp", init_mlp)


def torso_without_the_value_gradient() -> Plant:
    """The value head reads the shared torso's features as constants."""

    def value(params: Any, obs: torch.Tensor) -> torch.Tensor:
        return params["value"](params["torso"](obs).detach())[..., 0]

    return _parts(lambda a: {"networks": a.networks._replace(value=value)})


# Images, and stacked observations.


def channels_before_the_pixels() -> Plant:
    """An observation [height, width, channels] is read as [channels, height, width]."""

    def channels_first(x: torch.Tensor) -> torch.Tensor:
        count, height, width, channels = x.shape
        return x.reshape(count, channels, height, width)

    return mock.patch.object(networks, "_channels_first", channels_first)


def height_and_width_exchanged() -> Plant:
    """Convolutions see an image lying on its side."""
    return mock.patch.object(networks, "_channels_first", lambda x: x.permute(0, 3, 2, 1))


def features_flattened_by_channel() -> Plant:
    """The hidden layer is given torch's order of features, [features, height, width]."""
    return mock.patch.object(networks, "_channels_last", lambda x: x)


def kernel_turned_around() -> Plant:
    """A true convolution, whose kernel is turned by half a turn."""
    return _wrap(
        torch.nn.functional,
        "conv2d",
        lambda original, x, weight, *rest: original(x, weight.flip(2, 3), *rest),
    )


def kernel_of_a_convolution_by_channel() -> Plant:
    """A convolution's first kernel is drawn as [in, 3, 3, out]."""

    def weight(original: Callable, kernel: torch.Tensor, name: str) -> torch.Tensor:
        if not name.startswith("conv"):
            return original(kernel, name)
        size, features = networks.KERNEL, kernel.shape[1]
        return kernel.reshape(-1, size, size, features).permute(3, 0, 1, 2)

    return _wrap(networks, "_weight", weight)


def convolutions_without_a_nonlinearity() -> Plant:
    """The activation comes after hidden layers alone."""

    def init_mlp(original: Callable, *inputs: Any, **choices: Any) -> Any:
        mlp = original(*inputs, **choices)
        for name, layer in mlp.named_children():
            if name.startswith("conv_tanh"):
                layer.forward = algorithms.as_it_is
        return mlp

    return _wrap(networks, "init_mlp", init_mlp)


def fan_in_of_the_channels_alone() -> Plant:
    """A convolution starts as wide as if its kernel were one pixel."""

    def weight(original: Callable, kernel: torch.Tensor, name: str) -> torch.Tensor:
        wider = networks.KERNEL if name.startswith("conv") else 1
        return wider * original(kernel, name)

    return _wrap(networks, "_weight", weight)


def _stacked(change: Callable[..., Any]) -> Plant:
    """The environment that stacks becomes change(itself, how many it stacks)."""

    def stack(original: Callable, world: Any, count: int) -> Any:
        return change(original(world, count), count)

    return _wrap(env, "stack_frames", stack)


def newest_frame_first() -> Plant:
    """What was observed last comes first."""

    def change(world: Any, count: int) -> Any:
        def turned(state: Any) -> Any:
            frames = env._frames(state.obs, world.spec, count).flip(2)
            return state._replace(obs=frames.reshape(state.obs.shape))

        def step(key: Any, state: Any, action: torch.Tensor) -> tuple:
            after, *rest = world.step(key, turned(state), action)
            return turned(after), *rest

        return world._replace(
            reset=lambda *inputs: turned(world.reset(*inputs)),
            step=step,
            restart=lambda state, *inputs: turned(world.restart(turned(state), *inputs)),
        )

    return _stacked(change)


def frames_beside_one_another() -> Plant:
    """Stacked vectors are interleaved: the first entry of each, the second of each."""

    def frames(obs: torch.Tensor, spec: Any, count: int) -> torch.Tensor:
        return obs.reshape(len(obs), 1, -1, count).swapaxes(2, 3)

    return mock.patch.object(env, "_frames", frames)


def frames_of_the_episode_before() -> Plant:
    """A new episode begins with its first observation behind those of the last one."""

    def change(world: Any, count: int) -> Any:
        def restart(state: Any, done: torch.Tensor, noise: Any) -> Any:
            fresh = world.restart(state, done, noise)
            kept = env._frames(state.obs, world.spec, count)[:, :, 1:]
            new = env._frames(fresh.obs, world.spec, count)[:, :, -1:]
            obs = torch.cat([kept, new], dim=2).reshape(state.obs.shape)
            return fresh._replace(obs=torch.where(done[:, None], obs, state.obs))

        return world._replace(restart=restart)

    return _stacked(change)


def zeros_before_the_first_frame() -> Plant:
    """What would have been before an episode is zero, not its first observation."""

    def change(world: Any, count: int) -> Any:
        def emptied(state: Any, fresh: torch.Tensor) -> Any:
            frames = env._frames(state.obs, world.spec, count).clone()
            frames[fresh, :, :-1] = 0.0
            return state._replace(obs=frames.reshape(state.obs.shape))

        def reset(*inputs: Any) -> Any:
            state = world.reset(*inputs)
            return emptied(state, state.time == 0)

        return world._replace(
            reset=reset,
            restart=lambda state, done, noise: emptied(world.restart(state, done, noise), done),
        )

    return _stacked(change)


def ball_in_four_columns() -> Plant:
    """Catch's ball begins in one of four columns."""

    def catch(original: Callable, *inputs: Any) -> Any:
        world = original(*inputs)
        return world._replace(reset=lambda noise, *rest: world.reset(0.8 * noise, *rest))

    return _wrap(env, "catch", catch)


# The optimizer.


def learning_rate_off_by_1e_6() -> Plant:
    """Learning rate times 1 + 1e-6."""
    return _descent(lambda config, rate: (config, rate * (1 + 1e-6)))


def clip_off_by_1e_6() -> Plant:
    """1e-6 is added to the norm before clipping, as clip_grad_norm_ does."""
    return _wrap(learner, "global_norm", lambda norm, gradients: norm(gradients) + 1e-6)


def clipping_forgotten() -> Plant:
    """The gradient is never clipped."""
    return _descent(lambda config, rate: (_replaced(config, max_grad_norm=lambda _: None), rate))


class _Adam(torch.optim.Optimizer):
    """Adam, with a choice of mistakes."""

    def __init__(self, params: Any, count: int = 0, eps: float = 1e-8, inside: bool = False):
        super().__init__(params, {"lr": 0.0})
        self.count, self.eps, self.inside = count, eps, inside

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        for param in self.param_groups[0]["params"]:
            zero = torch.zeros_like(param)
            old = self.state[param] or {"m": zero, "v": zero}
            m = 0.9 * old["m"] + 0.1 * param.grad
            v = 0.999 * old["v"] + 0.001 * param.grad**2
            self.state[param] = {"m": m, "v": v}
            m, v = m / (1 - 0.9**self.count), v / (1 - 0.999**self.count)
            scale = (v + self.eps).sqrt() if self.inside else v.sqrt() + self.eps
            param -= self.param_groups[0]["lr"] * m / scale


def adam_epsilon_inside_the_root() -> Plant:
    """Adam divides by √(v + ε) instead of √v + ε."""
    return _optimizer("adam", lambda config, params: _Adam(params, inside=True))


def adam_bias_correction_off_by_one() -> Plant:
    """Adam's bias correction counts one step too many."""
    return _optimizer("adam", lambda config, params: _Adam(params, count=1))


def adam_epsilon_of_1e_7() -> Plant:
    """Adam's ε is Keras's."""
    return _optimizer("adam", lambda config, params: _Adam(params, eps=1e-7))


def rmsprop_epsilon_inside_the_root() -> Plant:
    """RMSprop divides by √(v + ε), as optax does if it is not told."""

    class RMSprop(_Adam):
        def step(self, closure: Any = None) -> Any:
            for param in self.param_groups[0]["params"]:
                old = self.state[param].get("v", torch.zeros_like(param))
                v = 0.99 * old + 0.01 * param.grad**2
                self.state[param] = {"v": v}
                param -= self.param_groups[0]["lr"] * param.grad / (v + 1e-8).sqrt()

    return _optimizer("rmsprop", lambda config, params: RMSprop(params))


def gradients_that_pile_up() -> Plant:
    """zero_grad is forgotten."""
    return mock.patch.object(torch.optim.Optimizer, "zero_grad")


def weight_decay() -> Plant:
    """SGD with a weight decay of 1e-6."""
    return _optimizer(
        "sgd", lambda config, params: torch.optim.SGD(params, lr=0.0, weight_decay=1e-6)
    )


# The update as a whole.


def schedule_one_update_early() -> Plant:
    """The learning rate falls one update too early."""
    return _wrap(learner, "rates", lambda original, config, update: original(config, update + 1))


def one_value_step_too_many() -> Plant:
    """The critic takes one step more than it is told."""
    return _fit(lambda config: _replaced(config, value_steps=lambda x: x + 1))


def policy_after_the_value_step() -> Plant:
    """Ψ is estimated with the critic that this update has already fitted."""

    def learn(original: Callable, config: Any, algorithm: Any, learned: Any, *inputs: Any) -> Any:
        ahead = copy.deepcopy(learned)
        original(config, algorithm, ahead, *inputs)
        late = learner.estimate(config, algorithm, ahead.params, *inputs)
        batch = learner.estimate(config, algorithm, learned.params, *inputs)
        batch = batch._replace(advantage=late.advantage)
        learned, fitted = algorithm.fit(config, algorithm, learned, batch)
        return learned, batch, fitted

    return _wrap(learner, "learn", learn)


def critic_with_the_rate_of_the_policy() -> Plant:
    """value_learning_rate is ignored."""
    return _fit(lambda c: dataclasses.replace(c, value_learning_rate=c.learning_rate))


def replay_with_replacement() -> Plant:
    """Transitions are sampled with replacement."""

    def sample(ring: Any, bits: np.ndarray, batch_size: int) -> Any:
        chosen = np.random.default_rng(bits).integers(ring.filled, size=batch_size)
        return tuple(rows[chosen] for rows in ring.rows), torch.ones(batch_size, dtype=torch.bool)

    return mock.patch.object(ring, "sample", sample)


def buffer_off_by_one() -> Plant:
    """The ring holds one transition less."""
    return _wrap(ring, "empty", lambda original, row, size: original(row, size - 1))


def replay_without_a_terminal_mask() -> Plant:
    """What follows a replayed termination is bootstrapped."""

    def sample(original: Callable, *inputs: Any) -> Any:
        (*rest, terminated), valid = original(*inputs)
        return (*rest, torch.zeros_like(terminated)), valid

    return _wrap(ring, "sample", sample)


# PPO.


def entropy_beside_the_loss() -> Plant:
    """The entropy is in the reported loss, and not in its gradient."""

    def change(original: Callable, config: Any, *rest: Any) -> tuple:
        loss, parts = original(config, *rest)
        entropy = config.ent_coef * parts["entropy"]
        return loss + entropy - entropy.detach(), parts

    return _surrogate(change)


def ratio_to_the_policy_itself() -> Plant:
    """The ratio's denominator is the probability under the policy that is being fitted."""

    def change(original: Callable, config: Any, algorithm: Any, params: Any, batch: Any) -> tuple:
        with torch.no_grad():
            outputs = algorithm.networks.policy(params, batch.obs)
            now = algorithm.distribution.log_prob(outputs, batch.action)
        return original(config, algorithm, params, batch._replace(log_prob=now))

    return _surrogate(change)


def old_probabilities_of_each_epoch() -> Plant:
    """From the second epoch on, the old probabilities are those at the epoch's beginning."""

    def fit(config: Any, algorithm: Any, learned: Any, batch: Any) -> Any:
        calls: list[int] = []

        def minibatches(original: Callable, config: Any, batch: Any, keys: Any) -> Any:
            if calls:
                with torch.no_grad():
                    outputs = algorithm.networks.policy(learned.params, batch.obs)
                    now = algorithm.distribution.log_prob(outputs, batch.action)
                batch = batch._replace(log_prob=now)
            calls.append(1)
            return original(config, batch, keys)

        with _wrap(ppo, "minibatches", minibatches):
            return ppo.fit(config, algorithm, learned, batch)

    return mock.patch.dict(algorithms.FITS, ppo=fit)


def clip_above_whatever_the_advantage() -> Plant:
    """Where Ψ < 0 the ratio is bounded from above, too, instead of from below."""
    return _wrap(
        ppo,
        "clipped_ratio",
        lambda original, log_ratio, advantage, **rest: original(log_ratio, advantage.abs(), **rest),
    )


def maximum_for_minimum() -> Plant:
    """max(ρ Ψ, clip(ρ) Ψ)."""
    return _wrap(
        ppo,
        "clipped_ratio",
        lambda original, log_ratio, advantage, **rest: original(log_ratio, -advantage, **rest),
    )


def clip_on_both_sides() -> Plant:
    """clip(ρ) Ψ, without the minimum: a ratio that went the wrong way is not brought back."""

    def clipped_ratio(log_ratio: Any, advantage: Any, *, clip_coef: Any) -> Any:
        return torch.exp(log_ratio).clamp(1.0 - clip_coef, 1.0 + clip_coef)

    return mock.patch.object(ppo, "clipped_ratio", clipped_ratio)


def clip_of_the_logarithm() -> Plant:
    """log ρ is bounded by ±ε, and not ρ by 1 ± ε."""

    def clipped_ratio(log_ratio: Any, advantage: Any, *, clip_coef: Any) -> Any:
        upper, lower = log_ratio.clamp(max=clip_coef), log_ratio.clamp(min=-clip_coef)
        return torch.exp(torch.where(advantage >= 0.0, upper, lower))

    return mock.patch.object(ppo, "clipped_ratio", clipped_ratio)


def clip_coefficient_off_by_1e_6() -> Plant:
    """ε (1 + 1e-6)."""
    return _fit(lambda config: _replaced(config, clip_coef=lambda x: x * (1 + 1e-6)))


def normalised_over_the_batch() -> Plant:
    """Ψ is normalised once, over the whole batch, and not in each minibatch."""

    def fit(config: Any, algorithm: Any, learned: Any, batch: Any) -> Any:
        psi = advantages.normalize(batch.advantage, batch.valid)
        config = dataclasses.replace(config, normalize_over="batch")
        return ppo.fit(config, algorithm, learned, batch._replace(advantage=psi))

    return mock.patch.dict(algorithms.FITS, ppo=fit)


def minibatch_with_ddof_1() -> Plant:
    """A minibatch's standard deviation is divided by n - 1."""

    def normalize(advantage: Any, valid: Any) -> Any:
        return (advantage - advantage.mean()) / (advantage.std() + 1e-8)

    return mock.patch.object(ppo, "normalize", normalize)


def one_minibatch_twice() -> Plant:
    """The first minibatch stands in the place of the second, too."""

    def minibatches(original: Callable, *inputs: Any) -> Any:
        first, _, *rest = original(*inputs)
        return [first, first, *rest]

    return _wrap(ppo, "minibatches", minibatches)


def one_order_for_all_epochs() -> Plant:
    """Every epoch goes through the batch in the order of the first."""
    return _batch(lambda batch: {"order": np.repeat(batch.order[:1], len(batch.order), axis=0)})


def steps_in_their_order() -> Plant:
    """The batch is cut as it is, and not shuffled."""
    return mock.patch.object(ring, "permute", lambda index, size, round_keys: index)


def order_of_the_next_update() -> Plant:
    """An update shuffles as the one after it should."""

    def draw(original: Callable, key: Any, update: int, *rest: Any) -> Any:
        return original(key, update, *rest)._replace(order=original(key, update + 1, *rest).order)

    return _wrap(noise, "draw", draw)


def one_epoch_less() -> Plant:
    """The last epoch is left out."""
    return _batch(lambda batch: {"order": batch.order[:-1]})


def value_clip_around_the_new_value() -> Plant:
    """The critic's value is clipped around itself."""
    return _wrap(
        ppo,
        "clipped_value_loss",
        lambda original, value, old, *rest, **c: original(value, value.detach(), *rest, **c),
    )


def smaller_of_two_value_losses() -> Plant:
    """The minimum of the clipped and the plain value loss, and not the maximum."""

    def loss(value: Any, old: Any, target: Any, valid: Any, *, clip_value: Any) -> Any:
        near = old + (value - old).clamp(-clip_value, clip_value)
        return losses.masked_mean(torch.minimum((value - target) ** 2, (near - target) ** 2), valid)

    return mock.patch.object(ppo, "clipped_value_loss", loss)


def value_clip_forgotten() -> Plant:
    """clip_value is ignored."""
    return _fit(lambda config: dataclasses.replace(config, clip_value=None))


def target_kl_a_step_late() -> Plant:
    """What is held against the target is the divergence before the last step."""

    def fit(*inputs: Any) -> Any:
        before = [torch.zeros(())]

        def objective(original: Callable, *inputs: Any) -> tuple:
            loss, parts = original(*inputs)
            before.append(parts["approx_kl"])
            return loss, parts | {"approx_kl": before[-2]}

        with _wrap(ppo, "surrogate_objective", objective):
            return ppo.fit(*inputs)

    return mock.patch.dict(algorithms.FITS, ppo=fit)


def target_kl_times_1_5() -> Plant:
    """Steps are left out beyond 1.5 times the target."""
    return _fit(lambda config: _replaced(config, target_kl=lambda x: 1.5 * x))


def kl_of_the_other_direction() -> Plant:
    """KL(π ‖ π_old), estimated as if its samples were π's."""
    return _wrap(ppo, "approximate_kl", lambda original, ratio, valid: original(-ratio, valid))


def kl_by_the_first_estimator() -> Plant:
    """-log ρ, which may be negative."""
    return mock.patch.object(
        ppo, "approximate_kl", lambda log_ratio, valid: losses.masked_mean(-log_ratio, valid)
    )


def epsilon_of_the_optimizer_forgotten() -> Plant:
    """Adam has its usual epsilon, whatever the config says."""
    return _optimizer("adam", lambda config, params: torch.optim.Adam(params, lr=0.0))


def schedule_within_an_update() -> Plant:
    """The learning rate falls from step to step of an update."""
    steps = [0]

    def descend(original: Callable, config: Any, algorithm: Any, rate: Any, *rest: Any) -> Any:
        steps[0] += 1
        return original(config, algorithm, rate * (1.0 - 1e-3 * (steps[0] % 10)), *rest)

    return _wrap(learner, "descend", descend)


def weight_of_the_value_loss_forgotten() -> Plant:
    """vf_coef is 1 in the joint loss."""
    return _fit(lambda config: _replaced(config, vf_coef=torch.ones_like))


def clip_by_the_norm_of_the_policy() -> Plant:
    """A joint gradient is clipped by the norm of the policy's part."""

    def norm(original: Callable, gradients: Any) -> Any:
        gradients = list(gradients)
        return original(gradients[: len(gradients) // 2])

    return _wrap(learner, "global_norm", norm)


# Natural gradients.


def _natural_gradient(change: Callable[..., Any]) -> Plant:
    """The natural gradient becomes change(the original, config, algorithm, params, batch)."""
    return _wrap(natural, "natural_gradient", change)


def _line_search(change: Callable[[Any], Any]) -> Plant:
    """The line search has another config."""
    return _wrap(
        natural, "line_search", lambda original, config, *rest: original(change(config), *rest)
    )


def kl_with_its_arguments_swapped() -> Plant:
    """KL(π ‖ π_old): its curvature is the same, and the line search sees another number."""

    def mean_kl(original: Callable, algorithm: Any, *rest: Any) -> Any:
        own = algorithm.distribution
        swapped = own._replace(kl=lambda old, new: own.kl(new, old))
        return original(algorithm._replace(distribution=swapped), *rest)

    return _wrap(natural, "mean_kl", mean_kl)


def kl_without_the_spread() -> Plant:
    """The Gaussians' KL and Fisher matrix are those of their means alone."""

    def of_means(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        mean, _ = torch.chunk(new, 2, dim=-1)
        old_mean, log_std = torch.chunk(old, 2, dim=-1)
        return torch.sum(0.5 * ((mean - old_mean) * torch.exp(-log_std)) ** 2, dim=-1)

    return _parts(lambda a: {"distribution": a.distribution._replace(kl=of_means)})


def fisher_matrix_of_the_actions_taken() -> Plant:
    """The mean of ∇ log π ∇ log πᵀ over the batch's actions, and not over the policy's."""

    def fisher_product(original: Callable, algorithm: Any, params: Any, batch: Any) -> Any:
        def mean_kl(_: Callable, algorithm: Any, old: Any, params: Any, batch: Any) -> Any:
            now = algorithm.networks.policy(params, batch.obs)
            logs = (algorithm.distribution.log_prob(x, batch.action) for x in (now, old))
            new, old = logs
            return losses.masked_mean(0.5 * (new - old) ** 2, batch.valid)

        with _wrap(natural, "mean_kl", mean_kl):
            return original(algorithm, params, batch)

    return _wrap(natural, "fisher_product", fisher_product)


def fisher_matrix_over_padding() -> Plant:
    """The Fisher matrix is a mean over all steps, the padding too."""

    def fisher_product(original: Callable, algorithm: Any, params: Any, batch: Any) -> Any:
        every = torch.ones_like(batch.valid)
        return original(algorithm, params, batch._replace(valid=every))

    return _wrap(natural, "fisher_product", fisher_product)


def damping_subtracted() -> Plant:
    """(F - c I)⁻¹ g."""
    return _natural_gradient(
        lambda original, config, *rest: original(_replaced(config, damping=lambda c: -c), *rest)
    )


def damping_on_the_other_side() -> Plant:
    """F⁻¹ (g + c)."""

    def change(original: Callable, config: Any, *rest: Any) -> Any:
        def solve(cg: Callable, product: Callable, b: torch.Tensor, **options: Any) -> Any:
            return cg(product, b + config.damping, **options)

        with _wrap(natural, "conjugate_gradients", solve):
            return original(_replaced(config, damping=torch.zeros_like), *rest)

    return _natural_gradient(change)


def length_without_the_damping() -> Plant:
    """The length of a step is measured by xᵀ F x."""

    def change(original: Callable, config: Any, *rest: Any) -> Any:
        found = original(config, *rest)
        x = found.direction
        return found._replace(curvature=found.curvature - config.damping * (x @ x))

    return _natural_gradient(change)


def length_without_the_half() -> Plant:
    """√(δ / xᵀ F x)."""
    return _wrap(
        natural,
        "step_length",
        lambda original, curvature, *, max_kl: original(curvature, max_kl=0.5 * max_kl),
    )


def conjugate_gradients_one_step_short() -> Plant:
    """Conjugate gradients take one step less than they are told."""
    return _natural_gradient(
        lambda original, config, *rest: original(_replaced(config, cg_steps=lambda x: x - 1), *rest)
    )


def residual_relative_to_the_gradient() -> Plant:
    """Conjugate gradients stop once |r|² is a fraction of |g|², not a number."""
    return _tolerance(lambda b: natural.RESIDUAL * natural.dot(b, b))


def residual_not_squared() -> Plant:
    """Conjugate gradients stop once |r|, not |r|², is at the bound."""
    return _tolerance(lambda b: natural.RESIDUAL**2)


def _tolerance(change: Callable[[torch.Tensor], Any]) -> Plant:
    def solve(cg: Callable, product: Callable, b: torch.Tensor, *, steps: int) -> Any:
        return cg(product, b, steps=steps, tolerance=change(b))

    return _wrap(natural, "conjugate_gradients", solve)


def residuals_left_as_they_are() -> Plant:
    """New residuals are not made orthogonal to those before, so that rounding grows."""

    def solve(product: Callable, b: torch.Tensor, *, steps: int) -> torch.Tensor:
        x, r, p = torch.zeros_like(b), b, b
        for _ in range(steps):
            square, image = r @ r, product(p)
            if square <= natural.RESIDUAL:
                break
            x, r = x + square / (p @ image) * p, r - square / (p @ image) * image
            p = r + (r @ r) / square * p
        return x

    return mock.patch.object(natural, "conjugate_gradients", solve)


def any_surrogate_accepted() -> Plant:
    """The line search takes the first step whose KL is small, better or not."""

    def search(original: Callable, *inputs: Any) -> Any:
        calls: list[int] = []

        def objective(surrogate: Callable, *inputs: Any) -> tuple:
            calls.append(1)
            loss, parts = surrogate(*inputs)
            return (loss if len(calls) == 1 else loss - 1e9), parts

        with _wrap(natural, "surrogate_objective", objective):
            return original(*inputs)

    return _wrap(natural, "line_search", search)


def any_kl_accepted() -> Plant:
    """The line search takes the first step that is better, however far it goes."""
    return _line_search(lambda config: _replaced(config, max_kl=lambda x: 1e9 * x))


def kl_of_1_5_times_the_bound_accepted() -> Plant:
    """The line search accepts KL ≤ 1.5 δ, as a well-known implementation does."""
    return _line_search(lambda config: _replaced(config, max_kl=lambda x: 1.5 * x))


def steps_cut_in_half() -> Plant:
    """A step that is refused is halved."""
    return mock.patch.object(natural, "SHRINK", 0.5)


def refused_step_kept() -> Plant:
    """Where no step is accepted, the parameters stay where the last attempt has put them."""

    def search(original: Callable, *inputs: Any) -> Any:
        with mock.patch.object(natural, "vector_to_parameters", _only_once_each(inputs)):
            return original(*inputs)

    def _only_once_each(inputs: Any) -> Callable:
        config, place, left = inputs[0], natural.vector_to_parameters, []

        def limited(*inputs: Any) -> None:
            left.append(1)
            if len(left) <= config.backtrack_steps:
                place(*inputs)

        return limited

    return _wrap(natural, "line_search", search)


def line_search_without_the_entropy() -> Plant:
    """The bonus is in the gradient, and not in what a step must improve."""
    return _line_search(lambda config: _replaced(config, ent_coef=torch.zeros_like))


def ratio_to_the_policy_that_steps() -> Plant:
    """The surrogate's ratio is 1 at the policy that steps, whatever the one that acted was."""

    def change(original: Callable, config: Any, algorithm: Any, params: Any, batch: Any) -> Any:
        with torch.no_grad():
            outputs = algorithm.networks.policy(params, batch.obs)
            now = algorithm.distribution.log_prob(outputs, batch.action)
        return original(config, algorithm, params, batch._replace(log_prob=now))

    return _natural_gradient(change)


def logarithm_for_the_ratio() -> Plant:
    """The surrogate is that of the policy gradient, log π Ψ."""
    return mock.patch.object(natural, "surrogate_objective", learner.policy_objective)


def natural_gradient_uphill() -> Plant:
    """The policy moves along +x."""
    return _natural_gradient(
        lambda original, *inputs: (found := original(*inputs))._replace(direction=-found.direction)
    )


def natural_gradient_clipped() -> Plant:
    """max_grad_norm bounds the natural gradient, too."""

    def change(original: Callable, config: Any, *rest: Any) -> Any:
        found = original(config, *rest)
        bound = torch.clamp(config.max_grad_norm / found.direction.norm(), max=1.0)
        return found._replace(direction=bound * found.direction)

    return _natural_gradient(change)


def natural_gradient_without_the_schedule() -> Plant:
    """NPG's learning rate does not fall."""

    def rates(original: Callable, config: Any, update: int) -> Any:
        return original(config, update) | {"policy": config.learning_rate}

    return _wrap(learner, "rates", rates)


# What observations and rewards are scaled by.


def _moments(change: Callable[..., Any]) -> Plant:
    """The moments with a batch among them become change(the original, moments, x, valid)."""
    return _wrap(statistics, "merge", change)


def variance_with_ddof_1() -> Plant:
    """A batch's variance is the one that torch.var gives."""

    def merge(original: Callable, moments: Any, x: torch.Tensor, valid: torch.Tensor) -> Any:
        found, count = original(moments, x, valid), valid.sum()
        more = x[valid].var(0) - x[valid].var(0, correction=0)
        return {**found, "var": found["var"] + count / found["count"] * more}

    return _moments(merge)


def distance_of_the_means_forgotten() -> Plant:
    """The variance is the mean of the two variances, however far the means are apart."""

    def merge(original: Callable, moments: Any, x: torch.Tensor, valid: torch.Tensor) -> Any:
        found = original(moments, x, valid)
        weight, shift = valid.sum() / found["count"], x[valid].mean(0) - moments["mean"]
        return {**found, "var": found["var"] - weight * (1.0 - weight) * shift * shift}

    return _moments(merge)


def padding_among_the_observations() -> Plant:
    """The zeros after an episode's end are counted as observations, and as returns."""
    return _moments(lambda original, moments, x, valid: original(moments, x, valid | ~valid))


def moments_of_the_last_batch_alone() -> Plant:
    """What was met before the batch is forgotten."""

    def merge(original: Callable, moments: Any, x: torch.Tensor, valid: torch.Tensor) -> Any:
        found = original({**moments, "count": torch.zeros_like(moments["count"])}, x, valid)
        return {**found, "count": moments["count"] + found["count"]}

    return _moments(merge)


def learned_with_the_moments_that_follow() -> Plant:
    """The batch's own moments normalise it where it is learned from, and not where it was met."""

    def learn(config: Any, algorithm: Any, learned: Any, trajectory: Any, *rest: Any) -> Any:
        moments = learned.params["obs"]
        before = {name: x.clone() for name, x in moments.items()}
        _place(moments, statistics.merge(moments, trajectory.obs, trajectory.valid))
        found = learner.learn(config, algorithm, learned, trajectory, *rest)
        _place(moments, before)
        return found

    return _parts(lambda algorithm: {"learn": learn})


def _place(moments: Any, values: Any) -> None:
    for name, x in values.items():
        moments[name].copy_(x)


def successors_not_normalised() -> Plant:
    """V(s_{t+1}) is that of the observation as it is."""

    def estimate(original: Callable, config: Any, algorithm: Any, params: Any, t: Any, *rest: Any):
        moments = params["obs"]
        raw = t.next_obs * (moments["var"] + statistics.EPSILON).sqrt() + moments["mean"]
        return original(config, algorithm, params, t._replace(next_obs=raw), *rest)

    return _wrap(learner, "estimate", estimate)


def observations_not_clipped() -> Plant:
    """However far from their mean, observations are what they are."""
    return _unclipped("normalize_obs")


def rewards_not_clipped() -> Plant:
    """However large for the returns' deviation, rewards are what they are."""
    return _unclipped("scale_reward")


def _unclipped(name: str) -> Plant:
    def unclipped(original: Callable, *inputs: Any, **coefficients: Any) -> Any:
        with mock.patch.object(statistics, "MOST", float("inf")):
            return original(*inputs, **coefficients)

    return _wrap(statistics, name, unclipped)


def epsilon_outside_the_root() -> Plant:
    """Observations are divided by σ + ε instead of √(σ² + ε)."""

    def normalize(original: Callable, moments: Any, obs: torch.Tensor) -> torch.Tensor:
        var = (moments["var"].sqrt() + statistics.EPSILON) ** 2 - statistics.EPSILON
        return original({**moments, "var": var}, obs)

    return _wrap(statistics, "normalize_obs", normalize)


def returns_without_a_discount() -> Plant:
    """The returns that rewards are scaled by are plain sums."""
    return _wrap(
        statistics, "return_so_far", lambda original, *inputs, gamma: original(*inputs, gamma=1.0)
    )


def returns_that_begin_with_the_update() -> Plant:
    """What an episode has brought before this update is not in its return."""
    return _wrap(
        statistics,
        "return_so_far",
        lambda original, reward, done, start, **rest: original(reward, done, 0.0 * start, **rest),
    )


def returns_that_go_on_after_the_end() -> Plant:
    """An episode's return begins with that of the one before it."""
    return _wrap(
        statistics,
        "return_so_far",
        lambda original, reward, done, start, **rest: original(reward, done & ~done, start, **rest),
    )


def rewards_less_their_mean() -> Plant:
    """The mean of the returns is subtracted from each reward."""

    def scale(original: Callable, scale: Any, t: Any, **rest: Any) -> Any:
        following, scaled = original(scale, t, **rest)
        mean, var = following.moments["mean"], following.moments["var"]
        return following, scaled._replace(reward=scaled.reward - mean / var.sqrt())

    return _wrap(statistics, "scale_reward", scale)


def rewards_scaled_by_what_was_before() -> Plant:
    """The returns of an update do not scale its own rewards."""

    def scale(original: Callable, scale: Any, t: Any, **rest: Any) -> Any:
        following, _ = original(scale, t, **rest)
        with mock.patch.object(statistics, "merge", lambda moments, *rows: moments):
            return following, original(scale, t, **rest)[1]

    return _wrap(statistics, "scale_reward", scale)


def moments_off_the_grid() -> Plant:
    """The moments of observations are not rounded to float32."""

    def build(algorithm: Any) -> dict[str, Any]:
        return {"rounded": lambda tree: tree if isinstance(tree, dict) else algorithm.rounded(tree)}

    return _parts(build)


# The environment, and the grid.


def euler_step_with_the_new_speed() -> Plant:
    """CartPole moves with the speed after the push, not the one before it."""

    def cartpole(original: Callable, *inputs: Any) -> Any:
        world = original(*inputs)

        def step(key: Any, state: Any, action: torch.Tensor) -> tuple:
            after, *rest = world.step(key, state, action)
            x = state.inner.x + 0.02 * after.inner.x_dot
            obs = torch.cat([x[:, None], after.obs[:, 1:]], dim=-1)
            return after._replace(inner=after.inner._replace(x=x), obs=obs), *rest

        return world._replace(step=step)

    return _wrap(env, "cartpole", cartpole)


def time_limit_one_step_early() -> Plant:
    """Episodes are cut one step before the time limit."""

    def advance(original: Callable, *inputs: Any) -> tuple:
        *rest, time_limit = inputs
        return original(*rest, time_limit - 1)

    return _wrap(env, "_advance", advance)


def _given(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Plant:
    """The environment `name` is handed other parameters than were given."""

    def make(original: Callable, *inputs: Any) -> Any:
        world = original(*inputs)

        def reset(*inputs: Any) -> Any:
            state = world.reset(*inputs)
            return state._replace(env_params=change(state.env_params))

        return world._replace(reset=reset)

    return _wrap(env, name, make)


def environment_parameter_ignored() -> Plant:
    """CartPole pushes with the force that it has by default, whatever was given."""
    return _given("cartpole", lambda own: {k: x for k, x in own.items() if k != "force_mag"})


def total_mass_that_does_not_follow() -> Plant:
    """CartPole's cart and pole weigh 1.1 kg together, whatever the pole weighs."""
    return _given("cartpole", lambda own: {**own, "masscart": 1.1 - own["masspole"]})


def parameter_of_another_environment() -> Plant:
    """CartPole falls at 10 m/s², the default of Pendulum, where no gravity is given."""
    return mock.patch.object(env, "CartPoleParams", partial(env.CartPoleParams, gravity=10.0))


def resets_of_the_default() -> Plant:
    """CartPole of other parameters draws a reset for eight steps, too, so that it may repeat."""

    def cartpole(original: Callable, *inputs: Any) -> Any:
        world = original(*inputs)
        return world._replace(spec=world.spec._replace(min_episode_steps=env.CARTPOLE_MIN_STEPS))

    return _wrap(env, "cartpole", cartpole)


def parameters_off_the_grid() -> Plant:
    """The optimizer's result is not rounded to float32."""
    return _parts(lambda algorithm: {"rounded": algorithms.as_it_is})


def environment_off_the_grid() -> Plant:
    """The environment's state is not rounded to float32."""
    return mock.patch.object(algorithms, "grid_env", lambda env, *_: env)


FAULTS = (
    Fault(swapped_keys, "episodes"),
    Fault(one_key_used_twice, "episodes"),
    Fault(noise_of_the_update_before, "episodes"),
    Fault(uniform_with_24_bits, "episodes"),
    Fault(initial_kernel_transposed, "episodes"),
    Fault(gains_of_the_heads_swapped, "orthogonal"),
    Fault(hidden_gain_forgotten, "orthogonal"),
    Fault(orthogonal_with_the_signs_of_lapack, "orthogonal"),
    Fault(orthogonal_by_columns, "orthogonal"),
    Fault(orthogonal_from_uniform_noise, "orthogonal"),
    Fault(biases_beside_orthogonal_kernels, "orthogonal"),
    Fault(action_from_less_or_equal, "episodes"),
    Fault(log_of_a_clamped_softmax, "episodes"),
    Fault(variance_for_standard_deviation, "gaussian"),
    Fault(slope_of_tanh_forgotten, "squashed"),
    Fault(slope_of_tanh_multiplied, "squashed"),
    Fault(slope_of_tanh_as_it_is_written, "squashed"),
    Fault(density_at_the_squashed_action, "squashed"),
    Fault(tanh_applied_twice, "squashed"),
    Fault(entropy_before_squashing, "squashed"),
    Fault(slope_of_tanh_at_the_mean, "squashed"),
    Fault(bounds_not_scaled_to, "squashed"),
    Fault(one_draw_for_all_choices, "masked"),
    Fault(mean_over_choices, "masked"),
    Fault(mask_in_acting_alone, "masked"),
    Fault(mask_in_learning_alone, "masked"),
    Fault(mask_as_a_penalty, "masked"),
    Fault(mask_of_the_state_that_follows, "masked"),
    Fault(mask_of_the_normalised_observation, "masked"),
    Fault(gamma_off_by_1e_7, "episodes"),
    Fault(lambda_off_by_1e_7, "episodes"),
    Fault(gae_runs_through_truncations, "shared"),
    Fault(truncation_as_termination, "episodes"),
    Fault(bootstrap_from_the_reset_observation, "shared"),
    Fault(time_off_by_one, "episodes"),
    Fault(absolute_for_relative_discount, "returns"),
    Fault(standard_deviation_with_ddof_1, "episodes"),
    Fault(epsilon_inside_the_root, "episodes"),
    Fault(padding_in_the_statistics, "episodes"),
    Fault(average_that_includes_ones_own_return, "constant"),
    Fault(group_with_ddof_1, "group"),
    Fault(group_without_oneself, "group"),
    Fault(lengths_with_the_padding, "group"),
    Fault(baseline_broadcast, "returns"),
    Fault(float32_returns, "returns"),
    Fault(mean_for_sum, "episodes"),
    Fault(padding_in_the_mean, "returns"),
    Fault(mask_off_by_one, "episodes"),
    Fault(entropy_with_the_wrong_sign, "episodes"),
    Fault(entropy_missing_from_the_loss, "episodes"),
    Fault(half_the_value_loss, "episodes"),
    Fault(value_loss_broadcast, "episodes"),
    Fault(baseline_not_detached, "episodes"),
    Fault(target_not_detached, "episodes"),
    Fault(transposed_kernel, "episodes"),
    Fault(missing_bias_gradient, "episodes"),
    Fault(torso_without_the_value_gradient, "shared"),
    Fault(learning_rate_off_by_1e_6, "episodes"),
    Fault(clip_off_by_1e_6, "episodes"),
    Fault(clipping_forgotten, "episodes"),
    Fault(adam_epsilon_inside_the_root, "episodes"),
    Fault(adam_bias_correction_off_by_one, "episodes"),
    Fault(adam_epsilon_of_1e_7, "episodes"),
    Fault(rmsprop_epsilon_inside_the_root, "returns"),
    Fault(gradients_that_pile_up, "episodes"),
    Fault(weight_decay, "steps"),
    Fault(schedule_one_update_early, "episodes"),
    Fault(one_value_step_too_many, "episodes"),
    Fault(policy_after_the_value_step, "episodes"),
    Fault(critic_with_the_rate_of_the_policy, "episodes"),
    Fault(replay_with_replacement, "steps"),
    Fault(buffer_off_by_one, "steps"),
    Fault(replay_without_a_terminal_mask, "steps"),
    Fault(kl_with_its_arguments_swapped, "trpo"),
    Fault(kl_without_the_spread, "npg"),
    Fault(fisher_matrix_of_the_actions_taken, "trpo"),
    Fault(fisher_matrix_over_padding, "trpo"),
    Fault(damping_subtracted, "trpo"),
    Fault(damping_on_the_other_side, "trpo"),
    Fault(length_without_the_damping, "trpo"),
    Fault(length_without_the_half, "trpo"),
    Fault(conjugate_gradients_one_step_short, "trpo"),
    Fault(residual_relative_to_the_gradient, "trpo"),
    Fault(residual_not_squared, "trpo"),
    Fault(residuals_left_as_they_are, "trpo"),
    Fault(any_surrogate_accepted, "trpo"),
    Fault(any_kl_accepted, "trpo"),
    Fault(kl_of_1_5_times_the_bound_accepted, "trpo"),
    Fault(steps_cut_in_half, "trpo"),
    Fault(refused_step_kept, "trpo"),
    Fault(line_search_without_the_entropy, "trpo, entropy"),
    Fault(ratio_to_the_policy_that_steps, "trpo"),
    Fault(logarithm_for_the_ratio, "npg"),
    Fault(natural_gradient_uphill, "npg"),
    Fault(natural_gradient_clipped, "npg"),
    Fault(natural_gradient_without_the_schedule, "npg"),
    Fault(entropy_beside_the_loss, "ppo"),
    Fault(ratio_to_the_policy_itself, "ppo"),
    Fault(old_probabilities_of_each_epoch, "ppo"),
    Fault(clip_above_whatever_the_advantage, "ppo"),
    Fault(maximum_for_minimum, "ppo"),
    Fault(clip_on_both_sides, "ppo"),
    Fault(clip_of_the_logarithm, "ppo"),
    Fault(clip_coefficient_off_by_1e_6, "ppo"),
    Fault(normalised_over_the_batch, "ppo"),
    Fault(minibatch_with_ddof_1, "ppo"),
    Fault(one_minibatch_twice, "ppo"),
    Fault(one_order_for_all_epochs, "ppo"),
    Fault(steps_in_their_order, "ppo"),
    Fault(order_of_the_next_update, "ppo"),
    Fault(one_epoch_less, "ppo"),
    Fault(value_clip_around_the_new_value, "ppo"),
    Fault(smaller_of_two_value_losses, "ppo"),
    Fault(value_clip_forgotten, "ppo"),
    Fault(kl_of_the_other_direction, "ppo"),
    Fault(kl_by_the_first_estimator, "ppo"),
    Fault(epsilon_of_the_optimizer_forgotten, "ppo"),
    Fault(schedule_within_an_update, "ppo"),
    Fault(target_kl_a_step_late, "ppo stops"),
    Fault(target_kl_times_1_5, "ppo stops"),
    Fault(weight_of_the_value_loss_forgotten, "ppo joint"),
    Fault(clip_by_the_norm_of_the_policy, "ppo joint"),
    Fault(variance_with_ddof_1, "moments"),
    Fault(distance_of_the_means_forgotten, "moments"),
    Fault(padding_among_the_observations, "moments of episodes"),
    Fault(moments_of_the_last_batch_alone, "moments"),
    Fault(learned_with_the_moments_that_follow, "moments"),
    Fault(successors_not_normalised, "moments"),
    Fault(observations_not_clipped, "moments"),
    Fault(rewards_not_clipped, "moments"),
    Fault(epsilon_outside_the_root, "moments"),
    Fault(returns_without_a_discount, "moments of episodes"),
    Fault(returns_that_begin_with_the_update, "moments"),
    Fault(returns_that_go_on_after_the_end, "moments"),
    Fault(rewards_less_their_mean, "moments"),
    Fault(rewards_scaled_by_what_was_before, "moments"),
    Fault(moments_off_the_grid, "moments"),
    Fault(channels_before_the_pixels, "images"),
    Fault(height_and_width_exchanged, "images"),
    Fault(features_flattened_by_channel, "images"),
    Fault(kernel_turned_around, "images"),
    Fault(kernel_of_a_convolution_by_channel, "images"),
    Fault(convolutions_without_a_nonlinearity, "images"),
    Fault(fan_in_of_the_channels_alone, "images"),
    Fault(newest_frame_first, "frames"),
    Fault(frames_beside_one_another, "frames"),
    Fault(frames_of_the_episode_before, "frames"),
    Fault(zeros_before_the_first_frame, "frames"),
    Fault(ball_in_four_columns, "images"),
    Fault(euler_step_with_the_new_speed, "steps"),
    Fault(time_limit_one_step_early, "steps"),
    Fault(environment_parameter_ignored, "parameters"),
    Fault(total_mass_that_does_not_follow, "parameters"),
    Fault(parameter_of_another_environment, "parameters"),
    Fault(resets_of_the_default, "parameters"),
    Fault(parameters_off_the_grid, "steps"),
    Fault(environment_off_the_grid, "steps"),
)
