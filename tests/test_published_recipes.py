"""Recipes for published generators, in small and on drawn weights: tokenizer, encoder, discriminator, adjoints, measuring, export."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from jaxdrl import backbones, cli, encoders, recipes, tokenizers
from jaxdrl.errors import UserError
from jaxdrl.stored_config import get_config
from jaxdrl.training import generation, loading, mesh, models
from jaxdrl.training.context import Run
from jaxdrl.training.methods import adjoint
from jaxdrl.training.metrics import MetricWriter
from jaxdrl.training.stages import encoders as encoders_stage
from jaxdrl.training.stages import pretrain
from jaxdrl.weights import files, from_torch, model_directory

ROOT = Path(__file__).parent.parent
RECIPES = {"sit_xl": "SiT-XL/2", "repa_xl": "REPA-SiT-XL/2", "jit_h": "JiT-H/16", "rae_xl": "DiTDH-XL"}


CONVOLUTIONAL = """
import importlib.util
import ml_collections

def get_config(variant=""):
    spec = importlib.util.spec_from_file_location("recipe", {recipe!r})
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    config.encoders.reward.name = "convnextv2-atto"
    fields = {{"widths": (8, 8, 8, 16), "depths": (1, 1, 1, 1), "resolution": 32}}
    config.encoders.reward.fields = ml_collections.ConfigDict(fields)
    return config
"""


# The others by name: they take as long again, each.
@pytest.fixture(scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name != "sit_xl")) for name in RECIPES])
def finished(request, tmp_path_factory):
    """A finished tiny run; JiT's with a convolutional reward encoder in place of DINOv2."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = f"{ROOT}/configs/drl_imagenet_{request.param}.py"
    if request.param == "jit_h":
        (folder / "recipe.py").write_text(CONVOLUTIONAL.format(recipe=recipe))
        recipe = f"{folder}/recipe.py"
    assert cli.main(["run", f"--config={recipe}:tiny", f"--workdir={folder / 'run'}"]) == 0
    return request.param, folder / "run"


def test_the_whole_pipeline_on_drawn_weights(finished, tmp_path, capsys):
    recipe, workdir = finished
    config = get_config(str(workdir))
    assert config.backbone.name == RECIPES[recipe] and not (workdir / "pretrain" / "model.safetensors").exists()
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in metrics if line["stage"] == "posttrain"]
    assert steps and all(line["reward_gradient_norm"] > 0 and line["gradient_norm"] > 0 for line in steps)
    base, tuned = (loading.load_model(config, workdir, name) for name in ("base", "tuned"))
    assert files.fingerprint(base) != files.fingerprint(tuned)

    target = tmp_path / "tuned.safetensors"
    assert cli.main(["export", f"--from={workdir}", f"--to={target}"]) == 0
    assert RECIPES[recipe] in capsys.readouterr().out
    back = from_torch(models.backbone(config), safetensors.numpy.load_file(target))
    jax.tree.map(np.testing.assert_array_equal, back, jax.tree.map(np.asarray, tuned))
    assert cli.main(["sample", f"--workdir={workdir}", "--num=10", f"--out={tmp_path / 'grid.png'}"]) == 0


def test_the_terminal_adjoint_passes_decoder_and_encoder(finished):
    """The directional derivative of logit(encoder(decoder(x))) is its finite difference."""
    _, workdir = finished
    config = get_config(str(workdir))
    tokenizer, params = models.tokenizer(config), loading.load_tokenizer(config)
    head = loading.load_discriminator(workdir)
    head = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(2), leaf.shape), head)
    reward = models.reward(config, loading.load_encoder(config, workdir, "reward"), head)
    x, direction = jax.random.normal(jax.random.key(1), (2, 1, *models.backbone(config).sample_shape))
    value = jax.jit(lambda s: reward(tokenizer.decode(params, x + s * direction), jnp.array([3]))[0])
    slope, finite = float(jax.grad(value)(0.0)), float((value(0.02) - value(-0.02)) / 0.04)
    assert abs(slope) > 1e-4 and slope == pytest.approx(finite, rel=0.05, abs=1e-4)


@pytest.mark.slow
def test_preference_rl_after_drl(tmp_path):
    """The DRL run's tuned model is both what is trained first and the KL reference; held-out rewards are measured."""
    drl, prl = tmp_path / "drl", tmp_path / "prl"
    assert cli.main(["run", f"--config={ROOT}/configs/drl_imagenet_sit_xl.py:tiny", f"--workdir={drl}"]) == 0
    command = [
        "run",
        f"--config={ROOT}/configs/prl_imagenet_sit_xl.py:tiny",
        f"--workdir={prl}",
        f"--config.backbone.weights={drl}",
    ]
    assert cli.main(command) == 0
    config = get_config(str(prl))
    base, before = loading.load_model(config, prl, "base"), loading.load_model(get_config(str(drl)), drl, "tuned")
    jax.tree.map(np.testing.assert_array_equal, base, before)
    assert files.fingerprint(loading.load_model(config, prl, "tuned")) != files.fingerprint(base)
    lines = [json.loads(line) for line in (prl / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "posttrain"]
    assert steps and all(line["reward_gradient_norm"] > 0 and line["gradient_norm"] > 0 for line in steps)
    rewards = json.loads((prl / "report.json").read_text())["rewards"]
    assert set(rewards) == {"pickscore", "aesthetic-v2_5", "clipscore"}
    assert all(np.isfinite(row["tuned"]["gain"]) and row["base"]["std"] > 0 for row in rewards.values())


def test_full_preference_rl_has_the_papers_settings(tmp_path):
    """DRL's, but for the reward, the number of steps and what is measured."""
    drl, prl = (cli._load(f"{ROOT}/configs/{which}_imagenet_sit_xl.py") for which in ("drl", "prl"))
    settings = prl.posttrain
    assert settings.refreshes * settings.epochs * (settings.buffer_size // settings.batch_size) == 5000
    assert settings.rewards.pickscore.weights == "models/pickscore"
    names = {label: given.name for label, given in prl.evaluate.rewards.items()}
    assert set(names.values()) == {"hpsv2.1", "imagereward", "aesthetic-v2.5", "clipscore"} and "hpsv2_1" in names
    assert all(given.weights == f"models/{given.name}" for given in prl.evaluate.rewards.values())
    for which in (drl, prl):
        which.name = ""
        which.posttrain.update(refreshes=0, reward_scale=0.0)
        which.posttrain.rewards = which.evaluate.rewards = ml_collections.ConfigDict()
    assert drl.to_dict() == prl.to_dict()
    with pytest.raises(UserError, match="no workdir of a run"):
        cli._load(f"{ROOT}/configs/prl_imagenet_sit_xl.py:{tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    after = cli._load(f"{ROOT}/configs/prl_imagenet_sit_xl.py:{tmp_path}")
    assert after.backbone.weights == str(tmp_path) and after.backbone.name == "SiT-XL/2"


def test_full_recipes_have_the_papers_settings():
    for recipe, name in RECIPES.items():
        config = cli._load(f"{ROOT}/configs/drl_imagenet_{recipe}.py")
        settings, steps = config.posttrain, config.posttrain.buffer_size // config.posttrain.batch_size
        assert config.backbone.name == name and config.encoders.reward.name == "dinov2-large"
        assert settings.num_timesteps == 100 and settings.batch_size == 576 and settings.reward_scale == 10.0
        assert settings.refreshes * settings.epochs * steps == 3000 and config.discriminator.r1 == 1e-5
        assert (settings.buffer_size, settings.subset_reduction) == {
            "sit_xl": (2304, "sum"),
            "repa_xl": (2304, "sum"),
            "jit_h": (3072, "sum"),
            "rae_xl": (3072, "mean"),
        }[recipe]
        adjoint.settings_from(config)
        generation.solver(config, config.evaluate.sampling_steps)


@pytest.fixture
def config():
    return cli._load(f"{ROOT}/configs/drl_imagenet_sit_xl.py:tiny")


def _run(config, tmp_path):
    return Run(config=config, workdir=tmp_path, mesh=mesh.create_mesh(), writer=MetricWriter(tmp_path))


def test_converted_weights_are_found_stacked_and_checked(config, tmp_path):
    """A folder's network is the base, whatever form its blocks have; data that do not fit are refused."""
    fields = {"width": 16, "depth": 2, "num_heads": 2, "sample_shape": (4, 4, 4), "num_classes": 10}
    network = backbones.create("SiT-XL/2", **fields)
    params = jax.tree.map(lambda leaf: leaf + 0.1, network.init(jax.random.key(0)))
    model_directory.save(tmp_path / "model", network, params)
    config.backbone.weights, config.backbone.fields = str(tmp_path / "model"), ml_collections.ConfigDict()
    scanned = models.backbone(config)
    assert (
        dict(scanned.fields).get("learn_sigma", True)
        and dict(scanned.fields)["scan_layers"]
        and scanned.sample_shape == (4, 4, 4)
    )
    loaded = loading.load_model(config, tmp_path, "base")
    x, t, y = jax.random.normal(jax.random.key(1), (2, 4, 4, 4)), jnp.array([0.2, 0.9]), jnp.array([1, 10])
    config.backbone.dtype = "float32"
    found = models.backbone(config).velocity(loaded, x, t, y)
    np.testing.assert_allclose(found, network.velocity(params, x, t, y), rtol=1e-4, atol=1e-4)
    result = pretrain.run(_run(config, tmp_path))
    assert result["weights"] == str(tmp_path / "model") and result["fingerprint"] == files.fingerprint(loaded)
    config.data.num_classes = 12
    with pytest.raises(UserError, match=r"has num_classes 10, this run's data has 12"):
        models.backbone(config)
    config.backbone.name = "SiT-L/2"
    with pytest.raises(UserError, match=r"config\.backbone\.weights: .* holds SiT-XL/2"):
        models.backbone(config)


def _small_judge(config):
    config.encoders.judge.name = "small-convnet"
    config.encoders.judge.fields = ml_collections.ConfigDict()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.tokenizer.update(weights=""), r"config\.tokenizer\.weights: sd-vae needs the folder .*jaxdrl convert"),
        (lambda c: c.tokenizer.update(weights="/nowhere"), "holds no model"),
        (lambda c: c.tokenizer.update(name="vqgan"), r"config\.tokenizer: tokenizer 'vqgan' is unknown"),
        (lambda c: c.tokenizer.update(posterior="mode"), "must be sample or mean"),
        (lambda c: c.data.update(image_shape=(18, 18, 3)), r"config\.data\.image_shape: .* no multiple"),
        (lambda c: c.encoders.reward.update(weights=""), r"config\.encoders\.reward\.weights: dinov2-large needs"),
        (lambda c: c.encoders.reward.update(name="dinov4"), r"config\.encoders\.reward: encoder 'dinov4' is unknown"),
        (_small_judge, "is trained here; leave it empty"),
        (lambda c: c.evaluate.update(controls=True), r"config\.evaluate\.controls"),
        (lambda c: c.pretrain.update(from_scratch=True), "exclude each other"),
        (lambda c: c.sampler.update(method="rk4"), r"config\.sampler\.method"),
        (lambda c: c.sampler.update(time_end=1.5), "time_end"),
    ],
)
def test_what_does_not_fit_is_told(config, tmp_path, change, said):
    change(config)
    with pytest.raises(UserError, match=said):
        for which in ("reward", "judge"):
            encoders_stage._check_weights(config, which)
            models.encoder(config, which)
        generation.solver(config, 3)
        generation.encode_batch(config)
        pretrain.run(_run(config, tmp_path))


def test_real_images_pass_the_tokenizer_unless_told_otherwise(config):
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    tokenizer, params = models.tokenizer(config), loading.load_tokenizer(config)
    expected = tokenizer.decode(params, tokenizer.encode(params, jnp.asarray(images)))
    np.testing.assert_allclose(generation.reconstruction(config)(images), expected, atol=1e-4)
    config.discriminator.reconstruct_real = False
    assert generation.reconstruction(config)(images) is images


def test_scaled_pixels_and_jits_larger_noise_are_one_thing():
    """z = t x + (1 - t) s e, seen as z / s on the path of x / s."""
    fields = {"sample_shape": (8, 8, 3), "num_classes": 3, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}
    plain, scaled = backbones.create("JiT", **fields), backbones.create("JiT", **fields, noise_scale=2.0)
    params = jax.tree.map(lambda leaf: leaf + 0.1, plain.init(jax.random.key(0)))
    z, t, y = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([0.2, 0.99]), jnp.array([0, 3])
    np.testing.assert_allclose(2 * scaled.velocity(params, z / 2, t, y), plain.velocity(params, z, t, y), rtol=1e-5, atol=1e-5)
    pixels = tokenizers.create("pixels", scale=2.0)
    np.testing.assert_array_equal(pixels.encode({}, z), z / 2)
    np.testing.assert_array_equal(pixels.decode({}, pixels.encode({}, z)), z)
    with pytest.raises(ValueError, match="unknown fields"):
        tokenizers.create("pixels", size=3)
    assert isinstance(pixels, tokenizers.Tokenizer) and isinstance(tokenizers.create("sd-vae"), tokenizers.Tokenizer)


def test_published_encoders_bring_their_preprocessing():
    tiny = {"width": 16, "depth": 1, "num_heads": 2}
    network = encoders.create("dinov2-large", **tiny, resolution=28, pooling="class token, mean patch token")
    params = jax.tree.map(lambda leaf: leaf + 0.1, network.init(jax.random.key(0)))
    found = network.features(params, jax.random.uniform(jax.random.key(1), (2, 40, 36, 3)) * 2 - 1)
    assert found["pooled"].shape == (2, 32) == (2, network.feature_dim) and found["patches"].shape == (2, 4, 16)
    np.testing.assert_allclose(found["pooled"][:, 16:], found["patches"].mean(axis=1), rtol=1e-6)
    spec = network.spec("f")
    assert (spec.size, spec.resize, spec.antialias, spec.mean[0]) == (28, "bicubic", True, 0.485)
    for fields, said in (({"resolution": 30}, "no multiple"), ({"pooling": "max"}, "pooling"), ({"heads": 3}, "unknown fields")):
        with pytest.raises(ValueError, match=said):
            encoders.create("dinov2-large", **fields)
    with pytest.raises(ValueError, match="at resolution 28"):
        network.features(params, jnp.zeros((1, 28, 28, 3)), resolution=56)


def test_small_forms_are_on_all_generated_classes(config):
    config.data.update(classes=("n01440764", "n01443537"), num_classes=2)
    data = recipes.tiny_published(config, {}, 16).data
    assert (data.name, data.num_classes, data.classes) == ("synthetic", 10, ())
