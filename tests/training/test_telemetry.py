"""What the machine did: rates in closed form, chips by their names, traces that can be opened, services that are told."""

import gzip
import json
import sys
import types

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from jaxdrl.errors import UserError
from jaxdrl.training import telemetry
from jaxdrl.training.metrics import MetricWriter, read_metrics


def test_rates_and_shares(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 4.0, 8.0])
    monkeypatch.setattr(telemetry, "peak_flops", lambda kind: 100.0)
    meter, chips = telemetry.Meter(60, flops=50.0, clock=lambda: next(times)), jax.device_count()
    assert meter.input(lambda: "batch") == "batch"  # from 1 to 3
    found = meter.step(2)  # from 0 to 4
    assert found["step_seconds"] == 2 and found["images_per_second"] == 30 and found["input_wait"] == 0.5
    assert found["images_per_second_per_chip"] == 30 / chips and found["mfu"] == pytest.approx(2 * 50 / 4 / chips / 100)
    again = meter.step()  # from 4 to 8
    assert again["input_wait"] == 0 and again["chip_hours"] == pytest.approx(8 * chips / 3600)
    assert "mfu" not in telemetry.Meter(1).step()


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("cpu", None),
    ],
)
def test_chips_by_what_jax_calls_them(kind, peak):
    assert telemetry.peak_flops(kind) == peak


def test_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    full = {"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**30}
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(full), Device(None), Device({"bytes_in_use": 5})])
    assert telemetry.memory() == {"memory_gib": 1.0, "peak_memory_gib": 3.0}
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None)])
    assert telemetry.memory() == {}


def test_a_window_of_steps_is_traced(tmp_path, capsys):
    window = telemetry.ProfileWindow(tmp_path, ml_collections.ConfigDict({"stage": "b", "first": 1, "count": 2}))
    for stage, step in (("a", 5), ("b", 0)):
        window.at(stage, step)
    assert not (tmp_path / "profile").exists()
    for step in (1, 2, 3, 4):
        window.at("b", step)
        with jax.named_scope("rollout"):
            jax.block_until_ready(jnp.ones(3) * step)
    window.close()
    assert capsys.readouterr().out.count("a trace is in") == 1
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    with pytest.raises(UserError, match=r"profile: first \(1\) must be at least 0 and count \(0\)"):
        telemetry.ProfileWindow(tmp_path, ml_collections.ConfigDict({"stage": "b", "first": 1, "count": 0}))


def test_what_no_run_repeats_has_a_file_of_its_own(tmp_path):
    writer = MetricWriter(tmp_path)
    view = writer.for_stage("posttrain")
    view.write_scalars(1, {"loss": 2.0})
    view.write_machine(1, {"step_seconds": 0.5})
    writer.close()
    assert read_metrics(tmp_path) == [{"stage": "posttrain", "step": 1, "loss": 2.0}]
    with (tmp_path / "machine.jsonl").open("a") as file:
        file.write('{"torn')
    writer = MetricWriter(tmp_path)
    writer.for_stage("posttrain").write_machine(2, {"step_seconds": 0.25})
    writer.close()
    assert [line["step_seconds"] for line in read_metrics(tmp_path, "machine.jsonl")] == [0.5, 0.25]


def test_weights_and_biases_is_told_by_stage(tmp_path, monkeypatch):
    told = []

    class Fake:
        define_metric = staticmethod(lambda *names, **options: None)
        log = staticmethod(told.append)
        finish = staticmethod(lambda: told.append("finished"))

    asked = {}
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: asked.update(given) or Fake))
    writer = MetricWriter(tmp_path / ".", wandb="drl", config={"seed": 3})
    writer.for_stage("posttrain").write_scalars(4, {"loss": 2.0})
    writer.for_stage("posttrain").write_machine(4, {"mfu": 0.5})
    writer.close()
    assert (asked["project"], asked["config"], asked["resume"], asked["name"]) == ("drl", {"seed": 3}, "allow", tmp_path.name)
    assert told == [
        {"posttrain/loss": 2.0, "posttrain/step": 4},
        {"posttrain.machine/mfu": 0.5, "posttrain.machine/step": 4},
        "finished",
    ]
    first = asked["id"]
    MetricWriter(tmp_path, wandb="drl").close()
    assert asked["id"] == first  # the same workdir goes on with the same run
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"jaxdrl\[wandb\]"):
        MetricWriter(tmp_path, wandb="drl")
