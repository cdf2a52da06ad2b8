"""How the lanes of a vmap are computed: as one batch, until the last is done, or in turns.

Under vmap a loop whose length differs from lane to lane selects over its whole carry at every
step, a CPU vectorises over the innermost axis alone, and its cache is too small for the activations
of many seeds. What is computed stays the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.extend.core import jaxpr_as_fun


def rows(f: Callable[..., Any]) -> Callable[..., Any]:
    """jax.vmap(f), whose rows under another vmap, over L lanes, are one batch [L · N, ...].

    Args:
      f: a function of one row.

    Returns:
      A function of arrays [N, ...].
    """
    return _one_batch(jax.vmap(f))


def _one_batch(f: Callable[..., Any]) -> Callable[..., Any]:
    batch = custom_vmap(f)

    @batch.def_vmap
    def _(size: int, batched: list[Any], *inputs: Any) -> tuple[Any, Any]:
        def flatten(x: jax.Array, has_lanes: bool) -> jax.Array:
            x = x if has_lanes else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(size * x.shape[1], *x.shape[2:])

        outputs = _one_batch(f)(*jax.tree.map(flatten, inputs, tuple(batched)))
        outputs = jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]), outputs)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return batch


def sample(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same for (outputs [..., K], uniform) -> action, where all axes but the last are rows."""

    def of_rows(outputs: jax.Array, uniform: jax.Array) -> jax.Array:
        leading = outputs.shape[:-1]
        if leading and uniform.shape[: len(leading)] == leading:
            return _one_batch(f)(outputs, uniform)
        return f(outputs, uniform)

    return of_rows


def first_apart(step: Callable, start: Any, inputs: Any, *, length: int) -> tuple[Any, Any]:
    """`jax.lax.scan`, with its first step before the loop.

    What that computes of the start may have been computed before, and then XLA takes it from there.
    """
    after, first = step(start, jax.tree.map(lambda x: x[0], inputs))
    if length == 1:
        return after, jax.tree.map(lambda x: x[None], first)
    rest = jax.tree.map(lambda x: x[1:], inputs)
    end, others = jax.lax.scan(step, after, rest, length=length - 1)
    return end, jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, others)


def while_loop(cond: Callable, body: Callable, start: Any) -> Any:
    """`jax.lax.while_loop` that goes on until the condition fails in every lane.

    Args:
      body: changes nothing in a lane in which the condition has failed.
    """
    return jax.lax.while_loop(lambda carry: largest(cond(carry)), body, start)


@custom_vmap
def largest(x: jax.Array) -> jax.Array:
    """The largest x of all lanes, the same in each; a scalar, of flags whether any holds."""
    return x


@largest.def_vmap
def _(size: int, batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
    return largest(jnp.max(x, axis=0)), False


def in_turns(learn: Callable[..., Any]) -> Callable[..., Any]:
    """`learner.learn`, which under vmap takes one lane after the other."""

    def of_lanes(config: Any, algorithm: Any, *inputs: Any) -> Any:
        # Without jit it would be traced twice: as a function, and as the body of the loop.
        one = jax.jit(lambda config, *rest: learn(config, algorithm, *rest))
        opened, closed_over = _open(one, config, *inputs)
        return sequential_vmap(opened)(closed_over, config, *inputs)

    return of_lanes


def _open(f: Callable[..., Any], *inputs: Any) -> tuple[Callable[..., Any], list[Any]]:
    """f as a function of what it closes over, too, and that: it may differ from lane to lane, as
    an option of an algorithm of one's own does, where no function with a rule for vmap may have it.
    """
    program, outputs = jax.make_jaxpr(f, return_shape=True)(*inputs)
    traced = [isinstance(x, jax.core.Tracer) for x in program.consts]

    def opened(closed_over: list[Any], *inputs: Any) -> Any:
        left = iter(closed_over)
        own = [next(left) if t else x for t, x in zip(traced, program.consts, strict=True)]
        flat = jaxpr_as_fun(program.replace(consts=own))(*jax.tree.leaves(inputs))
        return jax.tree.unflatten(jax.tree.structure(outputs), flat)

    return opened, [x for t, x in zip(traced, program.consts, strict=True) if t]
