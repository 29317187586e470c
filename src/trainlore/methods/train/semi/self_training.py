from __future__ import annotations

import numpy as np
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method


def confident(shares: Tensor, sure: float, per_class: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Positions, ascending, and classes of the rows whose largest share is above `sure`; of each class at most the
    `per_class` surest.

    shares: probabilities (N, K). Returns two int64 arrays (M,)."""
    belief, label = (v.cpu().numpy() for v in shares.max(-1))
    position = np.flatnonzero(belief > sure)
    if per_class is not None:
        position = position[np.lexsort((-belief[position], label[position]))]  # class by class, the surest first
        classes = label[position]
        rank = np.arange(len(position)) - np.searchsorted(classes, classes)
        position = np.sort(position[rank < per_class])
    return position, label[position].astype(np.int64)


@method(
    name="self_training",
    title="Self-training",
    paper="arXiv:2401.01843",
    lit="p370",
    family="train/semi",
    year=2024,
    tier="core",
    status="stable",
)
class SelfTraining(Fit):
    """Label what the last model is sure of, train a fresh one on all of it, and go round again.

    ## What it does
    Trains on the labelled rows; then, until nothing changes or `rounds` are over, labels the unlabelled rows that the last
    model is sure of and trains anew, from the weights it was given, on both.

        take u with y' = argmax_k p_k(u)    if p_y'(u) > sure

    ## Claim
    Of the four wrappers that the paper compares on four Turkish text sets (self-training, co-training, tri-training,
    tri-training with disagreement) the last comes closest to training on all true labels, and a gap remains; for
    self-training, training from scratch in every round pays.

    ## Cost
    `rounds` + 1 trainings, and `rounds` forward passes over the unlabelled rows.

    ## Fields worth tuning
    `sure`: low takes more rows with more wrong labels. `per_class` where the model prefers some classes.

    ## Watch out
    Mistakes that the first model is sure of are learned for good, and easy classes crowd out the others. On digits
    it helped a linear classifier trained to its end (+1 to +2 points with 50 and 30 labels: our claim) and harmed a
    small MLP (30 to 100 labels) in nearly all of some 40 settings tried, by 1 to 31 points, more with less training: compare
    with plain training before you keep it. All trainings have the same number of steps, the later ones on more rows. What the rounds took
    is in the model's `about["self_training"]`.

    ## Differs from the paper
    Self-training alone of the four. All unlabelled rows are judged anew in every round, so that a row can lose its label.

    ## See also
    `uda`, which teaches agreement under noise instead.
    """

    unlabelled: Data
    """Rows without labels; a `label` column is not looked at."""
    sure: float = 0.9
    """Probability of the likeliest class above which a row is taken."""
    per_class: int | None = None
    """The most rows taken of a class, the surest; none: no limit."""
    rounds: int = 3
    """How often to label and train again, at most."""
    weight: float = 1.0
    """How much a row with a made label counts against a labelled one."""
    inner: tuple[Part, ...] = ()
    """Parts of every training."""
    steps: int = 100
    """Steps of each training."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate of each training."""

    ranges = {"sure": [0.5, 0.99]}
    tiny = {"world": "digits", "unlabelled": "$spare", "sure": 0.5, "rounds": 1, "steps": 20, "lr": 1e-2}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        data.need("label", who="self_training")
        self.unlabelled.need(who="self_training's `unlabelled`")
        if model.kind != "classifier":
            raise Bad(f"self_training is for classifiers, not a {model.kind}")
        if self.rounds < 0 or self.weight <= 0 or (self.per_class is not None and self.per_class < 1):
            raise Bad("rounds must be at least 0, weight above 0 and per_class at least 1 or none")
        taught, before, told = self._train(run, model, data), None, []
        for _ in range(self.rounds):
            shares = run.infer(taught, self.unlabelled, lambda batch, out: out.float().softmax(-1))
            position, label = confident(shares, self.sure, self.per_class)
            if not len(position) or (before is not None and all(map(np.array_equal, before, (position, label)))):
                break  # the next model would be this one
            before = position, label
            more = self.unlabelled.take(position).with_(label=label)
            if self.weight != 1:
                data = data if "weight" in data.columns else data.with_(weight=np.ones(len(data), np.float32))
                more = more.with_(weight=np.full(len(more), self.weight, np.float32))
            taught = self._train(run, model, data.join(more))
            told.append({"rows": len(more), "classes": np.unique(label).tolist()})
        taught.about["self_training"] = told
        return taught

    def _train(self, run: Run, model: Model, data: Data) -> Model:
        how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
        return run.fit(model.copy(), data, *self.inner, **how)
