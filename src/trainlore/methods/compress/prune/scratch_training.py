from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.masks import matrices, plain
from trainlore.primitives.reparam import reshaped
from trainlore.primitives.shrinking import shaped
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method

SAMPLE = 32  # rows on which the work of a pass is counted


def fresh(net: nn.Module) -> nn.Module:
    """A net of the same shape with weights drawn anew from torch's global stream, as its family starts them."""
    if type(net).__module__.startswith("transformers."):
        anew = shaped(type(net)(copy.deepcopy(net.config)))  # type: ignore[call-arg,arg-type]
        anew.to(device=net.device, dtype=net.dtype).train(net.training)
    else:
        anew = copy.deepcopy(net).requires_grad_(True)
        for path, module in anew.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif any(True for _ in module.parameters(recurse=False)):
                raise Bad(
                    f"{path or type(net).__name__} has weights and no reset_parameters(): nobody says how it starts"
                )
    mine, old = ({k: v.shape for k, v in n.state_dict().items()} for n in (anew, net))
    if odd := next((k for k in {**old, **mine} if old.get(k) != mine.get(k)), ""):
        raise Bad(f"the network is no longer what its config says ({odd}): `fold` it before it is drawn anew")
    return anew


def work_of(run: Run, model: Model, data: Data) -> float:
    """Floating-point operations of a forward pass over a few rows; paid for."""
    before = run.meter.forward
    run.infer(model, data.take(range(min(SAMPLE, len(data)))), lambda batch, out: out.flatten(1)[:, :1])
    return run.meter.forward - before


class _Holes(Part):
    """Weights that were pruned to zero one by one stay zero."""

    def __init__(self, masks: dict[str, Tensor]) -> None:
        self.masks = masks

    def update(self, loop: Any, s: dict, inner: Any) -> None:
        inner()
        hold(loop.model.net, self.masks)


@torch.no_grad()
def hold(net: nn.Module, masks: dict[str, Tensor]) -> None:
    """Set the weights that the masks of these layers leave out to zero."""
    for path, mask in masks.items():
        weight = net.get_submodule(path).weight
        weight.mul_(mask.to(weight.device))


@method(
    name="scratch_training",
    title="Training the pruned network from scratch",
    paper="arXiv:1810.05270",
    lit="p315",
    code="Eric-mingjie/rethinking-network-pruning",
    family="compress/prune",
    year=2018,
    tier="core",
    status="stable",
)
class ScratchTraining(Fit):
    """Draw the pruned network's weights anew and train it as the large one was trained.

    ## What it does
    Takes only the shape of the network it is given (and which single weights are exactly 0), starts it as its family
    starts, and trains it

        for the large network's steps                                (spend: steps, "Scratch-E"), or
        for floor(steps * work(large) / work(small)) steps           (spend: work, "Scratch-B")

    where work is one forward pass. If this does as well as fine-tuning what pruning left, the weights that were kept
    were worth nothing, and pruning was a search for a shape.

    ## Claim
    For six structured pruners on CIFAR and ImageNet, fine-tuning the weights that were kept is at best as good as this,
    and often worse. For single weights it holds on small data sets; on ImageNet training from scratch falls behind.

    ## Cost
    The training of the large network once more: in steps, or (nearly) in work.

    ## Fields worth tuning
    None: it is a rival, and has the large network's own settings.

    ## Watch out
    A schedule of the learning rate belongs in `inner`, where it stretches with the steps. Give the settings that the
    large network was trained with: a rival trained badly proves nothing. Here, on digits (400 rows, an MLP cut to half
    of its units), it loses: 91.2 % right against 92.6 % for a quarter of the steps at a tenth of the rate from the
    weights that were kept (n = 20, p = 0.03).

    ## Differs from the paper
    Work is what the meter counts here. Networks with single zeros start as dense ones do; the authors widen their start
    for the weights that are missing.

    ## See also
    ziplm, darwinlm, relevance_pruning, magnitude: whose rival this is.
    """

    large: Model | None = None
    """The network before it was pruned: its work sets the number of steps (spend: work)."""
    spend: str = "work"
    """What equals the large network's training: work (of forward passes) or steps."""
    steps: int = 1000
    """Steps that the large network was trained for."""
    batch_size: int = 32
    """Rows a step, as there."""
    lr: float = 1e-3
    """Learning rate, as there."""
    weight_decay: float = 0.0
    """Weight decay, as there."""
    inner: tuple[Part, ...] = ()
    """Parts of the training, as there."""

    tiny = {"world": "digits", "large": "$teacher", "steps": 10, "lr": 1e-2}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        data.need(who="scratch_training")
        if self.spend not in ("work", "steps") or self.steps < 1:
            raise Bad(f"spend={self.spend!r} must be work or steps, and steps={self.steps} at least 1")
        steps = self.steps
        if self.spend == "work":
            if self.large is None:
                raise Bad("spend: work needs `large`, the network before it was pruned; or give spend: steps")
            steps = int(steps * work_of(run, self.large, data) / work_of(run, model, data))
        try:
            layers = matrices(model.net)
        except Bad:  # nothing but an output head
            layers = {}
        masks = {path: m.weight.detach() != 0 for path, m in plain(layers).items() if not bool((m.weight != 0).all())}
        with run.global_rng("scratch weights"):
            anew = reshaped(model, fresh(model.net))
        anew.grids, anew.about = {}, {**model.about, "scratch_training": {"steps": steps, "masked": len(masks)}}
        hold(anew.net, masks)
        parts = (_Holes(masks), *self.inner) if masks else self.inner
        how = {"batch_size": self.batch_size, "lr": self.lr, "weight_decay": self.weight_decay}
        return run.fit(anew, data, *parts, steps=max(1, steps), **how)
