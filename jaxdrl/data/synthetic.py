"""Generated images of any shape: coloured blobs whose place depends on the class. For `tiny` forms and tests."""

import numpy as np


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
    height, width, channels = image_shape
    rows, columns = np.mgrid[0:height, 0:width]
    result = {}
    for number, (split, count) in enumerate([("train", per_class), ("validation", max(per_class // 5, 1)), ("test", per_class)]):
        rng = np.random.default_rng([seed, number])
        labels = np.repeat(np.arange(num_classes), count)
        angle = 2 * np.pi * labels / num_classes + rng.normal(0, 0.15, len(labels))
        y, x = height * (0.5 + 0.25 * np.sin(angle)), width * (0.5 + 0.25 * np.cos(angle))
        radius = height * rng.uniform(0.12, 0.2, len(labels))
        square = (rows - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2
        blob = np.exp(-square / (2 * radius[:, None, None] ** 2))[..., None]
        colour = rng.uniform(100, 255, (len(labels), 1, 1, channels))
        noise = rng.normal(0, 6, (len(labels), *image_shape))
        result[split] = (np.clip(blob * colour + noise, 0, 255).astype(np.uint8), labels)
    return result
