from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.keeping import Best
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def purchase(budget: float, share: float, weak_cost: float = 1.0, strong_cost: float = 10.0) -> tuple[int, int]:
    """Weak and strong labels that a budget buys when `share` of it goes to strong ones; what is left over buys weak."""
    strong = int(share * budget / strong_cost + 1e-9)
    return int((budget - strong * strong_cost) / weak_cost + 1e-9), strong


@method(
    name="label_budget",
    title="Balancing label quantity and quality",
    paper="arXiv:2410.13215",
    lit="p231",
    family="data/label",
    year=2024,
    tier="core",
    status="stable",
    code="EleutherAI/scalable-elicitation",
)
class LabelBudget(Fit):
    """Split a labelling budget between many cheap labels and few good ones, and train on the cheap ones first.

    ## What it does
    For each of `shares`, buys strong labels for that share of the budget and weak labels for the rest, trains on the
    weak rows, then from there with a fresh optimizer on the strong ones, and keeps of each stage the weights that are
    most accurate on a held-out fifth of its own rows. With several shares, the model that does best on `judge` is
    handed on.

        strong = floor(share * budget / strong_cost)
        weak = floor((budget - strong * strong_cost) / weak_cost)

    `about["label_budget"]` of the model has the whole frontier: labels bought, their price, and accuracy on `judge`.

    ## Claim
    Eliciting classifiers from pretrained language models on binary text tasks: all weak wins at tiny budgets, all
    strong at large ones, and in between a mixture, trained in this order, beats either alone at the same cost.

    ## Cost
    Two trainings for each share, and a pass over the held-out rows `checks` times in each.

    ## Fields worth tuning
    The costs, which you know. The paper's sweep: shares 0, .05, .2, .4, .6, .8, .95 and 1 at a cost of 10 to 1.

    ## Watch out
    With several shares `judge` takes part in training: report on other rows. The rows of `strong` should not be among
    the weak ones. Which regime you are in depends on how wrong the weak labels are in a way the model can learn. On
    digits, with weak labels of a small network (70% right) at a tenth of the price, all weak won at a budget of 200
    (0.65 against 0.38 for all strong, 3 seeds). The mixed regime was not reproduced here: at 1,000, with four fifths
    for strong labels, it was 1.5 points below the better of the two alone (20 seeds, p 0.3), which is the better by
    chance too.

    ## Differs from the paper
    Here the model that is elicited is any classifier, not a large pretrained one whose knowledge is the point. Its
    few-shot prompt before fine-tuning (up to 5 points), log-confidence loss and active choice of rows for strong labels
    are left out. A stage holds out 2 rows at least, none of fewer than 4; the weights it starts from are a candidate
    too, so that a stage that only harms is undone. Each stage has `steps`, as theirs have 30,000 rows whatever was
    bought.

    ## See also
    `noise_aware`, which mixes both kinds in one training.
    """

    strong: Data
    """Rows with good labels to buy from; the data of the step are those with cheap ones."""
    budget: float
    """What may be spent."""
    shares: tuple[float, ...] = (0.2,)
    """Share of the budget for strong labels; several are tried and judged."""
    judge: Data | None = None
    """Rows with good labels to choose among several shares by accuracy."""
    weak_cost: float = 1.0
    """Price of a cheap label."""
    strong_cost: float = 10.0
    """Price of a good label."""
    held_out: float = 0.2
    """Share of a stage's rows that only choose its weights; 0: the last weights."""
    checks: int = 10
    """How often in a stage the held-out rows are looked at."""
    steps: int = 200
    """Steps of each stage."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate of each stage."""

    tiny = {"world": "digits", "strong": "$test", "judge": "$data", "budget": 200.0, "shares": [0.0, 0.5],
            "steps": 10, "lr": 1e-2}  # fmt: skip

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        data.need("label", who="label_budget")
        self.strong.need("label", who="label_budget's `strong`")
        self._check(model)
        pools = {"weak": data, "strong": self.strong}
        order = {kind: run.numpy("label_budget", kind).permutation(len(rows)) for kind, rows in pools.items()}
        bought = [dict(zip(pools, purchase(self.budget, s, self.weak_cost, self.strong_cost))) for s in self.shares]
        for share, counts in zip(self.shares, bought, strict=True):
            for kind, count in counts.items():
                if count > len(pools[kind]):
                    at = f"budget={self.budget} at share {share}"
                    raise Bad(f"{at} buys {count} {kind} labels and there are {len(pools[kind])}: lower it")
            if not any(counts.values()):
                raise Bad(f"budget={self.budget} buys no label at share {share}: raise it")
        best, frontier = None, []
        for share, counts in zip(self.shares, bought, strict=True):
            made = model.copy()
            for kind, count in counts.items():
                if count:
                    self._stage(run, made, pools[kind].take(order[kind][:count]))
            accuracy = None if self.judge is None else _accuracy(run, made, self.judge)
            price = counts["weak"] * self.weak_cost + counts["strong"] * self.strong_cost
            frontier.append({"share": share, **counts, "cost": price, "accuracy": accuracy})
            if best is None or (accuracy or 0.0) > best[0]:
                best = (accuracy or 0.0, made)
        chosen = best[1]  # type: ignore[index]
        chosen.about["label_budget"] = frontier
        return chosen

    def _check(self, model: Model) -> None:
        if model.kind != "classifier":
            raise Bad(f"label_budget is for classifiers, not a {model.kind}")
        if not self.shares or not all(0 <= s <= 1 for s in self.shares):
            raise Bad(f"shares={self.shares}: give shares of the budget, from 0 to 1")
        if len(self.shares) > 1 and self.judge is None:
            raise Bad(f"{len(self.shares)} shares need a `judge`: rows with good labels to choose by")
        paid = min(self.budget, self.weak_cost, self.strong_cost) > 0 and self.budget < np.inf
        if not paid or not 0 <= self.held_out < 1 or self.checks < 1:
            raise Bad("budget and costs must be above 0 and finite, held_out from 0 to below 1, checks at least 1")

    def _stage(self, run: Run, model: Model, rows: Data) -> None:
        """Train the model in place on these rows."""
        out = max(2, int(self.held_out * len(rows))) if self.held_out and len(rows) > 3 else 0
        parts = (Best(rows=rows.take(range(out)), every=max(1, self.steps // self.checks)),) if out else ()
        how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
        run.fit(model, rows.take(range(out, len(rows))), *parts, **how)


def _accuracy(run: Run, model: Model, rows: Data) -> float:
    rows.need("label", who="label_budget's `judge`")
    return float((run.infer(model, rows, lambda batch, out: out.argmax(-1)).numpy() == rows["label"]).mean())
