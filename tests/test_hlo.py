"""Counting what a compiled program does."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import h100, hlo


def counted(function, *arguments):
    return hlo.count(jax.jit(function).lower(*arguments).compile().as_text())


def test_a_product_has_two_operations_for_each_pair():
    found = counted(jnp.matmul, jnp.ones((5, 7)), jnp.ones((7, 3)))
    assert found.multiply_adds == 2 * 5 * 7 * 3
    assert found.arithmetic == found.integer == 0
    assert found.bytes >= 4 * (5 * 7 + 7 * 3 + 5 * 3)


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x):
        return jax.lax.fori_loop(0, 12, lambda i, x: jnp.tanh(x @ x), x)

    found = counted(loop, jnp.ones((4, 4)))
    assert found.multiply_adds == 12 * 2 * 4 * 4 * 4
    assert found.slow == 12 * 16
    assert found.kernels >= 12


def test_a_slice_counts_as_what_is_sliced():
    """100 rows of a large array, each read and written once: not the array 100 times."""

    def rows(x):
        def step(i, x):
            return jax.lax.dynamic_update_index_in_dim(x, 2.0 * x[i], i, 0)

        return jax.lax.fori_loop(0, 100, step, x)

    found = counted(rows, jnp.ones((100, 1000)))
    assert found.arithmetic == 100 * 1000
    assert 2 * 400_000 <= found.bytes < 5 * 400_000


HAND = """\
HloModule by_hand

%twice (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %sum = f32[8]{0} add(%p, %p)
}

ENTRY %main (x: f32[8], y: u32[2,3]) -> (f32[8], u32[2,3]) {
  %x = f32[8]{0} parameter(0)
  %y = u32[2,3]{1,0} parameter(1)
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%twice
  %z = u32[2,3]{1,0} xor(%y, %y)
  ROOT %both = (f32[8]{0}, /*index=1*/u32[2,3]{1,0}) tuple(%f, %z)
}
"""


def test_by_hand():
    """A fusion of 8 sums, 32 bytes in and out; 6 xors, which read two operands of 24 bytes."""
    assert hlo.count(HAND) == hlo.Counts(kernels=2, bytes=64 + 72, arithmetic=8, integer=6)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="no closing bracket"):
        hlo.count(HAND.replace("add(%p, %p)", "add(%p, %p"))


CALLS = """\
HloModule by_hand

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %y = f32[8]{0} custom-call(%x), custom_call_target="t", backend_config={name = "map_rows_8x4"}
  ROOT %both = (s32[], f32[8]{0}) tuple(%i, %y)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %y = f32[8]{0} custom-call(%x), custom_call_target="t", backend_config={name = "scan_8x4"}
  ROOT %w = (s32[], f32[8]{0}) while(%s), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"4"}}
}
"""


def test_kernels_with_a_name_are_counted_in_loops_too():
    assert hlo.custom_calls(CALLS) == {"scan_8x4": 1, "map_rows_8x4": 4}


PTX = """\
.visible .entry scan_8x4__1(
  .param .u64 p
)
{
  mov.u32 %r1, 0;
$L__BB0_1:
  // a comment
  add.s32 %r1, %r1, 1;
  @%p2 bra $L__BB0_2;
  fma.rn.f32 %f1, %f2, %f3, %f1;
$L__BB0_2:
  @%p1 bra $L__BB0_1;
  ret;
}
"""


def test_the_instructions_of_a_kernels_longest_loop():
    shorter = PTX.replace("__1(", "(").replace("  fma.rn.f32 %f1, %f2, %f3, %f1;\n", "")
    assert h100.turns([PTX, shorter, ".visible .entry none()\n{\n  ret;\n}\n"]) == {"scan_8x4": 4}
