"""Write everything that is generated from the method files: the index and the pages. `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from trainlore import registry  # noqa: E402


def main() -> int:
    """Exit 1 if something generated was not what the files say (and, without --check, make it so)."""
    text, stale = registry.generate(), []
    if not registry.INDEX.exists() or registry.INDEX.read_text() != text:
        stale.append(registry.INDEX)
        if "--check" not in sys.argv:
            registry.INDEX.write_text(text)
    for path in stale:
        print(("stale: " if "--check" in sys.argv else "wrote ") + str(path.relative_to(ROOT)))
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    raise SystemExit(main())
