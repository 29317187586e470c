"""transformers.Trainer with parts: the same numbers as ours where both do the same, and no slot ignored in silence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from trainlore.errors import Bad
from trainlore.hf import Trainer
from trainlore.nouns import Data, Model
from trainlore.registry import load
from trainlore.runs import Run
from trainlore.verbs import Part, method

SMALL = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)


def net(seed=0):
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, pad_token_id=0))


def rows(n=24):
    g = np.random.default_rng(0)
    ids = [g.integers(2, 40, size=5 + i % 4).tolist() for i in range(n)]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def collate(batch):
    longest = max(len(r["input_ids"]) for r in batch)
    out = {"input_ids": [], "labels": [], "attention_mask": []}
    for r in batch:
        pad = longest - len(r["input_ids"])
        out["input_ids"].append(r["input_ids"] + [0] * pad)
        out["labels"].append(r["labels"] + [-100] * pad)
        out["attention_mask"].append([1] * len(r["input_ids"]) + [0] * pad)
    return {k: torch.tensor(v) for k, v in out.items()}


def how(folder, **more):
    given = dict(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=6,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        logging_strategy="no",
        max_grad_norm=0.0,
        weight_decay=0.0,
        adam_beta2=0.95,
        disable_tqdm=True,
    )
    return transformers.TrainingArguments(**{**given, **more})


def trained(folder, *parts, data=None, start=None, **more):
    made = Trainer(
        model=start or net(), args=how(folder, **more), train_dataset=data or rows(), data_collator=collate, parts=parts
    )
    made.train()
    return made


@method(name="seen", title="", family="x", year=0, status="draft")
class Seen(Part):
    rows: list

    def batch(self, loop, s, batch):
        self.rows.append(batch["row"].tolist())
        return batch


def same(a, b, **tolerance):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("label_smoothing", {"amount": 0.3}), ("ema", {"decay": 0.5}), ("wsd", {"warmup": 0.4}), ("l2", {})],
)
def test_a_part_does_here_what_it_does_in_our_loop(name, fields, tmp_path):
    """The rows the Trainer drew, fed to our loop in that order, give the same weights."""
    parts = () if name == "l2" else (load(name)(**fields),)
    order: list = []
    theirs = trained(tmp_path, Seen(rows=order), *parts)
    data = Data.of(rows())

    @method(name="replayed", title="", family="x", year=0, status="draft")
    class Replayed(Part):
        def draw(self, loop, s, n):
            return loop.data.batch(np.array(order[loop.t]), loop.model)

    ours = Run(theirs.args.seed).fit(
        Model.of(net()), data, Replayed(), *parts, steps=6, batch_size=8, lr=1e-2, precision="fp32"
    )
    same(theirs.model, ours.net, rtol=2e-3, atol=2e-4)
    plain = trained(tmp_path)
    if parts:
        assert any(
            not torch.equal(x, y) for x, y in zip(plain.model.parameters(), theirs.model.parameters(), strict=True)
        )
        assert not theirs.effects[-1]["dead"]


def test_accumulation_gives_the_step_of_the_whole_batch(tmp_path):
    part = load("label_smoothing")(amount=0.2)
    whole = trained(tmp_path, part, max_steps=3)
    pieces = trained(tmp_path, part, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    same(whole.model, pieces.model, rtol=1e-3, atol=1e-5)


def test_watchers_are_told_the_loss_of_the_whole_step(tmp_path):
    @method(name="noting", title="", family="x", year=0, status="draft")
    class Noting(Part):
        said: list

        def watch(self, loop, s, record):
            self.said.append(record)

    whole, pieces = [], []
    trained(tmp_path, Noting(said=whole), max_steps=3)
    trained(tmp_path, Noting(said=pieces), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert [r["t"] for r in whole] == [1, 2, 3] and whole[0].keys() == {"t", "loss", "rate", "lr", "work", "tokens"}
    assert [r["loss"] for r in pieces] == pytest.approx([r["loss"] for r in whole], rel=1e-4)
    assert whole[0]["loss"] == pytest.approx(np.log(40), rel=0.05) and whole[2]["tokens"] > whole[0]["tokens"] > 0


def test_updates_go_through_the_parts_under_a_schedule(tmp_path):
    @method(name="halved", title="", family="x", year=0, status="draft")
    class Halved(Part):
        def update(self, loop, s, inner):
            before = [p.detach().clone() for p in loop.model.net.parameters()]
            inner()
            with torch.no_grad():
                for p, old in zip(loop.model.net.parameters(), before, strict=True):
                    p.lerp_(old, 0.5)

    how_ = {"max_steps": 1, "lr_scheduler_type": "linear"}
    start, whole = net(), trained(tmp_path, **how_)
    half = trained(tmp_path, Halved(), **how_)
    for first, full, part in zip(start.parameters(), whole.model.parameters(), half.model.parameters(), strict=True):
        torch.testing.assert_close(part, (first + full) / 2)
    assert half.effects[0]["did"]["update"] > 0


def test_a_part_that_does_not_fit_is_refused_by_name(tmp_path):
    for name in ("sam", "curriculum"):
        cls = load(name)
        fields = {k: v for k, v in cls.tiny.items() if k != "world" and not str(v).startswith("$")}
        with pytest.raises(Bad, match=f"{name} acts in"):
            Trainer(model=net(), args=how(tmp_path), train_dataset=rows(), parts=[cls(**fields)])


def test_it_resumes_with_the_parts_state(tmp_path):
    part = load("ema")(decay=0.8)
    whole = trained(tmp_path / "a", part, max_steps=8)
    half = Trainer(
        model=net(),
        args=how(tmp_path / "b", max_steps=8, save_strategy="steps", save_steps=4),
        train_dataset=rows(),
        data_collator=collate,
        parts=[part],
    )
    half.train()
    again = Trainer(
        model=net(), args=how(tmp_path / "b", max_steps=8), train_dataset=rows(), data_collator=collate, parts=[part]
    )
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    same(whole.model, again.model, rtol=1e-5, atol=1e-6)
    with pytest.raises(Bad, match="without these parts"):
        import shutil

        shutil.rmtree(tmp_path / "b" / "checkpoint-4" / "parts")
        again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))


def test_evaluation_judges_the_weights_that_are_handed_on(tmp_path):
    made = Trainer(
        model=net(),
        args=how(tmp_path, eval_strategy="steps", eval_steps=6),
        train_dataset=rows(),
        eval_dataset=rows(8),
        data_collator=collate,
        parts=[load("ema")(decay=0.9)],
    )
    made.train()
    during = made.state.log_history[-1].get("eval_loss") or made.state.log_history[-2]["eval_loss"]
    assert made.evaluate()["eval_loss"] == pytest.approx(during, rel=1e-5)


def test_without_parts_it_is_the_trainer(tmp_path):
    ours, theirs = (
        trained(tmp_path),
        transformers.Trainer(model=net(), args=how(tmp_path), train_dataset=rows(), data_collator=collate),
    )
    theirs.train()
    same(ours.model, theirs.model)
