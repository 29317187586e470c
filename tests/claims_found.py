"""All claims of the test files, by method."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "methods"


@cache
def claims():
    found = {}
    for path in sorted(FOLDER.rglob("test_*.py")):
        if "CLAIM" not in path.read_text():
            continue
        name = "claim_" + "_".join(path.relative_to(FOLDER).with_suffix("").parts)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        for claim in [v for k, v in vars(module).items() if k.startswith("CLAIM")]:
            for one in claim if isinstance(claim, list | tuple) else [claim]:
                found[one.method] = one
    return found
