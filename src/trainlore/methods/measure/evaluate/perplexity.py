from __future__ import annotations

import math

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.losses import rowwise, targets
from trainlore.runs import Run
from trainlore.verbs import Measure, method


@method(
    name="perplexity", title="Held-out perplexity", family="measure/evaluate", year=1977, tier="llm", status="stable"
)
class Perplexity(Measure):
    """Say how surprised a language model is by text it has not seen, in all and by domain.

    ## What it does
    Every token that has a label is predicted from what is before it (or around it, if the model is a masked one).

        nats       = sum over rows and tokens of -log p(token) / number of tokens
        perplexity = exp(nats)
        bits a byte = sum of -log2 p(token) / bytes of text       (where the rows hold their text)

    The report keeps each row's mean in nats and weighs it by the row's tokens, so its value and its groups are those of the
    whole text; perplexities are in the notes. Bits a byte compare models whose tokenizers differ, nats a token do not.

    ## Claim
    None: it measures.

    ## Cost
    One forward pass a row.

    ## Watch out
    Rows longer than the model's window are cut to it, and the first token of a row is never predicted. Only tokens with a
    label count: of rows with a prompt, the answer. The interval treats rows as independent.

    ## See also
    `forgetting` for the change against another model, `min_k` for what was in the training set.
    """

    tiny = {"world": "text"}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        if model.kind not in ("causal", "masked", "seq2seq"):
            raise Bad(f"perplexity is for language models, not for a {model.kind} one")
        if not len(data):
            raise Bad("perplexity was given no rows")

        def nats(batch, out):
            return rowwise(model.kind, batch, out).sum(1)

        def count(batch, out):
            return (targets(model.kind, batch) != -100).sum(1)

        total, tokens = (v.double().numpy() for v in run.infer(model, data, [nats, count]))
        if not tokens.sum():
            raise Bad("no row has a token to predict: give rows of at least two tokens, with labels")
        groups = data.groups("domain")
        how = {"rows": data.ids, "groups": groups, "better": "lower"}
        per_token = total / np.maximum(tokens, 1)
        m = Report.of("nats", per_token, weights=tokens, **how)["nats"]
        by = {g: math.exp(v) for g, v in m.by("domain").items()} if groups else {}
        notes = {"perplexity": math.exp(m.value), "perplexity_by_domain": by, "tokens": int(tokens.sum())}
        report = Report.of("nats", per_token, weights=tokens, notes=notes, **how)
        if "text" in data.columns:
            import pyarrow.compute as pc

            size = pc.fill_null(pc.binary_length(data["text"]), 0).to_numpy().astype(np.float64)
            bits = total / math.log(2) / np.maximum(size, 1)
            report = Report.join(report, Report.of("bits_per_byte", bits, weights=size, **how))
        return report
