"""The report is one file that needs no network, says what was measured, and marks what was published as such."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from calibration.bootstrap import resampled
from calibration.evaluation import Run
from calibration.examples import Example, jpeg
from calibration.html_report import render
from calibration.published_results import PUBLISHED, benchmark_of, published
from calibration.results import METRICS, ClassResult, Evaluation, Latency, ScoredImage
from calibration.robustness import Curve, Robustness

pytest.importorskip("matplotlib")

LIMIT = {
    "regions": [{"name": "frame", "limit": 0.5, "floor": 0.1}],
    "false_reject_rate": 0.01,
    "guarantee": "At most 1 % & no more.",
}


def result(name: str = "bottle", seed: int = 0, missing: str | None = None) -> ClassResult:
    rng = np.random.default_rng(seed)
    images = [
        ScoredImage(f"{name}/{kind}/{n}.png", kind, 0.1, float(percent), float(percent), kind != "good")
        for kind, centre in (("good", 40), ("hole <b>", 130))
        for n, percent in enumerate(rng.normal(centre, 30, 20))
    ]
    metrics = {metric: 0.9 - 0.01 * n for n, metric in enumerate(METRICS)}
    why = {}
    if missing:
        metrics[missing], why[missing] = None, "no masks: pixel metrics need to know"
    samples = resampled([image.defective for image in images], [image.rank for image in images], 0, 50)
    bundle = {"id": "ab" * 32, "method": "vitad", "limit": LIMIT}
    return ClassResult(
        name, metrics, why, tuple(images), 16, 4, 1000, Latency(4.0, 5.0, 4.2, 40), bundle, "torch", (), samples
    )


def run(classes=("bottle",), method="vitad", robust=False, **options) -> Run:
    provenance = {
        "command": "calibrate evaluate 'my data' --html <x>",
        "started_at": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "seed": 7,
        "map_size": None,
        "data": "data",
        "data_fingerprint": "cd" * 32,
        "versions": {"python": "3.12"},
        "machine": "one",
    }
    results = tuple(result(name, number, **options) for number, name in enumerate(classes))
    evaluation = Evaluation("shelf & co", "plain", method, results, provenance, ("a note",))
    grey = jpeg(np.full((20, 30, 3), 90, np.uint8))
    examples = tuple(Example(one.name, one.images[n], grey, grey) for one in results for n in (0, 25))
    curves = ()
    if robust:
        percents = np.linspace(20, 130, 5)[:, None] + np.arange(4)
        curves = (Curve("blur", "px sigma", (0, 0.5, 1, 2, 4), 0, percents, percents + 60),)
    return Run(evaluation, examples, (Robustness(results[0].name, 0.01, curves),) if robust else ())


class Page(HTMLParser):
    """Collects elements, links and whether tags are balanced."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect", "circle", "line", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.sources += [found[key] for key in ("src", "href", "xlink:href", "data", "action") if found.get(key)]
        if "id" in found:
            self.ids.append(found["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_it_stands_alone():
    text = render(run(("bottle", "cable"), robust=True))
    page = Page(text)
    assert page.open == []
    assert page.sources
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert not re.search(r"https?:|@import|<script|<link|url\((?!#)", text)
    inner = {source[1:] for source in page.sources if source.startswith("#")}
    assert inner <= set(page.ids)


def test_the_parts_of_charts_have_names_of_their_own():
    """Clip paths of several charts live in one document; a name used twice would cut a chart by another's frame."""
    text = render(run(("bottle", "cable", "pill")))
    clips = re.findall(r'<clipPath id="([^"]+)"', text)
    assert len(clips) > 3
    assert len(clips) == len(set(clips))


def test_it_says_what_was_measured():
    page = Page(render(run(robust=True)))
    for words in (
        "vitad on shelf & co",
        "calibrate evaluate 'my data' --html <x>",
        "cd" * 32,
        "ab" * 32,
        "hole <b>",
        "At most 1 % & no more.",
        "a note",
        "16 images",
        "Signature",
        "Robustness: bottle",
        "2 px sigma",  # 75, 102.5, 130 %: the first strength with a good image above the limit
    ):
        assert words in page.text, words


def test_published_rows_are_marked():
    text = Page(render(run(("bottle", "cable")))).text
    assert "published: MVTec AD" in text
    assert "published: VisA" not in text
    assert "85.4" in text
    elsewhere = Page(render(run(("bolt",)))).text
    assert "published: MVTec AD" in elsewhere
    assert "on other data" in elsewhere
    assert "no published results" in Page(render(run(method="memory_bank"))).text


def test_published_results_hold_together():
    """mAD is the mean of the published seven; benchmarks are recognised by their classes."""
    for row in PUBLISHED:
        if "mad" in row.metrics:
            assert np.mean([row.metrics[name] for name in METRICS[:-1]]) == pytest.approx(row.metrics["mad"], abs=6e-4)
    assert benchmark_of(["bottle", "pill"]) == "MVTec AD"
    assert benchmark_of(["pcb1"]) == "VisA"
    assert benchmark_of(["bottle", "pcb1"]) is None
    assert benchmark_of([]) is None
    assert {row.benchmark for row in published("foundad", ["candle"])} == {"VisA"}


def test_what_is_missing_is_said():
    page = Page(render(run(missing="aupro")))
    assert "no AU-PRO: no masks: pixel metrics need to know" in page.text


def test_the_same_run_gives_the_same_file():
    assert render(run(robust=True)) == render(run(robust=True))


def test_a_bundle_tells_what_it_was_made_from():
    made = run()
    training = {"steps": 300, "auxiliary": "other <set>", "weight_decay": 1e-4}
    made.evaluation.classes[0].bundle.update(
        input_size=[512, 208], provenance={"encoder": "compact", "encoder_id": "d01c" * 16, "training": training}
    )
    text = Page(render(made)).text
    assert "encoder compact, content d01cd01cd01cd01c" in text
    assert "input 512 x 208 px (height x width)" in text
    assert "training: steps 300, auxiliary other <set>, weight decay 0.0001" in text
