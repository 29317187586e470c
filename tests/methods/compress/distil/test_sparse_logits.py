import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.sparse_logits import SparseLogits
from trainlore.primitives.losses import aligned, per_row, rowwise
from trainlore.primitives.teaching import soft_cross_entropy, sparse_cross_entropy, top_k, where_trained
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds.tiny import HOW, world


class Recorder:
    """A teacher that counts how often it is asked."""

    def __init__(self, model):
        self.asked, self.model = 0, model
        model.net.register_forward_pre_hook(self.count)

    def count(self, *given):
        self.asked += 1


def test_the_teacher_is_asked_once_a_row():
    nouns = world("text")
    how = {**HOW["text"], "batch_size": 10}
    rows = nouns["data"].take(range(40))
    for store, asked in ((True, 4), (False, 12)):
        teacher = Recorder(world("text")["teacher"])
        Run(0).fit(
            world("text")["model"], rows, SparseLogits(teacher=teacher.model, samples=4, store=store), steps=12, **how
        )
        assert teacher.asked == asked


def test_recalled_draws_are_those_drawn_and_other_tokens_are_asked_anew():
    nouns = world("text")
    data, teacher = nouns["data"].take(range(6)), nouns["teacher"]
    part = SparseLogits(teacher=teacher, samples=5)
    loop = type(
        "Loop",
        (),
        {
            "model": nouns["model"],
            "data": data,
            "device": torch.device("cpu"),
            "t": 0,
            "rng": lambda self, *k: Run(0).rng(*k),
        },
    )()
    s = part.start(loop)
    wide, narrow = data.batch(range(6), nouns["model"]), data.batch([3, 1], nouns["model"])
    first = part._recalled(
        loop, s, wide, torch.zeros(*wide["input_ids"].shape, 9)[:, :-1].new_zeros(teacher(wide)[:, :-1].shape)
    )
    loop.t = 1
    again = part._recalled(loop, s, narrow, teacher(narrow)[:, :-1])
    for mine, theirs in ((0, 3), (1, 1)):
        n = int(narrow["attention_mask"][mine].sum()) - 1
        assert torch.equal(again[mine, :n], first[theirs, :n])
    changed = {**narrow, "input_ids": narrow["input_ids"].flip(1)}
    assert not torch.equal(part._recalled(loop, s, changed, teacher(changed)[:, :-1]), again)


def test_many_draws_near_full_distillation():
    nouns = world("text")
    model, teacher = nouns["model"], nouns["teacher"]
    batch = nouns["data"].batch(range(4), model)
    part = SparseLogits(teacher=teacher, samples=4000, store=False)
    loop = type("Loop", (), {"model": model, "t": 0, "rng": lambda self, *k: Run(0).rng(*k)})()
    with torch.no_grad():
        out, said = model(batch), teacher(batch)
        got = part.loss(loop, {}, batch, out, lambda b, o: torch.zeros(4, out.shape[1] - 1))
        full = where_trained(
            "causal", batch, soft_cross_entropy(aligned("causal", out), aligned("causal", said).softmax(-1))
        )
    torch.testing.assert_close(got, full, atol=0.1, rtol=0)
    assert abs(got.sum() - full.sum()) / full.sum() < 2e-3


def test_bad_fields_are_named():
    nouns = world("text")
    for field, value in (("samples", 0), ("alpha", -0.1)):
        with pytest.raises(ValueError, match=field):
            Run(0).fit(
                nouns["model"],
                nouns["data"],
                SparseLogits(teacher=nouns["teacher"], **{field: value}),
                steps=1,
                **HOW["text"],
            )


class TopK(Part):
    """The rival: the likeliest answers and their probabilities, as many as are drawn."""

    def __init__(self, teacher, k):
        self.teacher, self.k = teacher, k

    def loss(self, loop, s, batch, out):
        with torch.no_grad():
            ids, weights = top_k(aligned("causal", self.teacher(batch)), self.k)
        return where_trained("causal", batch, sparse_cross_entropy(aligned("causal", out), ids, weights))


def measure(seed, arm):
    """Held-out nats a token of a student taught by twelve answers a token: drawn, or the likeliest."""
    nouns, run = world("text", seed), Run(seed)
    part = SparseLogits(teacher=nouns["teacher"], samples=12) if arm == "method" else TopK(nouns["teacher"], 12)
    student = run.fit(nouns["model"], nouns["data"], part, steps=40, **HOW["text"])
    return float(
        run.infer(
            student, nouns["held_out"], lambda batch, out: per_row(rowwise("causal", batch, out), batch, "causal")
        ).mean()
    )


CLAIM = Claim("sparse_logits", "text", "the 12 likeliest answers", "held-out nats a token", "lower", measure)
