from __future__ import annotations

import numpy as np
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.losses import rowwise
from trainlore.runs import Run
from trainlore.verbs import Curate, Part, method


@method(
    name="tuned_generator",
    title="Synthetic rows from a fine-tuned teacher",
    paper="arXiv:2310.01119",
    lit="p403",
    family="data/synthesize",
    year=2023,
    tier="core",
    status="stable",
)
class TunedGenerator(Curate):
    """Add rows that a large language model, tuned on the few labelled ones, labels or writes for a small model to learn from.

    ## What it does
    A copy of `model` is tuned to name the class c of a labelled text x. It labels the texts of `unlabelled` (annotation).
    Another copy is tuned to write a text when asked for its class; it writes `n` for each labelled row, asked for one of the
    same class, and the first names the class of those too (generation):

        c' = argmax p(c | x')     p(c | x) ~ P_1(name of c | ask(x)),  over the classes     x' found, or ~ P_2(. | write(c))

    A row stays whose likeliest class has at least the share `sure` and whose text is not there yet. `source` says "gold",
    "annotated" or "written", `sure` the share.

    ## Claim
    GPT-NeoX of 20 B teaches RoBERTa-Large (four sets of classification) and BART-Large (two of writing): both ways help much,
    the more the fewer rows there are, at times with a small part of the training set; 125 rows (5 %) for the teacher are some
    points for the student.

    ## Cost
    A tuning, or two where texts are written; `n` texts a row; a pass with each class over each unlabelled and written text.

    ## Fields worth tuning
    `steps` and `lr`, `sure`, `n` where nothing is unlabelled.

    ## Watch out
    The student learns the teacher's mistakes: one no better than a student of the gold rows alone teaches nothing. Tuned too
    fast, a small teacher named one class for all texts: look at the classes of the new rows. A model that has not learned the
    language writes noise, and will label it. Not reproduced here: 200 texts labelled by a tiny Llama gave a bag of words with 20
    rows 1.7 points (n = 10, interval -0.4 to 3.8).

    ## Differs from the paper
    Read from its abstract and others' summaries: its prompts, how many rows it adds, whether it drops copies or asks for a class
    were not to be seen. Labels are chosen by likelihood among the classes, never written freely: tasks of writing are not here.

    ## See also
    `class_generator`, a model for each class and a filter by embedding; `self_training`, where the student is its own teacher.
    """

    model: Model
    """The teacher before tuning: a causal or a seq2seq model."""
    unlabelled: Data | None = None
    """Texts to be labelled; none: only written ones are added."""
    n: int = 5
    """Texts written for each labelled row; 0: only found ones are added."""
    sure: float = 0.0
    """Share that the likeliest class must have for a row to stay."""
    label: str = "label"
    """Column of the class: whole numbers or names."""
    ask: str = "{}\nClass:"
    """Asks for the class; the braces take the text."""
    write: str = "A text of class {}:"
    """Asks for a text; the braces take the class."""
    new: int = 64
    """Tokens of a written text, at most."""
    temperature: float = 1.0
    """Of the writing: higher is more varied."""
    top_k: int | None = None
    """Tokens the writing chooses among at each place; none: all."""
    inner: tuple[Part, ...] = ()
    """Parts of the tuning."""
    steps: int = 300
    """Steps of the tuning."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-4
    """Learning rate of the tuning."""

    ranges = {"sure": [0.0, 0.99], "temperature": [0.5, 1.2]}
    tiny = {"world": "text", "model": "$prior", "unlabelled": "$held_out", "label": "domain", "n": 1, "new": 8, "steps": 4}  # fmt: skip

    def __call__(self, run: Run, data: Data) -> Data:
        if self.n < 0 or not 0 <= self.sure <= 1 or min(self.new, self.steps) < 1:
            raise Bad(f"n={self.n} must be at least 0, sure={self.sure} a share, new and steps at least 1")
        if not self.n and self.unlabelled is None:
            raise Bad("n=0 and nothing unlabelled: there is nothing to add; write some (n) or give texts (unlabelled)")
        if "{}" not in self.ask or "{}" not in self.write:
            raise Bad(f"ask={self.ask!r} and write={self.write!r} need braces {{}} where text and class go")
        data.need("text", self.label, who="tuned_generator")
        texts = list(data.text())
        kinds, which = np.unique(np.asarray(data[self.label]), return_inverse=True)
        if len(kinds) < 2:
            raise Bad(f"column {self.label!r} has the one value {str(kinds[0])!r}: there is nothing to tell apart")
        names = [f" {kind}" for kind in kinds]
        classes = {"prompt": [self.ask.format(t) for t in texts], "completion": [names[c] for c in which]}
        teacher = self._tuned(run, classes)
        found = [] if self.unlabelled is None else list(self.unlabelled.text())
        written = self._written(run, texts, [self.write.format(kinds[c]) for c in which]) if self.n else []
        more, gold = found + written, set(texts)
        first = {t: i for i, t in reversed(list(enumerate(more)))}  # of copies one stays
        at = np.array(sorted(i for t, i in first.items() if t and t not in gold), np.int64)
        share = self._shares(run, teacher, [more[i] for i in at], names)
        stay = share.max(1, initial=0) >= self.sure
        at, share = at[stay], share[stay]
        columns = {
            "text": texts + [more[i] for i in at],
            self.label: kinds[np.concatenate([which, share.argmax(1)])],
            "source": ["gold"] * len(texts) + ["annotated" if i < len(found) else "written" for i in at],
            "sure": np.concatenate([np.ones(len(texts)), share.max(1, initial=0)]),
        }
        return data.new(columns, parents=[[i] for i in data.ids.tolist()] + [[] for _ in at])

    def _tuned(self, run: Run, rows: dict[str, list[str]]) -> Model:
        how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr, "truncate": True}
        return run.fit(self.model.copy(), Data.of(rows), *self.inner, **how)

    def _written(self, run: Run, texts: list[str], asked: list[str]) -> list[str]:
        """What a second teacher, tuned to write, answers to each question n times."""
        writer = self._tuned(run, {"prompt": asked, "completion": [" " + t for t in texts]})
        asked = asked * self.n
        said = run.generate(writer, asked, self.new, self.temperature, self.top_k, ("tuned_generator",))
        return [t.strip() for t in said]

    def _shares(self, run: Run, teacher: Model, texts: list[str], names: list[str]) -> np.ndarray:
        """The teacher's share of each class for each text, float64 (M, K): of the class names alone, not of all it could say."""
        if not texts:
            return np.zeros((0, len(names)))

        def likelihood(batch: Batch, out: Tensor) -> Tensor:
            return -rowwise(teacher.kind, batch, out).sum(1)

        rows = {"prompt": [self.ask.format(t) for t in texts for _ in names], "completion": names * len(texts)}
        score = run.infer(teacher, Data.of(rows), likelihood).double().reshape(len(texts), len(names))
        return score.softmax(1).numpy()
