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


def race(
    arms: Any, data: Any = None, out: str | Path | None = None, *, fields: dict | None = None, **options: Any
) -> dict:
    """Race methods, or the arms of a race file, and give what race.json holds: verdict, effects, arms.

    `arms`: the path or mapping of a race, or names of methods; then `data`, `target`, `test`, `model`, `budget`, `metric`,
    `seeds`, `family`, `given` as in `trainlore.races.entry.make`. Further options: those of `trainlore.races.conduct.How`
    (`jobs`, `on`, `tune`, `halving`, `exploratory`, `allow_overlap`). `out`: the folder; without it a temporary one.

    The heats are processes: call it below `if __name__ == "__main__":` in a script.
    """
    import dataclasses
    import tempfile

    from trainlore.races import conduct, entry, spec

    how = conduct.How(**{f.name: options.pop(f.name) for f in dataclasses.fields(conduct.How) if f.name in options})
    force = bool(options.pop("force", False))
    if isinstance(arms, str | Path | dict):
        made = spec.read(arms, [f"{k}={v}" for k, v in options.items()])
    else:
        made = spec.read(entry.make(list(arms), data, fields=fields, **options)[0])
    if out is not None:
        return conduct.conduct(made, Path(out), how, force=force)
    with tempfile.TemporaryDirectory() as folder:
        return conduct.conduct(made, Path(folder) / "race", how)
