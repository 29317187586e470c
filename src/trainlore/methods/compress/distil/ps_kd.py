from __future__ import annotations

import copy
import math

import torch

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.losses import aligned
from trainlore.primitives.teaching import soft_cross_entropy, where_trained
from trainlore.verbs import Part, method


def blend(alpha: float, epoch: int, epochs: int) -> float:
    """Share of the past in the targets of epoch 0, 1, ...: grows evenly to alpha in the last one."""
    return alpha * min(1.0, (epoch + 1) / epochs)


@method(
    name="ps_kd",
    title="Progressive self-knowledge distillation",
    paper="arXiv:2006.12000",
    lit="p568",
    family="compress/distil",
    year=2020,
    tier="core",
    code="lgcnsai/PS-KD-Pytorch",
    status="stable",
)
class PSKD(Part):
    """Soften the labels by the model's own answers of an epoch ago, more so as training goes on.

    ## What it does
    The target of a row is a blend of its label and of what the model answered when it last saw the row.

        target = (1 - a_e) onehot(y) + a_e p_before(x)          a_e = alpha (e + 1) / E   in epoch e = 0 ... E - 1
        loss   = cross-entropy to that target = (1 - a_e) inner + a_e sum_k p_before,k (-log p_k)

    Rows not seen before keep their label. Rows the model still gets wrong keep the larger gradients.

    ## Claim
    CIFAR-100, PreAct ResNet-18: top-1 error 24.18 to 20.82 and calibration error 11.84 to 1.77 (label smoothing: 20.94 and
    10.79). ImageNet, ResNet-152: top-1 error 22.19 to 21.41, calibration error 3.84 to 2.51.

    ## Cost
    With `memory` rows none but the store, 4 bytes a row and class. With `memory` weights a second copy of the weights and
    one more forward pass a step.

    ## Fields worth tuning
    `alpha`: the authors' 0.8 throughout.

    ## Watch out
    It needs several epochs: in the first nothing is softened. The remembered answer was given in training mode, to the
    row as it was augmented then; with `mixup` and its like the remembered answer is to another mixture.

    ## Differs from the paper
    `memory` rows is the authors' code. Language models get `memory` weights, last epoch's weights run again, as a
    distribution a token cannot be stored.

    ## See also
    `kd` with a teacher, `label_smoothing` with a target that knows nothing.
    """

    alpha: float = 0.8
    """Share of the past in the targets of the last epoch."""
    memory: str = "auto"
    """rows: keep each row's last answer; weights: keep last epoch's model; auto: rows of classifiers, else weights."""

    ranges = {"alpha": [0.2, 0.95]}
    null = {"alpha": 0.0}
    tiny = {"world": "digits"}
    alone = "it remembers something of every row in its loss, and each process would know its own rows only"
    known = {"acts": "it softens nothing in the first epoch, and the law's 12 steps are less than one"}

    def start(self, loop):
        if loop.model.kind in ("regressor", "encoder", "denoiser"):
            raise Bad(f"ps_kd softens choices among classes or tokens, which a {loop.model.kind} model does not make")
        if not 0 <= self.alpha <= 1:
            raise Bad(f"alpha must be from 0 to 1; it is {self.alpha}")
        if self.memory not in ("auto", "rows", "weights"):
            raise Bad(f"memory is auto, rows or weights, not {self.memory!r}")
        if not self._by_row(loop):
            past = copy.deepcopy(loop.model.net).eval().requires_grad_(False)
            return {"past": past, "epoch": 0, "fresh": []}
        if loop.model.kind != "classifier":
            raise Bad(
                f"memory: rows keeps one answer a row, which a {loop.model.kind} model does not give: use weights"
            )
        return {"seen": torch.zeros(len(loop.data), dtype=torch.bool), "answers": None, "fresh": []}

    def _by_row(self, loop):
        return self.memory == "rows" or (self.memory == "auto" and loop.model.kind == "classifier")

    def _epoch(self, loop):
        """This epoch, and how many there will be."""
        per = len(loop.data) / loop.size
        epochs = loop.t / per / loop.done if loop.done else loop.steps / per
        return int(loop.t / per + 1e-6), max(1, math.ceil(epochs - 1e-6))

    def loss(self, loop, s, batch, out, inner):
        hard = inner(batch, out)
        if not self.alpha:
            return hard
        share = blend(self.alpha, *self._epoch(loop))
        kind = loop.model.kind
        if self._by_row(loop):
            rows = batch["row"].cpu()
            s["fresh"].append((rows, out.detach().float().softmax(-1).cpu()))
            if s["answers"] is None:
                s["answers"] = torch.zeros(len(loop.data), out.shape[-1])
            past = s["answers"][rows].to(out.device)
            share = share * s["seen"][rows].to(out)
        else:
            if not s["epoch"]:
                return hard
            with torch.no_grad():
                past = Model(s["past"], kind)(batch)
            past, out = aligned(kind, past).float().softmax(-1), aligned(kind, out)
        return (1 - share) * hard + share * where_trained(kind, batch, soft_cross_entropy(out, past))

    def watch(self, loop, s, record):
        # remembered only now: a part that asks for the gradient twice must see the same past both times
        for rows, answers in s["fresh"]:
            s["answers"][rows], s["seen"][rows] = answers, True
        s["fresh"].clear()
        if "epoch" in s and (epoch := self._epoch(loop)[0]) > s["epoch"]:
            s["past"].load_state_dict(loop.model.net.state_dict())
            s["epoch"] = epoch
