"""The stream of examples: frozen, balanced, random access."""

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdrl.data.order import Order, Purpose, permutation, random_words

FROZEN_WORDS = [17606852469044993141, 6588309982569090901, 4228800846105294275, 3781558583624201260]
FROZEN_PERMUTATION = [8, 7, 4, 2, 6, 5, 9, 0, 1, 3]


def test_words_never_change():
    # A shipped model must never meet its training images in the test half of a later version.
    words = random_words(7, Purpose.SPLIT, 4, major=1, minor=2)
    assert [int(word) for word in words] == FROZEN_WORDS
    assert permutation(0, Purpose.SPLIT, 10).tolist() == FROZEN_PERMUTATION


def test_words_can_be_read_from_any_block():
    everything = random_words(3, Purpose.FLIP, 40)
    np.testing.assert_array_equal(random_words(3, Purpose.FLIP, 12, block=5), everything[20:32])


def test_no_two_streams_share_words():
    streams = [
        random_words(seed, purpose, 50, major=major, minor=minor)
        for seed in (0, 1)
        for purpose in Purpose
        for major in (0, 1)
        for minor in (0, 1)
    ]
    words = np.concatenate(streams)
    assert len(np.unique(words)) == len(words)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    first=st.integers(0, 10**9),
    count=st.integers(1, 60),
    seed=st.integers(0, 2**63),
)
def test_balanced_stream(sizes, first, count, seed):
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)
    order = Order(len(labels), seed, labels)
    index = order.indices(np.arange(first, first + count))
    tally = np.bincount(labels[index], minlength=labels.max() + 1)[::3]
    assert tally.max() - tally.min() <= 2
    rounds = first // len(sizes) * len(sizes)
    whole = order.indices(np.arange(rounds, rounds + len(sizes)))
    assert np.array_equal(np.sort(labels[whole]), np.unique(labels))
    # One at a time, from a fresh object, in any order: the same.
    again = pickle.loads(pickle.dumps(Order(len(labels), seed, labels)))
    backwards = [again.indices(np.array([position]))[0] for position in range(first + count - 1, first - 1, -1)]
    np.testing.assert_array_equal(index, backwards[::-1])


def test_every_member_once_in_an_epoch_of_its_class():
    labels = np.repeat([0, 1, 2], [5, 7, 3])
    order = Order(15, 0, labels)
    index = order.indices(np.arange(3 * 105))
    for label, size in enumerate((5, 7, 3)):
        members = index[labels[index] == label].reshape(-1, size)
        assert (np.sort(members, axis=1) == np.flatnonzero(labels == label)).all()
        assert len({tuple(epoch) for epoch in members}) > 1


def test_unbalanced_stream_shuffles_whole_epochs():
    order = Order(11, 5)
    epochs = order.indices(np.arange(11 * 20)).reshape(20, 11)
    assert (np.sort(epochs, axis=1) == np.arange(11)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 20


def test_class_order_is_fair():
    labels = np.arange(10)
    order = Order(10, 1, labels)
    places = order.indices(np.arange(10 * 4000)).reshape(4000, 10)
    counts = np.stack([np.bincount(places[:, place], minlength=10) for place in range(10)])
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400)
