"""What the report says of a choice of rows is what the step did: cut, reasons, domains, copies, map, agreement, and no more."""

import json

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import rankdata

from trainlore import figures, looking, trail
from trainlore import recipe as recipes
from trainlore.execute import execute
from trainlore.looking import columns, drops, maps, scores
from trainlore.nouns import Data
from trainlore.page.data import choices
from trainlore.worlds import two_domains


@pytest.fixture(scope="module")
def pool():
    return Data(two_domains.make(600, 1, duplicates=0.1))


def chosen(pool, score, keep):
    return pool.with_(score=score).take(np.sort(np.argsort(-score, kind="stable")[:keep]))


def test_the_cut_is_the_best_of_all_cuts():
    rng = np.random.default_rng(0)
    for sign in (1, -1):
        score = rng.normal(size=60).round(1)
        kept = sign * (score + rng.normal(size=60) * 0.7) > 0.5
        found = scores.cut(score, kept)
        best = max(
            (np.mean(score[kept] > at) + np.mean(score[~kept] <= at)) / 2
            if higher
            else (np.mean(score[kept] <= at) + np.mean(score[~kept] > at)) / 2
            for at in score
            for higher in (True, False)
        )
        assert found["right"] == pytest.approx(best) and found["higher"] == (sign == 1)
        low = score <= found["at"]
        assert found["kept"] == (kept & (low if sign == 1 else ~low)).sum()
        assert found["dropped"] == (~kept & (~low if sign == 1 else low)).sum()
    assert scores.cut(np.ones(5), np.arange(5) > 2) is None and scores.cut(np.arange(5), np.ones(5, bool)) is None


def test_dropped_is_what_this_step_dropped_and_not_what_was_gone_before(pool):
    score = np.random.default_rng(0).random(len(pool))
    once = chosen(pool, score, 300)
    twice = once.with_(other=-once["score"]).take(np.arange(0, 300, 3))
    look = looking.look(once, twice)
    assert (look["rows"], look["kept"], look["columns"]) == (300, 100, ["other"])
    assert {e["row"] for e in look["examples"]["dropped"]} <= set(once.ids) - set(twice.ids)
    assert len(twice.dropped()) == 500  # the view itself cannot tell the two apart
    again = once.with_(score=once["score"] * 2).take(np.arange(9))  # a column written anew
    assert looking.look(once, again)["columns"] == ["score"]
    assert looking.look(pool, pool) == {} == looking.look(pool, pool.with_(score=score))
    assert looking.look(pool, pool.new({"text": ["a", "b"]}, parents=[0, 1])) == {}
    repeated = pool.take([0, 0, 1, 2, 2])
    look = looking.look(repeated, repeated.with_(score=np.arange(5.0)).take([3, 4]))
    assert (look["rows"], look["kept"]) == (5, 2)


def test_a_score_is_drawn_with_its_cut_and_a_name_or_place_is_not(pool):
    score = np.random.default_rng(0).normal(size=len(pool))
    out = chosen(pool, score, 60)
    (drawn,) = looking.look(pool, out)["scores"]
    assert sum(drawn["kept"]) == 60 and sum(drawn["dropped"]) == 540 and drawn["cut"]["right"] == 1
    assert out["score"].min() > drawn["cut"]["at"] > np.sort(score)[-61]
    kept = np.isin(pool.ids, out.ids)
    marked = pool.with_(
        turn=np.where(kept, -1, np.arange(600) % 7),  # of the round that it went in
        cluster=np.arange(600) % 5,
        place=np.where(kept, np.arange(600), -1),
        noise=np.random.default_rng(1).random(600),
        half=np.where(kept, np.nan, 1.0),
    ).where(kept)
    (drawn,) = looking.look(pool, marked)["scores"]
    assert drawn["name"] == "noise" and drawn["cut"] is None
    assert "no single cut" in figures.scores(drawn)


def test_reasons_domains_and_copies(pool):
    kept = np.arange(600) % 3 > 0
    why = np.where(kept, "", np.where(np.arange(600) % 2, "short", "long"))
    look = looking.look(pool, pool.with_(rule=why.tolist()).where(kept))
    assert look["reasons"] == {"column": "rule", "counts": [["long", 100, 0], ["short", 100, 0]]}
    assert {e["scores"]["rule"] for e in look["examples"]["dropped"][:2]} == {"long", "short"}  # each has its turn
    domain = np.asarray(pool["domain"]).astype(str)
    for row in look["domains"]["rows"]:
        mine = domain == row["name"]
        assert (row["before"], row["after"]) == (mine.sum(), (mine & kept).sum())
    from trainlore.registry import load
    from trainlore.runs import Run

    found = looking.look(pool, Run(0).step(load("exact_duplicates")(), pool))["copies"]
    texts = list(pool.text())
    assert found["rows"] == 600 - len(set(texts)) and found["groups"] == sum(texts.count(t) > 1 for t in set(texts))
    assert found["largest"] == max(map(texts.count, texts)) and len(found["pairs"]) == drops.PAIRS
    for pair in found["pairs"]:
        assert texts[pair["row"]] == texts[pair["of"]] and texts[pair["row"]].startswith(pair["text"][:80])


def test_examples_go_from_the_cut_outwards_and_long_texts_are_shortened():
    score = np.random.default_rng(0).permutation(100).astype(float)
    pool = Data.of({"text": [f"{i} " + "word " * 500 for i in range(100)]})
    told = looking.look(pool, chosen(pool, score, 30))["examples"]
    assert [e["scores"]["score"] for e in told["kept"]] == [70, 76, 82, 87, 93, 99]
    assert [e["scores"]["score"] for e in told["dropped"]] == [69, 55, 41, 28, 14, 0]
    assert all(len(e["text"]) <= columns.LETTERS + 2 and e["text"].endswith("…") for e in told["kept"])
    assert columns.short("a" * 1000 + "b", 1000) == "… " + "a" * 80 + "b" and columns.short("ab", 1) == "ab"
    rows = {"messages": [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]], "n": [1]}
    assert columns.texts(Data.of(rows), np.array([0])) == ["hi\n"]
    assert columns.texts(Data.of({"prompt": ["a"], "completion": ["b"]}), np.array([0])) == ["a → b"]


def test_the_map_is_one_for_all_who_chose_from_the_pool_and_tells_domains_apart():
    pool = Data(two_domains.make(3000, 2))
    rng = np.random.default_rng(0)
    one, other = (looking.look(pool, chosen(pool, rng.random(3000), 30))["map"] for _ in "ab")
    assert one["pool"] == maps.POOL and one["more"] + sum(map(int, one["kept"].split()[: maps.POOL])) == 30
    for key in ("x", "y", "domain"):
        assert one[key].split()[: maps.POOL] == other[key].split()[: maps.POOL]
        assert len(one[key].split()) == maps.POOL + one["more"]
    x, domain = (np.array(one[k].split(), int)[: maps.POOL] for k in ("x", "domain"))
    assert (
        max(np.mean((x > at) == domain) for at in range(0, 1000, 10)) > 0.95
        or max(np.mean((x < at) == domain) for at in range(0, 1000, 10)) > 0.95
    )
    rank = np.array(one["score"].split(), int)
    assert rank.min() >= 0 and rank.max() == 99 and rank[np.array(one["kept"].split()) == "1"].min() >= 98
    drawn = figures.cloud(one, "score", "domain")
    assert drawn.count("<figure") == 3 and drawn.count("h0") == 3 * (maps.POOL + one["more"])


def test_the_plane_is_that_of_the_principal_components():
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).normal(size=(200, 30)) * np.linspace(3, 1, 30)
    found, truth = maps.axes(x), PCA(2, svd_solver="full").fit(x)
    spread = np.var((x - x.mean(0)) @ found, axis=0, ddof=1)
    assert spread == pytest.approx(truth.explained_variance_, rel=1e-2) and np.allclose(found.T @ found, np.eye(2))
    assert np.isfinite(maps.axes(np.ones((5, 3)))).all()


def test_the_map_goes_by_what_a_column_holds():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    ids = pa.array([[int(i % 2) * 5 + 1] * 8 for i in range(50)])
    for table, by in (({"features": x}, "features"), ({"input_ids": ids}, "tokens"), ({"n": np.arange(50)}, None)):
        pool = Data.of(table)
        assert looking.look(pool, pool.take(range(9)))["map"].get("by") == by
    pool = Data.of({"input_ids": ids})
    places = looking.look(pool, pool.take(range(9)))["map"]["x"].split()
    assert len(set(places)) == 2


def test_agreement_is_overlap_and_spearman_s_rank_correlation(pool):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 600)).round(1)  # with ties
    outs = [chosen(pool, a, 100), chosen(pool, a + b, 200), pool.take(range(0, 600, 2))]
    loss = pool.with_(score=-a).take(np.sort(np.argsort(-a, kind="stable")[:100]))  # low is kept
    found = looking.agreement(pool, [(n, o, looking.look(pool, o)) for n, o in zip("xyzl", [*outs, loss], strict=True)])
    by = {(p["one"], p["other"]): p for p in found}
    assert len(found) == 6 and by["x", "l"]["overlap"] == 1 and by["x", "l"]["rank"] == pytest.approx(1)
    x, y = (set(o.ids) for o in outs[:2])
    assert by["x", "y"]["both"] == len(x & y) and by["x", "y"]["overlap"] == len(x & y) / len(x | y)
    expected = 100 * 200 / 600
    assert by["x", "y"]["chance"] == pytest.approx(expected / (300 - expected))
    assert by["x", "y"]["rank"] == pytest.approx(np.corrcoef(rankdata(a), rankdata(a + b))[0, 1])
    assert by["x", "z"]["rank"] is None


def test_what_is_looked_at_stays_small():
    rng = np.random.default_rng(0)
    domains = [f"d{i}" for i in rng.integers(0, 400, 20_000)]
    pool = Data.of({"text": ["word " * 300 + str(i) for i in range(20_000)], "domain": domains})
    look = looking.look(pool, chosen(pool, np.where(rng.random(20_000) < 0.1, np.nan, rng.random(20_000)), 2000))
    assert len(json.dumps(look, allow_nan=False)) < 60_000
    assert len(look["domains"]["rows"]) == drops.DOMAINS + 1
    assert sum(r["before"] for r in look["domains"]["rows"]) == 20_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("looking")
    dsir = {"target": "$target", "keep": 0.2, "min_words": 0, "noise": False}
    raw = {
        "given": {
            "pool": {"data": "world:two-domains/pool", "rows": 300},
            "target": {"data": "world:two-domains/target", "rows": 50},
        },
        "steps": [
            {"dsir": {"data": "$pool", **dsir, "as": "a"}},
            {"random_rows": {"data": "$pool", "keep": 0.5, "as": "b"}},
            {"quality_rules": {"data": "$pool", "min_words": 20, "min_stop_words": None, "min_sentences": None,
                               "min_ended_lines": None, "max_top_grams": [], "max_short_lines": None, "as": "c"}},
            {"dsir": {"data": "$a", **dsir, "as": "d"}},
            {"even_pieces": {"data": "$d", "words": 6, "least": 1, "as": "cut"}},
        ],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINLORE_HOME", str(home / "home"))
        nouns = execute(recipes.read(raw), home / "run")
        execute(recipes.read(raw), home / "again")
    return home, nouns


def test_a_run_records_it_and_the_report_shows_it(run):
    home, nouns = run
    record, again = (json.loads((home / n / "run.json").read_text()) for n in ("run", "again"))
    looks = [s["look"] for s in record["steps"]]
    assert [bool(look) for look in looks] == [True, True, True, True, False]
    assert [(look["rows"], look["kept"]) for look in looks[:4]] == [
        (300, 60), (300, 150), (300, len(nouns["c"])), (60, 12),
    ]  # fmt: skip
    (pairs,) = record["agreement"]
    assert pairs["pool"] == "pool" and [(p["one"], p["other"]) for p in pairs["pairs"]] == [
        ("1 dsir", "2 random_rows"), ("1 dsir", "3 quality_rules"), ("2 random_rows", "3 quality_rules"),
    ]  # fmt: skip
    assert all(s["cached"] for s in again["steps"]) and again["agreement"] == record["agreement"]
    assert [s["look"] for s in again["steps"]] == looks
    text = (home / "run" / "report.html").read_text()
    assert '<section id="choices">' in text and text.count('class="look"') == 4 and "rank correlation" in text
    record["steps"][0]["look"] = {"error": "Bad: <b>"}
    assert "could not be looked at (Bad: &lt;b&gt;)" in choices(record)


def test_a_look_that_fails_stops_no_run(run, tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("no")

    monkeypatch.setattr(looking, "look", fail)
    raw = {"given": {"d": "world:digits/test"}, "steps": [{"random_rows": {"data": "$d", "keep": 0.5}}]}
    execute(recipes.read(raw), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "finished" and record["steps"][0]["look"] == {"error": "ValueError: no"}


def test_the_trail_tells_of_dropped_rows_why_and_of_scores_written_anew(run):
    home, nouns = run
    for id in nouns["pool"].ids.tolist()[::7]:
        story = trail.row(home / "run", id)
        by = {line["step"]: line for line in story}
        for step, name in ((1, "a"), (2, "b"), (3, "c")):
            assert by[step]["what"] == ("kept" if id in nouns[name].ids else "dropped")
        assert by[3]["scores"]["quality_rule"] == ("" if id in nouns["c"].ids else "min_words")
        assert (4 in by) == (id in nouns["a"].ids)
        if 4 in by:
            assert "dsir" in by[4]["scores"] and by[4]["scores"]["dsir"] != by[1]["scores"]["dsir"]
            assert (5 in by) == (id in nouns["d"].ids)
            assert 5 not in by or by[5]["what"].startswith("made into")


def test_prepare_lays_every_choice_open_that_needs_no_training(tmp_path, capsys, monkeypatch):
    from trainlore.prepare import prepare

    monkeypatch.setenv("TRAINLORE_HOME", str(tmp_path / "home"))
    net = {
        "model": "llama-1m",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    dsir = {"data": "$pool", "target": "$target", "keep": 0.2, "min_words": 0}
    raw = {
        "given": {
            "pool": {"data": "world:two-domains/pool", "rows": 200},
            "target": {"data": "world:two-domains/target", "rows": 50},
            "net": net,
        },
        "steps": [
            {"dsir": {**dsir, "as": "kept"}},
            {"bpe": {"model": "$net", "corpus": "$kept", "vocab": 270, "as": "blank"}},
            {"train": {"model": "$blank", "data": "$kept", "steps": 1, "as": "small"}},
            {"random_rows": {"data": "$pool", "keep": 0.5, "as": "drawn"}},
            {"color_filter": {"data": "$pool", "prior": "$blank", "conditional": "$small", "as": "judged"}},
        ],
    }
    prepare(recipes.read(raw), tmp_path / "short", False, 2)
    assert "random_rows" not in capsys.readouterr().out
    prepare(recipes.read(raw), tmp_path / "long", True, 2)
    out = capsys.readouterr().out
    assert "dsir: 200 rows → 40" in out and "random_rows: 200 rows → 100" in out and "color_filter" not in out
    assert "no single cut" in out or ", cut at -" in out
    (line,) = [x for x in out.splitlines() if x.startswith("  domain: ")][:1]
    record = json.loads((tmp_path / "long" / "run.json").read_text())
    (look,) = [s["look"] for s in record["steps"] if s["name"] == "dsir"]
    assert f"{look['domains']['rows'][0]['after'] / 40:.0%}" in line
    assert len([x for x in out.splitlines() if x.startswith("  kept ")]) == 4  # two of each step
    (pair,) = record["agreement"][0]["pairs"]
    assert f"{pair['both']} rows in both, overlap {pair['overlap']:.0%}" in out and out.rstrip().endswith("report.html")


def test_steps_that_a_race_made_are_looked_at_when_a_run_takes_them(tmp_path):
    from trainlore.execute import Heat

    raw = {"given": {"d": "world:digits/test"}, "steps": [{"random_rows": {"data": "$d", "keep": 0.5}}]}
    found = {}
    for name, heat in (("race", Heat(store=tmp_path / ".store", alone=False)), ("run", None)):
        execute(recipes.read(raw), tmp_path / name, heat=heat)
        (found[name],) = json.loads((tmp_path / name / "run.json").read_text())["steps"]
    assert "look" not in found["race"] and found["run"]["cached"]
    assert (found["run"]["look"]["rows"], found["run"]["look"]["kept"]) == (400, 200)


def test_rows_that_a_step_made_and_did_not_keep_are_looked_at(pool):
    made = pool.new(
        {"text": [f"piece {i}" for i in range(9)], "why": [("", "short")[i % 3 == 0] for i in range(9)]},
        parents=np.arange(9),
    )
    look = looking.look(pool, made.where(np.arange(9) % 3 > 0))
    assert (look["rows"], look["kept"], look["made"]) == (9, 6, True) and look["scores"] == []
    assert look["reasons"] == {"column": "why", "counts": [["short", 3, 0]]}
    assert {e["text"] for e in look["examples"]["dropped"]} == {"piece 0", "piece 3", "piece 6"}
    again = made.where(np.arange(9) > 2)
    assert looking.look(made, again)["made"] is False  # a step after it that made none
    score = np.random.default_rng(0).random(600)
    both = [("1 a", chosen(pool, score, 60)), ("2 b", chosen(pool, -score, 60)), ("3 c", made.where(np.arange(9) > 2))]
    pairs = looking.agreement(pool, [(n, o, looking.look(pool, o)) for n, o in both])
    assert [(p["one"], p["other"]) for p in pairs] == [("1 a", "2 b")]
    step = {"number": 1, "name": "cut", "as": "x", "look": look}
    text = choices({"steps": [step], "agreement": [{"pool": "p", "pairs": []}]})
    assert "6 of 9 rows that it made kept" in text and "Agreement" not in text


def test_what_a_histogram_leaves_out_is_said_and_the_map_s_ranks_are_the_score_s(pool):
    score = np.random.default_rng(0).normal(size=600)
    score[:5], score[5:15] = 1e6, np.nan
    out = pool.with_(loss=score).take(np.argsort(score)[:100])  # low is kept
    look = looking.look(pool, out)
    (drawn,) = look["scores"]
    assert (drawn["none"], drawn["higher"]) == (10, False) and sum(drawn["kept"]) + sum(drawn["dropped"]) == 590
    low, high = drawn["edges"][0], drawn["edges"][-1]
    known = score[np.isfinite(score)]
    assert drawn["beyond"] == ((known < low) | (known > high)).sum() > 0
    rank, kept = (np.array(look["map"][k].split(), int) for k in ("score", "kept"))
    assert rank[kept == 1].max() <= rank[(kept == 0) & (rank >= 0)].min()  # the lowest losses have the lowest rank
    text = choices({"steps": [{"number": 1, "name": "n", "as": "x", "look": look}]})
    assert f"loss: {drawn['beyond']} rows lie beyond its ends" in text and "10 rows have none" in text
    old = {**drawn}
    del old["beyond"], old["none"]  # of a record that an earlier version wrote
    assert "beyond its ends" not in choices(
        {"steps": [{"number": 1, "name": "n", "as": "x", "look": {**look, "scores": [old]}}]}
    )


def test_copies_are_told_once_with_their_differences_marked(pool):
    kept = np.arange(600) != 7
    texts = list(pool.text())
    texts[3], texts[7] = "one <b> two three", "one <b> 2 three"
    rows = pool.with_(text=texts)
    look = looking.look(rows, rows.with_(copy_of=np.where(kept, -1, 3)).where(kept))
    text = choices({"steps": [{"number": 1, "name": "n", "as": "x", "look": look}]})
    assert "one &lt;b&gt; <mark>2</mark> three" in text and "one &lt;b&gt; <mark>two</mark> three" in text
    assert text.count("row 7") == 1 and "<b>kept</b>" not in text  # no second time as examples
    kept[9] = False
    look = looking.look(rows, rows.with_(copy_of=np.where(kept | (np.arange(600) == 9), -1, 3)).where(kept))
    assert choices({"steps": [{"number": 1, "name": "n", "as": "x", "look": look}]}).count("dropped</b> row") == 3
