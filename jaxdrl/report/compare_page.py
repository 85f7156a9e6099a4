"""compare.html: several runs on one page, each against its own base and all against what differs between them."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdrl.evaluation import drift
from jaxdrl.report import areas, charts, runs, sections, table
from jaxdrl.report.page import SPACE_NAMES
from jaxdrl.report.runs import RunFolder

_EACH = 8  # images of a class in the stored grids
_KEYS_SHOWN = 6
_DRIFTS = (*drift.NAMES, "sharpness")
_CURVES = {
    "reward_mean": ("Reward in training", "mean"),
    "control_energy": ("Control energy", "KL estimate, nats"),
    "loss": ("Loss of post-training", "loss"),
    "gradient_norm": ("Gradient norm", "norm"),
}


def render(found: Sequence[RunFolder]) -> str:
    """Writes the page.

    Args:
        found: From `runs.read`.

    Returns:
        HTML without scripts or requests.
    """
    ordered = in_order(found)
    warned = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in runs.notes(ordered))
    parts = [
        f"<h1>{len(ordered)} runs compared</h1><p class='lead'>{html.escape(headline(ordered))}</p>{warned}",
        "<h2>The runs</h2>" + _table(ordered),
        _strips(ordered),
        _distances(ordered),
        _tradeoff(ordered),
        _statistics(ordered),
        _gates(ordered),
        _training(ordered),
        _time(ordered),
        _settings(ordered),
    ]
    return sections.document(f"jaxdrl: {len(ordered)} runs compared", [part for part in parts if part])


def in_order(found: Sequence[RunFolder]) -> list[RunFolder]:
    """Runs as the page shows them.

    Args:
        found: Any runs.

    Returns:
        By what else differs, then by what they are drawn against; as given where that is nothing.
    """
    key = runs.axis(found)
    if key is None:
        return list(found)
    places = {label: i for i, label in enumerate(dict.fromkeys(_group(run, found) for run in found))}
    return sorted(found, key=lambda run: (places[_group(run, found)], run.config[key]))


def headline(found: Sequence[RunFolder]) -> str:
    """What differs, and which run is nearest to the data; from the numbers alone.

    Args:
        found: Any runs.

    Returns:
        Plain text.
    """
    keys = runs.differing(found)
    values = {key: list(dict.fromkeys(runs.value(run, key) for run in found)) for key in keys[:3]}
    listed = "; ".join(f"{runs.short_key(key)} ({', '.join(texts)})" for key, texts in values.items())
    more = f" and {len(keys) - 3} other keys" if len(keys) > 3 else ""
    text = f"They differ in {listed}{more}." if keys else "Their configs do not differ in anything that results hang on."
    measured = [run for run in found if run.evaluation]
    if not measured:
        return text + " None of them has been evaluated yet."
    changes = {run.name: table.excess_change(run.evaluation["spaces"], "judge", "tuned") for run in measured if run.evaluation}
    best = min(measured, key=lambda run: changes[run.name])
    error, change = table.change_error(dict(best.evaluation or {}), "judge", "tuned"), changes[best.name]
    how = "fell most" if change < 0 else "rose least"
    verdict = "" if abs(change) >= 2 * error else ", which is no clear change"
    return (
        f"{text} Of the {len(measured)} with an evaluation, each against its own base, the distance to real images in the judge space, above "
        f"the floor, {how} in {best.name}: by {100 * abs(change):.0f} ± {100 * error:.0f} %{verdict}."
    )


def plain(found: Sequence[RunFolder]) -> str:
    """The runs for a terminal.

    Args:
        found: Any runs.

    Returns:
        Lines: the table, and what to know before comparing.
    """
    ordered = in_order(found)
    head, body = cells(ordered)
    lines = [head, *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([shown[0], "-" * max(map(len, shown)), *shown[1:], *(f"note: {note}" for note in runs.notes(ordered))])


def cells(found: Sequence[RunFolder]) -> tuple[list[str], list[list[str]]]:
    """The table of runs.

    Args:
        found: In order.

    Returns:
        (column names, a row a run): number, name, differing keys, distances ± errors, change against the base, and the rest.
    """
    keys = runs.differing(found)[:_KEYS_SHOWN]
    head = ["", "run", *map(runs.short_key, keys), *(f"FD {space}" for space in table.SPACES)]
    head += ["precision", "recall", "coverage", "accuracy", "KL, nats", "time"]
    body = []
    for number, run in enumerate(found, 1):
        line = [str(number), run.name, *(runs.value(run, key) for key in keys)]
        result = dict(run.evaluation) if run.evaluation else None
        for space in table.SPACES:
            line.append("–" if result is None else _distance(result, space))
        for metric in ("precision", "recall", "coverage", "accuracy"):
            line.append("–" if result is None else f"{result[metric]['tuned']:.3f}")
        line.append("–" if result is None else f"{result['kl']:.3g}")
        body.append([*line, areas.duration(sum(run.seconds.values(), 0.0))])
    return head, body


def _distance(result: dict[str, Any], space: str) -> str:
    value, error = result["spaces"][space]["tuned"], result["spaces_se"][space]["tuned"]
    change, its_error = table.excess_change(result["spaces"], space, "tuned"), table.change_error(result, space, "tuned")
    return f"{value:.3f} ±{error:.3f} ({100 * change:+.0f} ±{100 * its_error:.0f}%)"


def _group(run: RunFolder, found: Sequence[RunFolder]) -> str:
    """What a run's curve is called: all that differs but what it is drawn against, and how it was measured."""
    keys = [key for key in runs.differing(found) if key != runs.axis(found) and not key.startswith("evaluate.")]
    if not keys:
        return "tuned"
    label = runs.label(run, runs.telling(found, keys))
    if len(label) <= 44:
        return label
    alike = next(other for other in found if all(other.config.get(key) == run.config.get(key) for key in keys))
    return f"as {alike.name}"


def _groups(found: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """Runs with an evaluation, by curve."""
    grouped: dict[str, list[RunFolder]] = {}
    for run in found:
        if run.evaluation:
            grouped.setdefault(_group(run, found), []).append(run)
    return grouped


def _table(found: Sequence[RunFolder]) -> str:
    head, body = cells(found)
    text = 2 + len(runs.differing(found)[:_KEYS_SHOWN])
    lines = [
        "<tr>"
        + "".join(f"<th{' class=text' if i < text else ''}>{html.escape(cell)}</th>" for i, cell in enumerate(head))
        + "</tr>"
    ]
    for run, line in zip(found, body, strict=True):
        shown = []
        for i, cell in enumerate(line):
            space = head[i].removeprefix("FD ")
            if run.evaluation and head[i].startswith("FD "):
                value, _, change = cell.partition(" (")
                size, error = (
                    table.excess_change(run.evaluation["spaces"], space, "tuned"),
                    table.change_error(dict(run.evaluation), space, "tuned"),
                )
                tone = "unclear" if abs(size) < 2 * error else "good" if size < 0 else "bad"
                cell = f"{html.escape(value.partition(' ')[0])} <small>{value.partition(' ')[2]}</small><br>"
                shown.append(f"<td>{cell}<span class='{tone}'>{html.escape(change.rstrip(')'))}</span></td>")
            else:
                shown.append(f"<td{' class=text' if i < text else ''}>{html.escape(cell)}</td>")
        lines.append(f"<tr>{''.join(shown)}</tr>")
    return (
        f"<div class='scroll'><table class='dense'>{''.join(lines)}</table></div><p class='soft'>Fréchet distances (FD) of the tuned models ± bootstrap "
        "standard error; below, the change of the excess over the floor against the run's own base ± its error (same noise), in colour where "
        "it is twice its error. –: the run has no evaluation. Precision, recall and coverage are taken in the judge space; time is that of "
        "all stages so far.</p>"
    )


def _strips(found: Sequence[RunFolder]) -> str:
    """Samples of the same noise, a column a run, for each noise that two runs share."""
    by_noise: dict[tuple[str, ...], list[RunFolder]] = {}
    for run in found:
        if "grid_tuned" in run.arrays:
            by_noise.setdefault(run.noise, []).append(run)
    shared = [group for group in by_noise.values() if len(group) > 1]
    title = "<h2>The same noise in every run</h2>"
    if not shared:
        return f"{title}<p class='soft'>No two runs have pictures of the same noise.</p>"
    key = runs.axis(found)
    what = "" if key is None else f", {runs.short_key(key)} rising from left to right"
    strips = []
    for group in shared:
        common = f"<h3>seed = {runs.value(group[0], 'seed')}</h3>" if len(by_noise) > 1 else ""
        small = " small" if group[0].arrays["grid_tuned"].shape[1] <= 32 else ""
        strips.append(f"<div class='scroll'>{common}<div class='strip{small}'>{''.join(_columns(group, found))}</div></div>")
    return f"{title}<p class='soft'>Each row starts from the same noise and label{what}.</p><div class='strips'>{''.join(strips)}</div>"


def _columns(group: Sequence[RunFolder], found: Sequence[RunFolder]) -> list[str]:
    """Pictures of a strip; a base stands before the runs that started from it."""
    keys = [key for key in runs.differing(found) if not key.startswith("evaluate.")]
    rows, columns = _rows(len(group[0].arrays["grid_tuned"])), []
    ordered, bases = list(group), [run.arrays["grid_base"] for run in group]
    first = {run.name: next(i for i, base in enumerate(bases) if np.array_equal(base, run.arrays["grid_base"])) for run in group}
    ordered.sort(key=lambda run: first[run.name])
    several = len(set(first.values())) > 1
    for index, run in enumerate(ordered):
        if index == 0 or first[run.name] != first[ordered[index - 1].name]:
            said = f"base of {run.name}" if several else "base"
            columns.append(_column(said, f"{said}, before post-training", run.arrays["grid_base"], rows))
        beside = [other for other in ordered if first[other.name] == first[run.name]]
        label = runs.label(run, runs.telling(beside, keys))
        label = label if len(label) <= 44 else run.name
        columns.append(_column(label, f"{label} ({run.name}), after post-training", run.arrays["grid_tuned"], rows))
    return columns


def _column(title: str, said: str, grid: np.ndarray, rows: Sequence[int]) -> str:
    alt = f"{said}: {len(rows)} images one above the other, from the same noise and labels as in the other columns."
    return sections.picture(title, alt, [grid[row : row + 1] for row in rows], largest=128)


def _rows(count: int) -> list[int]:
    """Places in a stored grid: eight to ten images, of as many classes as there are."""
    classes = max(1, count // _EACH)
    shown = classes if 8 <= classes <= 10 else 8
    if classes >= shown:
        return [i * classes // shown * _EACH for i in range(shown)]
    return [i % classes * _EACH + i // classes for i in range(min(shown, count))]


def _x(run: RunFolder, found: Sequence[RunFolder]) -> float:
    key = runs.axis(found)
    return float(found.index(run) + 1 if key is None else run.config[key])


def _against(
    found: Sequence[RunFolder],
    title: str,
    y_label: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    errors: Mapping[str, Sequence[float]] | None = None,
    log_y: bool = False,
) -> str:
    """Lines over what differs: over ratios of λ; or points over the runs' numbers."""
    key = runs.axis(found)
    places = [_x(run, found) for run in found]
    log = key is not None and min(places) > 0 and max(places) >= 3 * min(places)
    label = "run (its number in the table)" if key is None else runs.short_key(key)
    ticks = sorted(set(places)) if key is None or len(set(places)) <= 8 or log else None
    return charts.lines(
        title, label, y_label, series, errors=errors, log_x=log, log_y=log_y, x_ticks=ticks, joined=key is not None
    )


def _distances(found: Sequence[RunFolder]) -> str:
    groups = _groups(found)
    if not groups:
        return ""
    absolute, relative = [], []
    for space, title in SPACE_NAMES.items():
        series, bars, changes, their_bars = {}, {}, {}, {}
        for name, group in groups.items():
            x = [_x(run, found) for run in group]
            results = [dict(run.evaluation or {}) for run in group]
            series[name] = (x, [result["spaces"][space]["tuned"] for result in results])
            bars[name] = [result["spaces_se"][space]["tuned"] for result in results]
            changes[name] = (x, [100 * table.excess_change(result["spaces"], space, "tuned") for result in results])
            their_bars[name] = [100 * table.change_error(result, space, "tuned") for result in results]
        of = title if space == "pixels" else f"the {title}"
        series |= _level(found, groups, space)
        every = [value for _, values in series.values() for value in values]
        wide = min(every) > 0 and max(every) > 4 * min(every)
        absolute.append(_against(found, f"FD in {of}", "FD to the data", series, bars, log_y=wide))
        relative.append(_against(found, f"Change in {of}", "excess against the base, %", changes, their_bars))
    against = "by run" if (key := runs.axis(found)) is None else f"against {runs.short_key(key)}"
    return (
        f"<h2>Distances {html.escape(against)}</h2><p class='soft'>Bars are one standard error. Below: the change of the excess over the floor, "
        f"0 being the run's own base.</p><div class='charts'>{''.join(absolute + relative)}</div>"
    )


def _level(
    found: Sequence[RunFolder], groups: Mapping[str, Sequence[RunFolder]], space: str
) -> dict[str, tuple[list[float], list[float]]]:
    """The bases' distances as level lines, where they are few enough to be read."""
    levels: dict[float, list[str]] = {}
    for name, group in groups.items():
        for run in group:
            if run.evaluation:
                levels.setdefault(run.evaluation["spaces"][space]["base"], []).append(name)
    if len(levels) > 2:
        return {}
    places = [_x(run, found) for run in found]
    ends = [min(places), max(places)]
    one = len(levels) == 1
    return {
        "base" if one else f"base: {', '.join(dict.fromkeys(names))}": (ends, [level, level]) for level, names in levels.items()
    }


def _tradeoff(found: Sequence[RunFolder]) -> str:
    groups = _groups(found)
    if not groups:
        return ""
    key, figures = runs.axis(found), []
    for space, title in (("judge", "judge space"), ("reward", "reward space")):
        series: dict[str, tuple[Any, Any, list[str]]] = {}
        for name, group in groups.items():
            points = [(*_place(run, space, "tuned"), runs.value(run, key) if key else str(found.index(run) + 1)) for run in group]
            points = ([(*_place(group[0], space, "base"), "base")] if key else []) + points
            series[name] = ([x for x, _, _ in points], [y for _, y, _ in points], [word for _, _, word in points])
        if key is None:
            bases = list(dict.fromkeys(_place(run, space, "base") for group in groups.values() for run in group))
            series["bases"] = ([x for x, _ in bases], [y for _, y in bases], ["base"] * len(bases))
        figures.append(
            charts.paths(f"Precision against coverage, {title}", "coverage", "precision", series, joined=key is not None)
        )
    along = (
        f"A path leads from the base over rising {runs.short_key(key)}, which stands beside each point"
        if key
        else "Numbers are the runs'"
    )
    return (
        f"<h2>Precision and coverage</h2><p class='soft'>{html.escape(along)}. Up is more faithful, to the right more varied.</p>"
        f"<div class='charts'>{''.join(figures)}</div>"
    )


def _place(run: RunFolder, space: str, row: str) -> tuple[float, float]:
    """(coverage, precision) of a run with an evaluation; no numbers for one of an older version that has none in this space."""
    result = run.evaluation or {}
    metrics = result if space == "judge" else result.get("reward_space", {})
    coverage, precision = (metrics.get(metric, {}).get(row, float("nan")) for metric in ("coverage", "precision"))
    return coverage, precision


def _statistics(found: Sequence[RunFolder]) -> str:
    """Drift of colour, light and sharpness, then the other rewards, each against what differs."""
    groups = _groups(found)
    measured = [run for group in groups.values() for run in group]
    names = list(dict.fromkeys(name for run in measured for name in _means(run)))
    split = {True: [name for name in names if name in _DRIFTS], False: [name for name in names if name not in _DRIFTS]}
    texts = {
        True: ("Drift", "Means over the images. Tuned models far from the data here have been over-optimised."),
        False: ("Rewards", "Means over the images, of rewards that were trained on and of those that were only measured."),
    }
    parts = []
    for drifts, (title, text) in texts.items():
        figures = []
        for name in split[drifts]:
            series = {}
            for label, group in groups.items():
                having = [run for run in group if name in _means(run)]
                series[label] = ([_x(run, found) for run in having], [_means(run)[name]["tuned"] for run in having])
            places = [_x(run, found) for run in found]
            for row, said in (("base", "base"), ("data", "data")):
                levels = {_means(run)[name][row] for run in measured if name in _means(run)}
                if len(levels) == 1:
                    series[said] = ([min(places), max(places)], [levels.copy().pop()] * 2)
            figures.append(_against(found, f"{title}: {name}" if drifts else name, name.replace("_", " "), series))
        if figures:
            parts.append(f"<h2>{title}</h2><p class='soft'>{text}</p><div class='charts'>{''.join(figures)}</div>")
    return "".join(parts)


def _means(run: RunFolder) -> dict[str, dict[str, float]]:
    """Statistic or reward -> its mean over the data, the base's and the tuned model's samples."""
    result, rows = run.evaluation or {}, ("data", "base", "tuned")
    found = {name: {row: values[row]["mean"] for row in rows} for name, values in (result.get("rewards") or {}).items()}
    table_of = result.get("drift") or {}
    return found | {name: {row: table_of[row][name] for row in rows} for name in table_of.get("data", {})}


def _gates(found: Sequence[RunFolder]) -> str:
    having = [run for run in found if "gates_tuned" in run.arrays and "gates_base" in run.arrays]
    if not having:
        return ""
    limit = max(float(np.abs(run.arrays[f"gates_{row}"]).max()) for run in having for row in ("base", "tuned"))
    seen, figures = [], []
    for run in having:
        base = run.arrays["gates_base"]
        names = {} if any(np.array_equal(base, other) for other in seen) else {"base": f"base of {run.name}"}
        seen.append(base)
        figures += sections.gates(run.arrays, names | {"tuned": run.name}, limit)
    return (
        "<h2>Spectral gates</h2><p class='soft'>A gate g multiplies low (or high) frequencies of a block's MLP residual by 1 + g. All share "
        f"a scale.</p><div class='charts'>{''.join(figures)}</div>"
    )


def _training(found: Sequence[RunFolder]) -> str:
    keys = runs.telling(found, runs.differing(found))
    figures = []
    for metric, (title, y_label) in _CURVES.items():
        series = {}
        for number, run in enumerate(found, 1):
            points = [(line["step"], line[metric]) for line in run.metrics if line["stage"] == "posttrain" and metric in line]
            if points:
                label = runs.label(run, keys)
                series[label if keys and len(label) <= 44 else f"{number}: {run.name}"] = tuple(zip(*points, strict=True))
        if series:
            figures.append(charts.lines(title, "refresh", y_label, series))
    return f"<h2>How post-training went</h2><div class='charts'>{''.join(figures)}</div>" if figures else ""


def _time(found: Sequence[RunFolder]) -> str:
    figures, said = [], []
    for number, run in enumerate(found, 1):
        if sum(run.seconds.values()) > 0:
            figures.append(areas.pie(f"{number}: {run.name}", run.seconds))
        steps = [
            sections.steps_said(run.machine, stage, unit) for stage, unit in (("pretrain", "steps"), ("posttrain", "refreshes"))
        ]
        said += [f"<li>{html.escape(f'{number}: {run.name}: {text}')}</li>" for text in steps if text]
    if not figures:
        return ""
    return f"<h2>Time by stage</h2><div class='charts'>{''.join(figures)}</div><ul class='soft'>{''.join(said)}</ul>"


def _settings(found: Sequence[RunFolder]) -> str:
    """Every key that differs, and where the runs are."""
    heads = "".join(f"<th>{number}</th>" for number in range(1, len(found) + 1))
    lines = [f"<tr><th>key</th>{heads}</tr>"]
    for key in runs.differing(found):
        lines.append(
            f"<tr><td>{html.escape(key)}</td>" + "".join(f"<td>{html.escape(runs.value(r, key))}</td>" for r in found) + "</tr>"
        )
    places = "".join(
        f"<li>{number}: {html.escape(run.name)}, {html.escape(', '.join(run.stages) or 'no stage finished')}</li>"
        for number, run in enumerate(found, 1)
    )
    return (
        f"<details><summary>Every key that differs, and the stages that each run has</summary><div class='scroll'><table>{''.join(lines)}"
        f"</table></div><ul class='soft'>{places}</ul></details>"
    )
