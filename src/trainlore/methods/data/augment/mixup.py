from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Model
from trainlore.verbs import Part, method


def mix(x: Tensor, share: float | Tensor, other: Tensor) -> Tensor:
    """share * x + (1 - share) * x[other], row by row.

    x: (B, ...) floating; share: a number or (B,); other: positions (B,)."""
    if isinstance(share, Tensor):
        share = share.reshape(-1, *[1] * (x.dim() - 1)).to(x)
    return share * x + (1 - share) * x[other]


def beta(alpha: float, rng: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha), from a named stream: two gamma variates, for small alpha in logs so that neither is 0."""
    gamma = torch._standard_gamma(torch.full((2,), alpha + 1.0, dtype=torch.float64), generator=rng)
    uniform = torch.rand(2, generator=rng, dtype=torch.float64)
    a, b = (gamma.log() + uniform.log() / alpha).tolist()  # Gamma(alpha) = Gamma(alpha + 1) * U^(1/alpha)
    return float(torch.sigmoid(torch.tensor(a - b, dtype=torch.float64)))


@method(
    name="mixup",
    title="mixup",
    paper="arXiv:1710.09412",
    family="data/augment",
    year=2017,
    tier="core",
    status="stable",
    code="facebookresearch/mixup-cifar10",
)
class Mixup(Part):
    """Train on convex mixtures of pairs of rows and of their targets.

    ## What it does
    Each step draws one share and one pairing of the batch with itself; inputs and targets are mixed alike.

        share ~ Beta(alpha, alpha)
        x = share * x_i + (1 - share) * x_j        y = share * onehot(y_i) + (1 - share) * onehot(y_j)

    ## Claim
    Better generalization on ImageNet, CIFAR-10, CIFAR-100, speech commands and tabular data; less memorization of
    corrupt labels and more robustness to adversarial rows. The authors' CIFAR-10 code uses alpha 1, one share a batch.

    ## Cost
    None to speak of; training longer pays more than without it.

    ## Fields worth tuning
    `alpha`: larger mixes more, which pays with wrong labels and long training.

    ## Watch out
    Short training is harmed: on noisy digits -6 points at 150 steps, +5 at 400. For numbers (features, pixels) only:
    token ids cannot be averaged. The targets become shares, which parts that need class labels refuse. Training loss
    and accuracy no longer speak of the real rows.

    ## Differs from the paper
    None known.

    ## See also
    `label_smoothing`.
    """

    alpha: float = 0.2
    """Both parameters of the Beta distribution; small: mostly one of the two rows."""

    needs = {"labels": "any"}
    gives = {"labels": "shares"}
    ranges = {"alpha": [0.05, 1.0, "log"]}
    null = {"alpha": 0.0}
    tiny = {"world": "digits", "alpha": 0.4}

    def start(self, loop: Any) -> dict[str, Any]:
        if self.alpha < 0:
            raise Bad(f"alpha={self.alpha} must be at least 0, where 0 mixes nothing")
        if loop.model.input == "input_ids":
            raise Bad("mixup averages inputs, and this model reads token ids: use it with features or pixel_values")
        return {}

    def batch(self, loop: Any, s: dict[str, Any], batch: Batch) -> Batch:
        if not self.alpha:
            return batch
        rng, name, y = loop.rng("mixup", loop.t), loop.model.input, batch["labels"]
        share, other = beta(self.alpha, rng), torch.randperm(len(y), generator=rng)
        if not y.is_floating_point():
            y = F.one_hot(y, _classes(loop.model)).float()
        return {**batch, name: mix(batch[name], share, other), "labels": mix(y, share, other)}


def _classes(model: Model) -> int:
    """How many classes the model tells apart."""
    return (
        getattr(getattr(model.net, "config", None), "num_labels", None)
        or list(model.linears(head=True))[-1][1].out_features
    )
