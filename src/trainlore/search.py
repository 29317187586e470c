"""Ranked search over cards and paper titles, offline and without loading torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

STOP = set(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "how",
        "i",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "that",
        "the",
        "this",
        "to",
        "what",
        "when",
        "where",
        "which",
        "with",
        "my",
        "do",
        "does",
        "can",
        "we",
    ]
)
WEIGHT = {"name": 4.0, "title": 4.0, "summary": 3.0, "family": 2.0, "doc": 1.0}


def words(text: str) -> list[str]:
    """Lower-case word stems: enough for labels, labelled and labelling to meet."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return [re.sub(r"(ations?|ings?|ers?|ies|ed|es|s|e)$", "", w) if len(w) > 4 else w for w in found if w not in STOP]


def search(question: str, top: int = 10) -> list[dict[str, Any]]:
    """The methods and papers that fit a question best: objects of name, what, text, score."""
    from trainlore.papers import papers
    from trainlore.registry import index

    documents: list[tuple[dict[str, Any], Counter]] = []
    for name, e in index().items():
        bag: Counter[str] = Counter()
        texts = {
            "name": name.replace("_", " "),
            "title": e["card"]["title"],
            "summary": e["summary"],
            "family": e["card"]["family"],
            "doc": e["doc"],
        }
        for part, text in texts.items():
            for w in words(text):
                bag[w] += WEIGHT[part]  # type: ignore[assignment]
        documents.append(({"name": name, "what": "method", "text": e["summary"]}, bag))
    for paper in papers(index()):
        if not paper["methods"]:
            bag = Counter({w: 2.0 * n for w, n in Counter(words(paper["title"] + " " + paper["family"])).items()})
            documents.append(({"name": paper["id"], "what": "paper", "text": paper["title"]}, bag))
    asked = set(words(question))
    mean = sum(sum(b.values()) for _, b in documents) / max(1, len(documents))
    seen = {w: sum(w in b for _, b in documents) for w in asked}
    found = []
    for what, bag in documents:
        size = sum(bag.values())
        score = 0.0
        for w in asked & bag.keys():  # BM25
            rare = math.log(1 + (len(documents) - seen[w] + 0.5) / (seen[w] + 0.5))
            score += rare * bag[w] * 2.2 / (bag[w] + 1.2 * (0.25 + 0.75 * size / mean))
        if score:
            score *= len(asked & bag.keys()) / len(asked)  # all of the words in a text before one word in a title
            found.append({**what, "score": round(score * (1.5 if what["what"] == "method" else 1.0), 3)})
    return sorted(found, key=lambda f: -f["score"])[:top]
