"""Which packages this world is made of, where they lie, and which of their files are read. Nothing of them is imported."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trainlore.errors import Bad

PACKAGES = (  # what every install of trainlore brings, and what these bring; the ones missing are passed over
    "stdlib", "torch", "transformers", "datasets", "tokenizers", "safetensors", "huggingface_hub", "numpy", "scipy",
    "sklearn", "matplotlib", "pandas", "pyarrow", "sympy", "networkx", "mpmath", "fsspec", "jinja2", "joblib",
    "fontTools", "PIL", "rich", "typer", "click", "pygments", "msgspec", "requests", "yaml", "tqdm", "packaging",
    "pyparsing", "dateutil", "filelock",
)  # fmt: skip
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "PyYAML", "dateutil": "python-dateutil"}
SKIPPED = re.compile(  # folders: tests, copies of other packages, and what is no library
    r"_?tests?|_?testing|idle_test|_test_common|.*vendor.*|_?extern(al)?s?|_?third_?party|array_api_(compat|extra)"
    r"|_uarray|cobyqa|pyprima|site-packages|dist-packages|idlelib|lib2to3|ensurepip|turtledemo|__.*__|\..*"
)
SKIPPED_FILES = re.compile(r"test_.*|conftest|modular_.*")  # transformers writes modeling_*.py from modular_*.py
SOURCE = 16e6  # bytes of source read of a package, or torch and transformers would be most of the table and the wait


def located(packages: Iterable[str], must: bool) -> dict[str, tuple[Path, str]]:
    """Each package's folder (or its one file) and version, found without importing it."""
    found: dict[str, tuple[Path, str]] = {}
    for name in packages:
        if name in found:
            continue
        root = Path(sysconfig.get_path("stdlib")) if name == "stdlib" else _root(name)
        if root is None or not root.exists():
            if must:
                raise Bad(f"package {name!r} is not installed, or has no Python source; name others, or install it")
            continue
        found[name] = root, sys.version if name == "stdlib" else _version(name, root)
    return found


def _root(name: str) -> Path | None:
    if not name.isidentifier() or name in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _version(name: str, root: Path) -> str:
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:  # somebody's own package: known by its files
        stats = [(str(f), f.stat().st_mtime_ns, size) for f, _, size in sources(root, SOURCE)]
        return hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()


def sources(root: Path, most: float) -> list[tuple[Path, str, int]]:
    """The Python files of a package that are read: file, place in the package, bytes; in the order of places.

    Of a package with over `most` bytes of source, the files whose places hash lowest.
    """
    if root.suffix == ".py":
        return [(root, root.name, root.stat().st_size)]
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [d for d in inner if not SKIPPED.fullmatch(d)]
        for file in files:
            if file.endswith(".py") and not SKIPPED_FILES.fullmatch(file[:-3]):
                path = Path(folder) / file
                found.append((path, path.relative_to(root).as_posix(), path.stat().st_size))
    if sum(size for *_, size in found) > most:
        found.sort(key=lambda f: hashlib.blake2b(f[1].encode()).digest())
        upto = np.cumsum([size for *_, size in found])
        found = found[: int(np.searchsorted(upto, most)) + 1]
    return sorted(found, key=lambda f: f[1])
