"""What was planted and what was found: wrong labels, a wanted domain, copies and leaked test rows, each against chance.

Precision: the share of what a method pointed at that was planted; recall: the share of what was planted that it pointed at. Means over seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

import trainlore as tl
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import tiny, two_domains

SEEDS = 3
Found = tuple[np.ndarray, np.ndarray]  # positions pointed at, and which rows were planted (bool)


def tell(what: str, ways: dict[str, Callable[[int], Found]]) -> None:
    print(what)
    for name, way in ways.items():
        scores = []
        for seed in range(SEEDS):
            pointed, planted = way(seed)
            hits = planted[pointed].sum()
            scores.append((hits / max(1, len(pointed)), hits / planted.sum(), len(pointed)))
        precision, recall, n = np.mean(scores, 0)
        print(f"  {name:24s} precision {precision:.2f}   recall {recall:.2f}   ({n:,.0f} rows)")


def wrong_labels() -> None:
    """A fifth of the labels of 1,000 digits are wrong."""
    rows = Data.of("world:digits/noisy")
    wrong = rows["label"] != rows["truth"]

    def dropped(make: Callable[[int], tl.verbs.Curate]) -> Callable[[int], Found]:
        return lambda seed: (np.setdiff1d(np.arange(len(rows)), make(seed)(Run(seed), rows).ids), wrong)

    def largest(score: Callable[[int], np.ndarray]) -> Callable[[int], Found]:
        return lambda seed: (np.argsort(-score(seed))[: int(wrong.sum())], wrong)

    def early(seed: int) -> tuple:
        how = {"epochs": 4, "lr": 1e-2, "precision": "fp32"}
        return tuple(Run(10 * seed + k).fit(preset("mlp", seed=10 * seed + k), rows, **how) for k in range(3))

    def loss(seed: int) -> np.ndarray:
        of = lambda b, o: torch.nn.functional.cross_entropy(o, b["labels"], reduction="none")
        return Run(seed).infer(early(seed)[0], rows, of).numpy()

    def el2n(seed: int) -> np.ndarray:
        return tl.EL2N(proxies=early(seed), keep=1.0)(Run(seed), rows)["el2n"]

    def forgotten(seed: int) -> np.ndarray:
        scored = tl.InfluenceScores(model=preset("mlp", seed=seed), score="forgetting", keep=1.0, by_class=False, epochs=20.0, lr=1e-2)  # fmt: skip
        return scored(Run(seed), rows)["forgetting"]

    tell(
        f"wrong labels: {int(wrong.sum())} of {len(rows):,} digits",
        {
            "aum": dropped(lambda seed: tl.AUM(model=preset("mlp", seed=seed), epochs=40.0)),
            "el2n, the highest fifth": largest(el2n),
            "forgetting, the highest": largest(forgotten),
            "loss after 4 epochs": largest(loss),
            "random rows": dropped(lambda seed: tl.RandomRows(keep=0.8)),
        },
    )


def wanted_domain() -> None:
    """A twentieth of a pool of 2,000 texts is of the domain that the target is of."""

    def pool(seed: int) -> tuple[Data, Data]:
        many = Data(two_domains.make(1900, seed, ("a", "b"))).join(Data(two_domains.make(100, seed + 50, ("c",))))
        return many, Data(two_domains.make(100, seed + 90, ("c",)))

    def kept(make: Callable[[Data], tl.verbs.Curate]) -> Callable[[int], Found]:
        def way(seed: int) -> Found:
            rows, target = pool(seed)
            return make(target)(Run(seed), rows).ids, np.asarray(rows["domain"]) == "c"

        return way

    prior = tiny.world("text")["prior"]
    tell(
        "a wanted domain: 100 of 2,000 texts, 100 chosen",
        {
            "dsir": kept(lambda t: tl.DSIR(target=t, keep=0.05, min_words=5, noise=False)),
            "dfn": kept(lambda t: tl.DFN(trusted=t, keep=0.05)),
            "rds": kept(lambda t: tl.RDS(target=t, encoder=prior, keep=0.05)),
            "random rows": kept(lambda t: tl.RandomRows(keep=0.05)),
        },
    )


def copies() -> None:
    """A fifth of 2,000 texts are copies, half of these with two words exchanged."""

    def made(seed: int) -> tuple[Data, np.ndarray]:
        rng, texts = np.random.default_rng(seed), two_domains.make(1600, seed)["text"].to_pylist()
        texts = [" ".join(texts[k : k + 3]) for k in range(len(texts))]  # long enough that two words are few
        planted = []
        for k, source in enumerate(rng.choice(1600, 400, replace=False)):
            words = texts[source].split()
            for at in rng.choice(len(words), 2 * (k % 2), replace=False):
                words[at] = "zzz"
            planted.append(" ".join(words))
        return Data.of([*texts, *planted]), np.arange(2000) >= 1600

    def dropped(step: tl.verbs.Curate) -> Callable[[int], Found]:
        def way(seed: int) -> Found:
            rows, planted = made(seed)
            return np.setdiff1d(np.arange(2000), step(Run(seed), rows).ids), planted

        return way

    tell(
        "copies: 400 of 2,000 texts, half of them with two words changed",
        {"exact_duplicates": dropped(tl.ExactDuplicates()), "near_duplicates": dropped(tl.NearDuplicates(threshold=0.7)),
         "random rows": dropped(tl.RandomRows(keep=0.8))},
    )  # fmt: skip


def leaks() -> None:
    """100 of 2,000 texts hold one of 100 test rows in their middle."""

    def way(seed: int) -> Found:
        texts = two_domains.make(2000, seed)["text"].to_pylist()
        tests = two_domains.make(100, seed + 50, ("c",))["text"].to_pylist()
        planted = np.random.default_rng(seed).permutation(2000) < 100
        leaked = iter(tests)
        rows = [f"{t} {next(leaked)} {t}" if p else t for t, p in zip(texts, planted, strict=True)]
        kept = tl.Decontaminate(tests=(Data.of(tests),))(Run(seed), Data.of(rows))
        return np.setdiff1d(np.arange(2000), kept.ids), planted

    tell("leaked test rows: 100 of 2,000 texts", {"decontaminate": way})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in (wrong_labels, wanted_domain, copies, leaks):
        part()
