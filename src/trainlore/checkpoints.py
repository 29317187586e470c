"""Checkpoints of a training: written beside it, told by their hash, the oldest taken away."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainlore.errors import Bad
from trainlore.trees import load_tree, save_tree, set_aside, tensors_of


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
        return all(bool(v.isfinite().all()) for v in [*tensors_of(net), *apart] if v.is_floating_point())
    except (OSError, ValueError, KeyError):
        return False
