"""How unsure a network is: of one answer, of one row among several sampled networks, and of several rows together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns import Data, Model
    from trainlore.runs import Run

__all__ = [
    "Joint",
    "dropout_shares",
    "entropy",
    "joint",
    "joint_entropies",
    "least_confidence",
    "margin",
    "mutual_information",
    "predicted",
    "ready",
]

ROOM = 1 << 22  # numbers of a block of joint outcomes: 32 MiB in float64


def entropy(shares: Tensor) -> Tensor:
    """-sum_k p_k log p_k in nats: (..., K) -> (...); 0 log 0 is 0."""
    return torch.special.entr(shares).sum(-1)


def margin(shares: Tensor) -> Tensor:
    """The likeliest class's share less the second's: (..., K) -> (...). Small is unsure."""
    top = shares.topk(2, -1).values
    return top[..., 0] - top[..., 1]


def least_confidence(shares: Tensor) -> Tensor:
    """What the likeliest class leaves to the others: (..., K) -> (...)."""
    return 1 - shares.amax(-1)


def mutual_information(shares: Tensor) -> Tensor:
    """What a row's label would tell of which of S networks is right, in nats: (S, N, K) -> (N,).

    The entropy of the mean less the mean of the entropies: high where each network is sure and they disagree.
    """
    return (entropy(shares.mean(0)) - entropy(shares).mean(0)).clamp(min=0)


# ---- several rows together


class Joint:
    """Outcomes of some rows together: all of them, or a sample.

    `table` (S, M): how likely outcome m is under network s, divided by exp(`offset`[m]) so that it never underflows;
    `weights` (M,): what an outcome counts, 1 where all are there, 1 / (M q_m) where they were drawn from q.
    """

    def __init__(self, table: Tensor, weights: Tensor, offset: Tensor) -> None:
        self.table, self.weights, self.offset = table, weights, offset


def joint(shares: Tensor, draws: int, rng: torch.Generator | None = None) -> Joint:
    """The outcomes of rows together, given each of S networks: shares (S, n, K), n at least 0.

    All K^n of them while they are at most `draws`; else `draws` // S (at least 1) drawn from each network in turn.
    """
    networks, rows, classes = shares.shape
    shares = shares.double()
    if classes**rows <= draws:
        table = shares.new_ones(networks, 1)
        for i in range(rows):
            table = (table[:, :, None] * shares[:, i, None, :]).flatten(1)
        return Joint(table, shares.new_ones(table.shape[1]), shares.new_zeros(table.shape[1]))
    each = max(1, draws // networks)
    logs = shares.new_zeros(networks, networks * each)
    for i in range(rows):
        drawn = torch.multinomial(shares[:, i], each, replacement=True, generator=rng).reshape(-1)
        logs += shares[:, i, drawn].log()
    offset = logs.amax(0)
    table = (logs - offset).exp()
    return Joint(table, 1 / (table.mean(0) * table.shape[1]), offset)


def joint_entropies(shares: Tensor, among: Joint) -> Tensor:
    """Entropy in nats of the rows in `among` together with each further row: shares (S, N, K) -> (N,)."""
    networks, _, classes = shares.shape
    outcomes, found = among.table.shape[1], []
    for part in shares.double().split(max(1, ROOM // (outcomes * classes)), dim=1):
        likely = torch.einsum("sm,snk->nmk", among.table, part) / networks
        nats = torch.special.entr(likely) - likely * among.offset[:, None]
        found.append((nats.sum(-1) * among.weights).sum(-1))
    return torch.cat(found)


# ---- networks


def ready(who: str, model: Model | None, count: int, data: Data) -> Model:
    """The model of an acquisition, once it is sure that it can choose `count` rows of the pool."""
    if model is None:
        raise Bad(f"{who} has no model to ask: give model=$name (active_learning fills it in)")
    if model.kind != "classifier":
        raise Bad(f"{who} is for classifiers, not a {model.kind}")
    data.need(who=who)
    if not 1 <= count <= len(data):
        raise Bad(f"count={count}: give {who} 1 to {len(data)}, the number of rows in the pool")
    return model


def predicted(run: Run, model: Model, data: Data) -> Tensor:
    """The class shares of each row, float64 (N, K). Raises Bad where some are not finite: nothing can be chosen by them."""
    shares = run.infer(model, data, lambda batch, out: out.double().softmax(-1))
    if bad := int((~shares.isfinite().all(-1)).sum()):
        raise Bad(f"the network's shares are not finite for {bad} of {len(shares)} rows: has it diverged?")
    return shares


def dropout_shares(run: Run, model: Model, data: Data, draws: int, rate: float | None = None) -> Tensor:
    """The class shares of each row under networks sampled by dropout, float64 (draws, N, K).

    A draw is one network: the same units are missing for every row and at every place of a sequence, so that rows can be
    judged together. Units are dropped where the network has dropout layers, at their own rates or at `rate`; where it
    has none, `rate` must be given and acts on what its linear layers read, but for the first. Everything else
    (batch norm) is as in evaluation.
    """
    if draws < 2:
        raise Bad(f"draws={draws}: give at least 2 networks to compare")
    if model.input == "input_ids" and "input_ids" not in data.columns:
        data = model.encode(data, truncate=True)
    found = []
    for draw in range(draws):
        with _dropping(run, model, draw, rate):
            found.append(predicted(run, model, data))
    return torch.stack(found)


@contextmanager
def _dropping(run: Run, model: Model, draw: int, rate: float | None) -> Iterator[None]:
    layers = [(n, m) for n, m in model.net.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    masks: dict[Any, Tensor] = {}

    def thinned(name: str, x: Tensor, p: float, channels: bool) -> Tensor:
        shape = x.shape[1:]
        if channels:
            shape = torch.Size([shape[0], *(1 for _ in shape[1:])])
        elif x.dim() == 3:  # one network for the whole sequence
            shape = shape[-1:]
        if (name, shape) not in masks:
            kept = torch.rand(shape, generator=run.rng("dropout", name, draw, *shape)) >= p
            masks[name, shape] = (kept / (1 - p)).to(x)
        return x * masks[name, shape]

    if rate is not None and not 0 < rate < 1:
        raise Bad(f"dropout={rate}: give a rate above 0 and below 1")
    if layers and any((m.p if rate is None else rate) > 0 for _, m in layers):
        hooks = [
            m.register_forward_hook(
                lambda m, args, out, n=n: thinned(
                    n, out, m.p if rate is None else rate, not isinstance(m, nn.Dropout | nn.AlphaDropout)
                )
            )
            for n, m in layers
        ]
    elif rate is None:
        raise Bad(
            f"{type(model.net).__name__} has no dropout to sample networks by: give dropout, such as 0.25, which then acts "
            "between its linear layers"
        )
    else:
        places = list(model.linears(head=True))[1:]
        if not places:
            raise Bad(
                f"{type(model.net).__name__} has fewer than two linear layers: there are no units between to drop"
            )
        hooks = [
            m.register_forward_pre_hook(lambda m, args, n=n: (thinned(n, args[0], rate, False), *args[1:]))
            for n, m in places
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
