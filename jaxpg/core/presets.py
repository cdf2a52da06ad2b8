"""Presets: named configs, where options start from."""

import dataclasses

from jaxpg.core.config import Config, ConfigError, nearest

_ARTICLE = Config(
    collect="episodes",
    num_envs=1,
    total_episodes=4_000,
    time_limit="terminates",
    estimator="reward_to_go",
    baseline="broadcast_value",
    discounting="absolute",
    reduction="trajectories",
    log_prob="clamped",
    value_target="td0",
    value_data="replay_successor",
    value_steps=1,
    buffer_size=5_000,
    batch_size=512,
    optimizer="sgd",
    learning_rate=3e-7,
    value_learning_rate=1e-7,
    lr_schedule="constant",
    max_grad_norm=None,
)
_NATURAL = Config(
    total_steps=250_000,
    normalize_advantage=True,
    fit="npg",
    value_steps=10,
    hidden_sizes=(64, 64),
    activation="tanh",
    learning_rate=0.3,
    value_learning_rate=3e-3,
)
_PPO = Config(
    fit="ppo",
    num_steps=64,
    total_steps=100_000,
    gae_lambda=0.95,
    normalize_advantage=True,
    normalize_over="minibatch",
    epochs=8,
    minibatches=4,
    value_steps=1,
    joint_loss=True,
    hidden_sizes=(64, 64),
    activation="tanh",
    optimizer_eps=1e-5,
    learning_rate=2.5e-3,
)
_PPO_SCALED = dataclasses.replace(_PPO, normalize_obs=True, normalize_reward=True)
PRESETS = {
    "vpg": Config(),
    "reinforce": Config(
        collect="episodes",
        num_envs=16,
        total_episodes=4_000,
        estimator="reward_to_go",
        baseline="none",
        gamma=1.0,
        reduction="trajectories",
        learning_rate=3e-3,
        lr_schedule="constant",
        max_grad_norm=None,
    ),
    "actor-critic": Config(
        estimator="td_error",
        value_target="td0",
        learning_rate=3e-3,
    ),
    "a2c": Config(
        num_steps=5,
        gae_lambda=1.0,
        value_steps=1,
        joint_loss=True,
        hidden_sizes=(64, 64),
        activation="tanh",
        optimizer="rmsprop",
        optimizer_eps=1e-5,
        learning_rate=7e-4,
    ),
    "npg": _NATURAL,
    "trpo": dataclasses.replace(_NATURAL, fit="trpo", max_kl=1e-3),
    "ppo": _PPO,
    "ppo-acrobot": dataclasses.replace(
        _PPO_SCALED,
        env="Acrobot-v1",
        num_envs=16,
        total_steps=500_000,
        gae_lambda=0.8,
        learning_rate=5e-3,
    ),
    "ppo-mountain-car": dataclasses.replace(
        _PPO_SCALED,
        env="MountainCar-v0",
        num_envs=16,
        num_steps=16,
        total_steps=500_000,
        gae_lambda=0.98,
        epochs=4,
    ),
    "ppo-mountain-car-continuous": dataclasses.replace(
        _PPO,
        env="MountainCarContinuous-v0",
        total_steps=200_000,
        normalize_obs=True,
        learning_rate=1e-3,
    ),
    "ppo-pendulum": dataclasses.replace(
        _PPO_SCALED,
        env="Pendulum-v1",
        total_steps=500_000,
        squash=True,
        gamma=0.97,
        gae_lambda=0.9,
        learning_rate=5e-4,
    ),
    "ppo-minatar": dataclasses.replace(
        _PPO,
        env="Breakout-MinAtar",
        num_envs=16,
        num_steps=128,
        total_steps=1_000_000,
        epochs=4,
        minibatches=8,
        ent_coef=0.01,
        networks="shared",
        conv_features=(16,),
        hidden_sizes=(128,),
        activation="relu",
        learning_rate=1e-3,
    ),
    "ppo-deep-sea": dataclasses.replace(
        _PPO,
        env="DeepSea-bsuite",
        ent_coef=0.01,
        normalize_advantage=False,  # else the price of a move is all that is learnt before the goal
        normalize_over="batch",
    ),
    "rloo": Config(
        collect="episodes",
        num_envs=16,
        total_episodes=4_000,
        estimator="total_return",
        baseline="constant",
        discounting="absolute",
        gamma=1.0,
        reduction="trajectories",
        learning_rate=3e-3,
        lr_schedule="constant",
        max_grad_norm=None,
    ),
    "grpo": Config(
        collect="episodes",
        num_envs=16,
        total_episodes=4_000,
        estimator="total_return",
        baseline="group",
        group_std=True,
        discounting="absolute",
        gamma=1.0,
        reduction="trajectory_means",
        fit="ppo",
        epochs=4,
        minibatches=4,
        value_steps=1,
        learning_rate=3e-3,
    ),
    "article": _ARTICLE,
    "article-text": dataclasses.replace(
        _ARTICLE, total_episodes=5_000, buffer_size=2_000, batch_size=256, learning_rate=2e-7
    ),
    "article-corrected": dataclasses.replace(
        _ARTICLE,
        baseline="value",
        log_prob="exact",
        value_data="replay",
        learning_rate=1e-4,
        value_learning_rate=1e-3,
    ),
}
PRESET_NOTES = {
    "vpg": "REINFORCE with a learned value baseline and GAE",
    "reinforce": "Williams' REINFORCE: whole episodes, reward-to-go, no baseline",
    "actor-critic": "one-step actor-critic: the TD error of a learned value function",
    "a2c": "advantage actor-critic: n-step returns, one joint loss, RMSprop",
    "npg": "natural policy gradient: by conjugate gradients, at a learning rate",
    "trpo": "trust region policy optimisation: as far as a bound on KL allows, if it helps",
    "ppo": "proximal policy optimisation: epochs of minibatches on a clipped surrogate",
    "ppo-acrobot": "ppo for Acrobot-v1",
    "ppo-mountain-car": "ppo for MountainCar-v0",
    "ppo-mountain-car-continuous": "ppo for MountainCarContinuous-v0",
    "ppo-pendulum": "ppo for Pendulum-v1",
    "ppo-minatar": "ppo for the games of MinAtar, with their paper's convolutions",
    "ppo-deep-sea": "ppo for DeepSea-bsuite",
    "rloo": "REINFORCE with the average return of the other trajectories as baseline",
    "grpo": "group-relative: returns over their mean and deviation, and PPO's clip, no critic",
    "article": "the script of Pichka's article (2023), literally, with what it gets wrong",
    "article-text": "the same with the numbers that the article's text prints",
    "article-corrected": "what the article's text derives",
}


def preset(name: str) -> Config:
    """The preset called `name`.

    Raises:
      ConfigError: if there is none; the message names the nearest and all of them.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
    return PRESETS[name]
