"""`vpg` in PyTorch with the seeds as one batch axis: the fastest that `torch_ref` can be made.

The parts are torch_ref's own (environment, sampling, GAE). `torch.func` maps networks and gradients
over stacked parameters [S, ...], the environments of all seeds are one axis [S · N], one fused Adam
steps all seeds, and random numbers are torch's. Under `torch.compile` the environment step, the
policy's gradient and the critic's are a graph each. benchmarks.throughput holds one update of it
against torch_ref's, with the same noise, before anything is timed.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

import torch_ref
from torch_ref import advantages, distributions, learner, losses
from torch_ref.config import Config
from torch_ref.training import as_tensors
from torch_ref.types import EnvState

Gradient = dict[str, torch.Tensor]


class Trainer:
    """S seeds between two updates."""

    def __init__(self, config: Any, seeds: int, compiled: bool):
        """Start as torch_ref does, from the seeds 0 to S - 1.

        Args:
          config: the preset `vpg` with another budget.
          compiled: whether torch.compile may have the parts that take time.
        """
        self.config = as_tensors(Config(**dataclasses.asdict(config)))
        self.seeds, self.done_updates = seeds, 0
        algorithm = torch_ref.build(self.config)
        starts = [
            learner.init(self.config, torch_ref.key(seed), algorithm) for seed in range(seeds)
        ]
        self.env = algorithm.env
        self.modules = {name: starts[0].params[name] for name in ("policy", "value")}
        self.params: dict[str, Gradient] = {
            name: stack_module_state([start.params[name] for start in starts])[0]
            for name in self.modules
        }
        self.optimizers = {
            name: torch.optim.Adam(params.values(), lr=0.0, eps=1e-8, fused=True)
            for name, params in self.params.items()
        }
        states = [start.env_state for start in starts]
        self.env_state = EnvState(
            type(states[0].inner)(
                *map(torch.cat, zip(*(state.inner for state in states), strict=True))
            ),
            *(
                torch.cat([getattr(state, name) for state in states])
                for name in ("obs", "time", "episode_return")
            ),
        )
        compile_ = torch.compile if compiled else lambda function: function
        self._step = compile_(self._env_step)
        self._policy_gradient = compile_(vmap(grad(self._policy_loss), randomness="error"))
        self._value_gradient = compile_(vmap(grad(self._value_loss), randomness="error"))

    def noise(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Uniforms of an update: for actions [T, S · N], and for resets [R, S · N, 4]."""
        steps, rows = self.config.num_steps, self.seeds * self.config.num_envs
        blocks = -(-steps // self.env.spec.min_episode_steps)
        return torch.rand(steps, rows), torch.rand(blocks, rows, self.env.spec.reset_uniforms)

    def update(
        self, noise: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One update; how many episodes ended, and the sum of their returns, [S] each."""
        with torch.no_grad():
            obs, action, reward, next_obs, terminated, truncated, returns = self._collect(
                *(noise or self.noise())
            )
            value, next_value = (self._values(rows) for rows in (obs, next_obs))
            coefficients = {"gamma": self.config.gamma, "gae_lambda": self.config.gae_lambda}
            advantage = advantages.gae(
                reward, value, next_value, terminated, truncated, **coefficients
            )
            by_seed = [self._by_seed(x) for x in (obs, action, advantage, advantage + value)]
        obs, action, advantage, target = by_seed
        left = 1.0 - self.done_updates / self.config.num_updates
        gradient = self._policy_gradient(self._detached("policy"), obs, action, advantage)
        self._descend("policy", gradient, float(self.config.learning_rate) * left)
        for _ in range(self.config.value_steps):
            gradient = self._value_gradient(self._detached("value"), obs, target)
            self._descend("value", gradient, float(self.config.value_learning_rate) * left)
        self.done_updates = (self.done_updates + 1) % self.config.num_updates
        done = torch.logical_or(terminated, truncated)
        return tuple(
            self._by_seed(x).sum(dim=1).numpy() for x in (done, torch.where(done, returns, 0.0))
        )

    def _collect(self, uniform: torch.Tensor, reset: torch.Tensor) -> list[torch.Tensor]:
        """T steps of every environment, [T, S · N, ...] each."""
        rows, policy = [], self._detached("policy")
        for t in range(self.config.num_steps):
            fresh = reset[t // self.env.spec.min_episode_steps]
            self.env_state, row = self._step(policy, self.env_state, uniform[t], fresh)
            rows.append(row)
        return [torch.stack(field) for field in zip(*rows, strict=True)]

    def _env_step(
        self, policy: Gradient, state: EnvState, uniform: torch.Tensor, reset: torch.Tensor
    ) -> tuple[EnvState, tuple]:
        logits = self._network("policy", policy, state.obs.reshape(self.seeds, -1, 4))
        action = distributions.categorical_sample(logits.reshape(-1, 2), uniform)
        after, reward, terminated, truncated = self.env.step(None, state, action)
        row = (state.obs, action, reward, after.obs, terminated, truncated, after.episode_return)
        return self.env.restart(after, torch.logical_or(terminated, truncated), reset), row

    def _network(self, name: str, params: Gradient, obs: torch.Tensor) -> torch.Tensor:
        """Every seed's network on its own rows, [S, B, D] -> [S, B, K]."""
        return vmap(lambda params, obs: functional_call(self.modules[name], params, (obs,)))(
            params, obs
        )

    def _values(self, obs: torch.Tensor) -> torch.Tensor:
        """V of rows [T, S · N, D], [T, S · N]."""
        steps, rows, size = obs.shape
        by_seed = obs.reshape(steps, self.seeds, -1, size).transpose(0, 1)
        value = self._network(
            "value", self._detached("value"), by_seed.reshape(self.seeds, -1, size)
        )
        return value.reshape(self.seeds, steps, -1).transpose(0, 1).reshape(steps, rows)

    def _policy_loss(
        self, params: Gradient, obs: torch.Tensor, action: torch.Tensor, advantage: torch.Tensor
    ) -> torch.Tensor:
        logits = functional_call(self.modules["policy"], params, (obs,))
        return -(distributions.categorical_log_prob(logits, action) * advantage).mean()

    def _value_loss(
        self, params: Gradient, obs: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        value = functional_call(self.modules["value"], params, (obs,))[..., 0]
        return losses.value_loss(value, target, torch.ones_like(target, dtype=torch.bool))

    def _descend(self, name: str, gradient: Gradient, rate: float) -> None:
        """Clip each seed's gradient, and step."""
        squares = [leaf.square().flatten(1).sum(dim=1) for leaf in gradient.values()]
        norm = torch.stack(squares).sum(dim=0).sqrt()
        limit = self.config.max_grad_norm
        scale = torch.where(norm < limit, 1.0, limit / norm)
        for key, param in self.params[name].items():
            param.grad = gradient[key] * scale.reshape(-1, *[1] * (param.ndim - 1))
        for group in self.optimizers[name].param_groups:
            group["lr"] = rate
        self.optimizers[name].step()

    def _detached(self, name: str) -> Gradient:
        return {key: param.detach() for key, param in self.params[name].items()}

    def _by_seed(self, x: torch.Tensor) -> torch.Tensor:
        """[T, S · N, ...] -> [S, T · N, ...]."""
        split = x.reshape(len(x), self.seeds, -1, *x.shape[2:])
        return split.transpose(0, 1).flatten(1, 2)
