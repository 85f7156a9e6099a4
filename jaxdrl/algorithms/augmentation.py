"""Random views of small images, in JAX: what both self-supervised objectives learn to see through. No flips: digits have a side."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def views(key: Key[Array, ""], images: Float[Array, "batch h w c"], strength: float = 1.0) -> Float[Array, "batch h w c"]:
    """Zoom, shift, contrast, brightness and noise, drawn for each image.

    Args:
        key: A fresh key for each view.
        images: In [-1, 1].
        strength: 0 leaves the images as they are.

    Returns:
        Views of the same shape, a little outside [-1, 1] at times.
    """
    batch, height, width, channels = images.shape
    keys = jax.random.split(key, 5)
    zoom = jnp.exp(strength * jax.random.uniform(keys[0], (batch,), minval=-0.25, maxval=0.3))
    shift = strength * height / 6 * jax.random.uniform(keys[1], (batch, 2), minval=-1.0, maxval=1.0)

    def resample(image, zoom, shift):
        centre = jnp.array([height, width]) / 2 * (1 - zoom)
        return jax.image.scale_and_translate(
            image, (height, width, channels), (0, 1), jnp.array([zoom, zoom]), centre + shift, "linear", antialias=False
        )

    # What moves in from outside takes the image's own darkest value, not grey.
    floor = images.min(axis=(1, 2, 3), keepdims=True)
    seen = jax.vmap(resample)(images - floor, zoom, shift) + floor
    contrast = 1 + 0.3 * strength * jax.random.uniform(keys[2], (batch, 1, 1, 1), minval=-1.0, maxval=1.0)
    brightness = 0.2 * strength * jax.random.uniform(keys[3], (batch, 1, 1, 1), minval=-1.0, maxval=1.0)
    noise = 0.1 * strength * jax.random.normal(keys[4], images.shape)
    return seen * contrast + brightness + noise
