from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from trainlore.nouns import Data, Model
from trainlore.primitives.greedy import embeddings, how_many, k_centre
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(name="k_centre", title="k-centre greedy", family="data/select", year=1985, tier="core", status="stable")
class KCentre(Curate):
    """Keep rows that leave no row far from a kept one, farthest first.

    ## What it does

    Begins with the row nearest to the mean and adds, one at a time, the row farthest from all rows chosen so far:

        next = argmax over i of min over j in S of || x_i - x_j ||

    The column `k_centre` is the place in the order of choice; any prefix of it is the choice for a smaller budget.

    ## Claim

    Gonzalez (1985, "Clustering to minimize the maximum intercluster distance"): the largest distance of any row to its
    nearest kept row is at most twice the least that so many rows can reach. Sener and Savarese (2018, "Active learning for
    convolutional neural networks: a core-set approach") chose rows to label so.

    ## Cost

    One embedding pass, then rows x kept rows x dimensions; two numbers a row.

    ## Fields worth tuning

    `metric`: the cosine where the length of a vector means nothing.

    ## Watch out

    The farthest rows come first, so outliers, broken rows and rows of a strange length are sure to be kept: clean before.
    Dense regions get no more rows than thin ones, so classes and topics are not kept at their shares.

    ## Differs from the paper

    The greedy alone; Sener and Savarese also refine it by a mixed integer program.

    ## See also

    facility_location, herding, core_set, random_rows.
    """

    encoder: Model | None = None
    """Model whose mean-pooled last layer embeds the rows; without it `column` must hold embeddings."""
    column: str = "features"
    """Column of embeddings (N, D), read when there is no `encoder`."""
    keep: float = 0.1
    """Share of the rows to keep, above 0 and at most 1."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance between the embeddings as they are, or scaled to length 1."""

    needs_memory = "rows * width * 8"
    null = {"keep": 1.0}
    tiny = {"world": "digits", "keep": 0.1}

    def __call__(self, run: Run, data: Data) -> Data:
        x = embeddings(run, data, self.encoder, self.column, "k_centre")
        if self.metric == "cosine":  # the middle, too, is of directions
            x = torch.nn.functional.normalize(x, dim=1)
        middle = (x - x.mean(0)).norm(dim=1).argmin()
        chosen = k_centre(x, how_many(self.keep, len(data)), int(middle), self.metric)[0].numpy()
        place = np.full(len(data), -1, np.int64)
        place[chosen] = np.arange(len(chosen))
        return data.with_(k_centre=place).take(np.sort(chosen))
