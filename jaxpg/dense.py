"""Products with a narrow matrix, in the form that a CPU computes fastest.

XLA:CPU leaves every dot to a routine for large matrices. With a handful of inputs it is several
times faster as broadcast arithmetic, and with a handful of outputs as a product for each column.
"""

from typing import Any

import jax
import jax.numpy as jnp

FEW_INPUTS, FEW_OUTPUTS = 8, 4


def dot_general(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> Any:
    """`jax.lax.dot_general` as flax's Dense calls it: x [B, I] times kernel [I, O]."""
    if jax.default_backend() == "cpu" and x.ndim == 2:
        inputs, outputs = kernel.shape
        if inputs <= FEW_INPUTS:
            return _few_inputs(x, kernel)
        if outputs <= FEW_OUTPUTS:
            return jnp.stack([x @ column for column in kernel.T], axis=-1)
    return jax.lax.dot_general(x, kernel, dimensions, precision=precision)


@jax.custom_jvp
def _few_inputs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Σ_i x_i kernel_i."""
    first, *rest = (x[:, i, None] * kernel[None, i] for i in range(len(kernel)))
    return sum(rest, start=first)


@_few_inputs.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """The slope by dots, because its transpose, a sum over all rows, is fast as a dot."""
    (x, kernel), (dx, dkernel) = primals, tangents
    return _few_inputs(x, kernel), dx @ kernel + x @ dkernel
