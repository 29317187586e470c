from __future__ import annotations

import numpy as np
import torch

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method


def confidence_of(shares: torch.Tensor, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 (N,) and how sure the labellers are of them, float64 (N,), from each one's shares (M, N, K).

    Without labels, those likeliest under the mean of the labellers; sure is the mean share of the label."""
    mean = shares.double().mean(0)
    label = mean.argmax(1) if labels is None else torch.from_numpy(labels.astype(np.int64))
    if int(label.min()) < 0 or int(label.max()) >= mean.shape[1]:
        raise Bad(
            f"labels of `weak` run from {int(label.min())} to {int(label.max())}; the labellers know 0 to {mean.shape[1] - 1}"
        )
    return label.numpy(), mean.gather(1, label[:, None])[:, 0].numpy()


@method(
    name="noise_aware",
    title="Noise-Aware Training",
    paper="arXiv:2404.00488",
    lit="p103",
    family="data/label",
    year=2024,
    tier="core",
    status="stable",
)
class NoiseAware(Fit):
    """Train on few rows labelled by hand and many labelled by machine, each of these by how sure the machine is.

    ## What it does
    Labels the rows of `weak` with other trained models (or takes the labels they have), estimates how far each label
    can be trusted, and trains on all rows together with that confidence as weight:

        c_i = mean over labellers of p(y_i | x_i)
        loss = ( sum_by hand CE_i + sum_weak c_i^power CE_i ) / ( sum of the weights )

    ## Claim
    Extractors of fields from documents such as forms and bills, trained within a fixed time: macro-F1 up to 6% above
    transfer learning, and up to 73% less labelling by hand for comparable quality.

    ## Cost
    One training, one pass of every labeller over the weak rows; without labellers one more training. Memory: 12 bytes x
    labellers x rows x classes (1.2 GB for ten labellers of ten classes and 1 M rows).

    ## Fields worth tuning
    `power`: 0 trusts all labels alike, high ones leave only the surest. `labellers` of another kind than the model.

    ## Watch out
    Where the labellers make the labels too, the confidence is their own: they are sure of their mistakes, and what they
    are unsure of are the rows that would teach most. Labels from one source and confidences from another (`confidence`,
    or labels already in `weak`) do not have that flaw, but bad labellers are worse than none: with a fifth of 1,000
    given labels wrong at random and one network of 50 rows to judge them, weighting took 9 points (4 seeds). Not
    reproduced here: with four networks of 40 rows that label and judge, it gave half a point in 20 seeds, which chance
    gives too.

    ## Differs from the paper
    We saw its abstract and the outline of its phases, no formula: that the confidence is the labellers' probability and
    enters as a weight is our reading. Whole rows with one class instead of tagged tokens with layout. Its last phase,
    fine-tuning on synthetic documents filled from labelled ones, is left out.

    ## See also
    `self_training`, `label_model` (writes a `confidence`).
    """

    weak: Data
    """Rows labelled by machine, or without a `label`."""
    labellers: tuple[Model, ...] = ()
    """Trained models that label and judge the weak rows; none: a copy of the model trained on the rows labelled by hand."""
    confidence: str | None = None
    """Column of `weak` with the trust in each label, from 0 to 1; then no labeller is asked."""
    power: float = 1.0
    """Exponent of the confidence; 0: every weak row counts in full."""
    inner: tuple[Part, ...] = ()
    """Parts of every training."""
    steps: int = 200
    """Steps of each training."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate of each training."""

    tiny = {"world": "digits", "weak": "$noisy", "labellers": "$proxies", "steps": 20, "lr": 1e-2}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        data.need("label", who="noise_aware")
        self.weak.need(who="noise_aware's `weak`")
        if model.kind != "classifier":
            raise Bad(f"noise_aware is for classifiers, not a {model.kind}")
        if not 0 <= self.power < np.inf:
            raise Bad(f"power={self.power} must be at least 0")
        for name, rows in (("data", data), ("weak", self.weak)):
            if "label" in rows.columns and rows.kinds["label"] != "labels":
                raise Bad(f"noise_aware: column 'label' of `{name}` must hold class numbers")
        label, sure = self._trusted(run, model, data)
        weak = self.weak.with_(label=label, weight=(sure**self.power).astype(np.float32))
        ours = data["weight"] if "weight" in data.columns else np.ones(len(data))
        rows = data.with_(label=data["label"].astype(np.int64), weight=np.asarray(ours, dtype=np.float32)).join(weak)
        taught = self._train(run, model, rows)
        taught.about["noise_aware"] = {"weak": len(weak), "mean_confidence": float(sure.mean())}
        return taught

    def _trusted(self, run: Run, model: Model, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """The weak rows' labels and the trust in them, each (N,)."""
        given = self.weak["label"] if "label" in self.weak.columns else None
        if self.confidence is None:
            labellers = self.labellers or (self._train(run, model, data),)
            said = [run.infer(m, self.weak, lambda batch, out: out.float().softmax(-1)) for m in labellers]
            label, sure = confidence_of(torch.stack(said), given)
            if bad := int((~np.isfinite(sure)).sum()):
                raise Bad(
                    f"noise_aware: the labellers' shares are not finite for {bad} rows of `weak`: have they diverged?"
                )
            return label, sure
        if given is None:
            raise Bad(
                f"confidence={self.confidence!r} is of labels that `weak` does not have; there are {', '.join(self.weak.columns)}"
            )
        sure = np.asarray(self.weak[self.confidence], dtype=np.float64)
        if sure.ndim != 1 or not ((sure >= 0) & (sure <= 1)).all():
            raise Bad(f"confidence={self.confidence!r} must hold numbers from 0 to 1")
        return given.astype(np.int64), sure

    def _train(self, run: Run, model: Model, rows: Data) -> Model:
        how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
        return run.fit(model.copy(), rows, *self.inner, **how)
