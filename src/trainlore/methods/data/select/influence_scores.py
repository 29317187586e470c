from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.nouns.data import Batch
from trainlore.primitives.budget import take_budget
from trainlore.primitives.gradients import row_norms
from trainlore.runs import Run
from trainlore.verbs import Curate, Part, method


def spread(slopes: Tensor, counted: Tensor) -> Tensor:
    """How much each row's input gradient varies between checkpoints, (B,): slopes (K, B, D), counted bool (B, D).

    The standard deviation over the K checkpoints at each input, averaged over the inputs that count.
    """
    deviation = slopes.std(0, correction=0) * counted
    return deviation.sum(1) / counted.sum(1).clamp(min=1)


def within_class(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Each score (N,) in standard deviations from the mean of its class; 0 in a class whose scores are all alike."""
    _, place, count = np.unique(label, return_inverse=True, return_counts=True)
    mean = np.bincount(place, score) / count
    deviation = np.sqrt(np.bincount(place, (score - mean[place]) ** 2) / count)
    return (score - mean[place]) / np.where(deviation > 0, deviation, 1.0)[place]


def surprise(logprob: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Minus the pointwise V-information, (N,): how much likelier the label is by its frequency than by the model."""
    _, place, count = np.unique(label, return_inverse=True, return_counts=True)
    return np.log(count / len(label))[place] - logprob


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

    High is hard. The highest-scoring share is kept, `skip_top` of them passed over as likely wrong labels. The score stays
    on the data as column `vog`, `forgetting`, `pvi` or `tracin`.

    ## Claim
    On SNLI many encoder language models can be fine-tuned on about half of the rows without loss; with VoG the same
    held in a voice assistant's language understanding, where the labels are noisy and the classes uneven.

    ## Cost
    One training; then a forward and a backward for each row and checkpoint (vog, tracin), a forward (pvi), or nothing.
    Memory: `checkpoints` copies of the weights.

    ## Fields worth tuning
    `score`, `keep`, and `skip_top` where labels are noisy. Race it against `random_rows`.

    ## Watch out
    Wrong labels come first under three of them: of 1,000 digits with a fifth of wrong labels, the fifth on top held 93% of
    wrong ones by pvi, 84% by forgetting, 81% by tracin and 23% by vog (n = 4). Half of the clean digits by any score
    trained no better than a random half: by vog and forgetting about as well, by pvi and tracin worse. Forgetting counts
    are small whole numbers, so most rows tie, and the earlier row wins; few epochs give it nothing to count.

    ## Differs from the paper
    Only its abstract and the code of VoG (chirag126/VOG) could be read. The others are from their own papers. That code
    takes the standard deviation, as here, not the variance of its name; of the probability in the toy example, where we
    take the logit. Gradients of tokens and pixels are averaged over dimensions and channels first, as there. The null
    model of PVI is what it would learn: the share of each label.

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
        if not 0 <= self.skip_top < 1:
            raise Bad(f"skip_top={self.skip_top} must be at least 0 and below 1: it is a share of the rows")
        model, label = self.model.copy(), data["label"]
        if model.input == "input_ids" and "input_ids" not in data.columns:
            data = model.encode(data)
        seen: dict[str, Any] = {"weights": []}
        part = _Remember(checkpoints=self.checkpoints, seen=seen)
        run.fit(model, data, part, epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)
        if self.score in ("vog", "tracin") and len(seen["weights"]) < self.checkpoints:
            raise Bad(f"checkpoints={self.checkpoints} are more than the steps of the training: give more epochs")
        if self.score == "vog":
            found: Any = self._vog(run, model, data, seen["weights"])
        elif self.score == "tracin":
            norms = [row_norms(run, _loaded(model, weights), data) for weights in seen["weights"]]
            found = self.lr * torch.stack(norms).square().sum(0)
        elif self.score == "pvi":
            found = surprise(run.infer(model, data, _logprob).double().numpy(), label)
        else:
            found = torch.where(seen["ever"], seen["lost"], self.epochs + 1).numpy()
        score = np.asarray(found, np.float64)
        score = within_class(score, label) if self.by_class else score
        left = score.copy()
        left[np.argsort(-score, kind="stable")[: round(self.skip_top * len(score))]] = -np.inf
        return data.with_(**{self.score: score}).take(take_budget(left, self.keep))

    def _vog(self, run: Run, model: Model, data: Data, snapshots: list[dict[str, Tensor]]) -> Tensor:
        """The spread of each row's input gradient over the checkpoints, (N,)."""
        found = []
        with run.meter.running():
            for at in range(0, len(data), 64):
                batch = data.batch(np.arange(at, min(at + 64, len(data))), model)
                batch = {k: v.to(model.device) for k, v in batch.items()}
                slopes = torch.stack([input_slopes(_loaded(model, w), batch) for w in snapshots])
                counted = (
                    batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(slopes[0]).bool()
                )
                found.append(spread(slopes, counted).cpu())
        return torch.cat(found)


def _loaded(model: Model, weights: dict[str, Tensor]) -> Model:
    model.net.load_state_dict(weights)
    return model


def input_slopes(model: Model, batch: Batch) -> Tensor:
    """The gradient of each row's true logit by what the network reads, (B, D): a number a token, pixel or feature."""
    kept = []

    def hold(module: Any, args: Any, out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[0]

    if model.input == "input_ids":
        hook = model.net.get_input_embeddings().register_forward_hook(hold)  # type: ignore[operator]
        try:
            out = model(batch)
        finally:
            hook.remove()
    else:
        out = model({**batch, model.input: hold(None, None, batch[model.input])})
    slope = torch.autograd.grad(out.gather(1, batch["labels"][:, None]).sum(), kept[0])[0]
    if model.input == "input_ids":
        return slope.mean(-1)
    return (slope.mean(1) if slope.dim() == 4 else slope).flatten(1)


def _logprob(batch: Batch, out: Tensor) -> Tensor:
    return out.float().log_softmax(-1).gather(1, batch["labels"][:, None])[:, 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Remember(Part):
    """Plain training that keeps its weights now and then, and what became of each row's answer."""

    checkpoints: int
    seen: dict[str, Any]

    def start(self, loop: Any) -> dict[str, Any]:
        n = len(loop.data)
        for name, dtype in (("right", torch.bool), ("ever", torch.bool), ("lost", torch.float64)):
            self.seen[name] = torch.zeros(n, dtype=dtype)
        return {}

    def loss(self, loop: Any, s: dict[str, Any], batch: Batch, out: Tensor, inner: Any) -> Tensor:
        row, right = batch["row"].cpu(), (out.detach().argmax(-1) == batch["labels"]).cpu()
        self.seen["lost"][row] += (self.seen["right"][row] & ~right).double()
        self.seen["right"][row] = right
        self.seen["ever"][row] |= right
        return inner(batch, out)

    def watch(self, loop: Any, s: dict[str, Any], record: dict[str, Any]) -> None:
        k = len(self.seen["weights"]) + 1
        if loop.t >= k * loop.steps / self.checkpoints:
            weights = loop.model.net.state_dict()
            self.seen["weights"].append({name: w.detach().clone() for name, w in weights.items()})
