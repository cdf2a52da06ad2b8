"""What this machine can do at most: multiply-adds, memory, random numbers; all its cores."""

from typing import Any

from benchmarks.measure import rate_of_all_cores, seconds

REPEATS = 20


def multiply_add(size: int = 2048) -> dict[str, Any]:
    """Floating-point operations a second of a large float32 product; the best of many."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest")).lower(x).compile()
    return {"rate": 2 * size**3 / min(seconds(lambda: product(x), REPEATS))}


def memory(megabytes: int = 64, minimum_seconds: float = 1.0, loops: int = 16) -> dict[str, Any]:
    """Bytes read and written a second by x + 1, each core with an x larger than its caches."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(megabytes * 2**18, jnp.float32)

    @jax.jit
    def add(x: Any) -> Any:
        return jax.lax.fori_loop(0, loops, lambda i, x: x + 1.0, x)

    return {"rate": rate_of_all_cores(add, (x,), 2 * loops * x.nbytes, minimum_seconds)}


def threefry(count: int = 2**18, minimum_seconds: float = 1.0) -> dict[str, Any]:
    """32-bit words a second of `noise.bits`, as many at a time as stay in a cache."""
    import jax

    from jaxpg.core import noise

    draw = jax.jit(lambda key: noise.bits(key, (count,)))
    return {"rate": rate_of_all_cores(draw, (noise.key(0),), count, minimum_seconds)}
