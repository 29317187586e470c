"""The report: whatever the data says is text and never markup, one file, readable on a phone, and no browser complains."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from trainlore import figures, page
from trainlore import recipe as recipes
from trainlore.execute import execute
from trainlore.page import pieces
from trainlore.page.data import choices

EVIL = "<script>document.title='PWNED'</script><img src=x onerror=alert(1)>\"'&$\\frac{$</td></svg><!--"
DOMAINS = [EVIL, "_hidden", "a" * 300, "", "日本 $x$"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run on data that would love to be markup: in texts, prompts, answers, domain names and the recipe's own name."""
    home = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    words = ["kamu", "gale", "nera", "bidu", "tovi", "pese"]
    lines = {
        "pool": [
            {"text": f"{EVIL} {' '.join(rng.choice(words, 9))}", "domain": DOMAINS[i % 5], "note": EVIL}
            for i in range(40)
        ],
        "pairs": [{"prompt": ["", "\n", EVIL][i % 3], "completion": EVIL} for i in range(9)],
        "other": [{"text": f"{i} {EVIL}"} for i in range(70)],
    }
    for name, rows in lines.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    net = {
        "model": "llama-1m",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "window": 256,
    }
    given = {"pool": {"data": str(home / "pool.jsonl"), "sample": 30}, "net": net}
    given |= {n: str(home / f"{n}.jsonl") for n in ("pairs", "other")}
    train = {
        "model": "$blank",
        "data": "$half",
        "steps": 24,
        "batch_size": 4,
        "precision": "fp32",
        "truncate": True,
        "with": [{"clip": {}}],
    }
    steps = [
        {"random_rows": {"data": "$pool", "keep": 0.5, "as": "half"}},
        {"bpe": {"model": "$net", "corpus": "$half", "vocab": 280, "as": "blank"}},
        {"train": {**train, "as": "small"}},
        {"annealing_law": {"model": "$small", "data": "$half", "share": 0.5, "as": "law"}},
        {"perplexity": {"model": "$small", "data": "$half", "as": "nats"}},
        {"calibration": {"model": "$small", "data": "$half", "as": "sure"}},
        {"compare": {"model": "$small", "rival": "$blank", "data": "$half", "metric": "loss", "as": "won"}},
        {"samples": {"model": "$small", "data": "$pairs", "rows": 6, "new": 3, "as": "said"}},
        {"magnitude": {"model": "$small", "keep": 0.9, "tolerance": 2.0, "as": "pruned"}},
        {"even_pieces": {"data": "$half", "words": 5, "least": 1, "as": "pieces"}},
        {"random_rows": {"data": "$other", "keep": 0.5, "as": "rest"}},  # the last text is of another root
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINLORE_HOME", str(home / "home"))
        execute(recipes.read({"name": EVIL, "given": given, "steps": steps}), home / "run")
    return home / "run"


class Tags(html.parser.HTMLParser):
    """Every element and attribute of a page, and whether elements close in order."""

    VOID = {"meta", "link", "br", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, *a) for a in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


def test_what_data_say_is_text_and_never_markup(hostile):
    found = Tags((hostile / "report.html").read_text())
    assert not found.open
    assert not {"script", "img", "iframe", "object", "form", "foreignobject"} & set(found.seen)
    assert not [a for a in found.attributes if a[1].startswith("on") or "javascript:" in str(a[2])]
    assert found.text.count(EVIL) >= 12  # and it is shown as it is
    for section in (
        "Verdicts",
        "Loss",
        "Data",
        "Choices",
        "Measurements",
        "Samples",
        "Cost",
        "Switches",
        "Parity",
        "Trails",
        "Recipe",
    ):
        assert f'<section id="{section.lower()}"><h2>{section}</h2>' in (hostile / "report.html").read_text()


def test_it_is_one_file_that_asks_nobody(hostile):
    text = (hostile / "report.html").read_text()
    found = Tags(text)
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    outside = [
        a
        for a in found.attributes
        if a[1] in ("src", "href", "xlink:href", "data", "action") and not a[2].startswith(("#", "data:,"))
    ]
    assert not outside and "@import" not in text and "url(http" not in text
    assert all(
        a[2] in {x[2] for x in found.attributes if x[1] == "id"}
        for a in [(t, n, v[1:]) for t, n, v in found.attributes if n == "href" and v[:1] == "#"]
    )


def test_figures_take_the_ink_of_the_page_and_names_as_they_are(hostile):
    text = (hostile / "report.html").read_text()
    assert text.count("<svg") == 8 and figures.INK not in text
    drawn = re.findall(r"<text[^>]*>", text)
    assert drawn and all("fill: currentColor" in t for t in drawn)
    assert "fill: #ffffff" not in text and "fill: #000000" not in text  # no white boxes in the dark
    legend = html.unescape("".join(re.findall(r"<text[^>]*>([^<]*)</text>", text)))
    assert all(name in legend for name in ("日本 $x$", "(none)", "_hidden", "<script>docum", "a…"))
    assert "a" * 40 not in legend


def test_drawing_leaves_the_reader_s_matplotlib_alone():
    import matplotlib

    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    step = {
        "as": "x",
        "number": 1,
        "name": "n",
        "data": {"unit": "tokens", "lengths": {"counts": [1, 2], "edges": [0, 1, 2]}},
    }
    assert "<svg" in figures.lengths([step]) and figures.lengths([]) == figures.domains([]) == figures.bins({}) == ""
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == backend
    assert figures.lengths([step]) == figures.lengths([step])  # the same page for the same run


def test_trails_tell_of_rows_that_were_there(hostile):
    from trainlore import trail

    first = trail.curations(hostile)[0]["out"]
    told = [
        (int(a), b)
        for a, b in re.findall(
            r"<summary>row (\d+) of \$pool: (\w+) by random_rows", (hostile / "report.html").read_text()
        )
    ]
    more = re.findall(
        r"<summary>row (\d+) of \$pool: in the rows trained on by train", (hostile / "report.html").read_text()
    )
    assert len(told) + len(more) == 10
    assert {i for i, _ in told} | set(map(int, more)) <= set(first.whole().ids.tolist())
    assert {i for i, what in told if what == "dropped"} <= set(first.dropped().ids.tolist()) and set(
        map(int, more)
    ) <= set(first.ids.tolist())


def test_rows_made_of_no_other_stop_no_report():
    from trainlore.nouns import Data
    from trainlore.page.data import _traced

    made = Data.of(["a", "b"]).new({"text": ["x", "y", "z"]}, parents=[[1], [], []])
    assert _traced([{"as": "b", "from": "a", "made": True, "out": made}], [0, 1, 2]) == ("a", [1])


def test_only_what_a_run_had_is_on_its_head(hostile):
    record = json.loads((hostile / "run.json").read_text())
    assert "dead switches" in page._head(record) and "parity gates passed" in page._head(record)
    head = page._head({**record, "steps": record["steps"][:1]})
    assert "dead switches" not in head and "parity gates" not in head and "tokens through" not in head


def test_numbers_are_as_people_read_them():
    assert [pieces.number(v) for v in (None, float("nan"), 12345, 2.0, 0.12345, 1234.56, 1e12, float("inf"), True)] == [
        "–", "–", "12,345", "2", "0.123", "1,234.6", "1e+12", "inf", "1",
    ]  # fmt: skip
    assert (
        pieces.big(2.5e12, "FLOP") == "2.5 TFLOP"
        and pieces.big(3) == "3"
        and pieces.esc("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"
    )


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_run_that_did_not_finish_has_a_report_too(hostile, tmp_path, state):
    record = json.loads((hostile / "run.json").read_text())
    record |= {"state": state, "steps": record["steps"][:1] if state == "failed" else [], "error": EVIL}
    record.pop("meter")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    found = Tags(page.write(tmp_path / "run").read_text())
    assert "script" not in found.seen and EVIL in found.text and not list((tmp_path / "run").glob(".*"))


def test_choices_on_hostile_columns_are_text_too(hostile):
    """A score, a reason, a domain and copies that would love to be markup."""
    from trainlore import looking
    from trainlore.looking import drops
    from trainlore.nouns import Data

    n = 60
    pool = Data.of({"text": [f"{EVIL} {i}" for i in range(n)], "domain": [DOMAINS[i % 5] for i in range(n)]})
    kept = np.arange(n) % 3 > 0
    made = {
        EVIL: np.where(kept, 1.0, 0.0) + np.arange(n) / n,
        EVIL + "why": [EVIL] * n,
        EVIL + "_of": np.where(kept, -1, 1),
    }
    look = looking.look(pool, pool.with_(**made).where(kept))
    assert look["scores"][0]["cut"] and look["reasons"]["counts"] and len(look["copies"]["pairs"]) == drops.PAIRS
    step = {"number": 1, "name": EVIL, "as": EVIL, "look": json.loads(json.dumps(look))}
    pairs = [{"one": EVIL, "other": EVIL, "both": 1, "overlap": 0.5, "chance": 0.1, "rank": None}]
    text = choices({"steps": [step], "agreement": [{"pool": EVIL, "pairs": pairs}]})
    found = Tags(text)
    assert (
        not found.open
        and not {"script", "img"} & set(found.seen)
        and not [a for a in found.attributes if a[1][:2] == "on"]
    )
    assert found.text.count(EVIL) >= 2 * drops.PAIRS and figures.INK not in text and text.count("<svg") == 5
    assert text.count("stroke-linecap:round") >= 5 and text == choices(
        {"steps": [step], "agreement": [{"pool": EVIL, "pairs": pairs}]}
    )


# ---- in a browser


def browsed(file, width, profile):
    return subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}",
         f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom", f"file://{file}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1200])
def test_no_browser_complains_and_nothing_runs_over(hostile, tmp_path, width):
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    text = (hostile / "report.html").read_text()
    # a frame of the very width: a window may be wider than it was asked to be
    inside = "addEventListener('load',()=>parent.postMessage([document.documentElement.scrollWidth,innerWidth,document.title],'*'))"
    (tmp_path / "inner.html").write_text(text.replace("</body>", f"<script>{inside}</script></body>"))
    outer = "<body style='margin:0'><script>onmessage=e=>document.title=JSON.stringify(e.data)</script>"
    (tmp_path / "outer.html").write_text(
        f"<!doctype html><title>-</title>{outer}<iframe src='inner.html' style='border:0;width:{width}px;height:800px'>"
    )
    for file in (hostile / "report.html", tmp_path / "outer.html"):
        done = browsed(file, width, tmp_path / "profile")
        assert done.returncode == 0, done.stderr
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not complaints, complaints
    scroll, inner, title = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]))
    assert title == EVIL and inner == width and scroll <= width, (scroll, inner)
