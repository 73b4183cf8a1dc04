"""What `inspect` finds, as one HTML page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .baseline import Baseline, Variable
from .baseline_svg import STYLE, bins_table, histogram
from .baseline_view import number_words, percent, special_shares
from .html_page import PAGE_POLICY, PAGE_STYLE
from .inspection import (
    Inspection,
    baseline_words,
    decoder_facts,
    expected_words,
    field_facts,
    file_rows,
    output_facts,
    provenance_rows,
    size_words,
    some,
    stage_facts,
    tokenizer_facts,
    total_bytes,
    vectorizer_facts,
)
from .pack import describe_tolerance


def render(inspection: Inspection) -> str:
    """Return the page: proof, signature, baseline, stages, files, provenance."""
    package, manifest = inspection.package, inspection.package.manifest
    sections = [
        ("inputs", "Raw inputs", _named("takes", ((f.name, field_facts(f), f.description) for f in manifest.fields))),
        ("outputs", "Outputs", _named("gives", ((o.name, output_facts(o), o.description) for o in manifest.outputs))),
        ("exactness", "Exactness", _exactness(inspection)),
        ("baseline", "Baseline", _baseline(inspection)),
        ("stages", "Stages", _stages(inspection)),
    ]
    if manifest.decoders:
        cards = "".join(f'<div class="card"><h3>{escape(d.node)}</h3>{_facts(decoder_facts(d))}</div>' for d in manifest.decoders)
        sections.append(("decoding", "Image decoding", cards))
    if manifest.tokenizers:
        cards = "".join(f'<div class="card"><h3>{escape(t.node)}</h3>{_facts(tokenizer_facts(t))}</div>' for t in manifest.tokenizers)
        sections.append(("tokenizing", "Tokenizing", cards))
    if manifest.vectorizers:
        cards = "".join(f'<div class="card"><h3>{escape(v.node)}</h3>{_facts(vectorizer_facts(v))}</div>' for v in manifest.vectorizers)
        sections.append(("counting", "Counting terms", cards))
    sections += [
        ("files", "Files", _table(("file", "size", "sha256"), file_rows(manifest), right=(1,))),
        ("provenance", "Provenance", _facts(provenance_rows(manifest))),
    ]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{title}</h2>{content}</section>' for anchor, title, content in sections)
    title = f"{manifest.name} version {manifest.version}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{PAGE_POLICY}"><style>{PAGE_STYLE}{STYLE}</style></head>\n'
        f"<body><header><h1>{escape(manifest.name)} <small>version {manifest.version}</small></h1>"
        f"<p>{escape(manifest.description)}</p><p>{_proof(inspection)}</p>"
        f'<p class="quiet">{size_words(total_bytes(manifest))} in {len(manifest.files)} files, format {manifest.format}; '
        f"digest <code>{package.digest}</code></p><nav>{links}</nav></header>\n<main>{body}</main>\n"
        f"<footer>samegraph inspect</footer></body></html>\n"
    )


def _proof(inspection: Inspection) -> str:
    manifest = inspection.package.manifest
    if not inspection.package.proven:
        return _chip("not proven: a bare model.onnx that nobody compared with training code", "wait")
    if not manifest.measured:
        return _chip("nothing was measured when this was written", "wait")
    worst = max(m.max_abs for m in manifest.measured)
    return _chip(f"answers like training on {manifest.golden_samples} golden samples, largest difference {worst:.2g}", "good")


def _chip(text: str, kind: str) -> str:
    return f'<span class="chip {kind}">{escape(text)}</span>'


def _named(what: str, rows: Iterable[tuple[str, str, str]]) -> str:
    cells = [(f"<b>{escape(name)}</b>", escape(facts), escape(text)) for name, facts, text in rows]
    return _table(("name", what, ""), cells, plain=False)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), plain: bool = True) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag} class='n'>{v}</{tag}>" if i in right else f"<{tag}>{v}</{tag}>" for i, v in enumerate(values))

    body = "".join(f"<tr>{cells('td', [escape(v) for v in row] if plain else row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="list"><tr>{cells("th", headings)}</tr>{body}</table></div>'


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(label)}</dt><dd>{escape(value)}</dd>' for label, value in rows)}</dl>"


def _exactness(inspection: Inspection) -> str:
    manifest = inspection.package.manifest
    promised = _table(("where", "promised"), [(where, describe_tolerance(t)) for where, t in manifest.tolerances.items()])
    measured = [
        (m.tensor, f"{m.elements:,}", f"{m.different:,}", f"{m.max_ulp:,}", f"{m.max_abs:.3g}", str(m.flips)) for m in manifest.measured
    ]
    headings = ("tensor", "compared", "not equal", "max ULP", "max abs", "flips")
    found = _table(headings, measured, right=range(1, 6)) if measured else ""
    return f"{promised if manifest.tolerances else ''}<p>Measured when packed, on {manifest.golden_samples} golden samples:</p>{found}"


def _baseline(inspection: Inspection) -> str:
    baseline = inspection.baseline
    if baseline is None:
        reason = inspection.baseline_error or "None. Pack with held-out training rows to have drift measured against them."
        return f"<p>{escape(reason)}</p>"
    off = [field.name for field in baseline.fields if field.monitored == "off"]
    weighted = [f"{field.name} {field.importance:g}" for field in baseline.fields if field.importance != 1.0]
    expected = [expected_words(output.name, output.expected) for output in baseline.outputs if output.expected is not None]
    return (
        f"<p>{escape(baseline_words(baseline))}</p>{_quiet('Importance, where it is not 1', weighted)}"
        f"{_cards(v for _, v in baseline.inputs())}{_quiet('Not monitored', off)}"
        f"<h3>Answers to these rows</h3><p>{'<br>'.join(map(escape, expected))}</p>{_cards(v for _, v in baseline.answers())}"
        f'<p class="quiet">How rows lie along the axis: each bin\'s rows are spread evenly between its bounds. Bins and their counts are '
        f"in the lists.</p>{_before(inspection.before)}"
    )


def _before(before: Baseline | None) -> str:
    """Return the baseline that this one took the place of, folded away."""
    if before is None:
        return ""
    return (
        f"<details><summary>The baseline before: {escape(baseline_words(before))}</summary>{_cards(v for _, v in before.inputs())}"
        f"<h3>Answers to those rows</h3>{_cards(v for _, v in before.answers())}</details>"
    )


def _quiet(what: str, names: Sequence[str]) -> str:
    return f'<p class="quiet">{what}: {escape(some(names))}</p>' if names else ""


def _cards(variables: Iterable[Variable]) -> str:
    return f'<div class="cards">{"".join(map(_variable, variables))}</div>'


def _variable(variable: Variable) -> str:
    facts = f"<p class='quiet'>{escape(number_words(variable))}</p>" if variable.kind == "numeric" and variable.n else ""
    specials = "".join(_chip(f"{label} {percent(share)}", "wait") for label, share in special_shares(variable))
    return (
        f'<div class="card"><h3>{escape(variable.name)}</h3><p class="quiet">{escape(variable.description)}</p>'
        f'<div class="figure">{histogram(variable)}</div>{facts}{specials}'
        f"<details><summary>{len(variable.labels)} bins</summary>{bins_table(variable)}</details></div>"
    )


def _stages(inspection: Inspection) -> str:
    parts = []
    for stage in inspection.stages:
        title, rows = stage_facts(stage)
        parts.append(f'<div class="card"><h3>{escape(stage.name)} <small>{escape(title)}</small></h3>{_facts(rows)}</div>')
    steps = ""
    if inspection.steps_error:
        steps = f"<p>The item stage does not load here: {escape(inspection.steps_error)}</p>"
    elif inspection.steps is not None:
        rows_ = [(str(i), some(s.nodes), s.engine, s.library, s.note) for i, s in enumerate(inspection.steps, 1)]
        steps = f"<p>The item stage, step by step, on this machine:</p>{_table(('step', 'nodes', 'engine', 'library', 'note'), rows_)}"
    return f'<div class="stack">{"".join(parts)}</div>{steps}'
