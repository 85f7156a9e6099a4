"""Between pixels and the generator's own space."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

from jaxdrl.tokenizers.pixels import Pixels
from jaxdrl.tokenizers.rae import Rae
from jaxdrl.tokenizers.sd_vae import SdVae


@runtime_checkable
class Tokenizer(Protocol):
    """What maps images in [-1, 1] to latents and back."""

    def encode(self, images: Float[Array, "batch h w c"]) -> Float[Array, "batch ..."]:
        """Images to latents."""
        ...

    def decode(self, latents: Float[Array, "batch ..."]) -> Float[Array, "batch h w c"]:
        """Latents to images, differentiable."""
        ...

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """The shape of one latent."""
        ...


# Tokenizers with weights, by the names that `jaxdrl convert` takes.
PUBLISHED: dict[str, type[SdVae] | type[Rae]] = {"sd-vae": SdVae, "rae-dinov2-base": Rae}

__all__ = ["PUBLISHED", "Pixels", "Rae", "SdVae", "Tokenizer"]
