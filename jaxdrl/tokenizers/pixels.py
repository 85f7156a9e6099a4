"""The tokenizer of generators that work on pixels: the identity, with no weights."""

from dataclasses import dataclass

from jaxtyping import Array, Float, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images are their own latents."""

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
        """Returns the images.

        Args:
            params: An empty tree.
            images: In [-1, 1].
            key: Unused.

        Returns:
            The same.
        """
        del params, key
        return images

    def decode(self, params: PyTree, latents: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Returns the latents, unclipped, so that gradients pass everywhere.

        Args:
            params: An empty tree.
            latents: Images.

        Returns:
            The same.
        """
        del params
        return latents

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the image's shape.

        Args:
            image_shape: (height, width, channels).

        Returns:
            The same.
        """
        return image_shape
