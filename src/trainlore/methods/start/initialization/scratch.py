from __future__ import annotations

import copy

import torch
from torch import nn

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.reparam import reshaped
from trainlore.runs import Run
from trainlore.verbs import Shape, method


@method(
    name="scratch",
    title="Training from scratch",
    family="start/initialization",
    year=1986,
    tier="core",
    status="stable",
)
class Scratch(Shape):
    """Draw all weights anew and keep form and tokenizer: the rival of every better start.

    ## What it does
    A network of the same class and config is made, its weights drawn as that class draws them, by the run's seed. A plain
    module has each layer reset by the layer's own rule. Tokenizer and config stay, what was learned is gone.

    ## Claim
    None of its own: it is what a start has to beat, and what makes a model fresh for every seed of a race.

    ## Cost
    Drawing the weights.

    ## Watch out
    A structure that the config does not know (adapters, pruned shapes) is refused; `fold` first. Weights that a layer does
    not know how to reset would stay as they were, so such a module is refused too.

    ## See also
    g_stack, sltrain.
    """

    tiny = {"world": "digits"}

    def __call__(self, run: Run, model: Model) -> Model:
        with run.global_rng("scratch"):
            fresh = redrawn(model.net)
        return reshaped(model, fresh.to(model.device))


@torch.no_grad()
def redrawn(net: nn.Module) -> nn.Module:
    """A network of the same form with weights drawn anew from torch's global stream. Raises Bad where that cannot be."""
    if hasattr(net, "config") and hasattr(net, "save_pretrained"):
        made = type(net)(copy.deepcopy(net.config))
        mine = {k: v.shape for k, v in net.state_dict().items()}
        theirs = {k: v.shape for k, v in made.state_dict().items()}
        if lost := sorted(k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)):
            raise Bad(f"scratch: the network is no longer what its config says ({lost[0]}): `fold` it first")
        return made.train(net.training)
    made = copy.deepcopy(net)
    for name, module in made.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        if not hasattr(module, "reset_parameters"):
            raise Bad(
                f"scratch: {name or type(module).__name__} ({type(module).__name__}) has no rule to draw its weights by"
            )
        module.reset_parameters()
    return made
