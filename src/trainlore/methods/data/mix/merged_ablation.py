from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.domains import domain_losses, domains
from trainlore.runs import Run
from trainlore.verbs import Measure, Part, method

MOST = 1024  # mixes measured in one go


def averaged(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts of one shape, in float64 and back; counters and other whole numbers are the first one's."""
    mean = {}
    for name, first in states[0].items():
        mean[name] = first.clone()
        if first.is_floating_point():
            total = torch.zeros_like(first, dtype=torch.float64)
            for state in states:
                total += state[name]
            mean[name] = (total / len(states)).to(first.dtype)
    return mean


def shards(code: np.ndarray, size: int | None, generator: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """The parts to train on, (domain, positions) each: a domain's rows in random order, `size` at a time, or all at once.

    What a domain has left over for a last part of less than `size` is dropped, for parts must be of one size.
    """
    parts = []
    for k in range(code.max() + 1):
        own = generator.permutation(np.flatnonzero(code == k))
        step = len(own) if size is None else size
        if len(own) < step:
            raise Bad(f"merged_ablation: shard={size}, but domain {k} has {len(own)} rows: lower it, or leave it out")
        parts += [(k, np.sort(own[at : at + step])) for at in range(0, len(own) - step + 1, step)]
    return parts


@method(
    name="merged_ablation",
    title="Data ablation by modular training and merging",
    paper="arXiv:2410.15661",
    lit=["p561", "p087"],
    family="data/mix",
    year=2024,
    tier="core",
    status="stable",
)
class MergedAblation(Measure):
    """Predict what training on any union of domains would give from one short training on each.

    ## What it does
    Trains a copy of the model on every part of the data by itself. The average of the weights of some of these copies
    stands for a model trained on the union of their parts, and its held-out loss for that model's.

        loss(S) ~ loss of the weights (1 / |S|) sum_{i in S} theta_i,      theta_i = model trained on part i

    The report has one loss for every union and held-out domain; the notes rank the unions by their mean loss.

    ## Claim
    Continued pretraining (130M models and larger) on partitions of a corpus, such as papers by field and year: for any
    held-out set the perplexity of the averages correlates strongly with that of models trained on the union, so that
    trainings linear in the number of partitions serve for all unions.

    ## Cost
    One training a part, then one pass over `held_out` a union. Memory: 4 bytes * weights * parts.

    ## Fields worth tuning
    `shard`: parts of one size make a domain count by its rows; without, each domain counts once, whatever its size.

    ## Watch out
    The losses rank unions; they are not the losses that training on them would give. The parts must stay near a common
    start: a trained model, never random weights. A union seldom beats its best part everywhere: sources of images and
    texts put together diluted the robustness of the best one (Quality Not Quantity, arXiv:2208.05516). So single domains
    are among the unions, and `held_out` should have the shifted data that counts.

    ## Differs from the paper
    Losses are means over rows of the mean token loss; the paper takes perplexities. Nothing is trained on the unions
    that rank first; do that before you believe them.

    ## See also
    `mixing_laws` for shares between domains, `btm_average` for a model to keep.
    """

    held_out: Data
    """Rows to measure on, per domain if they have the column."""
    mixes: tuple[tuple[str, ...], ...] = ()
    """The unions to predict, as names of domains; all of them when empty."""
    largest: int | None = None
    """Most domains in a union, where all are predicted."""
    shard: int | None = None
    """Rows in a part; each domain is one part when left out."""
    epochs: float = 1.0
    """Passes of each training over its part."""
    inner: tuple[Part, ...] = ()
    """Parts of every training loop."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate of each training."""
    by: str = "domain"
    """Column that names a row's domain."""

    tiny = {"world": "text", "held_out": "$held_out", "lr": 3e-3}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        names, code = domains(data, self.by, "merged_ablation")
        wanted = [tuple(names.index(n) for n in mix) for mix in self._mixes(names)]
        self.held_out.need(who="merged_ablation's held_out")
        groups, group = ["all"], np.zeros(len(self.held_out), np.int64)
        if self.by in self.held_out.columns:
            groups, group = domains(self.held_out, self.by, "merged_ablation's held_out")
        if self.epochs <= 0 or (self.shard is not None and self.shard < 1):
            raise Bad(f"merged_ablation: epochs must be above 0 and shard at least 1, got {self.epochs}, {self.shard}")
        how = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        trained: dict[int, list[dict[str, Tensor]]] = {}
        for k, rows in shards(code, self.shard, run.numpy("merged_ablation")):
            if any(k in mix for mix in wanted):
                state = run.fit(model.copy(), data.take(rows), *self.inner, **how).net.state_dict()
                trained.setdefault(k, []).append({n: v.detach().clone() for n, v in state.items()})
        merged, losses = model.copy(), []
        for mix in wanted:
            merged.net.load_state_dict(averaged([state for k in mix for state in trained[k]]))
            losses.append(domain_losses(run, merged, self.held_out, group, len(groups)).numpy())
        said = ["+".join(names[k] for k in mix) for mix in wanted]
        mean = [float(row.mean()) for row in losses]
        ranked = [{"mix": said[i], "loss": mean[i]} for i in np.argsort(mean, kind="stable")]
        where = {"mix": [m for m in said for _ in groups], "held_out": groups * len(said)}
        return Report.of("merged_loss", np.concatenate(losses), "lower", None, where, {"ranked": ranked})

    def _mixes(self, names: list[str]) -> list[tuple[str, ...]]:
        """The unions to predict, each domain once in it."""
        if self.mixes:
            if not all(mix and set(mix) <= set(names) for mix in self.mixes):
                raise Bad(f"merged_ablation: mixes={self.mixes}: name in each one or more of {', '.join(names)}")
            return [tuple(dict.fromkeys(mix)) for mix in self.mixes]
        top = len(names) if self.largest is None else min(self.largest, len(names))
        if not 0 < sum(comb(len(names), n) for n in range(1, top + 1)) <= MOST:
            found = f"merged_ablation: largest={self.largest} of {len(names)} domains"
            raise Bad(f"{found} makes no union or more than {MOST}: name some in mixes, or set largest")
        return [mix for n in range(1, top + 1) for mix in combinations(names, n)]
