"""What defines a feature: two statistics may be compared only if all of it is equal."""

from dataclasses import asdict, dataclass, fields

from jaxdrl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """The specification that travels with features.

    Attributes:
        network: The encoder's name, or "pixels".
        fingerprint: sha256 of its weights, empty for pixels.
        pooling: How the feature is taken.
        size: Side of the network's input.
        resize: Kernel, or "none".
        antialias: Whether the resize filters when it shrinks.
        mean: Subtracted, of images in [0, 1].
        std: Divided by.
        dtype: Of the network's arithmetic.
    """

    network: str
    fingerprint: str
    pooling: str
    size: int
    resize: str = "none"
    antialias: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: str = "float32"

    def to_dict(self) -> dict:
        """Returns plain values for JSON."""
        return asdict(self)

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
