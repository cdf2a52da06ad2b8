"""Networks in the form that a CPU computes fastest: narrow products, and convolutions.

XLA:CPU leaves every dot to a routine for large matrices. With a handful of inputs it is several
times faster as broadcast arithmetic, and with a handful of outputs as a product for each column.
A network with one hidden ReLU layer between two such matrices has a gradient with one product.

A convolution is a product, too, of the patches that it sees. XLA:CPU prepares the gradient of a
kernel for its own fast routine only outside of loops, and training is a loop.
"""

import itertools

import jax
import jax.numpy as jnp

from jaxpg.core.networks import ACTIVATIONS, KERNEL, MLP
from jaxpg.core.types import Params

FEW_INPUTS, FEW_OUTPUTS = 8, 4


def apply(mlp: MLP, params: Params, inputs: jax.Array) -> jax.Array:
    """`core.networks.apply`: the outputs [..., K] of an MLP for inputs [..., D]."""
    x = inputs.reshape(-1, inputs.shape[-1])
    x = x.astype(jnp.result_type(x, *jax.tree.leaves(params)))  # of integers too, as flax's layers
    if mlp.conv_features:
        x = _convolved(mlp, params, x)
    hidden = [params[f"hidden_{i}"] for i in range(len(mlp.hidden_sizes))]
    output = params.get("output")
    first = hidden[0] if len(hidden) == 1 and mlp.activation == "relu" else None
    if first and output and _is_narrow(first, output):
        x = relu_network(x, first["kernel"], first["bias"], output["kernel"], output["bias"])
    else:
        for layer in hidden:
            x = ACTIVATIONS[mlp.activation](_affine(x, layer))
        x = _affine(x, output) if output else x
    return x.reshape(*inputs.shape[:-1], -1)


def _convolved(mlp: MLP, params: Params, x: jax.Array) -> jax.Array:
    """What an MLP's convolutions make of images [B, D], as vectors."""
    x = x.reshape(-1, *mlp.image)
    for i, features in enumerate(mlp.conv_features):
        layer = params[f"conv_{i}"]
        kernel = layer["kernel"].reshape(-1, features)
        x = ACTIVATIONS[mlp.activation](_patches(x) @ kernel + layer["bias"][None, None, None])
    return x.reshape(len(x), -1)


def _patches(x: jax.Array) -> jax.Array:
    """What each output of a convolution of [B, H, W, C] sees, [B, H - 2, W - 2, 9 · C]."""
    height, width = (size - KERNEL + 1 for size in x.shape[1:3])
    corners = itertools.product(range(KERNEL), repeat=2)
    seen = [x[:, row : row + height, column : column + width] for row, column in corners]
    return jnp.concatenate(seen, axis=-1)


def _is_narrow(hidden: Params, output: Params) -> bool:
    """Whether `relu_network` is made for these layers."""
    return hidden["kernel"].shape[0] <= FEW_INPUTS and output["kernel"].shape[1] <= FEW_OUTPUTS


def _affine(x: jax.Array, layer: Params) -> jax.Array:
    """x · kernel + bias, of x [B, I]."""
    kernel, bias = layer["kernel"], layer["bias"][None]
    inputs, outputs = kernel.shape
    if inputs <= FEW_INPUTS:
        return _few_inputs(x, kernel) + bias
    if outputs <= FEW_OUTPUTS:
        return jnp.stack([x @ column for column in kernel.T], axis=-1) + bias
    return x @ kernel + bias


@jax.custom_jvp
def relu_network(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, kernel_out: jax.Array, bias_out: jax.Array
) -> jax.Array:
    """relu(x · kernel + bias) · kernel_out + bias_out, of x [B, I], as [B, O]."""
    z = _preactivations(x, kernel, bias)
    hidden = jnp.where(z < 0.0, 0.0, z)  # a CPU takes one operation fewer than for a maximum
    return jnp.stack([hidden @ column for column in kernel_out.T], axis=-1) + bias_out[None]


@relu_network.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """The slope of output o is Σ_j [z_j > 0] (x, 1) · G_oj, linear in small matrices G_o.

    G_o holds the slopes of all parameters, (dW, db) w_o + (W, b) dw_o. In reverse this is one
    product, of the output's slope times (x, 1) with the mask [z > 0].
    """
    x, kernel, bias, kernel_out, _ = primals
    dx, dkernel, dbias, dkernel_out, dbias_out = tangents
    z = _preactivations(x, kernel, bias)
    mask = jnp.where(z > 0.0, jnp.ones_like(z), 0.0)
    first = jnp.concatenate([kernel, bias[None]])
    dfirst = jnp.concatenate([dkernel, dbias[None]])
    columns = zip(kernel_out.T, dkernel_out.T, strict=True)
    small = jnp.stack([dfirst * w[None] + first * dw[None] for w, dw in columns])
    by_input = jnp.einsum("oij,bj->oib", small, mask)
    extended = jnp.concatenate([x.T, jnp.ones_like(x.T[:1])])
    slopes = jnp.sum(by_input * extended[None], axis=1).T + (mask * (dx @ kernel)) @ kernel_out
    return relu_network(*primals), slopes + dbias_out[None]


def _preactivations(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """bias + Σ_i x_i kernel_i, each step a fused multiply-add."""
    return sum((x[:, i, None] * kernel[None, i] for i in range(len(kernel))), start=bias[None])


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
