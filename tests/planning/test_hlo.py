"""Operations, bytes and collectives of programs that can be counted by hand."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.planning import hlo

HERE = Path(__file__).parent
V5E = (HERE / "v5e_program.txt").read_text()
CHIP = {"flops": 197e12, "bandwidth": 819e9, "devices": 16}


def test_a_recorded_tpu_program_is_counted_with_its_loops():
    """libtpu 0.0.52, v5e:4x4 as data 2 x fsdp 8; toy.py with 1024 channels, 2048 rows, bfloat16 products, 5 steps of 6 layers."""
    found = hlo.cost(V5E, **CHIP)
    # A layer: forward, forward again, and two products backward, of 2048 / 16 rows.
    assert found.flops == 5 * 6 * 4 * 2 * 128 * 1024 * 1024
    whole = 1024 * 1024 * 2
    # Weights are gathered over 8 twice a layer, gradients are scattered over 8, then summed over 2.
    assert found.link_bytes == {
        "all-gather": 5 * 12 * whole * 7 / 8,
        "reduce-scatter": 5 * 6 * whole * 7 / 8,
        "all-reduce": 5 * 6 * 2 * whole / 8 * 1 / 2,
    }
    assert found.link_counts == {"all-gather": 60, "reduce-scatter": 30, "all-reduce": 30}
    assert found.unknown_loops == 0
    assert found.chip_seconds >= max(found.flops / CHIP["flops"], found.memory / CHIP["bandwidth"])


def test_a_program_for_eight_simulated_devices_is_counted():
    done = subprocess.run(
        [sys.executable, "-m", "tests.planning.toy"], capture_output=True, text=True, cwd=HERE.parent.parent, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["flops"] == 5 * 6 * 4 * 2 * 8 * 256 * 256 and found["unknown_loops"] == 0
    # Two gathers of a layer's weight over 4; XLA's CPU compiler sums the gradient before it cuts it.
    assert found["link_bytes"]["all-gather"] == 5 * 12 * 256 * 256 * 4 * 3 / 4
    assert found["link_bytes"]["all-reduce"] >= 5 * 6 * 2 * (256 * 256 * 4 / 4) / 2


@pytest.mark.parametrize("strides, padding, groups", [((1, 1), "SAME", 1), ((2, 2), "SAME", 1), ((1, 1), "VALID", 2)])
def test_convolutions_count_as_xla_counts_them(strides, padding, groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    shapes = jax.ShapeDtypeStruct((2, 9, 8, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 4 // groups, 6), jnp.float32)
    compiled = jax.jit(convolve).lower(*shapes).compile()
    found = hlo.cost(compiled.as_text(), **CHIP)
    assert found.flops == compiled.cost_analysis()["flops"] > 0


def test_batched_products_that_tpus_write_as_convolutions():
    text = """
ENTRY %main (a: bf16[12,64,32], b: bf16[12,16,32]) -> bf16[12,64,16] {
  %a = bf16[12,64,32]{2,1,0} parameter(0)
  %b = bf16[12,16,32]{2,1,0} parameter(1)
  ROOT %c = bf16[12,64,16]{2,1,0} convolution(%a, %b), window={size=12 stride=11 lhs_dilate=12}, dim_labels=0bf_0oi->0bf
}
"""
    assert hlo.cost(text, **CHIP).flops == 2 * 12 * 64 * 16 * 32
    general = text.replace("size=12 stride=11 lhs_dilate=12", "size=12 stride=11 pad=0_0 lhs_dilate=12 rhs_dilate=1")
    assert hlo.cost(general, **CHIP).flops == 2 * 12 * 64 * 16 * 32
    assert (
        hlo._valid(12, 12, 12, 11, 0, 12, 1)
        == 12
        == sum(place % 12 == 0 and place <= 132 for place in (i * 11 + k for i in range(12) for k in range(12)))
    )


def test_axes_of_a_window_go_by_number():
    """A product of 8192 tokens with two shares of columns, as TPUs write it where the share is being sent meanwhile."""
    text = """
ENTRY %main (a: bf16[32,256,1152,1], b: bf16[1152,2,288,1]) -> bf16[32,256,2,288] {
  %a = bf16[32,256,1152,1]{2,1,0,3} parameter(0)
  %b = bf16[1152,2,288,1]{0,2,3,1} parameter(1)
  ROOT %c = bf16[32,256,2,288]{1,3,0,2} convolution(%a, %b), window={size=2x1 pad=1_1x0_0 rhs_reversal=1x0}, dim_labels=1bf0_i0o1->1b0f
}
"""
    assert hlo.cost(text, **CHIP).flops == 2 * 32 * 256 * (2 * 288) * 1152


CHAIN = """
%start (p: bf16[32,64]) -> (bf16[32,64], bf16[32,256], s32[2]) {
  %p = bf16[32,64]{1,0} parameter(0)
  %gather.1 = bf16[32,256]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}, frontend_attributes={chain_id="1"}
  ROOT %begun = (bf16[32,64]{1,0}, bf16[32,256]{1,0}, s32[2]{0:S(4)}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (q: bf16[32,64], r: bf16[32,256], s: s32[2], x: f32[100,1000]) -> (f32[100,1000], bf16[32,64], bf16[32,256], s32[2]) {
  %q = bf16[32,64]{1,0} parameter(0)
  %r = bf16[32,256]{1,0} parameter(1)
  %s = s32[2]{0:S(4)} parameter(2)
  %x = f32[100,1000]{1,0} parameter(3)
  %gather.2 = bf16[32,256]{1,0} all-gather(%q), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}, frontend_attributes={chain_id="1"}
  %step = bf16[32,256]{1,0} custom-call(%gather.2, %r, %s), custom_call_target="AsyncCollectiveUpdate"
  %negated = f32[100,1000]{1,0} negate(%x)
  ROOT %t = (f32[100,1000]{1,0}, bf16[32,64]{1,0}, bf16[32,256]{1,0}, s32[2]{0:S(4)}) tuple(%negated, %q, %r, %s)
}

%done (u: bf16[32,64], v: bf16[32,256], w: s32[2]) -> bf16[32,256] {
  %u = bf16[32,64]{1,0} parameter(0)
  %v = bf16[32,256]{1,0} parameter(1)
  %w = s32[2]{0:S(4)} parameter(2)
  %gather.3 = bf16[32,256]{1,0} all-gather(%u), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}, frontend_attributes={chain_id="1"}
  ROOT %ended = bf16[32,256]{1,0} custom-call(%u, %v, %gather.3, %w), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[32,64], b: f32[100,1000]) -> bf16[32,256] {
  %a = bf16[32,64]{1,0} parameter(0)
  %b = f32[100,1000]{1,0} parameter(1)
  %one = (bf16[32,64]{1,0}, bf16[32,256]{1,0}, s32[2]{0:S(4)}) fusion(%a), kind=kCustom, calls=%start
  %a1 = bf16[32,64]{1,0} get-tuple-element(%one), index=0
  %g1 = bf16[32,256]{1,0} get-tuple-element(%one), index=1
  %s1 = s32[2]{0:S(4)} get-tuple-element(%one), index=2
  %two = (f32[100,1000]{1,0}, bf16[32,64]{1,0}, bf16[32,256]{1,0}, s32[2]{0:S(4)}) fusion(%a1, %g1, %s1, %b), kind=kOutput, calls=%meanwhile
  %a2 = bf16[32,64]{1,0} get-tuple-element(%two), index=1
  %g2 = bf16[32,256]{1,0} get-tuple-element(%two), index=2
  %s2 = s32[2]{0:S(4)} get-tuple-element(%two), index=3
  ROOT %three = bf16[32,256]{1,0} fusion(%a2, %g2, %s2), kind=kCustom, calls=%done
}
"""


def test_a_collective_that_is_spread_over_fusions_counts_once():
    found = hlo.cost(CHAIN, **CHIP)
    assert found.link_bytes == {"all-gather": 32 * 256 * 2 * 3 / 4} and found.link_counts == {"all-gather": 1}
    assert found.memory == 2 * 100 * 1000 * 4  # of what is computed meanwhile; the gather's parts are handed on


LOOP = """
%body (p: (s32[], f32[100,1000])) -> (s32[], f32[100,1000]) {
  %p = (s32[], f32[100,1000]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[100,1000]{1,0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %row = f32[1,1000]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,1000}
  %fast = f32[1,1000]{1,0:T(8,128)S(1)} negate(%row)
  %put = f32[100,1000]{1,0} dynamic-update-slice(%x, %fast, %i, %i)
  ROOT %t = (s32[], f32[100,1000]{1,0}) tuple(%next, %put)
}

%condition (q: (s32[], f32[100,1000])) -> pred[] {
  %q = (s32[], f32[100,1000]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %limit = s32[] constant(11)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x: f32[100,1000]) -> f32[100,1000] {
  %x.1 = f32[100,1000]{1,0} parameter(0)
  %one = s32[] constant(1)
  %start = (s32[], f32[100,1000]{1,0}) tuple(%one, %x.1)
  %loop = (s32[], f32[100,1000]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[100,1000]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_loops_and_the_bytes_of_slices():
    """From 1 by 2 to below 11: 5 times. A row is read and written, negated into the chip's own memory, and put: never the whole."""
    computations, entry = hlo.parse(LOOP)
    loop = computations[entry].instructions["loop"]
    assert hlo.trip_count(computations, computations[entry], loop) == 5
    scalars = 3 * 4 + (2 * 4 + 1)  # the addition, of which both sides are read
    found = hlo.cost(LOOP, **CHIP)
    assert found.memory == pytest.approx(5 * (2 * 4000 + 4000 + 0 + 12), abs=5 * scalars)
    assert hlo.cost(LOOP.replace("direction=LT", "direction=NE"), **CHIP).unknown_loops == 1
    # Loops that XLA writes itself around a product and its collective count with unsigned numbers.
    assert hlo.cost(LOOP.replace("s32[]", "u32[]"), **CHIP).memory == pytest.approx(found.memory)
    assert found.chip_seconds == pytest.approx(found.memory / CHIP["bandwidth"])


def test_sizes_and_groups():
    assert hlo.size("(bf16[6,128]{1,0:T(8,128)(2,1)}, f32[4]{0}, pred[])") == 6 * 128 * 2 + 16 + 1
    assert hlo.size("f32[4]{0:S(1)}") == 0 and hlo.size("f32[4]{0:S(1)}", everywhere=True) == 16
    assert hlo.dimensions("bf16[6,128]{1,0:T(8,128)S(1)}") == (6, 128)
    assert hlo.group_size("replica_groups={{0,1,2},{3,4,5}}", 6) == 3
    assert hlo.group_size("replica_groups=[2,8]<=[16]", 16) == 8
    assert hlo.group_size("replica_groups=mesh['a'=2,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b','c'}", 16) == 8
    assert hlo.group_size("channel_id=1", 16) == 16
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("")


def test_a_real_scan_is_multiplied_out():
    compiled = (
        jax.jit(lambda x: jax.lax.scan(lambda h, _: (h @ x, None), x, None, length=7)[0])
        .lower(np.ones((16, 16), np.float32))
        .compile()
    )
    assert hlo.cost(compiled.as_text(), **CHIP).flops == 7 * 2 * 16**3
