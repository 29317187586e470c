from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.blocks import even, sizes
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.levels import Levels, offspring, stairs
from trainlore.primitives.masks import share
from trainlore.primitives.shrinking import PARTS
from trainlore.primitives.sizing import Site, answers, cut_to, database, put, strayed
from trainlore.runs import Run
from trainlore.verbs import Fit, method

Asked = tuple[list[Batch], list[Tensor]]  # batches, and what the dense model said of them


@method(
    name="darwinlm",
    title="DarwinLM: evolutionary structured pruning",
    paper="arXiv:2502.07780",
    lit="p570",
    code="IST-DASLab/DarwinLM",
    family="compress/prune",
    year=2025,
    tier="llm",
    status="stable",
)
class DarwinLM(Fit):
    """Evolve how much each block loses of its heads and neurons, judging children after a little training.

    ## What it does
    Every block's heads and neurons are cut to a ladder of sizes, equal steps apart, by structured optimal brain surgery
    (see ziplm). The first parent is on the same level everywhere. In each generation `offspring` children differ from
    it by one to three level switches (one site a level larger, another of the same kind a level smaller, so that the
    size stays), and

        for i in stages:  train each child that is left on taught_i rows
                          keep the survivors_i with the least KL(dense || child)

    over judged_i rows; the parent joins the last stage, and its winner is the next parent. The last parent is cut out
    of the dense model, untrained: train it afterwards.

    ## Claim
    Llama-2-7B cut to 2.7 B without training: mean of eight tasks 57.2, ShearedLlama 51.0, uniform (3.4 B) 40.1; after
    10 B tokens 62.8, ShearedLlama after 50 B 62.6. Also Llama-3.1-8B to 4.6 B and Qwen-2.5-14B to 8.4 B.

    ## Cost
    ziplm's database. Each generation: passes and training over offspring x (judged_1 + taught_1) rows and less in later
    stages. Memory: the database (about levels / 2 times the layers that read heads and neurons), a second model, and
    the logits of all `rows`.

    ## Fields worth tuning
    `generations`; `taught`, all 0 for a search without training.

    ## Watch out
    The result's blocks differ, so plain transformers cannot load it. Fitness is measured on other rows in each stage:
    with few `judged` rows chance decides.

    ## Differs from the paper
    Rows instead of tokens, and numbers of our own for them (authors: 200 generations of 16; 1,024 to 8,192 tokens
    judged and 10,000 to 200,000 trained). Children are really cut before they are trained: in the authors' code the
    zeros are trained too. A switch never takes and gives at the same site.

    ## See also
    ziplm, which chooses the sizes by their time; scratch_training, the rival of all structured pruning.
    """

    keep: float = 0.5
    """Share of the heads and of the neurons that stay, over all blocks; rounded to a level."""
    levels: int = 10
    """About how many sizes smaller than whole each site has."""
    generations: int = 50
    """How often children are made."""
    offspring: int = 16
    """Children of a generation."""
    survivors: tuple[int, ...] = (8, 4, 2, 1)
    """How many are left after each stage of selection; the last number is 1."""
    judged: tuple[int, ...] = (8, 16, 32, 64)
    """Calibration rows on which they are judged in each stage."""
    taught: tuple[int, ...] = (8, 32, 64, 128)
    """Rows on which they are trained before each stage; 0: not at all."""
    lr: float = 1e-5
    """Learning rate of that training."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass and a training step."""
    damp: float = 0.01
    """Share of its mean that is added to the diagonal of H."""
    tolerance: float = 2.0
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"lr": [1e-6, 1e-3, "log"], "generations": [10, 400, "log"]}
    tiny = {
        "world": "text",
        "levels": 4,
        "generations": 2,
        "offspring": 3,
        "survivors": [2, 1],
        "judged": [8, 16],
        "taught": [0, 16],
        "rows": 16,
    }

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        self._check(model)
        batches = batches_of(run, model, data, self.rows, self.size, "darwinlm")
        if model.input == "input_ids" and "input_ids" not in data.columns:
            data = model.encode(data, truncate=True)
        sites = database(model, batches, lambda body, part, total: stairs(total, self.levels), self.damp)
        kinds = [mine for part in PARTS if (mine := [at for at, s in enumerate(sites) if s.part == part])]
        tops = [len(site.levels) - 1 for site in sites]
        parent = tuple(self._start(site) for site in sites)
        before, rng = answers(model, batches), run.numpy("darwinlm", "evolution")
        told = []
        for _ in range(self.generations):
            children = offspring(parent, kinds, tops, self.offspring, rng)
            if not children:
                break  # there is no other assignment
            for stage, left in enumerate(self.survivors):
                if stage == len(self.survivors) - 1:
                    children.append(parent)
                some = rng.permutation(len(batches))[: max(1, self.judged[stage] // self.size)]
                rows = data.take(np.sort(rng.permutation(len(data))[: self.taught[stage]]))
                asked = [batches[i] for i in some], [before[i] for i in some]
                lost = [self._fitness(run, model, rows, sites, one, asked) for one in children]
                best = np.argsort(lost, kind="stable")[:left]
                children, fittest = [children[i] for i in best], lost[best[0]]
            parent = children[0]
            told.append(float(fittest))
        model = cut_to(model, sites, parent)
        model.about["darwinlm"] = {"fitness": told, **sizes(model)}
        return model

    def _check(self, model: Model) -> None:
        share("keep", self.keep)
        if not len(self.survivors) == len(self.judged) == len(self.taught) or self.survivors[-1:] != (1,):
            raise Bad(
                f"survivors={self.survivors}, judged={self.judged} and taught={self.taught} must have one number a "
                "stage, and the last of survivors must be 1"
            )
        if min(*self.survivors, *self.judged) < 1 or min(self.taught) < 0:
            raise Bad(f"survivors={self.survivors} and judged={self.judged} must be at least 1, taught at least 0")
        for name in ("levels", "generations", "offspring"):
            if getattr(self, name) < 1:
                raise Bad(f"{name}={getattr(self, name)} must be at least 1")
        if not even(model):
            raise Bad("the blocks of this model keep different numbers already: prune the model it came from")

    def _start(self, site: Site) -> int:
        """The level nearest to `keep`."""
        return int(np.argmin([abs(len(level.kept) - self.keep * len(site.groups)) for level in site.levels]))

    def _fitness(
        self, run: Run, model: Model, data: Data, sites: Sequence[Site], levels: Levels, asked: Asked
    ) -> float:
        """How far a child strays from the dense model, after training on these rows if there are any."""
        if not len(data):
            for site, level in zip(sites, levels, strict=True):
                put(model.net, site, level)
            return strayed(model, *asked)
        child = cut_to(model.copy(), sites, levels, told=False)
        run.fit(child, data, epochs=1, batch_size=self.size, lr=self.lr)
        return strayed(child, *asked)
