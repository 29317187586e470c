from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from trainlore import runs
from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Interrupted, Run, _unmasked, passes, readable
from trainlore.verbs import Part
from trainlore.worlds.tiny import world


def rows(n=11, vocab=50, seed=0):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, vocab, k).astype(np.int32) for k in rng.integers(2, 30, n)]
    return Data.of({"input_ids": ids, "labels": ids})


def test_rows_of_a_pass_are_bounded_and_go_from_long_to_short():
    data = rows(40)
    length = np.diff(data.lists("input_ids")[1])
    for size, tokens in ((64, 100), (3, None), (64, 8), (64, None)):
        cuts = passes(data, size, tokens)
        order = np.concatenate(cuts)
        assert sorted(order.tolist()) == list(range(40)) and (np.diff(length[order]) <= 0).all()
        for cut in cuts:
            wide = data.batch(cut)["input_ids"].shape
            assert len(cut) <= size and (tokens is None or len(cut) == 1 or wide[0] * wide[1] <= tokens)
    assert [len(c) for c in passes(Data.of({"features": np.zeros((7, 2))}), 3)] == [3, 3, 1]


@pytest.mark.parametrize("size", [64, 4])
def test_a_causal_network_says_the_same_without_the_mask_of_the_padding(size):
    model, data = preset("llama-1m", vocab=50, num_hidden_layers=1), rows()
    alone = [per_row(rowwise("causal", b := data.batch([i]), model(b)), b, "causal") for i in range(len(data))]
    seen = []

    def loss(batch, out):
        seen.append(set(batch))
        return per_row(rowwise("causal", batch, out), batch, "causal")

    assert torch.allclose(Run(0).infer(model, data, loss, size=size), torch.cat(alone).detach(), atol=1e-5)
    assert all("attention_mask" in keys for keys in seen)  # what is read of an answer may want it
    assert _unmasked(model, data) and not _unmasked(model, data.with_(attention_mask=data["input_ids"]))
    both_ways = preset("llama-1m", vocab=50, num_hidden_layers=1, is_causal=False)
    assert not _unmasked(both_ways, data) and not _unmasked(preset("bert-4m", vocab=50), data)


def test_embeddings_are_the_mean_of_the_last_hidden_states_of_every_family_and_paid_for():
    from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    small = {"num_hidden_layers": 2, "vocab": 50}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2))
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )
    data = rows()
    for model in (
        preset("llama-1m", **small),
        preset("bert-4m", **small),
        preset("bert-4m", labels=3, **small),
        Model(gpt2, "causal"),
        Model(t5, "seq2seq"),
    ):
        model.net.eval()
        run = Run(0)
        got = run.embed(model, data.without("labels") if model.kind == "classifier" else data, size=4)
        reader = model.net.get_encoder() if model.kind == "seq2seq" else model.net
        for i in range(len(data)):
            ids = data.batch([i])["input_ids"][
                :, : len(data.lists("input_ids")[0][slice(*data.lists("input_ids")[1][i : i + 2])])
            ]
            with torch.no_grad():
                true = reader(input_ids=ids, output_hidden_states=True).hidden_states[-1].mean(1)[0]
            assert torch.allclose(got[i], true, atol=1e-5), model
        whole = Run(0)
        whole.infer(model, data, lambda batch, out: out[:, 0], size=4)
        assert 0 < run.meter.forward <= whole.meter.forward and run.meter.rows == len(data)
        again = Run(0)
        again.embed(model, data, size=4)
        assert again.meter.forward == run.meter.forward


def test_rows_that_a_model_cannot_read_say_which_column_it_lacks_and_the_way_out():
    nouns, run = world("pairs"), Run(0)
    model, encoded = nouns["model"], nouns["data"]
    plain = encoded.without(*(c for c in encoded.columns if c.endswith(("_ids", "_labels"))))
    says = "the model reads 'input_ids'; there are prompt, chosen, .*pairs of a chosen and a rejected answer: give one text"
    for pairs in (encoded, plain):
        with pytest.raises(Bad, match=says):
            run.embed(model, pairs)
        with pytest.raises(Bad, match=says):
            run.infer(model, pairs, lambda batch, out: out[:, 0])
    with pytest.raises(Bad, match="target was given no rows"):
        readable(model, encoded.take([]), who="target")

    def loss(batch, out):
        return per_row(rowwise("causal", batch, out), batch, "causal")

    untold = rows(5).without("labels")
    assert len(run.embed(model, untold)) == 5
    with pytest.raises(Bad, match="the rows have no column 'label' or 'labels'; a batch of them holds input_ids"):
        run.infer(model, untold, loss)
    with pytest.raises(Bad, match="target: the rows have no column 'label' or 'labels'.*; there are input_ids"):
        readable(model, untold, who="target", losses=True)

    def fault(batch, out):
        raise RuntimeError("one fault of its own")

    strange = Data.of({"features": np.zeros((3, 64), np.float32), "label": [0, 99, 1]})
    by_loss, by_place = (
        lambda b, out: rowwise("classifier", b, out),
        lambda b, out: out.gather(1, b["labels"][:, None])[:, 0],
    )
    for read in (by_loss, by_place):
        with pytest.raises(Bad, match="labels run from 0 to 99; the model knows 0 to 9"):
            run.infer(preset("mlp"), strange, read)
    with pytest.raises(RuntimeError, match="one fault of its own"):
        run.infer(preset("mlp"), strange.take([0, 2]), fault)
    with pytest.raises(Bad, match="target: labels run to 99; the model knows 0 to 9"):
        readable(preset("mlp"), strange, who="target", losses=True)
    with pytest.raises(KeyError, match="nowhere"):  # what is wrong with the function is nobody's column
        run.infer(model, untold, lambda batch, out: batch["nowhere"])


def test_a_pass_that_was_killed_goes_on_with_the_batch_it_was_at(tmp_path, monkeypatch):
    """Answers and bill are those of a pass that nobody stopped, and no more than what was not written is made again."""
    monkeypatch.setattr(runs, "EVERY", 0.0)
    model, data, made = preset("mlp", seed=0), Data.of("world:digits/train").take(range(300)), []

    def largest(batch, out):
        if len(made) == stop:
            raise MemoryError
        made.append(len(batch["row"]))
        return out.amax(1)

    def asked(folder=None, what=largest):
        run = Run(0, folder, label="01-scores")
        made.clear()
        return run.infer(model, data, partial(what, run) if what is not largest else what, size=32), run.meter

    stop = None
    whole, bill = asked()
    assert len(made) == 10
    stop = 6
    with pytest.raises(MemoryError):
        asked(tmp_path)
    (place,) = (tmp_path / "checkpoints").iterdir()
    files = sorted(place.iterdir())
    assert place.name == "01-scores-pass-001" and len(files) == 5  # the answer of the last whole batch was on its way
    stop = None
    values, paid = asked(tmp_path)
    assert torch.equal(values, whole) and (paid.work, paid.rows) == (bill.work, bill.rows) and len(made) == 5
    values, paid = asked(tmp_path)  # the step goes on after the pass: that is over
    assert torch.equal(values, whole) and paid.work == bill.work and not made
    for file in files[2].iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    values, _ = asked(tmp_path)  # what follows a damaged file is made again
    assert torch.equal(values, whole) and len(made) == 8
    monkeypatch.setattr(runs, "EVERY", 60.0)

    def pressed(run, batch, out):
        run.interrupted = len(made) == 4
        return largest(batch, out)

    with pytest.raises(Interrupted):
        asked(tmp_path / "stopped", pressed)
    assert len(list((tmp_path / "stopped").rglob("answers-*"))) == 1
    assert torch.equal(asked(tmp_path / "stopped")[0], whole) and len(made) == 6


def test_a_pass_with_dropout_goes_on_in_the_same_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "EVERY", 0.0)
    data, model, made = Data.of("world:digits/train").take(range(200)), preset("mlp", seed=0), []

    def noisy(stop, batch, out):
        if len(made) == stop:
            raise MemoryError
        made.append(1)
        return torch.nn.functional.dropout(out, 0.5).sum(1)

    def asked(folder, stop=None):
        run = Run(0, folder, label="01-scores")
        with run.global_rng("noise"):
            return run.infer(model, data, partial(noisy, stop), size=32), torch.rand(1)

    whole = asked(None)
    made.clear()
    with pytest.raises(MemoryError):
        asked(tmp_path, 4)
    for _ in range(2):  # the rest of the pass, and after its end
        again = asked(tmp_path)
        assert torch.equal(again[0], whole[0]) and torch.equal(again[1], whole[1])


def test_passes_of_a_training_and_short_ones_leave_nothing(tmp_path, monkeypatch):
    model, data = preset("mlp", seed=0), Data.of("world:digits/train").take(range(100))
    run = Run(0, tmp_path, label="01-scores")
    run.infer(model, data, lambda batch, out: out.amax(1))
    assert not list(tmp_path.rglob("answers-*"))
    monkeypatch.setattr(runs, "EVERY", 0.0)

    class Looks(Part):
        def start(self, loop):
            loop.run.infer(loop.model, loop.data, lambda batch, out: out.amax(1))
            return {}

        def watch(self, loop, s, record):
            """Looks at the start, and watches."""

    run.fit(model, data, Looks(), steps=2)
    assert not list(tmp_path.rglob("answers-*"))
