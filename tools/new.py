"""Begin a method: its file and its test from a template that keeps every law, to be filled with the idea.

    python tools/new.py part train/schedule my_method --title "My method" --paper arXiv:2401.00001 --year 2024

The first word is the kind: curate, shape, fit, measure or part. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from trainlore.registry import INDEX, near

HEAD = '''\
from __future__ import annotations

{imports}


{formula}


@method(
{card}
)
class {cls}({verb}):
    """{line}

    ## What it does
    TODO: the mechanism in a few sentences, and the formula as indented plain maths.

        {maths}

    ## Claim
    TODO: the paper's numbers and their setting, in your own words. Read the paper: never from memory.

    ## Cost
    TODO: passes, trainings, memory.

    ## Fields worth tuning
    TODO: which, and from where to where.

    ## Watch out
    TODO: traps that you found or measured.
    """

{body}
'''

# Each kind: imports, formula, its line of maths, body of the class, and how the test calls the formula.
KINDS: dict[str, dict[str, str]] = {
    "part": {
        "verb": "Part",
        "line": "Weigh each row's loss by how wrong the model is on it.",
        "maths": "loss = inner * (1 + amount * tanh(inner))",
        "imports": """
            from typing import Any

            from torch import Tensor

            from trainlore.errors import Bad
            from trainlore.nouns import Batch
            from trainlore.verbs import Part, method
        """,
        "formula": '''
            def {formula}(losses: Tensor, amount: float) -> Tensor:
                """The losses (...), each times 1 + amount * tanh(loss): float (...)."""
                return losses * (1 + amount * losses.detach().tanh())
        ''',
        "body": '''
            amount: float = 0.5
            """How much more the worst rows count; 0 is plain training."""

            null = {"amount": 0.0}  # the fields at which it does exactly nothing
            tiny = {"world": "digits", "amount": 0.5}  # how the laws try it

            def start(self, loop: Any) -> dict[str, Any]:
                if self.amount < 0:
                    raise Bad(f"amount={self.amount} must be at least 0: a share by which a loss may grow")
                return {}  # all state lives here, never in self: the engine saves it

            def loss(self, loop: Any, s: dict[str, Any], batch: Batch, out: Tensor, inner: Any) -> Tensor:
                if not self.amount:
                    return inner(batch, out)
                return {formula}(inner(batch, out), self.amount)
        ''',
        "naive": "value * (1 + 0.5 * math.tanh(value))",
        "call": "{formula}(torch.tensor(values, dtype=torch.float64), 0.5)",
        "bad": "{cls}(amount=-1.0).start(None)",
        "match": "amount=-1",
        "arm": """
            parts = [{cls}(amount=0.5)] if arm == "method" else []
            model = run.fit(at["model"], at["data"], *parts, steps=60, **HOW["digits"])
        """,
        "rival": "plain training",
    },
    "curate": {
        "verb": "Curate",
        "line": "Keep the rows with the highest score.",
        "maths": "score(x) = TODO; keep the top rows by score, while rows <= keep * N",
        "imports": """
            import numpy as np

            from trainlore.errors import Bad
            from trainlore.nouns import Data
            from trainlore.runs import Run
            from trainlore.verbs import Curate, method
        """,
        "formula": '''
            def {formula}(uniform: np.ndarray) -> np.ndarray:
                """A score for each row from numbers in [0, 1): float64 (N,)."""
                return -np.log1p(-uniform)
        ''',
        "body": '''
            keep: float = 0.5
            """Share of the rows to keep, above 0 and at most 1."""

            tiny = {"world": "digits", "keep": 0.25}  # how the laws try it

            def __call__(self, run: Run, data: Data) -> Data:
                data.need(who="{name}")  # name the columns it reads here
                if not 0 < self.keep <= 1:
                    raise Bad(f"keep={self.keep} must be above 0 and at most 1: it is a share of the rows")
                score = {formula}(run.numpy("{name}").random(len(data)))
                best = np.argsort(-score, kind="stable")[: max(1, round(self.keep * len(data)))]
                return data.with_({name}=score).take(np.sort(best))
        ''',
        "naive": "-math.log(1 - value)",
        "call": "torch.from_numpy({formula}(np.array(values)))",
        "bad": '{cls}(keep=0.0)(world("digits")["data"])',
        "match": "keep=0",
        "arm": """
            how_many = len(at["data"]) // 4
            rows = at["data"].take(run.numpy("rival").permutation(len(at["data"]))[:how_many])
            kept = {cls}(keep=0.25)(run, at["data"]) if arm == "method" else rows
            model = run.fit(at["model"], kept, steps=60, **HOW["digits"])
        """,
        "rival": "as many random rows",
    },
    "shape": {
        "verb": "Shape",
        "line": "Shrink every linear weight a little.",
        "maths": "W <- (1 - share) * W",
        "imports": """
            import torch
            from torch import Tensor

            from trainlore.errors import Bad
            from trainlore.nouns import Model
            from trainlore.runs import Run
            from trainlore.verbs import Shape, method
        """,
        "formula": '''
            def {formula}(weight: Tensor, share: float) -> Tensor:
                """The weight (...) without this share of itself: (...)."""
                return weight * (1 - share)
        ''',
        "body": '''
            share: float = 0.01
            """What each weight loses, as a share of itself."""
            tolerance: float = 0.5
            """How far the logits may move (relative) before the step fails."""

            tiny = {"world": "digits", "share": 0.01}  # how the laws try it

            def __call__(self, run: Run, model: Model) -> Model:
                if not 0 <= self.share < 1:
                    raise Bad(f"share={self.share} must be at least 0 and below 1")
                with torch.no_grad():
                    for _, linear in model.linears():
                        linear.weight.copy_({formula}(linear.weight, self.share))
                return model
        ''',
        "naive": "value * 0.75",
        "call": "{formula}(torch.tensor(values, dtype=torch.float64), 0.25)",
        "bad": '{cls}(share=1.0)(world("digits")["model"])',
        "match": "share=1",
        "arm": """
            model = {cls}()(run, at["model"]) if arm == "method" else at["model"]
            model = run.fit(model, at["data"], steps=60, **HOW["digits"])
        """,
        "rival": "the weights as they were",
    },
    "fit": {
        "verb": "Fit",
        "line": "Train the model in rounds, each slower than the one before.",
        "maths": "lr_k = lr / (k + 1),   k = 0, 1, ..., rounds - 1",
        "imports": """
            from trainlore.errors import Bad
            from trainlore.nouns import Data, Model
            from trainlore.runs import Run
            from trainlore.verbs import Fit, method
        """,
        "formula": '''
            def {formula}(lr: float, k: int) -> float:
                """The learning rate of round k, counted from 0."""
                return lr / (k + 1)
        ''',
        "body": '''
            rounds: int = 2
            """How many trainings, one after the other."""
            steps: int = 10
            """Steps of each."""
            lr: float = 1e-2
            """Learning rate of the first."""

            tiny = {"world": "digits"}  # how the laws try it

            def __call__(self, run: Run, model: Model, data: Data) -> Model:
                if self.rounds < 1:
                    raise Bad(f"rounds={self.rounds} must be at least 1")
                for k in range(self.rounds):
                    model = run.fit(model, data, steps=self.steps, lr={formula}(self.lr, k))
                return model
        ''',
        "naive": "value / 3",
        "call": "torch.tensor([{formula}(value, 2) for value in values], dtype=torch.float64)",
        "bad": '{cls}(rounds=0)(world("digits")["model"], world("digits")["data"])',
        "match": "rounds=0",
        "arm": """
            method = {cls}(rounds=3, steps=20)
            if arm == "method":
                model = run.step(method, at["model"], at["data"])
            else:
                model = run.fit(at["model"], at["data"], steps=60, **HOW["digits"])
        """,
        "rival": "one training of as many steps",
    },
    "measure": {
        "verb": "Measure",
        "line": "Tell how far the likeliest class is ahead of the next.",
        "maths": "margin(x) = p_1(x) - p_2(x),   p sorted from large to small",
        "imports": """
            from torch import Tensor

            from trainlore.errors import Bad
            from trainlore.nouns import Data, Model, Report
            from trainlore.runs import Run
            from trainlore.verbs import Measure, method
        """,
        "formula": '''
            def {formula}(logits: Tensor) -> Tensor:
                """Largest probability less the next: logits (B, K) to (B,)."""
                top = logits.softmax(-1).topk(2, dim=-1).values
                return top[..., 0] - top[..., 1]
        ''',
        "body": '''
            size: int = 64
            """Rows of a pass."""

            tiny = {"world": "digits"}  # how the laws try it

            def __call__(self, run: Run, model: Model, data: Data) -> Report:
                data.need(who="{name}")
                if self.size < 1:
                    raise Bad(f"size={self.size} must be at least 1")
                values = run.infer(model, data, lambda batch, out: {formula}(out), size=self.size)
                return Report.of("{name}", values, better="higher", rows=data.ids, groups=data.groups("domain"))
        ''',
        "naive": "abs(math.tanh(value / 2))  # of two classes, one logit ahead by value",
        "call": "{formula}(torch.tensor([[0.0, value] for value in values], dtype=torch.float64))",
        "bad": '{cls}(size=0)(world("digits")["model"], world("digits")["data"])',
        "match": "size=0",
        "arm": """
            steps = 60 if arm == "method" else 30
            model = run.fit(at["model"], at["data"], steps=steps, **HOW["digits"])
        """,
        "rival": "TODO: the trivial measure",
    },
}

TEST = '''\
from __future__ import annotations

{more}import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.{module} import {cls}, {formula}
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_the_formula_against_a_loop():
    values = [0.0, 0.1, 0.5, 0.9]
    naive = [{naive}
    found = {call}
    torch.testing.assert_close(found, torch.tensor(naive, dtype=torch.float64))


def test_a_bad_field_is_named():
    with pytest.raises(ValueError, match="{match}"):
        {bad}


def measure(seed: int, arm: str) -> float:
    """TODO: the quantity that the paper says moves, with everything but the method equal."""
    at, run = world("digits", seed), Run(seed)
{arm}
    right = run.infer(model, at["test"], lambda batch, out: (out.argmax(-1) == batch["labels"]).float())
    return float(right.mean())


CLAIM = Claim(  # red until the template's idea has been replaced by one that works
    method="{name}",
    world="digits",
    rival="{rival}",
    quantity="test accuracy",
    better="higher",
    measure=measure,
)
'''


def main(arguments: list[str] | None = None) -> int:
    """Write the two files, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("family", help="the folder: train/schedule, data/select, ...")
    parser.add_argument("name", help="what recipes call it, in snake case")
    parser.add_argument("--title", help="the name people know (default: from the name)")
    parser.add_argument("--paper", help='an "arXiv:..." or "doi:..." id that you have seen')
    parser.add_argument("--lit", help="its id in `trainlore papers`, like p250")
    parser.add_argument("--year", type=int, required=True, help="of the paper")
    parser.add_argument("--tier", choices=("core", "llm", "modality"), default="core")
    parser.add_argument("--class", dest="cls", help="the class (default: from the name)")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if wrong := refused(a):
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    source, test = paths(a)
    source.parent.mkdir(parents=True, exist_ok=True)
    package = source.parent
    while package.name != "methods":  # every folder of the package is one
        (package / "__init__.py").touch()
        package = package.parent
    test.parent.mkdir(parents=True, exist_ok=True)
    code, check = texts(a)
    source.write_text(code)
    test.write_text(check)
    said = [path.relative_to(a.root).as_posix() for path in (source, test)]
    print(f"wrote {said[0]}\nwrote {said[1]}\n\nnext:")
    for n, step in enumerate(
        (
            "put the idea into the formula, the class and the card; every TODO goes",
            f"python -m pytest {said[1]}",
            f"make generate && trainlore check {a.name}",
            f"python tools/evidence.py {a.name}    # the claim at full seeds; whatever it says is the result",
            'status="stable", make generate lint test',
        ),
        1,
    ):
        print(f"  {n}. {step}")
    return 0


def refused(a: argparse.Namespace) -> str:
    """Why nothing is written, or nothing."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", a.name):
        return f"{a.name!r} is not snake case: my_method"
    if not re.fullmatch(r"[a-z]+(/[a-z]+)+", a.family):
        return f"{a.family!r} is not a family: train/schedule"
    if a.paper and not re.fullmatch(r"(arXiv|doi):\S+", a.paper):
        return f'{a.paper!r} is not a paper: "arXiv:2401.00001" or "doi:10...."'
    index = json.loads(INDEX.read_text())
    if a.name in index:
        return f"there is a method {a.name!r} already, at {index[a.name]['at']}"
    for path in paths(a):
        if path.exists():
            return f"{path} exists: nothing is overwritten"
    families = {e["card"]["family"] for e in index.values()}
    if a.family not in families:
        print(f"note: {a.family} is a new family" + near(a.family, families), file=sys.stderr)
    return ""


def paths(a: argparse.Namespace) -> tuple[Path, Path]:
    """Where the method and its test go."""
    return (
        a.root / "src" / "trainlore" / "methods" / a.family / f"{a.name}.py",
        a.root / "tests" / "methods" / a.family / f"test_{a.name}.py",
    )


def texts(a: argparse.Namespace) -> tuple[str, str]:
    """The method file and the test file."""
    kind = KINDS[a.kind]
    cls = a.cls or "".join(word.capitalize() for word in a.name.split("_"))
    words = {"{name}": a.name, "{cls}": cls, "{formula}": f"{a.name}_formula"}

    def filled(text: str, indent: str = "") -> str:
        text = textwrap.dedent(text).strip("\n")
        for word, value in words.items():
            text = text.replace(word, value)
        return textwrap.indent(text, indent).rstrip()

    card = {"name": a.name, "title": a.title or a.name.replace("_", " ").capitalize(), "paper": a.paper, "lit": a.lit}
    card |= {"family": a.family, "year": a.year, "tier": a.tier, "status": "draft"}
    lines = [f"    {k}={json.dumps(v, ensure_ascii=False)}," for k, v in card.items() if v is not None]
    code = HEAD.format(
        imports=filled(kind["imports"]),
        formula=filled(kind["formula"]),
        card="\n".join(lines),
        cls=cls,
        verb=kind["verb"],
        line=kind["line"],
        maths=kind["maths"],
        body=filled(kind["body"], "    "),
    )
    naive, _, why = kind["naive"].partition("  # ")
    check = TEST.format(
        more=("import math\n\n" if "math." in naive else "")
        + ("import numpy as np\n" if "np." in kind["call"] else ""),
        module=".".join((*a.family.split("/"), a.name)),
        cls=cls,
        name=a.name,
        formula=words["{formula}"],
        naive=f"{naive} for value in values]" + (f"  # {why}" if why else ""),
        call=filled(kind["call"]),
        match=kind["match"],
        bad=filled(kind["bad"]),
        arm=filled(kind["arm"], "    "),
        rival=kind["rival"],
    )
    return code, check


if __name__ == "__main__":
    raise SystemExit(main())
