from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import row_lengths, take_budget
from trainlore.primitives.ngrams import Hasher
from trainlore.runs import Run
from trainlore.verbs import Curate, method

CHUNK = 256  # rows scored at a time: their n-grams are padded to the longest
SHARPEST = 100.0  # the learned scale of the cosines may grow to this, and starts at 1 / 0.07: CLIP's numbers


def contrastive(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """How badly each half of B pairs finds its other half among the batch's: first, second (B, D) of length 1 -> a scalar.

    The mean of two cross-entropies over scale * cosine, one for each direction.
    """
    logits, own = scale * first @ second.T, torch.arange(len(first))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class Filter(nn.Module):
    """A tower for each column, over bags of ids (B, T) padded with 0 or over numbers (B, F); alone it ends in one logit."""

    def __init__(self, samples: list[Tensor], ids: int, width: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(x.shape[1], width)
                if x.is_floating_point()
                else nn.EmbeddingBag(ids + 1, width, padding_idx=0, sparse=True),
                nn.ReLU(),
                nn.Linear(width, width if len(samples) == 2 else 1),
            )
            for x in samples
        )
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, *columns: Tensor) -> Tensor:
        """Both halves at length 1 (B, 2, D); of a single column the logit (B,)."""
        read = [tower(x) for tower, x in zip(self.towers, columns, strict=True)]
        return F.normalize(torch.stack(read, 1), dim=-1) if len(read) == 2 else read[0][:, 0]


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
    With two `columns` a row is a pair, as an image and its caption are in the paper. Two towers f and g are trained on
    trusted pairs alone, so that each half finds its other half among the batch's (CLIP's loss, both directions), and a raw row's
    score is how well its halves match:

        loss = mean_i [ -log softmax_j(c f(a_i) . g(b_j))_{j=i} - log softmax_j(c f(a_j) . g(b_i))_{j=i} ] / 2
        score(a, b) = f(a) . g(b)    (cosine; c is learned)

    The optimum of that loss is log p(b | a) / p(b) plus a constant: what agrees with the trusted pairs scores high. Halves may be
    text (a bag of hashed words and pairs of words), numbers (a small MLP) or whole numbers such as `label` (a
    learned vector each). With one column there is nothing to match; one tower then learns to tell trusted rows from raw ones,
    the plain classifier filter, and its logit is the score. The column `dfn` holds the score.

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
    The towers: the paper's are a vision transformer and a text transformer, trained on 10^9 examples; these are two layers
    over bags or numbers, because our rows are text, features and labels. Loss, score and cut are the paper's. Left out: its
    further training on clean target sets. The form with one column is ours, for rows that are no pairs.

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

    null = {"keep": 1.0}
    tiny = {"world": "text", "trusted": "$target", "keep": 0.25, "steps": 20}

    def __call__(self, run: Run, data: Data) -> Data:
        if len(self.columns) not in (1, 2):
            raise Bad(f"columns={self.columns}: give the two halves of a pair, or one column")
        if min(self.width, self.buckets, self.steps) < 1 or self.batch_size < 2:
            found = f"width={self.width}, buckets={self.buckets}, steps={self.steps}, batch_size={self.batch_size}"
            raise Bad(f"{found}: batch_size must be at least 2, the others at least 1")
        data.need(*self.columns, who="dfn")
        self.trusted.need(*self.columns, who="dfn's trusted data")
        with run.meter.running():
            net = self._trained(run, data)
            score = np.concatenate(
                [
                    self._scored(net, data.take(range(at, min(at + CHUNK, len(data)))))
                    for at in range(0, len(data), CHUNK)
                ]
            )
        lengths = None if self.tokens is None else row_lengths(data)
        return data.with_(dfn=score).take(take_budget(score, self.keep, self.tokens, lengths))

    def _trained(self, run: Run, data: Data) -> nn.Module:
        clean, raw = (self._read(d, np.arange(1)) for d in (self.trusted, data))
        forms = [
            [(d.kinds[c], x.is_floating_point() and x.shape) for c, x in zip(self.columns, read, strict=True)]
            for d, read in ((self.trusted, clean), (data, raw))
        ]
        if forms[0] != forms[1]:
            raise Bad(f"columns={self.columns} are not of one form in the data and in trusted; give both the same kind")
        with run.global_rng("dfn"):
            net = Filter(clean, self.buckets, self.width)
        Model(net, "encoder")  # from here on its passes are on the meter
        bags = [p for m in net.modules() if isinstance(m, nn.EmbeddingBag) for p in m.parameters()]
        rest = [p for p in net.parameters() if not any(p is q for q in bags)]
        # a step moves only the ids that it read: most buckets are in none of its rows
        optimizers = [torch.optim.Adam(rest, lr=self.lr), *([torch.optim.SparseAdam(bags, lr=self.lr)] if bags else [])]
        for t in range(self.steps):
            trusted = self._drawn(run, self.trusted, "trusted", t)
            if len(self.columns) == 2:
                first, second = net(*self._read(self.trusted, trusted)).unbind(1)
                loss = contrastive(first, second, net.log_scale.exp().clamp(max=SHARPEST))
            else:
                yes = net(*self._read(self.trusted, trusted))
                no = net(*self._read(data, self._drawn(run, data, "raw", t)))
                loss = (F.softplus(-yes).mean() + F.softplus(no).mean()) / 2  # as much weight on either side
            net.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        return net

    @torch.no_grad()
    def _scored(self, net: nn.Module, data: Data) -> np.ndarray:
        out = net(*self._read(data, np.arange(len(data))))
        return (out.prod(1).sum(-1) if out.dim() == 3 else out).numpy()

    def _drawn(self, run: Run, data: Data, *key: object) -> np.ndarray:
        return run.numpy("dfn", *key).choice(len(data), min(self.batch_size, len(data)), replace=False)

    def _read(self, data: Data, rows: np.ndarray) -> list[Tensor]:
        """The columns of these rows as the towers take them: numbers (B, F), or ids (B, T) padded with 0."""
        some, read = data.take(rows), []
        for name in self.columns:
            kind = data.kinds[name]
            if kind == "text":
                read.append(_bags(Hasher(2, self.buckets), list(some.text(name))))
                continue
            if kind not in ("labels", "numbers"):
                raise Bad(f"columns={self.columns}: {name!r} holds {kind}; dfn reads text, numbers and whole numbers")
            values = torch.from_numpy(np.asarray(some[name]))
            if kind == "labels":
                read.append(values.long()[:, None] % self.buckets + 1)
            else:
                read.append(values.float().reshape(len(rows), -1))
        return read


def _bags(hasher: Hasher, texts: list[str]) -> Tensor:
    """Hashed n-grams of each text from 1 on, padded with 0: int64 (B, longest)."""
    grams, at = list(hasher.grams(texts)), 0
    row, bucket = [], []
    for g in grams:
        row.append(g.row + at)
        bucket.append(g.bucket)
        at += len(g.words)
    rows, buckets = np.concatenate(row), np.concatenate(bucket)
    order = np.argsort(rows, kind="stable")
    rows, buckets = rows[order], buckets[order]
    size = np.bincount(rows, minlength=len(texts))
    place = np.arange(len(rows)) - (np.cumsum(size) - size)[rows]
    out = np.zeros((len(texts), max(1, int(size.max()))), np.int64)
    out[rows, place] = buckets + 1
    return torch.from_numpy(out)
