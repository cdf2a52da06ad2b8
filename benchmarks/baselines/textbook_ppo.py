"""PPO as the textbook writes it: `jit(vmap(train))`, one file, nothing clever.

The style is PureJaxRL's: one actor-critic of two tanh networks with orthogonal kernels, one Adam,
the environment's own auto-reset under vmap, a permutation and a scan over minibatches in a scan
over epochs. The algorithm and its hyperparameters are those of the config; only the initial
parameters and the random numbers are others.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpg.core.config import Config


class ActorCritic(nn.Module):
    """Two networks, hidden layers with tanh: logits and a value."""

    hidden_sizes: tuple[int, ...]
    actions: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def network(x: jax.Array, outputs: int, scale: float) -> jax.Array:
            for size in self.hidden_sizes:
                kernel_init = nn.initializers.orthogonal(np.sqrt(2))
                x = jnp.tanh(nn.Dense(size, kernel_init=kernel_init)(x))
            return nn.Dense(outputs, kernel_init=nn.initializers.orthogonal(scale))(x)

        return network(x, self.actions, 0.01), network(x, 1, 1.0)[..., 0]


def make_train(config: Config) -> Callable[[jax.Array], tuple[Any, jax.Array, jax.Array]]:
    """train(key) -> parameters; episodes that ended, and their returns' sum, by update.

    Args:
      config: of PPO with a joint loss and Ψ normalised by minibatch, as the preset has it.
    """
    env, env_params = gymnax.make(config.env)
    network = ActorCritic(config.hidden_sizes, env.num_actions)
    steps = config.num_updates * config.epochs * config.minibatches
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(optax.linear_schedule(config.learning_rate, 0.0, steps), eps=1e-5),
    )
    batch_size = config.num_envs * config.num_steps

    def train(key: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        key, key_init, key_reset = jax.random.split(key, 3)
        reset_keys = jax.random.split(key_reset, config.num_envs)
        obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(reset_keys, env_params)
        params = network.init(key_init, obs)
        carry = (params, optimizer.init(params), env_state, obs, jnp.zeros(config.num_envs), key)

        def update(carry: tuple, _: None) -> tuple:
            params, opt_state, env_state, obs, returns, key = carry

            def env_step(carry: tuple, _: None) -> tuple:
                env_state, obs, returns, key = carry
                key, key_action, key_step = jax.random.split(key, 3)
                logits, value = network.apply(params, obs)
                action = jax.random.categorical(key_action, logits)
                log_prob = _log_prob(logits, action)
                step_keys = jax.random.split(key_step, config.num_envs)
                next_obs, env_state, reward, terminated, truncated, info = jax.vmap(
                    env.step, in_axes=(0, 0, 0, None)
                )(step_keys, env_state, action, env_params)
                done = jnp.logical_or(terminated, truncated)
                returns = returns + reward
                _, next_value = network.apply(params, info["final_observation"])
                row = (obs, action, log_prob, value, reward, next_value, terminated, done)
                finished = jnp.where(done, returns, 0.0)
                return (env_state, next_obs, jnp.where(done, 0.0, returns), key), (row, finished)

            (env_state, obs, returns, key), (rows, finished) = jax.lax.scan(
                env_step, (env_state, obs, returns, key), None, config.num_steps
            )
            old_obs, action, log_prob, value, reward, next_value, terminated, done = rows

            def gae(advantage: jax.Array, row: tuple) -> tuple:
                reward, value, next_value, terminated, done = row
                delta = reward + config.gamma * next_value * (1 - terminated) - value
                advantage = delta + config.gamma * config.gae_lambda * (1 - done) * advantage
                return advantage, advantage

            inputs = (reward, value, next_value, terminated, done)
            _, advantage = jax.lax.scan(gae, jnp.zeros(config.num_envs), inputs, reverse=True)
            batch = (old_obs, action, log_prob, advantage, advantage + value)
            batch = jax.tree.map(lambda x: x.reshape(batch_size, *x.shape[2:]), batch)

            def loss(params: Any, part: tuple) -> jax.Array:
                obs, action, log_prob, advantage, target = part
                logits, value = network.apply(params, obs)
                ratio = jnp.exp(_log_prob(logits, action) - log_prob)
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = jnp.clip(ratio, 1 - config.clip_coef, 1 + config.clip_coef)
                surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
                return -surrogate.mean() + config.vf_coef * ((value - target) ** 2).mean()

            def epoch(carry: tuple, key: jax.Array) -> tuple:
                order = jax.random.permutation(key, batch_size)
                parts = jax.tree.map(
                    lambda x: x[order].reshape(config.minibatches, -1, *x.shape[1:]), batch
                )

                def step(carry: tuple, part: tuple) -> tuple:
                    params, opt_state = carry
                    gradient = jax.grad(loss)(params, part)
                    moves, opt_state = optimizer.update(gradient, opt_state)
                    return (optax.apply_updates(params, moves), opt_state), None

                return jax.lax.scan(step, carry, parts)

            key, key_epochs = jax.random.split(key)
            (params, opt_state), _ = jax.lax.scan(
                epoch, (params, opt_state), jax.random.split(key_epochs, config.epochs)
            )
            carry = (params, opt_state, env_state, obs, returns, key)
            return carry, (jnp.sum(done), jnp.sum(finished))

        carry, (episodes, return_sum) = jax.lax.scan(update, carry, None, config.num_updates)
        return carry[0], episodes, return_sum

    return train


def _log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]
