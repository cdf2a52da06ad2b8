"""jaxpg.parity: what passes, every way to fail, bisection, and the page docs/parity.md."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import jaxpg.core.networks
import jaxpg.core.noise
import torch_ref.networks
import torch_ref.noise
from jaxpg.core.types import Config, EnvSpec
from jaxpg.names import to_torch
from jaxpg.parity import assert_close, assert_equal, bisect, compare, gradients, leaves
from tests import pages

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
ONE = {"x": np.array([1.0, 2.0])}


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Point:
    x: Any
    y: Any


def reason(a, b, **options):
    """Why the only leaf that fails does so."""
    report = compare(a, b, **options)
    assert not report.ok
    assert not report
    (failing,) = [leaf for leaf in report.leaves if leaf.reason]
    assert report.worst == failing
    assert failing.reason in str(report)
    return failing.reason


# What a tree is.


def test_leaves_have_dotted_names_in_order():
    tree = {
        "z": Pair(1, [2.0, (True, None)]),
        "a": Point({"deep": np.float32(3)}, {}),
        1: [("named", np.arange(2)), ("pair", 5)],
        "flat.name": 1j,
    }
    expected = ["z.left", "z.right.0", "z.right.1.0", "a.x.deep", "1.named", "1.pair", "flat.name"]
    assert list(leaves(tree)) == expected
    assert list(leaves(jnp.ones(3))) == ["array"]
    assert leaves(None) == leaves({}) == leaves([]) == {}


def test_leaves_of_torch_and_jax():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    assert list(leaves(net)) == list(net.state_dict())  # buffers too
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    assert "param_groups.0.betas.1" in leaves(optimizer)
    state = optax.adam(0.1).init({"w": jnp.ones(2)})
    assert list(leaves(state)) == ["0.count", "0.mu.w", "0.nu.w"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "int64"])
def test_every_dtype_keeps_its_values(dtype, x64):
    values = [0.1, 1.0, -3.0]
    ours = jnp.asarray(values).astype(dtype)
    theirs = torch.tensor(values, dtype=torch.float64).to(getattr(torch, dtype))
    assert_equal(ours, theirs, same_dtype=True)
    report = compare(ours, theirs)
    assert report.leaves[0].dtype == dtype
    assert leaves(theirs)["array"].tolist() == theirs.tolist()
    assert leaves(ours)["array"].tolist() == ours.tolist()


def test_bool_complex_and_lazy_torch_tensors():
    assert_equal(jnp.array([True, False]), torch.tensor([True, False]), same_dtype=True)
    tensor = torch.tensor([1 + 2j, 3j])
    assert_equal(np.conj(tensor.numpy()), tensor.conj())
    assert_equal(np.array([-2.0, -3.0]), tensor.conj().imag.double())
    assert_equal(np.ones(2), torch.ones(2, requires_grad=True).double())
    assert reason(np.array([1 + 1j]), np.array([1 + 2j])) == "error exceeds 1e-12"


def test_leaves_and_gradients_are_copies():
    net = torch.nn.Linear(2, 1)
    net(torch.ones(1, 2)).sum().backward()
    kept, gradient = leaves(net), gradients(net)
    with torch.no_grad():
        net.weight.zero_()
        net.weight.grad.zero_()
    assert kept["weight"].all()
    assert gradient["weight"].all()


def test_gradients_of_a_module():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    net[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'0\.weight' has no gradient"):
        gradients(net)
    net(torch.ones(1, 2)).sum().backward()
    assert list(gradients(net)) == ["0.weight", "1.weight", "1.bias"]
    assert_equal(gradients(net)["1.bias"], np.ones(1))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": "text"}, "leaf 'a'{} is a str, not an array of numbers"),
        ({"f": print}, "leaf 'f'{} is a builtin_function_or_method, not an array"),
        ({"ragged": np.array([None, 1])}, "not an array of numbers (numpy has it as object)"),
        ({"a.b": 1, "a": {"b": 2}}, "two leaves{} are named 'a.b'"),
        ({1: 1.0, "1": 2.0}, "two leaves{} are named '1'"),
        ([("x", 1), ("x", 2)], "two leaves{} are named 'x'"),
        ({"meta": torch.empty(2, device="meta")}, "leaf 'meta'{}, a Tensor, cannot be read"),
        ({"m": np.ma.masked_equal([1, 2], 2)}, "leaf 'm'{} is masked: hand over its data"),
    ],
)
def test_what_is_no_tree(tree, message):
    with pytest.raises(ValueError, match=re.escape(message.format(""))):
        leaves(tree)
    with pytest.raises(ValueError, match=re.escape(message.format(" of b"))):
        compare(ONE, tree)
    with pytest.raises(ValueError, match=re.escape("update 1: ")):
        bisect([ONE, tree], [ONE, ONE])


def test_a_jax_key_is_no_number():
    with pytest.raises(ValueError, match="'key', a PRNGKeyArray, cannot be read as numbers"):
        leaves({"key": jax.random.key(0)})


# What passes, and how far.


def test_error_by_hand():
    """||(0.3, 0.4)|| = 0.5 of ||(3, 4)|| = 5: an error of 0.1; the largest is 0.4, at 1."""
    a, b = np.array([[3.3], [4.4]]), np.array([[3.0], [4.0]])
    (leaf,) = compare({"w": a}, {"w": b}).leaves
    assert leaf.error == pytest.approx(0.1)
    assert leaf.difference == pytest.approx(0.4)
    assert (leaf.at, leaf.a, leaf.b) == ((1, 0), 4.4, 4.0)
    assert leaf.shape == (2, 1)
    assert compare(a, b, tolerance=0.1001).ok
    assert not compare(a, b, tolerance=0.0999).ok


def test_the_reference_is_b():
    """|1 - 2| is a half of 2, and all of 1."""
    assert compare(1.0, 2.0, tolerance=0.6).ok
    assert not compare(2.0, 1.0, tolerance=0.6).ok
    assert compare(1.0, 0.0).leaves[0].error == math.inf


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 1e-30), ("float32", 1e30)]
    + [("float64", size) for size in (1e-320, 1e-200, 1e-30, 1e200, 1.7e308)],
)
def test_no_size_of_numbers_hides_an_error(dtype, size):
    """The squares of 1e-200 and 1e200 are 0 and inf."""
    b = np.full(3, size, dtype)
    a = b * np.array([1.0, 0.5, 1.0], dtype)
    assert compare(b, b).ok
    report = compare(a, b, tolerance=0.25)
    assert not report.ok
    assert report.leaves[0].error == pytest.approx(0.5 / math.sqrt(3), rel=1e-3)
    assert not compare(-b, b, tolerance=0.25).ok


def test_tolerance_0_asks_for_equal_values():
    assert_equal(ONE, ONE)
    assert_equal([1.0, 0.0], [1.0, -0.0], allow_zero=True)
    assert_equal(np.float32(0.5), np.float64(0.5))
    assert reason(np.nextafter(1.0, 2.0), 1.0, tolerance=0.0) == "not equal"
    assert reason(5e-324, 1e-323, tolerance=0.0) == "not equal"
    assert compare(np.nextafter(1.0, 2.0), 1.0).ok


def test_integers_and_bools_are_compared_exactly():
    big = 2**63 - 1
    assert reason(np.int64(big), np.int64(big - 1), tolerance=0.5) == "not equal"
    assert reason(np.array([3, 100]), np.array([3, 101]), tolerance=0.5) == "not equal"
    assert reason(np.array([True, True]), np.array([True, False]), tolerance=2.0) == "not equal"
    (leaf,) = compare(np.uint8([1, 2]), np.uint8([1, 4])).leaves
    assert (leaf.difference, leaf.at, leaf.a, leaf.b) == (2.0, (1,), 2, 4)
    assert_equal(np.uint64(big), np.int64(big))
    assert reason(np.uint64(2**64 - 1), np.int64(-1)) == "not equal"


@pytest.mark.parametrize("scale", [10.0, np.float32(10), {"x": 10.0}, {"x": np.array([6.0, 8.0])}])
def test_scale_for_sums_that_cancel(scale):
    """An error of 1e-6 is all of a sum that is 0, and 1e-7 of terms whose norm is 10."""
    a, b = {"x": np.array([1e-6, 0.0])}, {"x": np.zeros(2)}
    assert reason(a, b, tolerance=0.5) == "error exceeds 0.5"
    assert compare(a, b, tolerance=1.01e-7, scale=scale).ok
    assert not compare(a, b, tolerance=0.99e-7, scale=scale).ok


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float16", 3e4), ("float32", 1e-24), ("float32", 1e20), ("float64", 1e-200),
     ("float64", 1e200), ("complex64", 1e20)],
)  # fmt: skip
def test_a_scale_has_any_size(dtype, size):
    """Its norm is taken in float64, and squares neither over- nor underflow."""
    x = {"x": np.full(100, size, dtype)}
    assert compare({"x": 0 * x["x"]}, x, scale=x).leaves[0].error == pytest.approx(1.0)


def test_a_scale_is_zero_only_where_all_is():
    a, b = {"w": np.ones(2), "z": np.zeros(2)}, {"w": np.ones(2), "z": np.full(2, 1e-300)}
    assert compare(a, a, scale=a, allow_zero="z").ok
    assert compare(a, a, scale=a | {"unused": 0.0}, allow_zero="z").ok
    assert not compare(a, b, scale=a, allow_zero="z").ok
    with pytest.raises(ValueError, match="must be positive and finite, and is 0 for 'z'"):
        compare(a, a, scale=a)


def test_names_and_transpose():
    kernel = np.arange(6.0).reshape(2, 3)
    a = {"layer": {"kernel": kernel, "bias": np.ones(3)}}
    b = {"layer.weight": torch.tensor(kernel.T), "layer.bias": torch.ones(3).double()}
    names = {"layer.kernel": "layer.weight"}
    for patterns in ("*.kernel", ["layer.kernel"], {"*kernel": (1, 0)}):
        assert_equal(a, b, names=names, transpose=patterns)
        assert_equal(a, b, names=lambda name: name.replace("kernel", "weight"), transpose=patterns)
    assert reason(a, b, names=names) == "shape (2, 3) is not (3, 2)"


def test_transpose_moves_any_axes():
    """A convolution: [height, width, in, out] in flax, [out, in, height, width] in torch."""
    a = np.arange(24.0).reshape(1, 2, 3, 4)
    assert_equal({"conv": a}, {"conv": a.transpose(3, 2, 0, 1)}, transpose={"*": (3, 2, 0, 1)})
    assert_equal({"stack": a}, {"stack": a.swapaxes(-1, -2)}, transpose="stack")
    assert_equal({"dense": a[0, 0]}, {"dense": a[0, 0].T}, transpose={"dense": (-1, -2)})
    two = {"conv": a, "dense": a[0, 0]}
    both = {"conv": a.transpose(3, 2, 0, 1), "dense": a[0, 0].T}
    assert_equal(two, both, transpose={"conv": (3, 2, 0, 1), "*": (1, 0)})


# What fails.


def test_missing_leaves():
    assert reason(ONE | {"y": 1.0}, ONE) == "missing in b"
    assert reason(ONE, ONE | {"y": 1.0}) == "missing in a"
    report = compare({"a": 1.0}, {"b": 1.0}, names={"a": "c"})
    assert [(leaf.name, leaf.reason) for leaf in report.leaves] == [
        ("a", "missing in b as 'c'"),
        ("b", "missing in a"),
    ]
    assert reason({}, ONE) == "missing in a"
    assert reason(ONE, {}) == "missing in b"


def test_trees_without_leaves_fail():
    for empty in ({}, [], None, {"a": {}}):
        report = compare(empty, {}, allow_zero=True)
        assert not report.ok
        assert report.worst is None
        assert "nothing was compared" in str(report)
        with pytest.raises(AssertionError, match="nothing was compared"):
            assert_equal(empty, {})


def test_shapes_come_before_values():
    """(T,) against (T, 1) would broadcast to (T, T)."""
    assert reason(np.ones(3), np.ones((3, 1))) == "shape (3,) is not (3, 1)"
    assert reason(1.0, np.ones(1)) == "shape () is not (1,)"
    assert reason(np.full(3, np.nan), np.zeros(4)) == "shape (3,) is not (4,)"


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (1.0, 1, "kind float is not int"),
        (np.bool_(True), 1, "kind bool is not int"),
        (1 + 0j, 1.0, "kind complex is not float"),
    ],
)
def test_kinds(a, b, text):
    assert reason(a, b) == text


def test_dtypes_on_request():
    assert compare(np.float32(1), np.float64(1)).ok
    assert reason(np.float32(1), 1.0, same_dtype=True) == "dtype float32 is not float64"
    bfloat16 = jnp.ones(2, jnp.bfloat16)
    assert reason(bfloat16, np.ones(2, np.float32), same_dtype=True) == (
        "dtype bfloat16 is not float32"
    )
    assert compare(np.float32(1), 1.0).leaves[0].dtype == "float32, float64"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sides", ["a", "b", "a and b"])
def test_what_is_not_finite_fails(bad, sides):
    broken = np.array([[1.0, 2.0], [bad, 3.0]])
    whole = np.ones((2, 2))
    a, b = broken if "a" in sides.split() else whole, broken if "b" in sides else whole
    assert reason(a, b, tolerance=1e300) == f"not finite in {sides}"
    assert compare(a, b).leaves[0].at == (1, 0)
    assert compare(a, b).leaves[0].error == math.inf


def test_a_complex_infinity_is_not_finite():
    assert reason(complex(1, math.inf), complex(1, math.inf)) == "not finite in a and b"


def test_zeros_on_both_sides_show_nothing():
    a = {"w": np.ones(2), "gradient": np.zeros(2), "mask": np.zeros(2, bool), "none": np.ones(0)}
    report = compare(a, a)
    assert [leaf.name for leaf in report.leaves if leaf.reason] == ["gradient", "mask", "none"]
    assert "all zero on both sides: nothing was compared" in str(report)
    assert "empty on both sides: nothing was compared" in str(report)
    assert compare(a, a, allow_zero=True).ok
    assert not compare(a, a, allow_zero=["gradient", "mask"]).ok
    assert compare(a, a, allow_zero=["gradient", "mask", "none"]).ok
    assert reason({"w": np.ones(2)}, {"w": np.zeros(2)}, allow_zero=True) == "error exceeds 1e-12"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -1e-9}, "tolerance: must be in [0, inf), and is -1e-09"),
        ({"tolerance": math.nan}, "tolerance: must be in [0, inf)"),
        ({"tolerance": math.inf}, "tolerance: must be in [0, inf)"),
        ({"tolerance": None}, "tolerance: must be in [0, inf), and is None"),
        ({"names": {"z": "x"}}, "names: a has no leaf 'z'; it has 'x', 'y'"),
        ({"names": {"x": "y"}}, "names: 'x' and 'y' are both mapped to 'y'"),
        ({"names": lambda name: "x"}, "names: 'x' and 'y' are both mapped to 'x'"),
        ({"transpose": "*.kernel"}, "transpose: '*.kernel' matches no leaf; there are 'x', 'y'"),
        ({"transpose": "x"}, "transpose: 'x' of shape (2,) has no axes"),
        ({"transpose": {"y": (0, 0)}}, "transpose: 'y' of shape (2, 2) has no axes (0, 0)"),
        ({"transpose": {"y": (0,)}}, "transpose: 'y' of shape (2, 2) has no axes (0,)"),
        ({"transpose": {"y": 1}}, "transpose: 'y' of shape (2, 2) has no axes 1"),
        ({"transpose": True}, "transpose: must be names of leaves, and is True"),
        ({"allow_zero": ["x", "w"]}, "allow_zero: 'w' matches no leaf"),
        ({"scale": {"x": 1.0}}, "scale: lacks the leaf 'y'; it has 'x'"),
        ({"scale": 0.0}, "scale: must be positive and finite, and is 0 for 'x'"),
        ({"scale": -1}, "scale: must be positive and finite"),
        ({"scale": math.nan}, "scale: must be positive and finite"),
        ({"scale": {"x": np.ones(2), "y": np.zeros(3)}}, "and is 0 for 'y'"),
    ],
)
def test_arguments_without_meaning(options, message):
    tree = {"x": np.ones(2), "y": np.ones((2, 2))}
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(tree, tree, **options)


# What is printed.


def test_the_table():
    a = {"good": np.ones(2), "bad": np.array([1.0, 2.5]), "worse": np.array([4.0]), "n": 3}
    b = {"good": np.ones(2), "bad": np.array([1.0, 2.0]), "worse": np.array([1.0]), "more": 1}
    report = compare(a, b)
    assert str(report) == (
        "DIFFERENT: 4 of 5 leaves, tolerance 1e-12\n"
        "leaf   dtype    shape  error    max|a-b|  at    a    b  verdict\n"
        "n      int64    ()                                      missing in b\n"
        "more   int64    ()                                      missing in a\n"
        "worse  float64  (1,)   3.0e+00  3.0e+00   (0,)  4    1  error exceeds 1e-12\n"
        "bad    float64  (2,)   2.2e-01  5.0e-01   (1,)  2.5  2  error exceeds 1e-12\n"
        "good   float64  (2,)   0.0e+00                          ok"
    )
    assert str(compare(b, b)).startswith("EQUAL: 4 of 4 leaves, tolerance 1e-12\n")
    with pytest.raises(AssertionError) as caught:
        assert_close(a, b)
    assert str(caught.value) == f"\n{report}"
    with pytest.raises(AssertionError) as caught:
        report.raise_if_different()
    assert str(caught.value) == f"\n{report}"
    assert compare(b, b).raise_if_different() is None


# Properties.

FLOATS = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)
ARRAYS = arrays.arrays(
    np.float64, arrays.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=FLOATS
)
TREES = st.dictionaries(
    st.text("abc", min_size=1, max_size=2),
    st.recursive(
        ARRAYS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
            | st.builds(Pair, inner, inner)
        ),
        max_leaves=4,
    ),
    min_size=1,
    max_size=3,
)


@given(TREES)
def test_a_tree_is_itself_in_any_framework(tree):
    assume(leaves(tree))
    assert_equal(tree, tree, allow_zero=True)
    assert_equal(leaves(tree), tree, allow_zero=True)
    assert_equal({k: torch.tensor(v) for k, v in leaves(tree).items()}, tree, allow_zero=True)


@given(TREES, st.data())
def test_one_wrong_entry_is_always_found(tree, data):
    """An entry is moved by 1.001 tolerances of its leaf's norm, or by 0.999."""
    b = leaves(tree)
    nonzero = [name for name, leaf in b.items() if leaf.any()]
    assume(nonzero)
    name = data.draw(st.sampled_from(nonzero))
    at = tuple(data.draw(st.integers(0, side - 1)) for side in b[name].shape)
    tolerance = data.draw(st.sampled_from([1e-9, 1e-5, 0.3]))
    for factor, passes in ((0.999, True), (1.001, False)):
        a = {k: leaf.copy() for k, leaf in b.items()}
        a[name][at] += factor * tolerance * np.linalg.norm(b[name])
        report = compare(a, b, tolerance=tolerance, allow_zero=True)
        assert report.ok is passes
        assert (report.worst.name, report.worst.at) == (name, at)
        split = bisect([b, a], [b, b], tolerance=tolerance)
        assert (split is None) is passes
        if split:
            assert (split.update, split.leaf.name, split.leaf.at) == (1, name, at)


@given(TREES, st.data())
def test_a_leaf_less_is_always_found(tree, data):
    b = leaves(tree)
    assume(b)
    name = data.draw(st.sampled_from(sorted(b)))
    a = {k: leaf for k, leaf in b.items() if k != name}
    assert reason(a, b, allow_zero=True) == "missing in a"
    assert reason(b, a, allow_zero=True) == "missing in b"


# jaxpg's own parameters.


@pytest.mark.parametrize("sigma", ["free", "state"])
def test_our_networks_and_their_twins(sigma):
    spec = EnvSpec(4, 3, False, time_limit=10, min_episode_steps=1, reset_uniforms=4)
    config = Config(hidden_sizes=(5, 5), sigma=sigma)
    key_policy, key_value, _ = jaxpg.core.noise.streams(jaxpg.core.noise.key(7))
    ours = jax.jit(jaxpg.core.networks.make(config, spec).init)(key_policy, key_value)
    key_policy, key_value, _ = torch_ref.noise.streams(torch_ref.noise.key(7))
    twin = torch_ref.networks.make(config, spec).init(key_policy, key_value)
    layout = {
        "names": lambda name: name.replace("kernel", "weight"),
        "transpose": "*.kernel",
        "allow_zero": ["policy.log_std"] if sigma == "free" else False,
        "same_dtype": True,
    }
    assert_equal(ours, twin, **layout)
    assert_equal(to_torch(ours), twin, allow_zero=layout["allow_zero"])
    with torch.no_grad():
        weight = twin["value"].hidden_1.weight  # square: only its values tell
        weight.copy_(weight.T.clone())
    assert compare(ours, twin, **layout).worst.name == "value.hidden_1.kernel"


# bisect


def run(*updates):
    """Updates of `action` [T] and `obs` [T, 2], time first."""
    return [{"obs": np.array(obs, float), "action": np.array(action)} for obs, action in updates]


OBS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_equal_runs_have_no_split():
    assert bisect([ONE, ONE], [ONE, ONE]) is None
    assert bisect(iter([ONE]), (tree for tree in [ONE])) is None
    zero_at_first = [{"momentum": np.zeros(2)}, {"momentum": np.ones(2)}]
    assert bisect(zero_at_first, zero_at_first) is None


def test_the_first_update_tensor_and_entry():
    """√(0.5² + 4²) = 4.03 of √(1 + 4 + 9 + 4.5² + 81 + 36) = 12.30."""
    a = run((OBS, [0, 1, 1]), (OBS, [1, 1, 1]))
    b = run((OBS, [0, 1, 1]), ([[1, 2], [3, 4.5], [9, 6]], [1, 0, 1]))
    split = bisect(a, b)
    assert (split.update, split.leaf.name, split.leaf.at) == (1, "obs", (1, 1))
    assert (split.leaf.a, split.leaf.b, split.step, split.verdict) == (4.0, 4.5, None, "different")
    assert str(split) == (
        "update 1, tensor 'obs', index (1, 1): a = 4.0, b = 4.5; "
        "the tensor differs by 0.33 of its norm."
    )


def test_with_steps_the_earliest_step_counts():
    """An action that differs at step 0 is the cause of an observation that differs at step 1."""
    a = run((OBS, [1, 1, 1]))
    b = run(([[1, 2], [3, 4.5], [9, 6]], [0, 1, 1]))
    assert bisect(a, b).leaf.name == "obs"
    split = bisect(a, b, steps="*")
    assert (split.leaf.name, split.step, split.leaf.at) == ("action", 0, (0,))
    assert str(split).startswith("update 0, step 0, tensor 'action', index (0,): a = 1, b = 0;")
    split = bisect(a, run(([[1, 2], [3, 4.5], [9, 6]], [1, 0, 1])), steps=["obs", "action"])
    assert (split.leaf.name, split.step) == ("obs", 1)  # a tie: the order given
    params = [("params", np.ones(2))]
    a, b = [params + list(a[0].items())], [[("params", np.zeros(2)), *b[0].items()]]
    assert bisect(a, b, steps=["obs", "action"]).leaf.name == "params"  # comes before them


def test_the_index_is_of_the_first_entry_that_exceeds_the_tolerance():
    """Root mean square 1, tolerance 1e-3: entry 0 is within, 1 exceeds, 2 is largest."""
    b = np.ones(4)
    a = b + np.array([5e-4, 2e-3, 3e-3, 0])
    split = bisect([{"w": a}], [{"w": b}], tolerance=1e-3)
    assert split.leaf.at == (1,)
    assert bisect([{"w": a}], [{"w": b}]).leaf.at == (0,)
    assert bisect([{"w": a}], [{"w": b}], tolerance=2e-3) is None
    a, b = [{"n": np.array([100, 201, 390])}], [{"n": np.array([100, 200, 300])}]
    assert bisect(a, b, tolerance=0.1).leaf.at == (1,)


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_the_index_is_the_same_for_numbers_of_any_size(size):
    b = np.full(4, size)
    a = b * (1 + np.array([1e-15, 1e-6, 0, 1e-5]))
    assert bisect([{"w": a}], [{"w": b}], tolerance=1e-9).leaf.at == (1,)


def test_patterns_may_be_iterators():
    """They are gone through at every update."""
    a = [{"w": np.arange(6.0).reshape(2, 3), "o": np.arange(1.0, 4.0)} for _ in range(2)]
    b = [{"w": x["w"].T, "o": x["o"] + [0, update, 0]} for update, x in enumerate(a)]
    split = bisect(a, b, transpose=(x for x in ["w"]), steps=iter(["o"]), only=iter(["w", "o"]))
    assert (split.update, split.leaf.name, split.step) == (1, "o", 1)


def test_dtypes_on_request_in_runs():
    a, b = [{"w": np.ones(2)}], [{"w": np.ones(2, np.float32)}]
    assert bisect(a, b) is None
    assert bisect(a, b, same_dtype=True).leaf.reason == "dtype float64 is not float32"


def test_runs_are_consumed_side_by_side_and_no_further():
    seen = []

    def endless(name, change_at):
        update = 0
        while True:
            seen.append((name, update))
            yield {"w": 1.0 + (update >= change_at)}
            update += 1

    assert bisect(endless("a", 2), endless("b", 9)).update == 2
    assert seen == [(name, update) for update in range(3) for name in "ab"]


def test_a_module_in_training_is_read_before_it_moves_on():
    def train(rate):
        module = torch.nn.Linear(1, 1)
        for step in range(3):
            module.weight.data.fill_(1.0 + rate * step)
            module.bias.data.fill_(1.0)
            yield module

    assert bisect(train(0.5), train(0.5)) is None
    assert bisect(train(0.5), train(0.25)).update == 1


@pytest.mark.parametrize(
    ("a", "b", "update", "text"),
    [
        ([ONE], [ONE, ONE], 1, "update 1: a has ended, the other run goes on."),
        ([ONE, ONE], [ONE], 1, "update 1: b has ended, the other run goes on."),
        ([], [ONE], 0, "update 0: a has ended, the other run goes on."),
        ([ONE], [{"y": 1.0}], 0, "update 0, tensor 'x': missing in b."),
        ([ONE], [ONE | {"y": 1.0}], 0, "update 0, tensor 'y': missing in a."),
        ([ONE], [{"x": np.ones(3)}], 0, "update 0, tensor 'x': shape (2,) is not (3,)."),
        ([ONE], [{"x": np.ones(2, int)}], 0, "update 0, tensor 'x': kind float is not int."),
        (
            [{"x": np.array([1.0, np.nan])}],
            [{"x": np.array([1.0, np.nan])}],
            0,
            "update 0, tensor 'x', index (1,): a = nan, b = nan; not finite in a and b.",
        ),
    ],
)
@pytest.mark.parametrize("steps", [(), "*"])
def test_runs_that_cannot_be_compared(a, b, update, text, steps):
    split = bisect(a, b, steps=steps, tolerance=0.5)
    assert (split.update, split.verdict) == (update, "incomparable")
    assert str(split).replace(", step 1", "") == text


def test_runs_that_show_nothing_are_errors():
    same = iter([ONE])
    for a, b, message in [
        ([], [], "no update was compared"),
        ([{"x": 0.0}], [{"x": 0.0}], "nothing but zeros was compared"),
        ([ONE, {}], [ONE, {}], "update 1 has no tensors"),
        (same, same, "one and the same iterator"),
    ]:
        with pytest.raises(ValueError, match=message):
            bisect(a, b)
    with pytest.raises(ValueError, match="tolerance: must be in"):
        bisect([ONE], [ONE], tolerance=-1.0)
    with pytest.raises(ValueError, match="steps: 'z' matches no leaf"):
        bisect([ONE], [ONE], steps="z")


def test_bisect_maps_names_and_axes():
    w = np.arange(6.0).reshape(2, 3)
    a, b = [[("g", {"kernel": w})]], [[("g", {"weight": w.T})]]
    layout = {"names": {"g.kernel": "g.weight"}, "transpose": "*kernel"}
    assert bisect(a, b, **layout) is None
    assert bisect(a, [[("g", {"weight": w.T + 1})]], **layout).leaf.at == (0, 0)


def test_bisect_compares_only_what_it_is_told_to():
    """What is left out may differ, or be there on one side alone; `names` are a's."""
    w = np.arange(3.0)
    a = [{"loss": w, "gradient.w": w, "params.w": w, "seconds": w}]
    b = [{"loss": w + 1, "gradient.w": w, "weights": w, "epoch": w}]
    options = {"names": {"params.w": "weights"}, "only": ["gradient*", "params*"]}
    assert bisect(a, b, **options) is None
    assert bisect(a, b, names=options["names"]).verdict == "incomparable"
    assert bisect(a, b, names=options["names"], only="*").leaf.name == "seconds"
    split = bisect(a, [b[0] | {"weights": w + 1}], **options)
    assert (split.leaf.name, split.verdict) == ("params.w", "different")
    (other,) = b
    del other["weights"]
    split = bisect(a, [other], **options)
    assert (split.leaf.name, split.verdict) == ("params.w", "incomparable")
    assert split.leaf.reason == "missing in b as 'weights'"
    with pytest.raises(ValueError, match="only: 'grad' matches no leaf; there are"):
        bisect(a, b, only=["gradient*", "grad"])


MIDPOINT = 1 + 2.0**-24  # between the float32 neighbours 1 and 1 + 2^-23


def on_grid(*values, form="w:before_rounding"):
    before = np.array([0.5, *values])
    return [{form: before, form.replace(":before_rounding", ""): before.astype(np.float32)}]


@pytest.mark.parametrize("form", ["w:before_rounding", "params:before_rounding.w"])
def test_a_straddle_is_no_fault(form):
    below, above = MIDPOINT - 2e-16, MIDPOINT + 2e-16
    split = bisect(on_grid(below, form=form), on_grid(above, form=form))
    assert split.verdict == "straddle"
    assert (split.leaf.at, split.before) == ((1,), (below, above))
    assert (split.leaf.a, split.leaf.b) == (1.0, 1 + 2.0**-23)
    assert "A straddle: before rounding a = 1.00000005960464" in str(split)
    assert str(split).endswith(", on either side of the middle between a and b.")
    companion_last = [dict(reversed(update.items())) for update in on_grid(above, form=form)]
    assert bisect(on_grid(below, form=form), companion_last).verdict == "straddle"
    assert bisect(on_grid(below, form=form), on_grid(below - 1e-15, form=form)) is None


@pytest.mark.parametrize("bits", [7, 15, 23, 40])
def test_a_straddle_on_a_grid_of_any_width(bits):
    """Between 1 and its neighbour 1 + 2^-bits; two steps away it is none."""

    def run(value):
        before = np.array([0.5 + 2.0**-bits, value])
        return [{"w:before_rounding": before, "w": np.rint(before * 2.0**bits) / 2.0**bits}]

    middle = 1 + 2.0 ** -(bits + 1)
    assert bisect(run(middle - 3e-16), run(middle + 3e-16)).verdict == "straddle"
    (off,) = run(middle + 3e-16)
    off["w"] = off["w"] + [0.0, 2.0**-bits]
    assert fault(run(middle - 3e-16), [off])
    assert fault(run(middle - 3e-16), run(middle + 1e-11))


def fault(a, b):
    split = bisect(a, b)
    assert "A fault, not a straddle: before rounding a = " in str(split)
    return split.verdict == "fault"


def test_a_small_entry_beside_a_large_one_is_judged_by_its_own_size():
    """A rate that is wrong by 1e-6 moves an entry of 1e-3 by 2e-12, beside one of 8 nothing."""

    def run(rate):
        rng, w = np.random.default_rng(0), np.array([8.0, 1e-3], np.float32).astype(float)
        for _ in range(2_000):
            before = w - np.array([0.01, rate]) * rng.normal(size=2) * [1, 1e-4]
            w = before.astype(np.float32).astype(float)
            yield {"w:before_rounding": before, "w": w}

    assert bisect(run(0.01), run(0.01)) is None
    assert bisect(run(0.01 * (1 + 1e-6)), run(0.01)).verdict == "fault"


def test_what_is_left_of_larger_numbers_may_differ_by_more():
    """1e-6 · MIDPOINT after 0.2: the 2e-16 that its terms have been rounded by are 2e-10 of it."""
    small = np.float32(1e-6)
    middle = (float(small) + float(np.nextafter(small, np.float32(1)))) / 2
    a, b = ([*on_grid(0.2), *on_grid(middle + sign * 2e-16)] for sign in (-1, 1))
    assert bisect(a, b).verdict == "straddle"
    a, b = ([*on_grid(1e-6), *on_grid(middle + sign * 2e-16)] for sign in (-1, 1))
    assert bisect(a, b).verdict == "fault"


def test_of_tensors_in_time_the_first_step_that_differs_is_judged():
    """A logistic map: a straddle at step 5 is another trajectory at step 29."""

    def run(error):
        x, before, rounded = 0.3, [], []
        for step in range(30):
            y = 3.9 * x * (1 - x)
            if step == 5:
                y = (float(np.float32(y)) + float(np.nextafter(np.float32(y), np.float32(1)))) / 2
                y += error
            x = float(np.float32(y))
            before.append(y)
            rounded.append(x)
        return [{"x:before_rounding": np.array(before), "x": np.array(rounded)}]

    split = bisect(run(-2e-16), run(2e-16), steps="x")
    assert (split.step, split.verdict) == (5, "straddle")
    assert bisect(run(-2e-16), run(2e-16)).verdict == "fault"  # it is not said that it is time
    assert bisect(run(-2e-16), run(1e-9), steps="x").verdict == "fault"


@pytest.mark.parametrize(
    "layout",
    [
        {"transpose": "w"},
        {"transpose": {"w": (1, 0)}},
        {"transpose": "w*"},
        {"transpose": "w", "only": "w"},
        {"transpose": "w", "names": {"w": "weight"}},
        {"transpose": "w", "names": lambda name: name.replace("w", "weight", 1)},
    ],
)
def test_a_companion_goes_where_its_tensor_goes(layout):
    def run(error, name="w", turned=False):
        before = np.array([[0.5, MIDPOINT + error], [0.25, 0.75]])
        both = {f"{name}:before_rounding": before, name: before.astype(np.float32)}
        return [{key: x.T if turned else x for key, x in both.items()}]

    theirs = run(2e-16, "weight" if "names" in layout else "w")
    split = bisect(run(-2e-16, turned=True), theirs, **layout)
    assert (split.leaf.at, split.verdict) == ((0, 1), "straddle")


def test_straddles_of_complex_numbers():
    def run(imaginary):
        before = np.array([0.5 + 0.25j, 1 + 1j * imaginary])
        return [{"w:before_rounding": before, "w": before.astype(np.complex64)}]

    below, above = run(MIDPOINT - 2e-16), run(MIDPOINT + 2e-16)
    assert bisect(below, above).verdict == "straddle"
    assert bisect(below, run(MIDPOINT + 1e-9)).verdict == "fault"


def test_what_rounding_does_not_explain_is_a_fault():
    below, above = MIDPOINT - 2e-16, MIDPOINT + 2e-16
    assert fault(on_grid(below), on_grid(MIDPOINT + 1e-11))  # too far before rounding
    assert fault(on_grid(below), on_grid(1.1))
    (not_rounded,) = on_grid(above)
    not_rounded["w"] = np.array([0.5, 1 + 2.0**-22])  # not what `above` rounds to
    assert fault(on_grid(below), [not_rounded])
    assert fault([not_rounded], on_grid(below))
    # 0.5 beside 2e-14, which differs by less than 1e-12 of the norm and by more than a neighbour
    assert fault(on_grid(2e-14), on_grid(3e-14))
    # the first difference straddles, the second does not
    assert fault(on_grid(below, 2e-14), on_grid(above, 3e-14))


def test_companions_do_not_split_runs_but_must_be_sound():
    (a,), (b,) = on_grid(1.0), on_grid(1.0)
    b["w:before_rounding"] = b["w:before_rounding"] + 1e-9
    assert bisect([a], [b]) is None
    b["w:before_rounding"] = b["w:before_rounding"] * np.nan
    assert bisect([a], [b]).verdict == "incomparable"
    lonely = [{"v": np.ones(2), "w:before_rounding": np.ones(2)}]
    with pytest.raises(ValueError, match="'w:before_rounding' has no rounded tensor 'w'"):
        bisect(lonely, lonely)
    other = [{"w": np.ones(3), "w:before_rounding": np.ones(2)}]
    with pytest.raises(ValueError, match="no rounded tensor 'w' of its shape"):
        bisect(other, other)


# The module and the page.


def test_it_imports_no_framework():
    code = (
        "import sys, jaxpg.parity; heavy = {'jax', 'torch', 'flax', 'scipy', 'ml_dtypes'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def a_readers_jax():
    """The page runs without our strictness, and what it sets is undone."""
    before = jax.config.jax_enable_x64
    with jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_enable_x64", before)


NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]\d+)?(?![\w.]\d)")


def same_output(shown, real):
    """Equal texts, but for the last digits of numbers, which another machine may round."""
    words, numbers = zip(
        *((NUMBER.split(t), NUMBER.findall(t)) for t in (shown, real)), strict=True
    )
    if [[w.split() for w in side] for side in words[:1]] != [
        [w.split() for w in side] for side in words[1:]
    ]:
        return False
    return np.allclose(*(np.array(side, float) for side in numbers), rtol=1e-6, atol=1e-15)


def test_the_page_is_true(a_readers_jax):
    """Every block of docs/parity.md runs, and prints what the page says it prints."""
    assert pages.run(PAGE, same_output) == 9


def test_the_check_of_the_page_can_fail():
    assert same_output("update 5: 1.2e-06 (3, 4)\n", "update 5: 1.2e-06  (3, 4)\n")
    assert same_output("0.38077371490765", "0.38077371490764")
    for real in ("update 6: 1.2e-06", "update 5: 1.3e-06", "step 5: 1.2e-06", "update 5:", ""):
        assert not same_output("update 5: 1.2e-06", real)
