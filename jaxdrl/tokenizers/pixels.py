"""The tokenizer of generators that work on pixels: the identity, or a division by a constant; no weights."""

from dataclasses import dataclass

from jaxtyping import Array, Float, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images are their own latents.

    Attributes:
        scale: Latents are images / scale, for generators that were trained with noise of this size (JiT at 512 pixels: 2).
    """

    scale: float = 1.0

    def init(self, key: Key[Array, ""]) -> PyTree:
        """There are no weights.

        Args:
            key: Unused.

        Returns:
            An empty tree.
        """
        del key
        return {}

    def encode(
        self, params: PyTree, images: Float[Array, "batch h w c"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch h w c"]:
        """Divides by the scale.

        Args:
            params: An empty tree.
            images: In [-1, 1].
            key: Unused.

        Returns:
            Latents.
        """
        del params, key
        return images if self.scale == 1 else images / self.scale

    def decode(self, params: PyTree, latents: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Multiplies by the scale, unclipped, so that gradients pass everywhere.

        Args:
            params: An empty tree.
            latents: From `encode`, or generated.

        Returns:
            Images.
        """
        del params
        return latents if self.scale == 1 else latents * self.scale

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the image's shape.

        Args:
            image_shape: (height, width, channels).

        Returns:
            The same.
        """
        return image_shape
