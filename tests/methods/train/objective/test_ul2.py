import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.train.objective.ul2 import UL2, denoiser
from trainlore.nouns import Data, Model
from trainlore.primitives.denoising import denoised, fitting, joined, replace_runs, span_counts, span_mask, tail_mask
from trainlore.primitives.losses import rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

SPECIALS = torch.tensor([901, 902, 903, *range(950, 990)])


def made(text, lengths, seed=0):
    which, span, rate = denoiser(text)
    n, width = len(lengths), max(lengths)
    ids = torch.arange(1, n * width + 1).reshape(n, width)
    args = (
        torch.full((n,), which),
        torch.full((n,), span),
        torch.full((n,), rate),
        SPECIALS,
        torch.Generator().manual_seed(seed),
    )
    return ids, denoised(ids, torch.tensor(lengths), *args)


@pytest.mark.parametrize(
    ("text", "mode", "hidden"),
    [("R 3 0.15", 901, 6), ("X 3 0.5", 903, 20), ("X 64 0.15", 903, 6), ("X 64 0.5", 903, 20)],
)
def test_inputs_and_targets_hold_every_token_once(text, mode, hidden):
    ids, ((read, read_n), (asked, asked_n)) = made(text, [40, 17])
    for row, n in enumerate((40, 17)):
        inputs, targets = read[row, : read_n[row]].tolist(), asked[row, : asked_n[row]].tolist()
        assert inputs[0] == mode and inputs[-1] >= 950 and targets[0] == 950  # kept first, hidden last
        tokens = [t for t in inputs[1:] + targets if t < 900]
        assert sorted(tokens) == ids[row, :n].tolist()
        assert [t for t in inputs if t >= 950] == [t for t in targets if t >= 950]
        back = {}
        for t in targets:  # fill each sentinel's gap with what the target says of it
            back.setdefault(t, []) and None if t >= 950 else back[list(back)[-1]].append(t)
        whole = [x for t in inputs[1:] for x in (back[t] if t >= 950 else [t])]
        assert whole == ids[row, :n].tolist()
    assert sum(t < 900 for t in asked[0, : asked_n[0]].tolist()) == hidden


def test_s_is_a_prefix_and_the_rest():
    ids, ((read, read_n), (asked, asked_n)) = made("S 0.25", [40] * 50)
    for row in range(50):
        inputs, targets = read[row, : read_n[row]].tolist(), asked[row, : asked_n[row]].tolist()
        assert inputs[0] == 902 and inputs[1:] + targets == ids[row].tolist() and 1 <= len(targets) <= 20
    assert asked_n.float().mean().item() / 40 == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("text", ["R 3 0.15", "X 3 0.5", "S 0.25"])
def test_cut_rows_just_fit(text):
    _, span, rate = denoiser(text)
    for width in (8, 64, 512):
        n = fitting(width, span, rate)
        taken = [
            m + 1 + (0 if span == float("inf") else 2 * int(span_counts(*map(torch.tensor, ([m], [rate], [span])))[1]))
            for m in (n, n + 1)
        ]
        assert taken[0] <= width < taken[1]


def test_a_causal_batch_trains_on_the_targets_only():
    nouns = world("text")
    model, data = nouns["model"], nouns["data"]
    loop = type("Loop", (), {"model": model, "data": data, "t": 0, "rng": lambda self, *key: Run(0).rng(*key)})()
    part = UL2(first=100, sentinels=25)
    batch = data.batch(range(64), model)
    got = part.batch(loop, part.start(loop), batch)
    assert got["input_ids"].shape == batch["input_ids"].shape
    trained = got["labels"] != -100
    assert torch.equal(got["labels"][trained], got["input_ids"][trained])
    assert set(got["input_ids"][:, 0].tolist()) == {100, 101, 102}
    share = trained.sum() / got["attention_mask"].sum()
    assert 0.25 < share < 0.5 and not (trained & (got["attention_mask"] == 0)).any()
    assert part.batch(loop, part.start(loop), batch)["input_ids"].equal(got["input_ids"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"first": None}, "add_tokens"),
        ({"denoisers": ("R 3 1.5",)}, "denoisers"),
        ({"denoisers": ("Z 3 0.5",)}, "denoisers"),
        ({"weights": (1.0,)}, "weights"),
        ({"sentinels": 1}, "sentinels"),
    ],
)
def test_bad_fields_are_named(fields, said):
    nouns = world("text")
    part = UL2(**{"first": 100, "sentinels": 25, **fields})
    with pytest.raises(ValueError, match=said):
        Run(0).fit(nouns["model"], nouns["data"], part, steps=1, **HOW["text"])


def test_special_tokens_are_found_by_name():
    nouns = world("text")
    nouns["model"].tokenizer.add_tokens(["[R]", "[S]", "[X]", *(f"<extra_id_{i}>" for i in range(30))])
    nouns["model"].net.resize_token_embeddings(len(nouns["model"].tokenizer), mean_resizing=False)
    ids = UL2()._specials(nouns["model"])
    assert ids == list(range(384, 417))
    run = Run(0)
    run.fit(nouns["model"], nouns["data"], UL2(), steps=2, **HOW["text"])
    assert run.effects[-1]["did"]["batch"] > 0.5


def test_a_seq2seq_model_reads_the_input_and_writes_the_target():
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"vocab_size": 200, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model = Model(T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0)), "seq2seq")
    data = Data.of({"input_ids": [list(range(1, n)) for n in (20, 33, 12, 8)]})
    loop = type("Loop", (), {"model": model, "data": data, "t": 0, "rng": lambda self, *key: Run(0).rng(*key)})()
    part = UL2(first=100, sentinels=25, denoisers=("X 3 0.5",))
    got = part.batch(loop, part.start(loop), data.batch(range(4), model))
    for row, n in enumerate((19, 32, 11, 7)):
        read = got["input_ids"][row][got["attention_mask"][row] == 1].tolist()
        wrote = [t for t in got["labels"][row].tolist() if t != -100]
        assert read[0] == 102 and sorted(t for t in read + wrote if t < 100) == list(range(1, n + 1))
    assert Run(0).fit(model, data, part, steps=2, batch_size=4, precision="fp32").about["curve"]["loss"][-1] > 0


def asked(model, data, text, mode, mark, run):
    """Nats a token of what a denoiser hides in the rows, asked for in the form that the mode token and sentinels give it."""
    which, span, rate = denoiser(text)
    batch, n = data.batch(range(len(data)), model), len(data)
    lengths, width, rng = batch["attention_mask"].sum(1), batch["input_ids"].shape[1], run.rng("hide", text)
    rates, spans, marks = torch.full((n,), rate), torch.full((n,), span), torch.full((n,), mark)
    hide = tail_mask(lengths, rates, width, rng) if which == 1 else span_mask(lengths, rates, spans, width, rng)
    sentinels = torch.arange(103, 128)
    kept, hidden = (replace_runs(batch["input_ids"], h, lengths, sentinels, marks) for h in (hide, ~hide))
    head = torch.full((n, 1), mode), torch.ones(n, dtype=torch.long)
    ids = joined([head, kept, hidden], 0)
    labels = joined([(torch.full((n, 1), -100), head[1]), (torch.full_like(kept[0], -100), kept[1]), hidden], -100)
    labels[torch.isin(labels, sentinels)] = -100
    mask = (torch.arange(ids.shape[1]) < (1 + kept[1] + hidden[1])[:, None]).long()
    made = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    with torch.no_grad():
        return float(rowwise("causal", made, model(made)).sum() / (labels[:, 1:] != -100).sum())


def measure(seed, arm):
    """Mean nats a hidden token over filling short gaps, going on, and filling long gaps, each model in its own best form."""
    nouns, run = world("text", seed), Run(seed)
    part = UL2(first=100, sentinels=25) if arm == "method" else UL2(first=100, sentinels=25, denoisers=("R 3 0.15",))
    model = run.fit(nouns["model"], nouns["data"], part, steps=60, **HOW["text"])
    r, s, x = (100, 101, 102) if arm == "method" else (100, 100, 100)
    rows = nouns["held_out"]
    tasks = (("R 3 0.15", r, True), ("S 0.25", s, arm == "rival"), ("X 8 0.5", x, True))
    return sum(asked(model, rows, text, mode, mark, run) for text, mode, mark in tasks) / 3


CLAIM = Claim("ul2", "text", "span corruption alone (T5)", "nats a hidden token over three tasks", "lower", measure)
