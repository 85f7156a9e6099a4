"""Generated images of any shape: blobs whose place tells the class. For `tiny` recipes and tests."""

import numpy as np

from jaxdrl.data.order import Purpose, random_words

DESCRIPTION = "Blobs of random colour and size on black, with noise; the angle of the blob from the middle tells the class."
LICENCE = "Generated; CC0."
_SPLITS = ("train", "validation", "test")


def splits(
    seed: int, per_class: int, image_shape: tuple[int, int, int], num_classes: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draws the images.

    Args:
        seed: Decides all.
        per_class: Images a class in train and in test; validation has a fifth of that.
        image_shape: (height, width, channels).
        num_classes: Classes.

    Returns:
        "train", "validation", "test" -> (uint8 [n, h, w, c], int64 labels).
    """
    result = {}
    for number, split in enumerate(_SPLITS):
        count = max(per_class // 5, 1) if split == "validation" else per_class
        labels = np.repeat(np.arange(num_classes), count)
        result[split] = (_draw(seed, number, labels, num_classes, image_shape), labels)
    return result


def _draw(seed: int, number: int, labels: np.ndarray, num_classes: int, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [n, h, w, c]."""
    height, width, channels = shape
    rows, columns = np.mgrid[0:height, 0:width]
    sizes = (len(labels), len(labels), len(labels) * channels, len(labels) * height * width * channels)
    uniform = [random_words(seed, Purpose.CROPS, size, major=number, minor=minor) / 2.0**64 for minor, size in enumerate(sizes)]
    angle = 2 * np.pi * (labels + 0.6 * (uniform[0] - 0.5)) / num_classes
    y, x = height * (0.5 + 0.25 * np.sin(angle)), width * (0.5 + 0.25 * np.cos(angle))
    radius = height * (0.12 + 0.08 * uniform[1])
    square = (rows - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2
    blob = np.exp(-square / (2 * radius[:, None, None] ** 2))[..., None]
    colour = 100 + 155 * uniform[2].reshape(-1, 1, 1, channels)
    noise = 20 * (uniform[3].reshape(-1, *shape) - 0.5)
    return np.clip(blob * colour + noise, 0, 255).astype(np.uint8)
