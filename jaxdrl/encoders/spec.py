"""What defines a feature: two statistics may be compared only if all of it is equal."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from jaxdrl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """The specification that travels with features.

    Attributes:
        network: The encoder's name, or "pixels".
        fingerprint: sha256 of its weights, empty for pixels.
        pooling: How the feature is taken.
        size: Side of the network's input.
        inner: Side of the resized image, padded to `size`; 0: not padded.
        resize: Kernel, or "none".
        antialias: Whether the resize filters when it shrinks.
        clip: Whether resized images are cut to [0, 1].
        mean: Subtracted, of images in [0, 1].
        std: Divided by.
        dtype: Of the network's arithmetic.
        options: Fields of the network that differ from the published ones.
    """

    network: str
    fingerprint: str
    pooling: str
    size: int
    inner: int = 0
    resize: str = "none"
    antialias: bool = False
    clip: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: str = "float32"
    options: str = ""

    def to_dict(self) -> dict:
        """Returns plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "FeatureSpec":
        """Reads what `to_dict` gave and JSON made of it.

        Args:
            values: Field -> value; fields that are not there keep their defaults.

        Returns:
            The specification.
        """
        known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**known)

    def require_same(self, other: "FeatureSpec") -> None:
        """Refuses a comparison with features of another specification.

        Args:
            other: The other side's.

        Raises:
            UserError: Naming the fields that differ.
        """
        different = [
            f"{field.name} ({getattr(self, field.name)} and {getattr(other, field.name)})"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
        if different:
            raise UserError(f"these features cannot be compared, they differ in {'; '.join(different)}")
