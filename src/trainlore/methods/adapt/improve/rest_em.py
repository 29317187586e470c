from __future__ import annotations

from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def first_correct(prompts: np.ndarray, right: np.ndarray, most: int) -> np.ndarray:
    """Positions of the correct answers to keep, the first `most` of each prompt: int (M,), bool (M,) -> int (K,)."""
    good = np.flatnonzero(right)
    order = good[np.argsort(prompts[good], kind="stable")]
    start = np.searchsorted(prompts[order], prompts[order], side="left")  # where each prompt's answers begin
    return np.sort(order[np.arange(len(order)) - start < most])


@method(
    name="rest_em",
    title="ReST-EM",
    paper="arXiv:2312.06585",
    lit="p384",
    family="adapt/improve",
    year=2023,
    tier="llm",
    status="stable",
)
class ReSTEM(Fit):
    """Write many answers, keep those that check out, tune the first model on them, and go round again.

    ## What it does
    Expectation: the present model writes `samples` answers to every prompt; a check that can only say right or wrong
    keeps some, at most `keep` a prompt, so that easy prompts do not crowd out the rest.
    Maximization: the model as it was given, never the last round's, is fine-tuned on what was kept.

        J(theta) = mean over written (x, y) of  r(x, y) log p_theta(y | x)        r = 1 if right, else 0

    With rows in `held_out` the model of the round that answers most of them is handed back, else the last round's.

    ## Claim
    PaLM 2 on MATH and APPS: more held-out problems solved than after fine-tuning on human solutions, the larger the model the
    more. MATH goes on improving for two or three rounds, APPS gets worse after the first.

    ## Cost
    Rounds x prompts x samples answers written, and a fine-tuning a round.

    ## Fields worth tuning
    `samples`: 32 (MATH) and 64 (APPS) in the paper. `rounds`: 1 to 3, chosen on held-out prompts.

    ## Watch out
    Prompts the model never gets right teach nothing, and nothing is written to a round in which no answer is right: then the
    model is handed back as it is. A right answer for a wrong reason is kept. Few prompts and many rounds overfit.

    ## Differs from the paper
    `steps` are given instead of stopping each tuning when the held-out reward falls. Repeated answers stay, as in the
    paper. Its few-shot prompts are the caller's: put them into `prompt`.

    ## See also
    `exact_match` measures it.
    """

    correct: Any = None
    """(prompts, answers), lists of str -> an array of bool; none: the answer must be the row's `completion`."""
    rounds: int = 2
    """How often to write and tune."""
    samples: int = 32
    """Answers written to each prompt in a round."""
    keep: int = 10
    """Right answers kept at most of each prompt."""
    new: int = 32
    """Tokens an answer may have."""
    temperature: float = 0.7
    """Of the writing."""
    top_k: int | None = 40
    """Tokens the writing chooses among at each place; none: all."""
    held_out: Data | None = None
    """Prompts to choose the round by."""
    parts: tuple[Any, ...] = ()
    """Parts of the fine-tuning."""
    steps: int = 100
    """Steps of each fine-tuning."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-4
    """Learning rate of the fine-tuning."""

    tiny = {"world": "sums", "rounds": 1, "samples": 4, "new": 3, "steps": 4, "lr": 1e-3}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        for name in ("rounds", "samples", "keep", "new", "steps"):
            if getattr(self, name) < 1:
                raise Bad(f"{name} must be at least 1; it is {getattr(self, name)}")
        self._check(data)
        best, writer = (-1.0, model), model
        for round_ in range(self.rounds):
            kept = self._kept(run, writer, data, round_)
            if not len(kept):
                break
            writer = run.fit(model.copy(), kept, *self.parts, steps=self.steps, batch_size=self.batch_size, lr=self.lr)
            reward = self._reward(run, writer, self.held_out) if self.held_out is not None else float(round_)
            best = max(best, (reward, writer), key=lambda pair: pair[0])
        return best[1] if best[1] is not model else model.copy()

    def _check(self, data):
        needed = {"prompt"} if self.correct else {"prompt", "completion"}
        if missing := needed - set(data.columns):
            raise Bad(f"rest_em needs column {' and '.join(sorted(missing))}; there are {', '.join(data.columns)}")
        if not len(data):
            raise Bad("rest_em was given no rows with prompts")

    def _right(self, data, positions, answers):
        """Which answers (M,) to the prompts at these positions are right: bool (M,)."""
        answers = [a.strip() for a in answers]
        if self.correct is None:
            wanted = [c.strip() for c in data.text("completion")]
            return np.array([a == wanted[p] for a, p in zip(answers, positions, strict=True)])
        prompts = list(data.text("prompt"))
        return np.asarray(self.correct([prompts[p] for p in positions], answers), dtype=bool)

    def _kept(self, run, writer, data, round_):
        """New rows of prompt and right answer, each with the row it came from as its parent."""
        prompts = list(data.text("prompt"))
        positions = np.repeat(np.arange(len(data)), self.samples)
        answers = run.generate(
            writer,
            [prompts[p] for p in positions],
            new=self.new,
            temperature=self.temperature,
            top_k=self.top_k,
            key=("rest_em", round_),
        )
        kept = first_correct(positions, self._right(data, positions, answers), self.keep)
        columns = {"prompt": [prompts[positions[k]] for k in kept], "completion": [answers[k].strip() for k in kept]}
        return data.new(columns, parents=data.ids[positions[kept]])

    def _reward(self, run, writer, data):
        """Share of prompts answered right, greedily."""
        self._check(data)
        answers = run.generate(
            writer, list(data.text("prompt")), new=self.new, temperature=0.0, key=("rest_em", "held_out")
        )
        return float(self._right(data, np.arange(len(data)), answers).mean())
