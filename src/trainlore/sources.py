"""Where nouns come from: the names of worlds and presets, and what a source given in a recipe is. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainlore.errors import Bad

PRESETS = {
    "llama-1m": (
        "Llama",
        {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "llama-3m": (
        "Llama",
        {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6},
    ),
    "llama-15m": (
        "Llama",
        {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 6},
    ),
    "llama-120m": (
        "Llama",
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12},
    ),
    "bert-4m": (
        "Bert",
        {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    ),
    "t5-4m": ("T5", {"d_model": 192, "d_kv": 32, "d_ff": 512, "num_layers": 4, "num_heads": 6}),
    "vit-digits": (
        "ViT",
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "mlp": ("mlp", {}),
}
WORLDS = {
    "python-docs": (
        "pool",
        "target_dev",
        "target_test",
        "held_out",
        "summaries",
        "preferences",
        "summaries_test",
        "all",
    ),
    "digits": ("train", "test", "spare", "noisy"),
    "sums": ("train", "test"),
    "two-domains": ("pool", "target", "target_test", "held_out", "pairs"),
}

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".md", ".gz", ".zst")


def noun_of(source: Any) -> str:
    """ "Data" or "Model": what a recipe's `given` entry will be. Raises Bad where that cannot be told or cannot be there."""
    if isinstance(source, dict):
        if "data" in source and "model" not in source:
            return "Data"
        if "model" in source and "data" not in source:
            return "Model"
        raise Bad("say {data: source, ...} or {model: source, ...}")
    text = str(source)
    if text.startswith("world:"):
        name, _, part = text.removeprefix("world:").partition("/")
        if name not in WORLDS:
            raise Bad(f"no world {name!r}; worlds are {', '.join(WORLDS)}")
        if part and part not in WORLDS[name]:
            raise Bad(f"world {name} has no part {part!r}; it has {', '.join(WORLDS[name])}")
        return "Data"
    if text.removeprefix("preset:") in PRESETS:
        return "Model"
    path = Path(text).expanduser()
    if path.is_dir():
        return "Model" if (path / "config.json").exists() else "Data"
    if path.suffix in TABLES or path.is_file():
        if not path.exists():
            raise Bad(f"no file {text}")
        return "Data"
    raise Bad(
        f"{text!r} is no file, folder, world or preset (presets: {', '.join(PRESETS)}); of a Hub id say {{data: hub:{text}}} or {{model: hub:{text}}}"
    )
