"""Prompts for class-conditional images: "a photo of a {class}" for every class.

The template is that of "Discriminator-Guided RL", arXiv 2606.19162, which measures its preference rewards with it. Names of classes ship as
text, one a line in the order of the labels, each file saying in its header where they are from. Beside each, `*_labels.txt` has what the
data set calls these classes (ImageNet's synsets), so that a run on some of them finds their names.
"""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jaxdrl.errors import UserError

TEMPLATE = "a photo of a {class}"
SHIPPED = ("imagenet", "digits")


def class_names(source: str | Sequence[str], num_classes: int | None = None, chosen: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of classes, in the order of the labels.

    Args:
        source: "imagenet", "digits", a text file with a name a line (lines that begin with # are passed over), or the names themselves.
        num_classes: How many there must be; None: any number.
        chosen: `config.data.classes`: of "imagenet" and "digits" these, in this order; empty: all. Other sources name the run's classes.

    Returns:
        Names.

    Raises:
        UserError: If the source is unknown or empty, has no name for a chosen class, or there are too few or too many names.
    """
    names = _lines(source) if isinstance(source, str) else tuple(str(name) for name in source)
    if chosen and isinstance(source, str) and source in SHIPPED:
        known = dict(zip(_read(_shipped(f"{source}_labels")), names, strict=True))
        missing = [name for name in chosen if name not in known]
        if missing:
            raise UserError(
                f"class names {source!r} have none for {missing[0]!r} of config.data.classes; give a name a class instead"
            )
        names = tuple(known[name] for name in chosen)
    if not names or (num_classes is not None and len(names) != num_classes):
        wanted = "at least one" if num_classes is None else f"{num_classes}, one a class"
        raise UserError(f"class names {source!r}: there are {len(names)}, must be {wanted}")
    return names


def usual_source(data_name: str, chosen: Sequence[str] = ()) -> str:
    """Where the names of a data set's classes come from, unless somebody says otherwise.

    Args:
        data_name: `config.data.name`.
        chosen: `config.data.classes`.

    Returns:
        A `source` of `class_names`: "imagenet" only where labels are in that list's order. TFDS's imagenet_resized has another one, so that its
        names have to be given, or its classes chosen by synset.
    """
    ordered = data_name.startswith(("imagenet2012", "imagenet_v2")) or bool(chosen)
    return "imagenet" if data_name.startswith("imagenet") and ordered else data_name


def prompts(names: Sequence[str], template: str = TEMPLATE) -> tuple[str, ...]:
    """A prompt a class.

    Args:
        names: Of the classes.
        template: A text with {class} where the name goes.

    Returns:
        Prompts, in the order of the names.

    Raises:
        UserError: If the template has no place for the name.
    """
    if "{class}" not in template:
        raise UserError(f"the prompt template {template!r} has no {{class}}; for example {TEMPLATE!r}")
    return tuple(template.replace("{class}", name) for name in names)


def label(name: str, names: Sequence[str]) -> int:
    """The class that a name stands for.

    Args:
        name: As in the list.
        names: Of all classes.

    Returns:
        Its label.

    Raises:
        UserError: If no class has the name, or several have it (ImageNet has two "sunglasses").
    """
    found = [index for index, other in enumerate(names) if other == name]
    if not found:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        raise UserError(f"class {name!r} is unknown{f' (did you mean {close[0]!r}?)' if close else ''}")
    if len(found) > 1:
        raise UserError(f"class {name!r} is that of the labels {', '.join(map(str, found))}; give the label")
    return found[0]


def _lines(source: str) -> tuple[str, ...]:
    path = _shipped(source) if source in SHIPPED else Path(source)
    if not path.is_file():
        raise UserError(f"class names {source!r} are unknown: give {', '.join(SHIPPED)}, or a text file with a name a line")
    return _read(path)


def _shipped(name: str) -> Path:
    return Path(str(resources.files("jaxdrl"))) / "assets" / "class_names" / f"{name}.txt"


def _read(path: Path) -> tuple[str, ...]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))
