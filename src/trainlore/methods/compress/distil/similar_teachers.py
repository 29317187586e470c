from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives import heads
from trainlore.primitives.alike import same_tokens
from trainlore.primitives.beside import carried, fetched, readable, unpacked
from trainlore.primitives.teaching import soft_cross_entropy
from trainlore.verbs import Part, method


def parc(features: np.ndarray, labels: np.ndarray) -> float:
    """How well distances of features (N, D) rank pairs of rows as distances of labels (N,) do: Spearman, -1 to 1.

    Pairwise annotation representation comparison: 1 - Pearson correlation of standardized features, against same class
    or not (which ranks pairs as 1 - correlation of one-hot labels does, whatever the number of classes)."""
    from scipy.stats import spearmanr

    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.where(spread > 0, spread, 1.0)
    scaled = scaled - scaled.mean(1, keepdims=True)
    scaled = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    above = np.triu_indices(len(labels), 1)
    apart, other = 1 - (scaled @ scaled.T)[above], (labels[:, None] != labels)[above]
    if not np.ptp(apart):
        return 0.0
    return float(spearmanr(apart, other).statistic)


def shares(scores: Sequence[float], power: float, nearest: bool = False) -> np.ndarray:
    """Weights (S,) that sum to 1: the scores from 0 (worst) to 1 (best), raised to `power`; or 1 for the best alone."""
    score = np.asarray(scores, np.float64)
    if nearest:
        return (np.arange(len(score)) == score.argmax()).astype(np.float64)
    low, high = score.min(), score.max()
    unit = ((score - low) / (high - low)) ** power if high > low else np.ones_like(score)
    return unit / unit.sum()


@method(
    name="similar_teachers",
    title="Distilling from similar tasks (DistillNearest, DistillWeighted)",
    paper="arXiv:2304.12314",
    lit="p127",
    family="compress/distil",
    year=2023,
    tier="core",
    status="draft",
)
class SimilarTeachers(Part):
    """Learn a few labels, and on unlabelled rows what models of other tasks say, each as far as its task is like this one.

    ## What it does
    Every source model is scored by its features on some labelled rows: do they lie close where the labels are the
    same (PARC)? On unlabelled rows the student then imitates the sources through one more linear head a source, in
    that source's own classes, on the features its own head reads. The heads are dropped at the end.

        a_s  = e_s^power / sum_r e_r^power        e: the scores, brought to 0 ... 1        (nearest: 1 for the best, else 0)
        loss = (1 - share) inner + share sum_s a_s CE( softmax(source_s / T), head_s(features) )      on unlabelled rows

    ## Claim
    Averaged over 8 target tasks with few labels, distilling from several sources by weight beats transfer from a strong
    ImageNet start by 5.6 and FixMatch by 4.5 points, with a student cheap to run and no data of the sources.

    ## Cost
    One pass of each source over `rows` labelled rows; a step then has `ratio` unlabelled rows for each labelled one,
    through the student and through every source whose weight is not 0.

    ## Fields worth tuning
    `power` and `nearest`: many sources of which few fit want a high power.

    ## Watch out
    The worst source always has weight 0 (of two, one is left). Sources read the same input columns as the student.
    PARC compares all pairs: `rows` is what it costs, squared. What the scores and weights were is in the model's
    `about["similar_teachers"]`. Measured here (30 labelled digits): six sources of digits, turned and mirrored ones
    among them, brought 10.8 points (n = 10); four sources of only two to four coarse classes cost 5 to 13 (3 seeds).

    ## Differs from the paper
    Only its abstract could be read, and its predecessor's code for PARC (which first reduces features to 32
    dimensions and uses 500 rows; the reduction is left out). The weights' formula is from memory; `power`, `share`,
    `temperature` and `ratio` are ours. The authors' repository holds no code.

    ## See also
    `kd` for one teacher of the same classes, `meal_v2` for several; `uda` uses unlabelled rows without teachers.
    """

    teachers: tuple[Model, ...]
    """Source models, each with classes of its own; they are not trained."""
    unlabelled: Data
    """Rows to imitate them on; a `label` column is not looked at."""
    share: float = 0.8
    """Weight of the imitation; the labels have the rest."""
    power: float = 4.0
    """How strongly better scores are preferred; 0 leaves all but the worst alike."""
    nearest: bool = False
    """Only the best source, instead of all by weight."""
    temperature: float = 1.0
    """Divides the sources' logits."""
    rows: int = 500
    """Labelled rows on which the sources are scored, at most."""
    ratio: int = 1
    """Unlabelled rows for each labelled one."""

    needs = {"labels": "labels"}
    ranges = {"share": [0.2, 0.95], "power": [1.0, 16.0, "log"], "temperature": [0.3, 4.0, "log"]}
    null = {"share": 0.0}
    tiny = {"world": "digits", "teachers": "$proxies", "unlabelled": "$spare"}

    def start(self, loop):
        if loop.model.kind != "classifier":
            raise Bad(f"similar_teachers is for classifiers, not a {loop.model.kind}")
        if not 0 <= self.share <= 1 or self.power < 0 or self.temperature <= 0:
            raise Bad("share must be from 0 to 1, power at least 0 and temperature above 0")
        if self.rows < 3 or self.ratio < 1:
            raise Bad(f"rows must be at least 3 and ratio at least 1; they are {self.rows} and {self.ratio}")
        if not self.teachers:
            raise Bad("teachers is empty: give the source models")
        if not self.share:
            return {}
        self.unlabelled.need(who="similar_teachers' `unlabelled`")
        one = readable(loop.model, self.unlabelled.take([0])).without("label", "labels")
        one.need(loop.model.input, who="similar_teachers' `unlabelled`")
        few = torch.randperm(len(loop.data), generator=loop.rng("similar_teachers", "rows"))[: self.rows]
        scored = loop.data.take(few.sort().values.numpy())
        labels = scored["label" if "label" in scored.columns else "labels"]
        if len(np.unique(labels)) < 2 or len(labels) < 3:
            raise Bad("similar_teachers scores its sources on labelled rows of at least two classes, at least 3 rows")
        bare, found = scored.without("label", "labels"), []  # the sources know other classes
        for source in self.teachers:
            same_tokens(loop.model, source, "similar_teachers", "source")
            source.net.to(loop.device).eval()
            found.append(parc(loop.run.embed(source, bare).double().numpy(), labels))
        weights = shares(found, self.power, self.nearest)
        loop.model.about["similar_teachers"] = {"scores": found, "weights": weights.tolist()}
        wide = heads.head(loop.model.net)[1].in_features
        classes = [loop.run.infer(source, one, lambda batch, out: out).shape[1] for source in self.teachers]
        return {"weights": weights.tolist(), "heads": nn.ModuleList(nn.Linear(wide, k) for k in classes)}

    def batch(self, loop, s, batch):
        """Bring the unlabelled rows along, `ratio` with each labelled one, so that they are split with them."""
        if not self.share:
            return batch
        n, rng = len(batch["row"]), loop.rng("similar_teachers", loop.t)
        more = fetched(loop.model, self.unlabelled, n * self.ratio, rng)
        return {**batch, **carried("similar", more, n, (loop.model.input, "attention_mask", "token_type_ids"))}

    def loss(self, loop, s, batch, out, inner):
        if not self.share:
            return inner(batch, out)
        rows = unpacked("similar", batch)
        features = heads.features(loop.model, rows)
        apart = features.new_zeros(len(features))
        for weight, source, head in zip(s["weights"], self.teachers, s["heads"], strict=True):
            if weight:
                with torch.no_grad():
                    said = (source(rows).float() / self.temperature).softmax(-1)
                apart = apart + weight * soft_cross_entropy(head(features), said)
        return (1 - self.share) * inner(batch, out) + self.share * apart.unflatten(0, (-1, self.ratio)).mean(1)
