from __future__ import annotations

from trainlore.nouns import Data
from trainlore.primitives.budget import row_lengths, take_budget
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(name="random_rows", title="Random rows", family="data/select", year=1934, tier="core", status="stable")
class RandomRows(Curate):
    """Keep rows drawn evenly at random, to a budget of rows or of tokens.

    ## What it does

    Every row gets a number of its own from a named stream, and the rows with the highest numbers are kept until the budget
    is spent; the order of the rows stays as it was:

        u_i ~ Uniform(0, 1)
        keep the top rows by u, while rows <= keep * N    (or sum of lengths <= tokens)

    The draws are nested: with the same seed a smaller budget keeps a subset of what a larger one keeps.

    ## Claim

    Every kind of row stays at its share on average, whatever the order of the file; the first rows of a sorted file do not.
    Beyond that it is what every selector must beat: a score that does no better at the same number of tokens has selected
    nothing.

    ## Cost

    One pass over the text when the budget is in tokens, else nothing.

    ## Fields worth tuning

    None. Give it exactly the budget of the method it stands against.

    ## Watch out

    Budgets in rows flatter selectors that like long rows and punish those that like short ones: the arms then differ in
    tokens. Compare with `tokens`. A token budget ends at the first row that does not fit, so it is underspent by part of a row.

    ## See also

    dsir, color_filter, kmeans_quality, vote_k.
    """

    keep: float = 0.1
    """Share of the rows to keep, above 0 and at most 1; unused when `tokens` is given."""
    tokens: float | None = None
    """Budget in tokens (words of the text where it is not encoded): a number above 1, or a share of all at most 1."""

    null = {"keep": 1.0}
    tiny = {"world": "digits", "keep": 0.25}

    def __call__(self, run: Run, data: Data) -> Data:
        lengths = None if self.tokens is None else row_lengths(data)
        score = run.numpy("random_rows").random(len(data))
        return data.take(take_budget(score, self.keep, self.tokens, lengths))
