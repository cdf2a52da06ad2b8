"""Which configs have a meaning: the one place where hyperparameters are checked.

This file imports no framework and is the same in `jaxpg` and `torch_ref`.
"""

import dataclasses
import math
import numbers
import struct
from typing import Any, get_args, get_type_hints

from jaxpg.core.config import (
    FIELDS,
    MOST,
    OPTIONAL,
    STATIC,
    TRACED,
    TRAITS,
    Config,
    ConfigError,
    as_float,
    nearest,
)

MOST_CG_STEPS = 64  # rows that conjugate gradients have for their residuals
# Of a penalty, however long it is halved or doubled: so that it can come back, and its slope is a
# number.
LEAST_WEIGHT, MOST_WEIGHT = 2.0**-40, 2.0**40
_HINTS = get_type_hints(Config)
_COUNTS = (
    *("num_envs", "num_steps", "epochs", "minibatches", "backtrack_steps", "frame_stack"),
    *("value_steps", "buffer_size", "batch_size"),
)
_BUDGETS = ("total_steps", "total_episodes")
_UNIT = (0.0, 1.0, "in [0, 1]")
_BELOW_1 = (0.0, math.nextafter(1.0, 0.0), "in [0, 1)")
_NOT_NEGATIVE = (0.0, math.inf, "finite and at least 0")
_POSITIVE = (math.nextafter(0.0, 1.0), math.inf, "finite and greater than 0")
_FINITE = (-math.inf, math.inf, "finite")
_RANGES = {
    "gamma": _UNIT,
    "gae_lambda": _UNIT,
    "ent_coef": _NOT_NEGATIVE,
    "vf_coef": _NOT_NEGATIVE,
    "learning_rate": _POSITIVE,
    "value_learning_rate": _POSITIVE,
    "max_grad_norm": _POSITIVE,
    "clip_coef": _POSITIVE,
    "clip_value": _POSITIVE,
    "target_kl": _POSITIVE,
    "kl_coef": (LEAST_WEIGHT, MOST_WEIGHT, "in [2^-40, 2^40]"),
    "desired_kl": _POSITIVE,
    "max_kl": _POSITIVE,
    "damping": _NOT_NEGATIVE,
    "optimizer_eps": _POSITIVE,
    "adam_b1": _BELOW_1,
    "adam_b2": _BELOW_1,
    "log_std_init": (-20.0, 20.0, "in [-20, 20]"),
}
# Rounded to 0 or 1 they would make NaN, or a penalty that only grows.
_AS_USED = ("optimizer_eps", "adam_b1", "adam_b2", "desired_kl")
_OF_FITS = {  # field -> the fits that it means something to, where it does not to all
    name: fits
    for name in FIELDS
    if (fits := tuple(fit for fit, traits in TRAITS.items() if name in traits.fields))
}


def validate(config: Config) -> Config:
    """Return `config` if every field and their combination has a meaning.

    Traced fields are checked where they are numbers or arrays of numbers; an array that a
    framework traces has no values to check.

    Raises:
      ConfigError: one sentence: what is wrong, what is allowed, what was given.
    """
    _check_fields(config)
    for rule in (
        _of_budget,
        _of_estimator,
        _of_joint,
        _of_sigma,
        _of_fits,
        _of_minibatches,
        _of_critic,
        _of_normalization,
    ):
        problem = rule(config)
        if problem:
            raise ConfigError(problem)
    return config


def unused(config: Config) -> dict[str, str]:
    """Fields on which nothing depends with this config's static ones, and what each needs: of
    several values of such a field all runs are the same."""
    c = config
    by_steps = c.collect == "steps"
    steps = c.critic or not c.natural  # whether an optimizer takes any
    adam = steps and c.optimizer == "adam"
    needs = {
        "time_limit": ("a critic", c.critic),
        "learning_rate": ("another fit than 'trpo'", c.fit != "trpo"),
        "value_learning_rate": ("a critic with a loss of its own", c.critic and not c.joint),
        "vf_coef": ("joint_loss or networks='shared'", c.joint),
        "gae_lambda": (
            "estimator='gae' or value_target='lambda_return'",
            c.estimator == "gae" or (c.critic and c.value_target == "lambda_return"),
        ),
        "adam_b1": ("steps by optimizer='adam'", adam),
        "adam_b2": ("steps by optimizer='adam'", adam),
        "optimizer_eps": (
            "steps by optimizer='adam' or 'rmsprop'",
            steps and c.optimizer != "sgd",
        ),
        "optimizer": ("steps by an optimizer", steps),
        "max_grad_norm": ("steps by an optimizer", steps),
        "lr_schedule": ("a learning rate", c.critic or c.fit != "trpo"),
        **{name: (_needed(fits), c.fit in fits) for name, fits in _OF_FITS.items()},
        "clip_value": ("a critic, and a fit with minibatches", c.critic and c.minibatched),
        "total_steps": ("collect='steps'", by_steps),
        "total_episodes": ("collect='episodes'", not by_steps),
        "num_steps": ("collect='steps'", by_steps),
        "value_target": ("a critic", c.critic),
        "value_data": ("a critic", c.critic),
        "value_steps": ("a critic", c.critic),
        "buffer_size": ("a critic and value_data='replay' or 'replay_successor'", c.replays),
        "batch_size": ("a critic and value_data='replay' or 'replay_successor'", c.replays),
    }
    return {name: what for name, (what, is_met) in needs.items() if not is_met}


def _needed(fits: tuple[str, ...]) -> str:
    """What a message says of ('npg', 'trpo'): fit='npg' or 'trpo'."""
    return f"fit={' or '.join(map(repr, fits))}"


def _check_fields(config: Config) -> None:
    """Raise ConfigError unless each field by itself is what it may be."""
    check_is_config(config)
    for name in STATIC:
        choices = get_args(_HINTS[name])
        value = getattr(config, name)
        if choices and isinstance(choices[0], str) and value not in choices:
            raise ConfigError(f"{name} is {value!r}{nearest(str(value), choices)}")
        if _HINTS[name] in (str, bool) and not isinstance(value, _HINTS[name]):
            raise ConfigError(f"{name} must be a {_HINTS[name].__name__}; got {value!r}")
        if _HINTS[name] is float and not isinstance(value, numbers.Real):
            raise ConfigError(f"{name} must be a number; got {value!r}")
    for name in _COUNTS:
        _check_count(name, getattr(config, name))
    for name in _BUDGETS:
        _check_count(name, getattr(config, name), most=None)
    if not isinstance(config.hidden_sizes, tuple) or not config.hidden_sizes:
        raise ConfigError(
            f"hidden_sizes must be a tuple of at least one width; got {config.hidden_sizes!r}"
        )
    if not isinstance(config.conv_features, tuple):
        raise ConfigError(f"conv_features must be a tuple; got {config.conv_features!r}")
    for name in ("hidden_sizes", "conv_features"):
        for size in getattr(config, name):
            _check_count(f"each of {name}", size)
    if config.max_episode_steps is not None:
        _check_count("max_episode_steps", config.max_episode_steps)
    for steps in _entries(config.cg_steps):
        _check_count("cg_steps", steps, MOST_CG_STEPS)
    for name, allowed in _RANGES.items():
        rounds = name in _AS_USED and config.float_type == "float32"
        _check_range(name, getattr(config, name), allowed, rounds)
    _check_env_params(config.env_params)


def _check_count(name: str, value: Any, most: int | None = MOST) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1; got {value!r}")
    if most is not None and int(value) > most:
        raise ConfigError(f"{name} must be at most {most:,}; got {int(value):,}")


def check_is_config(config: Any) -> None:
    """Raise ConfigError for a preset's name, or a dictionary, where its Config is wanted."""
    if not dataclasses.is_dataclass(config):  # the other package's will do
        raise ConfigError(f"config must be a Config, as preset('ppo') is; got {config!r:.60}")


def check_one_number(config: Config, otherwise: str = "") -> None:
    """Raise ConfigError if a traced field or parameter of the environment is an array of several.

    Args:
      otherwise: how to have several, for the message.
    """
    values = {name: getattr(config, name) for name in TRACED}
    for name, value in {**values, **config.env_params.traced}.items():
        shape = tuple(getattr(value, "shape", ()))
        if shape:
            raise ConfigError(
                f"{name} must be one number; got an array of shape {shape}{otherwise}"
            )


def _check_range(
    name: str, value: Any, allowed: tuple[float, float, str], rounds: bool = False
) -> None:
    """Raise ConfigError unless a number, or each of an array, is in a range, which is told in
    words, too; rounded to float32, if it `rounds`."""
    low, high, words = allowed
    if value is None and name in OPTIONAL:
        return
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise ConfigError(f"{name} must be a number; got {value!r}")
    for number in map(as_float, _entries(value)):
        used = _in_float32(number) if rounds else number
        if not low <= used <= high or math.isinf(used):
            given = repr(number)
            if low <= number <= high:
                given += f", in float32 {used:g}"
            raise ConfigError(f"{name} must be {words}; got {given}")


def _in_float32(number: float) -> float:
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return math.copysign(math.inf, number)


def _check_env_params(params: Any) -> None:
    if not isinstance(params, dict):
        raise ConfigError(
            f"env_params must be a dictionary, as {{'gravity': 12.0}}; got {params!r}"
        )
    for name, value in params.items():
        if not isinstance(name, str):
            raise ConfigError(f"env_params must be numbers by name; got {name!r}: {value!r}")
        if name == "max_steps_in_episode":
            raise ConfigError(
                "env_params cannot have max_steps_in_episode: the time limit of every environment "
                f"is max_episode_steps (--max-episode-steps); got {value!r}"
            )
        if not isinstance(value, bool):
            _check_range(f"env_params {name}", value, _FINITE)


def _entries(value: Any) -> list[Any]:
    """What is in an array of any framework, nothing while it is traced; or what is no array."""
    if not hasattr(value, "reshape"):
        return [value]
    try:
        return list(value.reshape(-1).tolist())
    except (TypeError, RuntimeError):  # jax's and torch's words for a tracer
        return []


def _of_budget(c: Config) -> str | None:
    """What it pays for."""
    if c.num_updates < 1:
        given = getattr(c, c.budget)
        return f"{c.budget} must pay for at least one update of {c.update_cost}; got {given}"
    longest = c.num_steps if c.collect == "steps" else c.max_episode_steps or 1
    for what, count in {
        "steps of all environments in an update": c.num_envs * longest,
        f"updates that {c.budget} pays for": c.num_updates,
    }.items():
        if count > MOST:
            return f"{what} must be at most {MOST:,}; got {count:,}"
    return None


def _of_estimator(c: Config) -> str | None:
    """Psi, and the loss that it weighs."""
    if c.collect == "steps" and c.estimator == "total_return":
        return (
            "estimator='total_return' needs collect='episodes': with collect='steps' the rewards "
            "of earlier updates are gone"
        )
    if c.collect == "steps" and c.estimator == "reward_to_go" and not c.critic:
        return (
            "estimator='reward_to_go' with collect='steps' needs baseline='value': without a "
            f"critic the cut after num_steps biases it; got baseline={c.baseline!r}"
        )
    if c.estimator in ("td_error", "gae") and c.baseline != "value":
        return f"estimator={c.estimator!r} needs baseline='value'; got baseline={c.baseline!r}"
    if c.estimator == "total_return" and c.discounting == "relative":
        return (
            "estimator='total_return' discounts from the episode's start, so it needs "
            "discounting='absolute'; got 'relative'"
        )
    if c.baseline in ("constant", "group") and (c.collect != "episodes" or c.num_envs < 2):
        return (
            f"baseline={c.baseline!r} is an average over trajectories, so it needs "
            f"collect='episodes' and num_envs >= 2; got {c.collect!r} and {c.num_envs}"
        )
    if c.group_std and c.baseline != "group":
        return f"group_std needs baseline='group'; got baseline={c.baseline!r}"
    if c.reduction == "trajectory_means" and c.collect != "episodes":
        return f"reduction='trajectory_means' needs collect='episodes'; got {c.collect!r}"
    if c.baseline == "broadcast_value":
        given = (c.collect, c.estimator, c.discounting, c.reduction)
        needed = ("episodes", "reward_to_go", "absolute", "trajectories")
        if given != needed:
            return (
                "baseline='broadcast_value' is the article's loss, so it needs collect, estimator, "
                f"discounting and reduction {', '.join(needed)}; got {', '.join(given)}"
            )
    return None


def _of_joint(c: Config) -> str | None:
    """One loss of policy and critic."""
    name = "networks='shared'" if c.networks == "shared" else "joint_loss"
    if c.joint and not c.critic:
        return f"{name} needs baseline='value'; got baseline={c.baseline!r}"
    if c.joint and (c.value_data != "batch" or c.value_steps > 1):
        return (
            f"{name} has one joint loss on one batch, so it needs value_data='batch' "
            f"and value_steps=1; got {c.value_data!r} and {c.value_steps}"
        )
    return None


def _of_sigma(c: Config) -> str | None:
    """Where that of a continuous policy starts."""
    if c.log_std_init and c.sigma != "free":
        return f"log_std_init needs sigma='free'; got {c.log_std_init!r} with sigma={c.sigma!r}"
    return None


def _of_fits(c: Config) -> str | None:
    """What a fit has to do with."""
    for name, fits in _OF_FITS.items():
        value, default = getattr(c, name), FIELDS[name].default
        is_set = value is not None if name in OPTIONAL else name in STATIC and value != default
        if is_set and c.fit not in fits:  # other numbers may be what a preset left: `unused`
            return f"{name} needs {_needed(fits)}; got {value!r} with fit={c.fit!r}"
    if c.fit != "gradient" and (c.baseline == "broadcast_value" or c.log_prob == "clamped"):
        return (
            f"fit={c.fit!r} does not support baseline='broadcast_value' or log_prob='clamped', "
            f"which are the article's; got {c.baseline!r} and {c.log_prob!r}"
        )
    if c.natural and c.joint:
        return (
            f"fit={c.fit!r} measures the steps of a policy of its own, so it needs "
            f"networks='separate' and joint_loss False; got {c.networks!r} and {c.joint_loss}"
        )
    return None


def _of_minibatches(c: Config) -> str | None:
    """What a fit goes through in epochs."""
    if not c.minibatched:
        return None
    if c.value_data != "batch" or c.value_steps > 1:
        return (
            f"fit={c.fit!r} takes one step of the critic on each minibatch, so it needs "
            f"value_data='batch' and value_steps=1; got {c.value_data!r} and {c.value_steps}"
        )
    if c.collect == "steps" and c.reduction == "trajectories":
        return (
            f"fit={c.fit!r} with collect='steps' has minibatches of single steps, so it needs "
            "reduction='steps'; got 'trajectories'"
        )
    if c.normalize_over == "minibatch" and not c.normalize_advantage:
        return "normalize_over='minibatch' needs normalize_advantage; got False"
    if c.clip_value is not None and not c.critic:
        return f"clip_value needs baseline='value'; got baseline={c.baseline!r}"
    size, what = c.num_envs, "num_envs episodes"
    if c.collect == "steps":
        size, what = c.num_envs * c.num_steps, "num_envs * num_steps steps"
    if size % c.minibatches:
        return f"minibatches must divide the {what}; got {c.minibatches} and {size}"
    return None


def _of_critic(c: Config) -> str | None:
    """What it is fitted to."""
    if c.replays and c.value_target != "td0":
        return (
            f"value_data={c.value_data!r} holds single transitions, so it needs "
            f"value_target='td0'; got {c.value_target!r}"
        )
    if c.value_data != "batch" and c.batch_size > c.buffer_size:
        return f"batch_size must be at most buffer_size; got {c.batch_size} of {c.buffer_size}"
    return None


def _of_normalization(c: Config) -> str | None:
    """Of a single Psi nothing would be left."""
    if not c.normalize_advantage or c.collect != "steps":
        return None
    where, parts = ("minibatch", c.minibatches) if c.normalize_over == "minibatch" else ("batch", 1)
    count = c.num_envs * c.num_steps // parts
    if count < 2:
        return f"normalize_advantage needs at least 2 steps in each {where}; got {count}"
    return None
