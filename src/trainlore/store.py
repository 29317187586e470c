"""What is kept: finished steps by content, and the ledger of runs. Every write is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlore.errors import Bad
from trainlore.trees import full, load_tree, save_tree, settled

if TYPE_CHECKING:
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
        settled(part)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise full(error, path) from error


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
                    settled(part)
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


def jsonable(value: Any) -> Any:
    """What `json` does not know, as it stands in our records: arrays and numbers of numpy as lists and numbers, else text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
