"""The folder of a run: what it is called, whether it may be written, and whether anything was begun in it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from trainlore import store
from trainlore.errors import Bad
from trainlore.recipe import Recipe


def slug(name: str) -> str:
    """A recipe's name as a folder's: nothing in it can lead elsewhere."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"


def allowed(recipe: Recipe, folder: Path, force: bool, resume: bool) -> Path:
    """The run's folder; refused if it is there, unless forced or gone on with."""
    there = folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not hardly_begun(folder))
    if resume:
        if hardly_begun(folder):
            return folder
        if not (folder / "run.json").exists():
            raise Bad(f"{folder} is not a run: it has no run.json")
        old = json.loads((folder / "run.json").read_text())
        if old["recipe_hash"] != store.hash_of(recipe.text):
            raise Bad(
                f"the recipe in {folder} is not the one this run began with: put it back, or start anew with "
                f"`trainlore run {folder / 'recipe.yaml'} --out OTHER` (finished steps that did not change are reused)"
            )
        return folder
    if there:
        if not force:
            raise Bad(f"{folder} exists: choose another --out, `trainlore resume {folder}`, or --force to replace it")
        if not (folder / "run.json").exists() and folder.exists():
            raise Bad(f"{folder} is not a run folder, so --force does not remove it: choose another --out")
    return folder


def hardly_begun(folder: Path) -> bool:
    """Whether a run was killed here before it wrote anything but its recipe."""
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return "recipe.yaml" in inside and all(name == "recipe.yaml" or name.endswith(".part") for name in inside)


def begin(recipe: Recipe, folder: Path) -> None:
    """Make the folder new; whatever run was there is gone."""
    if (folder / "run.json").exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Bad(f"cannot make {folder}: {error.strerror}") from None
    store.write(folder / "recipe.yaml", recipe.text)
