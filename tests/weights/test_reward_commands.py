"""`jaxdrl convert` and `jaxdrl export` of published reward models: weights in one file or two, a vocabulary beside them."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxdrl import cli
from jaxdrl.rewards import preference
from jaxdrl.weights import from_torch, model_directory
from tests.golden import preference_cases as cases
from tests.rewards.test_preference import GOLDEN, state_of, write_vocabulary


def _save(path, state):
    path.write_bytes(
        safetensors.numpy.save({key: np.ascontiguousarray(value).reshape(value.shape) for key, value in state.items()})
    )
    return f"--from={path}"


def _fields(name):
    return [part for key, value in cases.FIELDS[name].items() for part in ("--set", f"{key}={json.dumps(value)}")]


@pytest.mark.parametrize(("name", "form"), [("pickscore", 0), ("hpsv2.1", 2)])
def test_a_folder_scores_as_the_authors_do(name, form, tmp_path, capsys):
    files = write_vocabulary(tmp_path)[form]
    given = [_save(tmp_path / "model.safetensors", state_of(name)), *(f"--from={path}" for path in files.values())]
    assert cli.main(["convert", f"--model={name}", f"--to={tmp_path / 'm'}", *given, *_fields(name)]) == 0, (
        capsys.readouterr().err
    )
    assert set(files) <= {path.name for path in (tmp_path / "m").iterdir()}
    for path in files.values():
        path.unlink()
    model, params = model_directory.load(tmp_path / "m")
    assert model.name == name and dict(model.fields)["vision"]["resolution"] == cases.SIZE
    jax.tree.map(np.testing.assert_array_equal, params, from_torch(model, state_of(name)))
    np.testing.assert_allclose(model.text(params, cases.PROMPTS), GOLDEN[f"{name}/text"], rtol=1e-4, atol=1e-5)
    assert cli.main(["export", f"--from={tmp_path / 'm'}", f"--to={tmp_path / 'back.safetensors'}"]) == 0
    back, state = safetensors.numpy.load_file(tmp_path / "back.safetensors"), state_of(name)
    assert set(back) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    other = "openclip" if name == "pickscore" else "transformers"
    assert cli.main(["export", f"--from={tmp_path / 'm'}", f"--to={tmp_path / 'x.safetensors'}", f"--layout={other}"]) == 0
    assert ("visual.proj" in safetensors.numpy.load_file(tmp_path / "x.safetensors")) == (name == "pickscore")
    assert cli.main(["export", f"--from={tmp_path / 'm'}", f"--to={tmp_path / 'x.safetensors'}", "--layout=diffusers"]) == 2
    assert "choose original, transformers or openclip" in capsys.readouterr().err


def test_an_encoder_and_a_head(tmp_path, capsys):
    """Two files, the second a checkpoint of the head alone; no vocabulary."""
    name, state = "aesthetic-v2.5", state_of("aesthetic-v2.5")
    head = {key: value for key, value in state.items() if key.startswith("scoring_head")}
    first = _save(
        tmp_path / "siglip.safetensors", {k: v for k, v in state.items() if k not in head} | {"logit_bias": np.zeros(1)}
    )
    second = _save(tmp_path / "head.safetensors", head)
    command = ["convert", f"--model={name}", f"--to={tmp_path / 'm'}", first, *_fields(name)]
    assert cli.main(command) == 2
    assert "missing: layers.scoring_head.0.bias" in capsys.readouterr().err
    (tmp_path / "vocab.json").write_text("{}")
    assert cli.main([*command, second, f"--from={tmp_path / 'vocab.json'}"]) == 2
    assert "reads no text; leave vocab.json out" in capsys.readouterr().err
    assert cli.main([*command, second]) == 0
    model, params = model_directory.load(tmp_path / "m")
    assert model.text is None and model.fields == preference.create(name, **cases.FIELDS[name]).fields
    np.testing.assert_array_equal(params["head"]["layer_4"]["kernel"], head["scoring_head.8.weight"].T)
    np.testing.assert_array_equal(params["image"]["head_probe"], state["vision_model.head.probe"][0])


def test_checkpoints_of_hpsv2_are_unwrapped(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    state = {f"module.{key}": torch.tensor(value) for key, value in state_of("hpsv2.1").items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    files = write_vocabulary(tmp_path)[1]
    command = ["convert", "--model=hpsv2", f"--from={tmp_path / 'HPS_v2.1_compressed.pt'}", *_fields("hpsv2.1")]
    command += [f"--from={path}" for path in files.values()]
    assert cli.main([*command, f"--to={tmp_path / 'm'}"]) == 0, capsys.readouterr().err
    assert model_directory.describe(tmp_path / "m")[0] == "hpsv2"
    assert cli.main([*command, f"--to={tmp_path / 'n'}", "--weights=ema"]) == 2
    assert "no ema weights; it has state_dict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            [],
            "needs its vocabulary too: tokenizer.json, or vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt.gz; there is none",
        ),
        (["vocab.json"], "got vocab.json"),
        (["nothing/tokenizer.json"], "nothing/tokenizer.json is missing"),
        (["broken/tokenizer.json"], "cannot be read as CLIP's vocabulary"),
        (["vocab.json", "merges.txt", "missing.safetensors"], "missing.safetensors is missing"),
    ],
)
def test_wrong_vocabularies_are_told(files, said, tmp_path, capsys):
    write_vocabulary(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    given = [f"--from={tmp_path / name}" for name in files]
    assert (
        cli.main(["convert", "--model=pickscore", f"--to={tmp_path / 'm'}", *given, _save(tmp_path / "x.safetensors", {})]) == 2
    )
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "m").exists()
