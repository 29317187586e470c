from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives import edits
from trainlore.runs import Run
from trainlore.verbs import Curate, method

HEADS = {  # label of a phrase -> how the label of its head begins, the likeliest first; where there are several, the last of NP
    "S": ("VP", "S"), "SINV": ("VP", "S"), "SQ": ("VP", "V", "MD"), "SBAR": ("S", "IN"), "SBARQ": ("SQ", "S"),
    "VP": ("V", "MD", "TO"), "NP": ("N", "PRP", "CD", "JJ"), "PP": ("IN", "TO"), "ADJP": ("J", "VB"), "ADVP": ("RB",),
    "WHNP": ("W", "N"), "QP": ("CD",), "PRT": ("RP",),
}  # fmt: skip


class Node(NamedTuple):
    """A phrase or word with its head: label, head word, and the label over the head word."""

    label: str
    head: str
    tag: str


Rule = tuple["Node | str", ...]


class Grammar:
    """How often each phrase with its head became which children, and which phrase begins each tree."""

    def __init__(self) -> None:
        self.exact: dict[Node, Counter[Rule]] = defaultdict(Counter)
        self.loose: dict[tuple[str, str], Counter[Rule]] = defaultdict(Counter)
        self._sums: dict[object, tuple[list[Rule], np.ndarray]] = {}

    def add(self, rules: Iterable[tuple[Node, Rule]]) -> None:
        """Count the rules of a tree."""
        for node, children in rules:
            self.exact[node][children] += 1
            self.loose[node.label, node.tag][children] += 1

    def choose(self, node: Node, smooth: float, rng: np.random.Generator) -> Rule:
        """Children for a phrase: by its head word n / (n + smooth) of the time, n its count, else by label and tag alone."""
        seen = self.exact[node].total()
        key = node if rng.random() * (seen + smooth) < seen else (node.label, node.tag)
        if key not in self._sums:
            counts = self.exact[node] if key is node else self.loose[node.label, node.tag]
            self._sums[key] = list(counts), np.cumsum(list(counts.values()))
        rules, upto = self._sums[key]
        return rules[int(np.searchsorted(upto, rng.random() * upto[-1], side="right"))]

    def write(self, root: Rule, smooth: float, longest: int, rng: np.random.Generator) -> str | None:
        """A sentence from the children of a root; None where it grows beyond `longest` words."""
        words, todo = [], list(reversed(root))
        while todo:
            item = todo.pop()
            if isinstance(item, str):
                words.append(item)
            else:
                todo.extend(reversed(self.choose(item, smooth, rng)))
            if len(words) + len(todo) > longest:
                return None
        return " ".join(words)


def rules_of(bracketed: str) -> list[tuple[Node, Rule]]:
    """The rules of a tree in brackets, "(S (NP (PRP it)) (VP (VBZ rains)))", with heads; that of the root last."""
    rules: list[tuple[Node, Rule]] = []
    open_: list[list] = []
    for token in re.findall(r"[()]|[^\s()]+", bracketed):
        if token == "(":
            open_.append([])
        elif token != ")":
            if not open_:
                raise Bad(f"parse {bracketed[:60]!r} has a word outside of all brackets")
            open_[-1].append(token)
        else:
            if not open_ or not open_[-1]:
                raise Bad(f"parse {bracketed[:60]!r} has an empty or unopened bracket")
            label, children = (open_[-1][0], open_.pop()[1:]) if isinstance(open_[-1][0], str) else ("TOP", open_.pop())
            if not children:
                raise Bad(f"parse {bracketed[:60]!r} has the label {label!r} over nothing")
            node = headed(label, children)
            rules.append((node, tuple(children)))
            if open_:
                open_[-1].append(node)
    if open_ or not rules:
        raise Bad(f"parse {bracketed[:60]!r} has a bracket that is never closed, or none at all")
    return rules


def headed(label: str, children: list) -> Node:
    """The phrase of this label over these children, with the head that the table of heads gives it."""
    if isinstance(children[0], str):
        return Node(label, children[0], label)
    kind = re.split(r"[-=]", label)[0] or label
    order = list(reversed(children)) if kind.startswith(("N", "Q")) else children
    heads = (
        c for start in HEADS.get(kind, (kind,)) for c in order if isinstance(c, Node) and c.label.startswith(start)
    )
    head = next(heads, order[0])
    return Node(label, head.head, head.tag) if isinstance(head, Node) else Node(label, head, label)


def chain_of(text: str) -> list[tuple[Node, Rule]]:
    """A text as a tree that branches to the right: each phrase is a word, its head, and the phrase of the words that follow."""
    words = text.split()
    nodes = [Node("S", w, "W") for w in words]
    return [(nodes[i], (words[i], *nodes[i + 1 : i + 2])) for i in reversed(range(len(words)))]


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

    with n = count(X, h). New sentences keep the topmost rule of a row, which is in their `parents`, and draw the rest. They
    are of the class whose grammar wrote them; a sentence that is a row already, or came before, is dropped.

    ## Claim
    Few labelled rows and many unlabelled, BERT with self-training: better than other augmentations; and training on all real
    rows while validating on augmented ones beats holding real rows back.

    ## Cost
    No model, but trees drawn one by one in Python: about 20 microseconds a word. The parses are the caller's.

    ## Fields worth tuning
    `smooth`: 0 recombines only phrases with the same head, which in a few rows is next to nothing; more gives more variety
    and less sense.

    ## Watch out
    Without `parses` each text is read as a chain that branches to the right, and the grammar is then a bigram model of the
    class smoothed with its single words: plausible from word to word and no further. Our claim tries only that, for we have no
    parsed rows with classes, and a bag of words was level with and without it (n = 10): not reproduced here.

    ## Differs from the paper
    The authors parse with benepar and spaCy, collect the phrases under each label, widen them with WordNet synonyms and string
    phrases together until a length is reached; their code keeps no head in its rules. Here the grammar is one whose rules do
    have heads, as the abstract says, found by a short table of head labels, and no word comes from outside. Not here: their
    splits and the self-training.

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
