from __future__ import annotations

from trainlore.nouns import Data, Model
from trainlore.primitives.packing import pack_concat, pack_rows
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="concat_packing",
    title="Concatenate and cut",
    family="data/mix",
    year=2018,
    tier="core",
    status="stable",
)
class ConcatPacking(Curate):
    """Join all documents and cut the stream every so many tokens.

    ## What it does
    Lays the documents end to end in table order and cuts after every `length` tokens; only the last row is padded.

        row(token i of the stream) = floor(i / length)

    Without `cross`, documents in a row are kept apart as `best_fit_packing` keeps them: the two then differ only in
    what is cut.

    ## Claim
    None of its own: the common way to feed language models, and the trivial baseline of packing. It pads least.

    ## Cost
    One sort of the cuts.

    ## Watch out
    Every cut tears the document it falls in, however short: a share of about mean length / length of all documents.
    The second half of a torn document begins without what it refers to.

    ## See also
    `best_fit_packing`, which cuts only what does not fit.
    """

    length: int = 512
    """Tokens in a row."""
    model: Model | None = None
    """Whose tokenizer encodes the text where there are no `input_ids`, and gives the padding."""
    within: str | None = None
    """Join only documents that agree in this column, and keep the column."""
    cross: bool = False
    """Let tokens see, and predict, across documents in a row."""

    tiny = {"world": "text", "length": 48}

    def __call__(self, run: Run, data: Data) -> Data:
        return pack_rows(data, self.length, pack_concat, self.model, self.within, self.cross)
