"""One HTML page without script and without anything from elsewhere: text, tables, bars, pictures.

Everything that goes into a page is escaped here; names of classes and files are strangers' words.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
import os
from pathlib import Path
import tempfile

LONG = 28  # characters; longer text in a table may be broken into lines

STYLE = """
:root { --ink: #1c2430; --soft: #5d6878; --line: #e3e7ec; --faint: #f6f7f9; --blue: #2f6690;
  --pale: #d5e3ee; --green: #3b8a5a; --red: #b9493c; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans",
  sans-serif; overflow-wrap: anywhere; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 3rem 0 .75rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { margin: .4rem 0; max-width: 48rem; }
.soft, figcaption, th { color: var(--soft); }
.small { font-size: .85rem; }
.headline { display: flex; flex-wrap: wrap; gap: 1.25rem 2.25rem;
  margin: 1.75rem 0 1rem; }
.headline div { min-width: 8rem; max-width: 11.5rem; padding-top: 1.1rem; }
.headline div:first-child { max-width: 17rem; padding-top: 0; }
.headline span { display: block; font-size: .9rem; line-height: 1.35; color: var(--soft); }
.headline b { display: block; font-size: 1.6rem; line-height: 1.2; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.headline div:first-child b { font-size: 3rem; line-height: 1.05; color: var(--blue); }
.scroll { overflow-x: auto; }
.tall { max-height: 32rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; font-size: .8rem; vertical-align: bottom; }
th, td { padding: .35rem 1.25rem .35rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; white-space: nowrap; }
td.short { white-space: nowrap; }
td.name { min-width: 14rem; max-width: 20rem; }
td.wide { width: 12rem; min-width: 7rem; }
tr.main td { font-weight: 600; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; }
.cards, .figures { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.cards.large, .figures { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.figures figure { margin: .5rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; min-width: 0; }
.views { display: flex; gap: .4rem; margin-bottom: .5rem; }
.views figure { margin: 0; flex: 1 1 0; min-width: 0; }
.views img { width: 100%; border-radius: .25rem; }
.views figcaption { font-size: .72rem; line-height: 1.25; margin-top: .2rem; }
.bars { display: grid; grid-template-columns: minmax(0, 9rem) minmax(3rem, 1fr) 3.4rem;
  gap: .15rem .6rem; align-items: center; font-size: .8rem; margin-top: .4rem; }
.bars span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: var(--faint); border-radius: 2px; height: .7rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--blue); border-radius: 2px; }
.right i { background: var(--green); } .wrong i { background: var(--red); }
.other i { background: #a9b4c0; }
pre { background: var(--faint); border: 1px solid var(--line); border-radius: .4rem;
  padding: .75rem 1rem; font-size: .82rem; white-space: pre-wrap; }
summary { cursor: pointer; color: var(--blue); margin: .75rem 0; font-size: .9rem; }
@media (max-width: 36rem) { main { padding: 1.25rem .9rem 3rem; } h1 { font-size: 1.4rem; }
  .headline { gap: 1rem 1.5rem; }
  .headline div { padding-top: 0; } .headline div:first-child { flex-basis: 100%; } }
@media print { .tall { max-height: none; } .card { break-inside: avoid; } }
"""


def page(title: str, body: Iterable[str]) -> str:
  """A whole document; `body` is markup, `title` is text."""
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    # An empty icon of its own keeps the browser from asking for one.
    '<link rel="icon" href="data:,">\n'
    f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
    + "\n".join(body)
    + "\n</main>\n</body>\n</html>\n"
  )


def paragraph(text: str, *, soft: bool = False) -> str:
  return f'<p class="soft">{escape(text)}</p>' if soft else f"<p>{escape(text)}</p>"


def section(title: str, *body: str) -> str:
  return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(body) + "\n</section>"


def headline(pairs: Iterable[tuple[str, str]]) -> str:
  """Numbers with what they are, the first one large."""
  parts = (f"<div><b>{escape(n)}</b><span>{escape(what)}</span></div>" for n, what in pairs)
  return f'<div class="headline">{"".join(parts)}</div>'


def table(
  header: Sequence[str], rows: Iterable[Sequence], *, main: int | None = None, tall: bool = False
) -> str:
  """Cells are text, `Number` (set to the right) or `Markup`; row `main` stands out.

  A column is set to the right if its first cell is.
  """
  rows = [list(row) for row in rows]
  numeric = [isinstance(cell, Number) for cell in rows[0]] if rows else [False] * len(header)
  head = "".join(
    f"<th{_class('n' if n else '')}>{escape(text)}</th>" for text, n in zip(header, numeric)
  )
  body = "\n".join(
    f"<tr{_class('main' if i == main else '')}>{''.join(map(_cell, row))}</tr>"
    for i, row in enumerate(rows)
  )
  kind = "scroll tall" if tall else "scroll"
  return (
    f'<div class="{kind}"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>'
    "</table></div>"
  )


class Markup(str):
  """Text that is markup already."""


class Number(str):
  """Text that is a number, set to the right."""


def _class(name: str) -> str:
  return f' class="{name}"' if name else ""


def _cell(cell) -> str:
  if isinstance(cell, Markup):
    return f'<td class="wide">{cell}</td>'
  if isinstance(cell, Number):
    return f'<td class="n">{escape(cell)}</td>'
  kind = "short" if len(cell) <= LONG else "name"
  return f'<td class="{kind}">{escape(cell)}</td>'


def bar(share: float, kind: str = "") -> Markup:
  """A bar of `share` of the width; kind is "", "right", "wrong" or "other"."""
  width = 100 * min(max(share, 0.0), 1.0)
  return Markup(f'<div class="bar {kind}"><i style="width:{width:.1f}%"></i></div>')


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
  """Lines of (name, probability, kind of bar)."""
  lines = (
    f'<span title="{escape(name)}">{escape(name)}</span>{bar(share, kind)}'
    f'<span class="n">{percent(share)}</span>'
    for name, share, kind in rows
  )
  return f'<div class="bars">{"".join(lines)}</div>'


def figure(source: str, *, alt: str, caption: str = "", lazy: bool = False) -> str:
  below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
  late = ' loading="lazy"' if lazy else ""
  return f'<figure><img src="{escape(source)}" alt="{escape(alt)}"{late}>{below}</figure>'


def card(views: Iterable[str], title: str, lines: Iterable[str], after: str = "") -> str:
  """A photograph's card: views beside each other (markup), words (text), bars (markup)."""
  words = "".join(f'<div class="small soft">{escape(line)}</div>' for line in lines)
  return (
    f'<article class="card"><div class="views">{"".join(views)}</div>'
    f'<div class="small"><b>{escape(title)}</b></div>{words}{after}</article>'
  )


def cards(items: Iterable[str], *, large: bool = False) -> str:
  return f'<div class="cards{" large" if large else ""}">\n{chr(10).join(items)}\n</div>'


def figures(items: Iterable[str]) -> str:
  """Beside each other where there is room."""
  return f'<div class="figures">\n{chr(10).join(items)}\n</div>'


def details(summary: str, body: str) -> str:
  return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def code(text: str) -> str:
  return f"<pre><code>{escape(text)}</code></pre>"


def bullets(lines: Iterable[str]) -> str:
  return '<ul class="small">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def data_uri(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()


def percent(share: float) -> str:
  return f"{100 * share:.1f} %"


def write(path: Path, data: str | bytes) -> None:
  """Writes `path` in one piece: it is either whole or as it was."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
  try:
    with os.fdopen(handle, "wb") as file:
      # Names of files on disk may hold bytes that are no UTF-8 (surrogates in Python).
      file.write(data.encode("utf-8", "replace") if isinstance(data, str) else data)
    os.chmod(part, 0o644)
    os.replace(part, path)
  finally:
    Path(part).unlink(missing_ok=True)
