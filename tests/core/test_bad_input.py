"""What people get wrong: one clear line that names what, where and the way out, and nothing half-written."""

import json

import numpy as np
import pyarrow as pa
import pytest
import transformers as hf
import yaml

from trainlore import recipe as recipes
from trainlore.checks import make
from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.nouns import Data, Model
from trainlore.registry import load
from trainlore.runs import Run
from trainlore.worlds import tiny

HOW = {**tiny.HOW["digits"], "steps": 2}
DIGITS = tiny.world("digits")
ROWS = DIGITS["data"]
N = len(ROWS)


def said(error):
    text = str(error.value)
    assert "\n" not in text.strip() and 10 < len(text) < 400, text
    return text


def fit(data, model=None, *parts, **how):
    return Run(0).fit((model or DIGITS["model"]).copy(), data, *parts, **{**HOW, **how})


# ---- files


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"text": \n', r"a.jsonl:2: not JSON .*: {\"text\":"),
        ("b.jsonl", b'{"text": "ok"}\n["no object"]\n', r"b.jsonl:2: a line must be an object of columns, this is a list"),
        ("c.jsonl", b'{"text": "ok"}\n\n{"text": "\xff"}\n', r"c.jsonl:3: byte 10 of the line is not UTF-8; errors=\"replace\" reads past it"),
        ("d.jsonl", b'{"n": 1}\n{"n": "one"}\n', r"d.jsonl:2: column 'n' holds text here and a number before; give it one type"),
        ("e.jsonl", b'[{"text": "x"}]', r"e.jsonl is one JSON array; write one object a line"),
        ("f.jsonl", b"", r"f.jsonl is empty"),
        ("g.csv", b"text,n\nok,1\n\xff\xfe,2\n", r"g.csv: byte 12 is not UTF-8"),
        ("h.csv", b"a,b\n1,2\n1,2,3\n", r"h.csv: .*Expected 2 columns, got 3"),
        ("i.csv", b"a,a\n1,2\n", r"i.csv: column 'a' stands twice in the header"),
        ("j.txt", b"caf\xe9", r"j.txt: byte 3 is not UTF-8"),
        ("k.parquet", b"PAR1nonsense", r"k.parquet"),
        ("l.pkl", b"\x80\x04", r"l.pkl.*read are .jsonl"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(home, name, content, says):
    (home / name).write_bytes(content)
    with pytest.raises(Bad, match=says):
        Data.of(home / name)
    assert not [p for p in (home / "home").rglob("*") if p.is_file()]  # nothing is kept of it


def test_places_where_no_file_is(home):
    (home / "train.jsonl").write_text('{"text": "x"}\n')
    (home / "empty").mkdir()
    for source, says in (
        (home / "trian.jsonl", "no file .*trian.jsonl; beside it: train.jsonl"),
        (home / "empty", "empty"),
        ("world:digitz", "no world 'digitz'; worlds are python-docs, digits"),
        ("world:digits/tset", "world digits has no part 'tset'; it has train, test"),
    ):
        with pytest.raises(Bad, match=says):
            Data.of(source)
    assert list(Data.of(home / "train.jsonl").text()) == ["x"]


def test_bytes_that_are_no_text_can_be_read_past(home):
    (home / "x.jsonl").write_bytes(b'{"text": "a\xffb"}\n')
    assert list(Data.of(home / "x.jsonl", errors="replace").text()) == ["a�b"]


# ---- labels, weights, columns


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("label", ["x"] * N, "column 'label' holds large_string, not class numbers: map them to 0, 1, 2"),
        ("label", np.full(N, 1.5), "column 'label' holds double, not class numbers"),
        ("label", np.full(N, -1), "labels run from -1 to -1"),
        ("label", pa.array([None] + [1] * (N - 1)), r"column 'label' has no value in a row \(0\): fill it, drop"),
        pytest.param("label", np.full(N, 10), "label"),
        pytest.param("weight", np.full(N, -1.0), "weight"),
        pytest.param("weight", np.zeros(N), "weight"),
        pytest.param("weight", np.where(np.arange(N) == 7, np.nan, 1.0), "weight"),
        pytest.param("weight", ["heavy"] * N, "weight"),
        pytest.param("features", np.zeros((N, 3), np.float32), "features"),
    ],
)  # fmt: skip
def test_columns_that_hold_something_else(column, values, says):
    with pytest.raises(Bad, match=says) as error:
        fit(ROWS.with_(**{column: values}))
    said(error)


def test_a_class_above_those_the_model_knows():
    net = hf.BertForSequenceClassification(
        hf.BertConfig(
            vocab_size=384, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=2
        )
    )
    model = Model(net, "classifier", tiny.llama().tokenizer)
    with pytest.raises(Bad, match="labels run from 0 to 2; the model knows 0 to 1"):
        fit(Data.of({"text": ["a", "b", "c"], "label": [0, 1, 2]}), model)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (ROWS.take([]), "there are no rows to train on"),
        (ROWS.without("features"), "the model reads 'features'; there are label"),
        (Data.of(["text"]), "the model reads 'features'; there are text"),
        pytest.param(ROWS.without("label"), "label"),
    ],
)
def test_rows_a_classifier_cannot_be_trained_on(data, says):
    with pytest.raises(Bad, match=says) as error:
        fit(data)
    said(error)


def tokens(ids, labels=None, **more):
    return Data.of({"input_ids": ids, **({} if labels is None else {"labels": labels}), **more})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (tokens([[5] * 300] * 4, [[5] * 300] * 4), "300 tokens.*window is 128"),
        (tokens([[500, 5]] * 4, [[500, 5]] * 4), "500"),
        (tokens([[1, 2, 3]] * 4, [[1]] * 4), "labels"),
        (tokens([[1, 2, 3]] * 4), "labels"),
        (tokens([[1, 2, 3]] * 4, [[-100] * 3] * 4), "learn|trained on"),
        (tiny.world("pairs")["data"], "dpo|prefer|chosen"),
    ],
)
def test_token_rows_a_model_cannot_be_trained_on(data, says):
    with pytest.raises(Bad, match=says) as error:
        fit(data, tiny.llama(), batch_size=2)
    said(error)


def test_missing_columns_are_named_with_those_there_are():
    text, digits = Data.of({"txt": ["a b", "c"]}), ROWS.without("label")
    for method, nouns, says in (
        (load("dsir")(target=text), (text,), "no column 'text'; there are txt"),
        (load("exact_duplicates")(), (text,), "needs column 'text'; there are txt"),
        (load("accuracy")(), (DIGITS["model"], digits), "accuracy needs column 'label'; there are features"),
        (load("accuracy")(), (DIGITS["model"], ROWS.take([])), "accuracy was given no rows"),
        (load("random_rows")(keep=0.0), (ROWS,), "keep=0.0: give a share of the rows, above 0 and at most 1"),
        (load("random_rows")(keep=1.5), (ROWS,), "keep=1.5"),
        (load("dsir")(target=text, keep=0), (Data.of(["a"]),), "keep|target|'text'"),
    ):
        with pytest.raises(Bad, match=says) as error:
            Run(0).step(method, *nouns)
        said(error)


def test_nouns_of_the_wrong_kind():
    for method, nouns, says in (
        (load("accuracy")(), (ROWS, DIGITS["model"]), "accuracy takes Model and Data, not Data, Model"),
        (load("random_rows")(), (DIGITS["model"],), "random_rows takes Data, not Model"),
        (load("accuracy")(), (DIGITS["model"],), "accuracy takes Model and Data, not Model"),
        (load("ema")(), (DIGITS["model"],), "EMA is not a step: a part goes under `with`"),
    ):
        with pytest.raises(Bad, match=says):
            Run(0).step(method, *nouns)


# ---- how a training is asked for


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": -3}, "batch_size must be at least 1, not -3"),
        ({"precision": "fp17"}, "precision is fp32, bf16, fp16 or auto, not 'fp17'"),
        ({"steps": 0}, "steps must be above 0, not 0"),
        ({"steps": None, "tokens": "many"}, "'many' is not an amount: write 3000, 10k, 2M"),
        ({"steps": None, "tokens": "1M"}, "a budget in tokens needs token rows; give steps, epochs or rows"),
        ({"epochs": 1}, "give one budget of .*, not steps and epochs"),
        pytest.param({"steps": float("nan")}, "steps"),
        pytest.param({"micro_batch": -1}, "micro_batch"),
        pytest.param({"lr": -1.0}, "lr"),
        pytest.param({"lr": float("nan")}, "lr"),
        pytest.param({"weight_decay": -1.0}, "weight_decay"),
        pytest.param({"device": "tpuu"}, "tpuu"),
    ],
)
def test_trainings_that_make_no_sense(how, says):
    with pytest.raises(Bad, match=says) as error:
        fit(ROWS, **how)
    said(error)


@pytest.mark.parametrize("part", ["ema", load("accuracy")(), load("ema")])
def test_what_is_no_part(part):
    with pytest.raises(Bad, match="part"):
        fit(ROWS, None, part)


# ---- recipes


GOOD = {
    "given": {"rows": "world:digits/train", "net": "mlp"},
    "steps": [
        {"random_rows": {"data": "$rows", "keep": 0.5, "as": "half"}},
        {"train": {"model": "$net", "data": "$half", "steps": 2, "with": [{"ema": {}}], "as": "small"}},
        {"accuracy": {"model": "$small", "data": "$half"}},
    ],
}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"rows": {"data": "world:digits/train", "smaple": 9}},
            "given rows: no option 'smaple'; there are data, share, skip, rows, sample, errors",
        ),
        ({"rows": {"data": "world:digits/train", "rows": "few"}}, "given rows: rows: 'few' is not an amount"),
        (
            {"rows": {"data": "world:digits/train", "sample": 0}},
            "given rows: sample must be a whole number above 0, not 0",
        ),
        ({"rows": {"data": "world:digits/train", "rows": 1.5}}, "rows must be a whole number above 0"),
        ({"rows": {"source": "x.jsonl"}}, "given rows: say {data: source, ...} or {model: source, ...}"),
        ({"rows": "world:digit/train"}, "no world 'digit'"),
        ({"rows": "nope.jsonl"}, "given rows: no file nope.jsonl"),
        ({"net": {"model": "mlp", "widht": 9}}, "given net: no option 'widht'; did you mean width"),
        ({"net": {"model": "llama-1m", "hiden_size": 9}}, "no option 'hiden_size'; did you mean hidden_size"),
        ({"net": "llama-2m"}, "'llama-2m' is no file, folder, world or preset .presets: llama-1m"),
        ({"net": {"model": "nowhere/at/all"}}, "no model at nowhere/at/all: there is no such folder"),
        ({"rows": "net", "net": "mlp"}, "'net' is no file"),
    ],
)
def test_sources_that_are_none_leave_no_folder(tmp_path, given, says):
    with pytest.raises(Bad) as error:
        execute(recipes.read({**GOOD, "given": {**GOOD["given"], **given}}), tmp_path / "run")
    assert says.replace(".presets", "(presets") in str(error.value)
    assert not list(tmp_path.iterdir())


def test_options_of_sources_are_obeyed(tmp_path):
    rows = {"data": "world:digits/train", "rows": "1k", "sample": 30}
    net = {"model": "mlp", "width": 8, "seed": 5}
    nouns = execute(recipes.read({**GOOD, "given": {"rows": rows, "net": net}}))
    assert len(nouns["half"]) == 15 and nouns["half"].ids.max() < 1000
    again = execute(recipes.read({**GOOD, "given": {"rows": rows, "net": net}}))
    assert again["small"].fingerprint == nouns["small"].fingerprint and nouns["small"].net[0].out_features == 8


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([{"random_row": {"data": "$rows"}}], "no method 'random_row'; did you mean random_rows"),
        ([{"random_rows": {"data": "$rows", "kep": 1}}], "no field 'kep'; did you mean keep"),
        ([{"random_rows": {"data": "$net"}}], "$net is a Model, not a Data; there is $rows"),
        ([{"random_rows": {}}], "say `data: $name`; there is $rows"),
        ([{"random_rows": {"data": "rows"}}], "`data` names a noun, like $rows, not 'rows'"),
        ([{"ema": {"model": "$net"}}], "ema is a part of a training loop: list it under `with`"),
        ([{"dsir": {"data": "$rows", "target": "$net"}}], "target: $net is a Model, not a Data"),
        ([{"dsir": {"data": "$rows"}}], "target must be given (Data)"),
        ([{"random_rows": {"data": "$rows", "keep": "$net"}}], "$net is a noun, but the field holds float"),
        (
            [{"train": {"model": "$net", "data": "$rows", "steps": 1, "with": [{"emma": {}}]}}],
            "no method 'emma'; did you mean ema",
        ),
        ([{"train": {"model": "$net", "data": "$rows", "steps": 1, "with": {"ema": {}}}}], "`with` is a list of parts"),
        ([{"train": {"model": "$net", "data": "$rows", "steps": 1, "batch_size": "many"}}], "batch_size"),
        ([{"random_rows": {"data": "$rows"}, "accuracy": {}}], "a step is one method with its fields"),
        ([{"save": {"model": "$net", "at": "x"}}], "no field 'at'; it has to"),
    ],
)
def test_recipes_that_are_wrong_never_run(tmp_path, steps, says):
    with pytest.raises(Bad) as error:
        execute(recipes.read({**GOOD, "steps": steps}), tmp_path / "run")
    assert says in str(error.value) and str(error.value).startswith("step 1")
    assert not list(tmp_path.iterdir())


def test_saving_stays_below_the_run_folder(tmp_path):
    given = {"net": {"model": "vit-digits", "num_hidden_layers": 1}}
    for to, says in (
        ("../out", "below the run folder only"),
        ("/etc/x", "below the run folder only"),
        (".", "below the run folder only"),
        ("outcomes", "is there and is no model"),
    ):
        steps = [{"save": {"model": "$net", "to": to}}]
        (tmp_path / "run" / "outcomes").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "outcomes" / "x.parquet").write_text("")
        made = recipes.read({"given": given, "steps": steps})
        folder = tmp_path / "run"
        (folder / "recipe.yaml").write_text(made.text)
        from trainlore.store import hash_of

        (folder / "run.json").write_text(json.dumps({"recipe_hash": hash_of(made.text)}))
        with pytest.raises(Bad, match=says):
            execute(made, folder, resume=True)
        assert (folder / "outcomes" / "x.parquet").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["ledger.sqlite", "run"]


def test_folders_that_are_there(tmp_path):
    made = recipes.read(GOOD)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(Bad, match="exists: choose another --out"):
        execute(made, tmp_path / "file")
    with pytest.raises(Bad, match="cannot make .*: Not a directory"):
        execute(made, tmp_path / "file" / "run")
    for force, says in (
        (False, "exists: choose another --out"),
        (True, "not a run folder, so --force does not remove it"),
    ):
        with pytest.raises(Bad, match=says):
            execute(made, tmp_path / "full", force=force)
    execute(made, tmp_path / "empty")
    assert (tmp_path / "empty" / "report.html").exists() and (tmp_path / "full" / "x").exists()


def test_a_forced_run_with_a_wrong_source_keeps_the_old_one(tmp_path):
    execute(recipes.read(GOOD), tmp_path / "run")
    wrong = {**GOOD, "given": {**GOOD["given"], "rows": {"data": "gone.jsonl"}}}
    with pytest.raises(Bad, match="gone.jsonl"):
        execute(recipes.read(wrong), tmp_path / "run", force=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"


def test_yaml_that_would_run_code_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("steps: !!python/object/apply:os.system ['touch owned']")
    with pytest.raises(Bad, match="is not YAML"):
        recipes.read(tmp_path / "r.yaml")
    assert yaml.safe_load("a: 1") == {"a": 1}


# ---- texts


def test_rows_of_no_words_and_of_too_many():
    model = tiny.llama()
    texts = Data.of(["", "kamu " * 100_000, "gale"])
    with pytest.raises(
        Bad, match=r"row 1 has [\d,]+ tokens, the model's window is 128: cut the rows .*truncate: true"
    ) as error:
        fit(texts, model, batch_size=3)
    said(error)
    assert np.isfinite(fit(texts, model, batch_size=3, truncate=True).about["curve"]["loss"]).all()
    assert len(Run(0).step(load("exact_duplicates")(), Data.of(["", "", "a"]))) == 2
    pieces = Run(0).step(load("even_pieces")(words=50, least=1), Data.of(["", "kamu " * 5000]))
    assert len(pieces) >= 100 and set(pieces["parents"]) == {1}


def test_a_model_without_a_tokenizer():
    with pytest.raises(Bad, match="has no tokenizer: give one, or train one with `bpe`"):
        fit(Data.of(["a"]), Model.of("llama-1m"))
    with pytest.raises(Bad, match="has no tokenizer to write with"):
        Run(0).generate(Model.of("llama-1m"), ["a"])
    with pytest.raises(Bad, match="does not write text"):
        Run(0).generate(Model(tiny.llama().net, "encoder", tiny.llama().tokenizer), ["a"])


# ---- rows for the methods that choose, clean and add


def curated(name, world=None, rows=None, **changes):
    """The method as its `tiny` says, on these rows of its tiny world (or on others)."""
    nouns = world or tiny.world(load(name).tiny["world"])
    return Run(3).step(make(name, nouns, **changes), nouns["data"] if rows is None else rows)


def table(data, rows):
    return Data(data.take(np.asarray(rows)).arrow())


def broken(model):
    model = model.copy()
    for weight in model.net.parameters():
        weight.data.fill_(float("nan"))
    return model


KEEPING = "random_rows k_centre herding core_set facility_location kmeans_quality el2n grand dsir metaclip color_filter got_d rds"
VECTORS = (
    "aflite k_centre herding core_set facility_location kmeans_quality vote_k embedding_duplicates search_and_prune"
)


@pytest.mark.parametrize("name", KEEPING.split())
def test_a_share_that_rounds_to_no_row_keeps_one(name):
    assert len(curated(name, keep=1e-9)) == 1


@pytest.mark.parametrize(
    ("name", "left"),
    [("exact_duplicates", 1), ("near_duplicates", 1), ("embedding_duplicates", 1), ("decontaminate", 64), ("eda", 192)]
    + [(name, 16) for name in ("random_rows", "kmeans_quality", "dsir", "color_filter", "got_d", "rds", "dfn")]
    + [(name, 6) for name in ("k_centre", "herding", "core_set", "facility_location")]
    + [("vote_k", 20), ("uncertainty", 10), ("bald", 10), ("pcoreset", 10), ("el2n", 32)],
)  # fmt: skip
def test_rows_that_are_all_the_same(name, left):
    nouns = tiny.world(load(name).tiny["world"])
    assert len(curated(name, nouns, table(nouns["data"], [0] * 64))) == left


@pytest.mark.parametrize(
    ("name", "field", "says"),
    [
        ("dsir", "target", "target has no words"),
        ("dfn", "trusted", "dfn's trusted data was given no rows"),
        ("rds", "target", "rds's target was given no rows"),
        ("got_d", "target", "got_d's target was given no rows"),
        ("search_and_prune", "target", "search_and_prune's `target` was given no rows"),
        ("decontaminate", "tests", "decontaminate's `tests` was given no rows"),
        ("attribution_filter", "unsafe", "attribution_filter's unsafe examples was given no rows"),
    ],
)
def test_a_target_without_rows_is_named_and_one_larger_than_the_pool_is_not(name, field, says):
    nouns = tiny.world(load(name).tiny["world"])
    given = load(name).tiny[field]
    key = (given if isinstance(given, str) else given[0])[1:]
    with pytest.raises(Bad, match=says) as error:
        curated(name, {**nouns, key: nouns[key].take([])})
    said(error)
    few = {"keep": 0.9} if name == "search_and_prune" else {}
    assert 0 < len(curated(name, nouns, table(nouns["data"], range(20)), **few)) <= 20 < len(nouns[key])


@pytest.mark.parametrize("name", VECTORS.split())
def test_embeddings_that_are_not_finite(name):
    features = ROWS["features"].copy()
    features[3, 5] = np.nan
    with pytest.raises(
        Bad, match=f"{name}: column='features' gives vectors with values that are not finite for 1 of {N} rows"
    ):
        curated(name, rows=ROWS.with_(features=features))


@pytest.mark.parametrize(
    ("name", "says"),
    [("el2n", "scores are not a number"), ("grand", "scores are not a number"), ("preselect", "gives losses that are not finite")]
    + [(name, "the network's shares are not finite for .* rows: has it diverged") for name in ("uncertainty", "bald", "batch_bald", "pcoreset")]
    + [("got_d", "got_d: encoder=.* not finite"), ("rds", "not finite: its weights are broken"), ("color_filter", "scores are not a number")]
    + [("attribution_filter", "scores are not a number"), ("fewgen", "the prefixes are not finite")],
)  # fmt: skip
def test_networks_whose_weights_are_not_finite(name, says):
    nouns = tiny.world(load(name).tiny["world"])
    for key, noun in nouns.items():
        if isinstance(noun, Model):
            nouns[key] = broken(noun)
        elif isinstance(noun, list):
            nouns[key] = [broken(one) for one in noun]
    with pytest.raises(Bad, match=says) as error:
        curated(name, nouns)
    said(error)


@pytest.mark.parametrize("name", ["rds", "got_d"])
def test_pairs_where_one_text_a_row_is_read(name):
    pairs, nouns = tiny.world("pairs")["data"], tiny.world("text")
    for world, rows, whose in ((nouns, pairs, name), ({**nouns, "target": pairs}, None, f"{name}'s target")):
        for one in (rows, rows and rows.without(*(c for c in rows.columns if c.endswith(("_ids", "labels"))))):
            with pytest.raises(Bad, match=f"{whose} holds pairs of a chosen and a rejected answer"):
                curated(name, world, one)


def test_one_class_only():
    one = ROWS.with_(label=np.zeros(N, np.int64))
    assert 0 < len(curated("aflite", rows=one)) <= N
    with pytest.raises(Bad, match="aum: column 'label' must hold class numbers, of two classes or more"):
        curated("aum", rows=one)
    texts = tiny.world("text")["data"]
    for name in ("fewgen", "unigen", "tuned_generator"):
        with pytest.raises(Bad, match="column 'domain' has the one value 'a'"):
            curated(name, rows=texts.with_(domain=["a"] * len(texts)))
    with pytest.raises(Bad, match="no function votes on any row"):
        curated("majority_vote", rows=Data.of({"text": ["nothing to vote on"] * 5, "label": [0] * 5}))


def test_domains_that_the_target_lacks():
    nouns = tiny.world("text")
    assert set(nouns["target"]["domain"].to_pylist()) == {"b"} < set(nouns["data"]["domain"].to_pylist())
    assert len(curated("rds", nouns, task="domain")) == 75
    with pytest.raises(Bad, match="skill_it's held_out has the domains b, not a, b: give rows of each"):
        Run(0).fit(
            nouns["model"],
            nouns["data"],
            make("skill_it", {**nouns, "held_out": nouns["target"]}),
            steps=2,
            **tiny.HOW["text"],
        )


def test_one_row_of_ten_million_letters():
    texts = list(tiny.world("text")["data"].take(range(60)).text())
    domain = ["a", "b"] * 30
    texts[7] = " ".join(texts) * (10_000_000 // len(" ".join(texts)))
    rows = Data.of({"text": texts, "domain": domain})
    for name, left in (("exact_duplicates", 60), ("near_duplicates", 60), ("dsir", 15)):
        assert len(curated(name, rows=rows)) == left
    grown = curated("class_generator", rows=rows, steps=1)
    assert len(grown) >= 60 and max(map(len, list(grown.text())[60:]), default=0) < 10_000
    read = curated("eda", rows=rows.take(range(6, 9)), n_aug=1, alpha_sr=0.0, alpha_ri=0.0, p_rd=0.0, alpha_rs=1e-3)
    assert len(read) == 6 and len(list(read.text())[4]) > 9_000_000


def test_very_many_copies_of_one_row():
    rows = Data.of({"text": ["kamu gale nera bidu tovi pese"] * 50_000})
    assert len(curated("exact_duplicates", rows=rows)) == len(curated("near_duplicates", rows=rows)) == 1
    assert len(curated("dsir", rows=rows)) == 12_500
    many = table(ROWS, [0] * 20_000)
    assert len(curated("embedding_duplicates", rows=many)) == 1 and len(curated("kmeans_quality", rows=many)) == 5_000
