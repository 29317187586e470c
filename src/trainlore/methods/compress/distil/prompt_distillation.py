from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.alike import same_tokens
from trainlore.primitives.losses import aligned, targets
from trainlore.primitives.teaching import kl
from trainlore.verbs import Part, method


def answers_apart(student: Tensor, mine: Tensor, teacher: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at the same answers after different prompts, (B, S), 0 beside them.

    student (B, S, V), teacher (B, T, V): logits; mine (B, S), theirs (B, T): where the answer's tokens are, as many a row.
    """
    gap = kl(student[mine], teacher[theirs], temperature)
    return gap.new_zeros(mine.shape).masked_scatter(mine, gap)


@contextmanager
def without_adapters(net: nn.Module) -> Iterator[bool]:
    """The net as it is without its adapters of peft, in eval mode; says whether it has any. All is put back afterwards."""
    found = []
    if "peft" in sys.modules:  # nothing of peft's can be in the net before it was imported
        from peft.tuners.tuners_utils import BaseTunerLayer

        found = [m for m in net.modules() if isinstance(m, BaseTunerLayer)]
    trained, was = [(p, p.requires_grad) for m in found for p in m.parameters()], net.training
    try:
        for layer in found:
            layer.enable_adapters(False)
        yield bool(found)
    finally:
        for layer in found:
            layer.enable_adapters(True)
        for p, asked in trained:
            p.requires_grad_(asked)
        net.train(was)


@method(
    name="prompt_distillation",
    title="Prompt distillation (knowledge injection by self-distillation)",
    paper="arXiv:2412.14964",
    lit="p451",
    family="compress/distil",
    year=2024,
    tier="llm",
    code="kallekku/prompt-distillation",
    status="stable",
)
class PromptDistillation(Part):
    """Move a passage from the prompt into the weights: answer without it as the model answers with it.

    ## What it does
    Rows hold a passage c, a question q (`prompt`) and an answer y (`completion`). The teacher is the model itself with the
    passage before the question; the student, which has adapters, sees the question alone. Over the answer's tokens:

        loss = KL( softmax(z(. | c, q, y_<t) / T) || softmax(z'(. | q, y_<t) / T) )

    The whole distribution says more of the passage than the one word that was drawn. Questions and answers are the
    model's own (`passage_questions` writes them) or given.

    ## Claim
    Models of several sizes and families, questions on passages of SQuAD's kind: without the passage more accurate than after
    fine-tuning on the same answers, on a par with or above retrieval of it; best with both.

    ## Cost
    One teacher pass a step, over passage, question and answer. A second copy of the weights, unless the model has
    adapters of peft (`lora`): then they are switched off for the teacher's pass.

    ## Fields worth tuning
    How many questions, before any field here: 30 a passage in the authors' scripts. Their adapters are of rank 1024, with
    alpha twice the rank and a learning rate of 1e-5 for ten epochs.

    ## Watch out
    What no question asks about is not learned. The rows must keep their text columns, and passage and question together
    must fit the window. With adapters the teacher is the model below them: fold earlier ones first.

    ## Differs from the paper
    Formula and numbers are from a copy of the authors' scripts. There the loss is a mean over each answer, then over rows;
    here over tokens. As there, T divides both sides and nothing makes up for its gradient's size. alpha is ours.

    ## See also
    `passage_questions`, `lora`, `kd` where another model is the teacher.
    """

    teacher: Model | None = None
    """Who answers with the passage; none: the model as it is at the first step, without adapters."""
    passage: str = "passage"
    """Column of what the teacher reads before the prompt."""
    between: str = "\n\n"
    """Text between passage and prompt."""
    alpha: float = 1.0
    """Weight of the teacher's answers; the answer's own tokens have the rest."""
    temperature: float = 2.0
    """Divides both sides' logits."""

    needs = {"prompt": "text", "completion": "text", "input_ids": "tokens", "labels": "tokens"}
    ranges = {"temperature": [1.0, 4.0, "log"], "alpha": [0.5, 1.0]}
    null = {"alpha": 0.0}
    tiny = {"world": "sums", "passage": "prompt", "between": ""}

    def start(self, loop):
        if loop.model.kind != "causal" or loop.model.tokenizer is None:
            raise Bad(f"prompt_distillation is for causal models with a tokenizer, not {loop.model!r}")
        if not 0 <= self.alpha <= 1 or self.temperature <= 0:
            raise Bad(
                f"alpha must be from 0 to 1 and temperature above 0; they are {self.alpha} and {self.temperature}"
            )
        loop.data.need(self.passage, who="prompt_distillation")
        if self.teacher is not None:
            same_tokens(loop.model, self.teacher, "prompt_distillation")
            self.teacher.net.to(loop.device).eval()
        if not self.alpha or self.teacher is not None:
            return {}
        with without_adapters(loop.model.net) as adapted:
            if adapted:
                return {}
        return {"teacher": copy.deepcopy(loop.model.net).eval().requires_grad_(False)}

    def loss(self, loop, s, batch, out, inner):
        if not self.alpha:
            return inner(batch, out)
        told = self._told(loop, batch)
        said = self._said(loop, s, told)
        mine, theirs = targets("causal", batch) != -100, targets("causal", told) != -100
        if not torch.equal(mine.sum(1), theirs.sum(1)):
            raise Bad("an answer has not the tokens it has after its passage: something cut or rewrote the rows")
        gap = answers_apart(aligned("causal", out), mine, aligned("causal", said), theirs, self.temperature)
        return (1 - self.alpha) * inner(batch, out) + self.alpha * gap

    def _told(self, loop, batch) -> Batch:
        """The rows as the teacher reads them: the passage in front."""
        rows = loop.data.take(batch["row"].cpu().numpy())
        asked = [c + self.between + q for c, q in zip(rows.text(self.passage), rows.text("prompt"), strict=True)]
        told = loop.model.encode(Data.of({"prompt": asked, "completion": list(rows.text("completion"))}))
        return {k: v.to(loop.device) for k, v in told.batch(np.arange(len(told)), loop.model).items()}

    @torch.no_grad()
    def _said(self, loop, s, told) -> Tensor:
        if self.teacher is not None:
            return self.teacher(told)
        given = {"input_ids": told["input_ids"], "attention_mask": told["attention_mask"], "use_cache": False}
        if "teacher" in s:
            return s["teacher"](**given).logits
        with without_adapters(loop.model.net):
            return loop.model.net.eval()(**given).logits
