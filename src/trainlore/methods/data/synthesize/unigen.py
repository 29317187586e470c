from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def shares(losses: Tensor, temperature: float) -> Tensor:
    """How well each class explains a text: mean losses (N,K) -> softmax(-losses / temperature), (N,K)."""
    return (-losses / temperature).softmax(-1)


@method(
    name="unigen",
    title="UniGen (data without a domain, relabelled by its writer)",
    paper="arXiv:2405.01022",
    lit="p427",
    family="data/synthesize",
    year=2024,
    tier="core",
    status="stable",
    code="c-juhwan/unigen",
)
class UniGen(Curate):
    """Make labelled texts from a prompt that names the class and no domain, and keep those the writer itself is sure of.

    ## What it does
    For each class the model goes on from `prompt` with the class's name in it, `n` times. Then it reads every text under the
    prompt of every class, L_k its mean loss a token there, prompt and all, and gives soft labels:

        p = softmax(-L / relabel)       keep if argmax p is the class asked for and max p > 1 / K + margin

    Only new rows come back: the text, the class, and p in `labels`, which a classifier learns in place of the class. Of the
    rows given, the values of `label` alone are read: one row a class will do.

    ## Claim
    A classifier of the size of DistilBERT, trained once, holds on sentiment of many domains, with orders of magnitude fewer
    weights than the writer; classifiers on data made for one domain hold there.

    ## Cost
    n texts written for each class, and each read once for every class.

    ## Fields worth tuning
    `margin` and `relabel`: what is sure depends on both. `prompt`, in which a domain would narrow the texts.

    ## Watch out
    Classes come out uneven where the writer knows one better, or its name costs more in the prompt. Tokens begin with their
    space in most tokenizers: a prompt that ends in one is followed by what the writer never saw. Short texts tell little.
    Not reproduced here, if barely: 5 points over unfiltered texts on two made-up domains (n = 10, p = 0.06).

    ## Differs from the paper
    This is its data; its classifier, with a contrastive loss against a bank of an averaged copy's features and a weight learned
    for each row, is not. Follows the authors' code, where 1 - softmax(L / relabel) is the same for two classes and no
    distribution for more. Padding counts in their mean loss, not here. Theirs also draws from the likeliest 90 %.

    ## See also
    `fewgen` and `class_generator` where some rows are labelled.
    """

    model: Model
    """The causal language model that writes and relabels."""
    label: str = "label"
    """Column of the classes: names as they go into the prompt, or whole numbers."""
    prompt: str = 'The text in {} sentiment is: "'
    """What a text goes on from; the braces take the class."""
    close: str = '"'
    """What ends a text; a new line does as well."""
    n: int = 1000
    """Texts written for each class."""
    new: int = 32
    """Tokens of a text, at most."""
    temperature: float = 1.0
    """Of the writing: higher is more varied."""
    top_k: int | None = 40
    """Tokens the writing chooses among at each place; none: all."""
    relabel: float = 0.1
    """Temperature of the soft labels: lower is surer."""
    margin: float = 0.2
    """How far above even odds the surest class must be."""

    ranges = {"relabel": [0.02, 0.5, "log"], "margin": [0.0, 0.45]}
    tiny = {"world": "text", "model": "$prior", "label": "domain", "prompt": "{}:", "n": 12, "new": 8, "margin": 0.0}

    def __call__(self, run: Run, data: Data) -> Data:
        if min(self.n, self.new) < 1 or min(self.temperature, self.relabel) <= 0 or not 0 <= self.margin < 1:
            raise Bad("n and new must be at least 1, temperature and relabel above 0, margin at least 0 and below 1")
        if "{}" not in self.prompt:
            raise Bad(f"prompt={self.prompt!r} has no place for the class: write {{}} where it goes")
        if self.model.kind != "causal":
            raise Bad(f"unigen writes with a causal model, not a {self.model.kind}")
        data.need(self.label, who="unigen")
        names, first = np.unique(np.asarray(data[self.label]).astype(str), return_index=True)
        if len(names) < 2:
            raise Bad(f"column {self.label!r} has the one value {str(names[0])!r}: give a row of every class")
        starts = [self.prompt.format(name) for name in names]
        which = np.repeat(np.arange(len(names)), self.n)
        how = {"new": self.new, "temperature": self.temperature, "top_k": self.top_k}
        texts = [self._cut(t) for t in run.generate(self.model, [starts[k] for k in which], key=("unigen",), **how)]
        some = np.flatnonzero([bool(t.strip()) for t in texts])
        which, texts = which[some], [texts[i] for i in some]
        if not texts:
            raise Bad(f"prompt={self.prompt!r}: the model wrote nothing after it; try another")
        p = shares(torch.stack([self._losses(run, start, texts) for start in starts], 1), self.relabel).numpy()
        kept = np.flatnonzero((p.argmax(1) == which) & (p.max(1) > 1 / len(names) + self.margin))
        if not len(kept):
            raise Bad(f"margin={self.margin}: none of {len(texts)} texts passed; lower it or write more")
        asked = data.take(first[which[kept]])
        columns = {"text": [texts[i].strip() for i in kept], self.label: asked[self.label], "labels": p[kept]}
        return data.new(columns, parents=asked.ids)

    def _cut(self, text: str) -> str:
        """The text up to its end."""
        text = text.split("\n")[0]
        return text.split(self.close)[0] if self.close else text

    def _losses(self, run: Run, start: str, texts: list[str]) -> Tensor:
        """Mean loss a token of each text after this start (N,)."""

        def mean(batch: Batch, out: Tensor) -> Tensor:
            return per_row(rowwise("causal", batch, out), batch, "causal")

        return run.infer(self.model, Data.of([start + text + self.close for text in texts]), mean)
