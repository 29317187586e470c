from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import take_budget
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.verbs import Curate, method

ROOM = 2**28  # bytes of gradients held at once when `chunk` is 0


def gradient_norms(losses: nn.Module, batch: dict[str, Tensor], chunk: int) -> Tensor:
    """Norm of the gradient of each row's loss with respect to all trained weights of `losses`: float32 (B,).

    losses(batch) -> (B,), any module; batch: tensors (B, ...). The gradients of `chunk` rows are held at a time; at 1
    they are taken by an ordinary backward, which every network can do.
    """
    rows = len(next(iter(batch.values())))
    trained = {k: v for k, v in losses.named_parameters() if v.requires_grad}
    if chunk == 1:
        found = torch.zeros(rows)
        for i in range(rows):
            slopes = torch.autograd.grad(
                losses({k: v[i : i + 1] for k, v in batch.items()}).sum(), list(trained.values()), allow_unused=True
            )
            found[i] = torch.stack([g.float().square().sum() for g in slopes if g is not None]).sum().sqrt()
        return found

    def one(weights: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
        return functional_call(losses, weights, ({k: v[None] for k, v in row.items()},))[0]

    weights, pieces = {k: v.detach() for k, v in trained.items()}, []
    for at in range(0, rows, chunk):
        piece = {k: v[at : at + chunk] for k, v in batch.items()}
        slopes = vmap(grad(one), in_dims=(None, 0), randomness="different")(weights, piece)
        pieces.append(torch.stack([g.flatten(1).float().square().sum(1) for g in slopes.values()]).sum(0).sqrt())
    return torch.cat(pieces).cpu()


class _Losses(nn.Module):
    """A model with its loss as one module, so that functional calls may exchange its weights."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.model = model.net, model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return per_row(rowwise(self.model.kind, batch, self.model(batch)), batch, self.model.kind)


@method(
    name="grand",
    title="GraNd",
    paper="arXiv:2107.07075",
    lit="p274",
    family="data/select",
    year=2021,
    tier="core",
    status="stable",
    code="mansheej/data_diet",
)
class GraNd(Curate):
    """Keep the rows whose loss pulls hardest at the weights early in training.

    ## What it does
    Scores each row by the length of the gradient of its loss with respect to all weights, exactly, averaged over
    networks that started from different initial weights, and keeps the highest-scoring share. The score stays on the
    data as column `grand`.

        score(x, y) = mean_k || d loss(f_k(x), y) / d w_k ||_2

    ## Claim
    Early in training the score finds the rows that matter for generalization; large parts of CIFAR-10 can go without
    loss of accuracy. `el2n` is the paper's cheaper stand-in.

    ## Cost
    Training the proxies, then a forward and a backward for each row and proxy. The gradients of `chunk` rows are held
    in memory at a time.

    ## Fields worth tuning
    `keep`; `skip_top` where labels are noisy.

    ## Watch out
    Rows with wrong labels score highest. The norm depends on how the weights are scaled and grows with the length of
    the input vector: compare scores only among proxies of one architecture. The networks run in evaluation mode, so
    dropout does not add noise and batch norm does not mix rows. On 1,000 digits half of the rows by score gave 1 (+- 1)
    point less accuracy than a random half at best: our claim is about finding wrong labels, not about pruning.

    ## Differs from the paper
    None in the score; the window `skip_top` is counted from the top.

    ## See also
    `el2n` (one forward instead of a backward).
    """

    proxies: tuple[Model, ...]
    """Networks early in training, each from other initial weights."""
    keep: float = 0.5
    """Share of the rows to keep."""
    skip_top: float = 0.0
    """Share of the rows to pass over from the top: likely wrong labels."""
    chunk: int = 0
    """Rows whose gradients are held at once; 0: what fits into 256 MiB, one where the network cannot be vectorized."""

    null = {"keep": 1.0, "skip_top": 0.0}
    tiny = {"world": "digits", "proxies": "$proxies", "keep": 0.5}

    def __call__(self, run: Run, data: Data) -> Data:
        if not self.proxies:
            raise Bad("proxies is empty: give grand at least one model early in training")
        if self.chunk < 0:
            raise Bad(f"chunk={self.chunk} must be 0 (as many rows as fit) or a number of rows")
        if not 0 <= self.skip_top < 1:
            raise Bad(f"skip_top={self.skip_top} must be at least 0 and below 1: it is a share of the rows")
        data.need(who="grand")
        with run.meter.running():
            score = torch.stack([self._norms(run, proxy, data) for proxy in self.proxies]).mean(0).numpy()
        score_left = score.copy()
        score_left[np.argsort(-score, kind="stable")[: round(self.skip_top * len(score))]] = -np.inf
        return data.with_(grand=score).take(take_budget(score_left, self.keep))

    def _norms(self, run: Run, proxy: Model, data: Data) -> Tensor:
        """The norms under one proxy, (N,)."""
        if proxy.input == "input_ids" and "input_ids" not in data.columns:
            data = proxy.encode(data)
        trained = sum(p.numel() for p in proxy.net.parameters() if p.requires_grad)
        chunk = self.chunk or min(256, max(1, ROOM // (4 * max(1, trained))))
        losses, was = _Losses(proxy), proxy.net.training
        losses.eval()
        try:
            return self._all(run, proxy, losses, data, chunk)
        except RuntimeError as error:
            if self.chunk or chunk == 1:
                raise Bad(f"{proxy!r} cannot be vectorized over rows ({error}): give grand chunk=1") from error
            return self._all(run, proxy, losses, data, 1)
        finally:
            proxy.net.train(was)

    def _all(self, run: Run, proxy: Model, losses: nn.Module, data: Data, chunk: int) -> Tensor:
        found = []
        for at in range(0, len(data), chunk):
            batch = data.batch(np.arange(at, min(at + chunk, len(data))), proxy)
            if proxy.kind == "causal":
                batch.pop(
                    "attention_mask", None
                )  # padding is on the right, where no label looks; masks stop the vectorizing
            found.append(self._paid(run, losses, {k: v.to(proxy.device) for k, v in batch.items()}, chunk))
        return torch.cat(found)

    def _paid(self, run: Run, losses: nn.Module, batch: dict[str, Tensor], chunk: int) -> Tensor:
        """The norms of one batch (B,), with every row on the meter, which takes a vectorized call for a single row."""
        rows = len(batch["row"])
        if chunk == 1 or rows == 1:
            return gradient_norms(losses, batch, 1)
        forward, backward = run.meter.forward, run.meter.backward
        first = gradient_norms(losses, {k: v[:1] for k, v in batch.items()}, 1)
        forward, backward = run.meter.forward - forward, run.meter.backward - backward
        rest = gradient_norms(losses, {k: v[1:] for k, v in batch.items()}, chunk)
        run.meter.forward, run.meter.backward = (
            run.meter.forward + (rows - 2) * forward,
            run.meter.backward + (rows - 2) * backward,
        )
        return torch.cat([first, rest])
