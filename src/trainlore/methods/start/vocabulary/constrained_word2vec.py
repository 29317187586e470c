from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.reparam import reshaped
from trainlore.primitives.skipgrams import sgns, skipgrams
from trainlore.primitives.vocabulary import encoded, extended, sides
from trainlore.runs import Run
from trainlore.verbs import Shape, method


@method(
    name="constrained_word2vec",
    title="CW2V: constrained Word2Vec vocabulary expansion",
    paper="arXiv:2407.05841",
    lit="p285",
    family="start/vocabulary",
    year=2024,
    tier="core",
    status="stable",
    code="AI4Bharat/VocabAdaptation_LLM",
)
class ConstrainedWord2Vec(Shape):
    """Add tokens for new text to a trained model, their embeddings mixed from those it has.

    ## What it does
    Goes on merging pairs of the model's own tokens on the corpus until there are `new` more of them. Every new embedding is a
    convex combination of the old ones, found by skip-gram with negative sampling on the corpus, all old rows held still:

        W_new = softmax(A1 A2) W_old         (input rows; with matrices of their own for the output rows if untied)
        loss  = - log sigmoid(w_center . v_context) - sum over k negatives of log sigmoid(- w_center . v_k)

    Negatives come by frequency^0.75; frequent centers are skipped with probability 1 - sqrt(threshold / count). An output row
    inside the hull of the old ones can never score above the best old token, so that the model's greedy choices on text in
    old tokens stay what they were.

    ## Claim
    RoBERTa and LLaMA 2 extended to four languages, five tasks: as good as or better than methods that need cross-lingual
    embeddings. Rows drawn from a normal around the old mean do about as well after continued pretraining.

    ## Cost
    The softmax over all old tokens for the new tokens in a batch, at every step.

    ## Fields worth tuning
    `new`, `epochs` and `lr` (few steps of a small corpus leave the rows near their random mixtures).

    ## Watch out
    Continue pretraining afterwards: the new rows are a start, not knowledge. On a barely trained toy model rows drawn small
    (0.02) gave a lower first loss on the new text than mixtures (128 against 176 nats a text, 119 against 124 after 20 steps,
    n = 4): the guarantee is about old text. That text is cut differently as well where new tokens fit in it. Only BPE
    tokenizers can be extended.

    ## Differs from the paper
    The authors train a second tokenizer and take over tokens the first lacks; going on with the old merges gives only
    tokens that can occur. Their code adds the dot products of all negatives up before one log-sigmoid; this is the textbook
    sum of log-sigmoids. Pairs come in random order.

    ## See also
    `bpe`
    """

    corpus: Data
    """Text of the new language or domain."""
    new: int = 1000
    """Tokens to add, at most."""
    window: int = 5
    """How far a context may be from its center, in tokens."""
    negatives: int = 5
    """Negative samples a pair."""
    epochs: int = 5
    """Passes over the corpus."""
    batch_size: int = 4096
    """Pairs a step."""
    lr: float = 3e-4
    """Learning rate of Adam."""
    factor: int = 1024
    """Inner size of A1 A2; one full matrix A where that is smaller."""
    threshold: float = 2.0
    """Count up to which no occurrence is skipped."""
    column: str = "text"
    """The column of the corpus that holds the text."""

    tiny = {"world": "text", "corpus": "$target", "new": 20, "epochs": 2, "batch_size": 512}

    def __call__(self, run: Run, model: Model) -> Model:
        if model.tokenizer is None or not hasattr(model.net, "resize_token_embeddings"):
            raise Bad("constrained_word2vec needs a language model of transformers with its tokenizer")
        for field in ("new", "window", "negatives", "batch_size", "factor"):
            if getattr(self, field) < 1:
                raise Bad(f"{field} must be 1 or more, not {getattr(self, field)}")
        self.corpus.need(self.column, who="constrained_word2vec")
        before = len(model.tokenizer)
        tokenizer = extended(model.tokenizer, self.corpus.text(self.column), self.new)
        if len(tokenizer) == before:
            raise Bad("no pair of tokens occurs twice in the corpus: give more text")
        model.tokenizer = tokenizer
        texts = [np.asarray(ids, np.int32) for ids, _ in encoded(tokenizer, self.corpus.text(self.column))]
        ids, document = np.concatenate(texts), np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        old = [rows.weight.detach()[:before].float() for rows in sides(model.net).values()]
        mixed = self._mix(run, old, ids, document, len(tokenizer) - before)
        held = model.net.get_input_embeddings()
        with run.global_rng("cw2v"):  # resizing draws rows of its own, which are not kept
            model.net.resize_token_embeddings(max(len(tokenizer), len(held.weight)), mean_resizing=False)
        with torch.no_grad():
            for rows, made in zip(sides(model.net).values(), mixed, strict=True):
                rows.weight[before : len(tokenizer)] = made.to(rows.weight)
                if getattr(rows, "bias", None) is not None:  # must not lift a new token above the old ones
                    rows.bias[before : len(tokenizer)] = rows.bias[:before].min()
        return reshaped(model)

    def _mix(self, run: Run, old: list[Tensor], ids: np.ndarray, document: np.ndarray, new: int) -> list[Tensor]:
        """New rows (new, d) for every side of `old` [(V, d)], learned on the token stream."""
        device, rng = old[0].device, run.numpy("cw2v")
        mixed = [Mixture(rows, new, self.factor, run.rng("cw2v", i)).to(device) for i, rows in enumerate(old)]
        optimizer = torch.optim.Adam(nn.ModuleList(mixed).parameters(), lr=self.lr)
        counts = np.bincount(ids, minlength=len(old[0]) + new).astype(np.float64)
        noise = np.cumsum(counts**0.75)
        skip = 1 - np.sqrt(self.threshold / np.maximum(counts, 1e-9))[ids]
        for _ in range(self.epochs):
            centers = rng.permutation(np.flatnonzero(rng.random(len(ids)) > skip))
            for at in range(0, len(centers), max(1, self.batch_size // (2 * self.window))):
                some = centers[at : at + max(1, self.batch_size // (2 * self.window))]
                center, context = skipgrams(document, some, self.window)
                if not len(center):
                    continue
                drawn = np.searchsorted(noise, rng.random((len(center), self.negatives)) * noise[-1], side="right")
                where = [torch.from_numpy(x).to(device) for x in (ids[center], ids[context], drawn)]
                loss = sgns(mixed[0](where[0]), mixed[-1](where[1]), mixed[-1](where[2])).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return [side.rows() for side in mixed]


def hull(logits: Tensor, rows: Tensor) -> Tensor:
    """Convex combinations (n, d) of rows (V, d), with weights softmax(logits (n, V))."""
    return logits.softmax(-1) @ rows


class Mixture(nn.Module):
    """Frozen old rows, and new ones inside their hull."""

    def __init__(self, old: Tensor, new: int, factor: int, generator: torch.Generator) -> None:
        super().__init__()
        self.old = old
        shapes = [(new, factor), (factor, len(old))] if factor < min(new, len(old)) else [(new, len(old))]
        self.weights = nn.ParameterList(torch.rand(shape, generator=generator) for shape in shapes)

    def rows(self, which: Tensor | None = None) -> Tensor:
        """The new rows, or those numbered `which`."""
        first, *second = self.weights
        logits = first if which is None else F.embedding(which, first)  # its gradient adds up in a fixed order
        return hull(logits @ second[0] if second else logits, self.old)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (..., d) of tokens (...): the old ones' own, the new ones' mixed."""
        known = len(self.old)
        new, place = torch.unique((ids - known).clamp(min=-1), return_inverse=True)  # -1 is any old token
        made = F.embedding(place, self.rows(new.clamp(min=0)))
        return torch.where((ids < known)[..., None], self.old[ids.clamp(max=known - 1)], made)
