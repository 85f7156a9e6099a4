"""`benchmarks/drl_step.py` and `benchmarks/torch_adjoint_matching.py`: what they time is what they say."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdrl.errors import UserError
from jaxdrl.training import compute
from jaxdrl.training.methods import adjoint

ROOT = Path(__file__).parent.parent
TINY = ("backbone.fields={'width': 16, 'depth': 2, 'num_heads': 2}", "posttrain.num_timesteps=5", "posttrain.micro_batches=2")


@pytest.fixture(scope="module")
def benchmarks():
    sys.path.insert(0, str(ROOT))
    try:
        yield lambda name: importlib.import_module(f"benchmarks.{name}")
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def drl_step(benchmarks):
    return benchmarks("drl_step")


def _tiny(config):
    config.data.image_shape = (8, 8, 3)
    config.backbone.update(width=16, depth=1, num_heads=2, frequency_dim=16)
    config.encoders.reward.update(width=16, depth=1, feature_dim=16)
    config.posttrain.update(num_timesteps=4, buffer_size=4, batch_size=2, epochs=2)
    return config


def _compared(benchmarks, shrink):
    pytest.importorskip("torch")
    rival = benchmarks("torch_adjoint_matching")
    config = shrink(rival.small())
    return rival.compare(config, benchmarks("drl_step").frozen_networks(config))


@pytest.mark.slow
@pytest.mark.parametrize("shrink", [_tiny, lambda config: config])
def test_pytorch_takes_the_same_step(benchmarks, shrink):
    found = _compared(benchmarks, shrink)
    assert max(found[name] for name in ("trajectories", "targets", "loss")) < 1e-4
    # Adam divides by a gradient's size, so that rounding of the smallest ones shows.
    assert found["change of the weights"] < 1e-2


@pytest.mark.slow
def test_phases_have_the_operations_of_the_stage(drl_step):
    recipe = str(ROOT / "configs" / "drl_imagenet_sit_xl.py")
    config = drl_step.configured(recipe, "small", "", TINY)
    phases = drl_step.refresh_phases(config, adjoint.settings_from(config), drl_step.frozen_networks(config), 3)
    counted = config.posttrain.refreshes * sum(phase.count * phase.flops for phase in phases)
    assert counted == pytest.approx(compute.posttrain_flops(drl_step._once(config)), rel=1e-6)
    assert [phase.name for phase in phases] == [
        "rollout",
        "reward gradient",
        "adjoint",
        "gradient",
        "norms for the mask",
        "optimizer",
    ]
    for phase in phases:
        found = jax.tree.leaves(phase.call())
        assert all(np.isfinite(leaf).all() for leaf in found)


def test_a_table_has_images_a_second_and_mfu(drl_step):
    phases = [drl_step.Phase(name=name, call=int, count=count, flops=1e12) for name, count in (("one", 3), ("two", 1))]
    timings = [drl_step.Timing(walls=(1.0, 2.0, 4.0), cpus=(1.0, 1.0, 1.0)) for _ in phases]
    lines = drl_step.table(phases, timings, 16, 1e12, 1e13)
    assert lines[2] == "| one | 2 (1 to 4) | 1 | 75 % | 2.67 | 0.50 | 5.0 % |"
    assert lines[-1] == "| all | | | 100 % | 2 | 0.50 | 5.0 % |"


def test_recipes_are_drawn_and_changed(drl_step):
    recipe = str(ROOT / "configs" / "drl_imagenet_sit_xl.py")
    config = drl_step.configured(recipe, "full", "bfloat16", ["posttrain.num_timesteps=50"])
    assert config.backbone.weights == config.tokenizer.weights == config.encoders.reward.weights == "random"
    assert config.posttrain.num_timesteps == 50 and config.encoders.reward.dtype == config.tokenizer.dtype == "bfloat16"
    for change in ("posttrain.steps=1", "posttrain.num_timesteps", "posttrain.num_timesteps=many"):
        with pytest.raises(UserError, match="--set"):
            drl_step.configured(recipe, "small", "", [change])
    with pytest.raises(UserError, match="not a file"):
        drl_step.configured("configs/none.py", "small", "", [])
    with pytest.raises(UserError, match="not Adjoint Matching"):
        drl_step.configured(str(ROOT / "configs" / "nft_digits.py"), "small", "", [])
