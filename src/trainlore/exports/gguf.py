"""One GGUF file for llama.cpp: Llama and its kin with a byte-level BPE tokenizer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from trainlore.errors import Bad
from trainlore.exports import timed
from trainlore.nouns import Model
from trainlore.primitives.grids import Grid

NAME = "model.gguf"
BLOCK = 32  # values that share a scale in Q4_0 and Q8_0


def RUNTIME() -> str:
    """What reads it here."""
    if importlib.util.find_spec("llama_cpp"):
        import llama_cpp

        return f"llama-cpp-python {llama_cpp.__version__}"
    import transformers

    return f"transformers {transformers.__version__} (llama-cpp-python is not installed)"


def tolerance(model: Model) -> float:
    """16-bit weights and scales, and 16-bit arithmetic in the runtime."""
    return 0.01


def write(model: Model, folder: Path) -> None:
    """Raises Bad for a family, a tokenizer or a number format that this writer does not know."""
    net: Any = model.net
    config = net.config
    if type(net).__name__ != "LlamaForCausalLM":
        raise Bad(f"gguf is written for LlamaForCausalLM, not {type(net).__name__}: use hf or compressed-tensors")
    if model.tokenizer is None:
        raise Bad("gguf needs the model's tokenizer in the file, and this model has none")
    kinds = {f"{path}.weight": (_kind(path, grid), grid) for path, grid in model.grids.items()}
    out = gguf.GGUFWriter(str(folder / NAME), "llama")
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    out.add_name(type(net).__name__)
    out.add_context_length(model.window or config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(heads)
    out.add_head_count_kv(groups)
    out.add_key_length(width)
    out.add_value_length(width)
    out.add_rope_dimension_count(width)
    out.add_rope_freq_base(float(_theta(config)))
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    _words(out, model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in net.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if to is None:
            raise Bad(f"gguf has no place for {name}: use hf")
        kind, grid = kinds.get(name, (Kind.F32 if value.dim() == 1 else Kind.F16, None))
        if grid is None or not grid.holds(value):  # written to since it was rounded
            array = _turned(name, value.float(), heads, groups).numpy()
            kind = Kind.F32 if value.dim() == 1 else Kind.F16
            out.add_tensor(to, array.astype(np.float32 if kind == Kind.F32 else np.float16))
            continue
        codes = _turned(name, grid.codes(value).float(), heads, groups).to(torch.int8)
        scale = grid.scale.view(len(value), -1)
        scale = _turned(name, scale, heads, groups)
        out.add_tensor(to, _blocks(codes, scale, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _theta(config: Any) -> float:
    scaling = getattr(config, "rope_parameters", None) or {}
    return scaling.get("rope_theta", getattr(config, "rope_theta", 10000.0))


def _kind(path: str, grid: Any) -> Kind:
    """The type of GGUF that is exactly this grid."""
    if isinstance(grid, Grid) and grid.per == BLOCK and grid.form in ("int4", "int8"):
        return Kind.Q4_0 if grid.form == "int4" else Kind.Q8_0
    form = f"{grid.form} per {grid.per}" if isinstance(grid, Grid) else "a codebook"
    raise Bad(
        f"{path} is {form}; gguf holds int4 and int8 in groups of {BLOCK} as they are (symmetric: true, per: {BLOCK}): "
        "quantize so, or use compressed-tensors"
    )


def _turned(name: str, value: Tensor, heads: int, groups: int) -> Tensor:
    """Rows of queries and keys in the order that llama.cpp turns them in: pairs side by side, not halves."""
    n = heads if name.endswith("q_proj.weight") else groups if name.endswith("k_proj.weight") else 0
    if not n:
        return value
    return value.reshape(n, 2, value.shape[0] // n // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _blocks(codes: Tensor, scale: Tensor, kind: Kind) -> np.ndarray:
    """Rows of blocks as bytes: a float16 scale, then 32 codes; 4-bit ones the first 16 low, the last 16 high."""
    rows = codes.view(len(codes), -1, BLOCK).numpy()
    d = scale.numpy().astype(np.float16).view(np.uint8).reshape(len(codes), -1, 2)
    if kind == Kind.Q8_0:
        packed: Any = rows.view(np.uint8)
    else:
        shifted = (rows + 8).astype(np.uint8)
        packed = shifted[..., :16] | (shifted[..., 16:] << 4)
    return np.concatenate([d, packed], -1).reshape(len(codes), -1)


def _words(out: gguf.GGUFWriter, model: Model) -> None:
    table = json.loads(model.tokenizer.backend_tokenizer.to_str())
    if table["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(table["pre_tokenizer"]):
        raise Bad(f"gguf is written with a byte-level BPE tokenizer, not {table['model']['type']}: use hf")
    words = {i: w for w, i in model.tokenizer.get_vocab().items()}
    special = set(model.tokenizer.all_special_ids)
    net: Any = model.net
    size = net.config.vocab_size
    tokens = [words.get(i, f"[PAD{i}]") for i in range(size)]
    types = [
        gguf.TokenType.UNUSED if i not in words else gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL
        for i in range(size)
    ]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in table["model"]["merges"]])
    for name in ("bos", "eos", "pad"):
        if (number := getattr(model.tokenizer, f"{name}_token_id")) is not None:
            getattr(out, f"add_{name}_token_id")(number)
    out.add_add_bos_token(False)


def logits(folder: Path, batch: dict[str, Any], model: Model) -> tuple[Tensor, float]:
    """The logits of llama.cpp where it is installed, else of what transformers reads from the file; seconds of a pass."""
    if importlib.util.find_spec("llama_cpp"):
        return _llama(folder, batch, model)
    from transformers import LlamaForCausalLM

    net = LlamaForCausalLM.from_pretrained(folder, gguf_file=NAME, dtype=torch.float32)
    back = Model(net.eval(), model.kind)
    with torch.no_grad():
        out, seconds = timed(lambda: back(batch))
    return out.float(), seconds


def _llama(folder: Path, batch: dict[str, Any], model: Model) -> tuple[Tensor, float]:
    import time

    from llama_cpp import Llama

    made = Llama(str(folder / NAME), n_ctx=batch["input_ids"].shape[1] + 1, logits_all=True, verbose=False)
    rows, spent = [], 0.0
    with torch.no_grad():
        plain = model(batch).float()
    for at, ids in enumerate(batch["input_ids"].tolist()):
        length = int(batch["attention_mask"][at].sum()) if "attention_mask" in batch else len(ids)
        made.reset()
        start = time.perf_counter()
        made.eval(ids[:length])
        spent += time.perf_counter() - start
        row = plain[at].clone()  # padding has no logits there
        row[:length] = torch.from_numpy(np.array(made.scores[:length]))
        rows.append(row)
    return torch.stack(rows), spent
