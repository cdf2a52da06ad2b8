"""Config: every hyperparameter; which of them have a meaning together is said in `rules`.

This file imports no framework and is the same, byte for byte, in `jaxpg` and `torch_ref`.
"""

import contextlib
import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

RECENT_EPISODES = 100  # that a final return is the mean of


class ConfigError(ValueError):
    """A hyperparameter, or a combination of them, that has no meaning."""


class EnvParams(dict[str, Any]):
    """An environment's parameters by name; all configs share those that say nothing, so that none
    can be changed.

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

    def __reduce__(self) -> tuple:
        return EnvParams, (dict(self), self.static)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("env_params cannot be changed: dataclasses.replace(config, env_params={…})")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    @property
    def traced(self) -> dict[str, Any]:
        """Those that are."""
        return {name: value for name, value in self.items() if name not in self.static}

    @property
    def known(self) -> list[str]:
        """What an environment is built of: all names, and the values of what is static."""
        return sorted(f"{x}={self[x]!r}" if x in self.static else x for x in self)


OWN_PARAMS = EnvParams()  # an environment's own, whatever they are


class Traits(NamedTuple):
    """What all others have to know of a fit."""

    fields: tuple[str, ...] = ()  # of Config, that mean something to it and not to every fit
    reports: tuple[str, ...] = ()  # names of the metrics that it has beside everybody's
    natural: bool = False  # whether the policy's steps are along the natural gradient
    minibatched: bool = False  # whether it goes through its batch in epochs of minibatches


_OF_MINIBATCHES = ("epochs", "minibatches", "normalize_over", "clip_value")
_OF_NATURAL = ("damping", "cg_steps")
TRAITS = {
    "gradient": Traits(),
    "npg": Traits(fields=_OF_NATURAL, reports=("kl",), natural=True),
    "trpo": Traits(
        fields=(*_OF_NATURAL, "max_kl", "backtrack_steps"),
        reports=("kl", "full_kl", "accepted"),
        natural=True,
    ),
    "ppo": Traits(
        fields=(*_OF_MINIBATCHES, "clip_coef", "target_kl"),
        reports=("clip_fraction", "approx_kl", "explained_variance"),
        minibatched=True,
    ),
    "ppo_penalty": Traits(
        fields=(*_OF_MINIBATCHES, "kl_coef", "desired_kl"),
        reports=("kl", "kl_weight", "explained_variance"),
        minibatched=True,
    ),
}


def _traced(default: Any) -> Any:
    """A field that may be an array: it can be vmapped, and never recompiles."""
    return dataclasses.field(default=default, metadata={"traced": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every hyperparameter of a run."""

    # Static fields decide what program is compiled. Traced fields (learning rates, gamma,
    # gae_lambda, coefficients, bounds) are numbers that flow through it: stack them and vmap. The
    # defaults are the preset `vpg`.

    env: str = "CartPole-v1"
    """Environment: any registered gymnax name, or a suite's, as brax:ant (torch_ref: any gymnasium
    name)."""
    env_params: EnvParams = OWN_PARAMS
    """The environment's parameters to change from its defaults, such as gravity=12 masspole=0.3;
    floats are traced, integers and booleans are static."""
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
    """Of what Psi is normalised: of the whole batch, or of each minibatch (fit=ppo and ppo_penalty
    only)."""
    reduction: Literal["steps", "trajectories", "trajectory_means"] = "steps"
    """Policy loss: mean over valid steps; sum over time, mean over trajectories; or mean over time,
    then over trajectories, as in GRPO (collect=episodes only)."""
    ent_coef: float = _traced(0.0)
    """Weight of the entropy bonus, >= 0."""

    fit: Literal["gradient", "npg", "trpo", "ppo", "ppo_penalty"] = "gradient"
    """What an update does with its batch: one step along the policy gradient or the natural
    gradient, or TRPO's (and value_steps of the critic), or epochs of minibatch steps on PPO's
    clipped surrogate, or on its surrogate with a penalty on the KL."""
    epochs: int = 1
    """Passes over the batch, each in another order (fit=ppo and ppo_penalty only)."""
    minibatches: int = 1
    """Steps of a pass; they divide the batch's steps, or its episodes (fit=ppo and ppo_penalty
    only)."""
    clip_coef: float = _traced(0.2)
    """Epsilon > 0: beyond 1 - epsilon or 1 + epsilon the probability ratio of an action gains
    nothing more (fit=ppo only)."""
    clip_value: float | None = _traced(None)
    """How far V(s) may move from its old value before the value loss gains nothing more, > 0;
    None: no limit (fit=ppo and ppo_penalty only)."""
    target_kl: float | None = _traced(None)
    """Skip the rest of an update's steps once the KL from the acting policy exceeds this, > 0;
    None: never (fit=ppo only)."""
    kl_coef: float = _traced(1.0)
    """Beta in the first update, in [2^-40, 2^40]: the weight of the KL from the acting policy
    (fit=ppo_penalty only)."""
    desired_kl: float = _traced(0.01)
    """How far, in nats > 0, an update should take the policy: beta is halved after one that went
    less than 2/3 as far, and doubled after one that went more than 3/2 as far (fit=ppo_penalty
    only)."""

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
    activation: Literal["relu", "tanh", "elu", "silu"] = "relu"
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
    log_std_init: float = 0.0
    """What the log of a free standard deviation starts from, in [-20, 20] (sigma=free only)."""
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
    """Working precision. float32_grid computes in float64 and rounds environment state, actions and
    parameters to float32 after each step: slow, and nearly always bit-equal between the two
    packages. float24_grid rounds to 8 bits less, for what does more in an update than
    fit=gradient."""

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
        return TRAITS[self.fit].natural

    @property
    def minibatched(self) -> bool:
        """Whether its fit goes through the batch in epochs of minibatches."""
        return TRAITS[self.fit].minibatched

    @property
    def reports(self) -> tuple[str, ...]:
        """Names of the metrics that its fit has beside everybody's."""
        return TRAITS[self.fit].reports

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
# Those that an algorithm is built of: with another value, one of its parts is another.
BUILT_OF = (
    *("env", "max_episode_steps", "time_limit", "frame_stack", "squash"),
    *("collect", "estimator", "baseline", "group_std", "discounting", "reduction"),
    *("value_target", "value_data", "fit", "optimizer", "arithmetic"),
    *("networks", "conv_features", "hidden_sizes", "activation", "init", "normalize_obs"),
    *("sigma", "log_std_init", "log_prob"),
)


def check_built_of(config: Config, built_of: tuple[tuple[str, Any], ...]) -> None:
    """Raise ConfigError if an algorithm was built of other fields: it would train by those."""
    for name, value in built_of:
        given = getattr(config, name)
        if given != value:
            raise ConfigError(
                f"the algorithm was built with {name}={value!r}, by which it would train; got a "
                f"config with {name}={given!r}: build one of each config, or let yours go with "
                "any, algorithm._replace(built_of=())"
            )


def nearest(name: str, choices: Any) -> str:
    """'; did you mean …? Allowed: …' for an error message."""
    choices = list(choices)
    lower = {choice.lower(): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f"; did you mean {lower[close[0]]!r}?" if close else "."
    shown = choices if len(choices) <= 30 else [*choices[:30], f"… ({len(choices)} in all)"]
    return f"{hint} Allowed: {', '.join(shown)}"


MOST = 2**31 - 1  # what an int32 counts


def as_float(value: Any) -> float:
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
    env: str, params: EnvParams, kinds: Mapping[str, type], follow: Mapping[str, str] | None = None
) -> EnvParams:
    """An environment's parameters with its own types: where it has a float, 12 is 12.0.

    Args:
      env: its name.
      kinds: the type of each of its parameters, float, int or bool.
      follow: parameters that are made of others, and how.

    Raises:
      ConfigError: if it has no such parameter, or one of another type.
    """
    found = dict(params)
    for name, value in params.items():
        if follow and name in follow:
            raise ConfigError(f"{name} of {env} is computed as {follow[name]}: set those instead")
        if name not in kinds:
            allowed = nearest(name, kinds) if kinds else ", nor any other to set"
            raise ConfigError(f"{env} has no parameter {name!r}{allowed}")
        kind, given = kinds[name], type(value) if name in params.static else float
        if kind is float and given is not bool:
            found[name] = as_float(value) if name in params.static else value
        elif (kind is bool) != (given is bool) or given is float:
            what = {float: "a number", int: "an integer, which is static", bool: "true or false"}
            raise ConfigError(f"{name} of {env} must be {what[kind]}; got {value!r}")
        elif kind is int and abs(value) > MOST:
            raise ConfigError(f"{name} of {env} must be in [-{MOST:,}, {MOST:,}]; got {value:,}")
    return EnvParams(found, frozenset(name for name in found if kinds[name] is not float))
