"""Every method on data, given rows that it cannot use: one clear line, or an answer that is a number everywhere."""

import numpy as np
import pytest

from trainlore.checks import make
from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.registry import entry, index, load
from trainlore.runs import Run
from trainlore.slots import Clash
from trainlore.worlds import tiny

NAMES = sorted(n for n, e in index().items() if e["card"]["family"].startswith("data/"))


def given(name, nouns, rows):
    """The method as its `tiny` says, on these rows."""
    kind, method = entry(name)["kind"], make(name, nouns)
    if kind == "Part":
        return Run(3).fit(nouns["model"], rows, method, steps=2, **tiny.HOW[load(name).tiny["world"]])
    return Run(3).step(method, *([rows] if kind == "Curate" else [nouns["model"], rows]))


def strange(data):
    """Rows of another kind, and rows of this kind that say nothing or have a hole."""
    yield data.take([])
    if "features" in data.columns:
        features = data["features"].copy()
        features[3, 5] = np.nan
        yield tiny.world("text")["data"]
        yield data.with_(features=features)
    else:
        asked = "text" if "text" in data.columns else "prompt"
        plain = data.without(*(c for c in data.columns if c.endswith(("input_ids", "labels"))))
        yield tiny.world("pairs")["data"] if asked == "text" else tiny.world("text")["data"]
        yield plain.take(range(8)).with_(**{asked: [" "] * 8})


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_cannot_be_used_end_in_one_line_or_a_defined_answer(name):
    nouns = tiny.world(load(name).tiny["world"])
    for rows in strange(nouns["data"]):
        try:
            out = given(name, nouns, rows)
        except (Bad, Clash) as error:
            assert "\n" not in str(error).strip() and 10 < len(str(error)) < 400
        else:
            if isinstance(out, Model):
                assert all(weight.isfinite().all() for weight in out.net.parameters())
            if isinstance(out, Report):
                assert all(np.isfinite(one.values).all() for one in out.measured)
            if isinstance(out, Data):
                assert len(rows) or not len(out)
