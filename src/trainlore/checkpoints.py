"""What is kept of a step while it runs: the state of a training, and the answers of a pass over rows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainlore import meter, randomness
from trainlore.errors import Bad
from trainlore.meter import Meter
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


class Answers:
    """What a pass over rows has found so far, batch by batch, so that one that is killed goes on where it was.

    Nothing is written of a pass that takes less than `every` seconds, nor without a folder. What is known of an earlier
    process is in `known`, by the place of a block's first row and the number of the batch in it."""

    def __init__(self, folder: Path | None, every: float, bill: Meter) -> None:
        self.folder, self.every, self.bill, self.saved = folder, every, bill, time.monotonic()
        self.new: list[tuple[int, int, list[Any]]] = []
        self.known: dict[tuple[int, int], list[Any]] = {}
        self.files, self.at = 0, {}  # type: ignore[var-annotated]
        for path in [] if folder is None else sorted(folder.glob("answers-*")):
            try:
                tree = load_tree(path)
            except (OSError, ValueError, KeyError):  # cut off or changed: those batches are made again
                break
            self.known |= {(first, at): values for first, at, values in tree["answers"]}
            self.files += 1
            self.at = tree["at"]
        if self.files:
            meter.pay(Meter.of(self.at["paid"]))
            bill.add(Meter.of(self.at["paid"]))

    def now(self) -> dict[str, Any]:
        """What was paid so far, and where the global streams of random numbers are: some passes keep dropout on."""
        return {"paid": self.bill.state(), "random": randomness.global_states()}

    def go_on(self) -> None:
        """The answers that are known were taken: what comes next draws what it would have drawn after them."""
        randomness.put_global_states(self.at["random"])

    def add(self, first: int, number: int, values: list[Any], at: dict[str, Any]) -> None:
        """Keep what batch `number` of the block that begins at row `first` gave; `at`: how it stood `now`, after it."""
        if self.folder is not None:
            self.new.append((first, number, values))
            self.at = at
            if time.monotonic() - self.saved > self.every:
                self.save()

    def save(self) -> None:
        """Write what is not written yet."""
        if self.folder is not None and self.new:
            save_tree({"answers": self.new, "at": self.at}, self.folder / f"answers-{self.files:06d}")
            self.files, self.new, self.saved = self.files + 1, [], time.monotonic()

    def close(self) -> None:
        """The pass is over; if it was long, whatever else the step does is not to cost it again."""
        if self.files:
            self.save()


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
