from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.losses import rowwise
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method


def rewards(own: Tensor, of_samples: Tensor) -> Tensor:
    """What each rephrasing adds to the log probability of the right answer, as a z-score among those of its row.

    own: log p(y | x) (B,); of_samples: log p(y | z) (B, M). Returns (B, M)."""
    gain = of_samples - own[:, None]
    return (gain - gain.mean(1, keepdim=True)) / (gain.std(1, keepdim=True) + 1e-12)


def marginal_loss(written: Tensor, reward: Tensor, fixed: Tensor, beta: float) -> Tensor:
    """Negative log marginal likelihood over the samples of each row, and a pull to the first paraphraser: ().

    written: log P(z | x) with a gradient, reward, fixed: log P_0(z | x) of the paraphraser at the start; all (B, M).
    """
    pull = ((written.detach() - fixed + 1) * written).mean()  # its gradient is that of KL(P || P_0), from samples of P
    return -torch.logsumexp(written + reward, 1).mean() + beta * pull


@dataclass(frozen=True, kw_only=True, eq=False)
class _Marginal(Part):
    """Writes rephrasings of the batch's texts and teaches the writer by what they are worth."""

    owner: RIFF
    texts: list[str]
    labels: np.ndarray
    own: Tensor
    first: Model
    judge: Model
    beta: float

    rowwise = False

    def draw(self, loop: Any, s: dict[str, Any], n: int, inner: Any) -> Batch:
        rows = inner(n)["row"].numpy().repeat(self.owner.samples)
        asked = [self.texts[r] for r in rows]
        made = self.owner._write(loop.run, loop.model, asked, ("riff", loop.t))
        rows_of = Data.of({"prompt": [self.owner._ask(t) for t in asked], "completion": made})
        batch = loop.model.encode(rows_of, truncate=True).batch(np.arange(len(made)))
        worth = _log_p(loop.run, self.judge, _task_rows(self.judge, made, self.labels[rows]))
        shape = (-1, self.owner.samples)
        batch["worth"] = rewards(self.own[rows[:: self.owner.samples]], worth.reshape(shape)).reshape(-1)
        batch["fixed"] = _log_p(loop.run, self.first, rows_of)
        return batch

    def loss(self, loop: Any, s: dict[str, Any], batch: Batch, out: Tensor, inner: Any) -> Tensor:
        shape = (-1, self.owner.samples)
        written = -rowwise("causal", batch, out).sum(1).reshape(shape)
        return marginal_loss(written, batch["worth"].reshape(shape), batch["fixed"].reshape(shape), self.beta)


@method(
    name="riff",
    title="RIFF (learning to rephrase inputs)",
    paper="arXiv:2403.02271",
    lit="p502",
    family="data/augment",
    year=2024,
    tier="llm",
    status="stable",
    code="SaeedNajafi/RIFF",
)
class RIFF(Fit):
    """Teach a paraphraser by what its rephrasings are worth to the task, and train the task's model on rows and rephrasings.

    ## What it does
    The paraphraser P writes M versions z of an input x. Their worth is what they do for the right answer under the task's
    model p as it is given; P is trained on the marginal likelihood and held near what it was (P_0):

        r(z) = z-score over the M of  log p(y | z) - log p(y | x)
        minimize  -log sum_z P(z | x) exp(r(z))  +  beta * KL(P || P_0)

    Then the task's model is trained on every row and on M rephrasings of it, half of the weight on either:

        0.5 log p(y | x) + 0.5 mean_z log p(y | z)

    ## Claim
    Six sets with 16 rows a class, RoBERTa-large with seven ways of tuning: rephrasings in training and prediction are better
    than tuning alone.

    ## Cost
    Each step of the paraphraser writes `batch_size` * M texts and reads them with three networks. Then M texts a row.

    ## Fields worth tuning
    `samples` (8), `beta` (0.1), `paraphraser_lr` (1e-5 for a T5 of 220 M weights).

    ## Watch out
    The paraphraser must rephrase already: from a model that does not, nothing is learned. A task's model that is right on all
    of the few rows finds no version better than another. To predict as the paper does, rephrase the new inputs too, with the
    model that `tuned` gives back, and mix log probabilities with `blend`. log P(z | x) is a sum over tokens and outweighs the
    z-scores, so short rephrasings win: with a tiny paraphraser at a rate of 1e-3 they fell from 8 words to 3 in 10 steps, and
    were worth less. Contradicted here: rephrasings by a tiny Llama that rephrases badly cost a bag of words 2 points (n = 10).

    ## Differs from the paper
    The paraphraser is a causal model asked with `ask` (there a T5 taught by rephrasings of ChatGPT), and all samples are
    drawn; the authors take half of them by beam search. The task's model may be a classifier, or a causal one that writes the
    label after the text.

    ## See also
    `class_generator` writes new texts instead of versions of old ones; `rest_em` learns from right answers alone.
    """

    paraphraser: Model
    """A causal model that rephrases; it is copied."""
    label: str = "label"
    """Column of the answer: classes of a classifier, else what is written after the text."""
    samples: int = 8
    """Rephrasings of each input."""
    beta: float = 0.1
    """Pull towards the paraphraser as it was."""
    ask: str = "{}\n"
    """How the paraphraser is asked; the braces take the text."""
    new: int = 64
    """Tokens of a rephrasing, at most."""
    temperature: float = 1.0
    """Of the writing."""
    paraphraser_steps: int = 100
    """Steps of the paraphraser; 0 leaves it as it is."""
    paraphraser_lr: float = 1e-5
    """Learning rate of the paraphraser."""
    inner: tuple[Part, ...] = ()
    """Parts of the task model's training."""
    steps: int = 200
    """Steps of the task's model."""
    batch_size: int = 8
    """Rows a step, of either model."""
    lr: float = 1e-4
    """Learning rate of the task's model."""

    tiny = {
        "world": "text",
        "paraphraser": "$teacher",
        "label": "domain",
        "samples": 2,
        "new": 6,
        "paraphraser_steps": 1,
        "steps": 3,
    }

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        paraphraser = self.tuned(run, model, data)
        texts, labels = self._rows(data)
        origin = np.repeat(np.arange(len(texts)), self.samples)
        made = self._write(run, paraphraser, [texts[i] for i in origin], ("riff", "rows"))
        weight = np.concatenate([np.full(len(texts), 0.5), np.full(len(made), 0.5 / self.samples)]).astype(np.float32)
        rows = _task_rows(model, texts + made, np.concatenate([labels, labels[origin]])).with_(weight=weight)
        how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr, "truncate": True}
        return run.fit(model, rows, *self.inner, **how)

    def tuned(self, run: Run, model: Model, data: Data) -> Model:
        """A copy of the paraphraser, taught by what its rephrasings of the data are worth to `model`."""
        for name, least in (("samples", 2), ("new", 1), ("steps", 1), ("paraphraser_steps", 0), ("beta", 0)):
            if getattr(self, name) < least:
                raise Bad(f"{name}={getattr(self, name)}: at least {least}")
        if self.paraphraser.kind != "causal" or model.kind not in ("causal", "classifier"):
            raise Bad(
                f"riff wants a causal paraphraser and a causal model or classifier, not {self.paraphraser.kind} and {model.kind}"
            )
        if "{}" not in self.ask:
            raise Bad(f"ask={self.ask!r} has no place for the text: write {{}} where it goes")
        texts, labels = self._rows(data)
        writer = self.paraphraser.copy()
        writer.tokenizer = deepcopy(writer.tokenizer)  # writing leaves marks on it: the padding that batches need
        if not self.paraphraser_steps:
            return writer
        own = _log_p(run, model, _task_rows(model, texts, labels))
        part = _Marginal(
            owner=self, texts=texts, labels=labels, own=own, first=self.paraphraser, judge=model, beta=self.beta
        )
        how = {"steps": self.paraphraser_steps, "batch_size": self.batch_size, "lr": self.paraphraser_lr}
        return run.fit(writer, Data.of(texts), part, truncate=True, **how)

    def _rows(self, data: Data) -> tuple[list[str], np.ndarray]:
        data.need("text", self.label, who="riff")
        return list(data.text()), np.asarray(data[self.label])

    def _ask(self, text: str) -> str:
        return self.ask.format(text)

    def _write(self, run: Run, paraphraser: Model, texts: list[str], key: tuple[Any, ...]) -> list[str]:
        asked = [self._ask(t) for t in texts]
        made = run.generate(paraphraser, asked, new=self.new, temperature=self.temperature, key=key)
        return [z if z.strip() else x for z, x in zip(made, texts, strict=True)]  # said nothing: the text itself


def blend(own: Tensor, of_samples: Tensor) -> Tensor:
    """Log probabilities to predict by: (N, K) of the inputs and (N, M, K) of their rephrasings -> (N, K)."""
    return 0.5 * own + 0.5 * of_samples.mean(1)


def _task_rows(model: Model, texts: list[str], labels: np.ndarray) -> Data:
    """Rows as the task's model reads them."""
    if model.kind == "classifier":
        return Data.of({"text": texts, "label": labels})
    return Data.of({"prompt": texts, "completion": [f" {y}" for y in labels.tolist()]})


def _log_p(run: Run, model: Model, rows: Data) -> Tensor:
    """Log probability of each row's answer, (N,)."""

    def told(batch: Batch, out: Tensor) -> Tensor:
        losses = rowwise(model.kind, batch, out)
        return -(losses if losses.dim() == 1 else losses.sum(1))

    return run.infer(model, rows, told)
