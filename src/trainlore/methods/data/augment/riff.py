from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.losses import rowwise
from trainlore.primitives.rephrasing import log_p, marginal_loss, rewards, task_rows
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method

READ = 64  # letters of a text for each token of the window: what lies beyond them no network here would read


@dataclass(frozen=True, kw_only=True, eq=False)
class _Marginal(Part):
    """Writes rephrasings of the batch's texts and teaches the writer by what they are worth."""

    owner: RIFF
    texts: list[str]
    labels: np.ndarray
    own: Tensor
    judge: Model
    rowwise = False

    def draw(self, loop: Any, s: dict[str, Any], n: int, inner: Any) -> Batch:
        rows = inner(n)["row"].numpy().repeat(self.owner.samples)
        asked, made = self.owner._write(loop.run, loop.model, [self.texts[r] for r in rows], ("riff", loop.t))
        pairs, shape = Data.of({"prompt": asked, "completion": made}), (-1, self.owner.samples)
        batch = loop.model.encode(pairs, truncate=True).batch(np.arange(len(made)), loop.model)
        worth = log_p(loop.run, self.judge, task_rows(self.judge, made, self.labels[rows])).reshape(shape)
        worth = rewards(self.own[rows[:: self.owner.samples]], worth).reshape(-1)
        return batch | {"worth": worth, "fixed": log_p(loop.run, self.owner.paraphraser, pairs)}

    def loss(self, loop: Any, s: dict[str, Any], batch: Batch, out: Tensor) -> Tensor:
        three = -rowwise("causal", batch, out).sum(1), batch["worth"], batch["fixed"]
        return marginal_loss(*(v.reshape(-1, self.owner.samples) for v in three), beta=self.owner.beta)


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
    """Teach a paraphraser by what its rephrasings are worth to a task, and train the task's model on them too.

    ## What it does
    The paraphraser P writes M versions z of an input x, worth what they do for the right answer under the task's model
    p as it is given. P is trained on the marginal likelihood and held near what it was (P_0); then p is trained on
    every row and M versions of it, half of the weight on either:

        r(z) = z-score over the M of  log p(y | z) - log p(y | x)
        P:  minimize  -log sum_z P(z | x) exp(r(z))  +  beta * KL(P || P_0)
        p:  maximize  0.5 log p(y | x) + 0.5 mean_z log p(y | z)

    ## Claim
    Six sets with 16 rows a class, RoBERTa-large tuned in seven ways: better with rephrasings in training and
    prediction.

    ## Cost
    Each step of the paraphraser writes `batch_size` * M texts and reads them with three networks. Then M texts a row.

    ## Watch out
    From a paraphraser that does not rephrase already nothing is learned. To predict as the paper does, rephrase the new
    inputs too, with what `tuned` gives back, and mix log probabilities with `blend` of `primitives.rephrasing`. log P(z
    | x) is a sum over tokens and outweighs the z-scores, so short versions win: a tiny paraphraser at a rate of 1e-3
    went from 8 words to 3 in 10 steps. Contradicted here: versions by a tiny Llama that rephrases badly cost a bag of
    words 2 points (n = 10). Texts of more than 64 letters a token of the window are cut there first.

    ## Differs from the paper
    A causal paraphraser asked with `ask` (there a T5 taught by ChatGPT's), all its samples drawn (there half by beam).

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
    """Learning rate of the paraphraser; this one is for a T5 of 220 M weights."""
    inner: tuple[Part, ...] = ()
    """Parts of the task model's training."""
    steps: int = 200
    """Steps of the task's model."""
    batch_size: int = 8
    """Rows a step, of either model."""
    lr: float = 1e-4
    """Learning rate of the task's model."""

    tiny = {"world": "text", "paraphraser": "$teacher", "label": "domain", "samples": 2, "new": 6,
            "paraphraser_steps": 1, "steps": 3}  # fmt: skip

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        paraphraser = self.tuned(run, model, data)
        texts, labels = self._texts(model, data), np.asarray(data[self.label])
        origin = np.repeat(np.arange(len(texts)), self.samples)
        made = self._write(run, paraphraser, [texts[i] for i in origin], ("riff", "rows"))[1]
        weight = np.concatenate([np.full(len(texts), 0.5), np.full(len(made), 0.5 / self.samples)]).astype(np.float32)
        rows = task_rows(model, texts + made, np.concatenate([labels, labels[origin]])).with_(weight=weight)
        how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr, "truncate": True}
        return run.fit(model, rows, *self.inner, **how)

    def tuned(self, run: Run, model: Model, data: Data) -> Model:
        """A copy of the paraphraser, taught by what its rephrasings of the data are worth to `model`."""
        for name, least in (("samples", 2), ("new", 1), ("steps", 1), ("paraphraser_steps", 0)):
            if getattr(self, name) < least:
                raise Bad(f"{name}={getattr(self, name)}: at least {least}")
        if self.paraphraser.kind != "causal" or not self.beta >= 0:
            raise Bad(f"riff wants a causal paraphraser, not a {self.paraphraser.kind}, and beta={self.beta} from 0 up")
        for whose, one in (("paraphraser", self.paraphraser), ("task's model", model)):
            if not all(weight.isfinite().all() for weight in one.net.parameters()):
                raise Bad(f"riff: the {whose} has weights that are not finite: has it diverged?")
        if "{}" not in self.ask:
            raise Bad(f"ask={self.ask!r} has no place for the text: write {{}} where it goes")
        data.need("text", self.label, who="riff")
        texts, labels = self._texts(model, data), np.asarray(data[self.label])
        writer = self.paraphraser.copy()
        writer.tokenizer = deepcopy(writer.tokenizer)  # writing leaves marks on it: the padding that batches need
        if not self.paraphraser_steps:
            return writer
        own = log_p(run, model, task_rows(model, texts, labels))
        part = _Marginal(owner=self, texts=texts, labels=labels, own=own, judge=model)
        how = {"steps": self.paraphraser_steps, "batch_size": self.batch_size, "lr": self.paraphraser_lr}
        return run.fit(writer, Data.of(texts), part, truncate=True, **how)

    def _texts(self, model: Model, data: Data) -> list[str]:
        window = max(m.window or 1 << 24 for m in (model, self.paraphraser))
        return [t[: READ * window] for t in data.text()]

    def _write(self, run: Run, by: Model, texts: list[str], key: tuple[Any, ...]) -> tuple[list[str], list[str]]:
        asked = [self.ask.format(t) for t in texts]
        made = run.generate(by, asked, new=self.new, temperature=self.temperature, key=key)
        return asked, [z if z.strip() else x for z, x in zip(made, texts, strict=True)]
