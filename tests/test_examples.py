"""The worked examples of the documentation, `docs/examples/`: they run, and mistakes in such files are told in one line."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxdrl import cli, recipes, rewards
from jaxdrl import config as jaxdrl_config
from jaxdrl.errors import UserError
from jaxdrl.training import compute, loading, models
from jaxdrl.training.metrics import read_metrics
from jaxdrl.training.workdir import stage_result
from jaxdrl.weights import files

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def config():
    return recipes.tiny(recipes.small(jaxdrl_config.default()))


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_every_example_runs_up_to_post_training(name, tmp_path):
    arguments = [f"--config={EXAMPLES / name}.py:tiny", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["posttrain", *arguments]) == 0
    last = [line for line in read_metrics(tmp_path / "run") if line["stage"] == "posttrain"][-1]
    labels = {"own_reward": ["/upright", "/loops"]}.get(name, [""])
    assert last["step"] == 3 and all(np.isfinite(last[f"reward_mean{label}"]) for label in labels)
    assert stage_result(tmp_path / "run", "posttrain")["kept_refresh"] == 3


def test_the_rewards_of_the_example_see_what_they_say():
    ring = np.full((8, 8), -1.0)
    ring[1:7, 2:6], ring[3:5, 3:5] = 1, -1
    eight, bar = ring.copy(), np.full((8, 8), -1.0)
    eight[2:6, 3:5], eight[2, 3], eight[5, 3] = 1, -1, -1
    bar[:, 3] = 1
    images = np.stack([ring, eight, bar, np.eye(8) * 2 - 1]).astype(np.float32)[..., None]
    loops = rewards.create("function", path="own_reward:loops")
    np.testing.assert_array_equal(loops(images, np.array([0, 8, 1, 7])), [1, 1, 1, 1])
    np.testing.assert_array_equal(loops(images, np.array([8, 0, 6, 9])), [0, 0, 0, 0])
    upright = rewards.create("traced_function", path="own_reward:upright")
    found = upright(jnp.asarray(images), jnp.zeros(4, jnp.int32))
    np.testing.assert_allclose(found, [0, 0, 0, -1], atol=1e-3)
    slope = jax.grad(lambda images: upright(images, jnp.zeros(4, jnp.int32)).sum())(jnp.asarray(images) * 0.9)
    assert np.isfinite(slope).all() and np.abs(slope[3]).max() > 0


def test_a_backbone_of_ones_own_is_one_of_ours(config):
    config.backbone.name = "own_backbone:make"
    network = models.backbone(config)
    params = network.init(jax.random.key(0))
    assert network is models.backbone(config) and network.null_label == 10
    assert network.num_params == sum(leaf.size for leaf in jax.tree.leaves(params))
    few = compute.generator_flops(config)
    config.backbone.fields = ml_collections.ConfigDict({"depth": 4})
    assert compute.generator_flops(config) > 1.5 * few > 0


def test_weights_of_ones_own_come_from_a_file(config, tmp_path):
    config.encoders.reward.name, config.backbone.name = "own_encoder:make", "own_backbone:make"
    network = models.encoder(config, "reward")
    params = network.init(jax.random.key(3))
    files.save_tree(tmp_path / "mine.safetensors", params)
    config.encoders.reward.weights = str(tmp_path / "mine.safetensors")
    found = loading.load_encoder(config, tmp_path, "reward")
    assert files.fingerprint(found) == files.fingerprint(params)
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    gradient = jax.grad(lambda images: models.features(config, "reward")(found, images).sum())(images)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    config.backbone.weights = config.encoders.reward.weights
    with pytest.raises(UserError, match=r"mine\.safetensors does not fit the configured network; missing: Dense_1/bias"):
        loading.load_model(config, tmp_path, "base")


def _module(monkeypatch, **functions):
    module = ModuleType("theirs")
    module.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, "theirs", module)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda *, sample_shape: None, r"backbone\.fields: theirs:make is called with sample_shape, num_classes: .*num_classes"),
        (lambda *, sample_shape, num_classes: 3, r"backbone\.name: theirs:make must return two functions, it returned int"),
        (
            lambda *, sample_shape, num_classes: (lambda key: {}, lambda params, x, t, y: x[..., 0]),
            r"backbone\.name: theirs:make: for x of \(2, 8, 8, 1\) float32 .* it is \(2, 8, 8\) float32",
        ),
        (
            lambda *, sample_shape, num_classes: (lambda key: {}, lambda params, x, t, y: x.astype(jnp.bfloat16)),
            r"it is \(2, 8, 8, 1\) bfloat16",
        ),
    ],
)
def test_what_is_no_backbone_is_told(config, monkeypatch, make, said):
    _module(monkeypatch, make=make)
    config.backbone.name = "theirs:make"
    with pytest.raises(UserError, match=said):
        models.backbone(config)


def test_what_is_no_encoder_is_told(config, monkeypatch):
    _module(monkeypatch, make=lambda *, image_shape: (lambda key: {}, lambda params, images: {"pooled": images}))
    config.encoders.judge.name = "theirs:make"
    with pytest.raises(UserError, match=r"encoders\.judge\.name: theirs:make: .*'pooled': '\(2, 8, 8, 1\) float32'"):
        models.encoder(config, "judge")


def test_what_is_for_our_networks_is_refused(config):
    config.backbone.update(name="own_backbone:make", dtype="bfloat16")
    with pytest.raises(UserError, match=r"config\.backbone\.dtype is for the networks of jaxdrl; .* in config\.backbone\.fields"):
        models.backbone(config)
    config.encoders.reward.update(name="own_encoder:make", dtype="bfloat16")
    with pytest.raises(UserError, match=r"config\.encoders\.reward\.dtype is for the networks of jaxdrl"):
        models.encoder(config, "reward")


def test_features_that_cannot_be_trained_are_told(monkeypatch, tmp_path, capsys):
    _module(monkeypatch, make=lambda *, image_shape: (lambda key: {}, lambda params, images: {"pooled": images[:, 0, :, 0]}))
    arguments = [f"--config={EXAMPLES / 'own_encoder.py'}:tiny", f"--workdir={tmp_path / 'run'}"]
    arguments += ["--config.encoders.reward.name=theirs:make", "--config.encoders.reward.fields={}"]
    assert cli.main(["discriminator", *arguments]) == 2
    assert 'config.encoders.reward: theirs:make gives no "global" features to train' in capsys.readouterr().err


def test_a_network_of_ones_own_is_not_exported(config, monkeypatch, tmp_path, capsys):
    config.backbone.name = "own_backbone:make"
    network = models.backbone(config)
    convert_command = importlib.import_module("jaxdrl.convert_command")
    monkeypatch.setattr(convert_command, "_load", lambda source, which: (network, {}))
    assert cli.main(["export", f"--from={tmp_path}", f"--to={tmp_path / 'out.safetensors'}"]) == 2
    assert "own_backbone:make is a network of your own" in capsys.readouterr().err
