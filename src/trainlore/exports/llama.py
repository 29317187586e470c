"""llama.cpp through llama-cpp-python: what it makes of a file, and what its arithmetic does to the inputs of packed layers."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.exports import timed
from trainlore.nouns import Model
from trainlore.steps import distance

BLOCK = 32  # values that share a scale
TEXT = "It's 1,234 o'clock: don't\n\n\tdef f(x):  return x ** 2  # naïve, 数字 1999\n"


def installed() -> bool:
    """Whether llama-cpp-python is there."""
    return importlib.util.find_spec("llama_cpp") is not None


def version() -> str:
    """Its name and version."""
    import llama_cpp

    return f"llama-cpp-python {llama_cpp.__version__}"


def run(file: Path, batch: dict[str, Any], model: Model) -> tuple[Tensor, float]:
    """The logits (B,T,V) of every place that is not padding (0 there), and the seconds of a pass over all rows.

    Nothing is put before a row: it reads the very ids. Raises Bad where it does not load the file, and where it makes
    other ids of the same text.
    """
    from llama_cpp import Llama

    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids)).bool()
    rows = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    threads = torch.get_num_threads()
    try:
        made = Llama(
            str(file), n_ctx=ids.shape[1], n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
        )
    except ValueError as error:
        raise Bad(f"llama.cpp does not load what was written ({error}): use hf") from None
    try:
        _same_words(made, model, rows)

        def read() -> list[Tensor]:
            found = []
            for row in rows:
                made.reset()
                made.eval(row)
                found.append(torch.from_numpy(made.scores[: len(row)].copy()))
            return found

        each, seconds = timed(read)
    finally:
        made.close()
    out = torch.zeros(*ids.shape, each[0].shape[-1])
    out[mask] = torch.cat(each)
    return out, seconds


def _same_words(made: Any, model: Model, rows: list[list[int]]) -> None:
    for text in (TEXT, *model.tokenizer.batch_decode(rows[:4])):
        mine = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = made.tokenize(text.encode(), add_bos=False, special=True)
        if list(mine) != list(found):
            raise Bad(f"llama.cpp reads {text[:40]!r} as {found[:8]}..., the tokenizer as {mine[:8]}...: use hf")


def rounding(model: Model, paths: list[str], batch: dict[str, Any]) -> float:
    """How far the logits move when the inputs of these layers are rounded as llama.cpp rounds them."""
    hooks = [model.net.get_submodule(p).register_forward_pre_hook(partial(_reads, rounded)) for p in paths]
    try:
        with torch.no_grad():
            after = model(batch).float()
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        return distance(model(batch).float(), after)


def rounded(x: Tensor) -> Tensor:
    """Runs of 32 inputs as 8-bit whole numbers of one 16-bit scale: the shape of x."""
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = (blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return (codes * scale.half().float()).flatten(-2).to(x.dtype)


def _reads(how: Any, layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (how(args[0]), *args[1:])
