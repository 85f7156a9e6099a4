"""Published reward models beside their authors' code (outputs kept in `tests/golden/preference.npz`), on weights drawn at random."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdrl import rewards
from jaxdrl.errors import UserError
from jaxdrl.rewards import preference
from jaxdrl.rewards.preference import fitting, tokens
from jaxdrl.rewards.preference.model import checked
from jaxdrl.weights import from_torch, to_torch
from tests.golden import preference_cases as cases

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "preference.npz")
TEXTUAL = ("pickscore", "hpsv2.1", "clipscore")


def state_of(name):
    """The files' content: drawn by name, as `make_preference.py` drew it."""
    lines = [line.split(":") for line in GOLDEN[f"{name}/names"]]
    return {key: cases.draw(key, tuple(int(part) for part in shape.split(",") if part)) for key, shape in lines}


def write_vocabulary(folder):
    """The small vocabulary in its published forms: names -> paths."""
    words = tokens._openai_vocabulary([tuple(line.split()) for line in cases.MERGES])
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *cases.MERGES, ""]))
    (folder / tokens.OPENAI_FILE).write_bytes(gzip.compress("\n".join(["version", *cases.MERGES]).encode()))
    pair = {name: folder / name for name in ("vocab.json", "merges.txt")}
    tokens._read(pair).save(str(folder / "tokenizer.json"))
    return [pair, {"tokenizer.json": folder / "tokenizer.json"}, {tokens.OPENAI_FILE: folder / tokens.OPENAI_FILE}]


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def models(vocabularies):
    """name -> model, parameters from the files, rows of text (or None)."""
    found = {}
    with jax.default_matmul_precision("highest"):
        for name, fields in cases.FIELDS.items():
            published = preference.PUBLISHED[name]
            tokenizer = {"tokenizer": published.tokenizer(vocabularies[0])} if published.tokenizer else {}
            model = preference.create(name, **fields, **tokenizer)
            params = jax.tree.map(jnp.asarray, from_torch(model, state_of(name)))
            found[name] = model, params, model.text(params, cases.PROMPTS) if model.text else None
    return found


def _close(found, expected, bound=1e-5):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() / np.abs(expected).max() < bound


# In the two that are slow, the resize alone is another.
SLOW = ("clipscore", "aesthetic-v2")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in cases.FIELDS])
def test_scores_and_image_gradients_are_the_authors(name, models):
    """Of floats and of bytes, on images that are not square; the gradient weighs the two images differently."""
    model, params, rows = models[name]
    rows = None if rows is None else rows[:2]

    @jax.jit
    def both(params, images):
        scores, pullback = jax.vjp(lambda images: model.score(params, images, rows), images)
        return scores, pullback(jnp.array([1.0, -0.7]))[0], model.as_published(params, images, rows)

    scores, gradient, published = both(params, jnp.asarray(cases.PICTURES))
    _close(scores, GOLDEN[f"{name}/score"])
    _close(gradient, GOLDEN[f"{name}/gradient"], 2e-5)
    _close(published, GOLDEN[f"{name}/published"])
    assert not np.allclose(published, scores, rtol=1e-5)


@pytest.mark.parametrize("name", TEXTUAL[:2])
def test_text_features_are_the_authors(name, models):
    _, _, rows = models[name]
    _close(rows, GOLDEN[f"{name}/text"])
    np.testing.assert_allclose(jnp.linalg.norm(rows, axis=1), 1, rtol=1e-6)


def test_tokens_are_the_authors(vocabularies):
    """Every form of the vocabulary; up to the first end of the text, behind which transformers repeats it and open_clip writes 0."""
    for files in vocabularies:
        for name, clean in (("pickscore", {}), ("hpsv2.1", {"clean": tokens.clean_html})):
            found, expected = tokens.clip(files, **clean)(cases.PROMPTS, cases.LENGTH), GOLDEN[f"{name}/ids"]
            for ours, theirs in zip(found, expected, strict=True):
                end = int(np.argmax(theirs)) + 1
                np.testing.assert_array_equal(ours[:end], theirs[:end])
                assert not ours[end:].any() and ours.max() == cases.VOCABULARY - 1
    assert (GOLDEN["pickscore/ids"][0, -1], GOLDEN["hpsv2.1/ids"][0, -1]) == (cases.VOCABULARY - 1, 0)
    narrow = tokens.clip(vocabularies[0])([cases.PROMPTS[0]], cases.LENGTH)
    assert narrow.shape == (1, 7) and narrow.dtype == np.int32


def test_what_stands_behind_the_end_of_a_text_is_not_seen(vocabularies):
    """Ids padded as transformers pads them give the same rows as ours."""
    theirs = GOLDEN["pickscore/ids"]
    model = preference.create("pickscore", **cases.FIELDS["pickscore"], tokenizer=lambda prompts, length: theirs)
    params = jax.tree.map(jnp.asarray, from_torch(model, state_of("pickscore")))
    _close(model.text(params, cases.PROMPTS), GOLDEN["pickscore/text"])


def test_cleaning_of_texts():
    assert tokens.clean_html("a &amp;lt; b") == "a < b"
    pytest.importorskip("ftfy")
    assert tokens.clean_html("an astronaut’s caf\u0065\u0301") == "an astronaut's café"


@pytest.mark.parametrize(
    ("source", "kernel"), [((40, 57), "bicubic"), ((7, 300), "bicubic"), ((29, 33), "bicubic"), ((29, 31), "bilinear")]
)
def test_bytes_are_resized_as_pil_does_it(source, kernel):
    pixels = np.random.default_rng(sum(source)).integers(0, 256, (2, *source, 3)).astype(np.uint8)
    pixels[1] = np.where(pixels[1] > 127, 255, 0)  # overshoots both ends
    found = fitting.resize_bytes(jnp.asarray(pixels, jnp.int32), (28, 33), kernel)
    for ours, image in zip(found, pixels, strict=True):
        how = getattr(Image.Resampling, kernel.upper())
        theirs = Image.fromarray(image).resize((33, source[0]), how).resize((33, 28), how)  # rows first, in every Pillow
        np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_fitting_of_images():
    """Nothing happens at the right size; tall images are cut above, or padded with black at the sides; square ones are neither."""
    from jaxdrl.encoders.preprocess import Preprocess

    how = Preprocess(size=(8, 8))
    image = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    assert fitting.fit(image, how, "pad") is image
    tall = jnp.ones((1, 32, 16, 3)) * jnp.linspace(-1, 1, 32)[:, None, None]
    padded = fitting.fit(tall, how, "pad")
    np.testing.assert_allclose(padded[0, :, [0, 1, 6, 7]], -1)
    np.testing.assert_allclose(padded[0, :, 2], padded[0, :, 5], atol=1e-6)
    assert float(padded[0, 7, 3, 0]) > 0.8
    # An odd padding: its smaller half is on the left, as in ResizeMaxSize (pad_w // 2).
    assert fitting._places(jnp.ones((1, 32, 20, 3)), how, "pad") == [(32, 8, 0, 8), (20, 5, -1, 8)]
    cut = fitting.fit(tall, how, "crop")
    assert np.abs(np.asarray(cut)[0, :, 0, 0]).max() < 0.5 and cut.shape == (1, 8, 8, 3)
    square = jnp.asarray(cases.PICTURES[:, :40, :40])
    for mode in ("crop-rounded", "pad", "squash"):
        assert [place[1:] for place in fitting._places(square, how, mode)] == [(8, 0, 8)] * 2
    with pytest.raises(ValueError, match="padded"):
        fitting.published(tall, how, "pad", True)
    with pytest.raises(ValueError, match="square networks"):
        fitting.fit(tall, Preprocess(size=(8, 4)), "crop")
    with pytest.raises(ValueError, match="bicubic or bilinear"):
        fitting.resize_bytes(jnp.zeros((1, 9, 9, 3), jnp.int32), (8, 8), "lanczos")


@pytest.mark.parametrize("name", cases.FIELDS)
def test_files_come_back(name, models):
    """Bit for bit in the authors' layout, without what the model does not use; in the other layout, parameter for parameter."""
    model, params, _ = models[name]
    state, back = state_of(name), to_torch(model, params)
    theirs = {key.replace("scoring_head.", "layers.scoring_head."): value for key, value in state.items()}
    for key, value in back.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)
        assert value.shape == theirs[key].shape
    assert all(key.startswith(("text_", "logit_scale")) for key in set(theirs) - set(back))
    assert name not in TEXTUAL or set(theirs) == set(back)
    for style in ("transformers", "openclip") if name in TEXTUAL else ():
        other = to_torch(model, params, style=style)
        jax.tree.map(np.testing.assert_array_equal, from_torch(model, other), params)
    with pytest.raises(ValueError, match="choose original"):
        to_torch(model, params, style="diffusers")


def test_scanned_layers_and_bad_weights(models):
    model, params, _ = models["hpsv2.1"]
    fields = {key: value | {"scan_layers": True} for key, value in cases.FIELDS["hpsv2.1"].items()}
    scanned, state = preference.create("hpsv2.1", **fields), state_of("hpsv2.1")
    stacked = from_torch(scanned, state)
    assert stacked["image"]["blocks_0_2"]["attn"]["qkv"]["kernel"].shape == (2, 32, 96)
    jax.tree.map(np.testing.assert_array_equal, to_torch(scanned, stacked), to_torch(model, params))
    short = {key: value for key, value in state.items() if key != "visual.proj"}
    with pytest.raises(UserError, match=r"do not fit hpsv2\.1: missing: visual\.proj$"):
        from_torch(model, short)
    wrong = state | {"ln_final.bias": np.zeros(3, np.float32), "extra": np.zeros(1, np.float32)}
    with pytest.raises(UserError, match=r"unexpected: extra; wrong: ln_final\.bias \(is \(3,\), must be \(24,\)\)"):
        from_torch(model, wrong)
    encoder = {key: value for key, value in state_of("aesthetic-v2").items() if not key.startswith("layers")}
    with pytest.raises(UserError, match=r"missing: layers\.0\.bias, layers\.0\.weight"):
        from_torch(models["aesthetic-v2"][0], encoder)


@pytest.mark.slow
def test_scanned_layers_score_the_same(models):
    _, _, rows = models["hpsv2.1"]
    fields = {key: value | {"scan_layers": True} for key, value in cases.FIELDS["hpsv2.1"].items()}
    scanned = preference.create("hpsv2.1", **fields)
    params = from_torch(scanned, state_of("hpsv2.1"))
    _close(jax.jit(scanned.score)(params, jnp.asarray(cases.PICTURES), rows[:2]), GOLDEN["hpsv2.1/score"])


def _plain(name, reads):
    """A model in closed form: the mean of the image, times the parameter and the row of text."""
    score = lambda params, images, rows: params * images.mean(axis=(1, 2, 3)) * (1.0 if rows is None else rows["row"])  # noqa: E731
    double = lambda params, images, rows: 2 * score(params, images, rows)  # noqa: E731
    text = (lambda params, prompts: {"row": jnp.arange(1.0, 4.0)}) if reads else None
    return preference.RewardModel(name=name, fields=(), init=jnp.zeros, text=text, score=score, as_published=double)


def test_rewards_by_name_look_rows_up_by_class():
    images, labels = jnp.asarray(cases.PICTURES), np.array([2, 0], np.int32)
    model, quiet, params = _plain("pickscore", True), _plain("aesthetic-v2", False), jnp.float32(26)
    rows, means = model.text(params, ["a", "b", "c"]), cases.PICTURES.mean(axis=(1, 2, 3))
    chosen = rewards.create("pickscore", model=model, params=params, text=rows, scale=1 / 26)
    np.testing.assert_allclose(chosen(images, labels), means * [3, 1], rtol=1e-4)
    found = np.asarray(chosen(images, np.array([3, 1], np.int32)))  # 3 is the null class
    assert np.isnan(found[0]) and found[1] == pytest.approx(2 * means[1], rel=1e-4)
    through = rewards.create("pickscore", model=model, params=params, text=rows, published=True)
    np.testing.assert_allclose(through(images, labels), 52 * means * [3, 1], rtol=1e-4)
    alone = rewards.create("aesthetic-v2", model=quiet, params=params)
    np.testing.assert_allclose(alone(images, labels), 26 * means, rtol=1e-4)
    gradient = jax.grad(lambda images: jnp.nansum(chosen(images, np.array([3, 1], np.int32))))(images)
    expected = np.array([0, 2]).reshape(2, 1, 1, 1) / images[0].size
    np.testing.assert_allclose(gradient, np.broadcast_to(expected, images.shape), rtol=1e-5)
    with pytest.raises(UserError, match="reads text: give text="):
        rewards.create("pickscore", model=model, params=params)
    with pytest.raises(UserError, match="reads no text"):
        rewards.create("aesthetic-v2", model=quiet, params=params, text=rows)
    with pytest.raises(UserError, match=r"that was given is aesthetic-v2$"):
        rewards.create("aesthetic-v2.5", model=quiet, params=params)
    with pytest.raises(UserError, match=r"missing fields \['model', 'params'\]"):
        rewards.create("hpsv2")


def test_what_models_are_given():
    """Grey images have their channel repeated; a row of text an image."""
    images = jnp.asarray(cases.PICTURES)
    grey = checked("x", images[..., :1])
    assert grey.shape == images.shape and (grey == images[..., :1]).all()
    with pytest.raises(ValueError, match="2 images, \\[3\\] rows"):
        checked("x", images, {"row": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="1 or 3"):
        checked("x", images[..., :2])


def test_wrong_texts_and_vocabularies(models, vocabularies, tmp_path, monkeypatch):
    model, params, _ = models["pickscore"]
    with pytest.raises(ValueError, match="list of at least one text"):
        model.text(params, "a photo of a cat")
    with pytest.raises(UserError, match="no vocabulary: convert it again"):
        preference.create("pickscore", **cases.FIELDS["pickscore"]).text(params, ["a"])
    small = preference.create(
        "pickscore", vision=cases.VISION, text=cases.TEXT | {"vocabulary": 300}, tokenizer=tokens.clip(vocabularies[0])
    )
    few = params | {"text": params["text"] | {"tokens": params["text"]["tokens"][:300]}}
    with pytest.raises(UserError, match="has the token 520, the network knows 300"):
        small.text(few, ["a"])
    bad = tmp_path / "tokenizer.json"
    bad.write_text("{}")
    with pytest.raises(UserError, match="cannot be read as CLIP's vocabulary"):
        tokens.clip({"tokenizer.json": bad})(["a"], 9)
    words = json.loads(vocabularies[0]["vocab.json"].read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(words | {"more": len(words)}))
    with pytest.raises(UserError, match="its last token must be"):
        tokens.clip({"vocab.json": tmp_path / "vocab.json", "merges.txt": vocabularies[0]["merges.txt"]})(["a"], 9)
    with pytest.raises(UserError, match=r"got vocab\.json"):
        tokens.clip({"vocab.json": tmp_path / "vocab.json"})(["a"], 9)
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[rewards\]'"):
        tokens.clean_html("é")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"need tokenizers \(pip install"):
        tokens.clip(vocabularies[0])(["a"], 9)


def test_fields():
    with pytest.raises(ValueError, match="is unknown; choose one of pickscore"):
        preference.create("pickscore-v2")
    with pytest.raises(ValueError, match="'heads'"):
        preference.create("pickscore", heads=3)
    with pytest.raises(ValueError, match="projection_dim differ: 20 and 8"):
        preference.create("clipscore", vision=cases.VISION, text=cases.TEXT | {"projection_dim": 8})
    with pytest.raises(ValueError, match="five numbers"):
        preference.create("aesthetic-v2", vision=cases.VISION, head=(8, 1))
    model = preference.create("aesthetic-v2.5", vision=cases.SIGLIP, head=[8, 8, 8, 8, 1])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert shapes["head"]["layer_0"]["kernel"].shape == (32, 8) and dict(model.fields)["head"] == (8, 8, 8, 8, 1)
    textual = preference.create("hpsv2", vision=cases.VISION, text=cases.TEXT)
    scale = jax.jit(lambda key: textual.init(key)["logit_scale"])(jax.random.key(0))
    assert float(scale) == pytest.approx(np.log(1 / 0.07))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("pickscore", 986.1), ("hpsv2", 986.1), ("clipscore", 427.6), ("aesthetic-v2", 304.9), ("aesthetic-v2.5", 429.6)],
)
def test_published_sizes(name, millions):
    """Learned numbers in millions; the text tower counts where it is read."""
    towers = {"vision": {"scan_layers": True}} | ({"text": {"scan_layers": True}} if name in (*TEXTUAL, "hpsv2") else {})
    shapes = jax.eval_shape(preference.create(name, **towers).init, jax.random.key(0))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.06)
