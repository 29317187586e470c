"""Passes over rows on a Ray cluster: blocks of rows go out, what was found in them comes back in order."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from trainlore import meter
from trainlore.errors import Bad
from trainlore.nouns import Data

FIRST, IDS, FOUND = "trainlore_first", "trainlore_ids", "trainlore_found"  # columns that travel with a block


def check(on: str) -> None:
    """Raise Bad unless passes can run there."""
    if on not in ("local", "ray"):
        raise Bad(f"--on is local or ray, not {on!r}")
    if on == "ray":
        try:
            import ray.data  # noqa: F401
        except ImportError:
            raise Bad("--on ray needs Ray: pip install 'trainlore[ray]'") from None


def over(blocks: Iterator[tuple[Data, int]], what: Callable[[Data, int], Any], gpu: bool = False) -> Iterator[Any]:
    """`what(rows, first)` of every block in order, by processes of the cluster that each hold `what` and its model.

    The blocks go into Ray's object store, which moves to disk what memory does not hold. What networks cost there is on
    the bill of the meters that run here. Without a cluster (RAY_ADDRESS) the processes are of this machine.
    """
    check("ray")
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    held, firsts = ray.put(what), []
    refs: list[Any] = []
    for rows, first in blocks:
        firsts.append(first)
        refs.append(ray.put(_packed(rows, first)))
    kind = "GPU" if gpu else "CPU"
    each: dict[str, Any] = {"num_gpus" if gpu else "num_cpus": 1}
    most = max(1, min(len(refs), int(ray.cluster_resources().get(kind, 1))))
    found = ray.data.from_arrow_refs(refs).map_batches(
        Worker,
        fn_constructor_args=(held,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        batch_size=None,
        batch_format="pyarrow",
        **each,
    )
    waiting: dict[int, Any] = {}
    left = iter(firsts)
    next_ = next(left, None)
    table: Any
    for table in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        waiting |= zip(table[FIRST].to_pylist(), table[FOUND].to_pylist(), strict=True)
        while next_ in waiting:
            yield _paid(pickle.loads(waiting.pop(next_)))
            next_ = next(left, None)


class Worker:
    """A process of the cluster: holds what is to be done, and does it to one block after another."""

    def __init__(self, what: Any) -> None:
        import ray
        from torch.utils.hooks import RemovableHandle

        # A model's hooks come with the numbers they had: none that is made here may have the same.
        RemovableHandle.next_id += 1 << 32
        self.what = ray.get(what)

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row: where the block begins, and what was found with its bill, or the user's mistake."""
        first = table[FIRST][0].as_py()
        rows = Data(table.drop_columns([FIRST, IDS]), base_ids=table[IDS].to_numpy())
        bill = meter.Meter()
        try:
            with bill.running():
                found = self.what(rows, first)
        except Bad as error:
            found = error
        said = pickle.dumps((found, bill.state()))
        return pa.table({FIRST: [first], FOUND: pa.array([said], pa.large_binary())})


def _packed(rows: Data, first: int) -> pa.Table:
    """A block with the ids of its rows and its place."""
    place = np.full(len(rows), first, np.int64)
    return rows.arrow().append_column(FIRST, pa.array(place)).append_column(IDS, pa.array(rows.ids))


def _paid(said: tuple[Any, dict[str, Any]]) -> Any:
    """What was found, once its bill is on the meters of this process."""
    found, bill = said
    meter.pay(meter.Meter.of(bill))
    if isinstance(found, Bad):
        raise found
    return found
