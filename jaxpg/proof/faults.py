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
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from jaxpg.core.config import Config
from jaxpg.proof import batch
from jaxpg.proof.levels import LEVELS, Level, attempt
from torch_ref import (
    advantages,
    algorithms,
    convert,
    env,
    learner,
    losses,
    networks,
    noise,
    ring,
)

Plant = AbstractContextManager[Any]

_SMALL = dataclasses.replace(
    batch.small(Config()), hidden_sizes=(5, 5), activation="tanh", gamma=0.9, gae_lambda=0.8
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
    "shared": dataclasses.replace(_SMALL, networks="shared", value_steps=1),
    "gaussian": dataclasses.replace(_SMALL, env="Pendulum-v1"),
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
    """The fit of separate networks has another config."""
    return mock.patch.dict(
        algorithms.FITS,
        separate=lambda config, *rest: learner.fit_separate(change(config), *rest),
    )


def _optimizer(name: str, make: Callable[[Any], torch.optim.Optimizer]) -> Plant:
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

    def init_mlp(original: Callable, key: Any, mlp: Any) -> Any:
        mlp = original(key, mlp)
        for layer in mlp.children():
            if isinstance(layer, torch.nn.Linear) and layer.in_features == layer.out_features:
                layer.weight.data = layer.weight.data.T.clone()
        return mlp

    return _wrap(networks, "init_mlp", init_mlp)


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

    def init_mlp(original: Callable, key: Any, mlp: Any) -> Any:
        mlp = original(key, mlp)
        mlp.output.bias.register_hook(torch.zeros_like)
        return mlp

    return _wrap(networks, "init_mlp", init_mlp)


def torso_without_the_value_gradient() -> Plant:
    """The value head reads the shared torso's features as constants."""

    def value(params: Any, obs: torch.Tensor) -> torch.Tensor:
        return params["value"](params["torso"](obs).detach())[..., 0]

    return _parts(lambda a: {"networks": a.networks._replace(value=value)})


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
    return _optimizer("adam", lambda params: _Adam(params, inside=True))


def adam_bias_correction_off_by_one() -> Plant:
    """Adam's bias correction counts one step too many."""
    return _optimizer("adam", lambda params: _Adam(params, count=1))


def adam_epsilon_of_1e_7() -> Plant:
    """Adam's ε is Keras's."""
    return _optimizer("adam", lambda params: _Adam(params, eps=1e-7))


def rmsprop_epsilon_inside_the_root() -> Plant:
    """RMSprop divides by √(v + ε), as optax does if it is not told."""

    class RMSprop(_Adam):
        def step(self, closure: Any = None) -> Any:
            for param in self.param_groups[0]["params"]:
                old = self.state[param].get("v", torch.zeros_like(param))
                v = 0.99 * old + 0.01 * param.grad**2
                self.state[param] = {"v": v}
                param -= self.param_groups[0]["lr"] * param.grad / (v + 1e-8).sqrt()

    return _optimizer("rmsprop", RMSprop)


def gradients_that_pile_up() -> Plant:
    """zero_grad is forgotten."""
    return mock.patch.object(torch.optim.Optimizer, "zero_grad")


def weight_decay() -> Plant:
    """SGD with a weight decay of 1e-6."""
    return _optimizer("sgd", lambda params: torch.optim.SGD(params, lr=0.0, weight_decay=1e-6))


# The update as a whole.


def schedule_one_update_late() -> Plant:
    """The learning rate falls one update too early."""
    return _wrap(
        learner, "_schedule", lambda original, config, update: original(config, update + 1)
    )


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
    Fault(action_from_less_or_equal, "episodes"),
    Fault(log_of_a_clamped_softmax, "episodes"),
    Fault(variance_for_standard_deviation, "gaussian"),
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
    Fault(schedule_one_update_late, "episodes"),
    Fault(one_value_step_too_many, "episodes"),
    Fault(policy_after_the_value_step, "episodes"),
    Fault(critic_with_the_rate_of_the_policy, "episodes"),
    Fault(replay_with_replacement, "steps"),
    Fault(buffer_off_by_one, "steps"),
    Fault(replay_without_a_terminal_mask, "steps"),
    Fault(euler_step_with_the_new_speed, "steps"),
    Fault(time_limit_one_step_early, "steps"),
    Fault(parameters_off_the_grid, "steps"),
    Fault(environment_off_the_grid, "steps"),
)
