"""Data sets that TFDS prepared: found, split, cropped; what is missing is named."""

import numpy as np
import pytest

from jaxdrl import data
from jaxdrl.data import external
from jaxdrl.errors import UserError
from tests.data.settings import settings, write_pictures


def pictures(**changes):
    return settings(**{"name": "pictures", "image_shape": (8, 8, 3), "num_classes": 3, **changes})


@pytest.fixture(autouse=True)
def empty_default_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_splits_of_a_set_like_cifar10(in_memory, tmp_path):
    builder = write_pictures(tmp_path, sizes={"train": 50, "test": 12})
    chosen = pictures(in_memory=in_memory)
    summary = data.prepare(chosen, tmp_path)
    assert summary.sizes == {"train": 40, "validation": 10, "test": 12}
    assert (summary.class_names, summary.image_shape) == (("cat", "dog", "emu"), (8, 8, 3))
    raw = {split: builder.as_data_source(split=split) for split in ("train", "test")}
    index = {split: external.cut(50, 0, 0.2, split) for split in ("train", "validation")}
    assert sorted(np.concatenate(list(index.values()))) == list(range(50))
    for split, part in (("train", index["train"]), ("validation", index["validation"]), ("test", np.arange(12))):
        source = data.open_split(chosen, tmp_path, split)
        origin = raw["test" if split == "test" else "train"]
        for number in (0, 3, len(source) - 1):
            expected, found = origin[int(part[number])], source[number]
            np.testing.assert_array_equal(found["image"], expected["image"])
            assert found["label"] == expected["label"]
        assert np.array_equal(source.read_labels(), [origin[int(i)]["label"] for i in part])
    assert not np.array_equal(index["train"], external.cut(50, 1, 0.2, "train"))


def test_withheld_test_labels_as_imagenet_has_them(tmp_path):
    write_pictures(tmp_path, sizes={"train": 20, "validation": 9, "test": 7}, labelled_test=False, image_shape=(None, None, 3))
    chosen = pictures(image_shape=(12, 12, 3), in_memory=False)
    assert data.prepare(chosen, tmp_path).sizes == {"train": 16, "validation": 4, "test": 9}
    batch = data.batches(data.open_split(chosen, tmp_path, "train"), batch_size=6, seed=0, horizontal_flip=True).at(0)
    assert batch["image"].shape == (6, 12, 12, 3) and np.bincount(batch["label"]).tolist() == [2, 2, 2]


def test_default_folder_of_tfds(tmp_path, monkeypatch):
    write_pictures(tmp_path / "home", sizes={"train": 10, "test": 5})
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "home"))
    assert data.prepare(pictures(), tmp_path / "workdir").sizes == {"train": 8, "validation": 2, "test": 5}


def test_a_set_that_is_not_prepared(tmp_path):
    with pytest.raises(UserError, match=r"config.data.name='cifar10'.*pip install -e '.\[tfds\]'.*tfds build cifar10"):
        data.prepare(settings("cifar10", image_shape=(32, 32, 3)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10}, "num_classes is 10; pictures has 3"),
        ({"image_shape": (8, 4, 3)}, "image_shape"),
        ({"image_shape": (8, 8, 1)}, "image_shape"),
        ({"validation_fraction": 1.5}, "validation_fraction"),
    ],
)
def test_sets_that_do_not_fit(changes, message, tmp_path):
    write_pictures(tmp_path, sizes={"train": 10, "test": 5})
    with pytest.raises(UserError, match=message):
        data.prepare(pictures(**changes), tmp_path)


def test_a_set_in_another_format(tmp_path):
    path = tmp_path / "pictures/3.0.0/dataset_info.json"
    write_pictures(tmp_path, sizes={"train": 10, "test": 5})
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"not ArrayRecord.*--file_format=array_record"):
        data.prepare(pictures(), tmp_path)


def test_an_impossible_name(tmp_path):
    with pytest.raises(UserError, match="neither digits, patches nor synthetic"):
        data.prepare(pictures(name="my set!"), tmp_path)


def test_missing_parts(tmp_path):
    write_pictures(tmp_path, sizes={"train": 10})
    with pytest.raises(UserError, match="neither a labelled test nor"):
        data.prepare(pictures(), tmp_path)
