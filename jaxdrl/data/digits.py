"""scikit-learn's handwritten digits: 1797 images of 8 x 8, ten classes (UCI optdigits, its test part)."""

import numpy as np

CLASS_NAMES = tuple(str(digit) for digit in range(10))


def splits(seed: int, validation_fraction: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Halves the digits, class by class, and cuts the validation part from the train half.

    Args:
        seed: Decides who goes where.
        validation_fraction: Of the train half.

    Returns:
        "train", "validation", "test" -> (uint8 [n, 8, 8, 1], int64 labels); grey levels 0..16 become 0..255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for label in range(10):
        members = rng.permutation(np.flatnonzero(digits.target == label))
        half = (len(members) + label % 2) // 2
        cut = round(half * validation_fraction)
        parts["validation"].append(members[:cut])
        parts["train"].append(members[cut:half])
        parts["test"].append(members[half:])
    chosen = {split: np.sort(np.concatenate(members)) for split, members in parts.items()}
    return {split: (images[index], digits.target[index]) for split, index in chosen.items()}
