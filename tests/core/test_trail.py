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
        (0, "nobody", r"no step read \$nobody; data were read from \$cut, \$other, \$pieces, \$pool"),
    ):
        with pytest.raises(Bad, match=says):
            trail.row(folder, id, of)
    assert trail.row(folder, 79, "other")[0]["method"] == "random_rows"
    assert trail.row(folder, 0, "pieces")[0]["method"] == "best_fit_packing"


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
    with pytest.raises(Bad, match="no finished step that changed data"):
        trail.row(tmp_path / "r", 0)
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
