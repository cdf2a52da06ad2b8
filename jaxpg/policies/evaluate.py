"""Evaluate: trained policies in fresh episodes, in gymnax and in gymnasium's own environment.

An episode is decided by the evaluation's seed, the policy's seed and its own index alone: not by
the other seeds, nor by how many are evaluated at a time.
"""

import time
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg import words
from jaxpg.analysis.measures import interval
from jaxpg.analysis.outcomes import solved_at
from jaxpg.analysis.stats import estimate, iqm
from jaxpg.core import algorithms, noise
from jaxpg.core.config import OWN_PARAMS, Config, ConfigError, EnvParams
from jaxpg.core.rules import validate
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Algorithm, EnvState, Params
from jaxpg.core.wrappers import newest
from jaxpg.errors import RunError
from jaxpg.fast import static
from jaxpg.population.episodes import chooser, play, stages
from jaxpg.population.policy import Actor, actor, made
from jaxpg.runs.load import Run
from jaxpg.world import find

ROWS = 8_192  # episodes that are simulated at a time, of all seeds together
GYMNASIUM_STEPS = 400_000  # that a default evaluation in gymnasium may take, each mode


class Evaluation(NamedTuple):
    """The episodes of some seeds in one simulator."""

    simulator: str  # "gymnax" or "gymnasium"
    mode: str  # of MODES
    seeds: list[int]
    returns: np.ndarray  # [S, E], undiscounted
    lengths: np.ndarray  # int [S, E], steps
    seconds: float


def in_gymnax(
    run: Run,
    seeds: Sequence[int],
    episodes: int,
    mode: str,
    *,
    setting: int | None = None,
    evaluation_seed: int = 0,
) -> Evaluation:
    """Let trained policies act in gymnax, many seeds and episodes at once.

    Args:
      run: finished.
      seeds: S of its seeds.
      episodes: E of each seed.
      mode: "greedy" or "sampled".
      setting: index in the run's settings; None for the only one.
      evaluation_seed: of the episodes' random numbers.
    """
    began = time.perf_counter()
    config = run.config_of(setting)
    as_arrays(validate(config))  # which need JAX's 64-bit mode, if they do
    names = static(config)  # one program for all values
    algorithm = run.algorithm(setting) or made(algorithms.build, names, OWN_PARAMS)
    player = player_of(algorithm, mode)
    width = min(episodes, ROWS)
    lanes = max(1, min(len(seeds), ROWS // width))
    returns = np.zeros((len(seeds), episodes))
    lengths = np.zeros((len(seeds), episodes), int)
    for i in range(0, len(seeds), lanes):
        for j in range(0, episodes, width):
            # The last ones are done again to fill the shape, so that one program serves all.
            rows = np.arange(i, i + lanes).clip(max=len(seeds) - 1)
            indices = np.arange(j, j + width).clip(max=episodes - 1)
            keys = _episode_keys("evaluation", evaluation_seed, np.asarray(seeds)[rows], indices)
            params = stacked_params(run, [seeds[row] for row in rows], setting)
            # As in training.
            with jax.threefry_partitionable(True), jax.default_matmul_precision("highest"):
                total, length = player(params, keys, config.env_params)
            returns[np.ix_(rows, indices)], lengths[np.ix_(rows, indices)] = total, length
    seconds = time.perf_counter() - began
    return Evaluation("gymnax", mode, list(seeds), returns, lengths, seconds)


def in_gymnasium(
    run: Run,
    seeds: Sequence[int],
    episodes: int,
    mode: str,
    *,
    setting: int | None = None,
    evaluation_seed: int = 0,
) -> Evaluation:
    """Let trained policies act in gymnasium's environment of the same name.

    Every seed and episode has an environment object of its own; their policies act together.

    Args: as of `in_gymnax`.

    Raises:
      ConfigError: if gymnasium is not installed, or has no such environment.
    """
    config = run.config_of(setting)
    make, act = gymnasium_maker(config), actor(config, run.algorithm(setting))
    began, obs_shape = time.perf_counter(), act.interface.obs_shape
    choose = _chooser(act, mode)
    params = stacked_params(run, seeds, setting)
    envs = [make() for _ in range(len(seeds) * episodes)]
    starts = np.random.SeedSequence(evaluation_seed).generate_state(2)
    stacked = config.frame_stack > 1
    obs = np.zeros((len(envs), *obs_shape), np.float32)
    for i, env in enumerate(envs):
        seed, episode = seeds[i // episodes], i % episodes
        start = np.random.SeedSequence([*starts.tolist(), seed, episode]).generate_state(1)[0]
        obs[i], _ = env.reset(seed=int(start))
    keys = _episode_keys("evaluation", evaluation_seed, np.asarray(seeds), np.arange(episodes))
    returns, lengths = np.zeros(len(envs)), np.zeros(len(envs), int)
    alive, t = list(range(len(envs))), 0
    while alive:
        grid = obs.reshape(len(seeds), episodes, *obs_shape)
        actions = np.asarray(choose(params, grid, keys, np.int32(t)))
        actions = actions.reshape(len(envs), *actions.shape[2:])
        over = set()
        for i in alive:
            new, reward, terminated, truncated, _ = envs[i].step(actions[i])
            obs[i] = np.concatenate([obs[i, 1:], np.asarray(new)[None]]) if stacked else new
            returns[i] += reward
            if terminated or truncated:
                over.add(i)
                envs[i].close()
        t += 1
        lengths[alive] = t
        alive = [i for i in alive if i not in over]
    shape = (len(seeds), episodes)
    seconds = time.perf_counter() - began
    return Evaluation(
        "gymnasium", mode, list(seeds), returns.reshape(shape), lengths.reshape(shape), seconds
    )


class Recorded(NamedTuple):
    """What E episodes of S seeds were, step by step; one that is over stays as it ended."""

    seen: Any  # leaves [T + 1, S, E, ...]
    returns: np.ndarray  # [T + 1, S, E], since the episode's start
    lengths: np.ndarray  # int [S, E], steps; T where the episode goes on
    limit: int  # the environment's time limit, at least T


def recorder(
    config: Config,
    mode: str,
    see: Callable[[EnvState], Any],
    steps: int | None = None,
    algorithm: Algorithm | None = None,
) -> Callable[..., Recorded]:
    """A recorder of the episodes of `in_gymnax`; it compiles once for each number of them.

    Args:
      mode: "greedy" or "sampled".
      see: what is kept of N environments' state, of whose observations it is given the last one
        alone: a tree with leaves [N, ...].
      steps: T, at most the environment's time limit, which is taken for None.
      algorithm: with parts of one's own; None for the config's.

    Returns:
      (params [S, ...], seeds, indices of the episodes, episode_seed) -> Recorded.
    """
    act = actor(config, algorithm)
    start, step = stages(act.algorithm, mode)
    limit = act.spec.time_limit
    times = jnp.arange(limit if steps is None else min(steps, limit))

    def kept(state: EnvState) -> Any:
        if config.frame_stack == 1:
            return see(state)
        return see(state._replace(obs=newest(state.obs, act.spec, config.frame_stack)))

    def of_seed(params: Params, keys: jax.Array, env_params: EnvParams) -> tuple:
        def body(carry: tuple, t: jax.Array) -> tuple[tuple, tuple]:
            state, alive = step(params, keys, t, *carry)
            return (state, alive), (kept(state), state.episode_return)

        first, alive = start(keys, env_params)
        final, later = jax.lax.scan(body, (first, alive), times)
        seen = jax.tree.map(
            lambda x, rest: jnp.concatenate([x[None], rest]),
            (kept(first), first.episode_return),
            later,
        )
        return *seen, final[0].time

    of_seeds = jax.jit(jax.vmap(of_seed, (0, 0, None), (1, 1, 0)))

    def record(
        params: Params, seeds: Sequence[int], episodes: Sequence[int], episode_seed: int = 0
    ) -> Recorded:
        keys = _episode_keys("rendering", episode_seed, np.asarray(seeds), np.asarray(episodes))
        seen, returns, lengths = jax.tree.map(np.asarray, of_seeds(params, keys, config.env_params))
        return Recorded(seen, returns, lengths, limit)

    return record


def default_gymnasium_seeds(config: Config, episodes: int) -> int:
    """How many seeds gymnasium, a step at a time in Python, can evaluate in under a minute; it may
    be none."""
    return GYMNASIUM_STEPS // (episodes * actor(config).spec.time_limit)


def summarize(
    evaluation: Evaluation, config: Config, diverged: Collection[int] = ()
) -> dict[str, Any]:
    """What the JSON file says of one evaluation.

    `iqm` and its interval are over the seeds' mean returns; of a single seed over its episodes. A
    seed that diverged acts by its last finite parameters, and is not solved.

    Args:
      diverged: seeds of the run that did.

    Raises:
      RunError: if a return is not finite: the environment gave a reward that is no number.
    """
    means = evaluation.returns.mean(axis=1)
    unknown = np.flatnonzero(~np.isfinite(means))
    if len(unknown):
        seeds = ", ".join(str(evaluation.seeds[i]) for i in unknown[:10])
        raise RunError(
            f"{evaluation.simulator} gave rewards that are no finite numbers, to seed {seeds}: "
            "evaluate the others (--seeds)"
        )
    middle = estimate(iqm, [means if len(means) > 1 else evaluation.returns[0]])
    solved = solved_at(config)
    gone = np.isin(evaluation.seeds, list(diverged))
    return {
        "simulator": evaluation.simulator,
        "mode": evaluation.mode,
        "seeds": evaluation.seeds,
        "episodes": evaluation.returns.shape[1],
        "iqm": middle.value,
        **interval(middle),
        "interval_over": "seeds" if len(means) > 1 else "episodes",
        "worst_seed": evaluation.seeds[int(means.argmin())],
        "worst_seed_return": float(means.min()),
        "best_seed_return": float(means.max()),
        "worst_episode": float(evaluation.returns.min()),
        "solved_at": solved,
        "solved_fraction": None if solved is None else float((~gone & (means >= solved)).mean()),
        "diverged": np.array(evaluation.seeds)[gone].tolist(),
        "mean_return": means.tolist(),
        "steps": int(evaluation.lengths.sum()),
        "seconds": round(evaluation.seconds, 3),
    }


@lru_cache(maxsize=16)
def player_of(algorithm: Algorithm, mode: str) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """(params [S, ...], keys [S, E], env_params) -> returns and lengths [S, E] of episodes."""
    return jax.jit(jax.vmap(partial(play, algorithm, mode), (0, 0, None)))


def _chooser(act: Actor, mode: str) -> Callable[..., jax.Array]:
    """(params [S, ...], observations [S, E, ...], keys [S, E], step) -> actions [S, E, ...], both
    as the environment has them."""
    choose = chooser(act.algorithm, mode)

    def of_seed(params: Params, observation: jax.Array, keys: jax.Array, t: jax.Array) -> jax.Array:
        action = choose(params, jax.vmap(act.interface.encode)(observation), keys, t)
        return jax.vmap(act.interface.decode)(action)

    return jax.jit(jax.vmap(of_seed, (0, 0, 0, None)))


def _episode_keys(use: str, seed: int, seeds: np.ndarray, episodes: np.ndarray) -> jax.Array:
    """[S, E]; each depends on its seed's number and its episode's index.

    All randomness of evaluating and rendering comes from here, gymnasium's own starts aside.
    """
    fold = jax.vmap(jax.vmap(noise.fold_in, (None, 0)), (0, None))
    numbers, indices = jnp.asarray(seeds, jnp.uint32), jnp.asarray(episodes, jnp.uint32)
    by_seed = jax.vmap(noise.fold_in, (None, 0))(noise.key(seed, use), numbers)
    return fold(by_seed, indices)


def stacked_params(run: Run, seeds: Sequence[int], setting: int | None) -> Params:
    """The parameters of some seeds, leaves [S, ...]."""
    rows = np.array([run.row(seed, setting) for seed in seeds])
    return jax.tree.map(lambda leaf: leaf[rows], run.population.params)


def gymnasium_maker(config: Config) -> Callable[[], Any]:
    """A maker of gymnasium's environment of that name.

    Raises:
      ConfigError: if it is not installed, or has none that these policies can act in.
    """
    try:
        import gymnasium
    except ImportError:
        raise ConfigError("gymnasium is not installed: pip install gymnasium") from None
    if config.env not in gymnasium.registry:
        raise ConfigError(f"gymnasium has no environment {config.env!r}")
    if config.env_params:
        raise ConfigError(
            f"gymnasium's {config.env} has parameters of its own, and these policies were trained "
            f"with others ({words.parameters(config.env_params)})"
        )
    limit = (
        {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
    )

    def make() -> Any:
        return gymnasium.make(config.env, disable_env_checker=True, **limit)

    theirs, world = make(), find(config.env).with_time_limit(config.max_episode_steps)
    for does, other, ours in (
        ("observes", theirs.observation_space, world.obs_space),
        ("acts in", theirs.action_space, world.action_space),
    ):
        found, wanted = (_numbers(space, does == "acts in") for space in (other, ours))
        if found != wanted:
            raise ConfigError(
                f"gymnasium's {config.env} {does} {found}, and these policies {wanted}"
            )
    return make


def _numbers(space: Any, bounds: bool) -> str:
    """What a space holds, in the same words of gymnax's and of gymnasium's; of a box its bounds, or
    its shape alone."""
    if hasattr(space, "low"):
        ends = (np.broadcast_to(end, space.shape).tolist() for end in (space.low, space.high))
        return f"{space.shape}" + (" from {} to {}".format(*ends) if bounds else "")
    parts = getattr(space, "spaces", [space])
    spans = [(getattr(part, "start", 0), part.n) for part in parts if hasattr(part, "n")]
    if hasattr(space, "nvec"):
        spans = list(zip(space.start, space.nvec, strict=True))
    said = ", ".join(f"{first} to {first + count - 1}" for first, count in spans)
    return said if hasattr(space, "n") else f"({said})"
