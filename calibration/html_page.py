"""The page of a report: one file without links, for the screen and for A4 paper."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

import cv2

from calibration.report_evaluation import points
from pipelines.heatmap import SCALE_PERCENT, scale_colours

_STYLE = """
:root { color-scheme: light; --ink: #1d2429; --dim: #66737c; --line: #d9dfe3; --good: #2a7f9e; --bad: #d1495b; }
* { box-sizing: border-box; }
html { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
body { font: 14px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
  margin: 0 auto; padding: 28px 26px 48px; max-width: 920px; background: #fff; }
h1 { font-size: 25px; margin: 0 0 2px; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 30px 0 8px; padding-bottom: 4px; border-bottom: 2px solid var(--ink); }
h3 { font-size: 14px; margin: 18px 0 6px; }
p { margin: 6px 0; } .dim, small { color: var(--dim); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { padding: 4px 7px; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; font-size: 12px; color: var(--dim); border-bottom: 1.5px solid var(--ink); }
th:first-child, td:first-child, .left { text-align: left; }
tr.mean td { font-weight: 700; border-top: 1.5px solid var(--ink); }
tr.published td { color: var(--dim); font-style: italic; background: #f6f7f8; }
td .ci { display: block; font-size: 11px; color: var(--dim); white-space: nowrap; font-weight: 400; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(135px, 1fr)); gap: 10px; margin: 16px 0 6px; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 9px 12px; break-inside: avoid; }
.card b { display: block; font-size: 22px; line-height: 1.2; } .card span { font-size: 12px; color: var(--dim); }
.card b .ci { display: block; font-size: 11.5px; font-weight: 400; color: var(--dim); }
.bad { color: var(--bad); } .good { color: var(--good); }
figure { margin: 10px 0; break-inside: avoid; } figure svg { width: 100%; height: auto; display: block; }
.cases { display: grid; grid-template-columns: repeat(2, 1fr); gap: 12px; }
.case { border: 1px solid var(--line); border-radius: 6px; padding: 8px; break-inside: avoid; }
.case .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.case img { width: 100%; max-height: 250px; object-fit: contain; background: #f1f3f4; display: block; }
.case p { margin: 6px 0 0; font-size: 12px; overflow-wrap: anywhere; }
.note { border-left: 3px solid #edae49; padding: 4px 10px; background: #fdf8ee; margin: 8px 0; }
.scale { display: flex; align-items: center; gap: 8px; font-size: 12px; color: var(--dim); margin: 6px 0 10px; }
.scale img { width: 240px; height: 14px; border: 1px solid var(--line); }
code { font: 12px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: 150px 1fr; gap: 3px 12px; margin: 8px 0; } dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
.sign { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: 24px; margin-top: 44px; break-inside: avoid; }
.sign div { border-top: 1px solid var(--ink); padding-top: 4px; font-size: 12px; color: var(--dim); }
@page { size: A4; margin: 14mm 13mm; }
.keep { break-inside: avoid; }
@media print { .cards { grid-template-columns: repeat(5, 1fr); }
  body { padding: 0; max-width: none; font-size: 11.5px; } h2 { break-after: avoid; margin-top: 20px; }
  h3 { break-after: avoid; } tr { break-inside: avoid; } thead { display: table-header-group; }
  .case img { max-height: 55mm; } td, th { padding: 3px 5px; } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], left: int = 1) -> str:
    """A table of (row class, cells); cells are HTML already, the first `left` columns are text."""
    side = ['class="left"' if number < left else "" for number in range(len(heads))]
    head = "".join(f"<th {at}>{escape(text)}</th>" for at, text in zip(side, heads, strict=True))
    body = "".join(
        f'<tr class="{kind}">'
        + "".join(f"<td {at}>{cell}</td>" for at, cell in zip(side, cells, strict=True))
        + "</tr>"
        for kind, cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cards(values: Iterable[tuple[str, str, str]]) -> str:
    """Key numbers: (value, what it is, a CSS class)."""
    each = (f'<div class="card"><b class="{css}">{value}</b><span>{what}</span></div>' for value, what, css in values)
    return f'<div class="cards">{"".join(each)}</div>'


def figure(svg: str) -> str:
    """A chart."""
    return f"<figure>{svg}</figure>"


def image(data: bytes, what: str, kind: str = "jpeg") -> str:
    """A picture within the page."""
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(what)}">'


def with_interval(value: float | None, ends: Sequence[float] | None) -> str:
    """A metric in percent, with its interval below."""
    text = points(value)
    return text if ends is None else f'{text}<span class="ci">{points(ends[0])} - {points(ends[1])}</span>'


def facts(values: Iterable[tuple[str, str]]) -> str:
    """Names and values; values are HTML already."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in values) + "</dl>"


def note(text: str) -> str:
    """Something the reader must not overlook."""
    return f'<p class="note">{escape(text)}</p>'


def heat_scale() -> str:
    """The fixed scale of all heatmaps."""
    done, data = cv2.imencode(".png", scale_colours(240)[None].repeat(14, axis=0))
    assert done
    bar = image(data.tobytes(), "colour scale of the heatmaps", "png")
    return (
        f'<div class="scale">0 {bar} {SCALE_PERCENT:.0f} % of limit and more; the white line runs where patches cross '
        "the limit, the green one around the marked defect</div>"
    )


def signatures() -> str:
    """Lines to sign on paper."""
    return '<div class="sign"><div>Checked by</div><div>Date</div><div>Signature</div></div>'
