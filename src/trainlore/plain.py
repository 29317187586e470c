"""The Python surface: train a model or run a recipe in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainlore.nouns import Model
from trainlore.runs import Run, noun


def fit(model: Any, data: Any, *parts: Any, seed: int = 0, progress: bool = False, **how: Any) -> Model:
    """Train a copy of the model on the data with these parts; see `trainlore.loop.fit` for budgets and options.

    `model`: a Model, any nn.Module, a preset's name, a Hugging Face folder or id. `data`: a Data, path, list of str,
    frame, table or Dataset. A step's noun is never written to: the copy is what comes back.
    """
    from trainlore.progress import bars

    model = model.copy() if isinstance(model, Model) else Model.of(model, seed=seed)
    with bars(progress) as shown:
        return Run(seed, bars=shown).fit(model, noun(data), *parts, **how)


def run(recipe: str | Path, out: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Run a recipe file and give its nouns by name; see `trainlore.execute.execute` for the options."""
    from trainlore import recipe as recipes
    from trainlore.execute import execute

    return execute(recipes.read(recipe), out=out, **options)
