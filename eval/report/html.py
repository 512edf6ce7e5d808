"""One self-contained HTML page: headings, tables, pictures as base64 PNG; nothing is loaded from
elsewhere.

Readable on light and dark screens and on paper. Pictures keep a white ground: their colours are
made for it.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from lo_framework.errors import visible

STYLE = """
:root { color-scheme: light dark; --text: #1c1f24; --soft: #5b6470; --ground: #ffffff; --line:
  #d5dae1; --band: #f3f5f8;
  --mark: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --soft: #a0a9b5; --ground:
  #15181d; --line: #363c45;
  --band: #1d2128; --mark: #7fb8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1.25rem 4rem; background:
  var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px
  solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p { margin: .5rem 0; max-width: 52rem; }
ul { margin: .4rem 0; padding-left: 1.2rem; max-width: 52rem; }
.soft, figcaption, .note { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .24rem .5rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid var(--line); font-weight: 600; vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); }
tr.rule td { border-bottom: 2px solid var(--line); }
.words { text-align: left; }
td.loud { color: var(--mark); font-weight: 600; }
figure { margin: 1rem 0 1.4rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid
  var(--line);
  border-radius: 6px; padding: 6px; }
figcaption { margin-top: .4rem; max-width: 52rem; }
code { background: var(--band); padding: .1rem .3rem; border-radius: 3px; overflow-wrap:
  anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--mark); }
nav a { color: var(--mark); margin-right: .9rem; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  figure, table { break-inside: avoid; } h2, h3 { break-after: avoid; } .scroll { overflow:
  visible; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    )
    head += f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    text = "\n".join(body)
    start = f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n'
    return f"{start}<body>\n{text}\n</body>\n</html>\n"


def escape(text: object) -> str:
    return html.escape(visible(text), quote=True)


def heading(level: int, text: str, anchor: str = "") -> str:
    name = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h{level}{name}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f"<p{name}>{escape(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def contents(anchors: dict[str, str]) -> str:
    """Links to headings: anchor -> words."""
    links = "".join(
        f'<a href="#{escape(anchor)}">{escape(words)}</a>' for anchor, words in anchors.items()
    )
    return f"<nav>{links}</nav>"


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str] | None],
    *,
    words: int = 1,
    loud: Sequence[str] = (),
) -> str:
    """Return a table of cells; None is a rule below the row before it.

    Args:
        words: so many columns from the left hold words.
        loud: cells with these texts stand out.
    """

    def line(tag: str, cells: Sequence[str], kind: str = "") -> str:
        parts = []
        for i, text in enumerate(cells):
            names = " ".join(["words"] * (i < words) + ["loud"] * (text in loud))
            kinds = f' class="{names}"' if names else ""
            parts.append(f"<{tag}{kinds}>{escape(text)}</{tag}>")
        return f"<tr{kind}>{''.join(parts)}</tr>"

    body = "\n".join(
        line("td", row, ' class="rule"' if after is None else "")
        for row, after in zip(rows, [*rows, None][1:], strict=True)
        if row is not None
    )
    head = f"<thead>{line('th', headers)}</thead>"
    return f'<div class="scroll"><table>{head}\n<tbody>{body}</tbody></table></div>'


def picture(png: bytes, caption: str, alternative: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def folded(summary: str, *parts: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"
