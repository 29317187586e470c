from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives.budget import row_lengths, take_budget
from trainlore.primitives.phrases import Matcher
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def least_cap(rows: np.ndarray, entries: np.ndarray, uniform: np.ndarray, n: int) -> np.ndarray:
    """The smallest cap t at which each of n rows is kept, (n,) float64; inf where nothing matches.

    rows, entries (M,): the matches; uniform (M,) in [0, 1): the draw of each. A match passes if u < t / count, so the row
    is kept as soon as t exceeds the smallest u * count of its matches; nothing is drawn anew when t changes.
    """
    cap = np.full(n, np.inf)
    np.minimum.at(cap, rows, uniform * np.bincount(entries, minlength=1)[entries])
    return cap


@method(
    name="metaclip",
    title="MetaCLIP balancing",
    paper="arXiv:2309.16671",
    lit="p193",
    family="data/select",
    year=2023,
    tier="core",
    status="stable",
    code="facebookresearch/MetaCLIP",
)
class MetaCLIP(Curate):
    """Match texts against a list of entries and thin out the rows of frequent entries, down to a cap for each.

    ## What it does
    Looks up which entries occur in a text as whole words, counts for every entry the texts that hold it, and draws
    once for every match; a text stays if any of its matches passes, and goes if it has none:

        p_e = min(1, t / count_e)
        keep x if u_{x,e} < p_e for any entry e in x,    u ~ Uniform(0, 1)

    Rare entries keep all their texts, frequent ones about t. With `cap` the paper's t decides how much is kept. Without it the
    budget does: t is then the smallest cap whose draw fills `keep` or `tokens`, with the same u. The column `metaclip`
    holds the cap from which on a row is kept (inf: no match).

    ## Claim
    400 M pairs of Common Crawl balanced with t = 20,000 over half a million entries of WordNet and Wikipedia give a
    ViT-B 70.8% of zero-shot ImageNet against 68.3% for CLIP's own data; 72.4% with 1 B pairs at the same training
    budget, 80.5% with a ViT-H.

    ## Cost
    One pass over the text, no model. Memory: 32 bytes for every match of a row and an entry (0.3 GB for 1 M captions of ten
    matches; long documents match more).

    ## Fields worth tuning
    The entries: they say what there is to balance. `cap` or the budget.

    ## Watch out
    A long text matches many entries and stays if one of them passes: documents are kept by their length. Cut them into
    pieces of even length first, or use it on captions, titles and prompts, for which it was made.
    A common word among the entries ("the") matches everything and balances nothing. Upper case counts unless `fold_case`.
    The texts without a match, which the paper drops as noise, cannot be had back by a larger budget.

    ## Differs from the paper
    The matching is that of the authors' package (spaces around , . ; : ? ! ` and whole words), by another algorithm. Their loader
    adds a record once for every of its texts that passes; here a row is one text. A budget instead of the cap is ours.

    ## See also
    random_rows, kmeans_quality.
    """

    entries: Data | tuple[str, ...]
    """Words and phrases, as a list or as the `text` of data."""
    cap: float | None = None
    """Texts an entry may keep (the paper's t, 20,000 for 400 M); given, `keep` and `tokens` are unused."""
    keep: float = 0.1
    """Share of the rows to keep, above 0 and at most 1; unused when `tokens` is given."""
    tokens: float | None = None
    """Budget in tokens (words of the text where it is not encoded): a number above 1, or a share of all at most 1."""
    column: str = "text"
    """Name of the text column."""
    fold_case: bool = False
    """Whether upper and lower case are one."""

    # no null: rows that match no entry are never kept
    tiny = {"world": "text", "entries": ["bada", "geli", "kama", "nori", "pasa", "tivu", "boda beda"], "keep": 0.1}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(self.column, who="metaclip")
        if self.cap is not None and self.cap <= 0:
            raise Bad(f"cap={self.cap}: give the texts an entry may keep, above 0, or none for a budget")
        given = self.entries.text() if isinstance(self.entries, Data) else self.entries
        entries = dict.fromkeys(e for e in map(self._folded, given) if e.strip())
        if not entries:
            raise Bad("entries is empty: give the words and phrases to balance over")
        rows, which = Matcher(entries)(map(self._folded, data.text(self.column)))
        if not len(rows):
            raise Bad(
                f"none of the {len(data)} rows holds any of the {len(entries)} entries; check their spelling and case"
            )
        cap = least_cap(rows, which, run.numpy("metaclip").random(len(rows)), len(data))
        data = data.with_(metaclip=cap)
        if self.cap is not None:
            if not (cap < self.cap).any():
                raise Bad(f"cap={self.cap} leaves none of the {len(data)} rows; raise it")
            return data.where(cap < self.cap)
        lengths = None if self.tokens is None else row_lengths(data)
        return data.take(take_budget(-cap, self.keep, self.tokens, lengths))

    def _folded(self, text: str) -> str:
        return text.lower() if self.fold_case else text
