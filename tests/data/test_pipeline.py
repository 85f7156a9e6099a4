"""Batches: balanced, restartable, the same for every number of workers and processes, and fast."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jaxdrl import data
from jaxdrl.data.sources import InMemory
from jaxdrl.errors import UserError
from tests.data.settings import settings


def make(sizes=(7, 5, 9), shape=(4, 4, 1)):
    count = sum(sizes)
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return InMemory(images, np.repeat(np.arange(len(sizes)), sizes))


def equal(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and np.array_equal(first[name], second[name]) for name in first
    )


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_a_batch_holds_what_its_index_says():
    source = make()
    batch = data.batches(source, batch_size=10, seed=3).at(5)
    assert batch["image"].dtype == np.float32 and batch["label"].dtype == np.int32 and batch["index"].dtype == np.int64
    np.testing.assert_array_equal(data.to_uint8(batch["image"]), source.images[batch["index"]])
    np.testing.assert_array_equal(batch["label"], source.labels[batch["index"]])


@pytest.mark.parametrize("balanced", [True, False])
def test_every_way_to_read_gives_the_same(balanced):
    make_batches = lambda **more: data.batches(  # noqa: E731
        make(), batch_size=8, seed=1, balanced=balanced, horizontal_flip=True, **more
    )
    batches = make_batches()
    expected = [batches.at(number) for number in range(12)]
    assert all(map(equal, take(iter(batches), 12), expected))
    assert all(map(equal, take(iter(make_batches(start=7)), 5), expected[7:]))
    stacked = batches.stacked(5, 4)
    assert stacked["image"].shape == (4, 8, 4, 4, 1)
    for offset in range(4):
        assert equal({name: part[offset] for name, part in stacked.items()}, expected[5 + offset])
    # From a number that is no multiple of the chunk.
    assert equal(take(batches.stream(1, 4), 2)[1], stacked)


@hypothesis_settings(deadline=None, max_examples=30)
@given(start=st.integers(0, 10**7), batch_size=st.integers(1, 40), processes=st.sampled_from([1, 2, 3, 8]))
def test_processes_share_the_global_batches(start, batch_size, processes):
    source = make()
    whole = data.batches(source, batch_size=batch_size * processes, seed=2, horizontal_flip=True).at(start)
    parts = [
        data.batches(
            source, batch_size=batch_size, seed=2, horizontal_flip=True, process_index=process, process_count=processes
        ).at(start)
        for process in range(processes)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert equal(joined, whole)


def test_shards_are_disjoint_within_an_epoch():
    source = make((6, 6, 6))
    shards = [
        data.batches(source, batch_size=3, seed=0, balanced=False, process_index=process, process_count=2).stacked(0, 3)["index"]
        for process in range(2)
    ]
    assert sorted(np.concatenate(shards, axis=None)) == list(range(18))


@pytest.mark.parametrize("balanced", [True, False])
def test_resumed_on_another_number_of_processes(balanced):
    """An epoch begun by four processes, gone on with by one, then by two: the same global order, every example once."""
    source, order = make((16, 16, 16)), []
    for number, processes in enumerate((4, 1, 2)):
        parts = [
            data.batches(
                source, batch_size=16 // processes, seed=3, balanced=balanced, process_index=process, process_count=processes
            ).at(number)["index"]
            for process in range(processes)
        ]
        order += np.concatenate(parts).tolist()
    whole = data.batches(source, batch_size=16, seed=3, balanced=balanced).stacked(0, 3)["index"].ravel().tolist()
    assert order == whole and sorted(order) == list(range(48))


def test_labels_are_balanced():
    batches = data.batches(make((3, 40, 11)), batch_size=30, seed=0)
    for number in (0, 1, 1000):
        assert np.bincount(batches.at(number)["label"]).tolist() == [10, 10, 10]


def test_seeds():
    source = make()
    first, again, other = (data.batches(source, batch_size=9, seed=seed).at(0)["index"] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_flips_are_fair_and_exact():
    source = make((500, 500))
    flipped = data.batches(source, batch_size=1000, seed=4, horizontal_flip=True).at(0)
    plain = data.batches(source, batch_size=1000, seed=4).at(0)
    mirrored = (flipped["image"] == plain["image"][:, :, ::-1]).all((1, 2, 3))
    untouched = (flipped["image"] == plain["image"]).all((1, 2, 3))
    assert (mirrored | untouched).all() and 430 < mirrored.sum() < 570
    np.testing.assert_array_equal(source.images, make((500, 500)).images)


def test_sources_on_disk_give_the_same_batches(tmp_path):
    data.prepare(settings(), tmp_path)
    memory = data.batches(data.open_split(settings(), tmp_path, "train"), batch_size=16, seed=0, horizontal_flip=True)
    on_disk = data.open_split(settings(in_memory=False), tmp_path, "train")
    disk = data.batches(on_disk, batch_size=16, seed=0, horizontal_flip=True)
    assert equal(memory.at(3), disk.at(3))
    assert all(map(equal, take(memory.stream(2, 3), 2), take(disk.stream(2, 3), 2)))
    # The second opening reads the labels from the file that the first has written.
    again = data.open_split(settings(in_memory=False), tmp_path, "train")
    np.testing.assert_array_equal(again.read_labels(), on_disk.read_labels())
    assert all(map(np.array_equal, data.load_arrays(again), data.load_arrays(data.open_split(settings(), tmp_path, "train"))))


def test_worker_processes_give_the_same_batches(tmp_path):
    data.prepare(settings(), tmp_path)
    source = data.open_split(settings(in_memory=False, workers=2), tmp_path, "validation")
    batches = data.batches(source, batch_size=8, seed=0)
    stream = batches.stream(3, 2)
    assert all(map(equal, take(stream, 2), [batches.stacked(3, 2), batches.stacked(5, 2)]))
    stream.close()


def test_batches_are_fast():
    batches = data.batches(make((2000,) * 10, (8, 8, 1)), batch_size=128, seed=0)
    batches.stacked(0, 50)
    begin = time.process_time()
    batches.stacked(50, 500)
    assert (time.process_time() - begin) / 500 < 0.5e-3


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"start": -1}, {"process_index": 2, "process_count": 2}])
def test_impossible_batches(change):
    with pytest.raises(ValueError, match="no batch of"):
        data.batches(make(), **{"batch_size": 4, "seed": 0, **change})


def test_empty_source():
    with pytest.raises(UserError, match="empty"):
        data.batches(InMemory(np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, np.int32)), batch_size=4, seed=0)
