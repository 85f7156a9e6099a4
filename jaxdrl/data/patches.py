"""Grey or colour crops of ten pictures that ship inside scikit-image and scikit-learn; class = picture.

Geometry: each picture is resized so that its short side has 192 pixels (Pillow, Lanczos) and cut into upright strips, 16 pixels
wide for crops of at most 8 pixels and 32 for wider ones (narrow strips make the splits alike, wide ones leave room for crops);
columns left over at the right are not used. Strips 0, 1, 2 ... belong to

    train, test, train, test, validation, test, and again from the start,

that is every second strip to test and every third of the others to validation. A crop lies wholly inside one strip, so no pixel
is in two splits. (Lanczos reaches a few pixels over a strip's edge before the resizing, as any resizing does.) The narrowest
pictures have twelve strips of 16 pixels (four of train, two of validation, six of test) or six of 32.
"""

import numpy as np
from jaxtyping import Int

from jaxdrl.data.order import Purpose, permutation

# Name of the class, function of `skimage.data` (none: scikit-learn's china.jpg), licence.
_PICTURES = (
    ("chelsea", "chelsea", "CC0, Stefan van der Walt"),
    ("coffee", "coffee", "CC0, Rachel Michetti"),
    ("hubble", "hubble_deep_field", "public domain, NASA and ESA"),
    ("retina", "retina", "CC0 1.0, Mikael Haggstrom, Wikimedia Commons"),
    ("tissue", "immunohistochemistry", "no known restrictions, Center for Microscopy and Molecular Imaging"),
    ("brick", "brick", "CC0, CC0Textures"),
    ("grass", "grass", "CC0, linolafett"),
    ("gravel", "gravel", "CC0, CC0Textures"),
    ("camera", "camera", "CC0, Lav Varshney"),
    ("china", "", "CC BY 2.0, danielbuechele, flickr.com/photos/danielbuechele/6061409035, changed by resizing and cropping"),
)
CLASS_NAMES = tuple(name for name, _, _ in _PICTURES)
DESCRIPTION = (
    "Crops of ten pictures that ship inside scikit-image and scikit-learn, resized to a short side of 192 pixels; class = "
    "picture; train, validation and test come from disjoint upright strips."
)
LICENCE = "; ".join(f"{name}: {licence}" for name, _, licence in _PICTURES)
SHORT_SIDE, WIDEST = 192, 32
_SPLITS = ("train", "validation", "test")


def splits(seed: int, per_class: int, image_shape: tuple[int, int, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Cuts the crops.

    Args:
        seed: Decides where.
        per_class: Crops a class in train and in test; validation has a fifth of that.
        image_shape: (height, width, channels): at most 192 x 32 pixels, 1 or 3 channels.

    Returns:
        "train", "validation", "test" -> (uint8 [n, h, w, c], int64 labels).
    """
    height, width, channels = image_shape
    sources = [_resized(picture, channels) for picture in _pictures()]
    result = {}
    for split in _SPLITS:
        count = max(per_class // 5, 1) if split == "validation" else per_class
        crops = []
        for label, picture in enumerate(sources):
            corners = origins(picture.shape[:2], split, (height, width), count, seed=seed, label=label)
            windows = np.lib.stride_tricks.sliding_window_view(picture, (height, width), axis=(0, 1))
            crops.append(windows[corners[:, 0], corners[:, 1]].transpose(0, 2, 3, 1))
        result[split] = (np.concatenate(crops), np.repeat(np.arange(len(sources)), count))
    return result


def strip_width(crop: int) -> int:
    """How wide strips are.

    Args:
        crop: Width of a crop, in pixels.

    Returns:
        16 or 32 pixels.
    """
    return 16 if crop <= 8 else WIDEST


def strips(width: int, split: str, *, strip: int) -> Int[np.ndarray, " n"]:
    """Which strips belong to a split.

    Args:
        width: Of the picture, in pixels.
        split: "train", "validation" or "test".
        strip: Width of a strip, s.

    Returns:
        Numbers of strips; strip i covers columns s i .. s (i + 1) - 1.
    """
    number = np.arange(width // strip)
    if split == "test":
        return number[number % 2 == 1]
    return number[(number % 2 == 0) & ((number % 6 == 4) == (split == "validation"))]


def origins(
    picture: tuple[int, int], split: str, size: tuple[int, int], count: int, *, seed: int, label: int
) -> Int[np.ndarray, "count 2"]:
    """Draws the upper left corners of crops, none twice before every one was used once.

    Args:
        picture: (height, width) in pixels.
        split: Which strips may be used.
        size: (height, width) of a crop.
        count: How many.
        seed: Decides where.
        label: The class; every class and split draws words of its own.

    Returns:
        (row, column) of each crop.
    """
    wide = strip_width(size[1])
    chosen = strips(picture[1], split, strip=wide)
    down, across = picture[0] - size[0] + 1, wide - size[1] + 1
    total = len(chosen) * down * across
    major = label * len(_SPLITS) + _SPLITS.index(split)
    rounds = -(-count // total)
    places = np.concatenate([permutation(seed, Purpose.CROPS, total, major=major, minor=minor) for minor in range(rounds)])
    which, rest = np.divmod(places[:count], down * across)
    row, column = np.divmod(rest, across)
    return np.stack([row, chosen[which] * wide + column], axis=1)


def _pictures() -> list[np.ndarray]:
    from skimage import data
    from sklearn.datasets import load_sample_image

    return [getattr(data, function)() if function else load_sample_image("china.jpg") for _, function, _ in _PICTURES]


def _resized(picture: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, w, channels]."""
    from PIL import Image

    image = Image.fromarray(picture).convert("L" if channels == 1 else "RGB")
    scale = SHORT_SIDE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, channels)
