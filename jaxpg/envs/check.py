"""Whether an environment keeps the contract of `Env`, found out by acting in it at random.

What is looked for is what goes wrong in silence: a time limit that is told as death, a last
observation that is already the next episode's first, numbers that change their type or are none,
and randomness that no key decides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg import words
from jaxpg.core import env as environments
from jaxpg.core import noise
from jaxpg.core.config import OWN_PARAMS, Config, ConfigError, EnvParams
from jaxpg.core.distributions import categorical, several
from jaxpg.core.networks import masked
from jaxpg.core.rules import validate
from jaxpg.core.types import Env, EnvSpec, EnvState, Networks
from jaxpg.world import find

NUM_ENVS = 8
STEPS = 1_000
SHORT = (5, 6)  # time limits, to see how one ends an episode
FEW = 10  # steps within episodes, of which too little is known to judge their last ones
REACH = 4.0  # the numbers of continuous actions are from [-REACH, REACH), beyond most bounds


class Checked(NamedTuple):
    """What was met in an environment in which nothing is wrong."""

    steps: int  # of all its copies together
    terminated: int  # episodes
    truncated: int


def check_env(
    env: Env | str,
    *,
    max_episode_steps: int | None = None,
    env_params: EnvParams = OWN_PARAMS,
    steps: int = STEPS,
    seed: int = 0,
) -> Checked:
    """Act at random in an environment, and find out whether it keeps its contract.

    Termination and truncation are told apart; a step leaves the true last observation and resets
    nothing; shapes and types stay; the key decides everything; every number is finite; a mask
    allows an action wherever there is one to take, and no others are taken here. A reset
    within a step is told by what hardly anything else explains: a last observation that depends
    on the step's key where no other one does, or that is always the episode's first again.

    Args:
      env: an `Env`, as `Algorithm.env` is; or the name of one, whose time limit is tried, too.
      max_episode_steps: time limit of the one that is named; None for its own.
      env_params: parameters of the environment.
      steps: that each of 8 copies takes.
      seed: of what they do.

    Raises:
      ConfigError: if something is wrong; the sentence says what.
    """
    if steps < 1:
        raise ConfigError(f"steps must be at least 1; got {steps}")
    if isinstance(env, Env):
        if max_episode_steps is not None:
            raise ConfigError(
                "max_episode_steps is of an environment that is named; the Env that was given has "
                f"its own, {env.spec.time_limit}"
            )
        seen = _examined(env, env_params, steps, seed)
        _check_limit(env.spec.time_limit, seen)
        return _counted(seen)
    given = Config(env=env, env_params=env_params, max_episode_steps=max_episode_steps)
    own = environments.settle(validate(given)).env_params

    def limited(limit: int | None) -> Env:
        with _running(f"{env}: it"):
            return environments.make(env, max_episode_steps=limit, env_params=own)

    world = limited(max_episode_steps)
    try:
        seen = _examined(world, own, steps, seed)
        _check_numbers(
            find(env).with_params(own).with_time_limit(max_episode_steps).obs_space, seen
        )
        for limit in SHORT:  # episodes may end after just so many steps for another reason
            short = _examined(limited(limit), own, 4 * limit, seed)
            if not _dies_of(limit, short):
                return _counted(seen)
        _check_limit(limit, short)
    except ConfigError as error:
        raise ConfigError(f"{env}: {error}") from error
    return _counted(seen)


@contextmanager
def _running(what: str = "it") -> Iterator[None]:
    """Say in a sentence what an environment's code raises."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # whatever its code raises
        raise ConfigError(f"{what} cannot be run ({words.raised(error):.300})") from error


class _Seen(NamedTuple):
    """T steps of N copies, [T, N, ...] each; pairs are before the step and after it."""

    began: Any  # the observation that the running episode began with
    obs: Any  # after the step
    otherwise: Any  # the same, had the step been given another key
    reward: Any
    terminated: Any
    truncated: Any
    time: tuple[Any, Any]
    episode_return: tuple[Any, Any]
    kept: Any  # whether `restart` left it as it was, where its episode had not ended
    fresh: Any  # whether it began anew, where it had

    @property
    def done(self) -> Any:
        return self.terminated | self.truncated


def _examined(env: Env, env_params: EnvParams, steps: int, seed: int) -> _Seen:
    """What an environment did that passes all but the question of its time limit."""
    _check_spec(env.spec)
    key = noise.key(seed, "evaluation")

    def traced() -> Any:
        return jax.jit(lambda key: _rollout(env, env_params, steps, key)).lower(key)

    with _running(), jax.numpy_rank_promotion("allow"):
        programs = [traced(), traced()]
        if programs[0].as_text() == programs[1].as_text():
            programs = programs[:1]
        compiled = [program.compile() for program in programs]
        seen, again = (jax.tree.map(np.asarray, run(key)) for run in (compiled * 2)[:2])
    _check_decided(seen, again)
    _check_finite(seen)
    _check_mask(env.spec, seen)
    _check_time(seen)
    _check_ends(env.spec, seen)
    _check_last(seen)
    return seen


def _rollout(env: Env, env_params: EnvParams, steps: int, key: jax.Array) -> _Seen:
    """Act at random, with what types can tell checked on the way."""
    spec, config = env.spec, Config(num_envs=NUM_ENVS)
    draws = noise.draw(key, 0, config, spec, steps)
    start = env.reset(noise.first_reset(key, config, spec), env_params)
    _check_state(spec, start)
    act = _at_random(spec)

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, _Seen]:
        state, began = carry
        t, uniform, key = inputs
        action = act(state.obs, uniform)
        keys = jnp.stack([key, jax.vmap(lambda key: noise.fold_in(key, 1))(key)])
        outcomes = jax.vmap(env.step, (0, None, None))(keys, state, action)
        after, reward, terminated, truncated = jax.tree.map(lambda x: x[0], outcomes)
        _check_step(state, after, reward, terminated, truncated)
        done = jnp.logical_or(terminated, truncated)
        following = env.restart(after, done, draws.reset[t // spec.min_episode_steps])
        _check_alike("restart", after, following)
        row = _Seen(
            began=began,
            obs=after.obs,
            otherwise=outcomes[0].obs[1],
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            time=(state.time, after.time),
            episode_return=(state.episode_return, after.episode_return),
            kept=done | _rows_near(after, following),
            fresh=~done | ((following.time == 0) & (following.episode_return == 0)),
        )
        return (following, jnp.where(done[:, None], following.obs, began)), row

    inputs = (jnp.arange(steps), draws.action, draws.env)
    return jax.lax.scan(step, (start, start.obs), inputs)[1]


def _at_random(spec: EnvSpec) -> Any:
    """(obs [N, D], uniform [N, ...]) -> actions of those that an observation allows."""
    if not spec.discrete:
        return lambda obs, uniform: (2.0 * uniform - 1.0) * REACH

    def no_preference(params: None, obs: jax.Array) -> jax.Array:
        return jnp.zeros((*obs.shape[:-1], spec.num_actions), obs.dtype)

    networks = Networks(lambda *keys: {}, no_preference, no_preference)
    networks = masked(networks, spec) if spec.masked else networks
    distribution = several(categorical, spec.choices or (spec.num_actions,))

    def act(obs: jax.Array, uniform: jax.Array) -> jax.Array:
        uniform = uniform.reshape(len(obs), -1)
        return distribution.sample(networks.policy(None, obs), uniform).reshape(
            -1, *spec.action_shape
        )

    return act


def _check_spec(spec: EnvSpec) -> None:
    for name in ("obs_size", "num_actions", "time_limit", "min_episode_steps"):
        if getattr(spec, name) < 1:
            raise ConfigError(f"spec.{name} must be at least 1; got {getattr(spec, name)}")
    if spec.choices and (not spec.discrete or sum(spec.choices) != spec.num_actions):
        raise ConfigError(
            "spec.choices must be those of a discrete action, and add up to spec.num_actions = "
            f"{spec.num_actions}; got {spec.choices}"
        )
    if spec.masked and (not spec.discrete or spec.obs_size < spec.num_actions):
        raise ConfigError(
            "spec.masked is for discrete actions, with a number for each in an observation; got "
            f"{spec.num_actions} actions and {spec.obs_size} numbers"
        )
    if spec.min_episode_steps > spec.time_limit:
        raise ConfigError(
            f"spec.min_episode_steps must be at most the time limit of {spec.time_limit}; got "
            f"{spec.min_episode_steps}"
        )


def _check_state(spec: EnvSpec, state: EnvState) -> None:
    """What `reset` gives: float [N, D], int32 [N], float [N], and leaves [N, ...]."""
    obs, time, total = state.obs, state.time, state.episode_return
    if obs.shape != (NUM_ENVS, spec.obs_size) or not jnp.issubdtype(obs.dtype, jnp.floating):
        raise ConfigError(
            f"obs must be floats [N, {spec.obs_size}], of N = {NUM_ENVS}; reset gives {_type(obs)}"
        )
    if _type(time) != f"int32[{NUM_ENVS}]":
        raise ConfigError(f"time must be int32 [N], of N = {NUM_ENVS}; reset gives {_type(time)}")
    if total.shape != (NUM_ENVS,) or total.dtype != obs.dtype:
        raise ConfigError(
            f"episode_return must be {obs.dtype} [N], as obs, of N = {NUM_ENVS}; reset gives "
            f"{_type(total)}"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.inner):
        name = f"inner{jax.tree_util.keystr(path)}"
        if jnp.shape(leaf)[:1] != (NUM_ENVS,):
            raise ConfigError(
                f"every part of the state must be [N, ...], of N = {NUM_ENVS}; {name} is "
                f"{_type(leaf)}"
            )


def _check_step(
    state: EnvState, after: EnvState, reward: Any, terminated: Any, truncated: Any
) -> None:
    """What `step` gives: what it got, float [N], and bool [N] twice."""
    _check_alike("step", state, after)
    if _type(reward) != f"{state.obs.dtype}[{NUM_ENVS}]":
        raise ConfigError(
            f"reward must be {state.obs.dtype} [N], as obs, of N = {NUM_ENVS}; step gives "
            f"{_type(reward)}"
        )
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if _type(flag) != f"bool[{NUM_ENVS}]":
            raise ConfigError(
                f"{name} must be bool [N], of N = {NUM_ENVS}; step gives {_type(flag)}"
            )


def _check_alike(part: str, old: EnvState, new: EnvState) -> None:
    """Structure, shapes and types of a state stay."""
    if len({jax.tree.structure(state) for state in (old, new)}) > 1:
        raise ConfigError(f"{part} must leave a state of the kind that it is given")
    leaves = zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True)
    for (path, before), after in leaves:
        if _type(before) != _type(after):
            raise ConfigError(
                f"{part} must keep shapes and types of the state; it turns "
                f"{jax.tree_util.keystr(path).removeprefix('.')} from {_type(before)} into "
                f"{_type(after)}"
            )


def _check_decided(seen: _Seen, again: _Seen) -> None:
    for name, one, other in zip(_Seen._fields, seen, again, strict=True):
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            if not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
                raise ConfigError(
                    f"the key must decide everything; run twice with the same one, {name} differs"
                )


def _check_finite(seen: _Seen) -> None:
    for name, values in (("obs", seen.began), ("obs", seen.obs), ("reward", seen.reward)):
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            t, n, *where = map(int, wrong[0])
            raise ConfigError(
                f"{name} must be finite; {_when(seen, values, t, n)} {name}{where or ''} is "
                f"{values[(t, n, *where)]}"
            )


def _check_numbers(obs_space: Any, seen: _Seen) -> None:
    """Of a Discrete space: an observation is a 1 at its number, or nothing if that has no place."""
    count = getattr(obs_space, "n", None)
    if count is not None and not all((x.sum(axis=-1) == 1).all() for x in (seen.began, seen.obs)):
        raise ConfigError(
            f"an observation must be one of 0 … {count - 1}, as observation_space says; there was "
            "another"
        )


def _when(seen: _Seen, values: Any, t: int, n: int) -> str:
    """Of an entry of `began`, or of what follows a step."""
    return "after a reset" if values is seen.began else f"after {seen.time[1][t, n]} steps"


def _check_mask(spec: EnvSpec, seen: _Seen) -> None:
    """Ones and zeros, and of each choice one that is allowed, wherever an action follows."""
    if not spec.masked:
        return
    for values, follows in ((seen.began, np.ones_like(seen.done)), (seen.obs, ~seen.done)):
        mask = values[..., spec.obs_size - spec.num_actions :]
        wrong = np.argwhere((mask != 0) & (mask != 1))
        if len(wrong):
            raise ConfigError(
                f"a mask, the last {spec.num_actions} numbers of an observation, must be of zeros "
                f"and ones; got {mask[tuple(wrong[0])]}"
            )
        ends = np.cumsum(spec.choices or (spec.num_actions,))[:-1]
        for i, part in enumerate(np.split(mask, ends, axis=-1)):
            nothing = np.argwhere((part == 0).all(axis=-1) & follows)
            if len(nothing):
                which = f" of choice {i + 1}" if spec.choices else ""
                raise ConfigError(
                    "an observation must allow an action while its episode goes on; "
                    f"{_when(seen, values, *nothing[0])} it allows none{which}"
                )


def _check_time(seen: _Seen) -> None:
    """The steps and rewards of an episode are counted, and `restart` begins those that ended."""
    before, after = seen.time
    if (after != before + 1).any() or before[0].any():
        raise ConfigError(
            "time must be 0 after a reset and grow by 1 with every step, the last one too: "
            "restart sets it back, not step"
        )
    before, after = seen.episode_return
    if not np.allclose(after, before + seen.reward, rtol=1e-5, atol=1e-5) or before[0].any():
        raise ConfigError("episode_return must be the sum of the rewards since the reset")
    if not seen.kept.all():
        raise ConfigError("restart must leave environments whose episode goes on as they are")
    if not seen.fresh.all():
        raise ConfigError("restart must begin anew, with time and episode_return 0, where done")


def _check_ends(spec: EnvSpec, seen: _Seen) -> None:
    if (seen.terminated & seen.truncated).any():
        raise ConfigError("a step must not be both terminated and truncated: what ends is the task")
    length = seen.time[1]
    if (length[~seen.done] >= spec.time_limit).any():
        raise ConfigError(
            f"an episode must be truncated after the time limit of {spec.time_limit} steps; one "
            f"goes on after {length[~seen.done].max()}"
        )
    if (length[seen.done] < spec.min_episode_steps).any():
        raise ConfigError(
            f"no episode may be shorter than spec.min_episode_steps = {spec.min_episode_steps}; "
            f"one ended after {length[seen.done].min()}"
        )


def _check_last(seen: _Seen) -> None:
    """No step resets. See `check_env`."""
    on = ~seen.done
    if on.sum() < FEW:
        return
    moved = ~_near(seen.obs, seen.otherwise).all(-1)
    back = _near(seen.obs, seen.began).all(-1)
    for name, ends in (("terminated", seen.terminated), ("truncated", seen.truncated)):
        if not ends.any():
            continue
        reason = None
        if not moved[on].any() and moved[ends].mean() > 0.5:
            reason = "it depends on the step's key, which no other observation does"
        elif back[ends].all() and not back[on].all():
            reason = "it is always the episode's first one"
        if reason:
            raise ConfigError(
                f"step must not reset: the observation of a step that is {name} must be the "
                f"episode's last, and seems to be the next one's first ({reason})"
            )


def _check_limit(limit: int, seen: _Seen) -> None:
    if _dies_of(limit, seen):
        raise ConfigError(
            f"a time limit must truncate: all episodes that reached {limit} steps, the limit, are "
            "said to be terminated"
        )


def _dies_of(limit: int, seen: _Seen) -> bool:
    """Whether episodes reached their time limit, and were all terminated by it."""
    reached = seen.time[1] == limit
    return bool(reached.any() and seen.terminated[reached].all())


def _counted(seen: _Seen) -> Checked:
    return Checked(seen.done.size, int(seen.terminated.sum()), int(seen.truncated.sum()))


def _near(x: Any, y: Any) -> Any:
    """Entry by entry, whether two arrays are equal up to rounding, which fusion changes."""
    same = (x == y) | ((x != x) & (y != y))
    if jnp.issubdtype(x.dtype, jnp.floating):
        same |= abs(x - y) <= 1e-5 * (1.0 + abs(x))
    return same


def _rows_near(one: Any, other: Any) -> jax.Array:
    """bool [N], whether all leaves are."""

    def rows(x: jax.Array, y: jax.Array) -> jax.Array:
        return _near(x, y).reshape(len(x), -1).all(axis=1)

    return jnp.stack(jax.tree.leaves(jax.tree.map(rows, one, other))).all(axis=0)


def _type(x: Any) -> str:
    """As float32[8,4]."""
    return f"{jnp.result_type(x)}[{','.join(map(str, jnp.shape(x)))}]"
