from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.reparam import freeze, layers, reshaped
from trainlore.runs import Run
from trainlore.verbs import Shape, method


@method(
    name="bitfit",
    title="BitFit: bias-term fine-tuning",
    paper="arXiv:2106.10199",
    lit="p496",
    family="adapt/peft",
    year=2021,
    tier="core",
    status="stable",
    code="benzakenelad/BitFit",
)
class BitFit(Shape):
    """Train the biases and nothing else.

    ## What it does
    Freezes every weight but those whose name ends in `bias` (attention, feed-forward and norm biases alike) and those named
    in `trainable`. With `kinds` only biases whose name contains one of these words are trained.

    ## Claim
    BERT on GLUE: with small to medium data as good as tuning everything, sometimes better, training under 0.1% of the
    weights; the biases of the queries and of the middle of the feed-forward network alone (0.04%) lose little.

    ## Cost
    No gradients or optimizer state for matrices; activations still have to be kept for the way back.

    ## Fields worth tuning
    The learning rate: the authors use 1e-3 where full tuning uses 1e-5. `kinds=("query", "intermediate")` on BERT.

    ## Watch out
    Llama and most models since have no biases: without `add` there is then nothing to train, and this says so. Biases are
    added where the architecture's config can say they exist, or they would be lost in saving: everywhere in Llama, in
    Gemma's attention only, nowhere in T5. On 20 labels of dim digits it was on a par with full tuning (+0.5 points, n = 20);
    where the inputs changed more (turned or inverted digits) biases alone learned next to nothing.

    ## Differs from the paper
    The authors always train the classifier; here it must be named (`trainable=("classifier",)`), as a model that is trained
    already needs none. Adding biases is ours.

    ## See also
    `lora`, `bone`, `fold` (which makes everything trained again)
    """

    kinds: tuple[str, ...] = ()
    """Words of which one must be in a bias's name; every bias when empty."""
    add: bool = False
    """Whether linear layers without a bias get one of zeros where their architecture has a place for it."""
    trainable: tuple[str, ...] = ()
    """Words in the names of other weights to train, such as a new head's."""

    keeps = True
    tiny = {"world": "text", "add": True}

    def __call__(self, run: Run, model: Model) -> Model:
        if self.add:
            add_biases(model)
        freeze(model.net, self.trainable)
        chosen = [p for name, p in model.net.named_parameters() if is_bias(name, self.kinds)]
        if not chosen:
            what = (
                f"biases named {' or '.join(self.kinds)}: choose other kinds"
                if self.kinds
                else "biases" + (", nor a place for them" if self.add else ": say add=True")
            )
            raise Bad(f"{type(model.net).__name__} has no {what}")
        for p in chosen:
            p.requires_grad_(True)
        return reshaped(model)


def is_bias(name: str, kinds: tuple[str, ...] = ()) -> bool:
    """Whether a weight of this name is a bias of one of these kinds."""
    return name.rpartition(".")[2] == "bias" and (not kinds or any(kind in name for kind in kinds))


def add_biases(model: Model) -> None:
    """Give linear layers but the output head a bias, zero where there was none; of a transformers model, those layers of
    which its config can say so, as the bias would otherwise be lost when the model is saved."""
    config, chosen = getattr(model.net, "config", None), layers(model)
    if config is not None:
        flags = [flag for flag in ("attention_bias", "mlp_bias", "use_bias") if getattr(config, flag, None) is False]
        for flag in flags:
            setattr(config, flag, True)
        with torch.device("meta"):
            possible = dict(type(model.net)(deepcopy(config)).named_modules())
        chosen = {path: layer for path, layer in chosen.items() if possible[path].bias is not None}
    for layer in chosen.values():
        if layer.bias is None:
            rows = layer.weight.shape[0]
            layer.bias = nn.Parameter(torch.zeros(rows, device=layer.weight.device, dtype=layer.weight.dtype))
