from __future__ import annotations

from trainlore.errors import Bad
from trainlore.primitives.holding import hold, holding, let_go
from trainlore.primitives.masks import matrices, plain, weight_of, write
from trainlore.verbs import Part, method


@method(
    name="hold_zeros",
    title="Retraining with pruned weights held",
    paper="arXiv:1506.02626",
    family="compress/prune",
    year=2015,
    tier="core",
    status="stable",
)
class HoldZeros(Part):
    """Keep every pruned weight at exactly zero while the others are trained on.

    ## What it does
    Looks once, before the first step, at which weights of the linear and convolution layers are 0, and trains with

        W' = W * M,   M = (W is not 0),   dL/dW = M * dL/dW'

    as a parametrization of the layer, so that whatever moves the weights (momentum, weight decay, an average, another
    part) the layer computes with exact zeros. Afterwards the weights are plain again, with their zeros in them: a share
    of zeros stays that share, and a pattern such as 2:4 stays that pattern.

    ## Claim
    Train, prune the small weights, retrain what is left: AlexNet with 9 and VGG-16 with 13 times fewer weights at no loss
    of accuracy, where pruning without retraining loses some beyond half. What is left goes on from the values it had,
    not from new ones.

    ## Cost
    One bit and one masked copy a weight.

    ## Fields worth tuning
    None.

    ## Watch out
    Plain fine-tuning after pruning fills almost every zero in its first step. A weight that happens to be 0 counts as
    pruned. Frozen layers and layers without a zero are left alone; on a dense model this does nothing, and the report says
    so. Beside adapters there is nothing to hold in the frozen weights, and folding them in afterwards fills the zeros:
    `perp` trains a low-rank change that does not.

    ## Differs from the paper
    Which weights are pruned is another method's affair. No dropout is lowered for the retraining.

    ## See also
    magnitude, wanda, sparsegpt, which prune; perp, which retrains few numbers; granet, adaptive_sparse_trainer, whose
    masks move.
    """

    below: float = 0.0
    """Weights of at most this size count as zeros too, and become them."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to look at; all but the output head when empty."""

    null = None  # what it does is up to the model's zeros
    tiny = {"world": "digits", "below": 0.03}

    def attach(self, loop):
        if self.below < 0:
            raise Bad(f"below={self.below} is a size of weights: give 0 or more")
        sparse = {}
        for path, layer in plain(matrices(loop.model.net, self.targets)).items():
            weight = weight_of(layer)
            gone = weight.abs() <= self.below
            if not layer.weight.requires_grad or not gone.any():
                continue
            if gone.all() and not self.targets:
                raise Bad(
                    f"every weight of {path} is 0, so it would never be trained: was it pruned away, or is it new (an "
                    "adapter)? Name the layers that were pruned in `targets`"
                )
            if self.below:
                write(layer, weight.masked_fill(gone, 0.0))
            sparse[path] = layer
        hold(sparse)

    def detach(self, loop):
        let_go(holding(loop.model.net, self.targets))
