from __future__ import annotations

from trainlore.nouns import Data, Model
from trainlore.primitives.packing import pack_best_fit, pack_rows
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="best_fit_packing",
    title="Best-fit packing",
    paper="arXiv:2404.10830",
    lit="p340",
    family="data/mix",
    year=2024,
    tier="core",
    status="stable",
)
class BestFitPacking(Curate):
    """Pack documents into rows of one length without cutting any that fits.

    ## What it does
    Cuts only documents longer than a row, into whole rows and a rest. Then places all pieces, longest first, each into
    the row with the least room that still holds it, or into a new row.

        row(piece) = argmin over rows with room >= size(piece) of room,   pieces by falling size

    Each row holds input_ids, labels, segment_ids (which document; -1 where padded) and position_ids (from 0 in each
    document), so that no document sees another; labels are -100 at padding and at each document's first token. The
    column `parents` lists the ids of the documents in a row.

    ## Claim
    Against joining and cutting, at the same number of rows: relative gains of 4.7% in reading comprehension, 16.8% in
    following the context, 9.2% in program synthesis, and up to 58.3% fewer invented facts.

    ## Cost
    A million documents are placed in a third of a second (sizes are whole numbers, so equal pieces move together);
    then 25 million tokens are written a second.

    ## Fields worth tuning
    `length`: the window of the model. `within: domain` keeps domains in rows of their own, for parts that mix them.

    ## Watch out
    Padding is negligible only where there are short documents to fill the gaps with: look at it when all are of about
    one length above half a row. Rows come out longest documents first; training shuffles them.

    ## Differs from the paper
    Exactly its best-fit decreasing, with bit sets over the room left in place of a segment tree. No token is put
    between documents: `encode` ends each with the end-of-text token.

    ## See also
    `concat_packing`, its rival.
    """

    length: int = 512
    """Tokens in a row."""
    model: Model | None = None
    """Whose tokenizer encodes the text where there are no `input_ids`, and gives the padding."""
    within: str | None = None
    """Pack only documents that agree in this column together, and keep the column."""

    tiny = {"world": "text", "length": 48}

    def __call__(self, run: Run, data: Data) -> Data:
        return pack_rows(data, self.length, pack_best_fit, self.model, self.within)
