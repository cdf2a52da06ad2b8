"""Faults of the optimizer, of the order of an update and of the replay of transitions."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from jaxpg.proof.faults.plants import Plant, config_of_fit, of, optimizer, replaced, wrap
from torch_ref import learner, ring


def _descent(change: Callable[[Any, Any], tuple[Any, Any]]) -> Plant:
    """The optimizer steps with another config and rate."""

    def descend(original: Callable, config: Any, algorithm: Any, rate: Any, *rest: Any) -> Any:
        config, rate = change(config, rate)
        return original(config, algorithm, rate, *rest)

    return wrap(learner, "descend", descend)


def learning_rate_off_by_1e_6() -> Plant:
    """Learning rate times 1 + 1e-6."""
    return _descent(lambda config, rate: (config, rate * (1 + 1e-6)))


def clip_off_by_1e_6() -> Plant:
    """1e-6 is added to the norm before clipping, as clip_grad_norm_ does."""
    return wrap(learner, "global_norm", lambda norm, gradients: norm(gradients) + 1e-6)


def clipping_forgotten() -> Plant:
    """The gradient is never clipped."""
    return _descent(lambda config, rate: (replaced(config, max_grad_norm=lambda _: None), rate))


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
    return optimizer("adam", lambda config, params: _Adam(params, inside=True))


def adam_bias_correction_off_by_one() -> Plant:
    """Adam's bias correction counts one step too many."""
    return optimizer("adam", lambda config, params: _Adam(params, count=1))


def adam_decay_rates_ignored() -> Plant:
    """Adam's β₁ and β₂ are torch's defaults, whatever the config says."""
    return optimizer(
        "adam",
        lambda config, params: torch.optim.Adam(params, lr=0.0, eps=float(config.optimizer_eps)),
    )


def adam_epsilon_of_1e_7() -> Plant:
    """Adam's ε is Keras's."""
    return optimizer("adam", lambda config, params: _Adam(params, eps=1e-7))


def rmsprop_epsilon_inside_the_root() -> Plant:
    """RMSprop divides by √(v + ε), as optax does if it is not told."""

    class RMSprop(_Adam):
        def step(self, closure: Any = None) -> Any:
            for param in self.param_groups[0]["params"]:
                old = self.state[param].get("v", torch.zeros_like(param))
                v = 0.99 * old + 0.01 * param.grad**2
                self.state[param] = {"v": v}
                param -= self.param_groups[0]["lr"] * param.grad / (v + 1e-8).sqrt()

    return optimizer("rmsprop", lambda config, params: RMSprop(params))


def gradients_that_pile_up() -> Plant:
    """zero_grad is forgotten."""
    return mock.patch.object(torch.optim.Optimizer, "zero_grad")


def weight_decay() -> Plant:
    """SGD with a weight decay of 1e-6."""
    return optimizer(
        "sgd", lambda config, params: torch.optim.SGD(params, lr=0.0, weight_decay=1e-6)
    )


def schedule_one_update_early() -> Plant:
    """The learning rate falls one update too early."""
    return wrap(learner, "rates", lambda original, config, update: original(config, update + 1))


def one_value_step_too_many() -> Plant:
    """The critic takes one step more than it is told."""
    return config_of_fit(lambda config: replaced(config, value_steps=lambda x: x + 1))


def policy_after_the_value_step() -> Plant:
    """Ψ is estimated with the critic that this update has already fitted."""

    def learn(original: Callable, config: Any, algorithm: Any, learned: Any, *inputs: Any) -> Any:
        ahead = copy.deepcopy(learned)
        original(config, algorithm, ahead, *inputs)
        trajectory, samples, order = inputs
        late = learner.estimate(config, algorithm, ahead.params, trajectory)
        batch = learner.estimate(config, algorithm, learned.params, trajectory)
        batch = batch._replace(advantage=late.advantage, samples=samples, order=order)
        learned, fitted = algorithm.fit(config, algorithm, learned, batch)
        return learned, batch, fitted

    return wrap(learner, "learn", learn)


def critic_with_the_rate_of_the_policy() -> Plant:
    """value_learning_rate is ignored."""
    return config_of_fit(lambda c: dataclasses.replace(c, value_learning_rate=c.learning_rate))


def replay_with_replacement() -> Plant:
    """Transitions are sampled with replacement."""

    def sample(ring: Any, bits: np.ndarray, batch_size: int) -> Any:
        chosen = np.random.default_rng(bits).integers(ring.filled, size=batch_size)
        return tuple(rows[chosen] for rows in ring.rows), torch.ones(batch_size, dtype=torch.bool)

    return mock.patch.object(ring, "sample", sample)


def buffer_off_by_one() -> Plant:
    """The ring holds one transition less."""
    return wrap(ring, "empty", lambda original, row, size: original(row, size - 1))


def replay_without_a_terminal_mask() -> Plant:
    """What follows a replayed termination is bootstrapped."""

    def sample(original: Callable, *inputs: Any) -> Any:
        (*rest, terminated), valid = original(*inputs)
        return (*rest, torch.zeros_like(terminated)), valid

    return wrap(ring, "sample", sample)


FAULTS = (
    *of("other decay rates", adam_decay_rates_ignored),
    *of(
        "episodes",
        learning_rate_off_by_1e_6,
        clip_off_by_1e_6,
        clipping_forgotten,
        adam_epsilon_inside_the_root,
        adam_bias_correction_off_by_one,
        adam_epsilon_of_1e_7,
    ),
    *of("returns", rmsprop_epsilon_inside_the_root),
    *of("episodes", gradients_that_pile_up),
    *of("steps", weight_decay),
    *of(
        "episodes",
        schedule_one_update_early,
        one_value_step_too_many,
        policy_after_the_value_step,
        critic_with_the_rate_of_the_policy,
    ),
    *of("steps", replay_with_replacement, buffer_off_by_one, replay_without_a_terminal_mask),
)
