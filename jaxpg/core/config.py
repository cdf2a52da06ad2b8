"""Config: every hyperparameter, the presets, and the one place where they are checked.

This file imports no framework and is the same, byte for byte, in `jaxpg` and `torch_ref`.
"""

import contextlib
import dataclasses
import difflib
import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_type_hints


class ConfigError(ValueError):
    """A hyperparameter, or a combination of them, that has no meaning."""


class EnvParams(dict[str, Any]):
    """An environment's parameters by name; nobody changes one.

    What is static (integers, true and false) decides what program is compiled; the others are
    traced.
    """

    def __init__(self, values: Any = (), static: frozenset[str] | None = None):
        """Of a mapping, or of pairs; `static` names what is, None finds it by its type."""
        super().__init__(values)
        whole = (name for name, value in self.items() if isinstance(value, numbers.Integral))
        self.static = frozenset(whole) if static is None else static

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    @property
    def traced(self) -> dict[str, Any]:
        """Those that are."""
        return {name: value for name, value in self.items() if name not in self.static}


OWN_PARAMS = EnvParams()  # an environment's own, whatever they are


def _traced(default: Any) -> Any:
    """A field that may be an array: it can be vmapped, and never recompiles."""
    return dataclasses.field(default=default, metadata={"traced": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every hyperparameter of a run.

    Static fields decide what program is compiled. Traced fields (learning rates, gamma,
    gae_lambda, coefficients, bounds) are numbers that flow through it: stack them and vmap. The
    defaults are the preset `vpg`.
    """

    env: str = "CartPole-v1"
    """Environment: any registered gymnax name, or a suite's, as brax:ant (torch_ref: any gymnasium
    name)."""
    env_params: EnvParams = OWN_PARAMS
    """Its parameters that are not its own defaults, as gravity=12 masspole=0.3; fractions are
    traced, integers and true or false are static."""
    max_episode_steps: int | None = None
    """Time limit of an episode in steps, >= 1; None takes the environment's own."""
    time_limit: Literal["truncates", "terminates"] = "truncates"
    """What the time limit ends: our view of the episode, or (as the article has it) the task."""
    frame_stack: int = 1
    """How many observations the networks see at once, the last one and those before it; >= 1."""

    collect: Literal["steps", "episodes"] = "steps"
    """What an update is computed from: num_steps of num_envs auto-resetting environments, or
    num_envs whole episodes."""
    num_envs: int = 8
    """N: environments (or episodes, with collect=episodes) per update and seed."""
    num_steps: int = 128
    """T: steps per environment and update (collect=steps only)."""
    total_steps: int = 500_000
    """Training budget in environment steps per seed (collect=steps only)."""
    total_episodes: int = 4_000
    """Training budget in episodes per seed (collect=episodes only)."""

    estimator: Literal["total_return", "reward_to_go", "td_error", "gae"] = "gae"
    """Psi, the weight of grad log pi(a|s)."""
    baseline: Literal["none", "constant", "group", "value", "broadcast_value"] = "value"
    """What Psi is measured against: nothing, the average return of the other trajectories (as in
    RLOO), that of all of them (as in GRPO), a learned value function (the critic), or the
    article's critic, whose values of shape (T, 1) are broadcast against returns of shape (T,)."""
    group_std: bool = False
    """Whether Psi is divided by the standard deviation of the trajectories' returns, too, as in
    GRPO (baseline=group only)."""
    discounting: Literal["relative", "absolute"] = "relative"
    """Discount from the current step, gamma^(k-t), or from the episode's start, gamma^k."""
    gamma: float = _traced(0.99)
    """Discount per step, in [0, 1]."""
    gae_lambda: float = _traced(0.97)
    """Lambda of GAE and of the lambda-return, in [0, 1]."""
    normalize_advantage: bool = False
    """Shift and scale Psi to mean 0 and standard deviation 1."""
    normalize_over: Literal["batch", "minibatch"] = "batch"
    """Of what Psi is normalised: of the whole batch, or of each of fit=ppo's minibatches."""
    reduction: Literal["steps", "trajectories", "trajectory_means"] = "steps"
    """Policy loss: mean over valid steps; sum over time, mean over trajectories; or mean over time,
    then over trajectories, as in GRPO (collect=episodes only)."""
    ent_coef: float = _traced(0.0)
    """Weight of the entropy bonus, >= 0."""

    fit: Literal["gradient", "npg", "trpo", "ppo"] = "gradient"
    """What an update does with its batch: one step along the policy gradient or the natural
    gradient, or TRPO's (and value_steps of the critic), or epochs of minibatch steps on PPO's
    clipped surrogate."""
    epochs: int = 1
    """Passes over the batch, each in another order (fit=ppo only)."""
    minibatches: int = 1
    """Steps of a pass; they divide the batch's steps, or its episodes (fit=ppo only)."""
    clip_coef: float = _traced(0.2)
    """Epsilon > 0: beyond 1 - epsilon or 1 + epsilon the probability ratio of an action gains
    nothing more (fit=ppo only)."""
    clip_value: float | None = _traced(None)
    """How far > 0 from its old value V(s) may move before the value loss stops to gain; None: any
    distance (fit=ppo only)."""
    target_kl: float | None = _traced(None)
    """KL from the acting policy, > 0, above which the rest of an update's steps is left out; None:
    none is (fit=ppo only)."""

    max_kl: float = _traced(0.01)
    """Delta > 0: how far, in nats, a step may take the policy, on average over the batch (fit=trpo
    only)."""
    damping: float = _traced(0.1)
    """What is added to the diagonal of the Fisher matrix, >= 0 (fit=npg and trpo only)."""
    cg_steps: int = _traced(10)
    """Steps of conjugate gradients at most, <= 64 (fit=npg and trpo only)."""
    backtrack_steps: int = 10
    """Lengths of a step that are tried, each 0.8 of the one before it (fit=trpo only)."""

    value_target: Literal["monte_carlo", "td0", "lambda_return"] = "lambda_return"
    """What the critic is fitted to."""
    value_data: Literal["batch", "replay", "replay_successor"] = "batch"
    """Fit the critic on this update's batch, or on samples from a ring of past transitions;
    replay_successor, as the article has it, fits V(next_obs) to reward + gamma V(next_obs), at
    the end of the task too."""
    value_steps: int = 4
    """Optimizer steps of the critic per update."""
    buffer_size: int = 5_000
    """Transitions that the ring holds (value_data=replay... only)."""
    batch_size: int = 512
    """Transitions sampled without replacement per value step (value_data=replay... only)."""
    vf_coef: float = _traced(0.5)
    """Weight of the value loss in a joint loss, >= 0."""

    networks: Literal["separate", "shared"] = "separate"
    """Two MLPs, or one torso with a policy head and a value head, which has a joint loss."""
    joint_loss: bool = False
    """Whether two MLPs, too, have one loss, policy + vf_coef * value, and one optimizer."""
    conv_features: tuple[int, ...] = ()
    """Features of each 3 x 3 convolution, of steps of 1 and without padding, that comes before the
    hidden layers; the observation must be an image. Without any, an image is a vector."""
    hidden_sizes: tuple[int, ...] = (64,)
    """Width of each hidden layer."""
    activation: Literal["relu", "tanh"] = "relu"
    """Nonlinearity after each convolution and hidden layer."""
    init: Literal["uniform", "orthogonal"] = "uniform"
    """How a layer starts: uniform in ±1/√inputs, as torch's; or an orthogonal kernel times √2 (0.01
    for the policy's output, 1 for the value's) and no bias."""
    normalize_obs: bool = False
    """Shift and scale each entry of an observation by the mean and standard deviation of what has
    been met before this update, and clip it to [-10, 10]; kept with the parameters."""
    normalize_reward: bool = False
    """Divide rewards by the standard deviation of the returns so far, and clip them to [-10, 10];
    reported are the environment's own."""
    sigma: Literal["free", "state"] = "free"
    """Standard deviation of a continuous policy: a free parameter, or an output of the network."""
    squash: bool = False
    """Squash a continuous action by tanh and scale it to its bounds, which must be finite; or clip
    it to them."""
    log_prob: Literal["exact", "clamped"] = "exact"
    """Of a discrete action: log_softmax, or (as the article has it) the log of probabilities
    clamped to [2^-23, 1 - 2^-23], whose gradient is 0 outside."""

    optimizer: Literal["sgd", "adam", "rmsprop"] = "adam"
    """Optimizer of every network; with fit=npg and trpo, of the critic alone."""
    optimizer_eps: float = _traced(1e-8)
    """What Adam and RMSprop add to the root of the mean square, > 0."""
    adam_b1: float = _traced(0.9)
    """Decay of Adam's mean of gradients, in [0, 1)."""
    adam_b2: float = _traced(0.999)
    """Decay of Adam's mean of their squares, in [0, 1)."""
    learning_rate: float = _traced(1e-2)
    """Learning rate of the policy (of everything, with a joint loss), > 0; fit=trpo has none."""
    value_learning_rate: float = _traced(1e-2)
    """Learning rate of a critic with a loss of its own, > 0."""
    lr_schedule: Literal["constant", "linear"] = "linear"
    """Keep the learning rates, or let them fall linearly to 0 at the end of the budget."""
    max_grad_norm: float | None = _traced(0.5)
    """Clip each optimizer's gradient to this global norm, > 0; None: no clipping. A natural
    gradient has no optimizer and is not clipped."""

    arithmetic: Literal["float32", "float64", "float32_grid", "float24_grid"] = "float32"
    """Working precision. float32_grid computes in float64 and rounds environment state and
    parameters to float32 after each step: slow, and bit-equal between the two packages.
    float24_grid rounds to 8 bits less, and keeps runs equal for much longer."""

    def __post_init__(self) -> None:
        """A plain dictionary will do for env_params."""
        if isinstance(self.env_params, dict) and not isinstance(self.env_params, EnvParams):
            object.__setattr__(self, "env_params", EnvParams(self.env_params))

    @property
    def critic(self) -> bool:
        """Whether a value function is learned."""
        return self.baseline in ("value", "broadcast_value")

    @property
    def replays(self) -> bool:
        """Whether the critic is fitted on a ring of past transitions."""
        return self.critic and self.value_data != "batch"

    @property
    def joint(self) -> bool:
        """Whether policy and critic have one loss and one optimizer."""
        return self.joint_loss or self.networks == "shared"

    @property
    def natural(self) -> bool:
        """Whether the policy's steps are along the natural gradient."""
        return self.fit in ("npg", "trpo")

    @property
    def reports(self) -> tuple[str, ...]:
        """Names of the metrics that its fit has beside everybody's."""
        return {
            "npg": ("kl",),
            "trpo": ("kl", "full_kl", "accepted"),
            "ppo": ("clip_fraction", "approx_kl", "explained_variance"),
        }.get(self.fit, ())

    @property
    def float_type(self) -> str:
        """Name of the dtype that all arithmetic is done in."""
        return "float32" if self.arithmetic == "float32" else "float64"

    @property
    def grid_bits(self) -> int | None:
        """Bits of mantissa that are left of what is carried forward; None off the grid."""
        return {"float32_grid": 23, "float24_grid": 15}.get(self.arithmetic)

    @property
    def budget(self) -> str:
        """Name of the field that is the training budget."""
        return "total_steps" if self.collect == "steps" else "total_episodes"

    @property
    def unit(self) -> str:
        """What the budget counts."""
        return "environment steps" if self.collect == "steps" else "episodes"

    @property
    def update_cost(self) -> int:
        """How much of the budget an update takes."""
        return self.num_envs * (self.num_steps if self.collect == "steps" else 1)

    @property
    def num_updates(self) -> int:
        """U: updates that the budget pays for; a remainder is left unspent."""
        return getattr(self, self.budget) // self.update_cost


def of_json(fields: dict[str, Any]) -> Config:
    """The config whose fields `dataclasses.asdict` gave, of whose tuples JSON has made lists."""
    values: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()
    }
    return Config(**values)


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
TRACED = tuple(name for name, field in FIELDS.items() if "traced" in field.metadata)
STATIC = tuple(name for name in FIELDS if name not in (*TRACED, "env_params"))  # it is both
WHOLE = tuple(name for name in TRACED if FIELDS[name].type is int)
OPTIONAL = tuple(name for name in TRACED if type(None) in get_args(FIELDS[name].type))


def nearest(name: str, choices: Any) -> str:
    """'; did you mean …? Allowed: …' for an error message."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    shown = choices if len(choices) <= 30 else [*choices[:30], f"… ({len(choices)} in all)"]
    return f"{hint} Allowed: {', '.join(shown)}"


_HINTS = get_type_hints(Config)
_COUNTS = (
    *("num_envs", "num_steps", "epochs", "minibatches", "backtrack_steps", "frame_stack"),
    *("value_steps", "buffer_size", "batch_size"),
)
_BUDGETS = ("total_steps", "total_episodes")
_MOST = 2**31 - 1  # what an int32 counts
MOST_CG_STEPS = 64  # rows that conjugate gradients have for their residuals
_RANGES = {
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "ent_coef": (0.0, math.inf),
    "vf_coef": (0.0, math.inf),
    "learning_rate": (5e-324, math.inf),
    "value_learning_rate": (5e-324, math.inf),
    "max_grad_norm": (5e-324, math.inf),
    "clip_coef": (5e-324, math.inf),
    "clip_value": (5e-324, math.inf),
    "target_kl": (5e-324, math.inf),
    "max_kl": (5e-324, math.inf),
    "damping": (0.0, math.inf),
    "optimizer_eps": (5e-324, math.inf),
    "adam_b1": (0.0, 1.0 - 2.0**-53),
    "adam_b2": (0.0, 1.0 - 2.0**-53),
}
_OF_FITS = {  # fields that mean nothing to other fits
    **dict.fromkeys(("epochs", "minibatches", "normalize_over", "clip_value", "target_kl"), "ppo"),
    "backtrack_steps": "trpo",
}


def validate(config: Config) -> Config:
    """Return `config` if every field and their combination has a meaning.

    Traced fields are checked where they are numbers or arrays of numbers; an array that a
    framework traces has no values to check.

    Raises:
      ConfigError: one sentence: what is wrong, what is allowed, what was given.
    """
    for name in STATIC:
        choices = get_args(_HINTS[name])
        value = getattr(config, name)
        if choices and isinstance(choices[0], str) and value not in choices:
            raise ConfigError(f"{name} is {value!r}{nearest(str(value), choices)}")
        if _HINTS[name] in (str, bool) and not isinstance(value, _HINTS[name]):
            raise ConfigError(f"{name} must be a {_HINTS[name].__name__}; got {value!r}")
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
    for name, (low, high) in _RANGES.items():
        _check_range(name, getattr(config, name), low, high)
    _check_env_params(config.env_params)
    problem = _meaningless(config)
    if problem:
        raise ConfigError(problem)
    return config


def _check_count(name: str, value: Any, most: int | None = _MOST) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1; got {value!r}")
    if most is not None and int(value) > most:
        raise ConfigError(f"{name} must be at most {most:,}; got {int(value):,}")


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if value is None and name in OPTIONAL:
        return
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise ConfigError(f"{name} must be a number; got {value!r}")
    for number in map(_as_float, _entries(value)):
        if not low <= number <= high or math.isinf(number):
            allowed = f"in [{low:g}, {high:g}]" if high < math.inf else "finite and at least 0"
            if low > 0:
                allowed = "finite and greater than 0"
            if low == -math.inf:
                allowed = "finite"
            raise ConfigError(f"{name} must be {allowed}; got {number!r}")


def _as_float(value: Any) -> float:
    """Infinite if it is too large to be one."""
    try:
        return float(value)
    except OverflowError:  # of Python's integers
        return math.inf


def parse_env_params(entries: Sequence[str]) -> EnvParams:
    """The parameters of 'gravity=12', 'ramping=false'.

    Raises:
      ConfigError: if an entry is none, or a name is given twice.
    """
    named = named_words(entries, "env_params")
    return EnvParams({name: parse_env_param(name, word) for name, word in named.items()})


def named_words(entries: Sequence[str], whose: str) -> dict[str, str]:
    """What stands behind the names of 'gravity=12', 'ramping=false'.

    Args:
      whose: they are, for the message.

    Raises:
      ConfigError: if an entry is none, or a name is given twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, word = entry.partition("=")
        if not equals or name in found:
            raise ConfigError(f"{whose} must be NAME=VALUE, each name once; got {entry!r}")
        found[name] = word
    return found


def parse_env_param(name: str, word: str) -> bool | int | float:
    """The value of a parameter, as it is written: 12, 9.8, true.

    Raises:
      ConfigError: if it is none.
    """
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    raise ConfigError(f"{name} must be a number, true or false; got {word!r}")


def with_types(
    env: str, params: EnvParams, kinds: dict[str, type], follow: dict[str, str] | None = None
) -> EnvParams:
    """An environment's parameters with its own types: where it has a float, 12 is 12.0.

    Args:
      env: its name.
      kinds: the type of each of its parameters, float, int or bool.
      follow: parameters that are made of others, and how.

    Raises:
      ConfigError: if it has no such parameter, or one of another type.
    """
    found = EnvParams(params, params.static)
    for name, value in params.items():
        if follow and name in follow:
            raise ConfigError(f"{name} of {env} is {follow[name]}: give those")
        if name not in kinds:
            allowed = nearest(name, kinds) if kinds else ", nor any other to set"
            raise ConfigError(f"{env} has no parameter {name!r}{allowed}")
        kind, given = kinds[name], type(value) if name in params.static else float
        if kind is float and given is not bool:
            found[name] = _as_float(value) if name in params.static else value
        elif (kind is bool) != (given is bool) or given is float:
            what = {float: "a number", int: "an integer, which is static", bool: "true or false"}
            raise ConfigError(f"{name} of {env} must be {what[kind]}; got {value!r}")
        elif kind is int and abs(value) > _MOST:
            raise ConfigError(f"{name} of {env} must be in [-{_MOST:,}, {_MOST:,}]; got {value:,}")
    return EnvParams(found, frozenset(name for name in found if kinds[name] is not float))


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
            _check_range(f"env_params {name}", value, -math.inf, math.inf)


def _entries(value: Any) -> list[Any]:
    """What is in an array of any framework, nothing while it is traced; or what is no array."""
    if not hasattr(value, "reshape"):
        return [value]
    try:
        return list(value.reshape(-1).tolist())
    except (TypeError, RuntimeError):  # jax's and torch's words for a tracer
        return []


def _meaningless(config: Config) -> str | None:
    """Why this combination has no meaning, or None."""
    c = config
    if c.num_updates < 1:
        given = getattr(c, c.budget)
        return f"{c.budget} must pay for at least one update of {c.update_cost}; got {given}"
    longest = c.num_steps if c.collect == "steps" else c.max_episode_steps or 1
    for what, count in {
        "steps of all environments in an update": c.num_envs * longest,
        f"updates that {c.budget} pays for": c.num_updates,
    }.items():
        if count > _MOST:
            return f"{what} must be at most {_MOST:,}; got {count:,}"
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
    name = "networks='shared'" if c.networks == "shared" else "joint_loss"
    if c.joint and not c.critic:
        return f"{name} needs baseline='value'; got baseline={c.baseline!r}"
    if c.joint and (c.value_data != "batch" or c.value_steps > 1):
        return (
            f"{name} has one joint loss on one batch, so it needs value_data='batch' "
            f"and value_steps=1; got {c.value_data!r} and {c.value_steps}"
        )
    for name, fit in _OF_FITS.items():
        value, default = getattr(c, name), FIELDS[name].default
        if c.fit != fit and value is not None and (default is None or value != default):
            return f"{name} needs fit={fit!r}; got {value!r} with fit={c.fit!r}"
    if c.fit != "gradient" and (c.baseline == "broadcast_value" or c.log_prob == "clamped"):
        return (
            f"fit={c.fit!r} has nothing of the article's, so baseline must not be "
            f"'broadcast_value' and log_prob not 'clamped'; got {c.baseline!r} and {c.log_prob!r}"
        )
    if c.fit == "ppo":
        return _meaningless_ppo(c)
    if c.natural and c.joint:
        return (
            f"fit={c.fit!r} measures the steps of a policy of its own, so it needs "
            f"networks='separate' and joint_loss False; got {c.networks!r} and {c.joint_loss}"
        )
    if c.replays and c.value_target != "td0":
        return (
            f"value_data={c.value_data!r} holds single transitions, so it needs "
            f"value_target='td0'; got {c.value_target!r}"
        )
    if c.value_data != "batch" and c.batch_size > c.buffer_size:
        return f"batch_size must be at most buffer_size; got {c.batch_size} of {c.buffer_size}"
    return None


def _meaningless_ppo(c: Config) -> str | None:
    if c.value_data != "batch" or c.value_steps > 1:
        return (
            "fit='ppo' takes one step of the critic on each minibatch, so it needs "
            f"value_data='batch' and value_steps=1; got {c.value_data!r} and {c.value_steps}"
        )
    if c.collect == "steps" and c.reduction == "trajectories":
        return (
            "fit='ppo' with collect='steps' has minibatches of single steps, so it needs "
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
