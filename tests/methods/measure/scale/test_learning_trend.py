"""Trends are the fits of growing prefixes; the level waits for two that agree; and a tagger's curve is foretold from its start."""

from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.measure.scale.learning_trend import LearningTrend, feasible, prediction_level, trends
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.curves import fit_power
from trainlore.primitives.statistics import outcomes
from trainlore.runs import Run
from trainlore.worlds import tiny

TREEBANK = Path(__file__).parents[4].parent / "shared" / "data" / "pos_ewt"
HOW = {"share": 0.2, "levels": 6, "tau": 0.0, "least": 60, "epochs": 16.0, "lr": 1e-2}


def test_every_level_is_fitted_to_the_points_so_far():
    sizes = np.arange(1, 9) * 100
    accuracies = 0.95 - 2 * sizes**-0.5 + np.random.default_rng(0).normal(0, 0.002, 8)
    laws = trends(sizes, accuracies)
    assert laws.shape == (6, 3)
    for i, law in enumerate(laws):
        assert law == pytest.approx(fit_power(sizes[: i + 3], 1 - accuracies[: i + 3], floor=(-np.inf, np.inf)))


def test_the_level_waits_for_two_feasible_trends_that_agree():
    steep, fair, near = [2.0, 0.3, -0.1], [2.0, 0.5, 0.05], [2.0, 0.5, 0.053]
    assert feasible([steep, fair, [0.0, 1.0, 0.2]]).tolist() == [False, True, False]
    assert prediction_level(np.array([steep, fair, near]), 1000, 0.005) == 2
    assert prediction_level(np.array([steep, fair, near]), 1000, 0.001) is None
    assert prediction_level(np.array([steep, steep, fair]), 1000, 0.005) is None


@cache
def curve(seed: int) -> tuple[Report, float]:
    """The trend on at most 80 rows of digits, and the accuracy measured with all 400."""
    nouns = tiny.world("digits", seed)
    report = LearningTrend(train=nouns["data"], **HOW)(Run(seed), nouns["model"], nouns["test"])
    rows = Run(seed).numpy("order", 0).permutation(400)
    grown = Run(seed).fit(
        tiny.world("digits", seed)["model"], nouns["data"].take(rows), steps=200, batch_size=32, lr=1e-2
    )
    return report, float(outcomes(Run(), grown, nouns["test"])[0].mean())


def test_it_stops_at_the_level_and_says_what_a_target_takes():
    nouns = tiny.world("digits")
    fields = {**HOW, "least": 20, "epochs": 1.0, "tau": 1.0, "target": 0.5}
    notes = LearningTrend(train=nouns["data"], **fields)(Run(), nouns["model"], nouns["test"]).measured[0].notes
    assert (len(notes["sizes"]) == len(notes["accuracies"]) < 6 and notes["settled"]) or len(notes["sizes"]) == 6
    assert notes["predicted_at"] == 400 and 0 < notes["asymptote"] <= 1
    assert notes["rows_needed"] is None or notes["rows_needed"] > 0
    assert (
        curve(0)[0].measured[0].notes["sizes"] == [13, 27, 40, 53, 67, 80]
        and not curve(0)[0].measured[0].notes["settled"]
    )


def test_bad_input_is_named():
    nouns = tiny.world("digits")
    for fields, said in (({"share": 1.5}, "share"), ({"levels": 2}, "levels"), ({"share": 0.01}, "levels")):
        with pytest.raises(ValueError, match=said):
            LearningTrend(train=nouns["data"], **{**HOW, **fields})(Run(), nouns["model"], nouns["test"])
    with pytest.raises(ValueError, match="rows"):
        LearningTrend(train=nouns["data"], **HOW)(Run(), nouns["model"], nouns["test"].take([]))


class Window(nn.Module):
    """Tag a word by hashes of it and of its ending, and by its neighbours'."""

    main_input_name = "input_ids"

    def __init__(self, tags: int, width: int = 24) -> None:
        super().__init__()
        self.word, self.ending, self.out = (
            nn.Embedding(4096, width),
            nn.Embedding(256, width),
            nn.Linear(6 * width, tags),
        )

    def forward(self, input_ids, attention_mask=None):
        here = torch.cat([self.word(input_ids // 256), self.ending(input_ids % 256)], -1)
        here = nn.functional.pad(here, (0, 0, 1, 1))
        return self.out(torch.cat([here[:, :-2], here[:, 1:-1], here[:, 2:]], -1))


def sentences(name: str, most: int) -> Data:
    blocks = (TREEBANK / name).read_text(encoding="utf-8").split("\n\n")
    words = [
        [line.split("\t")[:2] for line in block.splitlines() if "\t" in line and not line.startswith("#")]
        for block in blocks
    ]
    words = [w for w in words if w][:most]
    tags = sorted({tag for sentence in words for _, tag in sentence})
    assert len(tags) == 17, "the universal tags"
    ids = [[(crc32(w.lower().encode()) % 4096) * 256 + crc32(w[-3:].encode()) % 256 for w, _ in s] for s in words]
    return Data.of({"input_ids": ids, "labels": [[tags.index(tag) for _, tag in s] for s in words]})


@pytest.mark.skipif(not TREEBANK.exists(), reason="the treebank pos_ewt is not in shared/data beside the repository")
def test_the_accuracy_of_a_tagger_is_foretold_from_a_third_of_the_treebank():
    train, test = sentences("train.tsv", 3000), sentences("dev.tsv", 500)
    with Run(0).global_rng("weights"):
        model = Model(Window(17), "tagger")
    how = {"epochs": 5.0, "lr": 1e-2, "batch_size": 32}
    notes = (
        LearningTrend(train=train, share=0.35, levels=7, least=40, tau=0.005, **how)(Run(0), model, test)
        .measured[0]
        .notes
    )
    grown = Run(0).fit(model.copy(), train, **how)
    right, tokens = outcomes(Run(0), grown, test)
    truth, last = float(np.average(right, weights=tokens)), notes["accuracies"][-1]
    assert truth - last > 0.02  # there was something to foretell
    assert abs(notes["predicted"] - truth) < min(0.015, (truth - last) / 2)


def measure(seed: int, arm: str) -> float:
    """Miss of the accuracy with 400 rows from prefixes of 80 and less; the rival says that it stays what it was at 80."""
    report, truth = curve(seed)
    notes = report.measured[0].notes
    return abs((notes["predicted"] if arm == "method" else notes["accuracies"][-1]) - truth)


CLAIM = Claim(
    method="learning_trend",
    world="digits",
    rival="the accuracy of the largest prefix",
    quantity="absolute miss of the accuracy with 5 times the rows",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
