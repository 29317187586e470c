from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives import noise
from trainlore.primitives.beside import carried, fetched, readable, unpacked
from trainlore.verbs import Part, method

SCHEDULES = ("none", "linear", "log", "exp")
NOISES = ("gaussian", "dropout", "replace", "drop", "tfidf")


def signal(schedule: str, done: float, classes: int) -> float:
    """The probability of the right class above which a labelled row is left out at share `done` of training.

    From 1/K to 1: linear in `done`, or log (early release) 1 - exp(-5 done), or exp (late) exp(5 (done - 1)); none: 1."""
    reached = {"none": 1.0, "linear": done, "log": 1 - math.exp(-5 * done), "exp": math.exp(5 * (done - 1))}[schedule]
    return reached * (1 - 1 / classes) + 1 / classes


def consistency(plain: Tensor, noised: Tensor, sure: float, temperature: float) -> Tensor:
    """KL(softmax(plain / temperature) || softmax(noised)) where max softmax(plain) > sure, else 0.

    plain, noised: logits (..., K), no gradient flows into `plain`. Returns float32 (...)."""
    plain = plain.detach().float()
    target = (plain / temperature).log_softmax(-1)
    divergence = (target.exp() * (target - noised.float().log_softmax(-1))).sum(-1)
    return divergence * (plain.softmax(-1).amax(-1) > sure)


@method(
    name="uda",
    title="Unsupervised Data Augmentation",
    paper="arXiv:1904.12848",
    lit="p102",
    family="train/semi",
    year=2019,
    tier="core",
    status="stable",
    code="google-research/uda",
)
class UDA(Part):
    """Make the answers to a noised unlabelled row agree with a sharpened answer to the plain one.

    ## What it does
    With each labelled row come `ratio` unlabelled ones. Where the model is sure of the plain row, its answer, sharpened
    and held fixed, is the target for the noised row. Labelled rows that the model already gets right with a probability
    above a threshold that rises during training can be left out meanwhile (training signal annealing).

        loss = labelled + weight * mean_u [max p(u) > sure] * KL( softmax(z(u) / temperature) || p(noise(u)) )
        left out if p(y | x) > 1/K + (1 - 1/K) * a(t);   a = t, 1 - exp(-5 t) or exp(5 (t - 1)) for t in 0..1

    ## Claim
    IMDb with 20 labelled rows: 4.20% error, below the best model trained on all 25,000; CIFAR-10 with 250 labelled rows:
    5.43%. The noise there is back-translation, TF-IDF word replacement and RandAugment.

    ## Cost
    `ratio` forwards without and `ratio` with a backward for each labelled row.

    ## Fields worth tuning
    The noise first: the stronger it is without changing the class, the better. Then `sure` and `temperature` when labels
    are very few; `annealing` when the labelled rows are memorized (exp for few labels and easy tasks, log for many).
    The authors use ratio 7 for CIFAR-10 and 3 with linear annealing for IMDb, weight 1.

    ## Watch out
    Unlabelled rows from elsewhere harm: filter them by the model's belief first. A model that is sure of nothing early
    on gets no unlabelled signal until it is: look at the part's effect. Gaussian noise is the paper's weak baseline.

    ## Differs from the paper
    Only noises that need no second model are here: add rows noised by back-translation to the data beforehand. The two
    views of an unlabelled row pass in two forwards (batch norm sees them apart), the plain one without a gradient.
    Under micro-batches the rescaling for rows left out is by piece.

    ## See also
    `self_training`, `mixup`.
    """

    unlabelled: Data
    """Rows without labels; a `label` column is not looked at."""
    weight: float = 1.0
    """How much the unlabelled term counts."""
    sure: float = 0.8
    """Probability of the likeliest class above which an unlabelled row is used."""
    temperature: float = 0.4
    """Below 1 sharpens the target; 1 leaves it."""
    ratio: int = 3
    """Unlabelled rows for each labelled one."""
    noise: str = "gaussian"
    """For numbers: gaussian, dropout. For token ids: replace, drop, tfidf."""
    amount: float = 0.3
    """Standard deviation of gaussian noise, else the share of entries or tokens that change."""
    annealing: str = "none"
    """Schedule by which labelled rows are released: none, linear, log or exp."""

    needs = {"labels": "labels"}
    ranges = {"weight": [0.3, 3.0, "log"], "sure": [0.5, 0.95]}
    null = {"weight": 0.0, "annealing": "none"}
    tiny = {"world": "digits", "unlabelled": "$spare", "sure": 0.2}

    def start(self, loop: Any) -> dict[str, Any]:
        tokens = loop.model.input == "input_ids"
        if loop.model.kind != "classifier":
            raise Bad(f"uda is for classifiers, not a {loop.model.kind}")
        if self.noise not in NOISES or tokens != (self.noise in NOISES[2:]):
            fit = NOISES[2:] if tokens else NOISES[:2]
            raise Bad(f"noise={self.noise!r} does not fit {loop.model.input}: give {', '.join(fit)}")
        if self.annealing not in SCHEDULES:
            raise Bad(f"annealing={self.annealing!r} is not a schedule: give {', '.join(SCHEDULES)}")
        if self.temperature <= 0 or self.ratio < 1 or self.weight < 0:
            raise Bad("temperature must be above 0, ratio at least 1 and weight at least 0")
        if not self.weight:
            return {}
        self.unlabelled.need(who="uda's `unlabelled`")
        if self.noise != "tfidf":
            return {}
        idf, odds = noise.tfidf(*readable(loop.model, self.unlabelled).lists("input_ids"), _vocabulary(loop.model))
        return {"idf": torch.from_numpy(idf).float(), "odds": torch.from_numpy(odds)}

    def batch(self, loop: Any, s: dict[str, Any], batch: Batch) -> Batch:
        """Bring the unlabelled rows along, `ratio` with each labelled one, so that they are split with them."""
        if not self.weight:
            return batch
        n, rng = len(batch["row"]), loop.rng("uda", loop.t)
        plain = fetched(loop.model, self.unlabelled, n * self.ratio, rng)
        views = {"plain": plain, "noised": self._noised(loop, s, plain, rng)}
        for view, rows in views.items():
            batch = {**batch, **carried(f"uda_{view}", rows, n, (loop.model.input, "attention_mask"))}
        return batch

    def loss(self, loop: Any, s: dict[str, Any], batch: Batch, out: Tensor, inner: Any) -> Tensor:
        losses = inner(batch, out)
        if self.annealing != "none":
            right = out.detach().float().softmax(-1).gather(1, batch["labels"][:, None])[:, 0]
            kept = (right <= signal(self.annealing, loop.done, out.shape[-1])).to(losses.dtype)
            losses = losses * kept * (len(kept) / kept.sum().clamp(min=1))
        if not self.weight:
            return losses
        with torch.no_grad():
            plain = loop.model(unpacked("uda_plain", batch))
        apart = consistency(plain, loop.model(unpacked("uda_noised", batch)), self.sure, self.temperature)
        return losses + self.weight * apart.unflatten(0, (-1, self.ratio)).mean(1)

    def _noised(self, loop: Any, s: dict[str, Any], plain: Batch, rng: torch.Generator) -> Batch:
        x = plain[loop.model.input]
        if self.noise in ("gaussian", "dropout"):
            return {loop.model.input: getattr(noise, self.noise)(x, self.amount, rng)}
        mask = plain["attention_mask"]
        if self.noise == "drop":
            ids, mask = noise.drop(x, mask, self.amount, rng, int(loop.model.tokenizer.pad_token_id or 0))
        elif self.noise == "replace":
            ids = noise.replace(x, mask, self.amount, _vocabulary(loop.model), rng)
        else:
            ids = noise.tfidf_replace(x, mask, s["idf"], s["odds"], self.amount, rng)
        return {"input_ids": ids, "attention_mask": mask}


def _vocabulary(model: Model) -> int:
    """Number of token ids."""
    return int(model.net.get_input_embeddings().num_embeddings)  # type: ignore[operator]
