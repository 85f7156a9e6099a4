"""Features in files: the same as computed, mirrored too, resumable, and refused where they were made otherwise."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxdrl import cli, data
from jaxdrl.data import feature_cache
from jaxdrl.data.sources import InMemory
from jaxdrl.errors import UserError

ROOT = Path(__file__).parent.parent.parent
SPEC = {"network": "sums", "size": 4}


@pytest.fixture
def source():
    rng = np.random.default_rng(0)
    return InMemory(rng.integers(0, 256, (23, 4, 6, 1), np.uint8), np.arange(23) % 3)


def _features(images):
    """Not the same for a mirrored image."""
    return np.stack([images[:, :, :3].sum(axis=(1, 2, 3)), images[:, :, 3:].sum(axis=(1, 2, 3))], axis=1)


def test_what_is_read_is_what_was_computed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD", 10)
    cache = feature_cache.write(tmp_path / "c", source, _features, SPEC, mirrored=True, batch_size=4)
    assert (cache.examples, cache.dim) == (23, 2) and len(list((tmp_path / "c").glob("*.array_record"))) == 3
    index, turned = np.array([22, 3, 17, 3]), np.array([False, True, True, False])
    images = data.to_float(source.images)
    expected = np.stack(
        [_features((images[i : i + 1, :, ::-1]) if t else images[i : i + 1])[0] for i, t in zip(index, turned, strict=True)]
    )
    np.testing.assert_allclose(cache.read(index, turned), expected, rtol=1e-6)
    np.testing.assert_array_equal(cache.read(index), cache.read(index, np.zeros(4, bool)))
    plain = feature_cache.write(tmp_path / "p", source, _features, SPEC, mirrored=False)
    with pytest.raises(ValueError, match="mirrored"):
        plain.read(index, turned)


def test_a_cut_computation_goes_on_and_another_description_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD", 10)
    calls = []

    def counted(images):
        calls.append(len(images))
        if sum(calls) > 12:
            raise KeyboardInterrupt
        return _features(images)

    with pytest.raises(KeyboardInterrupt):
        feature_cache.write(tmp_path, source, counted, SPEC, mirrored=False, batch_size=5)
    assert not list(tmp_path.glob("*.part")) and len(list(tmp_path.glob("*.array_record"))) == 1
    with pytest.raises(UserError, match="no finished"):
        feature_cache.open_cache(tmp_path, SPEC, mirrored=False)
    seen = []
    cache = feature_cache.write(
        tmp_path, source, lambda images: seen.append(len(images)) or _features(images), SPEC, mirrored=False, batch_size=5
    )
    assert sum(seen) == 13
    np.testing.assert_allclose(cache.read(np.arange(23)), _features(data.to_float(source.images)), rtol=1e-6)
    feature_cache.write(tmp_path, source, counted, SPEC, mirrored=False)  # nothing is computed again
    with pytest.raises(UserError, match=r"differ in size \(4 and 5\); delete"):
        feature_cache.open_cache(tmp_path, SPEC | {"size": 5}, mirrored=False)


def test_plans_are_what_batches_read(source):
    batches = data.batches(source, batch_size=4, seed=3, horizontal_flip=True)
    plan, read = batches.plan(2, 3), batches.stacked(2, 3)
    np.testing.assert_array_equal(plan["index"], read["index"])
    np.testing.assert_array_equal(plan["label"], read["label"])
    images = data.to_float(source.images)[plan["index"]]
    images[plan["turned"]] = images[plan["turned"]][:, :, ::-1]
    np.testing.assert_array_equal(images, read["image"])
    assert plan["turned"].any() and not plan["turned"].all()


@pytest.mark.slow
def test_the_discriminator_is_the_same_with_and_without(tmp_path, capsys):
    """The held-out loss agrees."""
    results = []
    for number, cached in enumerate((False, True)):
        workdir = tmp_path / str(number)
        command = ["discriminator", f"--config={ROOT}/configs/drl_cifar10.py:tiny", f"--workdir={workdir}"]
        command += [f"--config.data.directory={tmp_path / 'data'}", f"--config.discriminator.cache_features={cached}"]
        command += [
            "--config.discriminator.r1=0.0"
        ]  # all else as the recipe has it, so that what is compiled serves its own test too
        assert cli.main(command) == 0, capsys.readouterr().err
        results.append(json.loads((workdir / "discriminator" / "result.json").read_text()))
    assert len(list((tmp_path / "data" / ".features").iterdir())) == 1
    assert results[0]["validation_loss"] == pytest.approx(results[1]["validation_loss"], rel=1e-4)
    assert cli.main([*command, "--config.discriminator.r1=0.1", f"--workdir={tmp_path / 'r1'}"]) == 2
    assert "R1 needs the images" in capsys.readouterr().err
