"""Models from and to Hugging Face directories, and the small presets made from configs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from trainlore.errors import Bad
from trainlore.nouns.model import Model
from trainlore.randomness import global_streams
from trainlore.sources import PRESETS

SUFFIXES = {  # how a class of transformers ends -> the kind of model it is
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForConditionalGeneration": "seq2seq",
    "ForSequenceClassification": "classifier",
    "ForImageClassification": "classifier",
    "ForTokenClassification": "tagger",
}


def kind_of(net: nn.Module) -> str:
    """The kind of a network by its class's name; a plain module is a classifier."""
    name = type(net).__name__
    if kind := next((k for end, k in SUFFIXES.items() if name.endswith(end)), None):
        return kind
    return "encoder" if hasattr(net, "config") and name.endswith("Model") else "classifier"


def load(source: Any, kind: str | None, seed: int, remote_code: bool) -> Model:
    """See `Model.of`."""
    if isinstance(source, str) and source.removeprefix("preset:") in PRESETS:
        return preset(source.removeprefix("preset:"), seed=seed)
    import transformers

    classes = {
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "classifier": transformers.AutoModelForSequenceClassification,
        "tagger": transformers.AutoModelForTokenClassification,
        "encoder": transformers.AutoModel,
    }
    if isinstance(source, transformers.PretrainedConfig):
        with global_streams(seed, "weights"):
            name = next(iter(source.architectures or ()), "")
            cls = getattr(transformers, name, None) or classes[kind or "causal"]
            net = cls(source) if isinstance(cls, type) and issubclass(cls, nn.Module) else cls.from_config(source)
        return Model(net, kind or kind_of(net))
    path = Path(str(source).removeprefix("hub:"))
    local = path.is_dir()
    if local:
        _check_folder(path)
    elif str(source).startswith((".", "/", "~")) or path.suffix:
        raise Bad(f"no model at {source}: there is no such folder")
    name = str(path)
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=remote_code, local_files_only=local)
    except (OSError, ValueError) as error:
        near = ", ".join(PRESETS)
        raise Bad(
            f"no model {name!r}: not a folder, not one of the presets ({near}), and the Hub did not give it: {_first(error)}"
        ) from None
    arch = next(iter(config.architectures or ()), "")
    kind = kind or next((k for end, k in SUFFIXES.items() if arch.endswith(end)), "encoder")
    cls = getattr(transformers, arch, None) or classes[kind]
    try:
        net = cls.from_pretrained(name, use_safetensors=True, trust_remote_code=remote_code, local_files_only=local)
    except (OSError, ValueError) as error:
        raise Bad(f"the model in {name} does not load: {_first(error)}") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, trust_remote_code=remote_code, local_files_only=local
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        tokenizer = None  # a vision model, or one whose tokenizer lies elsewhere
    if tokenizer is not None and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    about = json.loads((path / "trainlore.json").read_text()) if (path / "trainlore.json").exists() else {}
    return Model(net.eval(), kind, tokenizer, about.get("about", {}), tuple(about.get("trail", ())))


def _check_folder(path: Path) -> None:
    if not (path / "config.json").exists():
        raise Bad(f"{path} is not a model: it has no config.json")
    if not any(path.glob("*.safetensors")):
        pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern)]
        if pickled:
            raise Bad(
                f"{path} holds pickled weights ({pickled[0]}), which can run code: convert them to safetensors first"
            )
        raise Bad(f"{path} holds a config but no weights (no *.safetensors)")


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def preset(name: str, seed: int = 0, vocab: int = 4096, window: int = 512, **changes: Any) -> Model:
    """A small model with random weights named by the seed. Language presets have no tokenizer yet: train one with `bpe`."""
    family, shape = PRESETS[name]
    shape = {**shape, **changes}
    with global_streams(seed, "weights"):
        if family == "mlp":
            inside, outside = shape.get("inputs", 64), shape.get("classes", 10)
            width, depth = shape.get("width", 64), shape.get("depth", 2)
            layers = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)]
            net = nn.Sequential(nn.Linear(inside, width), nn.ReLU(), nn.Sequential(*layers), nn.Linear(width, outside))
            return Model(net, "classifier", about={"preset": {"name": name, "seed": seed, **changes}})
        import transformers as hf

        if family == "Llama":
            heads = shape["num_attention_heads"]
            config: Any = hf.LlamaConfig(
                vocab_size=vocab,
                max_position_embeddings=window,
                tie_word_embeddings=True,
                num_key_value_heads=heads,
                **shape,
            )
            return Model(hf.LlamaForCausalLM(config).eval(), "causal")
        if family == "Bert":
            return Model(
                hf.BertForMaskedLM(hf.BertConfig(vocab_size=vocab, max_position_embeddings=window, **shape)).eval(),
                "masked",
            )
        if family == "T5":
            config = hf.T5Config(  # type: ignore[call-arg]
                vocab_size=vocab, decoder_start_token_id=0, feed_forward_proj="gated-gelu", **shape)
            return Model(hf.T5ForConditionalGeneration(config).eval(), "seq2seq", about={"window": window})
        config = hf.ViTConfig(  # type: ignore[call-arg]
            image_size=8, patch_size=2, num_channels=1, num_labels=10, **shape)
        return Model(hf.ViTForImageClassification(config).eval(), "classifier")


def save(model: Model, folder: Path, card: str) -> Path:
    """See `Model.save`. Written beside and moved into place, so that a broken write leaves nothing behind."""
    if not hasattr(model.net, "save_pretrained"):
        raise Bad(
            f"{type(model.net).__name__} is not a Hugging Face model: it has no Hugging Face directory to save to"
        )
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.net.save_pretrained(part)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(part)
    (part / "trainlore.json").write_text(
        json.dumps({"kind": model.kind, "about": model.about, "trail": list(model.trail)}, indent=1)
    )
    (part / "README.md").write_text(card or "---\nlibrary_name: transformers\ntags: [trainlore]\n---\n")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder
