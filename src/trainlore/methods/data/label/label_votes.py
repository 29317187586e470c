from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.verbs import Curate, method

ASKS = ("if", "words", "above", "below")


def pattern(words: list[str]) -> str:
    """A regular expression for any of the words, whole."""
    return r"\b(?:" + "|".join(re.escape(w) for w in words) + r")\b"


@method(
    name="label_votes",
    title="Labelling functions",
    paper="arXiv:1810.02840",
    family="data/label",
    year=2018,
    tier="core",
    status="stable",
    code="snorkel-team/snorkel",
)
class LabelVotes(Curate):
    """Let many small rules vote on the class of each row.

    ## What it does
    Applies each labelling function to every row. A function votes for a class or abstains (-1); the votes stay on the
    data as column `votes`, one whole number a function. Rules are data, so that a recipe can hold them:

        {label: 1, if: "regular expression"}            in a text column
        {label: 0, words: [refund, broken]}             any of these words, whole
        {label: 2, column: features, at: 36, above: 0.5, below: 0.9}     a number, or entry `at` of a vector

    `column` (default: the field `column`) and `name`, a note for readers, may stand in each. From Python, `functions`
    are called with the Data and give a vote a row.

    ## Claim
    Over three fine-grained classification tasks, models trained on labels that a label model puts together from weak
    sources are 20.2 points of accuracy better on average than supervised ones, and 6.8 better than with majority vote.
    That is a whole pipeline; this is its first step.

    ## Cost
    One pass over a column for each rule. `votes` takes 2 bytes a row and function.

    ## Fields worth tuning
    The rules themselves: look at `vote_table`. Narrow and often right is better than broad and often wrong.

    ## Watch out
    Expressions are RE2's: linear in time whatever they say, but without look-around or back-references; \\b and \\w
    know ASCII letters only. A null text or a missing number matches nothing. Rules copied from each other vote alike,
    which a label model takes for agreement. On the made-up two-domain texts twelve words picked from 20 labelled rows,
    six for each domain, labelled nine rows in ten right: those texts are easier than any of yours.

    ## Differs from the paper
    Only the functions; `label_model` combines their votes, by EM where the paper completes a matrix.

    ## See also
    `vote_table`, `majority_vote`, `label_model`, `label_flows`.
    """

    rules: tuple[dict[str, Any], ...] = ()
    """What votes for what: `label` and one of `if`, `words` or `above` and `below`; see above."""
    functions: tuple[Callable[[Data], Any], ...] = ()
    """Python functions of the Data that give a vote a row, -1 to abstain; they vote after the rules."""
    column: str = "text"
    """The column that a rule reads when it names none."""
    ignore_case: bool = True
    """Whether rules on text take capital and small letters for the same."""

    tiny = {
        "world": "text",
        "rules": [{"label": 0, "words": ["bada", "gila"]}, {"label": 1, "if": "k[aeio]m"}, {"label": 1, "if": "^t"}],
    }

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(who="label_votes")
        if not self.rules and not self.functions:
            raise Bad("label_votes was given no rules and no functions")
        found = [self._rule(data, i, rule) for i, rule in enumerate(self.rules)]
        for function in self.functions:
            vote = np.asarray(function(data))
            if vote.shape != (len(data),) or vote.dtype.kind not in "iub":
                name = getattr(function, "__name__", repr(function))
                raise Bad(f"{name} gave {vote.dtype} {vote.shape}, not a whole number for each of {len(data)} rows")
            if vote.min() < -1 or vote.max() >= 2**15:
                name, odd = getattr(function, "__name__", function), vote.min() if vote.min() < -1 else vote.max()
                raise Bad(f"{name!r} votes for {odd}: give a class from 0 to {2**15 - 1}, or -1 to abstain")
            found.append(vote)
        return data.with_(votes=np.stack(found, axis=1).astype(np.int16))

    def _rule(self, data: Data, i: int, rule: dict[str, Any]) -> np.ndarray:
        """The votes (N,) of one rule."""
        if strange := set(rule) - {"label", "column", "name", "at", *ASKS}:
            raise Bad(
                f"rules[{i}] has no key {', '.join(map(repr, sorted(strange)))}; there are label, column, at, {', '.join(ASKS)}"
            )
        label, asked = rule.get("label"), [k for k in ASKS if k in rule]
        if type(label) is not int or not 0 <= label < 2**15:
            raise Bad(f"rules[{i}] has label={label!r}: give a class number from 0 on")
        if not asked or (len(asked) > 1 and asked != ["above", "below"]):
            raise Bad(f"rules[{i}] asks {' and '.join(asked) or 'nothing'}: give if, words, or above and below")
        column = str(rule.get("column", self.column))
        hit = self._text(data, i, rule, column) if asked[0] in ("if", "words") else _number(data, i, rule, column)
        return np.where(hit, label, -1)

    def _text(self, data: Data, i: int, rule: dict[str, Any], column: str) -> np.ndarray:
        """Where the text matches, bool (N,)."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if data.kinds.get(column) != "text":
            raise Bad(f"rules[{i}] reads column {column!r}, which is no text; there are {', '.join(data.columns)}")
        if "words" in rule and (not rule["words"] or not isinstance(rule["words"], list | tuple)):
            raise Bad(f"rules[{i}] has words={rule['words']!r}: give a list of words")
        wanted = str(rule["if"]) if "if" in rule else pattern([str(w) for w in rule["words"]])
        try:
            hit = pc.match_substring_regex(data[column], wanted, ignore_case=self.ignore_case)
        except pa.ArrowException as error:
            raise Bad(f"rules[{i}]: {wanted!r} cannot be searched for: {error}") from None
        return (
            hit.fill_null(False).to_numpy(zero_copy_only=False)
            if isinstance(hit, pa.Array)
            else hit.fill_null(False).to_numpy()
        )


def _number(data: Data, i: int, rule: dict[str, Any], column: str) -> np.ndarray:
    """Where the number lies strictly between the bounds, bool (N,)."""
    data.need_column(column)
    value = data[column]
    if isinstance(value, np.ndarray) and value.ndim == 2:
        at = rule.get("at")
        if type(at) is not int or not 0 <= at < value.shape[1]:
            raise Bad(f"rules[{i}] has at={at!r}: give an entry from 0 to {value.shape[1] - 1} of column {column!r}")
        value = value[:, at]
    if not isinstance(value, np.ndarray) or value.ndim != 1:
        raise Bad(f"rules[{i}] compares column {column!r}, which holds no numbers")
    bounds = [rule.get("above", -np.inf), rule.get("below", np.inf)]
    if not all(isinstance(b, int | float) for b in bounds) or not bounds[0] < bounds[1]:
        raise Bad(f"rules[{i}] has above={bounds[0]!r} and below={bounds[1]!r}: give numbers, the lower one above")
    return (value > bounds[0]) & (value < bounds[1])
