"""Every filter writes what it removed beside what it kept, with the reason, whether it kept rows or made new ones."""

import json

import numpy as np
import pytest

from trainlore import single
from trainlore.checks import make
from trainlore.nouns import Data
from trainlore.registry import index, load
from trainlore.runs import Run
from trainlore.worlds import tiny

REASON = {
    "aflite": "aflite_round", "attribution_filter": "attribution", "aum": "aum_limit", "decontaminate": "test_gram",
    "embedding_duplicates": "alike", "even_pieces": "piece_rule", "exact_duplicates": "copy_of",
    "language_filter": "language_chance", "near_duplicates": "duplicate_of", "quality_rules": "quality_rule",
    "sentence_pieces": "piece_rule",
}  # fmt: skip


def test_all_filters_are_known_here():
    assert set(REASON) == {n for n, e in index().items() if e["card"]["family"] == "data/clean"}


@pytest.mark.parametrize("name", REASON)
def test_what_a_filter_removed_lies_beside_what_it_kept_with_the_reason(name, tmp_path):
    if name == "language_filter":
        pytest.importorskip("py3langid")
    nouns = tiny.world(load(name).tiny["world"])
    rows = nouns["data"].take([*range(250), 0, 1])  # two rows stand there twice
    if "text" in rows.columns:
        texts = list(rows.text())
        texts[7] = " "
        rows = rows.without("input_ids", "labels").with_(text=texts)
    given = Data(rows.arrow()).take(range(1, len(rows)))  # the first row was gone before
    out = Run(3).step(make(name, nouns), given)
    single._write(out, given, tmp_path / "kept.jsonl")
    kept, lost = (Data.of(tmp_path / f"{n}.jsonl") for n in ("kept", "kept.dropped"))
    assert len(kept) == len(out) and len(lost) and set(lost.columns) == set(kept.columns) > set(given.columns)
    if "parents" not in lost.columns:
        assert len(kept) + len(lost) == len(given)
    else:
        assert 7 in lost["parents"].tolist()  # it has no words
    why = lost[REASON[name]]
    assert np.isfinite(why).all() if isinstance(why, np.ndarray) else all(why.to_pylist())
    again = Run(3).step(make("random_rows", nouns, keep=1.0), given)
    single._write(again, given, tmp_path / "kept.jsonl")
    assert not (tmp_path / "kept.dropped.jsonl").exists()  # nothing was dropped this time
    assert all(json.loads(line) for line in (tmp_path / "kept.jsonl").open())
