from __future__ import annotations

from trainlore.nouns import Model
from trainlore.primitives import reparam
from trainlore.primitives.activations import read_rounded
from trainlore.runs import Run
from trainlore.verbs import Shape, method


@method(
    name="fold",
    title="Fold adapters into weights",
    family="adapt/peft",
    year=2021,
    tier="core",
    status="stable",
)
class Fold(Shape):
    """Make every reparametrized weight plain again, and every weight trained.

    ## What it does
    Writes out what a layer's weight amounts to and puts a plain linear layer in its place, for all that changes weights here:
    layers of `bone` and `sltrain`, adapters of the `peft` library (`lora`, or any of its own), parametrizations of torch.
    Afterwards the model saves as an ordinary Hugging Face folder, and `requires_grad` is on everywhere, which is also
    the way back from `bitfit`.

    ## Claim
    The outputs are what they were, up to rounding, and no slower than the model's before it was adapted.

    ## Cost
    One written weight a layer. The parity gate runs the same rows before and after.

    ## Watch out
    In bfloat16 the sum is rounded: a small change of large weights may be lost. Fold in float32 and convert afterwards.
    Adapters that depend on the input (gates, prefixes, dropout that is on) are not weights and cannot be folded.
    Layers that read their inputs in few bits go on doing so, and what an adapter of `peft` read in full is rounded too.

    ## See also
    `lora`, `bone`, `bitfit`, `sltrain`
    """

    keeps = True
    tiny = {"world": "text"}

    def __call__(self, run: Run, model: Model) -> Model:
        net, rounded = model.net, []
        for path, layer in net.named_modules():
            if isinstance(layer, reparam.Written) and hasattr(layer, "reads"):  # a new layer takes its place
                parent, _, name = path.rpartition(".")
                rounded.append((net.get_submodule(parent), name, layer.reads))
        net = reparam.fold(net)
        for parent, name, reads in rounded:
            read_rounded(getattr(parent, name), reads)
        return reparam.reshaped(model, net)
