"""The recipes and races that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from trainlore.errors import Bad

FIRST = "first_life"
HERE = Path(__file__).parents[1]


def starters() -> list[Path]:
    """The recipes that come with the package."""
    return sorted((HERE / "recipes").glob("*.yaml"))


def recipe_path(name: str | None) -> Path:
    """A recipe file, or a starter recipe by its name."""
    return _path(FIRST if name is None else name, starters(), "recipe", "starters")


def standing(name: str) -> Path:
    """A race file, or a standing race by its name."""
    return _path(name, sorted((HERE / "races" / "standing").glob("*.yaml")), "race", "standing races")


def _path(name: str, ours: list[Path], what: str, many: str) -> Path:
    """What lies on the disk, or is written as if it did, comes before what is ours."""
    path, known = Path(name), {p.stem: p for p in ours}
    if path.exists() or path.parent != Path(".") or (path.suffix in (".yaml", ".yml") and path.stem not in known):
        return path
    if path.stem not in known:
        from trainlore.registry import near

        raise Bad(f"no {what} {name!r}" + (near(path.stem, known) or f"; {many} are {', '.join(known)}"))
    return known[path.stem]
