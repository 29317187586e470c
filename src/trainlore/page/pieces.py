"""What a page is made of: its style, tables, and numbers as people read them."""

from __future__ import annotations

import html
from typing import Any

CSS = """
:root{color-scheme:light dark;--ink:#1d2129;--soft:#667085;--line:#d9dde5;--paper:#fff;--card:#f6f7f9;--good:#1a7f4b;--bad:#c02b2b;--accent:#2f6fdf}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ec;--soft:#98a2b3;--line:#333a46;--paper:#14171c;--card:#1c2027;--good:#4cc38a;--bad:#ff7b72;--accent:#7aa7ff}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:66rem;margin:0 auto;padding:1.2rem}h1{font-size:1.7rem;line-height:1.2;margin:.6rem 0 .2rem}
h2{font-size:1.15rem;margin:2.4rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}p{margin:.4rem 0}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
.card{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}.card b{display:block;font-size:1.25rem}.card span{color:var(--soft);font-size:.82rem}
.wide{overflow-x:auto;overflow-wrap:normal}table{border-collapse:collapse;width:100%;font-size:.88rem}th{text-align:left;color:var(--soft);font-weight:500}
th,td{padding:.28rem .7rem .28rem 0;border-bottom:1px solid var(--line);vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}figure{margin:.8rem 0;overflow-x:auto}figure svg{max-width:max(100%,30rem);height:auto}.two figure svg,.maps figure svg{max-width:100%}figcaption{color:var(--soft);font-size:.85rem}
.bar{height:.5rem;background:var(--accent);border-radius:.25rem;min-width:1px}pre{background:var(--card);padding:.7rem;border-radius:.5rem;overflow-x:auto;font-size:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
details{margin:.5rem 0}summary{cursor:pointer}.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:.6rem}
h3{font-size:1rem;margin:1.4rem 0 .4rem}.two{grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr))}.look{border-left:2px solid var(--line);padding-left:.8rem;margin:1.4rem 0}.look .pair{margin:.8rem 0}.maps{grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr))}.maps figure,.two figure{margin:0}
.kept{border-left:3px solid var(--good)}.drop{border-left:3px solid var(--line)}.two .card div{font-size:.85rem;line-height:1.4;white-space:pre-line;max-height:9.8em;overflow-y:auto}.two .card span{display:block;margin-bottom:.2rem}.two .card b{display:inline;font-size:inherit}
mark{background:#f59e0b55;color:inherit;border-radius:.2em}code{font-size:.85em}
.of{white-space:nowrap;margin-left:.5em}.chip{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin:0 .25em}
nav{display:flex;flex-wrap:wrap;gap:.2rem .9rem;font-size:.85rem}a{color:var(--accent)}.tag{font-size:.75rem;border:1px solid var(--line);border-radius:1rem;padding:0 .5rem;color:var(--soft)}
"""


def esc(value: Any) -> str:
    """Text safe inside HTML: what comes out of data must never become markup."""
    return html.escape(str(value))


def number(value: Any) -> str:
    """A number as people read it."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e7):
        return f"{int(value):,}"
    return f"{value:,.1f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"


def big(value: float, unit: str = "") -> str:
    """A large number with its scale."""
    for scale, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def table(head: list[str], rows: list[list[str]], numeric: tuple[int, ...] = ()) -> str:
    """An HTML table; cells are already HTML."""
    mark = lambda i: ' class="n"' if i in numeric else ""
    top = "".join(f"<th{mark(i)}>{h}</th>" for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{mark(i)}>{c}</td>" for i, c in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def card(kind: str, head: str, text: str) -> str:
    """A row: what is known of it and its text, both already HTML."""
    return f'<div class="card {kind}"><span>{head}</span><div>{text}</div></div>'
