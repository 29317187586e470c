from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.anatomy import Body, bodies
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.shrinking import PARTS, count, sayable
from trainlore.primitives.sizing import (
    Site,
    answers,
    cut_to,
    database,
    fit_budget,
    put,
    strayed,
    table,
    weighted,
)
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def ladder(total: int, ratio: float) -> list[int]:
    """Sizes from `total` down to 0, each `ratio` of the one before, rounded down."""
    sizes = [total]
    while sizes[-1]:
        sizes.append(int(sizes[-1] * ratio))
    return sizes


@method(
    name="ziplm",
    title="ZipLM: structured pruning to a speedup",
    paper="arXiv:2302.04089",
    lit="p009",
    code="IST-DASLab/ZipLM",
    family="compress/prune",
    year=2023,
    tier="core",
    status="stable",
)
class ZipLM(Fit):
    """Cut heads and neurons out of each block until the model is as many times faster as was asked.

    ## What it does
    For the layer W that reads a block's heads or neurons, H = X'X / n + damping; the group S of inputs that costs least
    goes, the others make up for it, and so on down a ladder of sizes:

        cost(S) = tr(W_S ((H^-1)_SS)^-1 W_S'),   W <- W - W_S ((H^-1)_SS)^-1 (H^-1)_S,:,   H^-1 loses S by elimination

    Each size s of each place p has an error e_ps = || (W' - W) X ||^2 / || W X ||^2 and a time t_ps, measured on this
    machine. With t the time of a whole pass, and t_0 = t - sum_p t_p,whole that of what no size changes (embeddings, norms,
    head), a dynamic program takes one size a place:

        minimize sum_p c_p e_ps    where t_0 + sum_p t_ps <= t / speedup

    first with c = 1, then with c drawn from [0, 1) and the best of them drawn anew a tenth at a time, each time judged
    by how far the answers of the whole model move. What is left is really smaller; a whole attention or feed-forward
    part can go.

    ## Claim
    Beats all earlier distillation and pruning of BERT-base (CoFi, MiniLM, TinyBERT); BERT-large pruned so matches
    MobileBERT; GPT2 beats DistilGPT2 while 60 % smaller and 30 % faster.

    ## Cost
    One pass over `rows`; O(in^3 + out in^2) for each layer; a few passes of one block for the table; for each try a
    pass over `judged` rows. Memory: every size of every layer, about 1 / (1 - ratio) times the layers that are cut (10
    times at 0.9), and the logits of `judged` rows.

    ## Fields worth tuning
    `speedup`; `tries` where blocks differ much.

    ## Watch out
    A table in seconds is measured anew at every run, so two runs may choose differently: with `by: work` they do not. It
    holds for passes like the first calibration batch: give rows as long, and `size` as many, as there will be in use.
    Where head and embeddings are much of the model (small models, large vocabularies) high speedups are out of reach.
    Blocks that keep different numbers cannot be loaded by plain transformers: `uniform` cuts all alike, to sizes that
    it can load (Llama: numbers of heads that divide the hidden size; GPT-2 and BERT keep all their heads).

    ## Differs from the paper
    One shot: for the gradual form train (with `kd`, say) and cut again; its loss on hidden states is not here. Tries are
    judged by KL to the model as it was, without labels. The search, and the share of time that nothing changes, are
    those of the authors' SPDY; the elimination was read in the code of DarwinLM, which takes it over.

    ## See also
    darwinlm, which chooses the sizes by evolution; scratch_training, the rival of all structured pruning.
    """

    speedup: float = 2.0
    """How many times faster a pass of the whole model must be."""
    uniform: bool = False
    """All blocks keep the same numbers of heads and neurons, and plain transformers can load the result."""
    by: str = "seconds"
    """What a size costs: seconds, measured here, or work, counted by shape."""
    ratio: float = 0.9
    """Each number of neurons that is tried is this share of the one before; of heads every number is."""
    tries: int = 100
    """How many random weightings to start with, and how many without a gain before the search ends; 0: none."""
    judged: int = 32
    """Rows of the calibration rows on which a try is judged."""
    damp: float = 0.01
    """Share of its mean that is added to the diagonal of H."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass."""
    tolerance: float = 2.0
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"damp": [0.001, 0.1, "log"], "tries": [0, 200]}
    tiny = {"world": "text", "speedup": 1.5, "by": "work", "rows": 16, "tries": 4, "judged": 8}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if not self.speedup > 1 or not 0 < self.ratio < 1 or self.tries < 0 or self.judged < 1:
            raise Bad(
                f"speedup={self.speedup} must be above 1, ratio={self.ratio} between 0 and 1, tries={self.tries} at "
                f"least 0 and judged={self.judged} at least 1"
            )
        batches = batches_of(run, model, data, self.rows, self.size, "ziplm")
        found = bodies(model)
        sites = database(model, batches, self._sizes, self.damp)
        if self.uniform and len({(b.groups, count(model.net, b)) for b in found}) > 1:
            raise Bad("uniform: the blocks of this model keep different numbers already; prune the model it came from")
        sizes = [(site.body, site.part, [len(level.kept) for level in site.levels]) for site in sites]
        times, rest = table(model, sizes, batches[0], self.by)
        levels = self._chosen(run, model, sites, times, rest, batches[: max(1, self.judged // self.size)])
        cut, left = (
            sum(float(row[0]) for row in times),
            sum(float(row[level]) for row, level in zip(times, levels, strict=True)),
        )
        model = cut_to(model, sites, levels)
        model.about["ziplm"] = {
            "speedup": (rest + cut) / (rest + left),
            "blocks": cut / left if left else None,  # of the attention and feed-forward layers alone
            "groups": [b.groups for b in bodies(model)],
            "neurons": [count(model.net, b) for b in bodies(model)],
        }
        return model

    def _sizes(self, body: Body, part: str, total: int) -> list[int]:
        return list(range(total)) if part == "heads" else ladder(total, self.ratio)

    def _chosen(
        self,
        run: Run,
        model: Model,
        sites: Sequence[Site],
        times: list[np.ndarray],
        rest: float,
        batches: list[Batch],
    ) -> tuple[int, ...]:
        """The level of every site: the best of the dynamic program's answers to the weightings tried."""
        places = [[at] for at in range(len(sites))]  # sites that are on one level
        if self.uniform:
            places = [p for part in PARTS if (p := [at for at, s in enumerate(sites) if s.part == part])]
        options = [self._options(model, sites[p[0]]) for p in places]
        errors, spent = (
            [np.array([sum(row[at][n] for at in p) for n in o]) for p, o in zip(places, options, strict=True)]
            for row in ([[level.error for level in s.levels] for s in sites], times)
        )
        least, total = sum(float(row.min()) for row in spent), rest + sum(float(row[0]) for row in times)
        budget = total / self.speedup - rest
        if budget < least or not budget:
            raise Bad(
                f"nothing is that quick: at its smallest sizes the model is {total / (rest + least):.2f} times faster, not "
                f"speedup={self.speedup:g}; what no size changes takes {rest / total:.0%} of a pass"
            )

        def choice(weights: np.ndarray) -> tuple[int, ...]:
            picked = fit_budget([w * e for w, e in zip(weights, errors, strict=True)], spent, budget)
            level = {at: o[one] for p, o, one in zip(places, options, picked, strict=True) for at in p}
            return tuple(level[at] for at in range(len(sites)))

        if not self.tries:
            return choice(np.ones(len(places)))
        before, judged = answers(model, batches), {}

        def judge(weights: np.ndarray) -> float:
            if (levels := choice(weights)) not in judged:
                for site, level in zip(sites, levels, strict=True):
                    put(model.net, site, level)
                judged[levels] = strayed(model, batches, before)
            return judged[levels]

        return choice(weighted(judge, len(places), self.tries, run.numpy("ziplm", "weights")))

    def _options(self, model: Model, site: Site) -> list[int]:
        """The levels that may be chosen: with `uniform`, those that plain transformers can load."""
        sizes = [len(level.kept) for level in site.levels]
        return [n for n, size in enumerate(sizes) if not self.uniform or not n or sayable(model, site.part, size)]
