from __future__ import annotations

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.runs import Run
from trainlore.verbs import Measure, method


@method(name="exact_match", title="Exact match", family="measure/evaluate", year=2016, tier="llm", status="stable")
class ExactMatch(Measure):
    """Let the model complete each prompt and count the completions that are the expected one, to the letter.

    ## What it does
    Writes greedily after `prompt` and compares with `completion`, both stripped of white space at the ends.

        match(row) = 1 if written == completion else 0

    ## Claim
    None: it measures.

    ## Cost
    One pass a row and a token written.

    ## Fields worth tuning
    `new`: leave it to be as long as the longest expected completion needs.

    ## Watch out
    What is written past the end token is not seen, but a model that never ends writes `new` tokens and fails, even if it
    began with the right answer; `starts_right` counts those too.

    ## See also
    `perplexity` of the expected completion is smoother where few match.
    """

    new: int | None = None
    """Tokens to write at most; none: as many as the longest expected completion, and one to end with."""

    tiny = {"world": "sums"}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        if missing := {"prompt", "completion"} - set(data.columns):
            raise Bad(
                f"exact_match needs columns prompt and completion; {' and '.join(sorted(missing))} not among {', '.join(data.columns)}"
            )
        if not len(data):
            raise Bad("exact_match was given no rows")
        if model.tokenizer is None:
            raise Bad("exact_match needs a model with a tokenizer to write with")
        expected = list(data.text("completion"))
        new = self.new or 1 + max(map(len, model.tokenizer(expected, add_special_tokens=False)["input_ids"]))
        written = run.generate(model, list(data.text("prompt")), new=new, temperature=0.0, key=("exact_match",))
        pairs = [(w.strip(), e.strip()) for w, e in zip(written, expected, strict=True)]
        groups = data.groups("domain")
        how = {"rows": data.ids, "groups": groups}
        wrong = [
            {"row": int(i), "written": w, "expected": e} for i, (w, e) in zip(data.ids, pairs, strict=True) if w != e
        ][:5]
        return Report.join(
            Report.of("exact_match", [w == e for w, e in pairs], notes={"wrong": wrong}, **how),
            Report.of("starts_right", [w.startswith(e) for w, e in pairs], **how),
        )
