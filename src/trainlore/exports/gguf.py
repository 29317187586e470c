"""One GGUF file for llama.cpp: Llama, Qwen2 and GPT-2 with a byte-level BPE tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import MODEL_ARCH, TokenType
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from trainlore.errors import Bad
from trainlore.exports import llama, on_grids, own_arithmetic, timed
from trainlore.nouns import Model
from trainlore.primitives.grids import FLOATS, Grid
from trainlore.primitives.masks import weight_of
from trainlore.primitives.reparam import turned
from trainlore.primitives.shrinking import KEPT

NAME = "model.gguf"
BLOCK = llama.BLOCK
ARCHES = {
    "LlamaForCausalLM": MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": MODEL_ARCH.QWEN2,
    "GPT2LMHeadModel": MODEL_ARCH.GPT2,
}
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {CONTRACTIONS + r"\p{N}" + REST: "qwen2", CONTRACTIONS + r"\p{N}{1,3}" + REST: "llama-bpe"}


def RUNTIME(model: Model) -> str:
    """What reads it here."""
    if llama.installed():
        return llama.version()
    import transformers

    return f"transformers {transformers.__version__} (for llama.cpp itself: trainlore[export-gguf])"


def tolerance(model: Model, batch: dict[str, Any]) -> float:
    """16-bit weights, scales and arithmetic; llama.cpp also reads the inputs of packed layers in 8 bits: as far as that moves."""
    packed = list(_kinds(model)) if llama.installed() else []
    return 0.01 + own_arithmetic(model, batch) + (llama.rounding(model, packed, batch) if packed else 0.0)


def write(model: Model, folder: Path) -> None:
    """Raises Bad for a family, a tokenizer or a number format that this writer does not know."""
    net: Any = model.net
    arch, config = _arch(model), net.config
    if model.tokenizer is None:
        raise Bad("gguf needs the model's tokenizer in the file, and this model has none")
    kinds = _kinds(model)
    out = gguf.GGUFWriter(str(folder / NAME), gguf.MODEL_ARCH_NAMES[arch])
    _shape(out, model, arch)
    _words(out, model)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    modules, head = dict(net.named_modules()), net.get_output_embeddings()
    tied = head.weight is net.get_input_embeddings().weight
    for name, value in net.state_dict().items():
        path, _, part = name.rpartition(".")
        if tied and part == "weight" and modules.get(path) is head:
            continue  # llama.cpp takes the words' vectors where there is no other head
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if to is None:
            raise Bad(f"gguf has no place for {name}: `fold` the model, or use hf")
        matrix = weight_of(modules[path]) if turned(modules[path]) and part == "weight" else value
        order = _order(path, len(matrix), config) if arch == MODEL_ARCH.LLAMA else slice(None)
        if part == "weight" and path in kinds:
            packed = _blocks(matrix, model.grids[path], kinds[path])[order]
            out.add_tensor(to, np.ascontiguousarray(packed), raw_dtype=kinds[path])
        else:
            out.add_tensor(to, _floats(matrix[order], exact=to.startswith("position_embd")))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def logits(folder: Path, batch: dict[str, Any], model: Model) -> tuple[Tensor, float]:
    """The logits of llama.cpp where it is installed, else of what transformers reads from the file; seconds of a pass."""
    if llama.installed():
        return llama.run(folder / NAME, batch, model)
    import transformers

    how: dict[str, Any] = {"gguf_file": NAME, "dtype": torch.float32}
    config = transformers.AutoConfig.from_pretrained(folder)
    if (
        _arch(model) == MODEL_ARCH.GPT2
        or getattr(config, "attention_bias", False)
        or getattr(config, "mlp_bias", False)
    ):
        how["config"] = config  # of the file transformers reads neither a window of GPT-2 nor that a Llama has biases
    back = Model(transformers.AutoModelForCausalLM.from_pretrained(folder, **how).eval(), model.kind)
    with torch.no_grad():
        out, seconds = timed(lambda: back(batch))
    return out.float(), seconds


# ---- what it is


def _arch(model: Model) -> MODEL_ARCH:
    """The family's name in GGUF. Raises Bad for one that is not written here, and for what llama.cpp has not in it."""
    net: Any = model.net
    name = type(net).__name__
    if name not in ARCHES:
        raise Bad(
            f"gguf is written here for {', '.join(ARCHES)}, not for {name}: use hf, onnx or, for packed linear layers, "
            "compressed-tensors"
        )
    arch, config = ARCHES[name], net.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    act = config.activation_function if arch == MODEL_ARCH.GPT2 else config.hidden_act
    narrow = config.hidden_size == config.num_attention_heads * _width(config) or arch == MODEL_ARCH.LLAMA
    odd = [
        said
        for wrong, said in (
            (getattr(config, KEPT, None), "blocks of different sizes"),
            (rope != "default", f"positions of the kind {rope}"),
            (getattr(config, "use_sliding_window", False), "a sliding window"),
            (act not in ("gelu_new", "gelu_pytorch_tanh") and arch == MODEL_ARCH.GPT2, f"the activation {act}"),
            (act not in ("silu", "swish") and arch != MODEL_ARCH.GPT2, f"the activation {act}"),
            (not narrow, "heads that together are not as wide as the model"),
            (getattr(config, "scale_attn_by_inverse_layer_idx", False), "attention scaled by layer"),
            (not getattr(config, "scale_attn_weights", True), "attention that is not scaled"),
        )
        if wrong
    ]
    if odd:
        raise Bad(f"this {name} has {odd[0]}, which llama.cpp's {gguf.MODEL_ARCH_NAMES[arch]} has not: use hf or onnx")
    return arch


def _width(config: Any) -> int:
    """Of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _shape(out: gguf.GGUFWriter, model: Model, arch: MODEL_ARCH) -> None:
    net: Any = model.net
    config = net.config
    out.add_name(type(net).__name__)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_head_count(config.num_attention_heads)
    out.add_vocab_size(config.vocab_size)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if arch == MODEL_ARCH.GPT2:
        out.add_context_length(config.n_positions)
        out.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        out.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    rope = getattr(config, "rope_parameters", None) or {}
    out.add_context_length(model.window or config.max_position_embeddings)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_key_length(_width(config))
    out.add_value_length(_width(config))
    out.add_rope_dimension_count(_width(config))
    out.add_rope_freq_base(float(rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))))
    out.add_layer_norm_rms_eps(config.rms_norm_eps)


def _words(out: gguf.GGUFWriter, model: Model) -> None:
    net: Any = model.net
    table = json.loads(model.tokenizer.backend_tokenizer.to_str())
    if table["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(table["pre_tokenizer"]):
        raise Bad(f"gguf is written with a byte-level BPE tokenizer, not {table['model']['type']}: use hf")
    words = {i: w for w, i in model.tokenizer.get_vocab().items()}
    taken = set(words.values())
    special: set[int] = set(model.tokenizer.all_special_ids)
    more: set[int] = set()
    for added in table.get("added_tokens", ()):
        (special if added["special"] else more).add(added["id"])
    tokens, types = [], []
    for i in range(net.config.vocab_size):
        word = words.get(i, f"[PAD{i}]")
        while i not in words and word in taken:  # llama.cpp ends the process where two are alike
            word += "]"
        tokens.append(word)
        plain = TokenType.USER_DEFINED if i in more else TokenType.NORMAL
        types.append(TokenType.UNUSED if i not in words else TokenType.CONTROL if i in special else plain)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(_split(table))
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in table["model"]["merges"]])
    for name in ("bos", "eos", "pad"):
        if (number := getattr(model.tokenizer, f"{name}_token_id")) is not None:
            getattr(out, f"add_{name}_token_id")(number)
    ids = model.tokenizer("a")["input_ids"]
    out.add_add_bos_token(len(ids) > 1 and ids[0] == model.tokenizer.bos_token_id)
    out.add_add_eos_token(len(ids) > 1 and ids[-1] == model.tokenizer.eos_token_id)
    if isinstance(getattr(model.tokenizer, "chat_template", None), str):
        out.add_chat_template(model.tokenizer.chat_template)


def _split(table: dict[str, Any]) -> str:
    """What llama.cpp calls the way this tokenizer cuts text into words. Raises Bad for one that it would cut otherwise."""
    first = table["pre_tokenizer"]
    parts = first["pretokenizers"] if first["type"] == "Sequence" else [first]
    types, last = [p["type"] for p in parts], parts[-1]
    found = None
    if not last.get("add_prefix_space") and (table["normalizer"] or {"type": "NFC"})["type"] == "NFC":
        if types == ["ByteLevel"] and last.get("use_regex", True):
            found = "gpt-2"
        elif types == ["Split", "ByteLevel"] and parts[0]["behavior"] == "Isolated":
            found = SPLITS.get(parts[0]["pattern"].get("Regex", ""))
    if found is None or bool(table["model"].get("ignore_merges")) != (found == "llama-bpe"):
        raise Bad(f"llama.cpp cuts text otherwise than this tokenizer ({', then '.join(types)}): use hf")
    return found


# ---- its weights


def _kinds(model: Model) -> dict[str, Kind]:
    """The type of GGUF that holds each packed layer, by path."""
    modules = dict(model.net.named_modules())
    return {path: _kind(path, grid, weight_of(modules[path]).shape[1]) for path, grid in on_grids(model).items()}


def _kind(path: str, grid: Any, width: int) -> Kind:
    """The smallest type of GGUF that is exactly this grid, up to the 16 bits of its scales."""
    whole = isinstance(grid, Grid) and grid.form not in FLOATS
    if (
        whole
        and grid.form != "uint8"
        and width % BLOCK == 0
        and (grid.per if isinstance(grid.per, int) else 0) % BLOCK == 0
    ):
        small = {4: (Kind.Q4_0, Kind.Q4_1), 5: (Kind.Q5_0, Kind.Q5_1), 8: (Kind.Q8_0, Kind.Q8_0)}
        return small[next(b for b in small if grid.bits <= b)][grid.form.startswith("u")]
    form = f"in {grid.form} per {grid.per}" if isinstance(grid, Grid) else "a codebook's"
    other = "compressed-tensors" if isinstance(grid, Grid) and (whole or grid.form == "e4m3") else "hf"
    raise Bad(
        f"{path}, of {width} inputs, is {form}; gguf holds int2 to int8 and uint2 to uint7 where whole blocks of {BLOCK} "
        f"inputs share a scale: quantize so, or use {other}"
    )


def _blocks(matrix: Tensor, grid: Grid, kind: Kind) -> np.ndarray:
    """Rows of blocks as bytes (out, bytes): a scale and perhaps the least value, fifth bits, then the codes.

    Of codes below 16 the first half of a block lies in the low, the second in the high halves of the bytes.
    """
    out, width = matrix.shape
    scale, zero = (t.expand(out, width)[:, ::BLOCK].unsqueeze(-1) for t in grid.columns(width))
    codes = grid.codes(matrix).to(torch.int16).view(out, -1, BLOCK)
    parts = [_half(scale)]
    if kind == Kind.Q8_0:
        parts.append((codes - zero).to(torch.int8).numpy().view(np.uint8))
        return np.concatenate(parts, -1).reshape(out, -1)
    if kind in (Kind.Q4_1, Kind.Q5_1):
        parts.append(_half(-zero * scale))
        above = codes
    else:
        above = codes + (8 if kind == Kind.Q4_0 else 16)
    bits = above.to(torch.uint8).numpy()
    if kind in (Kind.Q5_0, Kind.Q5_1):
        parts.append(np.packbits(bits >> 4, axis=-1, bitorder="little"))
    low = bits & 15
    parts.append(low[..., : BLOCK // 2] | (low[..., BLOCK // 2 :] << 4))
    return np.concatenate(parts, -1).reshape(out, -1)


def _half(values: Tensor) -> np.ndarray:
    """Float16 as bytes: (..., 1) -> (..., 2)."""
    return np.ascontiguousarray(values.float().numpy().astype(np.float16)).view(np.uint8)


def _floats(value: Tensor, exact: bool = False) -> np.ndarray:
    """Matrices in float16, unless a value is beyond it; vectors, and what is asked for, in float32."""
    array = value.float().numpy()
    small = value.dim() > 1 and not exact and float(np.abs(array).max(initial=0.0)) <= float(np.finfo(np.float16).max)
    return array.astype(np.float16 if small else np.float32)


def _order(path: str, rows: int, config: Any) -> Any:
    """The order of a Llama's queries and keys in llama.cpp, which turns pairs that lie side by side, not halves of a head."""
    last = path.rpartition(".")[2]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(last)
    if heads is None:
        return slice(None)
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
