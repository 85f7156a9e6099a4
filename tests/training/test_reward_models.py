"""Published reward models in a run: from the folder that the config names to numbers."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import cli, stored_config
from jaxdrl.errors import UserError
from jaxdrl.rewards import preference
from jaxdrl.rewards.preference import tokens
from jaxdrl.training import mesh, reward_weights
from jaxdrl.training.context import Run
from jaxdrl.training.methods import common
from jaxdrl.training.metrics import MetricWriter
from jaxdrl.weights import model_directory
from tests.golden import preference_cases as cases
from tests.rewards.test_preference import write_vocabulary

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small CLIPScore, as `jaxdrl convert` would have left it."""
    place = tmp_path_factory.mktemp("clipscore")
    files = write_vocabulary(place)[0]
    tokenizer = tokens.clip(files)
    model = preference.create("clipscore", **cases.FIELDS["clipscore"], tokenizer=tokenizer)
    params = model.init(jax.random.key(0))
    model_directory.save(place / "model", model, params)
    for name, path in files.items():
        shutil.copy(path, place / "model" / name)
    return SimpleNamespace(path=str(place / "model"), model=model, params=params)


def _run(tiny_run, workdir, **fields):
    config: Any = stored_config.get_config(str(tiny_run))
    config.posttrain.rewards = {"clip": {"name": "clipscore", **fields}}
    return Run(config=config, workdir=workdir, mesh=mesh.create_mesh(), writer=MetricWriter(workdir))


def test_a_class_is_a_prompt(folder, tiny_run, tmp_path):
    run = _run(tiny_run, tmp_path, weights=folder.path, prompt="a scan of the digit {class}", scale=2.0)
    weights = reward_weights.load(run)
    reward = common.rewards(run.config, common.Frozen(None, None, None, None, weights))[0]
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32))
    text = folder.model.text(folder.params, ["a scan of the digit three", "a scan of the digit zero"])
    expected = 2 * folder.model.score(folder.params, images, text)
    np.testing.assert_allclose(reward(images, jnp.array([3, 0])), expected, rtol=1e-5)
    assert reward.name == "clip" and not np.allclose(*expected)


def test_drawn_models_read_the_bytes_of_a_prompt(tiny_run, tmp_path):
    """A small network of the config's sizes: the same rows in every call, another one a class, others for another seed."""
    run = _run(tiny_run, tmp_path, weights="random", prompt="{class}", **cases.FIELDS["clipscore"])
    found, again = reward_weights.load(run)["clip"], reward_weights.load(run)["clip"]
    assert found["params"]["text"]["tokens"].shape == (cases.VOCABULARY, cases.TEXT["width"])
    np.testing.assert_array_equal(found["text"], again["text"])
    gaps = np.linalg.norm(found["text"][:, None] - found["text"][None], axis=-1)
    assert found["text"].shape == (10, 20) and (gaps[~np.eye(10, dtype=bool)] > 1e-3).all()
    reward = common.rewards(run.config, common.Frozen(None, None, None, None, {"clip": found}))[0]
    assert np.ptp(reward(jnp.zeros((3, 8, 8, 1)), jnp.arange(3))) > 1e-4
    run.config.seed += 1
    assert np.abs(reward_weights.load(run)["clip"]["params"]["logit_scale"] - found["params"]["logit_scale"]) > 0


def test_bytes_are_tokens_before_an_end():
    np.testing.assert_array_equal(tokens.of_bytes(300)(["ab", "a"], 9), [[98, 99, 299], [98, 299, 0]])
    np.testing.assert_array_equal(tokens.of_bytes(12)(["ab" * 9], 4), [[8, 9, 8, 11]])
    with pytest.raises(ValueError, match="at least 3 tokens"):
        tokens.of_bytes(2)


def test_evaluate_reports_rewards(folder, tmp_path, capsys):
    """Mean and spread as computed by hand, the shift against the base, drift beside it."""
    rng = np.random.default_rng(3)
    images, base = rng.integers(0, 256, (2, 12, 8, 8, 3), np.uint8)
    labels = np.arange(12) % 3
    for name, pictures in (("tuned", images // 2), ("base", base)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures, labels=labels)
    np.savez(tmp_path / "silent.npz", arr_0=images)
    (tmp_path / "names.txt").write_text("cat\ndog\nfish\n")
    common_flags = ["--rewards=clipscore,brightness,jpeg_compressibility", f"--weights={folder.path}"]
    common_flags += [f"--class_names={tmp_path / 'names.txt'}", "--batch_size=5"]
    command = ["evaluate", f"--samples={tmp_path / 'tuned.npz'}", f"--base={tmp_path / 'base.npz'}", *common_flags]
    assert cli.main([*command, f"--out={tmp_path / 'out'}"]) == 0
    kept = json.loads((tmp_path / "out" / "metrics.json").read_text())
    text = folder.model.text(folder.params, [f"a photo of a {name}" for name in ("cat", "dog", "fish")])
    expected = {
        name: np.asarray(folder.model.score(folder.params, jnp.asarray(pictures / np.float32(127.5) - 1), text[labels]))
        for name, pictures in (("tuned", images // 2), ("base", base))
    }
    found = kept["rewards"]["clipscore"]
    assert found["mean"] == pytest.approx(expected["tuned"].mean(), rel=1e-4)
    assert found["std"] == pytest.approx(expected["tuned"].std(), rel=1e-3) and found["count"] == 12
    shift = (expected["tuned"].mean() - expected["base"].mean()) / expected["base"].std()
    assert found["gain"] == pytest.approx(shift, rel=1e-2)
    assert kept["rewards"]["brightness"]["gain"] < -3 and "drift/brightness" in kept["metrics"]
    printed = capsys.readouterr().out
    assert "reward clipscore" in printed and "of the base's" in printed
    assert cli.main(["evaluate", f"--samples={tmp_path / 'silent.npz'}", *common_flags, f"--out={tmp_path / 's'}"]) == 0
    assert "no image has a label that is a class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rewards=beauty"], "--rewards: beauty is unknown"),
        (["--rewards=clipscore"], "clipscore needs its folder among --weights"),
        (["--rewards=clipscore", "--weights={folder}"], "say what the labels stand for with --class_names"),
        (["--rewards=brightness,brightness"], "given twice"),
        (["--base={samples}", "--metrics=drift"], "--base is for --rewards"),
    ],
)
def test_mistakes_of_the_command_are_one_line(flags, said, folder, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    given = [flag.format(folder=folder.path, samples=tmp_path / "x.npz") for flag in flags]
    assert cli.main(["evaluate", f"--samples={tmp_path / 'x.npz'}", *given, f"--out={tmp_path / 'o'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, r"config\.posttrain\.rewards\.clip: weights: clipscore needs the folder"),
        ({"weights": "nowhere"}, "nowhere holds no model"),
        ({"weights": "{folder}", "name": "pickscore"}, "holds clipscore, not pickscore"),
        ({"weights": "{folder}", "prompt": "a digit"}, r"config\.posttrain\.rewards\.clip: the prompt template"),
        ({"weights": "{folder}", "class_names": ("one", "two")}, "there are 2, must be 10"),
        ({"weights": "{folder}", "colour": 1}, "unknown fields"),
        (
            {"weights": "{folder}", "vision": {"width": 8}},
            r"rewards\.clip: vision: the sizes of clipscore are those of its folder",
        ),
        ({"weights": "random", "vision": {"colour": 8}}, r"rewards\.clip: .*unknown fields .*colour"),
    ],
)
def test_mistakes_are_one_line(fields, said, folder, tiny_run, tmp_path):
    run = _run(tiny_run, tmp_path, **{k: v.format(folder=folder.path) if isinstance(v, str) else v for k, v in fields.items()})
    with pytest.raises(UserError, match=said) as error:
        common.rewards(run.config)
        reward_weights.load(run)
    assert "\n" not in str(error.value)


def test_a_run_on_some_classes_has_their_prompts(folder, tiny_run, tmp_path):
    run = _run(tiny_run, tmp_path, weights=folder.path)
    whole = reward_weights.load(run)["clip"]["text"]
    run.config.data.update(classes=("3", "0"), num_classes=2)
    np.testing.assert_allclose(reward_weights.load(run)["clip"]["text"], whole[np.array([3, 0])], atol=1e-6)
    run.config.data.classes = ("3", "x")
    with pytest.raises(UserError, match=r"config\.posttrain\.rewards\.clip: class names 'digits' have none for 'x'"):
        reward_weights.load(run)


def test_evaluate_reads_the_prompts_of_the_runs_classes(folder, tmp_path):
    rng, images = np.random.default_rng(3), tmp_path / "x.npz"
    np.savez(images, arr_0=rng.integers(0, 256, (4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2)
    command = ["evaluate", f"--samples={images}", "--rewards=clipscore", f"--weights={folder.path}", "--batch_size=4"]
    command += [f"--config={ROOT}/configs/drl_digits.py", f"--out={tmp_path / 'out'}"]
    assert cli.main([*command, "--config.data.classes=('3', '0')", "--config.data.num_classes=2"]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["rewards"]["clipscore"]
    text = folder.model.text(folder.params, ["a photo of a three", "a photo of a zero"])
    pictures = jnp.asarray(np.load(images)["arr_0"] / np.float32(127.5) - 1)
    expected = folder.model.score(folder.params, pictures, text[np.arange(4) % 2])
    assert found["mean"] == pytest.approx(float(expected.mean()), rel=1e-4) and found["count"] == 4
