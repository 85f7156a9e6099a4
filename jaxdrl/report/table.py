"""The table of distances, as text and as Markdown."""

from typing import Any

ROWS = {
    "floor": "real, train half",
    "base": "base",
    "longer_pretraining": "+ longer pretraining",
    "best_cfg": "+ best guidance",
    "tuned": "+ DRL",
    "tuned_best_cfg": "+ DRL + best guidance",
    "ideal_tilt": "ideal tilt of the base",
}
METHODS = {"adjoint_matching": "DRL", "nft": "NFT", "flow_grpo": "Flow-GRPO"}
SPACES = ("reward", "judge", "pixels")


def method(result: dict[str, Any]) -> str:
    """What the tuned model was tuned by.

    Args:
        result: Of the evaluate stage.

    Returns:
        A short name.
    """
    algorithm = result.get("algorithm", "adjoint_matching")
    # Without its reward it is not the paper's method.
    others = result.get("trained_on", ["discriminator"]) != ["discriminator"]
    return "Adjoint Matching" if others and algorithm == "adjoint_matching" else METHODS[algorithm]


def titles(result: dict[str, Any]) -> dict[str, str]:
    """What the rows are called.

    Args:
        result: Of the evaluate stage.

    Returns:
        Row -> title, in the order of the table.
    """
    return {row: title.replace("DRL", method(result)) for row, title in ROWS.items()}


def excess_change(spaces: dict[str, dict[str, float]], space: str, row: str) -> float:
    """How the distance above the floor changed against the base.

    Args:
        spaces: `spaces` of an evaluation.
        space: "reward", "judge" or "pixels".
        row: Which row.

    Returns:
        (FD(row) - floor) / (FD(base) - floor) - 1: -0.5 is half the excess gone.
    """
    values = spaces[space]
    return (values[row] - values["floor"]) / (values["base"] - values["floor"]) - 1


def change_error(result: dict[str, Any], space: str, row: str) -> float:
    """The standard error of `excess_change`, from samples that share their noise; the floor counts as known.

    Args:
        result: Of the evaluate stage.
        space: "reward", "judge" or "pixels".
        row: Which row.

    Returns:
        At least 0, in the units of `excess_change`.
    """
    values = result["spaces"][space]
    return result["spaces_change_se"][space][row] / abs(values["base"] - values["floor"])


def cells(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table's head and body.

    Args:
        result: Of the evaluate stage.

    Returns:
        (column names, rows of texts).
    """
    head = ["", "FD reward", "FD judge", "FD pixels", "precision", "recall", "coverage", "accuracy", "copies"]
    body = []
    for row, title in titles(result).items():
        if row not in result["spaces"]["judge"]:
            continue
        line = [title]
        for space in SPACES:
            text = f"{result['spaces'][space][row]:.3f} ±{result['spaces_se'][space][row]:.3f}"
            if row not in ("floor", "base"):
                text += (
                    f" ({100 * excess_change(result['spaces'], space, row):+.0f} ±{100 * change_error(result, space, row):.0f}%)"
                )
            line.append(text)
        for metric in ("precision", "recall", "coverage", "accuracy", "memorisation"):
            value = result[metric].get(row)
            line.append("" if value is None else f"{value:.3f}")
        body.append(line)
    return head, body


def plain(result: dict[str, Any]) -> str:
    """The table for a terminal.

    Args:
        result: Of the evaluate stage.

    Returns:
        Lines of text.
    """
    head, body = cells(result)
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in [head, *body]]
    note = (
        f"FD: Frechet distance of {result['samples']} samples to the {result['split']} images, ± bootstrap standard error; "
        "in brackets the change of its excess over the floor, ± the error of that change (samples share their noise).\nprecision, recall, coverage: judge space. copies: share of "
        "samples closer to a training image than 95 % of held-out images are."
    )
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", note, *_rewards(result)])


def _rewards(result: dict[str, Any]) -> list[str]:
    """A line a reward."""
    found = result.get("rewards") or {}
    width = max(map(len, found), default=0)
    return [
        f"reward {name.ljust(width)}  base {rows['base']['mean']:.4g} ({rows['base']['std']:.3g})  tuned {rows['tuned']['mean']:.4g}, "
        f"{rows['tuned']['gain']:+.2f} standard deviations of the base"
        for name, rows in found.items()
    ]


def markdown(result: dict[str, Any]) -> str:
    """The table for a document.

    Args:
        result: Of the evaluate stage.

    Returns:
        A Markdown table.
    """
    head, body = cells(result)
    lines = ["| " + " | ".join(line) + " |" for line in [head, *body]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
