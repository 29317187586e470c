"""Model: a network, what feeds it, and what made it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainlore import meter
from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns.data import Batch, Data

KINDS = ("causal", "masked", "seq2seq", "classifier", "tagger", "regressor", "encoder", "denoiser")
INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "pixel_values", "inputs_embeds")


@dataclass(eq=False)
class Model:
    """A network with its tokenizer and its kind; `model(batch)` gives logits and pays on the meter of the running run."""

    net: nn.Module
    kind: str = "classifier"
    tokenizer: Any = None
    about: dict[str, Any] = field(default_factory=dict)  # JSON: window, curve of the last fit, recipe that made it
    trail: tuple[dict[str, Any], ...] = ()
    probe: Batch | None = None  # a few training rows, kept by the engine for the parity gate
    grids: dict[str, Any] = field(default_factory=dict)  # how few bits hold the weight of a layer, by its path

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise Bad(f"no model kind {self.kind!r}; kinds are {', '.join(KINDS)}")
        meter.watch(self.net)

    @staticmethod
    def of(source: Any, kind: str | None = None, seed: int = 0, remote_code: bool = False) -> Model:
        """Make a Model from a preset's name, a Hugging Face directory or id, a config, or any nn.Module."""
        from trainlore.nouns import hugging

        if isinstance(source, Model):
            return source
        if isinstance(source, nn.Module):
            return Model(source, kind or hugging.kind_of(source))
        return hugging.load(source, kind, seed, remote_code)

    def save(self, folder: str | Path, card: str = "") -> Path:
        """Write a Hugging Face directory (safetensors, config, tokenizer, model card)."""
        from trainlore.nouns import hugging

        return hugging.save(self, Path(folder), card)

    # ---- running it

    @property
    def input(self) -> str:
        """The batch column the network reads: input_ids, pixel_values or features."""
        return str(getattr(self.net, "main_input_name", "features"))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def __call__(self, batch: Batch) -> Tensor:
        """Logits: (B,K) of a classifier, (B,T,V) of a language model."""
        if self.input == "features":
            return self.net(batch["features"])
        given = {k: batch[k] for k in INPUTS if k in batch}
        if (
            "segment_ids" in batch
        ):  # packed rows: restarting positions keep documents apart, and no mask keeps the fast kernel
            given.pop("attention_mask", None)
        else:
            given.pop("position_ids", None)
        if self.kind == "seq2seq":
            given["decoder_input_ids"] = self.net.prepare_decoder_input_ids_from_labels(labels=batch["labels"])  # type: ignore[operator]
        if self.kind in ("causal", "seq2seq") and "use_cache" not in given:
            given["use_cache"] = False
        out = self.net(**given)
        return getattr(out, "logits", getattr(out, "last_hidden_state", out))

    # ---- feeding it

    @property
    def window(self) -> int | None:
        """The longest sequence it takes, if it says so."""
        if "window" in self.about:
            return int(self.about["window"])
        config = getattr(self.net, "config", None)
        return next(
            (int(w) for k in ("max_position_embeddings", "n_positions") if (w := getattr(config, k, None))), None
        )

    def encode(self, data: Data, window: int | None = None, truncate: bool = False) -> Data:
        """Token columns for text rows: labels are -100 where nothing is to be learned (prompts, padding).

        Reads `text`, `messages`, `prompt`+`completion` or `prompt`+`chosen`+`rejected`. Raises Bad on a row longer than
        the window unless `truncate`.
        """
        from trainlore.nouns import encoding

        return encoding.encode(self, data, window or self.window, truncate)

    # ---- knowing its shape

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential:
        """The list of its repeated layers: the longest list of modules of one class."""
        lists = [m for m in self.net.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m)]
        alike = [m for m in lists if len({type(layer) for layer in m}) == 1 and any(True for _ in m.parameters())]
        if not alike:
            raise Bad(f"{type(self.net).__name__} has no list of repeated layers")
        return max(alike, key=lambda m: (len(m), sum(p.numel() for p in m.parameters())))

    def linears(self, head: bool = False) -> Iterator[tuple[str, nn.Linear]]:
        """Its linear layers by name; the output head (and whatever shares its weight) only when asked."""
        out = getattr(self.net, "get_output_embeddings", lambda: None)()
        last = out if out is not None else [None, *(m for m in self.net.modules() if isinstance(m, nn.Linear))][-1]
        for name, module in self.net.named_modules():
            if isinstance(module, nn.Linear) and (head or module is not last):
                yield name, module

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.net.parameters())

    def copy(self) -> Model:
        """An independent copy: weights, tokenizer and history."""
        return Model(
            copy.deepcopy(self.net),
            self.kind,
            self.tokenizer,
            copy.deepcopy(self.about),
            self.trail,
            self.probe,
            dict(self.grids),
        )

    @property
    def fingerprint(self) -> str:
        """The content hash of weights, their names, the kind and the tokenizer."""
        import hashlib
        import json

        digest = hashlib.blake2b(f"{self.kind} {type(self.net).__name__}".encode(), digest_size=16)
        for name, value in self.net.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        trains = [n for n, p in self.net.named_parameters() if p.requires_grad]
        digest.update(repr(trains).encode())
        if self.tokenizer is not None:
            table = json.loads(getattr(self.tokenizer, "backend_tokenizer", self.tokenizer).to_str())
            table.update(padding=None, truncation=None)  # marks that its last use left, no part of what it is
            digest.update(json.dumps(table, sort_keys=True).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Model({type(self.net).__name__}, {self.kind}, {self.size / 1e6:.2f} M weights)"
