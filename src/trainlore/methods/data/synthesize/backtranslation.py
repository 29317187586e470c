from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import take_budget
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.verbs import Curate, Part, method

RUBRIC = """Rate from 1 to 5 how good an example this answer is of what an assistant should say to the instruction.
1: beside the point or incomplete. 2: on the subject, but no answer. 3: helpful, but told like a web page or one's own life.
4: clear, complete and to the point, with small faults. 5: without fault, expert, and every sentence serves the instruction.
First say why in a sentence, then write "Score: " and the number.

Instruction: {prompt}

Answer: {completion}

"""


def ratings(said: Iterable[str]) -> np.ndarray:
    """The last "Score: x" in each text, float64 (N,); nan where there is none."""
    found = [re.findall(r"[Ss]core:\s*(\d+(?:\.\d+)?)", text) for text in said]
    return np.array([float(numbers[-1]) if numbers else np.nan for numbers in found])


@method(
    name="backtranslation",
    title="Instruction backtranslation (Humpback)",
    paper="arXiv:2308.06259",
    lit="p393",
    family="data/synthesize",
    year=2023,
    tier="core",
    status="stable",
)
class Backtranslation(Curate):
    """Write for each text of a pool the instruction it would answer, and keep the pairs that a tuned model finds good.

    ## What it does
    A copy of `model` is tuned on the seed turned round and writes an instruction x^ for every text y of the pool. Another is
    tuned on the seed as it is and scores the pairs; a fresh one on the seed and what passed scores them all again:

        x^ ~ p_back(. | y)     M_t = tuned(seed + A_t)     A_0 = {}     A_t+1 = {(x^, y) : its score by M_t passes}

    The score is what M_t answers to the rubric, and `least` of 5 points pass; without a rubric it is the mean of
    log M_t(y | x^) over the tokens of y, and the best `keep` pass. Gives the seed and the last A, each with its tag in the
    prompt: `source` is "seed" or "pool", `score` the last score, `origin` the id in the pool (-1: none).

    ## Claim
    LLaMA, 3,200 seed pairs and 502,133 pieces of web text, of which 41,821 pass the second time: 83.7 % wins against
    text-davinci-003 on AlpacaEval at 65 B, the most of what was not distilled from another model (LIMA: 62.7). Without curation
    more pairs do not help.

    ## Cost
    1 + `rounds` trainings, an instruction written for each text, and a rating (without a rubric: a pass) for each pair and round.

    ## Fields worth tuning
    `least` or `keep`; `steps`; `rounds`.

    ## Watch out
    A small model follows no rubric: set it to none. Likelihood favours plain texts and, from the second round on, those it was
    trained on. Clean the pool first (`near_duplicates`, `quality_rules`). Ask the trained model with the seed's tag. Not
    reproduced here: by likelihood and after one round the share of a wrong style in the pool fell to half of its 30 %, but a
    tiny Llama learned no better from what stayed than from as many random pairs (n = 16).

    ## Differs from the paper
    Rubric and tags are in our words; temperature 0.7 without its nucleus of 0.9. The score by likelihood, under the seed's
    tag, is ours.

    ## See also
    `feedback_self_training`; `restructured_signals`, which finds pairs instead of writing them.
    """

    model: Model
    """The model that is copied and tuned for every task: one that writes."""
    pool: Data
    """Texts that could be answers."""
    output: str = "text"
    """Their column in the pool."""
    rubric: str | None = RUBRIC
    """What a judge is asked, with {prompt} and {completion}, to be answered with "Score: 1" to 5; none: likelihood."""
    least: float = 4.5
    """Points from which on a pair passes the rubric."""
    keep: float = 0.08
    """Share of the pairs that pass where there is no rubric."""
    rounds: int = 2
    """Scorings, each by a model trained on what passed before; 0: no curation, every pair stays."""
    back: str = "{}\n\nWhat was asked for: "
    """What the backward model is asked; the braces take the answer."""
    tags: tuple[str, str] = ("Answer as an assistant.\n{}", "Answer with what is known from the web.\n{}")
    """The prompts of seed and pool rows; the braces take the instruction."""
    new: int = 64
    """Tokens of an instruction, at most."""
    temperature: float = 0.7
    """Of writing instructions and ratings."""
    inner: tuple[Part, ...] = ()
    """Parts of every training."""
    steps: int = 300
    """Steps of every training."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-4
    """Learning rate of every training."""

    ranges = {"keep": [0.02, 0.5, "log"]}
    tiny = {"world": "sums", "model": "$model", "pool": "$test", "output": "completion", "rubric": None, "steps": 4, "new": 6}  # fmt: skip

    def __call__(self, run: Run, data: Data) -> Data:
        if self.rounds < 0 or min(self.new, self.steps) < 1 or not 0 < self.keep <= 1:
            raise Bad("rounds must be at least 0, new and steps at least 1, and keep a share above 0")
        if not all("{}" in form for form in (self.back, *self.tags)):
            raise Bad(f"back={self.back!r} and tags={self.tags!r} need braces {{}} where the text goes")
        data.need("prompt", "completion", who="backtranslation")
        self.pool.need(self.output, who="backtranslation's `pool`")
        prompts, completions = list(data.text("prompt")), list(data.text("completion"))
        seed = _pairs(self.tags[0], prompts, completions)
        writer = self._tuned(run, _pairs(self.back, completions, prompts))
        answers = list(self.pool.text(self.output))
        backward = [self.back.format(y) for y in answers]
        said = run.generate(writer, backward, self.new, self.temperature, key=("backtranslation",))
        at = np.flatnonzero([bool(x.strip() and y.strip()) for x, y in zip(said, answers, strict=True)])
        if not len(at):
            raise Bad(f"no instruction was written for any row of the pool: raise steps={self.steps}")
        asked, answers = [said[i].strip() for i in at], [answers[i] for i in at]
        made, picked, score = _pairs(self.tags[1], asked, answers), np.arange(len(at)), np.full(len(at), np.nan)
        for t in range(self.rounds):
            judge = self._tuned(run, seed.join(made.take(picked)) if t else seed)
            score = self._scores(run, judge, asked, answers, t)
            picked = np.flatnonzero(score >= self.least) if self.rubric else take_budget(score, self.keep)
            if not len(picked):
                raise Bad(f"no pair was rated least={self.least} or better: lower it, or set rubric to none")
        every = seed.join(made.take(picked))
        columns = {
            "prompt": every["prompt"],
            "completion": every["completion"],
            "source": ["seed"] * len(seed) + ["pool"] * len(picked),
            "score": np.concatenate([np.full(len(seed), np.nan), score[picked]]),
            "origin": np.concatenate([np.full(len(seed), -1), self.pool.ids[at[picked]]]),
        }
        return data.new(columns, parents=[[i] for i in data.ids.tolist()] + [[] for _ in picked])

    def _tuned(self, run: Run, rows: Data) -> Model:
        how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr, "truncate": True}
        return run.fit(self.model.copy(), rows, *self.inner, **how)

    def _scores(self, run: Run, judge: Model, asked: list[str], answers: list[str], t: int) -> np.ndarray:
        """The score of every pair, float64 (M,)."""
        if self.rubric:
            questions = [self.rubric.format(prompt=x, completion=y) for x, y in zip(asked, answers, strict=True)]
            return ratings(run.generate(judge, questions, 128, self.temperature, key=("backtranslation", t)))
        rows = _pairs(self.tags[0], asked, answers)
        loss = run.infer(judge, rows, lambda batch, out: per_row(rowwise(judge.kind, batch, out), batch, judge.kind))
        return -loss.double().numpy()


def _pairs(form: str, asked: list[str], said: list[str]) -> Data:
    return Data.of({"prompt": [form.format(x) for x in asked], "completion": said})
