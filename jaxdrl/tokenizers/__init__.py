"""Between pixels and the generator's own space: pure functions of a parameter tree, as everywhere."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key, PyTree

from jaxdrl.tokenizers.pixels import Pixels
from jaxdrl.tokenizers.rae import Rae
from jaxdrl.tokenizers.sd_vae import SdVae


@runtime_checkable
class Tokenizer(Protocol):
    """What maps images in [-1, 1] to latents and back."""

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Draws weights."""
        ...

    def encode(
        self, params: PyTree, images: Float[Array, "batch h w c"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch ..."]:
        """Images to latents; the key draws a sample where the tokenizer has a law, None gives its mean."""
        ...

    def decode(self, params: PyTree, latents: Float[Array, "batch ..."]) -> Float[Array, "batch h w c"]:
        """Latents to images, differentiable."""
        ...

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """The shape of one latent."""
        ...


# Tokenizers with weights, by the names that `jaxdrl convert` takes.
PUBLISHED: dict[str, type[SdVae] | type[Rae]] = {"sd-vae": SdVae, "rae-dinov2-base": Rae}


def create(name: str, **overrides: Any) -> Pixels | Rae | SdVae:
    """Builds a tokenizer.

    Args:
        name: "pixels", or one of `PUBLISHED`.
        **overrides: Fields of `Pixels`, `SdVae` or `Rae`.

    Returns:
        A `Tokenizer`; equal fields give equal objects.

    Raises:
        ValueError: If the name or a field is unknown.
    """
    return _build({"pixels": Pixels, **PUBLISHED}, name, overrides)


def create_published(name: str, **overrides: Any) -> Rae | SdVae:
    """Builds a tokenizer with weights.

    Args:
        name: One of `PUBLISHED`.
        **overrides: Fields of `SdVae` or `Rae`.

    Returns:
        A `Tokenizer`; equal fields give equal objects.

    Raises:
        ValueError: If the name or a field is unknown.
    """
    return _build(PUBLISHED, name, overrides)


def _build(kinds: dict[str, Any], name: str, fields: dict[str, Any]) -> Any:
    if name not in kinds:
        raise ValueError(f"tokenizer {name!r} is unknown; choose one of {', '.join(kinds)}")
    unknown = sorted(set(fields) - set(kinds[name].__dataclass_fields__))
    if unknown:
        raise ValueError(f"tokenizer {name!r}: unknown fields {unknown}")
    return kinds[name](**fields)


__all__ = ["PUBLISHED", "Pixels", "Rae", "SdVae", "Tokenizer", "create", "create_published"]
