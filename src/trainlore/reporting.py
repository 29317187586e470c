"""A run's numbers in the trackers people have: TensorBoard, MLflow, Weights & Biases. The run folder stays the record."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from trainlore.errors import Bad

TRACKERS = ("tensorboard", "mlflow", "wandb")
Log = Callable[[str, int, dict[str, float]], None]  # (step of the recipe, step of the training, numbers)


def named(text: str) -> tuple[str, ...]:
    """Trackers as people write them: "tensorboard,mlflow"; an empty text is none."""
    names = tuple(n.strip() for n in text.split(",") if n.strip())
    if wrong := [n for n in names if n not in TRACKERS]:
        raise Bad(f"report_to {wrong[0]!r} is not known: there are {', '.join(TRACKERS)}")
    return names


@contextlib.contextmanager
def trackers(names: tuple[str, ...], folder: Path, title: str) -> Iterator[list[Log]]:
    """The trackers of these names, open; each is closed at the end whatever happened."""
    with contextlib.ExitStack() as open_:
        logs = []
        for name in names:
            try:
                logs.append(open_.enter_context(MAKERS[name](folder, title)))
            except ImportError as error:
                raise Bad(f"report_to {name} needs the package {error.name or name}: pip install {name}") from None
        yield logs


@contextlib.contextmanager
def _tensorboard(folder: Path, title: str) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def log(label: str, t: int, numbers: dict[str, float]) -> None:
            for key, value in numbers.items():
                writer.add_scalar(f"{label}/{key}", value, t)

        yield log


@contextlib.contextmanager
def _mlflow(folder: Path, title: str) -> Iterator[Log]:
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    mlflow.set_experiment(title)
    with mlflow.start_run(run_name=folder.name):

        def log(label: str, t: int, numbers: dict[str, float]) -> None:
            mlflow.log_metrics({f"{label}/{key}": value for key, value in numbers.items()}, step=t)

        yield log


@contextlib.contextmanager
def _wandb(folder: Path, title: str) -> Iterator[Log]:
    import wandb

    made = wandb.init(project=title, name=folder.name, dir=str(folder))
    last: dict[str, int] = {}
    offset = [0]

    def log(label: str, t: int, numbers: dict[str, float]) -> None:
        if label not in last and last:  # its steps only grow: a second training goes on after the first
            offset[0] += max(last.values())
            last.clear()
        last[label] = t
        made.log({f"{label}/{key}": value for key, value in numbers.items()}, step=offset[0] + t)

    try:
        yield log
    finally:
        made.finish()


MAKERS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
