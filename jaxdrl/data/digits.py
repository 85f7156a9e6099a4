"""scikit-learn's handwritten digits: 1797 grey images of 8 x 8 pixels, ten classes."""

import numpy as np
from jaxtyping import Int

from jaxdrl.data.order import Purpose, permutation

CLASS_NAMES = tuple(str(digit) for digit in range(10))
IMAGE_SHAPE = (8, 8, 1)
DESCRIPTION = (
    "The test part of UCI's Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998) as scikit-learn bundles it; "
    "grey levels 0..16 are stretched to 0..255."
)
LICENCE = "Distributed with scikit-learn (BSD-3-Clause), which states no separate licence for the data."


def splits(seed: int, validation_fraction: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Makes the three parts.

    Args:
        seed: Decides who goes where.
        validation_fraction: Share of the train half that validation gets, in (0, 1).

    Returns:
        "train", "validation", "test" -> (uint8 [n, 8, 8, 1], int64 labels).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    chosen = indices(digits.target, seed, validation_fraction)
    return {split: (images[index], digits.target[index]) for split, index in chosen.items()}


def indices(labels: Int[np.ndarray, " n"], seed: int, validation_fraction: float) -> dict[str, Int[np.ndarray, " m"]]:
    """Halves the images class by class, and cuts the validation part from the train half.

    Args:
        labels: A label an image.
        seed: Decides who goes where.
        validation_fraction: Share of the train half, in (0, 1).

    Returns:
        "train", "validation", "test" -> ascending indices; every image is in exactly one part.
    """
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[permutation(seed, Purpose.SPLIT, len(members), major=int(label))]
        # Classes of odd size give their spare image to train and to test in turn.
        half = (len(members) + int(label) % 2) // 2
        cut = round(half * validation_fraction)
        parts["validation"].append(members[:cut])
        parts["train"].append(members[cut:half])
        parts["test"].append(members[half:])
    return {split: np.sort(np.concatenate(members)) for split, members in parts.items()}
