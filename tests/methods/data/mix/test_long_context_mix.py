"""ProLong's recipe: pools, rows, and short documents that are not forgotten."""

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.mix.long_context_mix import LongContextMix, pool_shares, pools
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def test_pools_and_the_authors_shares():
    assert pools(np.array([3, 4, 7, 8, 20]), 8, 4).tolist() == [0, 1, 1, 2, 2]
    assert pools(np.array([3, 4, 20]), 4, 4).tolist() == [0, 2, 2]
    assert pool_shares(0.6, 1 / 3, False) == pytest.approx([0.4, 0.0, 0.6])  # 64K: 0.3 code, 0.3 books
    assert pool_shares(0.6, 1 / 3, True) == pytest.approx([0.4, 0.4, 0.2])  # 512K: 0.15 + 0.05 full, 0.15 + 0.25 not


@cache
def documents():
    """Short texts of domain a, and long ones, each of five texts of domain b joined."""
    table, model = world("text")["data"], world("text")["model"]
    texts = {d: [t for t, e in zip(table.text(), table["domain"].to_pylist(), strict=True) if e == d] for d in "ab"}
    long = [" ".join(texts["b"][i : i + 5]) for i in range(0, 150, 5)]
    domain = ["a"] * len(texts["a"]) + ["b"] * len(long)
    data = model.encode(Data.of({"text": texts["a"] + long, "domain": domain}), window=1 << 20)
    return data.where((np.diff(data.lists("input_ids")[1]) < 64) | (np.array(domain) == "b"))


def test_rows_of_a_stage_have_the_shares_and_their_documents_apart():
    data, seen = documents(), []

    class Spy:
        def fit(self, model, rows, *parts, **how):
            seen.append((rows, how))
            return model

        def numpy(self, *key):
            return Run(0).numpy(*key)

    sizes = np.diff(data.lists("input_ids")[1])
    stages = {"lengths": (64, 160), "bases": (1e5, 1e6), "steps": (5, 4), "rows": (8, 4), "lr": (1e-3, 1e-4)}
    assert (sizes >= 160).any() and ((sizes >= 64) & (sizes < 160)).any() and (sizes < 64).any()
    LongContextMix(**stages, by="domain").__call__.__wrapped__(
        LongContextMix(**stages, by="domain"), Spy(), world("text")["model"], data
    )
    for (rows, how), length, n in zip(seen, (64, 160), (40, 16), strict=True):
        segments = np.asarray(rows["segment_ids"])
        assert segments.shape == (n, length) and how["steps"] * how["batch_size"] == n
        full = (segments == 0).all(1)  # one document fills the row: none from the middle can
        assert full.sum() == round((0.6 if length == 64 else 0.2) * n)
        domain = np.asarray(rows["domain"])
        assert abs((domain == "a").sum() - 0.4 * n) < 1 and (domain[full] == "b").all()
    assert [how["lr"] for _, how in seen] == [1e-3, 1e-4]


@pytest.mark.parametrize(
    "fields",
    [
        {"lengths": (64,)},
        {"lengths": (160, 64)},
        {"long": 1.5},
        {"full": -1.0},
        {"steps": (0, 1)},
        {"lengths": (64, 100000)},
    ],
)
def test_bad_fields_are_named(fields):
    stages = {"lengths": (64, 160), "bases": (1e5, 1e6), "steps": (1, 1), "rows": (2, 2), "lr": (1e-3, 1e-4)}
    why = "lengths" if "steps" in fields else next(iter(fields))
    with pytest.raises(ValueError, match=why):
        LongContextMix(**{**stages, **fields})(Run(0), world("text")["model"], documents())


def test_no_long_document_is_an_error():
    stages = {"lengths": (4096,), "bases": (1e5,), "steps": (1,), "rows": (2,), "lr": (1e-3,)}
    with pytest.raises(ValueError, match="no document is long"):
        LongContextMix(**stages)(Run(0), world("text")["model"], documents())


def measure(seed: int, arm: str) -> float:
    """The held-out loss of short texts once a model of them was lengthened, with two fifths short rows or with none."""
    nouns, run = world("text", seed), Run(seed)
    long = 0.6 if arm == "method" else 1.0
    stages = {"lengths": (64, 160), "bases": (1e5, 1e6), "steps": (12, 6), "rows": (8, 4), "lr": (3e-3, 1e-3)}
    model = LongContextMix(**stages, long=long)(run, nouns["expert_a"], documents())
    mine = nouns["held_out"].where(np.asarray(nouns["held_out"]["domain"]) == "a")
    return float(run.infer(model, mine, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean())


CLAIM = Claim(
    method="long_context_mix",
    world="text",
    rival="long documents alone",
    quantity="held-out loss of short texts",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
