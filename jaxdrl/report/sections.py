"""What the pages share: the page itself, pictures, what took the time, SpectralDiT's gates."""

import base64
import html
import statistics
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxdrl import samples_file
from jaxdrl.report import areas, charts

_SHOWN = 64  # pixels that an image has at least, so that browsers that do not know `pixelated` stay sharp
GATES = {"low frequencies": 0, "high frequencies": 1}


def document(title: str, sections: Sequence[str]) -> str:
    """A page without scripts or requests.

    Args:
        title: In the browser's tab, plain text.
        sections: HTML.

    Returns:
        HTML.
    """
    style = (resources.files("jaxdrl.report") / "style.css").read_text()
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'><meta name='color-scheme' content='light dark'>"
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body><main>"
        + "\n".join(sections)
        + "</main></body></html>\n"
    )


def picture(title: str, alt: str, rows: Sequence[UInt8[np.ndarray, "n h w c"]], *, largest: int = 256) -> str:
    """Images in rows, as one picture.

    Args:
        title: Plain text.
        alt: What is to be seen, in words.
        rows: Images of each row.
        largest: Sides of more pixels than this are reduced, so that the page stays small.

    Returns:
        A <figure>.
    """
    side = max(rows[0].shape[1:3])
    rows = [reduced(row, -(-side // largest)) for row in rows]
    scale = max(1, _SHOWN // max(rows[0].shape[1:3])) if side > 16 else 6
    data = base64.b64encode(samples_file.png(samples_file.grid(list(rows)), scale)).decode()
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></figure>'
    )


def reduced(images: UInt8[np.ndarray, "n h w c"], factor: int) -> UInt8[np.ndarray, "n h2 w2 c"]:
    """Images with means of squares in place of pixels; rows and columns that fill no square are cut off.

    Args:
        images: Any.
        factor: Side of the squares.

    Returns:
        Smaller images; the same ones for 1.
    """
    if factor == 1:
        return images
    n, h, w, c = images.shape
    h, w = h // factor, w // factor
    squares = images[:, : h * factor, : w * factor].reshape(n, h, factor, w, factor, c)
    return squares.mean(axis=(2, 4)).round().astype(np.uint8)


def steps_said(lines: Sequence[Mapping[str, Any]], stage: str, unit: str) -> str:
    """What the steps of a stage took, from what the machine wrote.

    Args:
        lines: Of `machine.jsonl`.
        stage: A name.
        unit: What its steps are called, in the plural.

    Returns:
        A sentence; empty where nothing was written.
    """
    own = [line for line in lines if line["stage"] == stage and "step_seconds" in line]
    if not own:
        return ""
    seconds = [line["step_seconds"] for line in own]
    waited = sum(line.get("input_wait", 0.0) * line["step_seconds"] for line in own) / max(sum(seconds), 1e-9)
    said = f"{stage}: {own[-1]['step']} {unit}, median {_short(statistics.median(seconds))} each"
    if len(seconds) > 2 and seconds[0] > 1.5 * statistics.median(seconds):
        said += f", the first {_short(seconds[0])}, as it is compiled"
    return f"{said}; {'less than 0.1' if waited < 0.001 else f'{100 * waited:.1f}'} % of it waiting for data."


def gates(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], limit: float | None = None) -> list[str]:
    """SpectralDiT's gates over time and depth.

    Args:
        arrays: With `gates_base` and `gates_tuned`, [2, depth, times]: low and high frequencies; empty where the network has none.
        names: What of "base", "tuned" and "change" is shown, and how it is called.
        limit: The gate that has the full colour; by default the largest.

    Returns:
        A <figure> each.
    """
    if "gates_base" not in arrays or "gates_tuned" not in arrays:
        return []
    shown = {"base": arrays["gates_base"], "tuned": arrays["gates_tuned"], "change": arrays["gates_tuned"] - arrays["gates_base"]}
    figures, shared = [], limit or max(float(np.abs(shown[key]).max()) for key in ("base", "tuned"))
    for band, index in GATES.items():
        for key, name in names.items():
            # A change is smaller than what changes: it has a scale of its own.
            full = float(np.abs(shown["change"]).max()) if key == "change" and limit is None else shared
            figures.append(
                areas.heatmap(
                    f"Gate of {band}: {name}", "time (0: noise, 1: data)", "block", shown[key][index], full or 1e-9, (0.0, 1.0)
                )
            )
    return figures


def gate_curves(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Means of the gates over the blocks, against time.

    Args:
        arrays: As for `gates`.

    Returns:
        A <figure> a band; empty where the network has no gates.
    """
    if "gates_base" not in arrays:
        return []
    rows = {row: arrays[f"gates_{row}"] for row in ("base", "tuned") if f"gates_{row}" in arrays}
    return [
        charts.lines(
            f"Gate of {band}, mean of the blocks",
            "time (0: noise, 1: data)",
            "gate",
            {row: (np.linspace(0, 1, found.shape[2]), found[index].mean(axis=0)) for row, found in rows.items()},
        )
        for band, index in GATES.items()
    ]


def _short(seconds: float) -> str:
    return areas.duration(seconds) if seconds >= 1 else f"{1000 * seconds:.3g} ms"
