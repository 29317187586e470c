from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import row_lengths, take_budget
from trainlore.primitives.towers import Reader, Towers, contrastive, optimizers
from trainlore.runs import Run
from trainlore.verbs import Curate, method

CHUNK = 256  # rows scored at a time
SHARPEST = 100.0  # the learned scale of the cosines may grow to this: CLIP's number


@method(
    name="dfn",
    title="Data filtering network (DFN)",
    paper="arXiv:2309.17425",
    lit="p119",
    family="data/select",
    year=2023,
    tier="core",
    status="stable",
)
class DFN(Curate):
    """Train a small filter on rows that are trusted and keep the raw rows it scores highest.

    ## What it does
    With two `columns` a row is a pair, as an image and its caption are in the paper. Two towers f and g learn on trusted pairs
    alone to find each half's other half among the batch's (CLIP's loss); a raw row's score is how well its halves match:

        loss = mean_i [ -log softmax_j(c f(a_i) . g(b_j))_{j=i} - log softmax_j(c f(a_j) . g(b_i))_{j=i} ] / 2
        score(a, b) = f(a) . g(b)    (cosine; c is learned)

    The optimum is log p(b | a) / p(b) plus a constant: what agrees with the trusted pairs scores high. Halves may be text (a
    bag of hashed words and pairs of words), numbers (a small MLP) or whole numbers such as `label` (a learned vector each).
    One column has nothing to match: its tower learns to tell trusted rows from raw ones, the plain classifier filter, and
    its logit is the score. The column `dfn` holds the score.

    ## Claim
    2 B pairs filtered out of 12.8 B and 5 B out of 43 B train better CLIP models than LAION-2B, DataComp-1B or OpenAI's data;
    a ViT-H reaches 84.4% zero-shot ImageNet (83.0% in an earlier version of the paper). A filter that is better at
    ImageNet itself can choose worse data: what counts is that its training rows are few and clean.

    ## Cost
    `steps` small batches, and one pass of the towers over the raw rows, on the CPU. Memory: one number a row.

    ## Fields worth tuning
    The trusted rows: clean goes before many. `keep`: the authors kept 12% to 16%.

    ## Watch out
    A filter knows what it was shown. Rows of a kind that the trusted ones lack score low, right or not; and with one column
    it chooses likeness to them, like `dsir`. Judge a filter by a model trained on what it keeps, not by its own accuracy.

    ## Differs from the paper
    The paper's towers are a vision and a text transformer, trained on 10^9 examples; these are two layers over bags or
    numbers, for text, features and labels. Loss, score and cut are the paper's; its further training on clean target
    sets is left out. The form with one column is ours, for rows that are no pairs.

    ## See also
    dsir, aum, random_rows.
    """

    trusted: Data
    """Clean rows with the same columns."""
    columns: tuple[str, ...] = ("text",)
    """The two halves of a pair, or the one column to tell trusted from raw by."""
    keep: float = 0.15
    """Share of the rows to keep, above 0 and at most 1; unused when `tokens` is given."""
    tokens: float | None = None
    """Budget in tokens (words of the text where it is not encoded): a number above 1, or a share of all at most 1."""
    width: int = 64
    """Numbers in a tower's output."""
    buckets: int = 1 << 16
    """Buckets that words, pairs of words and labels are hashed into."""
    steps: int = 300
    """Training steps of the filter."""
    batch_size: int = 128
    """Trusted rows a step; each is the wrong half for all others."""
    lr: float = 1e-3
    """Learning rate of the filter."""

    ranges = {"lr": [0.0003, 0.003, "log"]}
    null = {"keep": 1.0}
    tiny = {"world": "text", "trusted": "$target", "keep": 0.25, "steps": 20}

    def __call__(self, run: Run, data: Data) -> Data:
        if len(self.columns) not in (1, 2):
            raise Bad(f"columns={self.columns}: give the two halves of a pair, or one column")
        if min(self.width, self.buckets, self.steps) < 1 or self.batch_size < 2:
            found = f"width={self.width}, buckets={self.buckets}, steps={self.steps}, batch_size={self.batch_size}"
            raise Bad(f"{found}: batch_size must be at least 2, the others at least 1")
        read = Reader(self.columns, self.buckets)
        forms = read.forms(data, "dfn")
        if forms != read.forms(self.trusted, "dfn's trusted data"):
            raise Bad(f"columns={self.columns} are not of one form in the data and in trusted; give both the same kind")
        if len(self.trusted) < len(self.columns):
            raise Bad("dfn's trusted data is a single pair, which has no wrong halves to be told from: give more")
        with run.meter.running():
            net = self._trained(run, data, read, [numbers for _, numbers in forms])
            parts = np.split(np.arange(len(data)), range(CHUNK, len(data), CHUNK))
            with torch.no_grad():
                pieces = (net(*read(data.take(rows))) for rows in parts)
                score = torch.cat([p.prod(1).sum(-1) if p.dim() == 3 else p for p in pieces]).numpy()
        lengths = None if self.tokens is None else row_lengths(data)
        return data.with_(dfn=score).take(take_budget(score, self.keep, self.tokens, lengths))

    def _trained(self, run: Run, data: Data, read: Reader, numbers: list[int]) -> Towers:
        with run.global_rng("dfn"):
            net = Towers(numbers, self.buckets, self.width)
        Model(net, "encoder")  # from here on its passes are on the meter
        steppers = optimizers(net, self.lr)
        for t in range(self.steps):
            out = net(*read(self._drawn(run, self.trusted, "trusted", t)))
            if out.dim() == 3:
                loss = contrastive(out[:, 0], out[:, 1], net.log_scale.exp().clamp(max=SHARPEST))
            else:
                no = net(*read(self._drawn(run, data, "raw", t)))
                loss = (F.softplus(-out).mean() + F.softplus(no).mean()) / 2  # as much weight on either side
            net.zero_grad()
            loss.backward()
            for stepper in steppers:
                stepper.step()
        return net

    def _drawn(self, run: Run, data: Data, *key: object) -> Data:
        return data.take(run.numpy("dfn", *key).choice(len(data), min(self.batch_size, len(data)), replace=False))
