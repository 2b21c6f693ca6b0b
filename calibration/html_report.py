"""The report of an evaluation that a quality manager reads, prints and signs: one HTML file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from calibration import charts
from calibration.evaluation import Run
from calibration.examples import Example
from calibration.html_page import (
    cards,
    facts,
    figure,
    heat_scale,
    image,
    note,
    page,
    signatures,
    table,
    with_interval,
)
from calibration.published_results import benchmark_of, published
from calibration.report_evaluation import HEADS, points
from calibration.results import METRICS, SEVEN, ClassResult, Evaluation
from calibration.robustness import Robustness
from calibration.thresholds import percent


def render(run: Run) -> str:
    """The whole document. Raises `CalibrationError` where matplotlib is missing."""
    evaluation = run.evaluation
    title = f"{evaluation.method} on {evaluation.dataset}"
    return page(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            f'<p class="dim">Evaluation report, {escape(str(evaluation.provenance["started_at"]))}; '
            f"{escape(evaluation.layout)}; {len(evaluation.classes)} "
            f"{'class' if len(evaluation.classes) == 1 else 'classes'}</p>",
            _cards(evaluation),
            *map(note, _notes(evaluation)),
            _metrics(evaluation),
            _limit(evaluation),
            _curves(evaluation),
            _cases(run.examples),
            _robustness(run.robustness),
            _latency(evaluation),
            _made(evaluation),
            _definitions(),
            signatures(),
        ],
    )


def _rate(counts: tuple[int, int]) -> str:
    return f"{counts[0]} of {counts[1]}" + (f" ({percent(counts[0] / counts[1])})" if counts[1] else "")


def _cards(evaluation: Evaluation) -> str:
    mean, intervals = evaluation.mean, evaluation.intervals
    wrong, good = (sum(one.false_rejects[i] for one in evaluation.classes) for i in (0, 1))
    missed, bad = (sum(one.misses[i] for one in evaluation.classes) for i in (0, 1))
    return cards(
        (
            (with_interval(mean["image_auroc"], intervals.get("image_auroc")), "image AUROC [%]", ""),
            (points(mean["aupro"]), "AU-PRO [%]", ""),
            (points(mean["mad"]), "mAD, mean of the seven [%]", ""),
            (f"{wrong} / {good}", "good images rejected at the limit", "bad" if wrong else "good"),
            (f"{missed} / {bad}", "defects missed at the limit", "bad" if missed else "good"),
        )
    )


def _notes(evaluation: Evaluation) -> list[str]:
    found = list(evaluation.notes)
    for one in evaluation.classes:
        found += [f"{one.name}: {text}" for text in one.notes]
        reasons: dict[str, list[str]] = {}
        for name, why in one.unavailable.items():
            reasons.setdefault(why, []).append(HEADS[METRICS.index(name)])
        found += [f"{one.name}: no {', '.join(names)}: {why}" for why, names in reasons.items()]
    return found


def _metrics(evaluation: Evaluation) -> str:
    rows: list[tuple[str, Sequence[str]]] = []
    for one in evaluation.classes:
        ends = one.intervals
        rows.append(("", [escape(one.name), *(with_interval(one.metrics[name], ends.get(name)) for name in METRICS)]))
    if len(evaluation.classes) > 1:
        mean, ends = evaluation.mean, evaluation.intervals
        rows.append(("mean", ["mean", *(with_interval(mean[name], ends.get(name)) for name in METRICS)]))
    classes = [one.name for one in evaluation.classes]
    known = published(evaluation.method, classes)
    for row in known:
        cells = [points(row.metrics.get(name)) for name in METRICS]
        rows.append(("published", [f"published: {row.benchmark}<br>{escape(row.setting)}", *cells]))
    text = "<h2>Metrics [%]</h2>" + table(("class", *HEADS), rows)
    text += "<p><small>Small numbers: 95 % bootstrap intervals over images. "
    if not known:
        return text + "There are no published results of this method to set beside.</small></p>"
    if benchmark_of(classes) is None:
        text += "Rows marked as published are the authors' results on other data, shown for orientation. "
    return text + "Published rows are the authors' own, of the setting named; they were not measured here.</small></p>"


def _limit(evaluation: Evaluation) -> str:
    rows: list[tuple[str, Sequence[str]]] = []
    words: dict[str, list[str]] = {}
    for one in evaluation.classes:
        limit = one.bundle["limit"]
        values = ", ".join(
            f"{region['limit']:.4g}"
            if len(limit["regions"]) == 1
            else f"{escape(region['name'])} {region['limit']:.4g}"
            for region in limit["regions"]
        )
        rows.append(
            (
                "",
                [
                    escape(one.name),
                    values,
                    percent(limit["false_reject_rate"]),
                    _rate(one.false_rejects),
                    _rate(one.misses),
                ],
            )
        )
        words.setdefault(limit["guarantee"], []).append(one.name)
    text = "<h2>At the limit</h2>"
    text += table(("class", "limit (raw)", "rate asked", "good images rejected", "defects missed"), rows)
    for guarantee, names in words.items():
        who = "" if len(words) == 1 else f"<b>{escape(', '.join(names))}:</b> "
        text += f"<p>{who}{escape(guarantee)}</p>"
    return text + _kinds(evaluation.classes)


def _kinds(classes: Sequence[ClassResult]) -> str:
    rows: list[tuple[str, Sequence[str]]] = []
    for one in classes:
        for kind, counts in one.to_json()["kinds"].items():
            if kind != "good":
                found = (counts["rejected"], counts["images"])
                rows.append(("", [escape(one.name), escape(kind), str(found[1]), _rate(found)]))
    if not rows:
        return ""
    return "<h3>Defects found, by kind</h3>" + table(("class", "kind", "images", "rejected"), rows, left=2)


def _curves(evaluation: Evaluation) -> str:
    text = "<h2>Curves and scores</h2>"
    drawn = [one for one in evaluation.classes if one.metrics["image_auroc"] is not None]
    if drawn:
        text += figure(charts.roc_and_pr(drawn)) + "<p><small>Dots: what the limit does.</small></p>"
    for one in evaluation.classes:
        text += f"<figure><h3>{escape(one.name)}</h3>{charts.histogram(one)}</figure>"
    return text


def _cases(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    text = ""
    for title, defective in (("Defects with the lowest scores", True), ("Good images with the highest scores", False)):
        chosen = [example for example in examples if example.image.defective is defective]
        if not chosen:
            continue
        chosen.sort(key=lambda example: example.image.percent, reverse=not defective)
        text += f"<h2>{title}</h2>{heat_scale()}" + '<div class="cases">' + "".join(map(_case, chosen)) + "</div>"
    return text


def _case(example: Example) -> str:
    one = example.image
    wrong = one.rejected is not one.defective
    verdict = ("rejected" if one.rejected else "passed") + (", wrongly" if wrong else "")
    return (
        '<div class="case"><div class="pair">'
        + image(example.picture, one.path)
        + image(example.heatmap, f"heatmap of {one.path}")
        + f'</div><p><b class="{"bad" if wrong else "good"}">{one.percent:.0f} % of limit, {verdict}</b><br>'
        + f"{escape(one.kind)}; {escape(one.path)}</p></div>"
    )


def _robustness(found: Sequence[Robustness]) -> str:
    text = ""
    for one in found:
        first = one.curves[0]
        text += f'<div class="keep"><h2>Robustness: {escape(one.class_name)}</h2>'
        text += (
            f"<p>{first.good.shape[1]} good and {first.defective.shape[1]} defective test images, altered and scored "
            "again. Lines are medians, bands hold four fifths of the images, the dotted line is the highest good "
            "image; dashed red: more good images are rejected than the limit was chosen for.</p>"
        )
        text += figure(charts.robustness(one)) + "</div>"
        rows: list[tuple[str, Sequence[str]]] = []
        for curve in one.curves:
            at = curve.breaks(one.rate)
            when = f"{' and '.join(f'{strength:g}' for strength in at)} {escape(curve.unit)}" if at else "not reached"
            if curve.neutral in at:
                when = "unaltered already"
            tried = f"{min(curve.strengths):g} to {max(curve.strengths):g}"
            counts = ", ".join(
                f"{strength:g}: {wrong}" for strength, wrong in zip(curve.strengths, curve.false_rejects, strict=True)
            )
            rows.append(("", [escape(curve.name), f"<b>{when}</b>", f"{tried} {escape(curve.unit)}", counts]))
        heads = ("alteration", f"false rejects exceed {percent(one.rate)} at", "tried", "good images rejected")
        text += table(heads, rows, left=4)
    return text


def _latency(evaluation: Evaluation) -> str:
    rows = []
    for one in evaluation.classes:
        time = one.latency
        values = (f"{time.median_ms:.1f}", f"{time.p95_ms:.1f}", f"{time.mean_ms:.1f}", str(time.images))
        rows.append(("", [escape(one.name), escape(one.engine), *values]))
    heads = ("class", "engine", "median [ms]", "95 % below [ms]", "mean [ms]", "images")
    return "<h2>Latency</h2>" + table(heads, rows, left=2)


def _made(evaluation: Evaluation) -> str:
    made: Mapping[str, Any] = evaluation.provenance
    bundles: dict[str, list[ClassResult]] = {}
    for one in evaluation.classes:
        bundles.setdefault(str(one.bundle["id"]), []).append(one)
    fits = [one.train for one in evaluation.classes if one.train is not None]
    values = [
        ("command", f"<code>{escape(str(made['command']))}</code>"),
        ("data", escape(str(made["data"]))),
        ("data fingerprint", f"<code>{escape(str(made['data_fingerprint']))}</code> (decoded test images and labels)"),
        ("seed", escape(str(made["seed"]))),
        ("fitted on", ", ".join(str(count) for count in dict.fromkeys(fits)) + " images" if fits else "a given bundle"),
        ("maps measured at", f"{made['map_size']} px" if made["map_size"] else "the size of each image"),
        ("versions", escape(", ".join(f"{name} {version}" for name, version in made["versions"].items()))),
        ("machine", escape(str(made["machine"]))),
        ("time", f"{made['seconds']:.0f} s in all"),
    ]
    for digest, ones in bundles.items():
        names = ", ".join(one.name for one in ones)
        values.append(("bundle", f"<code>{escape(digest)}</code> {escape(names)}{_bundle_made(ones[0].bundle)}"))
    return "<h2>How it was made</h2>" + facts(values)


def _bundle_made(bundle: Mapping[str, Any]) -> str:
    """What a bundle was made from, as far as it tells: encoder, input, training."""
    told: Mapping[str, Any] = bundle.get("provenance", {})
    lines = []
    if "encoder" in told:
        digest = told.get("encoder_id")
        lines.append(f"encoder {told['encoder']}" + (f", content {digest[:16]}" if digest else ""))
    if "input_size" in bundle:
        height, width = bundle["input_size"]
        lines.append(f"input {height} x {width} px (height x width)")
    training: Mapping[str, Any] = told.get("training") or {}
    if training:
        lines.append("training: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in training.items()))
    return "".join(f"<br>{escape(line)}" for line in lines)


def _definitions() -> str:
    return (
        f"<p><small>{len(SEVEN)} metrics, exact: every threshold counts, nothing is sampled or binned. I: of images, "
        "P: of pixels; AP step-wise; F1 the largest over all thresholds; AU-PRO over all thresholds up to a "
        "false-positive rate of 30 %, regions 8-connected. Maps are raised bilinearly; masks are cut at one half. "
        "100 % of limit is the score above which the line rejects.</small></p>"
    )
