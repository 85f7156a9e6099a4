"""Small reward models whose scores and gradients `make_preference.py` writes down; weights are drawn by name."""

import numpy as np

from tests.golden import cases

# Neither square nor even: what is cut away and what is padded differ between the rules.
PICTURES = np.random.default_rng(12).uniform(-1, 1, (2, 40, 57, 3)).astype(np.float32)
SIZE, PATCH = 28, 14
SIGLIP_SIZE = 30
MERGES = ["p h", "o t", "ph ot", "phot o</w>", "o f</w>", "c a", "ca t</w>"]
VOCABULARY = 512 + len(MERGES) + 2
LENGTH = 12
# The second is longer than a row, the third has entities that open_clip alone resolves.
PROMPTS = ["a Photo  of a cat", "it's a photo of 12 goldfish and a cat", "a &amp;lt; b!"]
VISION = {"width": 32, "depth": 2, "num_heads": 4, "hidden": 48, "projection_dim": 20, "resolution": SIZE, "patch_size": PATCH}
TEXT = {"width": 24, "depth": 2, "num_heads": 3, "projection_dim": 20, "vocabulary": VOCABULARY, "length": LENGTH}
SIGLIP = {"width": 32, "depth": 2, "num_heads": 4, "hidden": 48, "resolution": SIGLIP_SIZE, "patch_size": PATCH}
FIELDS = {
    "pickscore": {"vision": VISION, "text": TEXT},
    "hpsv2.1": {"vision": VISION, "text": TEXT},
    "clipscore": {"vision": VISION, "text": TEXT},
    "aesthetic-v2": {"vision": VISION},
    "aesthetic-v2.5": {"vision": SIGLIP},
}


def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """As `cases.draw`, with open_clip's names of norms."""
    return np.asarray(cases.draw(key.replace("ln_", "norm_"), shape), np.float32)


def bytes_of(pictures: np.ndarray) -> np.ndarray:
    """uint8 images."""
    return np.round((np.clip(pictures, -1, 1) + 1) * 127.5).astype(np.uint8)
