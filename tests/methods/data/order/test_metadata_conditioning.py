"""MeCo: the prefix, the labels on it, and the cooldown."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix.best_fit_packing import BestFitPacking
from trainlore.methods.data.order.metadata_conditioning import MetadataConditioning, prepend
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds.tiny import HOW, world


def by_hand(row, label, prefix, keep, width):
    """One row as lists: what stays in front, the prefix, the rest, padding."""
    ids = row[:keep] + prefix + row[keep:]
    told = [-100] * (keep + len(prefix)) + label[keep:]
    gap = width - len(ids)
    return ids + [0] * gap, told + [-100] * gap, [1] * len(ids) + [0] * gap


def test_rows_are_as_by_hand():
    rng = np.random.default_rng(0)
    for _ in range(30):
        b, t, p = rng.integers(1, 5), rng.integers(2, 8), rng.integers(1, 5)
        length, size, keep = rng.integers(1, t + 1, b), rng.integers(0, p + 1, b), rng.integers(0, 2, b)
        ids = rng.integers(1, 90, (b, t)) * (np.arange(t) < length[:, None])
        labels = np.where(np.arange(t) < length[:, None], np.where(rng.random((b, t)) < 0.2, -100, ids), -100)
        prefix = rng.integers(1, 90, (b, p))
        got = prepend(*(torch.from_numpy(x) for x in (ids, labels, (ids > 0).astype(int), prefix, size, keep)))
        for i in range(b):
            n = length[i]
            want = by_hand(
                ids[i, :n].tolist(), labels[i, :n].tolist(), prefix[i, : size[i]].tolist(), keep[i], t + size.max()
            )
            mask = np.array(want[2], bool)
            assert got[2][i].tolist() == want[2] and got[1][i].tolist() == want[1]
            assert (got[0][i].numpy()[mask] == np.array(want[0])[mask]).all()


def seen_by(part, steps=10):
    """The batches of a short training, as they come to the model, with the row's text before the part."""
    batches = []

    class Spy(Part):
        def batch(self, loop, s, batch):
            batches.append(batch)
            return batch

    nouns = world("text")
    Run(0).fit(nouns["model"], nouns["data"], part, Spy(), steps=steps, **HOW["text"])
    return batches, nouns["data"], nouns["model"].tokenizer


def test_names_come_first_and_then_no_more():
    batches, data, tokenizer = seen_by(MetadataConditioning(before="from ", after=": ", share=0.7))
    for t, batch in enumerate(batches):
        for i, row in enumerate(batch["row"].tolist()):
            text = tokenizer.decode(batch["input_ids"][i][batch["attention_mask"][i] == 1], skip_special_tokens=True)
            plain, domain = next(data.take([row]).text()), data["domain"][row].as_py()
            assert text == (f"from {domain}: {plain}" if t < 7 else plain)
            told = tokenizer.decode(batch["labels"][i][batch["labels"][i] >= 0], skip_special_tokens=True)
            assert told == plain  # every token of the text is learned, none of the name


def test_rows_longer_than_the_window_lose_their_end():
    nouns = world("text")
    nouns["model"].about["window"] = 96
    part = MetadataConditioning(before="x" * 60)
    model = Run(0).fit(nouns["model"], nouns["data"], part, steps=2, **HOW["text"])
    assert all(v.isfinite().all() for v in model.net.state_dict().values())


@pytest.mark.parametrize("fields", [{"share": 1.5}, {"by": "nothing"}])
def test_bad_fields_are_named(fields):
    nouns = world("text")
    with pytest.raises(ValueError, match=next(iter(fields)) if "by" not in fields else "nothing"):
        Run(0).fit(nouns["model"], nouns["data"], MetadataConditioning(**fields), steps=1, **HOW["text"])


def test_packed_rows_are_refused():
    nouns = world("text")
    packed = BestFitPacking(length=64, within="domain")(nouns["data"])
    with pytest.raises(ValueError, match="packed"):
        Run(0).fit(nouns["model"], packed, MetadataConditioning(), steps=1, **HOW["text"])


def measure(seed: int, arm: str) -> float:
    """The held-out loss of bare texts, trained with the name of their language in front for nine tenths, or never."""
    nouns, run = world("text", seed), Run(seed)
    parts = [MetadataConditioning()] if arm == "method" else []
    model = run.fit(nouns["model"], nouns["data"], *parts, steps=60, **HOW["text"])
    return float(
        run.infer(model, nouns["held_out"], lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean()
    )


CLAIM = Claim(
    method="metadata_conditioning",
    world="text",
    rival="plain text throughout",
    quantity="held-out loss without metadata",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
