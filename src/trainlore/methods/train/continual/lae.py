from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.experts import Pair, Surer, pairs, use
from trainlore.primitives.heads import head
from trainlore.primitives.reparam import adapt, fold, reshaped
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method


@method(
    name="lae",
    title="LAE: learning, accumulation, ensemble",
    paper="arXiv:2303.10070",
    lit="p048",
    family="train/continual",
    year=2023,
    tier="core",
    status="stable",
    code="gqk/LAE",
)
class LAE(Fit):
    """Learn tasks in sequence with a quick adapter, a slow running mean of it, and the surer of the two as the answer.

    ## What it does
    On a frozen classifier, task after task, a low-rank adapter of its linear layers (online) and the output head learn from
    the rows of the task, with cross-entropy among the task's classes only. From the second task on a second adapter
    (offline), at first a copy, follows it after every step:

        W' = W + s B A                      s learned, 1 at first; B zero at first
        offline <- decay * offline + (1 - decay) * online
        p(y | x) proportional to max(softmax(f_online(x))_y, softmax(f_offline(x))_y)

    In every task but the first the adapter is held still for the share `still` of the steps, while the head settles.
    Nothing is stored of earlier rows. The model handed back computes both experts over one set of frozen weights, and its
    logits are the logarithm of the larger of the two probabilities.

    ## Claim
    ViT-B/16 on class-incremental CIFAR100 and ImageNet-R in ten tasks: last accuracy 1.3 and 3.6 points above the best
    earlier method, with adapters; works with LoRA and prefixes as well.

    ## Cost
    Training as with one adapter. Every answer takes two passes.

    ## Fields worth tuning
    `decay`, in view of the steps of a task: over 1,000 steps the paper's 0.9999 takes on a tenth of what is new.

    ## Watch out
    Rows without a column `task` are cut into `tasks` by class number, in order. Only the order of tasks matters, not their
    names. The model handed back is no Hugging Face model and cannot be saved as a folder; choose one `expert` for that.
    Training it further trains the online expert. On digits it clearly beats plain fine-tuning, but the pair answered no better
    than its online half alone (22.9% both, n = 5): a few dozen steps a task leave the running mean little to add.

    ## Differs from the paper
    The head has all classes from the start instead of growing (untrained ones keep their first weights). Adapters sit on
    every linear layer but the head; the authors' on keys and values of the first five blocks. Steps are counted, not epochs.

    ## See also
    `replay`, `ewc`, `lora`
    """

    tasks: int = 5
    """Number of tasks the classes are cut into where the rows do not say."""
    steps: int = 1000
    """Steps a task."""
    rank: int = 5
    """Rank of the adapters."""
    decay: float = 0.9999
    """Share of the offline adapter kept at each step."""
    still: float = 0.6
    """Share of a later task's steps during which only the head learns."""
    lr: float = 2.8e-3
    """Learning rate."""
    batch_size: int = 24
    """Rows a step."""
    precision: str = "auto"
    """Numbers of the passes: fp32, bf16 or auto."""
    expert: str = "both"
    """What is handed back: both, online or offline; one alone is an ordinary model again."""

    tiny = {"world": "digits", "tasks": 2, "steps": 10, "decay": 0.9, "batch_size": 16, "precision": "fp32"}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.expert not in ("both", "online", "offline"):
            raise Bad(f"expert is both, online or offline, not {self.expert!r}")
        if not 0 <= self.decay <= 1 or not 0 <= self.still <= 1:
            raise Bad(f"decay and still are shares from 0 to 1, not {self.decay} and {self.still}")
        if model.kind != "classifier":
            raise Bad(f"lae needs a classifier, not a model of kind {model.kind}")
        data.need("label", who="lae")
        task = data["task"] if "task" in data.columns else by_class(data["label"], self.tasks)
        last = head(model.net)[1]
        model = adapt(model, lambda path, weight: Pair(weight, self.rank, run.rng("lae", path)))
        last.requires_grad_(True)
        for turn, name in enumerate(np.unique(task)):
            rows = data.where(task == name)
            if turn == 1:
                for pair in pairs(model.net):
                    pair.follow(0.0)
            part = _Task(
                classes=tuple(np.unique(rows["label"]).tolist()),
                decay=self.decay if turn else 0.0,
                still=self.still if turn else 0.0,
            )
            run.fit(
                model, rows, part, steps=self.steps, batch_size=self.batch_size, lr=self.lr, precision=self.precision
            )
        if self.expert == "both":
            return reshaped(model, Surer(model.net))
        use(model.net, offline=self.expert == "offline")
        return reshaped(model, fold(model.net))


def by_class(label: np.ndarray, tasks: int) -> np.ndarray:
    """A task number a row (N,) from class numbers (N,): the classes in ascending order, in `tasks` parts as even as can be."""
    classes, which = np.unique(label, return_inverse=True)
    if not 1 <= tasks <= len(classes):
        raise Bad(f"tasks must be from 1 to the {len(classes)} classes there are, not {tasks}")
    return which * tasks // len(classes)


def local_loss(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropies (B,) of logits (B,K) among the classes (C,) alone; every label (B,) is one of these, in ascending order."""
    return F.cross_entropy(logits[:, classes].float(), torch.searchsorted(classes, labels), reduction="none")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task(Part):
    """One task: its classes among themselves, the adapter held still at first, the offline one in tow."""

    classes: tuple[int, ...]
    decay: float
    still: float

    needs = {"labels": "labels"}

    def loss(self, loop: Any, s: dict, batch: Batch, out: Tensor) -> Tensor:
        return local_loss(out, batch["labels"], torch.tensor(self.classes, device=out.device))

    def gradient(self, loop: Any, s: dict, inner: Callable[[], None]) -> None:
        inner()
        if loop.done < self.still:
            for pair in pairs(loop.model.net):
                pair.a.grad = pair.b.grad = pair.s.grad = None

    def update(self, loop: Any, s: dict, inner: Callable[[], None]) -> None:
        inner()
        for pair in pairs(loop.model.net):
            pair.follow(self.decay)
