from __future__ import annotations

import torch

from trainlore.errors import Bad
from trainlore.primitives.denoising import MODES, denoised, fitting, joined, span_counts
from trainlore.verbs import Part, method


def denoiser(text: str) -> tuple[int, float, float]:
    """ "R 3 0.15" or "S 0.25" as (place among R, S and X, mean span, share hidden); the span of an S is endless."""
    mode, *numbers = text.split()
    try:
        span, rate = (float("inf"), *map(float, numbers)) if mode == "S" else map(float, numbers)
        if mode not in MODES or not 0 < rate < 1 or span < 1:
            raise ValueError
    except ValueError:
        raise Bad(
            f'denoisers are "R span share", "X span share" or "S share", span from 1 and share between 0 and 1; not {text!r}'
        ) from None
    return MODES.index(mode), span, rate


@method(
    name="ul2",
    title="UL2: mixture of denoisers",
    paper="arXiv:2205.05131",
    lit="p501",
    family="train/objective",
    year=2022,
    tier="llm",
    code="google-research/google-research",
    status="stable",
)
class UL2(Part):
    """Hide spans, ends and most of a row by turns, say which with a mode token, and ask for what is hidden.

    ## What it does
    Every row meets one of seven denoisers, (mode, mean span, share hidden):

        R  (3, .15) (8, .15)                        short spans, as in T5
        S  (the whole end, .25 on average)          a prefix and what follows it
        X  (3, .5) (8, .5) (64, .15) (64, .5)       long spans or many

        input    [mode] kept  <0> kept  <1> kept ...          target   <0> hidden  <1> hidden ...
        S rows   [S] prefix                                   target   the rest

    A seq2seq model gets the input to read and the target as labels; a causal model gets both in a row, trained on the
    target only. Rows too long once mode and sentinels are in are cut at the end.

    ## Claim
    At equal size and steps it beats T5's and GPT's objectives in most of nine setups, by 43% and 76% relative on average; at
    20B parameters it was best on 50 supervised tasks and above GPT-3 175B on zero-shot SuperGLUE.

    ## Cost
    None, but a causal model is trained on the hidden share of its tokens only.

    ## Fields worth tuning
    `weights`: more S for models that will write, more R for models that will be asked about texts.

    ## Watch out
    The special tokens must exist. By name (`modes`, `sentinel`) they are looked up in the tokenizer:
    `tokenizer.add_tokens([...])` and `net.resize_token_embeddings` before training; or `first` names a run of ids that
    no text uses (T5 took the end of its vocabulary). Prompt a trained model with the mode it should be in. A released
    checkpoint calls its modes [NLU], [S2S] and [NLG].

    ## Differs from the paper
    A causal model keeps its causal mask over the input too (the paper's decoder reads it in both directions). All rows of a
    batch are cut to the width they came in. All denoisers are picked alike unless `weights` says otherwise, as the authors'
    published pipeline does; the shares of their largest runs were not read.

    ## See also
    `masked_thought` hides in the input but asks for everything.
    """

    denoisers: tuple[str, ...] = ("R 3 0.15", "R 8 0.15", "S 0.25", "X 3 0.5", "X 8 0.5", "X 64 0.15", "X 64 0.5")
    """Each as mode, mean span in tokens, share of tokens hidden; an S has no span; none: rows stay as they are."""
    weights: tuple[float, ...] = ()
    """How often each denoiser is picked, in any unit; none: all alike."""
    modes: tuple[str, str, str] = ("[R]", "[S]", "[X]")
    """Tokens that announce R, S and X."""
    sentinel: str = "<extra_id_{}>"
    """Name of the tokens that stand for hidden spans, {} being 0, 1, ..."""
    first: int | None = None
    """Id of the first of a run of tokens to use instead of names: R, S, X, then the sentinels."""
    sentinels: int = 100
    """Sentinels there may be; a row cut into more spans is an error."""

    needs = {"input_ids": "tokens"}
    gives = {"labels": "tokens"}
    null = {"denoisers": ()}
    tiny = {"world": "text", "first": 100, "sentinels": 25}

    def start(self, loop):
        if not self.denoisers:
            return {}
        kinds = len(self.denoisers)
        if self.weights and (len(self.weights) != kinds or min(self.weights) < 0 or not sum(self.weights)):
            raise Bad(f"weights must be {kinds} numbers, one a denoiser, not all 0; they are {self.weights}")
        known = [denoiser(text) for text in self.denoisers]
        if loop.model.kind not in ("causal", "seq2seq"):
            raise Bad(f"ul2 trains causal and seq2seq models, not {loop.model.kind} ones")
        if "segment_ids" in loop.data.columns:
            raise Bad("ul2 denoises single rows, and these are packed: give it the rows before packing")
        which, span, rate = zip(*known, strict=True)
        return {
            "specials": torch.tensor(self._specials(loop.model)),
            "which": torch.tensor(which),
            "span": torch.tensor(span),
            "rate": torch.tensor(rate),
        }

    def _specials(self, model):
        """Token ids of R, S, X and the sentinels."""
        if self.first is not None:
            return list(range(self.first, self.first + 3 + self.sentinels))
        known = {} if model.tokenizer is None else model.tokenizer.get_vocab()
        spans = [self.sentinel.format(i) for i in range(self.sentinels)]
        found = [known.get(name) for name in (*self.modes, *spans)]
        if None in found[:4]:
            raise Bad(
                f"the tokenizer lacks {', '.join(self.modes)} or {spans[0]}: add them with tokenizer.add_tokens and "
                "net.resize_token_embeddings, or name the `first` of a run of ids to use"
            )
        return found[: found.index(None)] if None in found else found

    def batch(self, loop, s, batch):
        if not self.denoisers:
            return batch
        if "attention_mask" not in batch:
            raise Bad("ul2 wants one document a row, and these rows are packed: leave the packing out")
        rng, n = loop.rng("ul2", loop.t), len(batch["row"])
        ids, width, lengths = batch["input_ids"], batch["input_ids"].shape[1], batch["attention_mask"].sum(1)
        odds = torch.tensor(self.weights or [1.0] * len(self.denoisers))
        pick = torch.multinomial(odds, n, replacement=True, generator=rng)
        which, span, rate = s["which"][pick], s["span"][pick], s["rate"][pick]
        if loop.model.kind == "causal":
            room = [fitting(width, *one) for one in zip(s["span"].tolist(), s["rate"].tolist(), strict=True)]
            lengths = torch.minimum(lengths, torch.tensor(room)[pick])
        most = int(span_counts(lengths, rate, span)[1].max())
        if most > (there := len(s["specials"]) - 3):
            raise Bad(f"a row of these needs {most} sentinels and there are {there}: add more, or cut the rows")
        read, asked = denoised(ids, lengths, which, span, rate, s["specials"], rng)
        pad = getattr(loop.model.tokenizer, "pad_token_id", None) or 0
        if loop.model.kind == "causal":
            made, size = joined([read, asked], pad, width), read[1] + asked[1]
            labels = joined([(torch.full_like(read[0], -100), read[1]), asked], -100, width)
        else:
            made, size, labels = joined([read], pad), read[1], joined([asked], -100)
        mask = (torch.arange(made.shape[1]) < size[:, None]).long()
        kept = {k: v for k, v in batch.items() if k not in ("position_ids", "token_type_ids")}  # of places that moved
        return {**kept, "input_ids": made, "labels": labels, "attention_mask": mask}
