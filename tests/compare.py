"""How tests compare arrays of either framework: shapes first, then values by the leaf's norm."""

from typing import Any

import jax
import numpy as np


def assert_close(
    actual: Any, expected: Any, tolerance: float, name: str = "array", *, scale: Any = None
) -> None:
    """Fail unless |actual - expected| <= tolerance * |scale| in the Euclidean norm.

    Args:
      actual, expected: jax, torch or numpy arrays, or numbers, of one shape and kind.
      tolerance: relative to the norm; 0 asks for equal values.
      name: what to call the array in the message.
      scale: what the error is measured against, such as the sum of absolute per-sample terms where
        those cancel; None: `expected`.
    """
    actual, expected = to_numpy(actual), to_numpy(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape} is not {expected.shape}"
    assert np.all(np.isfinite(expected)), f"{name}: the expected values are not finite"
    assert np.all(np.isfinite(actual)), f"{name}: not finite: {actual}"
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    error = np.linalg.norm(actual - expected)
    allowed = tolerance * np.linalg.norm(expected if scale is None else to_numpy(scale))
    assert error <= allowed, (
        f"{name}: error {error:.3g} exceeds {allowed:.3g} "
        f"({tolerance:g} of the norm)\nactual   {actual}\nexpected {expected}"
    )


def assert_trees_close(actual: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """`assert_close` of every leaf of two flat dicts, which must have the same names."""
    assert sorted(actual) == sorted(expected)
    for name in expected:
        assert_close(actual[name], expected[name], tolerance, name)


def to_numpy(array: Any) -> np.ndarray:
    """The values of a jax, torch or numpy array, or of a number."""
    return np.asarray(array.detach() if hasattr(array, "detach") else array)


def assert_same(one: Any, other: Any) -> None:
    """Two populations are equal to the bit, but for how long they took and what is told of them."""
    told = {"compile_seconds": 0, "wall_seconds": 0, "manifest": None, "start": None}
    ours, theirs = one._replace(**told), other._replace(**told)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_same_training(fast: Any, plain: Any, arithmetic: str) -> None:
    """Two ways to train end with the same parameters: to the bit on the float32 grid."""
    for mine, other in zip(*map(jax.tree.leaves, (fast, plain)), strict=True):
        if arithmetic == "float64":
            assert_close(mine, other, 1e-12)
        else:
            np.testing.assert_array_equal(mine, other)
