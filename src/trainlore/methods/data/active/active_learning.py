from __future__ import annotations

from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.asking import answers, filled, kappa
from trainlore.primitives.uncertainty import entropy, predicted
from trainlore.runs import Run
from trainlore.verbs import Curate, Fit, Part, method


@method(
    name="active_learning",
    title="Pool-based active learning",
    family="data/active",
    year=1994,
    tier="core",
    status="stable",
)
class ActiveLearning(Fit):
    """Ask for the labels that would help most, train on them, and ask again.

    ## What it does
    Trains on the first labelled rows. Then, every round, `acquire` looks at the pool without its labels and with the
    network of now, and picks `count` rows; their labels are asked for, the rows go from the pool to the training rows,
    and the network is trained anew from the weights it was given. It stops after `rounds`, when the pool is empty, when
    a row asked for has no answer, or by a rule; the model's `about["asked"]` has rows, labels and both measures by
    round:

        agreement   mean of the last `window` kappas of successive networks on a fixed sample of the pool >= agreement
        certain     mean over the rest of the pool of entropy / log(classes) < certain

    ## Claim
    Fewer labels for the same accuracy than asking for random rows; how much fewer is up to `acquire`. Of `agreement`:
    where kappa is at least T > 0, F1 of two successive networks differs by at most 4 (1 - T) / T (arXiv:1504.06329).

    ## Cost
    `rounds` + 1 trainings, a pass over the pool a round for `acquire`, and one for the rule.

    ## Fields worth tuning
    `acquire`; `count`: small batches learn more from each label, BaaL's authors saw little loss up to some hundred.

    ## Watch out
    The rows asked for are no sample: error bars and thresholds from them are wrong; keep random rows for testing.
    Another network may do worse on them than on random rows. With few labels to begin with, a confident network asks
    for one class over and over. `about["waiting"]` lists asked rows without an answer: label them, run again, and it
    goes on.

    ## Differs from the paper
    No one paper: the loop is Lewis and Gale's (1994), the rules are small-text's (`agreement` after Bloodgood and
    Vijay-Shanker, there 3 and 0.99; `certain` after Zhu and others, 0.05), which compares changes of kappa.

    ## See also
    `uncertainty`, `bald`, `batch_bald`, `pcoreset` to ask; `hast` for the rows nobody was asked about; `trainlore
    label`.
    """

    pool: Data
    """Rows to ask about; those who pick never see their labels."""
    acquire: Curate
    """What picks: a selector with `count` (or `picks`, or a share `keep`); its `model` and `labelled` are filled in."""
    oracle: str | Data = "label"
    """Where labels come from: a column of the pool, or rows of `row` (an id of the pool) and `label`, or their file."""
    ids: str | None = None
    """The pool's column that `row` of the answers speaks of; none: the rows' ids (of a file, their places in it)."""
    learn: Fit | None = None
    """How to train, such as `hast`; its `unlabelled` is filled in. Without: plain training with `inner`."""
    inner: tuple[Part, ...] = ()
    """Parts of every plain training."""
    count: int = 10
    """Labels a round."""
    rounds: int = 10
    """Rounds of asking, at most."""
    restart: bool = True
    """Whether each training starts from the weights given, or goes on from the last ones."""
    agreement: float | None = None
    """Kappa at which to stop, such as 0.99; none: no such rule."""
    window: int = 3
    """How many kappas are averaged."""
    certain: float | None = None
    """Mean normalized entropy below which to stop, such as 0.05; none: no such rule."""
    steps: int = 100
    """Steps of each plain training."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate of each plain training."""

    tiny = {"world": "digits", "pool": "$spare", "oracle": "truth", "acquire": {"uncertainty": {}}, "rounds": 2,
            "steps": 5, "lr": 1e-2, "agreement": 0.99}  # fmt: skip

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        data.need("label", who="active_learning")
        self.pool.need(who="active_learning's `pool`")
        if self.count < 1 or self.rounds < 0 or self.window < 1:
            raise Bad(f"count={self.count}, rounds={self.rounds}, window={self.window}: give at least 1, 0 and 1")
        known = answers(self.pool, self.oracle, self.ids, "active_learning")
        rest = self.pool.without(*{"label", self.oracle if isinstance(self.oracle, str) else "label"})
        judged = rest.take(run.numpy("active_learning", "stop").permutation(len(rest))[:2000])
        told: list[dict[str, Any]] = []
        waiting: list[int] = []
        now = self._train(run, model, data, rest)
        before = self._classes(run, now, judged)
        for turn in range(1, self.rounds + 1):
            if not len(rest) or self._done(told):
                break
            asked = self._asked(run, now, data, rest)
            ids = asked.ids.tolist()
            if waiting := [i for i in ids if i not in known]:
                break
            labels = [known[i] for i in ids]
            data = data.join(asked.with_(label=np.array(labels, np.int64)))
            rest = rest.where(~np.isin(rest.ids, ids))
            now = self._train(run, model if self.restart else now, data, rest)
            told.append({"round": turn, "rows": ids, "labels": labels})
            after = self._classes(run, now, judged)
            if before is not None and after is not None:
                told[-1]["kappa"] = kappa(before, after)
            if self.certain is not None and len(rest):
                shares = predicted(run, now, rest)
                told[-1]["entropy"] = float(entropy(shares).mean() / np.log(shares.shape[1]))
            before = after
        now.about |= {"asked": told, "waiting": waiting}
        return now

    def _asked(self, run: Run, now: Model, data: Data, rest: Data) -> Data:
        count = min(self.count, len(rest))
        fill = {"model": now, "labelled": data, "count": count, "picks": count, "keep": count / len(rest)}
        asked = run.step(filled(self.acquire, fill), rest)
        if not len(asked) or not np.isin(asked.ids, rest.ids).all() or len(set(asked.ids.tolist())) < len(asked):
            raise Bad(f"acquire={type(self.acquire).__name__} must pick rows of the pool, each once, and at least one")
        return asked

    def _train(self, run: Run, model: Model, data: Data, rest: Data) -> Model:
        if self.learn is not None:
            return run.step(filled(self.learn, {"unlabelled": rest}), model.copy(), data)
        return run.fit(model.copy(), data, *self.inner, steps=self.steps, batch_size=self.batch_size, lr=self.lr)

    def _classes(self, run: Run, now: Model, judged: Data) -> np.ndarray | None:
        return None if self.agreement is None else predicted(run, now, judged).argmax(-1).numpy()

    def _done(self, told: list[dict[str, Any]]) -> bool:
        kappas = [t["kappa"] for t in told[-self.window :] if "kappa" in t]
        if self.agreement is not None and len(kappas) == self.window and np.mean(kappas) >= self.agreement:
            return True
        return self.certain is not None and bool(told) and told[-1].get("entropy", 1.0) < self.certain
