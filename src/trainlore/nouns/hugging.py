"""Models from and to Hugging Face directories, and the small presets made from configs."""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from trainlore.errors import Bad
from trainlore.nouns.model import Model
from trainlore.randomness import global_streams
from trainlore.registry import near
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

    from trainlore.primitives.shrinking import KEPT, cutting

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
    said = str(source)
    path = Path(said).expanduser()
    local = path.is_dir() and not said.startswith("hub:")
    name = str(path) if local else said.removeprefix("hub:")
    if local:
        _check_folder(path)
    elif path.is_file():
        raise Bad(f"{source} is a file: a model is a folder with a config.json and *.safetensors, a preset or a Hub id")
    elif said.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise Bad(f"no model at {source}: there is no such folder")
    elif "/" not in said and not said.startswith("hub:") and (hint := near(said, PRESETS)):
        raise Bad(f"no model {said!r}{hint} A model of the Hub is hub:{said}")
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=remote_code, local_files_only=local)
    except (OSError, ValueError) as error:
        if local:
            raise Bad(f"the config of {name} does not load: {_first(error)}") from None
        presets = ", ".join(PRESETS)
        raise Bad(
            f"no model {name!r}: not a folder, not one of the presets ({presets}), and the Hub did not give it: {_first(error)}"
        ) from None
    about = json.loads((path / "trainlore.json").read_text()) if local and (path / "trainlore.json").exists() else {}
    arch = next(iter(config.architectures or ()), "")
    known = next((k for end, k in SUFFIXES.items() if arch.endswith(end)), "encoder")
    kind = kind or about.get("kind") or known
    own = kind == about.get("kind", known)  # else the body gets a new head
    cls = (getattr(transformers, arch, None) if own else None) or classes.get(kind, transformers.AutoModel)
    how = {"use_safetensors": True, "trust_remote_code": remote_code, "local_files_only": local}
    try:
        with global_streams(seed, "weights"):
            made = cutting(cls) if getattr(config, KEPT, None) else cls  # blocks that differ: see primitives.shrinking
            net, info = made.from_pretrained(name, output_loading_info=True, **how)
            if made is not cls:
                net.__class__ = cls
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise Bad(f"the model in {name} does not load: {_first(error)}") from None
    if own and (lost := sorted(info["missing_keys"])):
        raise Bad(f"the model in {name} does not load: {len(lost)} weights are not in its files, {lost[0]} among them")
    tokenizer = _tokenizer(path if local else name, remote_code)
    model = Model(net.eval(), kind, tokenizer, about.get("about", {}), tuple(about.get("trail", ())))
    if local and (path / "grids").is_dir():
        from trainlore.primitives.grids import from_state
        from trainlore.trees import load_tree

        model.grids = from_state(load_tree(path / "grids"))
    return model


def _tokenizer(source: str | Path, remote_code: bool) -> Any:
    """The tokenizer beside a model, or None: a vision model, or one whose tokenizer lies elsewhere."""
    import transformers

    local, cls = isinstance(source, Path), transformers.AutoTokenizer
    with suppress(OSError, ValueError):  # one that names no family: the network's family would put its own rules on it
        found = json.loads((Path(source) / "tokenizer_config.json").read_text()).get("tokenizer_class") if local else ""
        if found in ("PreTrainedTokenizerFast", "TokenizersBackend"):
            cls = transformers.PreTrainedTokenizerFast
    try:
        tokenizer = cls.from_pretrained(str(source), trust_remote_code=remote_code, local_files_only=local)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_folder(path: Path) -> None:
    if not (path / "config.json").exists():
        if (path / "adapter_config.json").exists():
            raise Bad(f"{path} holds adapters of peft, not a model: `fold` the model before it is saved")
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


def fields(name: str) -> list[str]:
    """The names of what can be changed about a preset."""
    family, shape = PRESETS[name]
    if family == "mlp":
        return ["seed", "inputs", "classes", "width", "depth"]
    import transformers

    more = ["labels"] if family == "Bert" else []
    return ["seed", "vocab", "window", *more, *shape, *vars(getattr(transformers, f"{family}Config")())]


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
            fixed = {"tie_word_embeddings": True, "num_key_value_heads": shape["num_attention_heads"]}
            config: Any = hf.LlamaConfig(vocab_size=vocab, max_position_embeddings=window, **{**fixed, **shape})
            return Model(hf.LlamaForCausalLM(config).eval(), "causal")
        if family == "Bert":
            labels = shape.pop("labels", None)  # with classes it is a classifier of rows, without it fills in words
            if labels is not None:
                config = hf.BertConfig(vocab_size=vocab, max_position_embeddings=window, num_labels=labels, **shape)  # type: ignore[call-arg]
                return Model(hf.BertForSequenceClassification(config).eval(), "classifier")
            config = hf.BertConfig(vocab_size=vocab, max_position_embeddings=window, **shape)
            return Model(hf.BertForMaskedLM(config).eval(), "masked")
        if family == "T5":
            config = hf.T5Config(  # type: ignore[call-arg]
                vocab_size=vocab, decoder_start_token_id=0, feed_forward_proj="gated-gelu", **shape
            )
            return Model(hf.T5ForConditionalGeneration(config).eval(), "seq2seq", about={"window": window})
        config = hf.ViTConfig(  # type: ignore[call-arg]
            image_size=8, patch_size=2, num_channels=1, num_labels=10, **shape
        )
        return Model(hf.ViTForImageClassification(config).eval(), "classifier")


def save(model: Model, folder: Path, card: str) -> Path:
    """See `Model.save`. Written beside and moved into place, so that a broken write leaves nothing behind."""
    if not hasattr(model.net, "save_pretrained"):
        raise Bad(
            f"{type(model.net).__name__} is not a Hugging Face model: it has no Hugging Face directory to save to"
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "trainlore.json").exists()):
        raise Bad(f"{folder} is there and is no model saved by trainlore, so it is not replaced: choose another place")
    if odd := _odd(model.net):
        if any(word in f".{odd}." for word in (".reads.", ".probabilities.")):
            raise Bad(
                f"the network rounds what it reads ({odd}), which a Hugging Face directory cannot hold: save it before that step"
            )
        raise Bad(f"the network is no longer what its config says ({odd}): `fold` it before it is saved")
    part = folder.resolve().with_name(folder.resolve().name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        model.net.save_pretrained(part)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(part)
        (part / "trainlore.json").write_text(
            json.dumps({"kind": model.kind, "about": model.about, "trail": list(model.trail)}, indent=1)
        )
        if model.grids:
            from trainlore.trees import save_tree

            save_tree({path: grid.state() for path, grid in model.grids.items()}, part / "grids")
        (part / "README.md").write_text(card or "---\nlibrary_name: transformers\ntags: [trainlore]\n---\n")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        if "No space left" in str(error):  # the safetensors library wraps the system's error
            raise Bad(f"the disk is full: {folder} could not be written; free some room and try again") from error
        raise
    return folder


def _odd(net: nn.Module) -> str:
    """A weight that a network made anew of the config has not, or has in another shape; nothing where all agree.

    Adapters of peft are saved as such, in peft's own format."""
    if not type(net).__module__.startswith("transformers.") or getattr(net, "_hf_peft_config_loaded", False):
        return ""
    from trainlore.primitives.shrinking import shaped

    with torch.device("meta"):
        anew = shaped(type(net)(copy.deepcopy(net.config)))  # type: ignore[call-arg]
    fresh = {k: v.shape for k, v in anew.state_dict().items()}
    mine = {k: v.shape for k, v in net.state_dict().items()}
    return next((k for k in {**fresh, **mine} if fresh.get(k) != mine.get(k)), "")
