"""The tokenizer of generators that work on pixels: the identity."""

from dataclasses import dataclass

from jaxtyping import Array, Float


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images are their own latents."""

    def encode(self, images: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Returns the images.

        Args:
            images: In [-1, 1].

        Returns:
            The same.
        """
        return images

    def decode(self, latents: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Returns the latents, unclipped, so that gradients pass everywhere.

        Args:
            latents: Images.

        Returns:
            The same.
        """
        return latents

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the image's shape.

        Args:
            image_shape: (height, width, channels).

        Returns:
            The same.
        """
        return image_shape
