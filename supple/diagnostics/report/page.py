"""The page: verdicts first, evidence below. One file, no request, readable without scripts.

Every text that comes from a run is escaped: names of checkpoints, tasks and channels are untrusted.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from torch import Tensor

from supple.diagnostics.document import latest
from supple.diagnostics.instability import Instability
from supple.diagnostics.report import svg
from supple.diagnostics.report.cards import CARDS, title_of
from supple.diagnostics.report.figures import figures
from supple.diagnostics.report.source import Entry, Figure, Source
from supple.diagnostics.rules import QUESTIONS

MOST_VERDICTS = 8
MOST_SKIPPED = 60
SHAPES = {"bad": "■", "warn": "▲", "ok": "●", "none": "○"}
WORDS = {"bad": "Fault", "warn": "Warning", "ok": "no fault", "none": "not measured"}
SURE = {"low": "●○○ low", "medium": "●●○ medium", "high": "●●● high"}
SCRIPT = """\
document.documentElement.classList.add("scripted");
document.getElementById("find").addEventListener("input", function () {
  var wanted = this.value.toLowerCase();
  document.querySelectorAll("tr[data-name]").forEach(function (row) {
    row.hidden = row.dataset.name.indexOf(wanted) < 0;
  });
  if (wanted) document.querySelectorAll("#metrics details").forEach(function (one) {
    one.open = true;
  });
});
"""


def render(
    document: Mapping[str, Any],
    analyses: Mapping[tuple[int, str], Instability],
    arrays: Mapping[int, Mapping[str, Tensor]],
) -> str:
    """The whole page.

    Args:
        document: ``Document.to_json()``.
        analyses: of policy instability, by target and mode.
        arrays: spectra and the like, by target.
    """
    rows = _table_rows(document)
    places = {place: f"r{number}" for number, row in enumerate(rows) for place in row.places}
    drawn = figures(Source(document=document, analyses=analyses, arrays=arrays))
    style = resources.files("supple.diagnostics.report").joinpath("style.css").read_text()
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
        f" script-src 'sha256-{digest}'"
    )
    body = [
        _header(document),
        _lede(document),
        _verdicts(document, places),
        _traffic(document),
        *_evidence(drawn),
        _gains(analyses, document),
        _metrics(document, rows),
        _cards(),
        _provenance(document),
    ]
    title = f"{document['targets'][0]['task']}, diagnosis"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=True)}">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(body)}</main>\n<script>{SCRIPT}</script></body></html>\n"
    )


# --- head ------------------------------------------------------------------------------------


def _header(document: Mapping[str, Any]) -> str:
    targets = document["targets"]
    tasks = ", ".join(dict.fromkeys(t["task"] for t in targets))
    runs = list(dict.fromkeys(t["run"] for t in targets))
    agents = ", ".join(dict.fromkeys(f"{t['algorithm']}, preset {t['preset']}" for t in targets))
    facts = [
        agents,
        f"run{'s' if len(runs) > 1 else ''} {', '.join(runs)}",
        f"{len(targets)} checkpoint{'s' if len(targets) > 1 else ''}",
        f"{document['suite']} suite",
        document["created_utc"][:10],
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in document["notes"])
    notes = f'<ul class="notes">{notes}</ul>' if notes else ""
    return (
        f'<header><p class="brand">supple diagnose</p><h1>{escape(tasks)}</h1>'
        f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p>'
        f"{notes}</header>"
    )


def _lede(document: Mapping[str, Any]) -> str:
    verdicts = latest(document)
    counts = {level: sum(v["level"] == level for v in verdicts) for level in ("bad", "warn")}
    worst = "bad" if counts["bad"] else "warn" if counts["warn"] else "ok"
    said = {
        "bad": _counted(counts["bad"], "fault")
        + (f" and {_counted(counts['warn'], 'warning')}" if counts["warn"] else "")
        + " found.",
        "warn": f"No fault found; {_counted(counts['warn'], 'warning')}.",
        "ok": "No fault found by the checks that ran.",
    }[worst]
    missing = unanswered(document)
    return (
        f'<section class="lede"><p class="says"><span class="mark {worst}">{SHAPES[worst]}</span>'
        f'{escape(said)}</p><p class="under">{escape(missing)}</p></section>'
    )


def unanswered(document: Mapping[str, Any]) -> str:
    """The questions that nothing measured answers, and why; empty where there are none."""
    left = []
    for question, (_, mains) in QUESTIONS.items():
        if all(_cell(document, t["id"], question) == "none" for t in document["targets"]):
            why = next((e["why"] for e in document["skipped"] if e["what"] in mains), "")
            left.append(f"{question} ({why})" if why else question)
    return f"Not answered: {' '.join(left)}" if left else ""


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# --- verdicts --------------------------------------------------------------------------------


def _verdicts(document: Mapping[str, Any], places: Mapping[int, str]) -> str:
    verdicts = latest(document)
    if not verdicts:
        return ""
    shown = [_verdict(v, document, places) for v in verdicts[:MOST_VERDICTS]]
    more = len(verdicts) - len(shown)
    rest = f'<p class="under">{_counted(more, "more verdict")} in report.json.</p>' if more else ""
    return f'<section aria-label="Verdicts">{"".join(shown)}{rest}</section>'


def _verdict(verdict: Entry, document: Mapping[str, Any], places: Mapping[int, str]) -> str:
    also = sum(
        v["rule"] == verdict["rule"] and v["target"] != verdict["target"]
        for v in document["verdicts"]
    )
    level = verdict["level"]
    seen = _chips(verdict["evidence"], document, places)
    rows = [("Seen", f'<div class="chips">{seen}</div>')]
    if also:
        rows.append(("Also at", escape(f"{_counted(also, 'other checkpoint')}")))
    if verdict["against"]:
        against = _chips(verdict["against"], document, places)
        rows.append(("Against it", f'<div class="chips">{against}</div>'))
    if verdict["actions"]:
        tries = "".join(f"<li>{_action(action)}</li>" for action in verdict["actions"])
        rows.append(("What to try", f"<ul>{tries}</ul>"))
    rows.append(("Would change this", escape(verdict["reconsider"])))
    listed = "".join(f"<dt>{name}</dt><dd>{content}</dd>" for name, content in rows)
    return (
        f'<article class="verdict {level}"><p class="kind"><b>{SHAPES[level]} {WORDS[level]}</b>'
        f" {escape(verdict['rule'])} · confidence {SURE[verdict['confidence']]}</p>"
        f"<h3>{escape(verdict['sentence'])}</h3><dl>{listed}</dl></article>"
    )


def _chips(found: Iterable[int], document: Mapping[str, Any], places: Mapping[int, str]) -> str:
    return "".join(
        f'<a class="chip" href="#{places[place]}">{escape(title_of(entry["id"]))}'
        f" <b>{escape(_value(entry))}</b></a>"
        for place in dict.fromkeys(found)
        for entry in [document["metrics"][place]]
    )


def _action(text: str) -> str:
    """The flag in brackets as code."""
    before, bracket, after = escape(text).partition(" (--")
    if not bracket:
        return before
    flag, comma, now = after.removesuffix(")").partition(", now ")
    current = f", now {now}" if comma else ""
    return f"{before}: <code>--{flag}</code>{current}"


def _value(entry: Entry) -> str:
    if entry["value"] is None:
        return "not measured"
    unit = entry["unit"]
    return f"{svg.number(entry['value'])}{f' {unit}' if unit else ''}"


# --- traffic ---------------------------------------------------------------------------------


def _traffic(document: Mapping[str, Any]) -> str:
    targets = document["targets"]
    several = len({t["run"] for t in targets}) > 1
    head = "".join(f'<th scope="col">{escape(_short_label(t, several))}</th>' for t in targets)
    rows = []
    for question in QUESTIONS:
        cells = []
        for target in targets:
            level = _cell(document, target["id"], question)
            cells.append(
                f'<td><span class="mark {level}" role="img" aria-label="{WORDS[level]}"'
                f' title="{WORDS[level]}">{SHAPES[level]}</span></td>'
            )
        rows.append(f'<tr><th scope="row">{escape(question)}</th>{"".join(cells)}</tr>')
    legend = "".join(
        f'<span><span class="mark {level}">{SHAPES[level]}</span> {WORDS[level].lower()}</span>'
        for level in SHAPES
    )
    return (
        "<section><h2>Seven questions</h2><p>Each checkpoint against each question. A question"
        " counts as answered where its main measurement ran.</p>"
        f'<div class="scroll"><table class="traffic"><thead><tr><th></th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="legend">{legend}</p></section>'
    )


def _short_label(target: Entry, several: bool) -> str:
    step = svg.number(float(target["env_step"]))
    roles = [role for role in target["roles"] if role in ("best", "baseline")]
    name = f"{svg.shortened(target['run'], 12)} · {step}" if several else step
    return f"{name} {' '.join(roles)}".strip()


def _cell(document: Mapping[str, Any], target: int, question: str) -> str:
    wanted, mains = QUESTIONS[question]
    levels = [
        v["level"] for v in document["verdicts"] if v["target"] == target and v["rule"] in wanted
    ]
    if levels:
        return "bad" if "bad" in levels else "warn"
    measured = any(
        entry["target"] == target and entry["id"] in mains and entry["value"] is not None
        for entry in document["metrics"]
    )
    return "ok" if measured else "none"


# --- evidence --------------------------------------------------------------------------------


def _evidence(drawn: Sequence[Figure]) -> Iterable[str]:
    for question in QUESTIONS:
        own = [figure for figure in drawn if figure.section == question]
        if own:
            plots = "".join(
                f'<figure><h3>{escape(f.title)}</h3><p class="of">{escape(f.of)}</p>{f.picture}'
                f"<figcaption>{escape(f.caption)}</figcaption></figure>"
                for f in own
            )
            head = f"<section><h2>{escape(question)}</h2>"
            yield f'{head}<div class="figures">{plots}</div></section>'


def _gains(analyses: Mapping[tuple[int, str], Instability], document: Mapping[str, Any]) -> str:
    tables = []
    for (number, _), one in analyses.items():
        if not one.gains:
            continue
        rows = "".join(
            f'<tr><th scope="row">{escape(gain.sensor)}</th><td>{escape(gain.actuator)}</td>'
            f'<td class="n">{svg.number(gain.gain)}</td><td>{escape(gain.unit)}</td>'
            f'<td class="n">{svg.number(gain.jitter)} {escape(gain.jitter_unit)}</td>'
            f'<td class="n">{gain.share:.2%}</td></tr>'
            for gain in one.gains
        )
        declared = any(gain.declared for gain in one.gains)
        noise = "declared" if declared else "assumed, 1 % of each channel's deviation"
        label = document["targets"][number]["label"]
        moved, share = "actuator", "of half range"
        if one.mode == "choice":
            moved, share = "choice", "in probability"
        tables.append(
            f'<p class="under">{escape(label)}, {one.states:,} states. Sensor noise: {noise}.</p>'
            f'<div class="scroll"><table><thead><tr><th>sensor</th><th>{moved}</th>'
            '<th class="n">gain</th><th></th><th class="n">jitter</th>'
            f'<th class="n">{share}</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
    if not tables:
        return ""
    return (
        "<section><h2>Which sensor moves which actuator</h2><p>Root mean square gain over states in"
        " physical units, and how much the command, or the probability of a choice, trembles from"
        " the sensor's own noise, to first order.</p>"
        f"{''.join(tables)}</section>"
    )


# --- all metrics -----------------------------------------------------------------------------


class _Row:
    """One metric over the checkpoints of a run."""

    def __init__(self, run: str, name: str) -> None:
        self.run = run
        self.name = name
        self.places: list[int] = []
        self.entries: list[tuple[float, Entry]] = []


def _table_rows(document: Mapping[str, Any]) -> list[_Row]:
    targets = {t["id"]: t for t in document["targets"]}
    rows: dict[tuple[str, str], _Row] = {}
    for place, entry in enumerate(document["metrics"]):
        pair = entry["target"]
        target = targets[pair[1] if isinstance(pair, list) else pair]
        name = _full_name(entry)
        if isinstance(pair, list):
            name += f" from {targets[pair[0]]['label']}"
        row = rows.setdefault((target["run"], name), _Row(target["run"], name))
        row.places.append(place)
        row.entries.append((float(target["env_step"]), entry))
    return list(rows.values())


def _full_name(entry: Entry) -> str:
    params = ", ".join(
        f"{k} {v:g}" if isinstance(v, float) else str(v) for k, v in entry["params"].items()
    )
    where = [entry["network"], entry["layer"] if entry["layer"] != "all" else "", entry["member"]]
    text = " ".join(filter(None, [entry["id"], f"({params})" if params else ""]))
    return f"{text} · {'/'.join(part for part in where if part and part != 'mean')}"


def _metrics(document: Mapping[str, Any], rows: Sequence[_Row]) -> str:
    groups: dict[str, list[tuple[int, _Row]]] = {}
    several = len({row.run for row in rows}) > 1
    for number, row in enumerate(rows):
        network = row.entries[0][1]["network"]
        key = f"{row.run}, {network}" if several else network
        groups.setdefault(key, []).append((number, row))
    tables = "".join(_metric_group(name, own) for name, own in groups.items())
    return (
        '<section id="metrics"><h2>All measurements</h2><p>The value at the last checkpoint that'
        " has one, what untrained networks show, and the line it is held against. Lines are project"
        " defaults [E] unless marked as from the literature [L]. A marked value lies beyond its"
        " line: a sign, which is a fault only where a verdict above says so.</p>"
        '<input id="find" type="search" placeholder="Find a metric" aria-label="Find a metric">'
        f"{tables}</section>"
    )


def _metric_group(name: str, rows: Sequence[tuple[int, _Row]]) -> str:
    body = "".join(_metric_row(number, row) for number, row in rows)
    return (
        f"<details><summary>{escape(name)} <span>{_counted(len(rows), 'metric')}</span></summary>"
        '<div class="scroll"><table><thead><tr><th>metric</th><th class="n">value</th>'
        '<th class="n">95 % interval</th><th class="n">untrained</th><th class="n">line</th>'
        '<th class="n">n</th><th>over checkpoints</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _metric_row(number: int, row: _Row) -> str:
    measured = [(x, entry) for x, entry in row.entries if entry["value"] is not None]
    name = escape(row.name)
    head = f'<tr id="r{number}" data-name="{escape(row.name.lower(), quote=True)}">'
    card = row.entries[0][1]["id"]
    if card in CARDS:
        name = f'<a href="#card-{escape(card, quote=True)}">{name}</a>'
    if not measured:
        reason = escape(row.entries[-1][1]["reason"] or "")
        return f'{head}<th scope="row">{name}</th><td colspan="6" class="none">{reason}</td></tr>'
    entry = measured[-1][1]
    low_high = entry["ci95"]
    interval = "" if low_high is None else " to ".join(svg.number(v) for v in low_high)
    fresh = entry["reference"].get("fresh")
    untrained = "" if fresh is None else svg.number(fresh)
    note = f' title="{escape(entry["reason"], quote=True)}"' if entry["reason"] else ""
    level = entry["level"] if entry["level"] in ("warn", "bad") else ""
    mark = f'<span class="mark {level}">{SHAPES[level]}</span> ' if level else ""
    return (
        f'{head}<th scope="row">{name}</th><td class="n"{note}>{mark}{escape(_value(entry))}</td>'
        f'<td class="n">{interval}</td><td class="n">{untrained}</td>'
        f'<td class="n">{escape(_line(entry))}</td><td class="n">{entry["n"] or ""}</td>'
        f"<td>{_spark([(x, e['value']) for x, e in measured])}</td></tr>"
    )


def _line(entry: Entry) -> str:
    lines = entry["thresholds"]
    if lines is None:
        return ""
    sign = "±" if lines["absolute"] else "≥" if lines["above"] else "≤"
    found = [svg.number(lines[name]) for name in ("warn", "bad") if lines[name] is not None]
    return f"{sign} {', '.join(found)} [{lines['mark']}]"


def _spark(points: Sequence[tuple[float, float]]) -> str:
    if len(points) < 2:
        return ""
    across = svg.axis([x for x, _ in points], 2, 98)
    up = svg.axis([y for _, y in points], 18, 2)
    place = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in points)
    end = points[-1]
    return (
        '<svg class="spark" viewBox="0 0 100 20" aria-hidden="true">'
        f'<polyline class="line s0" points="{place}"/>'
        f'<circle class="dot s0" cx="{across.at(end[0]):.1f}" cy="{up.at(end[1]):.1f}" r="2.6"/>'
        "</svg>"
    )


# --- the rest --------------------------------------------------------------------------------


def _cards() -> str:
    items = "".join(
        f'<dt id="card-{escape(name, quote=True)}">{escape(title)} <code>{escape(name)}</code></dt>'
        f"<dd>{escape(text)}</dd>"
        for name, (title, text) in CARDS.items()
    )
    return (
        "<section><h2>What the measurements mean</h2><details><summary>"
        f'{len(CARDS)} short cards</summary><dl class="cards">{items}</dl></details></section>'
    )


def _provenance(document: Mapping[str, Any]) -> str:
    labels = {t["id"]: t["label"] for t in document["targets"]}
    data = "".join(
        f"<li>{escape(d['name'])}, {escape(labels[d['target']])}: {d['n']:,} transitions of"
        f" {_counted(d['episodes'], 'episode')}, {escape(d['source'])}</li>"
        for d in document["datasets"]
    )
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in document["skipped"]:
        reasons.setdefault((entry["what"], entry["why"]), []).append(
            labels.get(entry["target"], "")
        )
    skipped = "".join(
        f"<li><b>{escape(what)}</b>: {escape(why)}"
        f"{f' ({len(where)} of {len(labels)} checkpoints)' if where[0] else ''}</li>"
        for (what, why), where in [*reasons.items()][:MOST_SKIPPED]
    )
    timing = "".join(
        f"<li>{escape(name)}: {seconds:.1f} s</li>" for name, seconds in document["timing"].items()
    )
    spent = f"{sum(document['timing'].values()):.0f} s"
    versions = document["tool_version"]
    return (
        "<section><h2>Where this comes from</h2>"
        f"{_listed('Data', _counted(len(document['datasets']), 'set'), data)}"
        f"{_listed('Not measured', _counted(len(reasons), 'check'), skipped)}"
        f"{_listed('Time', spent, timing)}</section>"
        f"<footer><p>{escape(', '.join(f'{k} {v}' for k, v in versions.items()))}</p>"
        f"<p><code>{escape(document['command'])}</code></p></footer>"
    )


def _listed(name: str, count: str, items: str) -> str:
    return (
        f"<details><summary>{name} <span>{count}</span></summary>"
        f'<ul class="plain">{items}</ul></details>'
    )
