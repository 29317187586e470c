from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.alike import same_tokens
from trainlore.primitives.losses import aligned
from trainlore.primitives.teaching import soft_cross_entropy, where_trained
from trainlore.verbs import Part, method


class Turn(torch.autograd.Function):
    """The same going forward; the gradient times -share going back."""

    @staticmethod
    def forward(ctx, x, share):
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.share * grad, None


def told_apart(critic: nn.Module, student: Tensor, teachers: Tensor, share: float) -> Tensor:
    """How badly the critic tells students' logits (..., K) from the teachers' (..., K), in nats (...).

    The critic's gradient falls; the student's is turned round and scaled by `share`."""
    mine, theirs = critic(Turn.apply(student, share))[..., 0], critic(teachers)[..., 0]
    return (F.softplus(mine) + F.softplus(-theirs)) / 2


@method(
    name="meal_v2",
    title="Ensemble distillation by a discriminator, without hard labels (MEAL V2)",
    paper="arXiv:2009.08453",
    lit="p290",
    family="compress/distil",
    year=2020,
    tier="core",
    code="szq0214/MEAL-V2",
    status="stable",
)
class MEALV2(Part):
    """Learn the average answer of several teachers, with no labels and a critic that tells student from teachers.

    ## What it does
    The target is the plain mean of the teachers' probabilities; the label is not looked at. Beside it a small network
    learns to tell the student's logits from the teachers' mean logits, and the student learns to be taken for them.

        p_T  = mean_m softmax(teacher_m)
        loss = (1 - alpha) inner + alpha [ - sum_k p_T,k log p_k  +  critic's loss ]
        critic's loss = - 1/2 log D(teachers) - 1/2 log(1 - D(student));   the student gets its gradient times -adversary

    ## Claim
    ImageNet at 224: a plain ResNet-50 reaches 80.67% top-1 (two teachers, SENet-154 and ResNet-152), ResNet-18 73.19%,
    MobileNet V3-Small 0.75 67.60%, with no hard labels, mixup, smoothing, augmentation policy or cosine schedule.

    ## Cost
    One forward pass of every teacher a step; a critic of about 32 K weights for K classes.

    ## Fields worth tuning
    The teachers: better ones, and ones that differ. `adversary` regularizes only; 0 leaves the critic out.

    ## Watch out
    The recipe starts from a student already trained on the labels, with a small learning rate (0.01 of SGD, a tenth
    of it after 100 of 180 epochs) and no weight decay; from random weights it needs far longer. Labels are not
    needed, so rows nobody labelled can be among the data. All teachers must know the student's classes. Not
    reproduced here: an MLP that went on from 100 labelled digits with three teachers was 0.3 points better than with
    the labels (n = 10, p = 0.6).

    ## Differs from the paper
    In the authors' code the critic's gradient reaches the student as it is, so that the student helps the critic
    (adversary -1 here); a student that opposes it, as in a GAN, is our default, and 0.1 our strength of it. Their
    critic ends in a ReLU and has K/8 and K/64 units, which leaves none for a few classes: here two layers of 32. Their
    rate of 1e-4 for it is overwritten by the student's at every epoch; here it has the student's from the start.

    ## See also
    `kd` with one teacher, a temperature and the labels.
    """

    teachers: tuple[Model, ...]
    """Whose answers are averaged; they are not trained."""
    alpha: float = 1.0
    """Weight of the teachers; the labels have the rest, which by the paper is nothing."""
    adversary: float = 0.1
    """How strongly the student works against the critic; 0 leaves it out, below 0 it helps."""

    ranges = {"adversary": [0.0, 1.0]}
    null = {"alpha": 0.0}
    tiny = {"world": "digits", "teachers": "$proxies"}

    def start(self, loop):
        if loop.model.kind in ("regressor", "encoder", "denoiser"):
            raise Bad(f"meal_v2 teaches choices among classes or tokens, which a {loop.model.kind} model does not make")
        if not 0 <= self.alpha <= 1:
            raise Bad(f"alpha must be from 0 to 1; it is {self.alpha}")
        if not self.teachers:
            raise Bad("teachers is empty: give at least one, better two that differ")
        for teacher in self.teachers:
            same_tokens(loop.model, teacher, "meal_v2")
            teacher.net.to(loop.device).eval()
        if not self.alpha or not self.adversary:
            return {}
        classes = loop.run.infer(self.teachers[0], loop.data.take([0]), lambda batch, out: out).shape[-1]
        layers = nn.Linear(classes, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
        return {"critic": nn.Sequential(*layers)}

    def loss(self, loop, s, batch, out, inner):
        if not self.alpha:
            return inner(batch, out)
        kind = loop.model.kind
        with torch.no_grad():
            said = [teacher(batch) for teacher in self.teachers]
            for one in said:
                if one.shape != out.shape:
                    raise Bad(
                        f"a teacher answers in the form {tuple(one.shape)}, the student in {tuple(out.shape)}: "
                        "they must share classes or vocabulary"
                    )
            logits = torch.stack([aligned(kind, one).float() for one in said])
        mine = aligned(kind, out).float()
        values = soft_cross_entropy(mine, logits.softmax(-1).mean(0))
        if "critic" in s:
            values = values + told_apart(s["critic"], mine, logits.mean(0), self.adversary)
        values = where_trained(kind, batch, values)
        return values if self.alpha == 1 else (1 - self.alpha) * inner(batch, out) + self.alpha * values
