"""Phases of a step: which operation is of which, and what a trace says of their times."""

import gzip
import json
import re
import types

import jax
import jax.numpy as jnp
import pytest

from jaxdrl.training import phases


def _step(x):
    with jax.named_scope("rollout"):
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, None, length=30)

    def score(x):
        with jax.named_scope("reward"), jax.named_scope("encode"):
            return jnp.sum(jnp.sin(x @ x))

    return jax.grad(score)(x), jnp.sort(x)


def _text(size):
    return jax.jit(_step).lower(jnp.ones((size, size))).compile().as_text()


def test_operations_belong_to_the_innermost_scope_whatever_differentiates_it():
    text = _text(4)
    found = phases.of_operations(text)
    assert {"rollout", "encode", phases.OTHER} == set(found.values())  # reward is around encode
    loops = set(re.findall(r"%?([\w.]+) = [^\n]* while\(", text))
    assert loops and not loops & set(found)


def test_a_trace_gives_the_times_of_one_program_only(tmp_path):
    step, other = jax.jit(_step), jax.jit(lambda x: [jnp.cos(x @ x + i) for i in range(30)])
    x = jnp.ones((200, 200)) / 200
    jax.block_until_ready((step(x), other(x)))
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(2):
            jax.block_until_ready((step(x), other(x)))
    flops = {"rollout": 30 * 2 * 200**3.0, "encode": 3 * 2 * 200**3.0}
    found = phases.measured(tmp_path, step, (x,), 2, flops, peak=1e15)
    times = {key: value for key, value in found.items() if key.startswith("phase_seconds/")}
    assert set(times) == {"phase_seconds/rollout", "phase_seconds/encode", "phase_seconds/other"}
    assert times["phase_seconds/rollout"] > times["phase_seconds/encode"] > 0  # thirty products against three
    for name, count in flops.items():
        share = count / found[f"phase_seconds/{name}"] / jax.device_count() / 1e15
        assert found[f"phase_mfu/{name}"] == pytest.approx(share)
    assert sum(times.values()) < sum(phases.measured(tmp_path, step, (x,), 1, {}, None).values())
    assert "phase_mfu/rollout" not in phases.measured(tmp_path, step, (x,), 2, flops, None)
    assert phases.operations(tmp_path, _text(4).replace("HloModule jit__step", "HloModule jit_another")) == []
    assert phases.operations(tmp_path / "none", _text(4)) == []
    written = json.loads(gzip.decompress((tmp_path / "phases.json.gz").read_bytes()))["traceEvents"]
    assert [event["name"] for event in written if event["ph"] == "X"] == ["rollout", "encode"] * 2


def test_a_span_reaches_to_the_next_phase():
    done = [
        ("rollout", 0, 2),
        ("other", 2, 1),
        ("rollout", 3, 1),
        ("update", 5, 4),
        ("update", 6, 1),
        ("other", 9, 5),
        ("rollout", 20, 1),
    ]
    found = phases.spans([phases.Operation(*one) for one in done])
    assert [tuple(one) for one in found] == [("rollout", 0, 4), ("update", 5, 4), ("rollout", 20, 1)]


def _event(name, start, length, **stats):
    return types.SimpleNamespace(name=name, start_ns=start, duration_ns=length, stats=stats)


def test_of_a_tpu_the_line_of_operations_counts_while_the_program_runs():
    lines = {
        "XLA Modules": [_event("jit_step(123)", 0, 100), _event("jit_look(9)", 200, 50)],
        "XLA Ops": [_event("%fusion.1 = f32[2]{0} fusion(...)", 10, 30), _event("%fusion.1 = f32[9]{0} fusion(...)", 210, 5)],
        "Async XLA Ops": [_event("%fusion.1 = f32[2]{0} fusion(...)", 10, 30)],
    }
    plane = types.SimpleNamespace(
        name="/device:TPU:0", lines=[types.SimpleNamespace(name=name, events=events) for name, events in lines.items()]
    )
    others = [types.SimpleNamespace(name=name, lines=[]) for name in ("/device:TPU:1", "/host:CPU")]
    found = list(phases._events(types.SimpleNamespace(planes=[*others, plane]), "jit_step"))
    assert found == [("fusion.1", pytest.approx(10e-9), pytest.approx(30e-9))]


def test_of_a_gpu_all_streams_count():
    named = {"hlo_module": "jit_step", "hlo_op": "dot.3"}
    streams = [[_event("gemm", 0, 7, **named)], [_event("copy", 3, 2, **named | {"hlo_op": "copy.1"}), _event("memset", 0, 1)]]
    plane = types.SimpleNamespace(
        name="/device:GPU:0",
        lines=[types.SimpleNamespace(name=f"Stream #{i}", events=events) for i, events in enumerate(streams)],
    )
    found = {name: seconds for name, _, seconds in phases._events(types.SimpleNamespace(planes=[plane]), "jit_step")}
    assert found == {"dot.3": pytest.approx(7e-9), "copy.1": pytest.approx(2e-9)}


def test_a_step_of_several_programs_has_no_phases(tmp_path):
    assert phases.measured(tmp_path, lambda: None, (), 1, {}, None) == {}


def test_one_line_for_people():
    found = {"phase_seconds/rollout": 1.0, "phase_seconds/update": 3.0, "phase_mfu/update": 0.416}
    assert phases.line(found) == "rollout 1 s (25 %), update 3 s (75 %, MFU 42 %)"
