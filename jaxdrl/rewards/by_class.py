"""What belongs to a class: rewards are given classes, and look up prompts and tasks themselves."""

from collections.abc import Sequence
from typing import Any


def of_condition(values: Sequence[Any], label: Any, field: str) -> Any:
    """What belongs to a class.

    Args:
        values: One a class.
        label: The class.
        field: The field that holds the values, in errors.

    Returns:
        Its value.

    Raises:
        ValueError: If there is none.
    """
    if not 0 <= label < len(values):
        raise ValueError(f"{field} has {len(values)} entries, none for class {label}")
    return values[int(label)]
