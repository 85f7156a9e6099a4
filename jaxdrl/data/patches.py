"""Grey or colour crops of ten pictures that ship inside scikit-image and scikit-learn; class = picture.

Each picture is resized so that its short side has 192 pixels and cut into strips 32 pixels wide. Strips go to train, test,
train, test ... in turn, and every third of the train strips to validation; a crop lies wholly inside its strip, so no pixel is in
two splits.

Licences: china.jpg CC BY 2.0 (see scikit-learn's datasets/images/README.txt for the attribution); chelsea, coffee, retina,
brick, grass, gravel and camera CC0; hubble_deep_field public domain (NASA); immunohistochemistry without known restrictions.
"""

import numpy as np

PICTURES = ("chelsea", "coffee", "hubble", "retina", "tissue", "brick", "grass", "gravel", "camera", "china")
SHORT_SIDE, STRIP = 192, 32


def splits(
    seed: int, per_class: int, image_shape: tuple[int, int, int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Cuts the crops.

    Args:
        seed: Decides where.
        per_class: Crops a class in train and in test; validation has a fifth of that.
        image_shape: (height, width, channels); at most 32 wide, 1 or 3 channels.

    Returns:
        "train", "validation", "test" -> (uint8 [n, h, w, c], int64 labels).

    Raises:
        ValueError: If the crop does not fit a strip, or has neither 1 nor 3 channels.
    """
    height, width, channels = image_shape
    if width > STRIP or height > SHORT_SIDE or channels not in (1, 3):
        raise ValueError(f"patches: image_shape {image_shape} must be at most {SHORT_SIDE} x {STRIP} with 1 or 3 channels")
    pictures = [_resized(picture, channels) for picture in _pictures()]
    result = {}
    for number, (split, count) in enumerate([("train", per_class), ("validation", max(per_class // 5, 1)), ("test", per_class)]):
        rng = np.random.default_rng([seed, number])
        crops = []
        for picture in pictures:
            columns, rows = origins(picture.shape, split, (height, width), rng, count)
            crops.append(np.stack([picture[y : y + height, x : x + width] for x, y in zip(columns, rows, strict=True)]))
        result[split] = (np.concatenate(crops), np.repeat(np.arange(len(pictures)), count))
    return result


def strips(width: int, split: str) -> np.ndarray:
    """Which strips belong to a split.

    Args:
        width: Of the picture.
        split: "train", "validation" or "test".

    Returns:
        Indices of strips.
    """
    index = np.arange(width // STRIP)
    if split == "test":
        return index[index % 2 == 1]
    return index[(index % 2 == 0) & ((index % 6 == 4) == (split == "validation"))]


def origins(
    shape: tuple[int, ...], split: str, size: tuple[int, int], rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the upper left corners of crops, each at most once while there are enough.

    Args:
        shape: Of the picture.
        split: Which strips may be used.
        size: (height, width) of a crop.
        rng: The generator.
        count: How many.

    Returns:
        (columns, rows).
    """
    chosen = strips(shape[1], split)
    across, down = STRIP - size[1] + 1, shape[0] - size[0] + 1
    total = len(chosen) * across * down
    index = rng.choice(total, count, replace=count > total)
    strip, rest = np.divmod(index, across * down)
    return chosen[strip] * STRIP + rest // down, rest % down


def _pictures() -> list[np.ndarray]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("chelsea", "coffee", "hubble_deep_field", "retina", "immunohistochemistry", "brick", "grass", "gravel", "camera")
    pictures = [getattr(data, picture)() for picture in names]
    return [*pictures, load_sample_images().images[0]]


def _resized(picture: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, w, channels], short side 192, by Pillow's Lanczos kernel."""
    from PIL import Image

    image = Image.fromarray(picture).convert("L" if channels == 1 else "RGB")
    scale = SHORT_SIDE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, channels)
