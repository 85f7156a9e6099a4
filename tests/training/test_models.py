"""From a config to networks and settings: every family by name, and errors that name the key."""

import importlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from jaxdrl import backbones
from jaxdrl.errors import UserError
from jaxdrl.training import loading, mesh, methods, models
from jaxdrl.training.context import Run
from jaxdrl.training.methods import adjoint
from jaxdrl.training.metrics import MetricWriter
from jaxdrl.training.stages import pretrain
from jaxdrl.weights import files, model_directory

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def config():
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs" / "drl_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("tiny")


@pytest.mark.parametrize("name", ["SiT", "DiT", "REPA", "JiT", "DiTDH"])
def test_every_family_is_a_name_in_the_config(config, name):
    config.backbone.name = name
    network = models.backbone(config)
    assert network.family == name and network.sample_shape == (8, 8, 1) and network.num_classes == 10
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    x, t, y = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.zeros(2, jnp.int32)
    assert jax.eval_shape(network.velocity, shapes, x, t, y).shape == (2, 8, 8, 1)


def test_spectral_gate_is_a_key(config):
    plain = models.backbone(config).num_params
    config.backbone.update(spectral="timestep", gate_scale=0.2)
    network = models.backbone(config)
    assert network.num_params > plain and dict(network.fields)["gate_scale"] == 0.2


def test_a_run_may_start_from_a_run_that_trained_its_own_network(config, tiny_run, tmp_path):
    """Published SiT has twice the channels in its head, one that a run makes itself has not: also two runs later."""
    (tmp_path / "second").mkdir()
    stored = json.loads((tiny_run / "config.json").read_text())
    stored["backbone"]["weights"] = str(tiny_run)
    (tmp_path / "second" / "config.json").write_text(json.dumps(stored))
    plain = models.backbone(config)
    for place in (tiny_run, tmp_path / "second"):
        config.backbone.weights = str(place)
        assert dict(models.backbone(config).fields)["learn_sigma"] is False and models.backbone(config) == plain
    config.backbone.weights = str(tiny_run)
    found, tuned = loading.load_model(config, tmp_path, "base"), files.load_tree(tiny_run / "posttrain" / "model.safetensors")
    assert files.fingerprint(found) == files.fingerprint(tuned)
    stored["backbone"]["weights"] = str(tmp_path / "second")
    (tmp_path / "second" / "config.json").write_text(json.dumps(stored))
    config.backbone.weights = str(tmp_path / "second")
    with pytest.raises(UserError, match=r"config\.backbone\.weights: .*second started from itself"):
        models.backbone(config)


def test_a_run_that_started_from_a_folder_has_that_folders_network(config, tmp_path):
    network = backbones.create(
        "SiT-B/2", width=16, depth=2, num_heads=2, sample_shape=(8, 8, 1), num_classes=10, learn_sigma=True
    )
    model_directory.save(tmp_path / "folder", network, jax.device_get(network.init(jax.random.key(0))))
    config.backbone.update(name="SiT-B/2", weights=str(tmp_path / "folder"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config.to_json_best_effort())
    expected = models.backbone(config)
    config.backbone.weights = str(tmp_path / "run")
    assert models.backbone(config) == expected and dict(expected.fields)["width"] == 16 and dict(expected.fields)["learn_sigma"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "SiT-M/2"}, "choose one of"),
        ({"name": "JiT", "spectral": "timestep"}, "unknown fields"),
        ({"patch_size": 3}, "patch_size 3"),
    ],
)
def test_backbones_that_do_not_exist_are_told(config, changes, said):
    config.backbone.update(changes)
    with pytest.raises(UserError, match=rf"config\.backbone: .*{said}"):
        models.backbone(config)


def test_offsets_of_the_sde_come_from_the_config(config):
    schedule = adjoint.settings_from(config).schedule
    assert (schedule.time_offset, schedule.noise_offset, schedule.gain_eps) == (0.01, 0.0, None)
    config.posttrain.update(time_offset=-1.0, noise_offset=-1.0, gain_eps=0.0, integrator="euler_maruyama")
    schedule = adjoint.settings_from(config).schedule
    assert (schedule.time_offset, schedule.noise_offset, schedule.gain_eps) == (None, None, 0.0)
    assert schedule.integrator == "euler_maruyama"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "ppo"}, "algorithm"),
        ({"batch_size": 33}, "batch_size"),
        ({"rollout_batch": 7}, "rollout_batch"),
        ({"subset_reduction": "max"}, "subset_reduction"),
        ({"num_timesteps": 1}, "num_steps"),
        ({"integrator": "euler_maruyama"}, "time_offset .* -1 stands for None"),
    ],
)
def test_settings_out_of_range_are_told(config, changes, said):
    config.posttrain.update(changes)
    with pytest.raises(UserError, match=rf"config\.posttrain.*{said}"):
        methods.of(config).settings_from(config)


class _Asked(Exception):
    pass


@pytest.mark.parametrize("stage", ["encoders", "pretrain", "discriminator"])
def test_every_stage_that_reads_images_mirrors_them_if_asked(stage, tiny_run, tmp_path, monkeypatch):
    """A discriminator that saw mirrored fakes beside unmirrored data would tell them apart by that alone."""
    config = ml_collections.ConfigDict(json.loads((tiny_run / "config.json").read_text()))
    config.data.horizontal_flip = True
    module = importlib.import_module(f"jaxdrl.training.stages.{stage}")

    def batches(*_, horizontal_flip=False, **__):
        raise _Asked(horizontal_flip)

    monkeypatch.setattr(module.data, "batches", batches)
    run = Run(config=config, workdir=tiny_run, mesh=mesh.create_mesh(), writer=MetricWriter(tmp_path))
    calls = {
        "encoders": lambda: module.train(run, "reward"),
        "pretrain": lambda: module.train(run, "pretrain", module.initial_state(config), 0, 10, curve=False),
        "discriminator": lambda: module._train(run, module._held_out(run)),
    }
    with pytest.raises(_Asked) as asked:
        calls[stage]()
    assert asked.value.args == (True,)


def test_repa_is_trained_with_its_targets_and_not_without(config, tiny_run, tmp_path):
    """Flow matching plus alignment with the tokens of a frozen encoder; what does not fit is told."""
    config.backbone.name = "REPA"
    config.backbone.fields = ml_collections.ConfigDict({"projector_dims": (16,), "projector_hidden": 8})
    with pytest.raises(UserError, match=r"config\.pretrain\.alignment: REPA needs an encoder"):
        models.alignment(config)
    config.pretrain.alignment = "dinov2-base"
    with pytest.raises(UserError, match=r"config\.pretrain\.alignment_weights: dinov2-base needs the folder"):
        models.alignment(config)
    config.pretrain.alignment_weights = "random"
    sizes = {"width": 16, "depth": 1, "num_heads": 2, "resolution": 28}
    config.pretrain.alignment_fields = ml_collections.ConfigDict(sizes)
    with pytest.raises(UserError, match=r"gives \(2, 2\) tokens of 16, REPA has \(4, 4\)"):
        models.alignment(config)
    config.pretrain.alignment_fields.resolution = 56
    config.data.update(name="synthetic", image_shape=(8, 8, 3))
    objective = pretrain._objective(config)
    frozen = (loading.load_tokenizer(config), loading.load_alignment(config))
    network = models.backbone(config)
    params = jax.tree.map(lambda leaf: leaf + 0.05, network.init(jax.random.key(0)))
    images, labels = jax.random.uniform(jax.random.key(1), (6, 8, 8, 3)) * 2 - 1, jnp.arange(6)
    config.pretrain.alignment_weight = 0.0
    plain, grads = jax.value_and_grad(pretrain._objective(config))(params, frozen, images, labels, jax.random.key(2))
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["projectors_0"]))
    value, grads = jax.value_and_grad(objective)(params, frozen, images, labels, jax.random.key(2))
    assert any(leaf.any() for leaf in jax.tree.leaves(grads["projectors_0"])) and abs(float(value - plain)) <= 0.5
    config.backbone.update(name="SiT")
    config.backbone.fields = ml_collections.ConfigDict()
    with pytest.raises(UserError, match="SiT has no projectors"):
        models.alignment(config)


def test_the_law_of_times_comes_from_the_config(config):
    config.pretrain.time_law = "beta"
    with pytest.raises(UserError, match=r"config\.pretrain: the law of times must be"):
        pretrain._objective(config)


def test_weights_for_other_classes_are_refused(config, tiny_run, tmp_path):
    """Shipped bases know all ten digits; a run's model the classes of its run, in their order."""
    config.data.update(classes=tuple("0123456789"))
    run = Run(config=config, workdir=tmp_path, mesh=mesh.create_mesh(), writer=MetricWriter(tmp_path))
    config.pretrain.from_scratch = False
    with pytest.raises(UserError, match=r"config\.data\.classes: the shipped base of .* --config\.pretrain\.from_scratch=true"):
        pretrain.run(run)
    config.backbone.weights = str(tmp_path / "start")
    stored = json.loads((tiny_run / "config.json").read_text())
    shutil.copytree(tiny_run / "posttrain", tmp_path / "start" / "posttrain")
    for classes in ([], list("1023456789"), list("0123456789")):
        stored["data"]["classes"] = classes
        (tmp_path / "start" / "config.json").write_text(json.dumps(stored))
        if classes == list(config.data.classes):
            assert loading.load_model(config, tmp_path, "base")
        else:
            with pytest.raises(UserError, match=r"config\.data\.classes are not those of .*start"):
                loading.load_model(config, tmp_path, "base")


def test_features_of_other_classes_are_kept_apart(tiny_run, tmp_path, monkeypatch):
    """By the classes, in any order; features of all classes have the place they had before the key."""
    config: Any = ml_collections.ConfigDict(json.loads((tiny_run / "config.json").read_text()))
    config.discriminator.cache_features = True
    config.data.directory = str(tmp_path)
    run, written = Run(config=config, workdir=tiny_run, mesh=mesh.create_mesh(), writer=MetricWriter(tmp_path)), []
    stage = importlib.import_module("jaxdrl.training.stages.discriminator")
    monkeypatch.setattr(
        stage.feature_cache, "write", lambda folder, source, features, description, **_: written.append((folder, description))
    )
    for classes in ((), ("3", "7"), ("7", "3"), ("3", "8")):
        config.data.update(classes=list(classes), num_classes=len(classes) or 10)
        stage._cached(run, range(100), stage.Images(None, None, None))
    folders, descriptions = zip(*written, strict=True)
    assert folders[1] == folders[2] and len(set(folders)) == 3
    assert "classes" not in descriptions[0] and descriptions[1]["classes"] == ["3", "7"]
