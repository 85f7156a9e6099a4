"""ImageReward beside its authors' own code (outputs kept in `tests/golden/image_reward.npz`)."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import cli, rewards
from jaxdrl.backbones import attention
from jaxdrl.errors import UserError
from jaxdrl.rewards.preference import image_reward, wordpiece
from jaxdrl.weights import from_torch, model_directory, to_torch, torch_files
from tests.golden import cases
from tests.golden import image_reward as small

GOLDEN = np.load(small.FILE)
IMAGES = jnp.asarray(small.IMAGES)
IDS = jnp.asarray(GOLDEN["ids"])
LINES = len(small.VOCABULARY)


def _create(vision=(), text=(), **options):
    return image_reward.create(vision=small.VISION | dict(vision), text=small.TEXT | dict(text), **options)


def _state():
    """Their file's content, drawn by name."""
    lines = [line.split(":") for line in GOLDEN["names"]]
    return {key: small.draw(key, tuple(int(part) for part in shape.split(","))) for key, shape in lines}


@pytest.fixture(scope="module")
def model():
    return _create()


@pytest.fixture(scope="module")
def params(model):
    return from_torch(model, _state())


def _close(found, expected, bound):
    """Relative to what differs between the images, not to what all scores share."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() / np.ptp(expected) < bound


def test_scores_and_image_gradients_are_the_authors(model, params):
    """Prompts of several lengths, images that are not square and leave [-1, 1]; by name, a row of text a class."""
    order = jnp.array([2, 0, 3, 1])
    reward = rewards.create("imagereward", model=model, params=params, text=IDS[order])

    @jax.jit
    def both(images):
        found, pullback = jax.vjp(lambda images: reward(images, jnp.argsort(order)), images)
        return found, pullback(jnp.asarray(cases.cotangent(found.shape)))[0]

    found, gradient = both(IMAGES)
    _close(found, GOLDEN["score"], 1e-5)
    for ours, theirs in zip(gradient, GOLDEN["gradient"], strict=True):
        _close(ours, theirs, 1e-4)


def test_bytes_are_scored_as_published(model, params):
    """Their `score` on PIL images."""
    found = jax.jit(model.as_published)(params, IMAGES, IDS)
    _close(found, GOLDEN["published"], 1e-5)
    assert np.abs(found - GOLDEN["score"]).max() > 1e-2


@pytest.mark.slow
def test_scanned_blocks_are_the_same(params):
    """One compiled block with its weights stacked, computed again in the backward pass; and bfloat16, which is another number."""
    how = {"scan_layers": True, "remat": "full"}
    scanned = _create(how, how)
    stacked = from_torch(scanned, _state())
    assert stacked["text"]["blocks_0_2"]["cross"]["kv"]["kernel"].shape == (2, 32, 48)
    jax.tree.map(np.testing.assert_array_equal, to_torch(scanned, stacked), to_torch(_create(), params))
    gradient = jax.jit(jax.grad(lambda images: scanned.score(stacked, images, IDS) @ cases.cotangent((4,))))(IMAGES)
    _close(gradient, GOLDEN["gradient"], 1e-4)
    for tower in ("vision", "text"):
        half = _create(**{tower: {"dtype": "bfloat16"}}).score(params, IMAGES, IDS)
        assert half.dtype == jnp.float32 and 1e-4 < np.abs(half - GOLDEN["score"]).max() < 0.1


def test_padding_does_not_matter(model, params):
    """Neither how much of it there is nor what [PAD] stands for; every word before it does, a [PAD] among them too."""
    score = jax.jit(lambda params, ids: model.score(params, IMAGES, ids))
    scores = score(params, IDS)
    _close(scores, GOLDEN["score"], 1e-5)
    short = score(params, IDS[:, :20])
    np.testing.assert_allclose(short[:3], scores[:3], atol=1e-5)
    assert abs(short[3] - scores[3]) > 1e-3
    table = params["text"]["tokens"].copy()
    table[0] *= -1
    other = params | {"text": params["text"] | {"tokens": table}}
    np.testing.assert_allclose(score(other, IDS), scores, atol=1e-5)
    among = IDS.at[:, 2].set(0)
    assert np.abs(score(other, among) - score(params, among)).min() > 1e-3


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_masked_keys_are_not_there(implementation):
    q, k, v = (jnp.asarray(np.random.default_rng(i).standard_normal((2, 3, 5, 4)), jnp.float32) for i in range(3))
    mask = jnp.arange(5) < jnp.array([[3], [5]])
    found = attention.attend(q, k, v, jnp.float32, implementation, mask=mask)
    for row, count in enumerate((3, 5)):
        part = slice(row, row + 1)
        expected = attention.attend(q[part], k[part, :, :count], v[part, :, :count], jnp.float32)
        np.testing.assert_allclose(found[part], expected, atol=1e-6)


def test_tokens_are_berts(model, params, tmp_path):
    """As transformers' BertTokenizer with BLIP's two tokens has them."""
    pytest.importorskip("tokenizers")
    tokenizer = wordpiece.blip({"vocab.txt": small.write_vocabulary(tmp_path)}, LINES)
    np.testing.assert_array_equal(_create(tokenizer=tokenizer).text(params, small.PROMPTS), GOLDEN["ids"])
    assert tokenizer(["a cat"], 3).tolist() == [[2, 5, 3]]
    with pytest.raises(UserError, match="one more --from"):
        model.text(params, ["a cat"])
    with pytest.raises(ValueError, match="must be a list"):
        tokenizer("a cat", 35)
    fewer = params | {"text": params["text"] | {"tokens": params["text"]["tokens"][:40]}}
    with pytest.raises(UserError, match="the token 51, the network knows 40"):
        _create(tokenizer=tokenizer).text(fewer, ["a cat"])


def test_a_wrong_vocabulary_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    path, broken = small.write_vocabulary(tmp_path), tmp_path / "broken.txt"
    for changed in ({"[SEP]": "[END]"}, {"of": "photo"}, {"[PAD]": "[UNK]", "[UNK]": "[PAD]"}):
        broken.write_text("\n".join(changed.get(token, token) for token in small.VOCABULARY) + "\n", encoding="utf-8")
        with pytest.raises(UserError, match=f"must have {LINES} lines"):
            wordpiece.blip({"vocab.txt": broken}, LINES)(["a"], 35)
    broken.write_bytes(b"\xff\xfe")
    for wrong, message in ((path, "must have 30522 lines"), (broken, "is another vocabulary"), (tmp_path / "x", "is missing")):
        with pytest.raises(UserError, match=message):
            wordpiece.blip({"vocab.txt": wrong})(["a"], 35)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"\[rewards\]"):
        wordpiece.blip({"vocab.txt": path}, LINES)(["a"], 35)


def test_the_file_comes_back_bit_for_bit(model, params):
    """But for BLIP's projections, which no score uses."""
    state, back = _state(), to_torch(model, params)
    left = {key for key in state if key.split(".")[1] in ("vision_proj", "text_proj")} | {
        "blip.text_encoder.embeddings.position_ids"
    }
    assert len(left) == 5 and set(back) == set(state) - left
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)
    with pytest.raises(ValueError, match="choose original"):
        to_torch(model, params, style="openclip")
    missing = {key: value for key, value in state.items() if "layer.1.crossattention.self.key.bias" not in key}
    missing["mlp.layers.7.weight"] = np.zeros((1, 15), np.float32)
    with pytest.raises(
        UserError, match=r"missing: .*layer\.1\.crossattention\.self\.key\.bias; wrong: mlp\.layers\.7\.weight \(is"
    ):
        from_torch(model, missing)


def test_what_does_not_fit_is_one_line(model, params):
    for images, ids, message in (
        (IMAGES[..., :2], IDS, "takes images"),
        (IMAGES, None, "a row of at most 40 tokens an image"),
        (IMAGES, IDS[0, :4], "a row of at most 40 tokens an image"),
        (IMAGES[:3], IDS, "3 images, .* rows"),
        (IMAGES, jnp.tile(IDS, (1, 2)), r"at most 40 tokens an image.*\(4, 70\)"),
    ):
        for apply in (model.score, model.as_published):
            with pytest.raises((UserError, ValueError), match=message):
                apply(params, images, ids)
    for options, message in (
        ({"vision": {"heads": 3}}, r"vision: unknown fields \['heads'\]"),
        ({"text": {"dtype": "float16"}}, "text: dtype must be float32 or bfloat16"),
        ({"vision": {"resolution": 30}}, "no multiple of the patch size"),
        ({"text": {"length": 34}}, "less than a prompt's 35 tokens"),
        ({"text": {"num_heads": 5}}, "width 24 is no multiple of num_heads 5"),
        ({"head": (8, 1)}, "five numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            _create(**options)


def test_published_size():
    """Learned numbers of the published model that a score uses, counted in its authors' network."""
    scanned = image_reward.create(vision={"scan_layers": True}, text={"scan_layers": True})
    shapes = jax.eval_shape(scanned.init, jax.random.key(0))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 446_206_689


def test_convert_and_export(tmp_path, capsys):
    """The command line: weights and vocabulary in, a folder that reads prompts, and the weights back."""
    pytest.importorskip("tokenizers")
    weights, vocabulary, folder = tmp_path / "ImageReward.safetensors", tmp_path / "vocab.txt", tmp_path / "model"
    tokens = [*small.VOCABULARY, *(f"[unused{i}]" for i in range(30522 - LINES))]
    vocabulary.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    table = "blip.text_encoder.embeddings.word_embeddings.weight"
    state = _state() | {table: small.draw(table, (30524, small.TEXT["width"]))}
    torch_files.write(weights, state)
    given = str(small.VISION).replace("'", '"'), str(small.TEXT | {"vocabulary": 30524}).replace("'", '"')
    command = ["convert", "--model=imagereward", f"--from={weights}", f"--set=vision={given[0]}", f"--set=text={given[1]}"]
    assert cli.main([*command, f"--to={folder}"]) == 2 and not folder.exists()
    assert "vocab.txt" in capsys.readouterr().err
    assert cli.main([*command, f"--to={folder}", f"--from={vocabulary}"]) == 0
    assert cli.main(["export", f"--from={folder}", f"--to={tmp_path}/back.safetensors"]) == 0
    vocabulary.unlink()
    model, params = model_directory.load(folder)
    assert model.fields == _create(text={"vocabulary": 30524}).fields
    np.testing.assert_array_equal(
        np.where(GOLDEN["ids"] < LINES, model.text(params, small.PROMPTS), GOLDEN["ids"]), GOLDEN["ids"]
    )
    back = torch_files.read(tmp_path / "back.safetensors")
    for key, value in to_torch(model, params).items():
        np.testing.assert_array_equal(back[key], state[key], err_msg=key)
        np.testing.assert_array_equal(value, state[key], err_msg=key)
