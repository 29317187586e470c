from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainlore.errors import Bad
from trainlore.primitives.masks import cubic, grid_of, matrices, plain, share, spread_blocks, top
from trainlore.primitives.reparam import turned
from trainlore.verbs import Part, method


def kept_blocks(scores: Tensor, threshold: float, least: float) -> Tensor:
    """Blocks whose sigmoid(score) is above the threshold, bool (R,C); never fewer than int(least * R C) + 1 of them."""
    mask = scores.sigmoid() > threshold
    few = min(scores.numel(), int(least * scores.numel()) + 1)
    return mask if int(mask.sum()) >= few else top(scores, few)


def ramp(done: float, warmup: float, cooldown: float) -> float:
    """1 while warming up, 0 while cooling down, the cube of a straight line between."""
    middle = 1 - warmup - cooldown
    return cubic((done - warmup) / middle if middle > 0 else float(done >= warmup), 1.0, 0.0)


class BlockMask(nn.Module):
    """weight -> weight * mask, one score a block; the scores get the gradient the mask would (straight through)."""

    def __init__(self, weight: Tensor, block: tuple[int, int], rule: str, pace: float, least: float) -> None:
        super().__init__()
        down, across, _, _ = grid_of(weight.shape, block)
        self.block, self.rule, self.pace, self.least = block, rule, pace, least
        self.raw = nn.Parameter(torch.zeros(down, across, device=weight.device))
        self.register_buffer("level", torch.tensor(0.0 if rule == "threshold" else 1.0, device=weight.device))

    @property
    def scores(self) -> Tensor:
        """The scores (R,C): `pace` times what is trained, so that they move `pace` times as fast as weights."""
        return self.pace * self.raw

    def forward(self, weight: Tensor) -> Tensor:
        scores, level = self.scores, float(self.level)
        keep = kept_blocks(scores, level, self.least) if self.rule == "threshold" else top(scores, level)
        mask = keep.to(scores.dtype) + scores - scores.detach()
        return weight * spread_blocks(mask, self.block, weight.shape).to(weight.dtype)


@method(
    name="block_movement",
    title="Block movement pruning",
    paper="arXiv:2109.04838",
    lit="p433",
    code="huggingface/nn_pruning",
    family="compress/prune",
    year=2021,
    tier="core",
    status="stable",
)
class BlockMovement(Part):
    """Learn which blocks of each weight matrix can go while the model is fine-tuned.

    ## What it does
    Each block B of a matrix has a score S_B, from 0, trained with the weights:

        M_B = 1 if sigmoid(S_B) > tau, else 0;   W' = W * M;   dL/dS_B = sum over the block of dL/dW' * W
        loss + strength * (tau_t / tau) * mean over matrices of mean over blocks of sigmoid(S_B)

    tau_t = tau * (1 - c), where c falls as a cube from 1 to 0 between `warmup` and 1 - `cooldown`. With `rule: top` the
    share 1 - (1 - keep)(1 - c) of each matrix's blocks with the largest scores stays, and there is no penalty. A block of
    [32, 32] prunes attention heads away piece by piece; [1, 0] whole output rows, [0, 1] whole input columns.

    ## Claim
    BERT on SQuAD v1: 2.4 times faster and 74 % smaller at 1 % less F1, with 32 x 32 blocks in attention, rows and columns
    in the feed-forward layers, and a teacher.

    ## Cost
    One number a block; the masked weight is written out at every pass.

    ## Fields worth tuning
    `strength`, which with `threshold` alone decides how much goes (the authors: 5 to 40 at lr 3e-5), then `block`.

    ## Watch out
    Scores have no learning rate of their own: theirs is `pace` times the run's (with Adam and its kin; with SGD
    pace^2). The authors use 1e-2 beside 3e-5 for the weights, pace 333. `threshold` promises no size: read the zeros.
    Here, on digits, it beats only the weak rival of its claim, blocks pruned by magnitude with no training after it.
    Against blocks ranked by magnitude on the same schedule: +0.5 points of accuracy on a new task (n = 20, p = 0.28), and
    0 to 3 points behind at six other lengths, shares and paces (n = 10). Against blocks chosen once by magnitude before
    fine-tuning on the same task: 7 points behind (n = 20, p < 0.001).

    ## Differs from the paper
    Rows of one layer and columns of the next are scored apart (the authors tie them), biases of emptied rows stay, and
    the emptied structures are zeros, not yet cut out. Attention and feed-forward blocks are two of these parts with
    different `targets`; their penalties are then means of their own. Distillation: add `kd`.

    ## See also
    granet, magnitude.
    """

    block: tuple[int, int] = (32, 32)
    """Rows and columns of a block; 0 is the whole side of the matrix."""
    rule: str = "threshold"
    """What stays: threshold (sigmoid of the score above tau) or top (the best share of blocks)."""
    tau: float = 0.1
    """threshold: where the sigmoid of a block's score must end up to stay."""
    strength: float = 1.0
    """threshold: weight of the penalty on the scores at the end."""
    keep: float = 0.5
    """top: share of the blocks left at the end."""
    pace: float = 10.0
    """How many times faster scores learn than weights; 10 at a rate of 1e-3 is the authors' 1e-2."""
    warmup: float = 0.1
    """Share of the run before the first block goes."""
    cooldown: float = 0.2
    """Share of the run, at its end, with the threshold or share held."""
    least: float = 0.005
    """threshold: share of the blocks of each matrix that stays whatever their scores (and one more)."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to prune; all but the output head when empty."""

    null = {"tau": 0.0, "strength": 0.0, "rule": "threshold"}
    tiny = {"world": "digits", "block": [4, 4], "tau": 0.5}

    def attach(self, loop):
        if self.rule not in ("threshold", "top"):
            raise Bad(f"rule={self.rule!r} is neither threshold nor top")
        if not 0 <= self.tau < 1 or not 0 <= self.least <= 1 or self.pace <= 0 or self.strength < 0:
            raise Bad("give tau in [0, 1), least in [0, 1], pace > 0 and strength >= 0")
        if min(self.warmup, self.cooldown) < 0 or self.warmup + self.cooldown > 1:
            raise Bad(f"warmup={self.warmup} and cooldown={self.cooldown} are shares that add up to at most 1")
        share("keep", self.keep)
        if self.rule == "threshold" and not self.tau and not self.strength:
            return
        for layer in plain(matrices(loop.model.net, self.targets)).values():
            block = self.block[::-1] if turned(layer) else self.block
            mask = BlockMask(layer.weight, block, self.rule, self.pace, self.least)
            parametrize.register_parametrization(layer, "weight", mask)

    def penalty(self, loop, s):
        if self.rule != "threshold" or not self.tau or not self.strength:
            return 0.0
        regular = torch.stack([mask.scores.sigmoid().mean() for mask in self._masks(loop)]).mean()
        return self.strength * (1 - ramp(loop.done, self.warmup, self.cooldown)) * regular

    def update(self, loop, s, inner):
        inner()
        self._set(loop, min(1.0, loop.done + 1 / loop.steps))  # for the next pass: the first is dense

    def detach(self, loop):
        self._set(loop, loop.done)  # an average of the weights would have averaged the level too
        for layer in self._layers(loop):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    def _layers(self, loop) -> list[nn.Module]:
        named = ((path, m) for path, m in loop.model.net.named_modules() if parametrize.is_parametrized(m, "weight"))
        mine = [m for path, m in named if not self.targets or any(f".{path}".endswith(f".{t}") for t in self.targets)]
        return [m for m in mine if _mask(m) is not None]

    def _masks(self, loop) -> list[BlockMask]:
        return [_mask(m) for m in self._layers(loop)]

    def _set(self, loop, done: float) -> None:
        left = ramp(done, self.warmup, self.cooldown)
        for mask in self._masks(loop):
            mask.level.fill_(self.tau * (1 - left) if self.rule == "threshold" else self.keep + (1 - self.keep) * left)


def _mask(layer: nn.Module) -> BlockMask | None:
    return next((m for m in layer.parametrizations.weight if isinstance(m, BlockMask)), None)
