"""Some classes of a data set: the right examples under the right labels, split as said, and labels read from the records once."""

import os
import pickle

import ml_collections
import numpy as np
import pytest

from jaxdrl import data
from jaxdrl.data import embedded, external, sources
from jaxdrl.data.images import centre_crop
from jaxdrl.errors import UserError
from tests.data.settings import settings, write_pictures

SPLITS = ("train", "validation", "test")
SIZES = {"train": 52, "validation": 9, "test": 7}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Like ImageNet: of any size, the test labels withheld."""
    place = tmp_path_factory.mktemp("pictures")
    return place, write_pictures(place, sizes=SIZES, labelled_test=False, image_shape=(None, None, 3))


def chosen(*names, **changes):
    return settings(**{"name": "pictures", "image_shape": (12, 12, 3), "classes": names, "num_classes": len(names), **changes})


def moved(pictures, directory):
    """The same set below another folder of labels."""
    (directory / "pictures").symlink_to(pictures[0] / "pictures")
    return directory


def pixels(source):
    """What tells the images apart."""
    return [source[index]["image"].tobytes() for index in range(len(source))]


@pytest.mark.parametrize("in_memory", [True, False])
def test_other_classes_are_left_out_and_labels_follow_the_names(in_memory, pictures):
    wanted = chosen("emu", "cat", in_memory=in_memory)
    summary = data.prepare(wanted, pictures[0])
    raw = {split: list(pictures[1].as_data_source(split)) for split in SPLITS[:2]}
    kept = {split: np.flatnonzero([example["label"] != 1 for example in raw[split]]) for split in raw}
    cut = {part: kept["train"][external.cut(len(kept["train"]), 0, 0.2, part)] for part in SPLITS[:2]}
    index = {**cut, "test": kept["validation"]}
    assert summary == data.DatasetSummary(
        image_shape=(12, 12, 3),
        num_classes=2,
        class_names=("emu", "cat"),
        sizes={split: len(part) for split, part in index.items()},
    )
    assert summary.sizes["validation"] == round(0.2 * len(kept["train"])) == 7
    for split, part in index.items():
        source = data.open_split(wanted, pictures[0], split)
        originals = [raw["validation" if split == "test" else "train"][i] for i in part]
        for found, original in zip([source[n] for n in range(len(source))], originals, strict=True):
            np.testing.assert_array_equal(found["image"], centre_crop(original["image"], 12))
            assert found["label"] == {2: 0, 0: 1}[original["label"]] and isinstance(found["label"], int)
        read = source.read_labels()
        assert read.dtype == np.int32 and read.tolist() == [{2: 0, 0: 1}[original["label"]] for original in originals]
        batches = data.batches(source, batch_size=4, seed=1)
        assert np.array_equal(batches.plan(2, 3)["label"], batches.stacked(2, 3)["label"])
        assert np.bincount(batches.at(0)["label"]).tolist() == [2, 2]
        assert pixels(pickle.loads(pickle.dumps(source))) == pixels(source)  # as worker processes get it


def test_the_order_of_the_names_changes_labels_alone(pictures):
    first, turned, other = (
        data.open_split(chosen(*names, split_seed=seed), pictures[0], "validation")
        for names, seed in ((("emu", "cat"), 0), (("cat", "emu"), 0), (("emu", "cat"), 1))
    )
    assert pixels(first) == pixels(turned) and np.array_equal(first.read_labels(), 1 - turned.read_labels())
    assert pixels(first) != pixels(other)


def test_all_classes_by_name_are_the_set(pictures):
    for split in SPLITS:
        found = data.open_split(chosen("cat", "dog", "emu"), pictures[0], split)
        plain = data.open_split(chosen(num_classes=3), pictures[0], split)
        assert pixels(found) == pixels(plain) and np.array_equal(found.read_labels(), plain.read_labels())


def test_records_are_read_through_once(pictures, tmp_path, monkeypatch):
    """Not again by another split, another choice of classes, or another process."""
    directory, plain, read = moved(pictures, tmp_path), sources._Place.source, []

    class Counted:
        def __init__(self, place):
            self._place, self._source = place, plain(place)

        def __len__(self):
            return len(self._source)

        def __getitem__(self, index):
            read.append((self._place.tfds_split, index))
            return self._source[index]

    monkeypatch.setattr(sources._Place, "source", lambda place: Counted(place))
    data.prepare(chosen("emu", "cat", in_memory=False), directory)
    looked_at = [record for record in read if record[1] > 0]  # the first one says whether there are labels
    assert sorted(looked_at) == sorted((split, index) for split in ("train", "validation") for index in range(1, SIZES[split]))
    read.clear()
    for names in (("emu", "cat"), ("dog",)):
        wanted = chosen(*names, in_memory=False)
        assert data.prepare(wanted, directory).num_classes == len(names)
        for split in SPLITS:
            data.open_split(wanted, directory, split).read_labels()
    assert not [record for record in read if record[1] > 0]


def test_two_processes_may_write_the_labels_at_once(pictures, tmp_path, monkeypatch):
    """The second one begins and ends while the first has its file written and not yet in place."""
    directory, wanted = moved(pictures, tmp_path), chosen("emu", in_memory=False)
    sync, seen = os.fsync, []

    def overtaken(descriptor):
        if not seen:
            seen.append(list((directory / ".labels").glob("[!.]*")))
            seen.append(data.open_split(wanted, directory, "train").read_labels())
        sync(descriptor)

    monkeypatch.setattr("os.fsync", overtaken)
    labels = data.open_split(wanted, directory, "train").read_labels()
    assert seen[0] == [] and np.array_equal(seen[1], labels) and len(labels) == 14
    assert len(list((directory / ".labels").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "names", "changes"),
    [
        ("digits", ("7", "0", "3"), {}),
        ("patches", ("moon", "cat"), {}),
        ("synthetic", ("3", "1"), {"image_shape": (8, 8, 3)}),
    ],
)
def test_embedded_sets(name, names, changes, tmp_path):
    whole = settings(name, **changes, **({"num_classes": 4} if name == "synthetic" else {}))
    known = embedded.find(whole).class_names
    names = names if name != "patches" else (known[4], known[1])
    sizes = data.prepare(whole, tmp_path).sizes
    for in_memory in (True, False):
        wanted = settings(name, **changes, classes=names, num_classes=len(names), in_memory=in_memory)
        summary = data.prepare(wanted, tmp_path)
        assert summary.class_names == names and summary.num_classes == len(names)
        for split in SPLITS:
            images, labels = data.load_arrays(data.open_split(whole, tmp_path, split))
            kept = np.isin(labels, [known.index(each) for each in names])
            found = data.load_arrays(data.open_split(wanted, tmp_path, split))
            np.testing.assert_array_equal(found[0], images[kept])
            assert [names[label] for label in found[1]] == [known[label] for label in labels[kept]]
            assert summary.sizes[split] == kept.sum() < sizes[split]
    assert abs(summary.sizes["validation"] / (summary.sizes["train"] + summary.sizes["validation"]) - 0.2) < 0.04
    assert len(list((tmp_path / name).iterdir())) == 1  # no second copy of the set


@pytest.mark.parametrize(
    ("classes", "changes", "message"),
    [
        (("cat", "emo"), {}, r"config.data.classes: 'emo' is no class of pictures; did you mean 'emu'\? it has cat, dog, emu$"),
        (("cat", "cat"), {}, "config.data.classes names 'cat' twice"),
        ((0, 1), {}, "config.data.classes has 0; give names"),
        (("cat",), {"num_classes": 3}, "config.data.num_classes is 3, but config.data.classes names 1; set it to 1"),
        (("10",), {"name": "digits", "image_shape": (8, 8, 1)}, "no class of digits.*it has 0, 1, 2, 3, 4 and 5 more"),
        (("01",), {"name": "synthetic"}, "config.data.classes: '01' is no class of synthetic"),
        (("one",), {"name": "synthetic"}, "config.data.classes: 'one' is no class of synthetic"),
    ],
)
def test_mistakes_are_named(classes, changes, message, pictures, tmp_path):
    with pytest.raises(UserError, match=message):
        data.prepare(chosen(*classes, **changes), moved(pictures, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_configs_that_are_older_than_the_key_have_all_classes(pictures):
    older = ml_collections.ConfigDict({key: value for key, value in chosen(num_classes=3).items() if key != "classes"})
    assert data.class_names(older) == () and data.prepare(older, pictures[0]).class_names == ("cat", "dog", "emu")
    stored = ml_collections.ConfigDict({"classes": ["emu"], "num_classes": 1})  # as JSON has it
    assert data.class_names(stored) == ("emu",)


def test_a_split_without_such_examples_is_empty_and_not_damaged(tmp_path):
    write_pictures(tmp_path, sizes={"train": 2, "test": 6}, image_shape=(12, 12, 3))
    wanted = chosen("emu")
    assert data.prepare(wanted, tmp_path).sizes == {"train": 0, "validation": 0, "test": 2}
    with pytest.raises(UserError, match=r"^the split is empty"):
        data.open_split(wanted, tmp_path, "train")


def test_damaged_records_and_a_folder_that_cannot_be_written(tmp_path):
    wanted = settings(classes=("1",), num_classes=1)
    data.prepare(settings(), tmp_path)
    (tmp_path / ".labels").write_text("")
    with pytest.raises(UserError, match=r"\.labels.* cannot be written .*config.data.directory"):
        data.prepare(wanted, tmp_path)
    record = next(embedded.find(settings()).folder(tmp_path).glob("*train*"))
    record.write_bytes(record.read_bytes()[:-500])
    (tmp_path / ".labels").unlink()
    with pytest.raises(UserError, match=r"is damaged .*delete the folder"):
        data.prepare(wanted, tmp_path)
