"""The story of a row and of a model through a run: right about what was kept, dropped, cut and packed, and by whom."""

import json

import pytest

from trainlore import recipe as recipes
from trainlore import trail
from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.nouns import Data

WORDS = ["kamu", "gale", "nera", "bidu", "tovi", "pese"]


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """Two roots; a sampled pool, cut twice and packed; a name given anew; a model trained and saved."""
    home = tmp_path_factory.mktemp("trail")
    pool = [{"text": f"{i} " + ". ".join(" ".join(WORDS[(i + j) % 6 :]) for j in range(3)), "n": i} for i in range(40)]
    pool += [dict(pool[3]), dict(pool[5])]
    (home / "pool.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pool))
    (home / "other.jsonl").write_text("".join(json.dumps({"text": f"other {i}"}) + "\n" for i in range(90)))
    recipe = recipes.read(
        {
            "name": "trails",
            "given": {
                "pool": {"data": str(home / "pool.jsonl"), "sample": 30},
                "other": {"data": str(home / "other.jsonl"), "rows": "80"},
                "net": {
                    "model": "llama-1m",
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                },
            },
            "steps": [
                {"random_rows": {"data": "$pool", "keep": 0.8, "as": "pool"}},
                {"random_rows": {"data": "$pool", "keep": 0.5, "as": "pool"}},
                {"even_pieces": {"data": "$pool", "words": 6, "least": 1, "as": "cut"}},
                {"even_pieces": {"data": "$cut", "words": 3, "least": 1, "as": "pieces"}},
                {"bpe": {"model": "$net", "corpus": "$pieces", "vocab": 270, "as": "blank"}},
                {"best_fit_packing": {"data": "$pieces", "model": "$blank", "length": 32, "as": "packed"}},
                {"random_rows": {"data": "$other", "keep": 0.5, "as": "rest"}},
                {
                    "train": {
                        "model": "$blank",
                        "data": "$packed",
                        "steps": 2,
                        "batch_size": 2,
                        "precision": "fp32",
                        "as": "small",
                    }
                },
                {"save": {"model": "$small", "to": "model", "as": "saved"}},
            ],
        }
    )
    folder = home / "run"
    return folder, execute(recipe, folder), recipe


def by_step(folder):
    return {s["number"]: s["out"] for s in trail.curations(folder)}


def test_every_row_s_story_is_what_the_steps_did(lived):
    folder, _, recipe = lived
    from trainlore.given import given

    sampled = given("pool", recipe.spec.given["pool"], 0).get()
    assert len(sampled) == 30 and sampled["n"].tolist() == sampled.table["n"].to_pylist()
    assert [int(t.split()[0]) for t in sampled.text()][:20] == sampled.ids.tolist()[:20]  # a row's id is its line
    steps = by_step(folder)
    for id in sampled.ids.tolist():
        story = trail.row(folder, id)
        assert story[0]["step"] == 1 and story[0]["row"] == id
        kept = [id in steps[1].ids, id in steps[2].ids]
        assert [s["what"] for s in story[:2]] == ["kept" if k else "dropped" for k in kept][: len(story)]
        text = next(sampled.take([sampled.ids.tolist().index(id)]).text())
        assert story[0]["text"] == text[:240]
        if not all(kept):
            assert len(story) == 1 + kept[0]
            continue
        pieces = [p for p, parent in zip(steps[3].ids, steps[3]["parents"], strict=True) if parent == id]
        assert story[2]["what"] == f"made into {len(pieces)} row" + "s" * (len(pieces) != 1)
        later = [s for s in story if s["step"] == 4]
        assert [s["row"] for s in later] == pieces[: trail.SHOWN]
        for s in later:
            count = int((steps[4]["parents"] == s["row"]).sum())
            assert s["what"] == f"made into {count} row" + "s" * (count != 1)
        packed = [s for s in story if s["step"] == 6]
        assert packed and all(s["what"].startswith("made into 1 row") for s in packed)
        assert not [s for s in story if s["step"] == 7]  # another root's


def test_rows_that_are_not_there_are_not_told_of(lived):
    folder = lived[0]
    steps = by_step(folder)
    left_out = next(i for i in range(42) if i not in steps[1].whole().ids)
    for id, of, says in (
        (left_out, None, rf"\$pool has no row {left_out}"),
        (-1, None, r"\$pool has no row -1"),
        (10**9, "cut", r"\$cut has no row"),
        (85, "other", r"\$other has no row 85"),
        (0, "nobody", r"no data are called \$nobody; there are \$cut, \$other, \$packed, \$pieces, \$pool, \$rest"),
    ):
        with pytest.raises(Bad, match=says):
            trail.row(folder, id, of)
    assert trail.row(folder, 79, "other")[0]["method"] == "random_rows"
    assert {s["method"] for s in trail.row(folder, 0, "pieces") if s["step"] > 4} == {
        "bpe",
        "best_fit_packing",
        "train",
    }


def test_a_first_step_that_makes_rows_knows_its_own(tmp_path):
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in ("kamu gale", "", "nera bidu tovi"))
    )
    raw = {
        "given": {"p": str(tmp_path / "p.jsonl")},
        "steps": [{"even_pieces": {"data": "$p", "words": 2, "least": 1, "as": "cut"}}],
    }
    execute(recipes.read(raw), tmp_path / "run")
    assert [trail.row(tmp_path / "run", i)[0]["what"] for i in (0, 1)] == ["made into 1 row", "dropped"]
    for i in (3, -1):
        with pytest.raises(Bad, match=rf"\$p has no row {i}"):
            trail.row(tmp_path / "run", i)
    (tmp_path / "p.jsonl").unlink()  # then the count in the record has to do
    assert trail.row(tmp_path / "run", 1)[0]["what"] == "dropped"
    with pytest.raises(Bad, match="has no row 3"):
        trail.row(tmp_path / "run", 3)


def test_scores_are_told(tmp_path):
    raw = {
        "given": {
            "pool": {"data": "world:two-domains/pool", "rows": 50},
            "target": {"data": "world:two-domains/target", "rows": 20},
        },
        "steps": [
            {"dsir": {"data": "$pool", "target": "$target", "keep": 0.2, "min_words": 0, "noise": False, "as": "kept"}}
        ],
    }
    nouns = execute(recipes.read(raw), tmp_path / "run")
    worst = min(nouns["kept"]["dsir"])
    for id in range(50):
        (line,) = trail.row(tmp_path / "run", id)
        assert (line["scores"]["dsir"] >= worst) == (line["what"] == "kept") == (id in nouns["kept"].ids)
    assert json.loads(trail.as_json([{"x": float("nan"), "y": [1.5, (float("inf"),)]}])) == [
        {"x": None, "y": [1.5, [None]]}
    ]


def test_a_model_s_story_begins_with_the_given_one(lived):
    folder = lived[0]
    assert [s["name"] for s in trail.model(folder)] == ["bpe", "train", "save"]
    assert [s["name"] for s in trail.model(folder, "blank")] == ["bpe"]
    with pytest.raises(Bad, match=r"no model \$x; there are \$blank, \$small, \$saved"):
        trail.model(folder, "x")


def test_a_folder_that_is_no_run_or_has_nothing_to_tell(tmp_path, monkeypatch, lived):
    with pytest.raises(Bad, match="is not a run: it has no run.json"):
        trail.row(tmp_path, 0)
    execute(
        recipes.read(
            {
                "given": {"t": "world:digits/test", "net": "mlp"},
                "steps": [{"accuracy": {"model": "$net", "data": "$t"}}],
            }
        ),
        tmp_path / "r",
    )
    assert [line["what"] for line in trail.row(tmp_path / "r", 0)] == ["in the rows measured"]  # no step changed any
    raw = {"given": {"net": "mlp"}, "steps": [{"magnitude": {"model": "$net", "keep": 0.5}}]}
    execute(recipes.read(raw), tmp_path / "s")
    with pytest.raises(Bad, match="no finished step that changed data"):
        trail.row(tmp_path / "s", 0)
    with pytest.raises(Bad, match="no finished model yet"):
        trail.model(tmp_path / "r")
    monkeypatch.chdir(lived[0])
    assert trail.row(trail.Path("."), 0, "other")  # the store lies beside the run, from inside it too


def test_data_and_models_carry_their_own_trail(lived):
    _, nouns, _ = lived
    packed: Data = nouns["packed"]
    assert [e["method"] for e in packed.trail] == [
        "random_rows",
        "random_rows",
        "even_pieces",
        "even_pieces",
        "best_fit_packing",
    ]
    assert [e["made"] for e in packed.trail] == [False, False, True, True, True]
    assert packed.trail[0]["rows_in"] == 30 and packed.trail[0]["rows_out"] == 24 == packed.trail[1]["rows_in"]
    assert [e["method"] for e in nouns["saved"].trail] == ["bpe", "train"]


@pytest.fixture(scope="module")
def branched(tmp_path_factory):
    """Two pools whose rows have the same ids, a name of the one given to the other, copies, pieces of which some are dropped."""
    home = tmp_path_factory.mktemp("branched")
    mine = [{"text": f"mine {i} " + "kamu gale nera bidu " * 4 + "end."} for i in range(8)] + [{"text": "mine short"}]
    mine.append(dict(mine[2]))
    (home / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in mine))
    (home / "other.jsonl").write_text(
        "".join(json.dumps({"text": f"other {i} {'kamu gale' if i % 2 else 'pese tovi'}"}) + "\n" for i in range(10))
    )
    (home / "dev.jsonl").write_text("".join(json.dumps({"text": "kamu gale"}) + "\n" for _ in range(3)))
    dsir = {"target": "$dev", "keep": 0.5, "min_words": 0, "noise": False}
    raw = {
        "given": {n: str(home / f"{n}.jsonl") for n in ("mine", "other", "dev")},
        "steps": [
            {"exact_duplicates": {"data": "$mine", "as": "x"}},
            {"even_pieces": {"data": "$x", "words": 3, "least": 3, "as": "pieces"}},
            {"random_rows": {"data": "$other", "keep": 1.0, "as": "x"}},
            {"dsir": {"data": "$x", **dsir, "as": "chosen"}},
        ],
    }
    execute(recipes.read(raw), home / "run")
    return home / "run"


def test_a_name_given_to_other_rows_is_no_more_this_row_s(branched):
    assert [s["step"] for s in trail.row(branched, 0)] == [1, 2]  # not 4, which read another x
    assert [s["step"] for s in trail.row(branched, 0, "other")] == [3, 4]


def test_a_row_tells_what_it_copies_and_where_the_cut_is(branched):
    (line,) = trail.row(branched, 9)
    assert line["what"] == "dropped" and line["copied"].startswith("mine 2 ") and trail.said(line) == "copy_of row 2"
    assert trail.said(trail.row(branched, 1)[0]) == ""  # that it copies none is nothing to say
    line = trail.row(branched, 3, "other")[1]
    cut = next(s for s in trail.curations(branched) if s["number"] == 4)["look"]["scores"][0]["cut"]["at"]
    assert line["cuts"] == {"dsir": cut} and trail.said(line).endswith(f"(cut at {cut:.4g})")


def test_a_row_that_steps_made_tells_where_it_came_from(branched):
    pieces = by_step(branched)[2]
    first, second = trail.row(branched, int(pieces.ids[-1]), "pieces")[:2]
    parent = int(pieces["parents"][-1])
    assert (first["step"], first["row"], first["what"]) == (1, parent, "kept")
    assert (second["step"], second["what"]) == (2, f"made of row {parent} of $x")
    (line,) = [s for s in trail.row(branched, 0) if s["step"] == 2]
    n = int((pieces["parents"] == 0).sum())
    assert n > trail.SHOWN and line["what"] == f"made into {n} rows, of which the first 3 are followed"


def test_what_reads_rows_without_making_any_is_told_too(branched, lived):
    assert [(s["step"], s["what"]) for s in trail.row(branched, 1, "dev")] == [(4, "read as target")]
    packed = by_step(lived[0])[6]
    story = trail.row(lived[0], int(packed.ids[0]), "packed")
    assert [s["what"] for s in story if s["step"] == 8] == ["in the rows trained on"]
    assert sorted({s["step"] for s in story if s["what"].startswith("made of")}) == [3, 4, 6]
    with pytest.raises(Bad, match="its 3 rows are 0 to 2"):
        trail.row(branched, 3, "dev")


def test_rows_that_are_made_and_dropped_at_once_say_why(tmp_path):
    step = {"number": 2, "name": "cut", "as": "b", "from": "a", "made": True, "columns": ["why", "parents"]}
    made = Data.of({"text": ["p", "q", "r"]}).new(
        {"text": ["one", "two", "three", "four"], "why": ["", "too short", "too short", ""]},
        parents=[[5], [5], [6], []],
    )
    out = made.where([True, False, False, True])
    ((line,), live), ((lost,), gone) = (trail._through({**step, "out": out}, id) for id in (5, 6))
    assert (line["what"], live, line["text"]) == ("made into 1 row, 1 more dropped", [0], "one")
    assert (lost["what"], gone, trail.said(lost), lost["text"]) == ("dropped", [], "why too short", "three")
    assert trail.parents(out, [0, 3]) == [5] and trail.parents(out, [3]) == []
    (anew,) = trail._before([{**step, "out": out}], 2, "b", 3)
    assert anew["what"] == "made anew"


def test_a_text_written_anew_is_told(branched, monkeypatch):
    steps = trail.curations(branched)
    texts = [t + " anew" for t in steps[3]["out"].whole().text()]
    whole = steps[3]["out"].whole().with_(text=texts)
    steps[3]["out"] = whole.where([i in steps[3]["out"].ids for i in whole.ids])
    monkeypatch.setattr(trail, "curations", lambda folder: steps)
    kept = int(steps[3]["out"].ids[0])
    assert [s["what"] for s in trail.row(branched, kept, "other")] == ["kept", "rewritten"]


def test_a_store_that_was_cleaned_is_named(branched, tmp_path):
    import shutil

    shutil.copytree(branched, tmp_path / "run")
    with pytest.raises(Bad, match="no longer holds them: run the recipe again"):
        trail.row(tmp_path / "run", 0)
