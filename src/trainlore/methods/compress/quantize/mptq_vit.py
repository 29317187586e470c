from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.activations import Rounder, found, read_rounded
from trainlore.primitives.anatomy import Body, Feed, bodies, feeds, rescale
from trainlore.primitives.attending import attend_through, attentions
from trainlore.primitives.calibrating import Unit, batches_of, listen, rows_read, walk
from trainlore.primitives.grids import Grid, free, settle, snap
from trainlore.primitives.masks import plain, weight_of, write
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def regions(x: Tensor, coarse: Tensor | float, ratio: int, bits: int, signed: bool) -> Tensor:
    """The nearest values of two even runs of 2^(bits-1) steps each, the fine step 2^ratio times smaller: the shape of x.

    signed: the fine run below 0, the coarse one above. Else the fine run next to 0, the coarse one beyond it.
    """
    half, fine = 2 ** (bits - 1), coarse / 2**ratio
    small = (x / fine).round().clamp(-half if signed else 0, 0 if signed else half - 1) * fine
    large = (x / coarse).round().clamp(0, half - 1) * coarse
    return torch.where(x < (0.0 if signed else half * fine), small, large)


def allotted(rise: Mapping[str, list[float]], size: Mapping[str, int], bits: float, low: int) -> dict[str, int]:
    """Bits of each layer: from the most on, one bit at a time from where it costs least for each weight.

    rise: the damage of a layer at low, low + 1, ... bits; size: its weights. Ends when a weight has at most `bits` on
    average.
    """
    width = {path: low + len(steps) - 1 for path, steps in rise.items()}
    left, budget = sum(width[p] * size[p] for p in width), bits * sum(size.values())
    while left > budget:
        cost = {p: (rise[p][w - low - 1] - rise[p][w - low]) / size[p] for p, w in width.items() if w > low}
        path = min(cost, key=cost.__getitem__)
        width[path] -= 1
        left -= size[path]
    return width


class Regions(nn.Module):
    """Rounds to two runs of steps tied by a power of two. Gradients go straight through."""

    def __init__(self, coarse: Tensor, ratio: int, bits: int, signed: bool) -> None:
        super().__init__()
        self.ratio, self.bits, self.signed = ratio, bits, signed
        self.register_buffer("coarse", coarse.view(1))

    def forward(self, x: Tensor) -> Tensor:
        rounded = regions(x.detach().float(), self.coarse, self.ratio, self.bits, self.signed).to(x.dtype)
        return x + (rounded - x).detach()

    @staticmethod
    def of(x: Tensor, weight: Tensor, bits: int, signed: bool, most: int) -> Regions:
        """With the power of two, 0 to `most`, that moves x (n, in) times weight (out, in) least."""
        coarse = x.max().clamp(min=torch.finfo(torch.float32).tiny) / (2 ** (bits - 1) - 1)
        gaps = [((regions(x, coarse, m, bits, signed) - x) @ weight.T).square().mean() for m in range(most + 1)]
        return Regions(coarse, int(torch.stack(gaps).argmin()), bits, signed)


def fitted(x: Tensor, weight: Tensor, bits: int) -> Rounder:
    """Rounds around 0 by one scale, the share of the largest value that moves x (n, in) times weight (out, in) least."""
    form = f"int{bits}"
    scale, zero = found(x, form)
    tries = [scale * share / 20 for share in range(4, 21)]
    gaps = [((snap(x, form, s, zero) - x) @ weight.T).square().mean() for s in tries]
    return Rounder(form, "tensor", tries[int(torch.stack(gaps).argmin())])


@method(
    name="mptq_vit",
    title="MPTQ-ViT: shifted smoothing, two-region steps and greedy bits",
    paper="arXiv:2401.14895",
    lit="p000",
    family="compress/quantize",
    year=2024,
    tier="modality",
    status="stable",
)
class MPTQViT(Fit):
    """Round weights and activations of a vision transformer, each layer in as many bits as it needs.

    ## What it does
    Three things, on `rows` unlabelled rows:

        what a norm gives:   m_c = mean Y_c,  s_c = max|Y_c - m_c|^a / max|W_c|^(1-a);  Y' = (Y - m) / s, folded into the
                             norm, W' = W s and bias' = bias + W m into its readers: the same model, even around 0
        after softmax, GELU: two runs of 2^(b-1) steps, coarse = 2^k fine (below 0 fine, above coarse; for probabilities
                             fine next to 0), with the k that moves them, or what is made of them, least
        bits of each layer:  from `most` on, one bit off where the logits move least for each weight, until a weight
                             has `bits` on average; the weight, what it reads, and probabilities before it share them

    The other inputs are rounded around 0 with one scale a tensor, chosen the same way; weights by channel.

    ## Claim
    ImageNet, ViT, DeiT and Swin: 0.90 to 23.35 points above earlier methods at 4 bits throughout, 3.82 to 78.14 points
    at 5 bits on average with everything rounded.

    ## Cost
    Passes over `rows`: two, one more for each layer and width, and two a block. Memory: what the layers of one block read.

    ## Fields worth tuning
    `bits`; `alpha`: how much of the spread moves into the weights.

    ## Watch out
    The model keeps its precision and rounds as it goes; it cannot be saved as a plain model. Norms without a bias (Llama)
    are only smoothed, and gated neurons have no second region. Patches and head stay as they are.

    ## Differs from the paper
    Its text was in reach only in part (abstract and summaries): how steps are searched is ours, and so are the two regions
    of probabilities and the price of a bit (the movement of the logits with that layer alone rounded). Queries and keys
    are not rounded before they meet.

    ## See also
    dopq_vit, pd_quant, nearest.
    """

    bits: float = 4.0
    """Bits of a weight on average; whole where all layers get the same."""
    mixed: bool = True
    """Give each layer bits of its own."""
    least: int = 3
    """Fewest bits of a layer."""
    most: int = 8
    """Most bits of a layer."""
    alpha: float = 0.5
    """Share of the spread (as a power) that moves from what norms give into the weights."""
    ratios: int = 8
    """Largest power of two between the two steps."""
    rows: int = 32
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass."""
    tolerance: float = 1.0
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"alpha": [0.1, 0.9]}
    tiny = {"world": "text", "bits": 5.0, "least": 4, "most": 6, "rows": 16}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if not 2 <= self.least <= self.bits <= self.most <= 8 or not (self.mixed or self.bits == int(self.bits)):
            raise Bad(
                f"bits={self.bits}, least={self.least}, most={self.most}: give 2 <= least <= bits <= most <= 8, "
                f"and whole `bits` unless `mixed`"
            )
        if self.ratios < 0 or not 0 <= self.alpha <= 1:
            raise Bad(f"ratios={self.ratios}, alpha={self.alpha}: give ratios from 0 and alpha from 0 to 1")
        blocks = {body.path: body for body in bodies(model)}
        parts = [p for b in blocks.values() for p in (*b.heads_in, b.heads_out, *b.neurons_in, b.neurons_out)]
        layers = plain({path: model.net.get_submodule(path) for path in parts})
        free(model, layers)
        batches = batches_of(run, model, data, self.rows, self.size, "mptq_vit")
        attention = dict(zip(blocks, attentions(model), strict=True))
        for path in attention.values():
            attend_through(model, path, nn.Identity())
        training = model.net.training
        model.net.eval()
        spread = _spread(model, {feed.readers[0] for feed in feeds(model) if feed.norm}, batches)
        for feed in feeds(model):
            if feed.norm:
                self._smooth(model.net, feed, *spread[feed.readers[0]])
        width = dict.fromkeys(layers, int(self.bits))
        if self.mixed:
            before = [model(batch) for batch in batches]
            rise = {path: self._rise(model, layers[path], batches, before) for path in layers}
            width = allotted(rise, {p: weight_of(m).numel() for p, m in layers.items()}, self.bits, self.least)
        for unit in walk(model, layers, batches):
            self._round(model, unit, blocks[unit.path], attention[unit.path], width)
        model.net.train(training)
        return model

    def _smooth(self, net: nn.Module, feed: Feed, mean: Tensor, low: Tensor, high: Tensor) -> None:
        """Move what a norm gives around 0, and a part of its spread into the readers' weights: the same outputs."""
        norm, readers = net.get_submodule(feed.source), [net.get_submodule(path) for path in feed.readers]
        if any(getattr(m, "bias", None) is None for m in (norm, *readers)):
            mean = torch.zeros_like(mean)
        else:
            norm.bias.sub_(mean)
            for layer in readers:
                layer.bias.add_(weight_of(layer).float() @ mean)
        peak = torch.maximum(high - mean, mean - low)
        wide = torch.stack([weight_of(layer).float().abs().amax(0) for layer in readers]).amax(0)
        scale = peak**self.alpha / wide ** (1 - self.alpha)
        rescale(net, feed, torch.where((peak > 0) & (wide > 0), scale, 1.0))

    def _rise(self, model: Model, layer: nn.Module, batches: list[Batch], before: list[Tensor]) -> list[float]:
        """Relative squared movement of the logits with this layer alone in `least`, `least` + 1, ... `most` bits."""
        kept, moved = weight_of(layer).clone(), []
        whole = sum(float(was.square().sum()) for was in before)
        for bits in range(self.least, self.most + 1):
            write(layer, Grid.of(kept, f"int{bits}", "channel").round(kept))
            read_rounded(layer, Rounder(f"int{bits}", "tensor"))
            gap = sum(float((model(b) - was).square().sum()) for b, was in zip(batches, before, strict=True))
            moved.append(gap / max(whole, 1e-12))
        write(layer, kept)
        read_rounded(layer, nn.Identity())
        return moved

    def _round(self, model: Model, unit: Unit, body: Body, attention: str, width: dict[str, int]) -> None:
        """Round what a block's layers read, its probabilities, and the layers' weights."""
        heard: dict[str, list[Tensor]] = {path: [] for path in unit.layers}
        shares: list[Tensor] = []
        between = model.net.get_submodule(attention).probabilities
        hook = between.register_forward_hook(lambda m, args, out: shares.append(out.float().flatten()))
        listen(unit, lambda path, layer, x: heard[path].append(x.float()))
        hook.remove()
        for path, layer in unit.layers.items():
            x, weight, bits = torch.cat(heard[path]), weight_of(layer).float(), width[path]
            two = path == body.neurons_out and len(body.neurons_in) == 1
            read_rounded(layer, Regions.of(x, weight, bits, True, self.ratios) if two else fitted(x, weight, bits))
            grid = Grid.of(weight, f"int{bits}", "channel")
            settle(model, path, layer, grid.round(weight), grid)
        all_ = torch.cat(shares)[:, None]
        between = Regions.of(all_, all_.new_ones(1, 1), width[body.heads_out], False, self.ratios)
        attend_through(model, attention, between)


def _spread(model: Model, paths: set[str], batches: list[Batch]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Mean, smallest and largest value of each input (in,) of these layers."""
    sums: dict[str, list[Tensor]] = {}
    real: Tensor | None = None

    def hear(path: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            x = rows_read(layer, args[0], real).float()
            new = [x.sum(0), x.new_tensor(len(x)), x.amin(0), x.amax(0)]
            old = sums.get(path)
            merge = (torch.add, torch.add, torch.minimum, torch.maximum)
            sums[path] = new if old is None else [f(a, b) for f, a, b in zip(merge, old, new, strict=True)]

        return hook

    hooks = [model.net.get_submodule(path).register_forward_pre_hook(hear(path)) for path in paths]
    for batch in batches:
        real = batch["attention_mask"].bool() if "attention_mask" in batch else None
        model(batch)
    for hook in hooks:
        hook.remove()
    return {path: (total / count, low, high) for path, (total, count, low, high) in sums.items()}
