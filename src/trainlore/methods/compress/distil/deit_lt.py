from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.heads import Twin, head, heads, one_head, with_token
from trainlore.primitives.reparam import replace
from trainlore.verbs import Part, method


def class_weights(count: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n) of each class, scaled so that their mean over the rows counted is 1: counts (K,) -> (K,).

    A class counted nowhere weighs as one counted once."""
    effective = (1 - beta ** count.double().clamp(min=1)) / (1 - beta) if beta < 1 else count.double().clamp(min=1)
    weight = 1 / effective
    return (weight * count.sum() / (weight * count).sum()).float()


@method(
    name="deit_lt",
    title="Distillation into vision transformers on long-tailed data (DeiT-LT)",
    paper="arXiv:2404.02900",
    lit="p112",
    family="compress/distil",
    year=2024,
    tier="modality",
    code="val-iisc/DeiT-LT",
    status="stable",
)
class DeiTLT(Part):
    """Teach a second token of a vision transformer what a convolutional teacher says, with rare classes weighed up late.

    ## What it does
    A distillation token with a head of its own goes through the transformer beside the class token. The class head
    learns the labels; the distillation head learns the teacher's hard answers to the very images the student sees,
    augmented beyond what the teacher was trained on. In the last steps its losses are weighed by the effective number
    of rows of the class. The model answers with the mean of the two heads' logits: one is good at common classes, the
    other at rare ones.

        y_T  = argmax teacher(x)
        loss = (1 - alpha) inner(class head) + alpha w_{y_T} (-log softmax(distillation head)_{y_T})
        w    = 1 before the share `late` of the training, then (1 - beta) / (1 - beta^n), scaled to mean 1

    ## Claim
    ViTs trained from scratch on long-tailed sets: CIFAR-10 at imbalance 100 87.5% (rarest classes 85.0%), CIFAR-100
    55.6%, ImageNet-LT 59.1%, iNaturalist-2018 75.1%.

    ## Cost
    One forward pass of the teacher a step, and one token more.

    ## Fields worth tuning
    The teacher first: one trained for rare classes (by re-weighting or contrast) with `sam`, on weak augmentation.
    `late`: the authors' 0.9 to 0.92.

    ## Watch out
    Give the training a strong augmentation (the authors: mixup and cutmix, off again in the last part): that the
    teacher has not seen such images is the point. A ViTForImageClassification leaves the training as
    DeiTForImageClassificationWithTeacher, with one token more and both heads, and saves and loads as such. Other
    networks get a second head on the same features, and both are folded into one at the end, which is exact but has
    no second token's features. Not reproduced here: a ViT of one layer on 252 long-tailed digits, with an MLP as
    teacher and no augmentation, was 1.8 points worse than with the labels alone (class average, n = 10, p = 0.4).

    ## Differs from the paper
    The authors divide by the weights in each batch; here the weights have mean 1 over all rows, which micro-batches
    leave alone. Counts n are of the labels, as in their code; `count` teacher takes the teacher's answers instead.
    The new head starts as a copy of the class head, the token as zeros.

    ## See also
    `kd` for soft answers and one head; `sam` for the teacher.
    """

    teacher: Model
    """Whose likeliest class is learned; it is not trained."""
    alpha: float = 0.5
    """Weight of the distillation head's loss; the class head's has the rest."""
    late: float = 0.9
    """Share of the training after which rare classes are weighed up; 1: never."""
    beta: float = 0.9999
    """How fast further rows of a class stop counting: 0 weighs all classes alike, 1 by their number."""
    count: str = "labels"
    """Which classes are counted for that: labels, or the teacher's answers (teacher)."""

    ranges = {"alpha": [0.2, 0.8], "late": [0.5, 1.0]}
    null = {"alpha": 0.0}
    tiny = {"world": "digits", "teacher": "$teacher", "late": 0.5}

    def attach(self, loop):
        if not 0 <= self.alpha <= 1 or not 0 <= self.late <= 1 or not 0 <= self.beta <= 1:
            raise Bad(f"alpha, late and beta must be from 0 to 1; they are {self.alpha}, {self.late} and {self.beta}")
        if self.count not in ("labels", "teacher"):
            raise Bad(f"count is labels or teacher, not {self.count!r}")
        if loop.model.kind != "classifier":
            raise Bad(f"deit_lt is for classifiers of images, not a {loop.model.kind}")
        net = loop.model.net
        if not self.alpha or hasattr(net, "distillation_classifier"):
            return
        if type(net).__name__ == "ViTForImageClassification":
            with loop.run.global_rng("deit_lt"):
                loop.model.net = with_token(net)
            return
        path, last = head(net)
        if not path:
            raise Bad(f"{type(net).__name__} has no layers before a linear head, to put a second head on")
        replace(net, path, Twin(last))

    def start(self, loop):
        if not self.alpha:
            return {}
        self.teacher.net.to(loop.device).eval()
        classes = heads(loop.model.net)[0].out_features
        if self.count == "teacher":
            said = loop.run.infer(self.teacher, loop.data, lambda batch, out: out.argmax(-1))
        else:
            loop.data.need("label", who="deit_lt")
            said = torch.from_numpy(loop.data["label"].astype("int64"))
        return {"weight": class_weights(torch.bincount(said, minlength=classes), self.beta), "said": []}

    def detach(self, loop):
        one_head(loop.model.net)

    def forward(self, loop, s, batch, inner):
        if not self.alpha:
            return inner(batch)
        s["said"].clear()
        both = heads(loop.model.net)
        hooks = [one.register_forward_hook(lambda layer, args, out: s["said"].append(out)) for one in both]
        try:
            return inner(batch)
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, loop, s, batch, out, inner):
        if not self.alpha:
            return inner(batch, out)
        mine, distilled = s["said"][-2:]
        s["said"].clear()
        with torch.no_grad():
            said = self.teacher(batch)
        if said.shape != distilled.shape:
            raise Bad(
                f"teacher answers in the form {tuple(said.shape)}, the student in {tuple(distilled.shape)}: "
                "they must share classes"
            )
        answer = said.argmax(-1)
        apart = F.cross_entropy(distilled.float(), answer, reduction="none")
        if loop.done >= self.late and self.late < 1:
            apart = apart * s["weight"].to(apart.device)[answer]
        return (1 - self.alpha) * inner(batch, mine) + self.alpha * apart
