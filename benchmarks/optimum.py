"""What is the best that any policy can reach, where dynamic programming can tell?

    python -m benchmarks.optimum [--smoke]

Pendulum and the two mountain cars have a state of two numbers. Backward induction over a grid of
them, with the environment's own step and its time limit, gives the value of every state and time;
between grid points it is interpolated, which makes it an estimate. The policy that is greedy in it
then acts in the environment itself, from its own starts: what it gets, a policy can get. Writes
benchmarks/results/optimum-cpu.json, which docs/results.md shows.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from benchmarks.measure import command_line, start_as_jaxpg
from benchmarks.record import markdown, write
from jaxpg import words

POINTS, EPISODES, SEED = (201, 401), 4096, 10_000  # of an axis, coarse and fine


class Axis(NamedTuple):
    """One number of the state, and where its grid lies."""

    name: str
    low: float
    high: float
    period: float | None = None


class Task(NamedTuple):
    """An environment with a state of two numbers."""

    axes: tuple[Axis, Axis]
    actions: np.ndarray  # those that are tried, [A]


TASKS: Mapping[str, Task] = {
    "MountainCar-v0": Task(
        (Axis("position", -1.2, 0.6), Axis("velocity", -0.07, 0.07)), np.arange(3)
    ),
    "Pendulum-v1": Task(
        (Axis("theta", -np.pi, np.pi, 2 * np.pi), Axis("theta_dot", -8.0, 8.0)),
        np.linspace(-2.0, 2.0, 21, dtype=np.float32),
    ),
    "MountainCarContinuous-v0": Task(
        (Axis("position", -1.2, 0.6), Axis("velocity", -0.07, 0.07)),
        np.linspace(-1.0, 1.0, 21, dtype=np.float32),
    ),
}


def main() -> None:
    """Solve each environment on each grid, print and write."""
    smoke = command_line(__doc__).parse_args().smoke
    start_as_jaxpg()
    if smoke:
        print(table([optimum("MountainCar-v0", 21, 8)]))
        return
    rows = [optimum(env, points, EPISODES) for env in TASKS for points in POINTS]
    write("optimum", {"rows": rows, "table": table(rows)})
    print(table(rows))


def optimum(env: str, points: int, episodes: int) -> dict[str, Any]:
    """What the greedy policy gets on average, and what the grid says it is worth."""
    mean, error, value = jax.device_get(jax.jit(partial(_solve, env, points, episodes))())
    return {
        "env": env,
        "points": points,
        "episodes": episodes,
        "reached": float(mean),
        "standard_error": float(error),
        "value": float(value),
    }


def _solve(env_name: str, points: int, episodes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean return of the greedy policy and its standard error; value of the same starts."""
    env, params = gymnax.make(env_name)
    task = TASKS[env_name]
    key = jax.random.key(SEED)
    starts = jax.vmap(lambda one: env.reset(one, params)[1])(jax.random.split(key, episodes))

    def act(state: Any, action: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        """The next state, at time 0, its reward, and whether the episode terminates there."""
        shaped = action if task.actions.dtype.kind == "i" else action[None]
        _, after, reward, done, _ = env.step_env(key, state, shaped, params)
        like = jax.tree.map(lambda new, old: jnp.reshape(new, old.shape), after, state)
        return like.replace(time=state.time), jnp.asarray(reward, jnp.float32), done

    each_action = jax.vmap(act, in_axes=(None, 0))
    actions = jnp.asarray(task.actions)

    def worth(value: jax.Array, after: Any, reward: jax.Array, done: jax.Array) -> jax.Array:
        """Of an action: its reward and the value of where it leads."""
        return reward + jnp.where(done, 0.0, _at(value, task, after))

    grids = [jnp.linspace(axis.low, axis.high, points) for axis in task.axes]
    first = jax.tree.map(lambda x: x[0], starts)
    names = [axis.name for axis in task.axes]

    def on_grid(a: jax.Array, b: jax.Array) -> Any:
        return each_action(first.replace(**dict(zip(names, (a, b), strict=True))), actions)

    outcome = jax.vmap(jax.vmap(on_grid, in_axes=(None, 0)), in_axes=(0, None))(*grids)

    def back(value: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return worth(value, *outcome).max(axis=-1), value

    limit = params.max_steps_in_episode
    last = jnp.zeros((points, points))
    value, later = jax.lax.scan(back, last, length=limit)  # later[t]: with t steps to go

    def forth(carry: tuple, value: jax.Array) -> tuple[tuple, None]:
        state, total, alive = carry
        after, reward, done = jax.vmap(each_action, in_axes=(0, None))(state, actions)
        best = worth(value, after, reward, done).argmax(axis=-1)
        state, reward, done = jax.tree.map(
            lambda x: jax.vmap(lambda row, i: row[i])(x, best), (after, reward, done)
        )
        return (state, total + alive * reward, alive & ~done), None

    begin = (starts, jnp.zeros(episodes), jnp.ones(episodes, bool))
    (_, total, _), _ = jax.lax.scan(forth, begin, later[::-1])
    return total.mean(), total.std(ddof=1) / episodes**0.5, _at(value, task, starts).mean()


def _at(value: jax.Array, task: Task, state: Any) -> jax.Array:
    """The value [P, P] of states, linear between the grid's points."""
    coordinates = []
    for axis, points in zip(task.axes, value.shape, strict=True):
        where = getattr(state, axis.name)
        if axis.period:
            where = (where - axis.low) % axis.period + axis.low
        coordinates.append((where - axis.low) / (axis.high - axis.low) * (points - 1))
    return map_coordinates(value, coordinates, order=1, mode="nearest")


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each environment and grid."""
    columns = ["environment", "grid", "a policy reaches", "standard error", "value on the grid"]
    lines = [
        [
            row["env"],
            f"{row['points']} × {row['points']}",
            words.returned(row["reached"]),
            f"{row['standard_error']:.2g}",
            words.returned(row["value"]),
        ]
        for row in rows
    ]
    return markdown(columns, lines)


if __name__ == "__main__":
    main()
