"""The preset `vpg` as the textbook writes it: `jit(vmap(train))`, one file, nothing clever.

The style is PureJaxRL's: the environment's own auto-reset under vmap, keys split inside the scan,
`jax.random.categorical`, losses through `jax.grad`. The algorithm and its hyperparameters are those
of `vpg`; only the random numbers are others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax

from jaxpg.core.config import Config, ConfigError

VARIES = (  # what may differ from the preset `vpg`
    "env", "num_envs", "num_steps", "total_steps", "total_episodes", "hidden_sizes", "gamma",
    "gae_lambda", "value_steps", "vf_coef", "buffer_size", "batch_size", "learning_rate",
    "value_learning_rate", "max_grad_norm",
)  # fmt: skip


class Network(nn.Module):
    """One hidden ReLU layer; kernels start as torch's Linear does, biases at 0."""

    hidden: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        x = nn.relu(nn.Dense(self.hidden, kernel_init=kernel_init)(x))
        return nn.Dense(self.outputs, kernel_init=kernel_init)(x)


def check(config: Config) -> None:
    """Raise ConfigError unless this loop can train a config."""
    for field in dataclasses.fields(Config):
        given = getattr(config, field.name)
        if field.name not in VARIES and given != field.default:
            raise ConfigError(
                f"the textbook's loop has {field.name}={field.default!r} alone, as the preset vpg "
                f"has it; got {given!r}"
            )
    if len(config.hidden_sizes) != 1 or config.max_grad_norm is None:
        raise ConfigError("the textbook's loop has one hidden layer, and clips gradients")
    env, env_params = gymnax.make(config.env)
    if not hasattr(env.action_space(env_params), "n"):
        raise ConfigError(f"the textbook's actions are discrete; those of {config.env} are not")
    if len(env.observation_space(env_params).shape) != 1:
        raise ConfigError(f"the textbook's observations are flat; those of {config.env} are not")


def make_train(config: Config) -> Callable[[jax.Array], tuple[Any, jax.Array, jax.Array]]:
    """train(key) -> policy parameters; episodes that ended, and their returns' sum, by update.

    Args:
      config: like the preset `vpg`, but for what is in VARIES.

    Raises:
      ConfigError: if it is another.
    """
    check(config)
    env, env_params = gymnax.make(config.env)
    (hidden,) = config.hidden_sizes
    policy, critic = Network(hidden, env.num_actions), Network(hidden, 1)
    schedule = optax.linear_schedule(config.learning_rate, 0.0, config.num_updates)
    value_schedule = optax.linear_schedule(
        config.value_learning_rate, 0.0, config.num_updates * config.value_steps
    )
    optimizer, value_optimizer = (
        optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate))
        for rate in (schedule, value_schedule)
    )

    def train(key: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        key, key_policy, key_value, key_reset = jax.random.split(key, 4)
        reset_keys = jax.random.split(key_reset, config.num_envs)
        obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(reset_keys, env_params)
        params, value_params = policy.init(key_policy, obs), critic.init(key_value, obs)
        opt_state, value_opt_state = optimizer.init(params), value_optimizer.init(value_params)
        returns = jnp.zeros(config.num_envs)
        carry = (params, value_params, opt_state, value_opt_state, env_state, obs, returns, key)

        def update(carry: tuple, _: None) -> tuple:
            params, value_params, opt_state, value_opt_state, env_state, obs, returns, key = carry

            def env_step(carry: tuple, _: None) -> tuple:
                env_state, obs, returns, key = carry
                key, key_action, key_step = jax.random.split(key, 3)
                action = jax.random.categorical(key_action, policy.apply(params, obs))
                step_keys = jax.random.split(key_step, config.num_envs)
                next_obs, env_state, reward, terminated, truncated, info = jax.vmap(
                    env.step, in_axes=(0, 0, 0, None)
                )(step_keys, env_state, action, env_params)
                done = jnp.logical_or(terminated, truncated)
                returns = returns + reward
                row = (obs, action, reward, info["final_observation"], terminated, done)
                finished = jnp.where(done, returns, 0.0)
                return (env_state, next_obs, jnp.where(done, 0.0, returns), key), (row, finished)

            (env_state, obs, returns, key), (rows, finished) = jax.lax.scan(
                env_step, (env_state, obs, returns, key), None, config.num_steps
            )
            old_obs, action, reward, true_next_obs, terminated, done = rows
            value = critic.apply(value_params, old_obs)[..., 0]
            next_value = critic.apply(value_params, true_next_obs)[..., 0]

            def gae(advantage: jax.Array, row: tuple) -> tuple:
                reward, value, next_value, terminated, done = row
                delta = reward + config.gamma * next_value * (1 - terminated) - value
                advantage = delta + config.gamma * config.gae_lambda * (1 - done) * advantage
                return advantage, advantage

            inputs = (reward, value, next_value, terminated, done)
            _, advantage = jax.lax.scan(gae, jnp.zeros(config.num_envs), inputs, reverse=True)
            target = advantage + value

            def policy_loss(params: Any) -> jax.Array:
                log_probs = jax.nn.log_softmax(policy.apply(params, old_obs))
                chosen = jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]
                return -jnp.mean(chosen * advantage)

            steps, opt_state = optimizer.update(jax.grad(policy_loss)(params), opt_state)
            params = optax.apply_updates(params, steps)

            def value_step(carry: tuple, _: None) -> tuple:
                value_params, value_opt_state = carry

                def value_loss(value_params: Any) -> jax.Array:
                    return jnp.mean((critic.apply(value_params, old_obs)[..., 0] - target) ** 2)

                gradient = jax.grad(value_loss)(value_params)
                steps, value_opt_state = value_optimizer.update(gradient, value_opt_state)
                return (optax.apply_updates(value_params, steps), value_opt_state), None

            (value_params, value_opt_state), _ = jax.lax.scan(
                value_step, (value_params, value_opt_state), None, config.value_steps
            )
            carry = (params, value_params, opt_state, value_opt_state, env_state, obs, returns, key)
            return carry, (jnp.sum(done), jnp.sum(finished))

        carry, (episodes, return_sum) = jax.lax.scan(update, carry, None, config.num_updates)
        return carry[0], episodes, return_sum

    return train
