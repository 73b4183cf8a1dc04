"""What `verify` found, as one HTML page that needs no other file and no network; images that differ are in it, with their difference."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

import numpy as np
from PIL import Image

from .divergence import Divergence, Picture
from .exactness import UNREACHABLE
from .html_page import PAGE_POLICY, PAGE_STYLE
from .pack import describe_tolerance
from .verify import SHOWN, Report, value_words

#: The images of the page are in it.
_POLICY = f"{PAGE_POLICY}; img-src data:"
_STYLE = """
:root { --bad: #a40e26; --bad-back: #ffe0e3; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff9aa5; --bad-back: #4b1119; } }
.bad { background: var(--bad-back); color: var(--bad); }
.images { display: flex; flex-wrap: wrap; gap: 14px; margin: 12px 0; }
.images figure { margin: 0; flex: 1 1 240px; max-width: 360px; }
.images img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); border-radius: 6px; background: #000; }
.images figcaption { color: var(--quiet); font-size: 13px; }
"""
#: Images are shown at most this wide and high; larger ones every so many pixels.
_MAX_SIDE = 512


def render(report: Report) -> str:
    """Return the page: the verdict, the first node that diverges with its images, every tensor, the failures, the circumstances."""
    sections = []
    if report.divergence is not None:
        sections.append(("node", "The first node that diverges", _divergence(report.divergence)))
    sections.append(("tensors", "Stage by stage", _tensors(report)))
    if report.failures:
        more = f'<p class="quiet">and {len(report.failures) - SHOWN:,} more</p>' if len(report.failures) > SHOWN else ""
        rows = ((f.sample, f.batch_size or "–", f.failure.tensor if f.failure else "–", _detail(f.reason)) for f in report.failures[:SHOWN])
        sections.append(("failures", "What differs", _table(("sample", "batch", "tensor", "how"), rows) + more))
    if report.flips:
        flips = ((s, f"{t}{list(f.index)}", f.expected, f.got, f"{f.margin:.3g}", f"{f.bound:.3g}") for s, t, f in report.flips[:SHOWN])
        heads = ("sample", "label", "training", "here", "margin", "bound")
        sections.append(("flips", "Labels that may differ: training was undecided", _table(heads, flips)))
    sections.append(("circumstances", "Circumstances", _facts(_circumstances(report))))
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{escape(title)}</h2>{content}</section>' for anchor, title, content in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(report.package)}: proof</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{PAGE_STYLE}{_STYLE}</style></head>\n'
        f"<body><header><h1>{escape(report.package)} <small>proof</small></h1><p>{_verdict(report)}</p>"
        f'<p class="quiet">{report.samples} golden samples; promised here ({escape(report.profile)}): '
        f"{escape(describe_tolerance(report.tolerance))}; digest <code>{report.digest}</code></p><nav>{links}</nav></header>\n"
        f"<main>{body}</main>\n<footer>samegraph verify</footer></body></html>\n"
    )


def _verdict(report: Report) -> str:
    who = "package" if report.server is None else "server"
    chips = (
        [("good", f"exact: the {who} answers as training did")]
        if report.ok
        else [("bad", f"not exact: this {who} does not answer as training did")]
    )
    if report.server is not None and not report.server.same_package:
        chips.append(("bad", "the server serves another package"))
    return "".join(f'<span class="chip {style}">{escape(words)}</span>' for style, words in chips)


def _divergence(found: Divergence) -> str:
    facts = [
        ("node", f"{found.node} ({found.operator})"),
        ("stage", found.stage),
        ("kind", found.kind),
        ("certainty", "shown to be this node" if found.proven else "the first of several that it may be"),
        ("why", found.why),
        ("where", f"{found.tensor}{list(found.index)}, row {found.instance} of sample {found.sample!r}"),
        ("what", value_words(found)),
        ("reference", found.reference),
        *((f"raw {name}", repr(value)) for name, value in found.raw.items()),
    ]
    if found.suspects:
        facts.append(("it may also be", ", ".join(found.suspects)))
    if found.unchecked:
        facts.append(("not checked", f"{found.unchecked} nodes: no time left, or the reference has no such operator"))
    return f'<div class="card">{_facts(facts)}</div>' + (_images(found.picture) if found.picture is not None else "")


def _images(picture: Picture) -> str:
    expected, got = picture.expected.astype(np.int16), picture.got.astype(np.int16)
    gap = np.abs(expected - got)
    largest, share = int(gap.max()), float((gap.max(axis=2) > 0).mean())
    scale = 255 // max(largest, 1)
    figures = (
        ("expected", picture.expected),
        ("got", picture.got),
        (f"difference, × {scale}: at most {largest} levels, {share:.1%} of the pixels", (gap * scale).astype(np.uint8)),
    )
    shown = "".join(
        f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{_png(pixels)}"><figcaption>{escape(words)}</figcaption></figure>'
        for words, pixels in figures
    )
    height, width, _ = picture.expected.shape
    words = f"{picture.tensor} of sample {picture.sample!r}, {width} × {height}"
    return f'<div class="images">{shown}</div><p class="quiet">{escape(words)}</p>'


def _png(pixels: np.ndarray) -> str:
    step = max(1, -(-max(pixels.shape[:2]) // _MAX_SIDE))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[::step, ::step])).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _tensors(report: Report) -> str:
    heads = ("tensor", "from", "elements", "differ", "max ULP", "max abs", "flips", "verdict")
    rows = (
        (t.tensor, t.source, f"{t.elements:,}", f"{t.different:,}", "∞" if t.max_ulp == UNREACHABLE else f"{t.max_ulp:,}",
         f"{t.max_abs:.3g}", t.flips, t.verdict)
        for t in report.tensors
    )  # fmt: skip
    return _table(heads, rows, right=(2, 3, 4, 5, 6))


def _circumstances(report: Report) -> list[tuple[str, str]]:
    facts = [(name, value) for name, value in report.environment.items()]
    if report.batch_sizes:
        facts.append(("batches of", ", ".join(map(str, report.batch_sizes))))
    if report.server is not None:
        which = "this package" if report.server.same_package else "another package"
        facts.append(
            ("server", f"{report.server.url} serves {report.server.model}/{report.server.version}: {which} ({report.server.digest})")
        )
    return facts


def _detail(text: str) -> str:
    return text if len(text) <= 300 else text[:299] + "…"


def _facts(facts: Iterable[tuple[str, object]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts) + "</dl>"


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]], right: tuple[int, ...] = ()) -> str:
    def cell(tag: str, i: int, value: object) -> str:
        return f"<{tag}{' class=n' if i in right else ''}>{escape(str(value))}</{tag}>"

    head = "".join(cell("th", i, value) for i, value in enumerate(heads))
    body = "".join("<tr>" + "".join(cell("td", i, value) for i, value in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="list"><tr>{head}</tr>{body}</table></div>'
