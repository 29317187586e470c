from __future__ import annotations

from copy import deepcopy

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.ngrams import Hasher
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method


def others(which: np.ndarray, values: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row with each value it has not, `samples` times: positions (M,) and values (M,).

    which: the value of each row (N,), in [0, values)."""
    row, shift, _ = np.indices((len(which), values - 1, samples)).reshape(3, -1)
    return row, (which[row] + shift + 1) % values


def bayes(texts: list[str], which: np.ndarray, values: int, asked: list[str], buckets: int = 1 << 16) -> np.ndarray:
    """The likeliest value of each asked text, int64 (len(asked),), by naive Bayes over hashed words and pairs of words,
    learned from texts whose value is known: which (N,) in [0, values)."""
    hasher, score = Hasher(2, buckets), np.empty((values, len(asked)))
    for value in range(values):
        mine = [t for t, v in zip(texts, which.tolist(), strict=True) if v == value]
        counts = hasher.counts(mine) + 1.0
        score[value] = np.log(len(mine)) + hasher.scores(asked, np.log(counts / counts.sum()))[0]
    return score.argmax(0)


@method(
    name="feedback_self_training",
    title="FAST (feedback-aware self-training)",
    paper="arXiv:2210.03167",
    lit="p442",
    family="data/augment",
    year=2022,
    tier="core",
    status="stable",
)
class FeedbackSelfTraining(Fit):
    """Train a writer to obey control codes on what it wrote for the other codes and a judge found obedient.

    ## What it does
    Rows are a prompt x, a completion y and an attribute a of y; the code of a is put before x. Where x hints at a, a
    model learns to follow x and not the code. So the first model writes, for each row, what it would be under every
    other value; a judge that sees the text alone keeps what has that value; and a fresh copy is trained on old and kept
    rows.

        keep (x, a', y')  if  judge(y') = a'        y' ~ p_1(. | a', x),  a' != a

    ## Claim
    Headlines, meta-reviews, advertisements: better control and language than codes alone, resampling by inverse
    propensity, PPLM and GeDi; without the judge 7 to 12 points of control are lost, with a weaker one few.

    ## Cost
    Two trainings, and (values - 1) * samples completions written for each row.

    ## Fields worth tuning
    `steps` (the first model must obey often enough to teach); `judge`, where words do not tell.

    ## Watch out
    Ask the model as it was trained: `code` with the value, then the prompt. What the judge gets wrong is learned. It
    makes the attribute independent of x, which is wrong where x decides it. `about["feedback_self_training"]` has the
    counts. Not reproduced here: a tiny Llama gained 4 points of control where prompt and code disagree (n = 10,
    interval -1 to 8).

    ## Differs from the paper
    The writer there is BART, the judge RoBERTa. Read from its abstract, the authors' data release and others' notes:
    the writer's code is not published. The paper's other remedy, to resample rows by p(a) / p(a | x), is not here.

    ## See also
    `rest_em`, which keeps right answers instead; `self_training` for classifiers.
    """

    control: str = "label"
    """Column of the attribute: whole numbers or names."""
    judge: Model | None = None
    """A text classifier whose classes are the values in order; none: naive Bayes over these completions' words."""
    samples: int = 1
    """Completions written for each row and other value; 0 trains on codes alone."""
    code: str = "{} "
    """What stands before the prompt; the braces take the value."""
    opening: int = 4
    """Where rows hold one `text`, how many of its words are the prompt."""
    new: int = 32
    """Tokens a completion may have."""
    temperature: float = 1.0
    """Of the writing."""
    top_k: int | None = None
    """Tokens the writing chooses among at each place; none: all."""
    inner: tuple[Part, ...] = ()
    """Parts of both trainings."""
    steps: int = 200
    """Steps of each training."""
    batch_size: int = 16
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate of each training."""

    tiny = {"world": "text", "control": "domain", "new": 8, "steps": 4}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.samples < 0 or min(self.opening, self.new, self.steps) < 1:
            raise Bad("samples must be at least 0, and opening, new and steps at least 1")
        if "{}" not in self.code:
            raise Bad(f'code={self.code!r} has no place for the value: write {{}} where it goes, as in "{{}} "')
        data.need(self.control, who="feedback_self_training")
        column = np.asarray(data[self.control])
        known, which = np.unique(column if column.dtype.kind in "biu" else column.astype(str), return_inverse=True)
        names = known.astype(str)  # in the order of the values: 2 before 10
        if len(names) < 2:
            raise Bad(f"column {self.control!r} has the one value {str(names[0])!r}: control needs two or more")
        prompts, completions = self._split(data)
        how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
        rows = _coded(self.code, prompts, names[which], completions)
        first = run.fit(model.copy(), rows, *self.inner, **how)
        first.tokenizer = deepcopy(first.tokenizer)  # writing leaves marks on it: the padding that batches need
        if not self.samples:
            return first
        row, value = others(which, len(names), self.samples)
        asked = [self.code.format(names[v]) + prompts[r] for r, v in zip(row, value, strict=True)]
        draw = {"new": self.new, "temperature": self.temperature, "top_k": self.top_k}
        written = run.generate(first, asked, key=("feedback_self_training",), **draw)
        if self.judge is None:
            seen = bayes(completions, which, len(names), written)
        else:
            seen = run.infer(self.judge, Data.of(written), lambda batch, out: out.argmax(-1)).numpy()
        at = np.flatnonzero((seen == value) & [bool(t.strip()) for t in written])
        more = _coded(self.code, [prompts[r] for r in row[at]], names[value[at]], [written[i] for i in at])
        taught = run.fit(model.copy(), rows.join(more), *self.inner, **how) if len(at) else first
        taught.about["feedback_self_training"] = {"written": len(written), "kept": len(at)}
        return taught

    def _split(self, data: Data) -> tuple[list[str], list[str]]:
        """Prompts and completions; of a text its first words and the rest."""
        if "text" in data.columns and "completion" not in data.columns:
            words = [t.split(" ") for t in data.text()]
            if not all(len(w) > self.opening for w in words):
                raise Bad(f"opening={self.opening}: some text has no more words than that; lower it or drop short rows")
            return [" ".join(w[: self.opening]) for w in words], [" " + " ".join(w[self.opening :]) for w in words]
        data.need("prompt", "completion", who="feedback_self_training")
        return list(data.text("prompt")), list(data.text("completion"))


def _coded(code: str, prompts: list[str], values: np.ndarray, completions: list[str]) -> Data:
    asked = [code.format(v) + p for v, p in zip(values, prompts, strict=True)]
    return Data.of({"prompt": asked, "completion": completions})
