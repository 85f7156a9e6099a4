"""`jaxdrl convert` and `jaxdrl export` on small files: there and back, and every mistake in one line."""

import json
import os
import pickle

import numpy as np
import pytest
import safetensors.numpy

from jaxdrl import backbones, cli
from jaxdrl.errors import UserError
from jaxdrl.weights import model_directory, torch_files
from tests.golden import cases
from tests.weights.test_convert import _state


@pytest.fixture(autouse=True)
def tiny_published(monkeypatch):
    for name, published in (("sit", "SiT-tiny"), ("dit", "DiT-tiny"), ("jit", "JiT-tiny")):
        family, fields, _ = cases.CASES[name]
        monkeypatch.setitem(backbones.PUBLISHED, published, (family, dict(fields)))


def _file(tmp_path, name="sit"):
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(safetensors.numpy.save(_state(name)))
    return path


def test_there_and_back_is_the_same_file(tmp_path, capsys):
    source = _file(tmp_path)
    assert cli.main(["convert", "--model=SiT-tiny", f"--from={source}", f"--to={tmp_path / 'model'}"]) == 0
    assert "peak memory" in capsys.readouterr().out
    assert cli.main(["export", f"--from={tmp_path / 'model'}", f"--to={tmp_path / 'back.safetensors'}"]) == 0
    one, two = (safetensors.numpy.load_file(path) for path in (source, tmp_path / "back.safetensors"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, two[key], err_msg=key)
    (tmp_path / "plain").touch()
    assert (tmp_path / "back.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    backbone, params = model_directory.load(tmp_path / "model")
    assert backbone.name == "SiT-tiny" and params["blocks_2"]["attn"]["qkv"]["kernel"].shape == (32, 96)
    assert json.loads((tmp_path / "model" / "model.json").read_text())["fields"]["width"] == 32


def test_diffusers_layout_from_the_command_line(tmp_path, capsys):
    assert cli.main(["convert", "--model=DiT-tiny", f"--from={_file(tmp_path, 'dit')}", f"--to={tmp_path / 'model'}"]) == 0
    target = tmp_path / "diffusers.safetensors"
    assert cli.main(["export", f"--from={tmp_path / 'model'}", f"--to={target}", "--layout=diffusers"]) == 0
    assert "transformer_blocks.0.attn1.to_q.weight" in safetensors.numpy.load_file(target)
    assert cli.main(["export", f"--from={tmp_path / 'model'}", f"--to={target}", "--layout=flax"]) == 2
    assert "choose original or diffusers" in capsys.readouterr().err


def test_torch_checkpoints_and_what_they_may_hold(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    import argparse

    weights = {f"net.{key}": torch.from_numpy(value.copy()) for key, value in _state("jit").items()}
    path = tmp_path / "checkpoint.pth"
    torch.save({"model_ema1": weights, "model": weights, "epoch": 7, "args": argparse.Namespace(lr=1e-4)}, path)
    assert cli.main(["convert", "--model=JiT-tiny", f"--from={path}", f"--to={tmp_path / 'model'}"]) == 0
    assert cli.main(["export", f"--from={tmp_path / 'model'}", f"--to={tmp_path / 'back.pt'}"]) == 0
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert all(torch.equal(back[key.removeprefix("net.")], value) for key, value in weights.items())
    assert "peak memory" in capsys.readouterr().out


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    marker = tmp_path / "marker"
    for number, save in enumerate((torch.save, lambda content, path: path.write_bytes(pickle.dumps(content)))):
        path = tmp_path / f"evil{number}.pt"
        save({"model": _Evil(str(marker))}, path)
        assert cli.main(["convert", "--model=SiT-tiny", f"--from={path}", f"--to={tmp_path / 'model'}"]) == 2
        assert "wants to run code" in capsys.readouterr().err
        assert not marker.exists() and not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["convert", "--model=SiT-M/2", "--from={file}", "--to={dir}"], "choose one of"),
        (["convert", "--model=SiT-tiny", "--from={dir}/none.safetensors", "--to={dir}/m"], "missing"),
        (["convert", "--model=SiT-tiny", "--from={dir}/x.bin", "--to={dir}/m"], "must end in"),
        (["convert", "--model=SiT-tiny", "--from={file}"], "--from and --to"),
        (["convert", "--model=DiT-tiny", "--from={dir}/jit.safetensors", "--to={dir}/m"], "missing: blocks.0.mlp.fc1.bias"),
        (["convert", "--model=SiT-tiny", "--from={file}", "--to={dir}"], "not empty"),
        (["convert", "--model=SiT-tiny", "--from={file}", "--to={dir}/m", "--weights=best"], "ema or raw"),
        (["convert", "--nodel=SiT-tiny"], "--help"),
        (["export", "--from={dir}", "--to={dir}/x.safetensors"], "no model.json"),
        (["export", "--from={dir}", "--to={dir}/x.npz"], "must end in"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(tmp_path, capsys, arguments, said):
    places = {"file": _file(tmp_path), "dir": tmp_path}
    _file(tmp_path, "jit")
    assert cli.main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_damaged_files_are_told(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(_file(tmp_path).read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        torch_files.read(path)


def test_help_and_list(capsys):
    assert cli.main(["convert", "--help"]) == 0 and cli.main(["export", "--help"]) == 0
    assert cli.main(["convert", "--model=list"]) == 0
    assert "JiT-H/16" in capsys.readouterr().out


def test_a_model_in_several_files_and_fields_from_the_command_line(tmp_path, capsys):
    """RAE comes as encoder, decoder and statistics; sizes that are not the published ones are given by name."""
    from tests.tokenizers.test_rae import RAE, _state

    state = _state()
    parts = {
        "encoder": {key: value for key, value in state.items() if key.startswith(("embeddings", "encoder", "layernorm"))},
        "stat": {key: value[None] if key == "mean" else value for key, value in state.items() if key in ("mean", "var")},
    }
    parts["decoder"] = {key: value for key, value in state.items() if key not in parts["encoder"] | parts["stat"]}
    command = [
        "convert",
        "--model=rae-dinov2-base",
        f"--to={tmp_path / 'rae'}",
        "--set",
        "image_size=48",
        "--set",
        "encoder_size=42",
    ]
    command += ["--set", f"encoder={json.dumps(RAE.encoder)}", "--set", f"decoder={json.dumps(RAE.decoder)}"]
    for name, part in parts.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(safetensors.numpy.save({key: np.ascontiguousarray(value) for key, value in part.items()}))
        command.append(f"--from={path}")
    assert cli.main(command) == 0, capsys.readouterr().err
    model, params = model_directory.load(tmp_path / "rae")
    assert model == RAE
    np.testing.assert_array_equal(params["mean"], state["mean"].transpose(1, 2, 0))
    assert cli.main(command) == 2
    assert "not empty" in capsys.readouterr().err
    missing = [argument.replace("/rae", "/other") for argument in command if "stat" not in argument]
    assert cli.main(missing) == 2
    assert "missing: mean, var" in capsys.readouterr().err
    assert cli.main([*missing, "--set", "decoder"]) == 2
    assert "must be FIELD=VALUE" in capsys.readouterr().err


def test_transformers_own_files_are_read(tmp_path):
    """What `save_pretrained` writes has other names than the module in memory."""
    transformers = pytest.importorskip("transformers")
    from jaxdrl import encoders
    from jaxdrl.weights import from_torch

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 42}
    network = transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    network.save_pretrained(tmp_path / "hf")
    encoder = encoders.create("dinov2-base", width=32, depth=2, num_heads=4, resolution=42)
    params = from_torch(encoder, torch_files.read(tmp_path / "hf" / "model.safetensors"))
    weight = network.encoder.layer[1].mlp.fc1.weight.detach().numpy()
    np.testing.assert_array_equal(params["blocks_1"]["mlp"]["fc1"]["kernel"], weight.T)
