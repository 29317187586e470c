from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainlore.errors import Bad
from trainlore.primitives.domains import domains
from trainlore.verbs import Part, method


def prepend(
    ids: Tensor, labels: Tensor, mask: Tensor, prefix: Tensor, size: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with a prefix put after their first `keep` tokens, padded on the right as before.

    `ids`, `labels`, `mask` int64 (B, T); `prefix` int64 (B, P), of which the first `size` int64 (B,) count; `keep`
    int64 (B,), 1 where the row begins with a token that must stay in front. Gives ids, labels and mask (B, T + P'),
    P' the longest prefix in the batch; labels are -100 on the prefix and on what stands before it.
    """
    width = ids.shape[1] + int(size.max())
    at = torch.arange(width, device=ids.device)[None]
    keep, end = keep[:, None], (keep + size)[:, None]
    source = torch.where(at < keep, at, at - size[:, None]).clamp(0, ids.shape[1] - 1)
    inside = (at >= keep) & (at < end)
    real = torch.where(inside, 1, mask.gather(1, source)) * (at < size[:, None] + ids.shape[1])
    fill = prefix.gather(1, (at - keep).clamp(0, prefix.shape[1] - 1).expand(len(ids), -1))
    out = torch.where(inside, fill, ids.gather(1, source))
    told = torch.where((at < end) | (real == 0), -100, labels.gather(1, source))
    return out, told, real


@method(
    name="metadata_conditioning",
    title="MeCo (metadata conditioning then cooldown)",
    paper="arXiv:2501.01956",
    lit="p566",
    family="data/order",
    year=2025,
    tier="core",
    status="stable",
    code="princeton-pli/MeCo",
)
class MetadataConditioning(Part):
    """Show each text after the name of its source for most of training, and bare at the end.

    ## What it does
    For the first `share` of training every row is preceded by its metadata, on which no loss is taken; for the rest
    rows are plain, so that the model does without. Optimizer and schedule go on as if nothing had changed.

        t < share * T :   <bos> before + name + after + text      labels: -100 on all but the text
        t >= share * T:   <bos> text

    A model so trained can be asked for a source: prompt it with `before + name + after`.

    ## Claim
    1.6B parameters on DCLM: the downstream average of plain training with 33% less data; 0.6B to 8B and three corpora.
    Asking for a source steers: wikipedia.org lowers toxic output.

    ## Cost
    The prefix's tokens, about ten a row.

    ## Fields worth tuning
    `by`: the address's host works; finer names help more than coarse topics. `share` 0.8 to 0.9.

    ## Watch out
    One row must be one document: packed rows are refused, for only their first document would be named. Rows that
    with their prefix exceed the model's window lose their end. Held-out losses measured before the cooldown are of a
    model that has never seen a bare text.

    ## Differs from the paper
    There the prefix is written into the packed files and the cooldown runs on other documents; here it is put in front
    as batches are made, and the cooldown goes on with the same rows.

    ## See also
    `domain_upsampling` for another thing to change at the end.
    """

    by: str = "domain"
    """Column whose value names a row's source."""
    before: str = "URL: "
    """Text before the name."""
    after: str = "\n\n"
    """Text after the name."""
    share: float = 0.9
    """Share of training with metadata; the rest is the cooldown."""

    needs = {"input_ids": "tokens", "labels": "tokens", "attention_mask": "tokens"}
    null = {"share": 0.0}
    tiny = {"world": "text", "share": 0.6}

    def start(self, loop) -> dict:
        if not 0 <= self.share <= 1:
            raise Bad(f"metadata_conditioning: share must lie in 0..1, got {self.share}")
        if "segment_ids" in loop.data.columns:
            raise Bad("metadata_conditioning: the rows are packed; give one document a row")
        if loop.model.tokenizer is None:
            raise Bad("metadata_conditioning: the model has no tokenizer to write names with")
        names, code = domains(loop.data, self.by, "metadata_conditioning")
        written = [f"{self.before}{name}{self.after}" for name in names]
        ids = [torch.tensor(i) for i in loop.model.tokenizer(written, add_special_tokens=False)["input_ids"]]
        size = torch.tensor([len(i) for i in ids])
        return {"prefix": pad_sequence(ids, batch_first=True), "size": size, "code": torch.from_numpy(code)}

    def batch(self, loop, s, batch) -> dict:
        if loop.done >= self.share:
            return batch
        if "attention_mask" not in batch:
            raise Bad(
                "metadata_conditioning wants one document a row, and these rows are packed: leave the packing out"
            )
        code = s["code"][batch["row"]]
        bos = loop.model.tokenizer.bos_token_id
        keep = (batch["input_ids"][:, 0] == bos).long() if bos is not None else torch.zeros_like(batch["row"])
        names = ("input_ids", "labels", "attention_mask")
        made = prepend(
            batch["input_ids"], batch["labels"], batch["attention_mask"], s["prefix"][code], s["size"][code], keep
        )
        room = loop.model.window or made[0].shape[1]
        return {**batch, **{n: v[:, :room] for n, v in zip(names, made, strict=True)}}
