from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.reparam import layers, reshaped
from trainlore.runs import Run
from trainlore.verbs import Shape, method


@method(
    name="lora",
    title="LoRA: low-rank adaptation",
    paper="arXiv:2106.09685",
    family="adapt/peft",
    year=2021,
    tier="core",
    status="stable",
)
class LoRA(Shape):
    """Freeze the model and learn a low-rank change of its linear weights.

    ## What it does
    Puts adapters of the `peft` library on the model:

        W' = W + alpha / rank * B A,       B (out, rank) = 0,  A (rank, in) random

    so that the model starts as it was and rank * (out + in) numbers a layer are trained. A model saved in this form is a
    folder in peft's format that holds the adapters only; `fold` adds them to W for good.

    ## Claim
    GPT-3 175B: 10,000 times fewer trained weights and a third of the memory of tuning with Adam, at equal or better
    quality, and no slower at inference once merged.

    ## Cost
    Two thin products a layer and pass. The optimizer's state is that of the adapters alone.

    ## Fields worth tuning
    `rank` and the learning rate (some ten times that of full tuning); `alpha` moves with the learning rate; `targets`.

    ## Watch out
    Whatever is named in `trainable` is trained in place and is not part of what peft saves: `fold` before saving then.
    Dropout acts on the adapter's input only. On 20 labels of dim digits it was on a par with full tuning, not above it
    (+0.3 points, n = 20).

    ## Differs from the paper
    The paper adapts the query and value projections; here it is every linear layer but the output head unless `targets`
    says otherwise. A is drawn as peft does (Kaiming-uniform), not Gaussian.

    ## See also
    `bone`, `bitfit`, `fold`
    """

    rank: int = 8
    """Rank of the change."""
    alpha: float = 16.0
    """Scale of the change; it is divided by the rank."""
    dropout: float = 0.0
    """Share of the adapters' inputs dropped while training."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the linear layers to change; all but the output head when empty."""
    trainable: tuple[str, ...] = ()
    """Words in the names of weights that stay trained whole, such as a new head's."""

    keeps = True
    ranges = {"rank": [2, 64, "log"], "alpha": [4.0, 64.0, "log"]}
    tiny = {"world": "text", "rank": 4}

    def __call__(self, run: Run, model: Model) -> Model:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        if self.rank < 1:
            raise Bad(f"rank must be 1 or more, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise Bad(f"dropout is a share from 0 to below 1, not {self.dropout}")
        net = model.net
        if any(isinstance(m, BaseTunerLayer) for m in net.modules()):
            raise Bad("the model has adapters of peft already: `fold` them first")
        names = name_all(list(layers(model, self.targets)), [path for path, _ in net.named_modules()])
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=names)
        with run.global_rng("lora"):
            if hasattr(net, "add_adapter"):  # a transformers model, which then also knows how to save adapters
                net.add_adapter(config)
            else:
                inject_adapter_in_model(config, net)
        for name, p in net.named_parameters():
            p.requires_grad_(p.requires_grad or any(word in name for word in self.trainable))
        return reshaped(model)


def low_rank(weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """The changed weight (out, in) from weight (out, in), a (rank, in) and b (out, rank)."""
    return weight + alpha / len(a) * b @ a


def name_all(chosen: Sequence[str], paths: Sequence[str]) -> list[str] | str:
    """What peft is to match: the chosen paths' last names if they name nothing else among all paths, else an expression."""
    last = {path.rpartition(".")[2] for path in chosen}
    if {path for path in paths if path.rpartition(".")[2] in last} == set(chosen):
        return sorted(last)
    return "|".join(re.escape(path) for path in chosen)
