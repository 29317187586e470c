from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.budget import take_below
from trainlore.primitives.gradients import row_norms
from trainlore.primitives.losses import rowwise
from trainlore.primitives.slopes import slope_spread
from trainlore.primitives.statistics import standardized, surprise
from trainlore.runs import Run
from trainlore.verbs import Curate, Part, method


@method(
    name="influence_scores",
    title="Influence scores (VoG, forgetting, PVI, TracIn)",
    paper="arXiv:2311.16298",
    lit="p273",
    family="data/select",
    year=2023,
    tier="core",
    status="stable",
)
class InfluenceScores(Curate):
    """Keep the rows that one training of a classifier finds most eventful.

    ## What it does
    Trains a copy of the model, keeps its weights at `checkpoints` times k, and scores each row (x, y):

        vog         mean_d  std_k  d logit_y(x; w_k) / d x_d     variance of gradients: of the embeddings for tokens
        forgetting  how often y was answered right and then wrong; epochs + 1 where it was never right
        pvi         log share of y in the data - log p(y | x; w_K)
        tracin      sum_k lr |d loss(x, y) / d w_k|^2            the row's influence on its own loss

    High is hard. The highest share is kept, passing over the top `skip_top` of all. The score is a column by its name.

    ## Claim
    On SNLI many encoder language models can be fine-tuned on about half of the rows without loss; with VoG so could a voice
    assistant's language understanding, where labels are noisy and classes uneven.

    ## Cost
    One training; then a forward and a backward for each row and checkpoint (vog, tracin), a forward (pvi), or nothing.
    Memory: `checkpoints` copies of the weights (vog, tracin).

    ## Fields worth tuning
    `score`, `keep`, and `skip_top` where labels are noisy. Race it against `random_rows`.

    ## Watch out
    Wrong labels come first under three of them: of 1,000 digits with a fifth of wrong labels, the fifth on top held 93% of
    wrong ones by pvi, 84% by forgetting, 81% by tracin and 23% by vog (n = 4). Half of the clean digits by any score was
    no better than a random half: by vog about as good, by pvi and tracin worse, by forgetting about as good only without
    `by_class`; with it, as by default, it lost 5 to 18 points. Its counts are small whole numbers, so that most rows tie,
    the earlier row wins, and one lapse in an easy class is many of its standard deviations.

    ## Differs from the paper
    Only its abstract and the code of VoG (chirag126/VOG) could be read; the others are from their own papers. That code,
    too, takes the deviation, not the variance; in its toy example of the probability, not the logit.

    ## See also
    `el2n` and `grand`, the two others of the kind; `aum` (wrong labels); `random_rows`.
    """

    model: Model
    """Classifier before training; a copy is trained."""
    score: Literal["vog", "forgetting", "pvi", "tracin"] = "vog"
    """Which score."""
    keep: float = 0.5
    """Share of the rows to keep."""
    skip_top: float = 0.0
    """Share of the rows to pass over from the top: likely wrong labels."""
    by_class: bool = True
    """Standardize within each class, so that hard classes are not all that is kept."""
    epochs: float = 5.0
    """Length of the training."""
    checkpoints: int = 5
    """Times, evenly over the training, at which gradients are looked at."""
    lr: float = 1e-3
    """Its learning rate."""
    batch_size: int = 32
    """Its rows a step."""

    null = {"keep": 1.0, "skip_top": 0.0}
    tiny = {"world": "digits", "model": "$model", "epochs": 2.0, "checkpoints": 3, "lr": 0.01}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need("label", who="influence_scores")
        if self.model.kind != "classifier":
            raise Bad(f"model is a {self.model.kind} model: influence_scores reads the answers of a classifier")
        if self.checkpoints < (least := 1 + (self.score == "vog")):
            raise Bad(f"checkpoints={self.checkpoints} must be at least {least} for {self.score}")
        if not 0 <= self.skip_top < 1 or self.score not in ("vog", "forgetting", "pvi", "tracin"):
            raise Bad(f"skip_top={self.skip_top} is a share from 0 to below 1, score={self.score!r} one of the four")
        model, label = self.model.copy(), data["label"]
        if model.input == "input_ids" and "input_ids" not in data.columns:
            data = model.encode(data)
        part = _Remember(looks=self.checkpoints if self.score in ("vog", "tracin") else 0, seen={})
        run.fit(model, data, part, epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)
        if len(part.seen["weights"]) < part.looks:
            raise Bad(f"checkpoints={self.checkpoints} are more than the steps of the training: give more epochs")
        score = np.asarray(self._scores(run, model, data, part.seen), np.float64)
        score = standardized(score, label) if self.by_class else score
        return data.with_(**{self.score: score}).take(take_below(score, self.keep, self.skip_top))

    def _scores(self, run: Run, model: Model, data: Data, seen: dict[str, Any]) -> Any:
        """The score of each row as it is, (N,)."""
        if self.score == "vog":
            return slope_spread(run, model, data, seen["weights"])
        if self.score == "tracin":
            found = torch.zeros(len(data))
            for weights in seen["weights"]:
                model.net.load_state_dict(weights)
                found += self.lr * row_norms(run, model, data).square()
            return found
        if self.score == "pvi":
            loss = run.infer(model, data, lambda batch, out: rowwise("classifier", batch, out))
            return surprise(-loss.double().numpy(), data["label"])
        return torch.where(seen["ever"], seen["lost"], self.epochs + 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Remember(Part):
    """Plain training that keeps its weights at so many looks, and what became of each row's answer."""

    looks: int
    seen: dict[str, Any]

    alone = "it remembers something of every row in its loss, and each process would know its own rows only"

    def start(self, loop: Any) -> dict[str, Any]:
        none = torch.zeros(len(loop.data), dtype=torch.bool)
        return {"weights": [], "right": none, "ever": none.clone(), "lost": none.double()}

    def loss(self, loop: Any, s: dict[str, Any], batch: Batch, out: Tensor, inner: Any) -> Tensor:
        row, right = batch["row"].cpu(), (out.detach().argmax(-1) == batch["labels"]).cpu()
        s["lost"][row] += (s["right"][row] & ~right).double()
        s["right"][row] = right
        s["ever"][row] |= right
        return inner(batch, out)

    def watch(self, loop: Any, s: dict[str, Any], record: dict[str, Any]) -> None:
        k = len(s["weights"]) + 1
        if k <= self.looks and loop.t >= k * loop.steps / self.looks:
            s["weights"].append({name: w.detach().clone() for name, w in loop.model.net.state_dict().items()})
        self.seen.update(s)
