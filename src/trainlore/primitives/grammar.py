"""Grammars whose rules have heads: counted from trees in brackets or from chains of words, and what they write."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from trainlore.errors import Bad

__all__ = ["Grammar", "Node", "Rule", "chain_of", "rules_of"]

HEADS = {  # label of a phrase -> how that of its head begins, the likeliest first; of several, the last in NP
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
        self._summed: dict[object, tuple[list[Rule], np.ndarray]] = {}

    def add(self, rules: Iterable[tuple[Node, Rule]]) -> None:
        """Count the rules of a tree."""
        self._summed.clear()
        for node, children in rules:
            self.exact[node][children] += 1
            self.loose[node.label, node.tag][children] += 1

    def choose(self, node: Node, smooth: float, rng: np.random.Generator) -> Rule:
        """Children for a phrase: n / (n + smooth) of the time, n its count, by its head word, else by label and tag."""
        seen = self._sums(node, self.exact)[1][-1]
        exact = rng.random() * (seen + smooth) < seen
        rules, upto = self._sums(node, self.exact) if exact else self._sums((node.label, node.tag), self.loose)
        return rules[int(np.searchsorted(upto, rng.random() * upto[-1], side="right"))]

    def _sums(self, key: Any, counts: dict[Any, Counter[Rule]]) -> tuple[list[Rule], np.ndarray]:
        """The rules of a phrase and their running counts, made once."""
        if key not in self._summed:
            self._summed[key] = list(counts[key]), np.cumsum(list(counts[key].values()))
        return self._summed[key]

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
    """A text as a tree that branches to the right: each phrase is a word, its head, and the phrase of what follows."""
    words = text.split()
    nodes = [Node("S", w, "W") for w in words]
    return [(nodes[i], (words[i], *nodes[i + 1 : i + 2])) for i in reversed(range(len(words)))]
