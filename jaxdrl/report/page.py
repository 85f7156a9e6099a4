"""report.html: one file without scripts or requests; what happened, the pictures, the numbers, the curves."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdrl.report import areas, charts, sections, table

SPACE_NAMES = {"reward": "reward space", "judge": "judge space", "pixels": "pixels"}


def render(report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> str:
    """Writes the page.

    Args:
        report: As in `report.json`.
        metrics: Lines of `metrics.jsonl`.
        arrays: `report_arrays.safetensors` of the evaluate stage.

    Returns:
        HTML.
    """
    parts = [
        f"<h1>{html.escape(str(report['config']['name']))}</h1><p class='lead'>{html.escape(headline(report))}</p>",
        _grids(report, arrays),
        "<h2>The distances</h2>" + _table(report) + _reading(report) + _tradeoff(report) + _rewards(report) + _drift(report),
        "<h2>What the reward saw</h2><div class='charts'>" + "".join(_clouds(arrays)) + "</div>",
        _gates(report, arrays),
        "<h2>Is the base converged?</h2>" + _plateau(report, metrics),
        "<h2>How each stage went</h2><div class='charts'>" + "".join(_curves(metrics)) + "</div>",
        _details(report, metrics),
    ]
    return sections.document(f"jaxdrl: {report['config']['name']}", parts)


def headline(report: Mapping[str, Any]) -> str:
    """One sentence that says what happened, from the numbers alone.

    Args:
        report: As in `report.json`.

    Returns:
        Plain text; a change of less than two standard errors, or of less than half a percent, is called no clear change.
    """
    said = []
    for space, title in SPACE_NAMES.items():
        values, error = report["spaces"][space], report["spaces_change_se"][space]["tuned"]
        change = 100 * table.excess_change(report["spaces"], space, "tuned")
        if abs(values["tuned"] - values["base"]) < 2 * error or abs(change) < 0.5:
            said.append(f"no clear change in {title}" if space == "pixels" else f"no clear change in the {title}")
        else:
            word = "smaller" if change < 0 else "LARGER"
            said.append(f"{abs(change):.0f} % {word} in {title if space == 'pixels' else 'the ' + title}")
    by = table.method(dict(report))
    text = (
        f"After {'Discriminator-Guided RL' if by == 'DRL' else by} the distance to real images, above the floor of real data itself, is "
        + "; ".join(said)
    )
    judge = report["spaces"]["judge"]
    if "longer_pretraining" in judge:
        gap, noise = judge["longer_pretraining"] - judge["tuned"], 2 * report["spaces_tuned_se"]["judge"]["longer_pretraining"]
        verdict = "worse" if gap > noise else "better" if gap < -noise else "neither clearly worse nor better"
        text += f". Pretraining continued for the same compute is {verdict} in the judge space"
    return text + "."


def _grids(report: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    titles = {"grid_base": "base", "grid_tuned": f"after {table.method(dict(report))}", "grid_real": "real images"}
    shape, classes = "a row a class", report["stages"].get("data", {}).get("num_classes")
    figures = []
    for name, title in titles.items():
        if name not in arrays:
            continue
        images = arrays[name]
        rows = [images[start : start + 8] for start in range(0, len(images), 8)]
        source = "from the data" if name == "grid_real" else "the same noise and labels before and after"
        alt = f"{len(images)} images, {title}: {len(rows)} rows of {len(rows[0])}, {shape}{f' of {classes}' if classes else ''}; {source}."
        figures.append(sections.picture(title, alt, rows))
    names = report["stages"].get("data", {}).get("class_names", [])
    classes = f" Rows are classes: {html.escape(', '.join(map(str, names)))}." if names else ""
    return (
        "<h2>The same noise, before and after</h2><p class='soft'>Each image of the middle grid comes from the same noise and "
        f"label as its neighbour in the first.{classes}</p><div class='grids'>" + "".join(figures) + "</div>"
    )


def _table(report: Mapping[str, Any]) -> str:
    head, body = table.cells(dict(report))
    titles = {title: row for row, title in table.titles(dict(report)).items()}
    lines = ["<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in head) + "</tr>"]
    for line in body:
        row = titles[line[0]]
        cells = [f"<td>{html.escape(line[0])}</td>"]
        for column, text in enumerate(line[1:]):
            value, _, change = text.partition(" (")
            shown = html.escape(value).replace(" ±", " <small>±") + ("</small>" if "±" in value else "")
            if change and column < len(table.SPACES):
                space = table.SPACES[column]
                size, error = table.excess_change(report["spaces"], space, row), table.change_error(dict(report), space, row)
                tone = "unclear" if abs(size) < 2 * error else "good" if size < 0 else "bad"
                shown += f"<br><span class='{tone}'>{html.escape(change.rstrip(')'))}</span>"
            cells.append(f"<td>{shown}</td>")
        lines.append(f"<tr class='{'main' if row == 'tuned' else ''}'>" + "".join(cells) + "</tr>")
    return "<div class='scroll'><table>" + "".join(lines) + "</table></div>"


def _reading(report: Mapping[str, Any]) -> str:
    rows = [
        f"Fréchet distances (FD) of {report['samples']} guidance-free samples to the {report['split']} images, ± their bootstrap "
        "standard error; the percentage is the change of the excess over the floor (the distance between two halves of the "
        "real data) ± the error of that change, smaller because samples share their noise; in colour where it is twice its error. "
        "The <b>reward space</b> is the one that the discriminator looks through, so its improvement is expected; "
        "the <b>judge space</b> and the <b>pixels</b> had no part in training. Precision, recall and coverage are taken in the judge "
        "space; accuracy by "
        + (
            "a support vector machine on the pixels"
            if report.get("accuracy_space") == "pixels"
            else "nearest neighbours in the judge space"
        )
        + ". Copies: samples closer to a training image than 95 % of the held-out images are.",
        _distance_from_base(report),
    ]
    control, guidance = report.get("control") or {}, report.get("guidance") or {}
    if "total_steps" in control:
        rows.append(
            f"Control: <b>longer pretraining</b> goes on for {control['steps']} more steps, the operations that discriminator and RL "
            "took together."
        )
    if guidance:
        chosen = "; ".join(
            f"{table.method(dict(report)) if 'tuned' in name else 'base'}: {g['scale']:g} on {g['interval']}"
            for name, g in guidance.items()
        )
        rows.append(
            "<b>Best guidance</b> is the scale and interval with the least judge distance to the validation images "
            f"({chosen}), and costs two evaluations a step."
        )
    missing = [
        what for what, there in (("longer pretraining", "total_steps" in control), ("best guidance", guidance)) if not there
    ]
    if missing:
        rows.append(f"Not in this run: {', '.join(missing)}.")
    return "".join(f"<p>{row}</p>" for row in rows)


def _distance_from_base(report: Mapping[str, Any]) -> str:
    """How far the tuned model went, and where the method knows it, how far it could have gone."""
    if "ess" not in report:
        return f"The tuned model is {report['kl']:.3f} nats from the base (control energy of the memoryless SDE)."
    means = report["reward_mean"]
    return (
        "The <b>ideal tilt</b> is what solving the RL problem exactly would give: base samples resampled in proportion to "
        "exp(λ r). It is limited by this discriminator and by what the base can produce. Mean reward: base "
        f"{means['base']:.3f}, tuned {means['tuned']:.3f}, ideal {means['ideal_tilt']:.3f}, data {means['data']:.3f}; the tuned model "
        f"covers <b>{100 * report['ideal_share']:.0f} %</b> of the ideal shift. Effective sample size of the tilt: {report['ess']['mean']:.2f}. "
        f"The tuned model is {report['kl']:.3f} nats from the base; λ times its reward shift is {_number(report['projection_ratio'])} × "
        "2 KL. Near 1 the optimiser has reached what this network can express of the tilt; above 1 it stopped early, below 1 it "
        "spent KL on noise."
    )


def _rewards(report: Mapping[str, Any]) -> str:
    """Every reward in units of the base's spread; a run on the discriminator alone has it in the text."""
    found = report.get("rewards") or {}
    if list(found) in ([], ["discriminator"]):
        return ""
    titles = {"data": f"{report['split']} images", "base": "base", "tuned": table.titles(dict(report))["tuned"]}
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in titles.values())
    lines = [f"<tr><th></th>{heads}<th>shift, in the base's standard deviations</th></tr>"]
    for name, rows in found.items():
        cells = "".join(f"<td>{rows[row]['mean']:.4g} <small>({rows[row]['std']:.3g})</small></td>" for row in titles)
        gain = rows["tuned"]["gain"]
        tone = "good" if gain > 0 else "bad"
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}<td><span class='{tone}'>{gain:+.2f}</span></td></tr>")
    return (
        "<h2>The rewards</h2><p class='soft'>Means, in brackets standard deviations over images, of guidance-free samples with the same noise and "
        "labels.</p><div class='scroll'><table>" + "".join(lines) + "</table></div>"
    )


def _drift(report: Mapping[str, Any]) -> str:
    """The five statistics of colour and light, by which over-optimised images drift; grey images have none."""
    rows = report.get("drift") or {}
    if not rows:
        return ""
    names = list(rows["data"])
    titles = {"data": f"{report['split']} images"} | table.titles(dict(report))
    lines = ["<tr><th></th>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>"]
    for row, title in titles.items():
        if row in rows:
            cells = "".join(f"<td>{rows[row][name]:.3f}</td>" for name in names)
            lines.append(f"<tr class='{'main' if row == 'tuned' else ''}'><td>{html.escape(title)}</td>{cells}</tr>")
    return (
        "<h2>Colour and light</h2><p class='soft'>Means over the images, in [0, 1] except colourfulness. A tuned model far from the data here "
        "has been over-optimised.</p><div class='scroll'><table>" + "".join(lines) + "</table></div>"
    )


def _tradeoff(report: Mapping[str, Any]) -> str:
    """Every row as a point of precision and coverage, base and tuned model joined."""
    titles = table.titles(dict(report))
    across, up = report["coverage"], report["precision"]
    rows = [row for row in titles if row in across and row in up]
    if "base" not in rows or "tuned" not in rows:
        return ""
    both = ("base", "tuned")
    series = {"base to tuned": ([across[row] for row in both], [up[row] for row in both], ["base", titles["tuned"]])}
    series |= {titles[row]: ([across[row]], [up[row]], [titles[row]]) for row in rows if row not in both}
    chart = charts.paths("Precision against coverage", "coverage, judge space", "precision, judge space", series)
    return f"<div class='charts'>{chart}</div>"


def _gates(report: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SpectralDiT's gates before and after, where the network has them."""
    found = sections.gates(arrays, {"base": "base", "tuned": f"after {table.method(dict(report))}", "change": "change"})
    if not found:
        return ""
    return (
        "<h2>The spectral gates</h2><p class='soft'>A gate g multiplies low (or high) frequencies of a block's MLP residual by 1 + g, by "
        "time and block; means over classes. Base and tuned model share a scale, their difference has its own.</p>"
        f"<div class='charts'>{''.join(found + sections.gate_curves(arrays))}</div>"
    )


def _clouds(arrays: Mapping[str, np.ndarray]) -> list[str]:
    figures = []
    for space in ("reward", "judge"):
        clouds = {row: arrays[f"pca_{space}_{row}"] for row in ("data", "base", "tuned") if f"pca_{space}_{row}" in arrays}
        if clouds:
            figures.append(charts.scatter(f"Features in the {space} space", clouds))
    logits = {row: arrays[f"logits_{row}"] for row in ("real", "base", "tuned") if f"logits_{row}" in arrays}
    if logits:
        figures.append(charts.histogram("The discriminator's logit", "logit (> 0: looks real)", logits))
    return figures


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else "(no KL was spent)"


def _plateau(report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    points = [line for line in metrics if line["stage"] == "pretrain" and "judge_frechet" in line]
    if points:
        steps = [line["step"] for line in points]
        curves = [
            charts.lines(
                f"Pretraining, {title}", "step", "FD to validation", {"FD": (steps, [line[f"{s}_frechet"] for line in points])}
            )
            for s, title in SPACE_NAMES.items()
        ]
        chart = "<div class='charts'>" + "".join(curves) + "</div>"
    else:
        given = report["config"].get("backbone", {}).get("weights")
        where = (
            f"converted weights, {html.escape(given)}" if given else "the base in the package; its curve is in docs/results.md"
        )
        chart = f"<p class='soft'>This run started from {where}.</p>"
    judge = report["spaces"]["judge"]
    if "longer_pretraining" not in judge:
        return chart
    change = 100 * (judge["longer_pretraining"] / judge["base"] - 1)
    verdict = "met" if change > -5 else "NOT met"
    return chart + (
        f"<p>The plateau test, that pretraining continued for the same compute improves the judge distance by less than 5 %, is "
        f"<b>{verdict}</b>: it changed by {change:+.1f} %.</p>"
    )


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    wanted = [
        ("encoders.reward", "Reward encoder (DINO)", "step", "loss", ["loss"]),
        ("encoders.judge", "Judge encoder (SimCLR)", "step", "loss", ["loss"]),
        ("pretrain", "Pretraining", "step", "flow-matching loss", ["loss"]),
        ("discriminator", "Discriminator", "step", "loss", ["loss_train", "loss_validation"]),
        ("discriminator", "Discriminator's accuracy", "step", "share right", ["accuracy", "accuracy_validation"]),
        ("posttrain", "Reward in training", "refresh", "mean", ["reward_mean"]),
        ("posttrain", "Control energy", "refresh", "KL estimate, nats", ["control_energy"]),
        (
            "posttrain",
            "Adjoint norm by time",
            "refresh",
            "mean norm",
            [f"adjoint_norm_t{q}" for q in ("0.00", "0.25", "0.50", "0.75")],
        ),
        ("posttrain", "Loss of Adjoint Matching", "refresh", "loss", ["loss"]),
        ("posttrain", "Masked trajectories", "refresh", "share", ["masked_share"]),
        ("posttrain", "Gradient norm", "refresh", "norm", ["gradient_norm"]),
        ("posttrain", "Speed", "refresh", "images/s", ["images_per_second"]),
    ]
    wanted += _of_rewards(metrics)
    figures = []
    for stage, title, x_label, y_label, names in wanted:
        series = {}
        for name in names:
            points = [(line["step"], line[name]) for line in metrics if line["stage"] == stage and name in line]
            if points:
                series[name] = tuple(zip(*points, strict=True))
        if series:
            figures.append(charts.lines(title, x_label, y_label, series))
    return figures


def _of_rewards(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str, list[str]]]:
    """Curves of several rewards: their means, and what balances them."""
    lines = [line for line in metrics if line["stage"] == "posttrain"]
    rewards = [name.partition("/")[2] for name in (lines[0] if lines else {}) if name.startswith("reward_mean/")]
    curves = [(f"Reward: {name}", "mean", [f"reward_mean/{name}"]) for name in (rewards if len(rewards) > 1 else [])]
    for metric, title, label in (
        ("alpha", "Weights of the rewards", "alpha"),
        ("cosine", "Each reward's gradient and the update", "cosine"),
    ):
        curves.append((title, label, [f"{metric}/{name}" for name in rewards]))
    curves += [
        ("The worst reward's gradient and the update", "cosine", ["worst_cosine", "worst_cosine_of_sum"]),
        ("Rewards in conflict", "share of pairs", ["conflict_rate"]),
        ("Spread within a condition", "pixels", ["sample_spread"]),
    ]
    return [("posttrain", title, "refresh", label, names) for title, label, names in curves]


def _details(report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    seconds = report["seconds"]
    rows = "".join(f"<tr><td>{html.escape(stage)}</td><td>{value:.0f}</td></tr>" for stage, value in seconds.items())
    kept = {key: report[key] for key in ("config", "stages", "versions")}
    steps = [sections.steps_said(metrics, stage, unit) for stage, unit in (("pretrain", "steps"), ("posttrain", "refreshes"))]
    said = "".join(f"<p class='soft'>{html.escape(text)}</p>" for text in steps if text)
    return (
        f"<h2>Cost and settings</h2><div class='charts'>{areas.pie('Time by stage', seconds)}"
        "<div class='scroll'><table><tr><th>stage</th><th>seconds</th></tr>"
        f"{rows}<tr class='main'><td>all</td><td>{sum(seconds.values()):.0f}</td></tr></table></div></div>{said}"
        f"<details><summary>Config, results of the stages, versions</summary><pre>{html.escape(json.dumps(kept, indent=2))}</pre></details>"
    )
