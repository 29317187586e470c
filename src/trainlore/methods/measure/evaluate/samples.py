"""See `Samples`."""

from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.runs import Run
from trainlore.verbs import Measure, method


def overlap(written: str, reference: str) -> float:
    """F1 of the words (lower case, as bags) of two texts: 1 when both use the same words, 0 when they share none."""
    a, b = written.lower().split(), reference.lower().split()
    if not a or not b:
        return float(a == b)
    common = sum(min(a.count(w), b.count(w)) for w in set(a))
    return 2 * common / (len(a) + len(b))


@method(
    name="samples",
    title="Samples beside their references",
    family="measure/evaluate",
    year=2016,
    tier="core",
    status="stable",
)
class Samples(Measure):
    """Write completions for a few prompts and lay them beside what people wrote.

    ## What it does
    Takes `rows` rows of `prompt` (or the first `words` words of `text`), lets the model go on, and keeps prompt, completion
    and reference for the report. The number beside them is the overlap of words with the reference:

        F1 = 2 sum_w min(count(w, a), count(w, b)) / (|a| + |b|)

    ## Claim
    None: it is for looking. The F1 over words as bags is the answer metric of SQuAD.

    ## Cost
    One generation of `new` tokens a row.

    ## Watch out
    A small model's F1 mostly counts common words; read the samples.
    """

    rows: int = 6
    """How many prompts."""
    new: int = 24
    """Most tokens written for each."""
    words: int = 12
    """Words of `text` taken as the prompt where there is no `prompt`."""
    temperature: float = 0.0
    """0 is greedy; above, the samples are named by the run's seed."""

    tiny = {"world": "sums", "rows": 4, "new": 4}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        if self.rows < 1 or self.new < 1:
            raise Bad(f"rows and new must be at least 1, not {self.rows} and {self.new}")
        if not len(data):
            raise Bad("samples was given no rows")
        some = data.take(np.sort(run.numpy("samples").permutation(len(data))[: self.rows]))
        if "prompt" in data.columns:
            prompts = list(some.text("prompt"))
            wanted = list(some.text("completion" if "completion" in data.columns else "chosen"))
        else:
            some.need("text", who="samples")
            split = [t.split(" ") for t in some.text()]
            prompts = [" ".join(w[: self.words]) for w in split]
            wanted = [" ".join(w[self.words : self.words + self.new]) for w in split]
        said = run.generate(model, prompts, new=self.new, temperature=self.temperature, key=("samples",))
        rows = [{"prompt": p, "completion": c, "reference": w} for p, c, w in zip(prompts, said, wanted, strict=True)]
        return Report.of(
            "word_f1",
            [overlap(c, w) for c, w in zip(said, wanted, strict=True)],
            rows=some.ids,
            notes={"samples": rows},
        )
