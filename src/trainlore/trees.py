"""Trees of tensors, numbers and text, kept in folders without pickle, and their copies. Every write is whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainlore.errors import Bad


def save_tree(tree: Any, folder: Path, shards: Path | None = None) -> None:
    """Write a tree (dicts, lists, tensors, numbers, text) as tree.json and tensors.safetensors, whole or not at all.

    `shards`: a folder of more files that belong to it, moved in."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()  # memory that is in the file already
    mixed = len({_home(t) == "cpu" for t in tensors_of(tree)}) > 1  # some on an accelerator, some beside it

    def flat(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            name, held = str(len(tensors)), value.detach().cpu().contiguous()
            memory = held.untyped_storage().data_ptr()
            tensors[name] = held.clone() if memory in seen else held  # the file format knows no shared memory
            seen.add(memory)
            return {"beside" if mixed and _home(value) == "cpu" else "tensor": name}
        if isinstance(value, dict):
            return {"dict": [[flat(k), flat(v)] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            return {"list" if isinstance(value, list) else "tuple": [flat(v) for v in value]}
        if hasattr(value, "dtype") and hasattr(value, "tolist"):
            return {"array": flat(torch.as_tensor(value))} if value.ndim else value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a part's state may hold tensors, numbers, text, lists and dicts, not {type(value).__name__}")

    text = json.dumps(flat(tree))
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        save_file(tensors, part / "tensors.safetensors")
        (part / "tree.json").write_text(text)
        if shards is not None:
            os.replace(shards, part / "shards")
        (part / "hash").write_text(_digest(part, text))
        for file in part.rglob("*"):
            if file.is_file():
                settled(file)
        if folder.exists():  # moved away whole: killed while it were emptied, neither would be there
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old.part")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
            os.replace(part, folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(part, folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise full(error, folder) from error
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        if "No space left" in str(error):  # the safetensors library wraps the error
            raise Bad(
                f"the disk is full: {folder} could not be written; free some room and `trainlore resume` the run"
            ) from error
        raise


def tensors_of(tree: Any) -> Iterator[Any]:
    """All tensors of a tree."""
    if isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors_of(value)
    elif hasattr(tree, "is_floating_point"):
        yield tree


def _home(tensor: Any) -> str:
    """The kind of device a tensor belongs to: where it is, or was before it was copied for a checkpoint."""
    return str(getattr(tensor, "home", tensor.device.type))


def _digest(folder: Path, text: str) -> str:
    """The hash of a tree's files."""
    digest, room = hashlib.blake2b(), memoryview(bytearray(1 << 20))

    def read(path: Path) -> None:
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(room):
                digest.update(room[:n])

    read(folder / "tensors.safetensors")
    digest.update(text.encode())
    for file in sorted((folder / "shards").glob("*")) if (folder / "shards").is_dir() else ():
        read(file)
    return digest.hexdigest()


def load_tree(folder: Path, device: Any = "cpu") -> Any:
    """Read what `save_tree` wrote, to this device; what lay beside an accelerator stays there.

    Raises ValueError if a byte of it changed since."""
    from safetensors.torch import load

    text = (folder / "tree.json").read_text()
    if _digest(folder, text) != (folder / "hash").read_text():
        raise ValueError(f"{folder} is damaged")
    tensors = load((folder / "tensors.safetensors").read_bytes())

    def back(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((form, inside),) = value.items()
        if form in ("tensor", "beside"):
            return tensors[inside].to(device if form == "tensor" else "cpu")
        if form == "array":
            return back(inside).cpu().numpy()
        if form == "dict":
            return {back(k): back(v) for k, v in inside}
        return [back(v) for v in inside] if form == "list" else tuple(back(v) for v in inside)

    return back(json.loads(text))


# ---- copies


def copied(tree: Any, copy: Callable[[Any], Any] | None = None) -> Any:
    """The tree with tensors of its own: clones, or what `copy` makes of each."""
    from torch import Tensor

    if isinstance(tree, Tensor):
        return (copy or _clone)(tree)
    if isinstance(tree, dict):
        return {k: copied(v, copy) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copied(v, copy) for v in tree)
    return tree


def _clone(tensor: Any) -> Any:
    made = tensor.detach().clone()
    if hasattr(tensor, "home"):
        made.home = tensor.home
    return made


def set_aside(tree: Any) -> Any:
    """A copy to keep: beside the tensors, which is quick, or in memory where their accelerator has no room for it."""
    from trainlore.memory import available

    size: dict[Any, int] = {}
    for tensor in tensors_of(tree):
        size[tensor.device] = size.get(tensor.device, 0) + tensor.nbytes
    crowded = {d for d, n in size.items() if d.type != "cpu" and 2 * n > (available(d) or 0)}

    def copy(tensor: Any) -> Any:
        if tensor.device not in crowded or type(tensor).__name__ == "DTensor":
            return _clone(tensor)
        away = tensor.detach().cpu()
        away.home = tensor.device.type
        return away

    return copied(tree, copy)


def brought_back(tree: Any) -> Any:
    """A copy of what was set aside, every tensor where it was."""
    return copied(tree, lambda t: t.detach().to(t.home) if hasattr(t, "home") else _clone(t))


# ---- files


def settled(path: Path) -> None:
    """Wait until the file lies on the disk: a machine that loses its power keeps names before it keeps contents."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def full(error: OSError, path: Path) -> Exception:
    """A full disk in words, any other error as it is."""
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return Bad(f"the disk is full: {path} could not be written; free some room and `trainlore resume` the run")
    return error
