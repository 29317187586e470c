"""Turn a folder of literature notes (*.jsonl) into the product's own index of papers, src/trainlore/_papers.json.

    python tools/import_papers.py FOLDER

Each paper keeps its id, title, name, family, kind and tier, and one sentence that says why there would be no method for it; the
sentence is shown only while no method cites the paper.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

TARGET = Path(__file__).parents[1] / "src/trainlore/_papers.json"

WORDS = {  # what a building block of the notes is called in a sentence
    "generator-llm": "a text generator",
    "prompt-template": "prompt templates",
    "verifier": "a checker of answers",
    "reward+policy-gradient": "a reward and policy gradients",
    "preference-loss": "preference pairs",
    "rejection-sampling": "sampling with rejection",
    "demonstration-retrieval": "a pool of demonstrations to retrieve from",
    "contrastive-retrieval": "a retriever",
    "teacher-student": "a teacher and a student",
    "per-example-score": "a score per row",
    "subset-select": "a subset selection",
    "loss": "a loss",
    "pseudo-label": "pseudo-labels",
    "sampler": "a sampler of rows",
    "curve-fit": "a curve fit",
    "weight-init": "an initialisation",
    "weight-mask": "weight masks",
    "weight-map (grow/merge)": "a map between weights",
    "lr-schedule": "a learning-rate schedule",
    "domain-weights": "weights over domains",
    "meta-gradient": "gradients through training",
    "hard-negatives": "mined negatives",
    "router/moe": "a router over experts",
    "sampler-diffusion": "a diffusion sampler",
    "consistency": "a consistency term",
    "kv/attention": "a change of attention",
    "weight-rounding": "rounding of weights",
    "test-time-update": "updates at test time",
    "pairwise-rank": "pairwise ranking",
    "pde-solver": "a solver of differential equations",
    "adversary": "an adversary",
    "adapter": "an adapter",
    "curriculum": "a curriculum",
    "replay": "replay of old rows",
    "metadata": "metadata on the rows",
    "influence": "influence estimates",
    "population": "a population of runs",
    "tokenizer": "a tokenizer",
    "membership-test": "a membership test",
    "packing": "packing of sequences",
    "early-exit": "early exits",
    "hypernetwork": "a hypernetwork",
    "interval-bound": "interval bounds",
    "federated-average": "federated averaging",
    "other:mcts": "a tree search",
    "other:bit-allocation-ilp": "an integer programme over bits",
}
MODALITIES = [  # the first word found in the title, then in the mechanism, names what a trial would need
    (r"audio-visual|video|temporal action", "video"),
    (r"speech|audio|music|acoustic|asr\b|pronunciation|spectrogram|voice", "recorded sound"),
    (r"surgical|histolog|ultrasound|echocardio|medical image|radiolog|pathology", "medical images or video"),
    (
        r"point cloud|\b3d\b|3-d\b|stereo|motion capture|human performance|monocular geometry|shape matching",
        "3-D or multi-view data",
    ),
    (
        r"robot|embodied|driving|device-control|in-hand|reinforcement|action-state|goal representations",
        "a simulated or real environment to act in",
    ),
    (r"molecul|protein|chemi", "molecular data"),
    (r"\bgnn|graphfm|graph foundation", "large graphs"),
    (r"turbulence|climate|extreme event", "a simulator of a physical system"),
    (r"\bposes?\b|sign language|user interface|user actions", "recorded poses or screens"),
    (r"vision-language|multimodal|text-to-image|image-text|clip\b|captions?", "paired images and text"),
    (
        r"image|vision|visual|photo|face|\bmaps?\b|detection|segmentation|pixel|deepfake|diffusion|gans?\b",
        "natural images",
    ),
]
FAMILIES = {  # where the title says nothing
    "domain/audio": "recorded sound",
    "domain/medical": "medical images or video",
    "domain/robotics": "a simulated or real environment to act in",
    "domain/vision": "natural images",
    "sample/diffusion": "natural images",
    "science/molecule": "molecular data",
    "science/pde": "a simulator of a physical system",
}


def clip(text: str, limit: int = 170) -> str:
    """The first sentence or clause of a note, without its asides about what the abstract does not say."""
    text = re.sub(r"\s*\([^()]*(?:abstract|nsure|recalled)[^()]*\)", "", " ".join(text.split())).rstrip(" .;")
    if len(text) <= limit:
        return text
    cuts = [m.start() for m in re.finditer(r"(?<!\d)(?:[;:]|\.(?= [A-Z])|,) ", text[:limit])]
    cut = max(cuts, default=0)
    return text[:cut] if cut > limit // 3 else text[: text.rfind(" ", 0, limit)] + " ..."


def listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def blocks(row: dict, most: int = 3) -> list[str]:
    names = [WORDS.get(p, p.removeprefix("other:").replace("-", " ").replace("+", " and ")) for p in row["primitive"]]
    return list(dict.fromkeys(names))[:most]


def reason(row: dict) -> str:
    """Why no method would stand for this paper, or what one would take."""
    if row["tier"] == "knowledge":
        if re.search(r"no (single )?experiment|no headline exp|survey only|tutorial;", row["claim"].lower()):
            return f"It orders or argues a field ({row['name']}) and proposes nothing of its own to run."
        if "no headline" in row["claim"].lower():
            return f"It reports one project ({row['name']}) with no result that a run could repeat."
        what = {
            "survey": "a survey",
            "dataset": "a data set",
            "recipe": "the record of one system",
            "application": "one application",
        }
        return f"It holds {what.get(row['kind'], 'a finding')}, and nothing to run: {clip(row['claim'])}."
    if row["tier"] == "llm":
        rest = [b for b in blocks(row, 4) if b not in ("a text generator", "prompt templates")][:2]
        return f"It needs a writer that follows instructions{', ' + listed(rest) if rest else ''}; no small model here can stand in for it."
    if row["tier"] == "modality":
        named = [
            name
            for text in (row["title"], row["mechanism"])
            for pattern, name in MODALITIES
            if re.search(pattern, text.lower())
        ]
        in_title = any(re.search(pattern, row["title"].lower()) for pattern, _ in MODALITIES)
        need = named[0] if in_title else FAMILIES.get(row["family"], named[0] if named else "data of another kind")
        return f"It needs {need}, which no world here holds."
    return f"Not built yet: it would take {listed(blocks(row))}, tried like this: {clip(row['tiny'])}."


def main(folder: str) -> None:
    rows = [
        json.loads(line)
        for file in sorted(Path(folder).glob("*.jsonl"))
        for line in file.read_text().splitlines()
        if line
    ]
    if not rows:
        raise SystemExit(f"no *.jsonl under {folder}")
    keep = ("id", "title", "name", "family", "kind", "tier")
    made = [{**{k: row[k] for k in keep}, "reason": reason(row)} for row in sorted(rows, key=lambda row: row["id"])]
    if len({row["id"] for row in made}) != len(made):
        raise SystemExit("two notes share an id")
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in made)
    TARGET.write_text(f"[\n{lines}\n]\n")
    print(f"{len(made)} papers -> {TARGET.name}, {TARGET.stat().st_size // 1024} kB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
