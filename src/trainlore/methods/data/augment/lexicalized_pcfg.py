from __future__ import annotations

from collections import defaultdict

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives import edits
from trainlore.primitives.grammar import Grammar, chain_of, rules_of
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="lexicalized_pcfg",
    title="ALP (augmentation by lexicalized grammars)",
    paper="arXiv:2112.11916",
    lit="p550",
    family="data/augment",
    year=2021,
    tier="core",
    status="stable",
    code="hazelhkim/ALP",
)
class LexicalizedPCFG(Curate):
    """Add sentences that a grammar counted from a class's own parses writes, every phrase chosen by its head word.

    ## What it does
    From the parses of each class it counts how phrases expand, each with its head word h and the tag t of that:

        P(children | X, h, t) = n / (n + smooth) * count(children | X, h) / n  +  smooth / (n + smooth) * P(children | X, t)

    with n = count(X, h). New sentences keep the topmost rule of a row, which is in their `parents`, and draw the rest.
    They are of the class whose grammar wrote them; a sentence that is a row already, or came before, is dropped.

    ## Claim
    Few labelled rows and many unlabelled, BERT with self-training: better than other augmentations; and training on all
    real rows while validating on augmented ones beats holding real rows back.

    ## Cost
    No model, but trees drawn one by one in Python: about 20 microseconds a word. All trees are in memory, some 600
    bytes a word (12 GiB for a million rows of 20 words). The parses are the caller's.

    ## Fields worth tuning
    `smooth`: 0 recombines only phrases with the same head, which in a few rows is next to nothing; more gives more
    variety and less sense.

    ## Watch out
    Without `parses` each text is read as a chain that branches to the right, and the grammar is then a bigram model of
    the class smoothed with its single words: plausible from word to word and no further. Our claim tries only that, for
    we have no parsed rows with classes, and a bag of words was level with and without it (n = 10): not reproduced here.

    ## Differs from the paper
    The authors parse with benepar and spaCy, collect the phrases under each label, widen them with WordNet synonyms and
    string phrases together until a length is reached; their code keeps no head in its rules. Here the grammar is one
    whose rules do have heads, as the abstract says, found by a short table of head labels, and no word comes from
    outside. Not here: their splits and the self-training.

    ## See also
    `class_generator` writes with a network; `eda` edits words; `self_training`.
    """

    label: str | None = "label"
    """Column of the class, each with a grammar of its own; none: one grammar for all."""
    parses: str | None = None
    """Column of trees in brackets; none: each text as a chain that branches to the right."""
    n: int = 4
    """Sentences written for each row; 0 changes nothing."""
    smooth: float = 1.0
    """How often, against the count of the head word, a rule is drawn by label and tag alone."""
    longest: int = 100
    """Words of a sentence, at most; what grows longer is dropped."""

    null = {"n": 0}
    tiny = {"world": "text", "label": "domain", "n": 1}

    def __call__(self, run: Run, data: Data) -> Data:
        if self.n < 0 or self.smooth < 0 or self.longest < 1:
            raise Bad(f"n={self.n}, smooth={self.smooth}, longest={self.longest}: at least 0, 0 and 1")
        data.need("text", *[c for c in (self.label, self.parses) if c], who="lexicalized_pcfg")
        if not self.n:
            return data
        seen = {" ".join(t.split()) for t in data.text()}
        trees = [rules_of(t) if self.parses else chain_of(t) for t in data.text(self.parses or "text")]
        labels = np.asarray(data[self.label]).astype(str).tolist() if self.label else [""] * len(data)
        grammars: dict[str, Grammar] = defaultdict(Grammar)
        for tree, label in zip(trees, labels, strict=True):
            grammars[label].add(tree)
        rng, made, origin = run.numpy("lexicalized_pcfg"), [], []
        for row, (tree, label) in enumerate(zip(trees, labels, strict=True)):
            for _ in range(self.n if tree else 0):
                text = grammars[label].write(tree[-1][1], self.smooth, self.longest, rng)
                if text is not None and text not in seen:
                    seen.add(text)
                    made.append(text)
                    origin.append(row)
        return edits.added(data, {"text": made}, np.array(origin, np.int64))
