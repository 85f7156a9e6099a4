"""Which classes of a data set a run has: all of them, or those that `config.data.classes` names."""

import difflib
from collections.abc import Sequence
from typing import Any

from jaxdrl.errors import UserError

_SHOWN = 5  # names of classes in an error


def names(settings: Any) -> tuple[str, ...]:
    """Reads the names of the wanted classes.

    Args:
        settings: `config.data`, of a workdir that is older than the key too.

    Returns:
        Names in the order of the labels 0, 1, ...; empty: all classes of the set.

    Raises:
        UserError: If one is no text or given twice, or their number is not `config.data.num_classes`.
    """
    wanted = tuple(settings.get("classes", ()))
    for place, name in enumerate(wanted):
        if not isinstance(name, str):
            raise UserError(f"config.data.classes has {name!r}; give names of classes, in quotes")
        if name in wanted[:place]:
            raise UserError(f"config.data.classes names {name!r} twice; give every class once")
    if wanted and settings.num_classes != len(wanted):
        raise UserError(
            f"config.data.num_classes is {settings.num_classes}, but config.data.classes names {len(wanted)}; set it to {len(wanted)}"
        )
    return wanted


def chosen(settings: Any, known: Sequence[str]) -> tuple[int, ...] | None:
    """Looks the wanted classes up.

    Args:
        settings: `config.data`.
        known: Names of the set's classes, in the order of its labels.

    Returns:
        The set's label of each class of the run, in the order of the run's labels; None: the run has the set's labels.

    Raises:
        UserError: As `names` does, or if the set has no such class, or `config.data.num_classes` does not fit.
    """
    wanted, labels = names(settings), {name: label for label, name in enumerate(known)}
    for name in wanted:
        if name not in labels:
            close = difflib.get_close_matches(name, known, n=1)
            shown = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"config.data.classes: {name!r} is no class of {settings.name}; {hint}it has {shown}")
    if wanted:
        return tuple(labels[name] for name in wanted)
    if settings.num_classes != len(known):
        raise UserError(f"config.data.num_classes is {settings.num_classes}; {settings.name} has {len(known)}")
    return None
