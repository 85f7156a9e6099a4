"""Digits, patches and generated data: disjoint splits, whole or absent on disk, the bytes that were put in."""

import errno
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdrl import data
from jaxdrl.data import digits, embedded, patches
from jaxdrl.errors import UserError
from tests.data.settings import settings

SPLITS = ("train", "validation", "test")
TINY = {
    "digits": settings(),
    "patches": settings("patches"),
    "synthetic": settings("synthetic", image_shape=(32, 32, 3), num_classes=4),
}


@pytest.mark.parametrize("name", TINY)
def test_bytes_come_back(name, tmp_path):
    wanted = embedded.find(TINY[name])
    summary = data.prepare(TINY[name], tmp_path)
    made = wanted.make()
    for split in SPLITS:
        images, labels = data.load_arrays(data.open_split(TINY[name], tmp_path, split))
        np.testing.assert_array_equal(images, made[split][0])
        np.testing.assert_array_equal(labels, made[split][1])
        assert summary.sizes[split] == len(labels) and images.shape[1:] == summary.image_shape
        assert np.unique(labels).tolist() == list(range(summary.num_classes))
    assert len(summary.class_names) == summary.num_classes


def test_an_example_is_what_the_contract_says(tmp_path):
    data.prepare(settings(), tmp_path)
    for in_memory in (True, False):
        example = data.open_split(settings(in_memory=in_memory), tmp_path, "test")[3]
        assert example.keys() == {"image", "label"} and isinstance(example["label"], int)
        assert example["image"].shape == (8, 8, 1) and example["image"].dtype == np.uint8


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_halved_without_overlap(seed):
    from sklearn.datasets import load_digits

    labels = load_digits().target
    parts = digits.indices(labels, seed, 0.2)
    everything = np.concatenate(list(parts.values()))
    assert np.array_equal(np.sort(everything), np.arange(1797))
    assert len(parts["test"]) == 899 and abs(len(parts["validation"]) - 0.2 * 898) < 5
    totals, tested = np.bincount(labels), np.bincount(labels[parts["test"]])
    assert np.abs(totals / 2 - tested).max() <= 0.5


def test_digit_levels():
    from sklearn.datasets import load_digits

    images, _ = digits.splits(0, 0.2)["train"]
    index = digits.indices(load_digits().target, 0, 0.2)["train"]
    np.testing.assert_allclose(images[..., 0] / 255 * 16, load_digits().images[index], atol=16 / 255 / 2)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (32, 32)])
def test_pixels_of_different_splits_never_overlap(size):
    for width in (192, 256, 300):
        covered = {}
        for split in SPLITS:
            corners = patches.origins((192, width), split, size, 3000, seed=0, label=2)
            mask = np.zeros((192, width), bool)
            for row, column in corners:
                mask[row : row + size[0], column : column + size[1]] = True
            assert corners.min() >= 0 and mask.any() and (corners + size <= (192, width)).all()
            # Wholly inside a strip.
            strip = {8: 16, 16: 32, 32: 32}[size[1]]
            assert (corners[:, 1] // strip == (corners[:, 1] + size[1] - 1) // strip).all()
            covered[split] = mask
        assert sum(mask.astype(int) for mask in covered.values()).max() == 1


def test_crops_are_cut_where_their_corners_say():
    pictures = [patches._resized(picture, 1) for picture in patches._pictures()]
    images, labels = patches.splits(3, 5, (8, 8, 1))["test"]
    for label, picture in enumerate(pictures):
        assert min(picture.shape[:2]) == 192
        corners = patches.origins(picture.shape[:2], "test", (8, 8), 5, seed=3, label=label)
        expected = np.stack([picture[row : row + 8, column : column + 8] for row, column in corners])
        np.testing.assert_array_equal(images[labels == label], expected)


def test_no_corner_twice_while_there_are_others():
    corners = patches.origins((192, 192), "validation", (32, 32), 161, seed=0, label=0)
    assert len(np.unique(corners, axis=0)) == 161
    again = patches.origins((192, 192), "validation", (32, 32), 500, seed=0, label=0)
    counts = np.unique(again, axis=0, return_counts=True)[1]
    assert len(counts) == 161 and counts.max() - counts.min() <= 1


def test_split_seed_moves_everything():
    for first, second in ((settings(), settings(split_seed=1)), (settings("patches"), settings("patches", split_seed=1))):
        made = [embedded.find(which).make() for which in (first, second)]
        assert not any(np.array_equal(made[0][split][0], made[1][split][0]) for split in SPLITS)


def test_colour_patches():
    images, labels = patches.splits(0, 4, (16, 16, 3))["train"]
    assert images.shape == (40, 16, 16, 3)
    spread = np.ptp(images.astype(int), axis=-1).max((1, 2))
    assert (spread[labels == patches.CLASS_NAMES.index("brick")] == 0).all()
    assert (spread[labels == patches.CLASS_NAMES.index("tissue")] > 0).all()


def test_licences_travel_with_the_data(tmp_path):
    data.prepare(settings("patches"), tmp_path)
    licence = (embedded.find(settings("patches")).folder(tmp_path) / "LICENSE").read_text()
    assert "CC BY 2.0, danielbuechele" in licence and all(name in licence for name in patches.CLASS_NAMES)


def test_preparing_again_changes_nothing(tmp_path):
    def state():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    first = data.prepare(settings(), tmp_path)
    before = state()
    assert data.prepare(settings(), tmp_path) == first and state() == before


def test_two_settings_share_a_directory(tmp_path):
    for seed in (0, 1):
        data.prepare(settings(split_seed=seed), tmp_path)
    images = [data.load_arrays(data.open_split(settings(split_seed=seed), tmp_path, "test"))[0] for seed in (0, 1)]
    assert not np.array_equal(*images)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    from jaxdrl.data import builders

    written = []

    def fromarray(image):
        written.append(image)
        if len(written) == 800:
            raise OSError(errno.ENOSPC, "No space left on device")
        return Image.fromarray(image)

    with monkeypatch.context() as patched:
        patched.setattr(builders, "Image", types.SimpleNamespace(fromarray=fromarray))
        with pytest.raises(UserError, match=r"No space left on device.*make room"):
            data.prepare(settings(), tmp_path)
    assert len(written) == 800 and not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(UserError, match="holds no prepared digits"):
        data.open_split(settings(), tmp_path, "train")
    assert data.prepare(settings(), tmp_path).sizes["test"] == 899


SCRIPT = """
import sys
from pathlib import Path
from jaxdrl import data
from tests.data.settings import settings
data.prepare(settings("patches", examples_per_class=1000), Path(sys.argv[1]))
"""


def test_kill_at_any_moment(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    target = embedded.find(settings("patches", examples_per_class=1000)).folder(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, cwd=root)
    deadline = time.monotonic() + 60
    # Once records are being written, nothing may be taken for a data set.
    while not list(tmp_path.rglob("*.array_record*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not target.exists()
    assert [path for path in target.parent.iterdir() if path.name.startswith(".preparing-")]
    summary = data.prepare(settings("patches", examples_per_class=1000), tmp_path)
    assert summary.sizes == {"train": 10_000, "validation": 2_000, "test": 10_000}
    # What the killed process left is gone.
    assert [path.name for path in target.parent.iterdir()] == [embedded.VERSION]


def test_a_faster_process_wins(tmp_path):
    wanted = embedded.find(settings())

    def overtaken():
        embedded.write(wanted, tmp_path)
        return wanted.make()

    folder = embedded.write(embedded.EmbeddedSet(**{**vars(wanted), "make": overtaken}), tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == [embedded.VERSION]
    assert data.prepare(settings(), tmp_path).sizes["test"] == 899


def test_damage_is_named(tmp_path):
    data.prepare(settings(), tmp_path)
    folder = embedded.find(settings()).folder(tmp_path)
    record = next(folder.glob("*train*"))
    record.write_bytes(record.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"is damaged .*delete the folder"):
        data.open_split(settings(), tmp_path, "train")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"is damaged .*delete the folder"):
        data.open_split(settings(), tmp_path, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (16, 16, 1)}, "image_shape"),
        ({"image_shape": (8, 8)}, "image_shape"),
        ({"num_classes": 9}, "num_classes"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"split_seed": -1}, "split_seed"),
        ({"name": "patches", "image_shape": (8, 33, 1)}, "at most 192 x 32"),
        ({"name": "patches", "image_shape": (8, 8, 2)}, "image_shape"),
        ({"name": "patches", "examples_per_class": 0}, "examples_per_class"),
        ({"name": "patches", "num_classes": 11}, "num_classes"),
        ({"name": "synthetic", "num_classes": 0}, "num_classes"),
    ],
)
def test_bad_settings_are_named(changes, message, tmp_path):
    with pytest.raises(UserError, match=f"config.data.*{message}"):
        data.prepare(settings(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_split(tmp_path):
    with pytest.raises(UserError, match="train, validation, test"):
        data.open_split(settings(), tmp_path, "eval")


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        data.prepare(settings(), tmp_path / "file")


def test_import_needs_nothing_optional():
    code = (
        "import sys, jaxdrl.data; "
        "print([name for name in ('tensorflow', 'tensorflow_datasets', 'grain', 'sklearn', 'skimage') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
