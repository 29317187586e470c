"""What is kept: checkpoints, finished steps by content, and the ledger of runs. Every write is whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlore.errors import Bad

if TYPE_CHECKING:
    import torch

    from trainlore.nouns import Data, Model, Report


def home() -> Path:
    """Where caches live: $TRAINLORE_HOME, or ~/.cache/trainlore."""
    return Path(os.environ.get("TRAINLORE_HOME") or Path.home() / ".cache" / "trainlore")


def write(path: Path, content: str | bytes) -> None:
    """Write a file whole: beside it first, then moved into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        _settled(part)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise full(error, path) from error


def _settled(path: Path) -> None:
    """Wait until the file lies on the disk: a machine that loses its power keeps names before it keeps contents."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def full(error: OSError, path: Path) -> Exception:
    """A full disk in words, any other error as it is."""
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return Bad(f"the disk is full: {path} could not be written; free some room and `trainlore resume` the run")
    return error


# ---- trees of tensors, numbers and text, without pickle


def save_tree(tree: Any, folder: Path, shards: Path | None = None) -> None:
    """Write a tree (dicts, lists, tensors, numbers, text) as tree.json and tensors.safetensors, whole or not at all.

    `shards`: a folder of more files that belong to it, moved in."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()  # memory that is in the file already
    mixed = len({_home(t) == "cpu" for t in _tensors(tree)}) > 1  # some on an accelerator, some beside it

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
                _settled(file)
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


def _tensors(tree: Any) -> Iterator[Any]:
    """All tensors of a tree."""
    if isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(value)
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


class Checkpoints:
    """The checkpoints of one training: the two newest are kept, a damaged one is passed over with a warning.

    The state is copied and written by a thread, so that the training goes on meanwhile; a write that fails is told at
    the next save or at the end. Sharded states are written by the threads of all processes together.
    """

    def __init__(self, folder: Path | None, every: float, team: Any = None) -> None:
        self.folder, self.every, self.saved = folder, every, time.monotonic()
        self.team = team
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        if self.folder is not None and self.leads:
            for part in self.folder.glob(".step-*.part"):  # of a process that was killed while it wrote
                place = self.folder / part.name.split(".")[1]
                if part.name.endswith(".old.part") and not place.exists():  # when it had just made way for a new one
                    os.replace(part, place)
                shutil.rmtree(part, ignore_errors=True)
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            self._written()
        except Bad:
            if kind is None:  # else the error that ended the training is the one to tell
                raise
        finally:
            self.pool.shutdown(wait=True)

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.team is None or self.team.leads

    def last_good(self) -> Path | None:
        """The newest checkpoint whose weights are numbers: the loss may have told a step too late that they are not."""
        with suppress(Bad):
            self._written()
        return next((path for path in reversed(self._found()) if _is_good(path)), None)

    def _found(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("step-*"))

    def newest(self, device: Any, spread: bool = False) -> dict[str, Any] | None:
        """The newest whole state, or None. `spread`: weights that were shared out are again, over the processes there are now."""
        for path in reversed(self._found()):
            try:
                tree = load_tree(path, device)
                if (path / "shards").is_dir():
                    from trainlore import sharding

                    room = sharding.places(tree, self.team, spread)
                    sharding.read_shards(room, str(path / "shards"))
                    tree = sharding.joined(tree, room)
                return tree
            except (OSError, ValueError, KeyError) as error:
                import warnings

                warnings.warn(f"checkpoint {path} cannot be read ({error}); going on from the one before", stacklevel=2)
        return None

    def due(self) -> bool:
        """Whether enough time has passed since the last one."""
        return self.folder is not None and self.leads and time.monotonic() - self.saved > self.every

    def save(self, state: Callable[[], dict[str, Any]]) -> None:
        """Save now; the writing may go on beside the training."""
        if self.folder is None:
            return
        self._written()
        self.saved = time.monotonic()
        tree = state()
        place = self.folder / f"step-{tree['t']:010d}"
        if self.team is not None and self.team.size > 1:
            from trainlore import sharding

            shards: dict[str, Any] = {}
            tree = sharding.parted(tree, shards)
            if shards:
                group = self.team.beside()
                self.writing = self.pool.submit(self._together, set_aside(tree), shards, place, group)
                return
        if self.leads:
            self.writing = self.pool.submit(self._write, set_aside(tree), place)

    def _together(self, tree: Any, shards: dict[str, Any], place: Path, group: Any) -> None:
        from trainlore import sharding

        aside = place.with_name(f".{place.name}.shards.part")
        if self.leads:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self.team.wait(group)
        sharding.write_shards(shards, str(aside), group)
        self.team.wait(group)
        if self.leads:
            save_tree(tree, place, shards=aside)
            self._pruned()
        self.team.wait(group)

    def _write(self, tree: Any, place: Path) -> None:
        save_tree(tree, place)
        self._pruned()

    def _pruned(self) -> None:
        for old in self._found()[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def _written(self) -> None:
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()


def _is_good(path: Path) -> bool:
    """Whether a checkpoint can be read and its weights are numbers."""
    from safetensors.torch import load_file

    try:
        net = load_tree(path)["net"]
        spread = {v["__shard__"] for v in net.values() if isinstance(v, dict)}
        files = [load_file(file) for file in (path / "shards").glob("*.safetensors")] if spread else []
        apart = [v for file in files for name, v in file.items() if name in spread]
        return all(bool(v.isfinite().all()) for v in [*_tensors(net), *apart] if v.is_floating_point())
    except (OSError, ValueError, KeyError):
        return False


# ---- nouns by content


class Store:
    """Finished steps under the hash of what made them. Columns are shared: a selection costs its row numbers."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        """Where the step with this key lies or would lie."""
        return self.root / "steps" / key

    def has(self, key: str) -> bool:
        """Whether the step was finished."""
        return (self.folder(key) / "done.json").exists()

    @contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Hold the step while it is made; another process that wants it waits. A process that dies lets go."""
        import fcntl

        place = self.root / "claims" / key
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def put(self, key: str, noun: Data | Model | Report, record: dict[str, Any]) -> bool:
        """Keep a finished step: its noun and the record of how it went. False where the noun cannot be kept safely."""
        from trainlore.nouns import Data, Model

        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if isinstance(noun, Data):
                self._put_data(noun, folder)
            elif isinstance(noun, Model):
                if not _put_model(noun, folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    return False
            else:
                tree = [
                    {**vars(m), "groups": {k: list(v) for k, v in m.groups.items()}, "notes": json.dumps(m.notes)}
                    for m in noun.measured
                ]
                save_tree(tree, folder / "report")
            write(folder / "done.json", json.dumps({"noun": type(noun).__name__, **record}))
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise full(error, folder) from error
            raise
        return True

    def record(self, key: str) -> dict[str, Any]:
        """How the step went when it ran."""
        return json.loads((self.folder(key) / "done.json").read_text())

    def get(self, key: str) -> Any:
        """The noun a finished step gave. Raises Bad where its files are damaged, and forgets the step."""
        from trainlore.nouns import Measured, Report

        folder, noun = self.folder(key), self.record(key)["noun"]
        try:
            if noun == "Data":
                return self._get_data(folder)
            if noun == "Model":
                return _get_model(folder)
            return Report(
                tuple(Measured(**{**m, "notes": json.loads(m["notes"])}) for m in load_tree(folder / "report"))
            )
        except Bad:
            raise
        except (FileNotFoundError, ValueError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise Bad(
                f"what a finished step gave cannot be read any more ({error}), and is forgotten: "
                "`trainlore resume` makes it anew"
            ) from error

    def _put_data(self, data: Data, folder: Path) -> None:
        import pyarrow as pa

        for name, digest in data.hashes().items():
            path = self.root / "columns" / f"{digest}.arrow"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.name}.{os.getpid()}.part")
                table = data.table.select([name]).rename_columns(["c"])
                try:
                    with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                        writer.write_table(table)
                    _settled(part)
                    os.replace(part, path)
                finally:
                    part.unlink(missing_ok=True)
        tree = {"columns": data.hashes(), "rows": data.rows, "ids": data.base_ids, "trail": json.dumps(data.trail)}
        save_tree(tree, folder / "data")

    def _get_data(self, folder: Path) -> Data:
        import pyarrow as pa

        from trainlore.nouns import Data

        tree = load_tree(folder / "data")
        columns = {}
        for name, digest in tree["columns"].items():
            path = self.root / "columns" / f"{digest}.arrow"
            try:
                columns[name] = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["c"]
            except pa.ArrowInvalid:  # cut off: the step that makes it anew is to write it anew
                path.unlink()
                raise
        memo = {("hash", n): d for n, d in tree["columns"].items()}
        return Data(pa.table(columns), tree["rows"], tree["ids"], tuple(json.loads(tree["trail"])), memo)


def _put_model(model: Model, folder: Path) -> bool:
    """Class, config and weights. False if the network is no longer what its config says (adapters, parametrizations):
    without pickle there is no honest way to keep that, so such a step is run again when it is needed."""
    net, config = model.net, getattr(model.net, "config", None)
    form: dict[str, Any]
    if config is not None and type(net).__module__.startswith("transformers."):
        form = {"class": type(net).__name__, "config": config.to_json_string(use_diff=False)}
    elif "preset" in model.about:
        form = {"preset": model.about["preset"]}
    else:
        return False
    fresh, mine = _skeleton(form).state_dict(), net.state_dict()
    if {k: v.shape for k, v in fresh.items()} != {k: v.shape for k, v in mine.items()}:
        return False
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    rest = {"kind": model.kind, "about": model.about, "trail": model.trail, "probe": model.probe, "frozen": frozen}
    rest["grids"] = {path: grid.state() for path, grid in model.grids.items()}
    save_tree({"form": form, "weights": dict(mine), **rest}, folder / "model")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder / "tokenizer")
    return True


def _skeleton(form: dict[str, Any]) -> Any:
    """A network of this form, its weights still to be filled in."""
    if "preset" in form:
        from trainlore.nouns.hugging import preset

        return preset(**form["preset"]).net
    import transformers

    from trainlore.randomness import global_streams

    cls, config = getattr(transformers, form["class"]), json.loads(form["config"])
    from trainlore.primitives.shrinking import shaped

    with global_streams(0, "skeleton"):
        return shaped(cls(cls.config_class(**config)))


def _get_model(folder: Path) -> Model:
    from trainlore.nouns import Model

    tree = load_tree(folder / "model")
    net = _skeleton(tree["form"])
    net.load_state_dict(tree["weights"])
    frozen = set(tree["frozen"])
    for name, weight in net.named_parameters():
        weight.requires_grad_(name not in frozen)
    tokenizer = None
    if (folder / "tokenizer").exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    from trainlore.primitives.grids import from_state

    grids = from_state(tree["grids"])
    return Model(net.eval(), tree["kind"], tokenizer, tree["about"], tree["trail"], tree["probe"], grids)


def hash_of(*parts: Any) -> str:
    """One short hash of anything JSON can hold."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


# ---- the ledger of runs


def ledger(root: Path) -> Any:
    """The SQLite list of runs under this folder (write-ahead log: readers never wait)."""
    import sqlite3

    root.mkdir(parents=True, exist_ok=True)
    base = sqlite3.connect(root / "ledger.sqlite", timeout=30)
    base.execute("pragma journal_mode=wal")
    base.execute(
        "create table if not exists runs (folder text primary key, name text, started real, ended real, state text, summary text)"
    )
    return base


def enter(root: Path, folder: Path, name: str, state: str, summary: dict[str, Any] | None = None) -> None:
    """Write or update the run's line in the ledger; a ledger that cannot be written stops no run."""
    import sqlite3

    now = time.time()
    with suppress(sqlite3.Error, OSError), closing(ledger(root)) as base, base:
        base.execute(
            "insert into runs values (?, ?, ?, ?, ?, ?) on conflict (folder) do update set state = excluded.state, "
            "ended = excluded.ended, summary = excluded.summary",
            (folder.name, name, now, None if state == "running" else now, state, json.dumps(summary or {})),
        )


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
    for tensor in _tensors(tree):
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


def jsonable(value: Any) -> Any:
    """What `json` does not know, as it stands in our records: arrays and numbers of numpy as lists and numbers, else text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
