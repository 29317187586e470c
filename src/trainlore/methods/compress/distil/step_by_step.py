from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def task_weights(tokens: np.ndarray, explains: np.ndarray, alpha: float, weight: np.ndarray) -> np.ndarray:
    """Weight of each row under which the mean over all tokens is alpha mean(labels) + (1 - alpha) mean(rationales).

    tokens: trained tokens of each row (N,); explains: whether it is a rationale (N,); weight: what rows count else (N,).
    """
    mass = tokens * weight
    share = np.where(explains, 1 - alpha, alpha)
    own = np.where(explains, mass[explains].sum(), mass[~explains].sum())
    return (weight * share * mass.sum() / np.maximum(own, 1e-12)).astype(np.float32)


def parsed(text: str, marker: str, stop: str) -> tuple[str, str]:
    """Rationale and label of what was written: before and after the marker, up to the next question; empty without it."""
    own = text.partition(stop)[0] if stop else text
    rationale, found, label = own.partition(marker)
    return (rationale.strip(), label.strip().removesuffix(".").strip()) if found else ("", "")


@method(
    name="step_by_step",
    title="Distilling step-by-step",
    paper="arXiv:2305.02301",
    lit="p089",
    family="compress/distil",
    year=2023,
    tier="core",
    code="google-research/distilling-step-by-step",
    status="stable",
)
class StepByStep(Curate):
    """Make of every row two tasks, to predict the label and to explain it, told apart by a prefix of the prompt.

    ## What it does
    A large model writes, after a few examples, why each row has its label; a small one then learns both tasks side by
    side. At use only the first is asked for, so that reasons cost nothing.

        "predict: " + x -> label        "explain: " + x -> rationale
        loss = alpha L_label + (1 - alpha) L_rationale,      each a mean over its tokens

    Rationales are a column, or written by `writer` after `shots`; so is the label where rows have no `completion`. Each
    row made has a `task`, and a `weight` under which the trainer's mean over tokens is this loss.

    ## Claim
    A T5 of 770M parameters beats few-shot PaLM of 540B with 80% of a benchmark's rows; fine-tuned plainly it does not with
    all of them. Four benchmarks (e-SNLI, ANLI, CommonsenseQA, SVAMP): better than fine-tuning with fewer rows.

    ## Cost
    One text written a row, once. Training reads twice the rows.

    ## Fields worth tuning
    `alpha`: 0.5 is the authors'. The shots, before all else.

    ## Watch out
    Ask the trained model with the prefix too: `alpha: 1` gives test rows their prefix and no rationales. Without
    `student` words are counted, not tokens, and the balance is that much off. Nothing checks that a written reason leads
    to the label that is given. Not reproduced here (10 seeds): a two-layer model without pretraining, taught 300 sums of three
    digits for 60 steps, gave unseen answers 0.07 nats less with reasons than without, within the noise.

    ## Differs from the paper
    The two tasks of a row are rows of their own, drawn apart; the authors' batches hold both, so that alpha holds in each
    batch and not only over all rows. The paper writes L_label + lambda L_rationale; alpha is from the code.

    ## See also
    `rest_em` where the model writes for itself.
    """

    rationale: str = "rationale"
    """Column of the reasons, unless a writer writes them."""
    writer: Model | None = None
    """Who writes the reasons."""
    shots: str = ""
    """Text before each prompt for the writer: examples of question, reason and answer."""
    cue: str = "\nA:"
    """Text after each prompt for the writer."""
    marker: str = "So the answer is"
    """What the writer puts between reason and label."""
    stop: str = "Q:"
    """Where the writer went on to the next question: cut there; empty: nowhere."""
    new: int = 256
    """Tokens the writer may write."""
    temperature: float = 0.0
    """Of the writing; 0 writes what is likeliest."""
    alpha: float = 0.5
    """Weight of the labels; the reasons have the rest. 1: no reasons."""
    predict: str = "predict: "
    """Prefix of the prompts that ask for a label."""
    explain: str = "explain: "
    """Prefix of the prompts that ask for a reason."""
    student: Model | None = None
    """Whose tokens are counted to balance the tasks; none: words are counted."""

    ranges = {"alpha": [0.1, 0.9]}
    tiny = {"world": "sums", "rationale": "prompt"}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need("prompt", who="step_by_step")
        if not 0 < self.alpha <= 1:
            raise Bad(f"alpha must be above 0 and at most 1; it is {self.alpha}")
        if self.predict == self.explain:
            raise Bad(f"predict and explain are both {self.predict!r}: the tasks must be told apart")
        prompts, reasons, labels = self._told(run, data)
        rows = [
            (i, False, self.predict + p, y) for i, (p, y) in enumerate(zip(prompts, labels, strict=True)) if y.strip()
        ]
        if not rows:
            raise Bad("no row has a label: give `completion`, or a writer that ends with `marker` and the label")
        if self.alpha < 1:
            known = {i for i, *_ in rows}
            rows += [
                (i, True, self.explain + p, r)
                for i, (p, r) in enumerate(zip(prompts, reasons, strict=True))
                if r.strip() and i in known
            ]
            if not rows[-1][1]:
                raise Bad(
                    f"no row has a reason: is {self.rationale!r} empty, or does the writer never say {self.marker!r}?"
                )
        at = np.array([i for i, *_ in rows])
        answers, explains = [y for *_, y in rows], np.array([e for _, e, *_ in rows])
        weight = np.asarray(data["weight"], np.float64)[at] if "weight" in data.columns else np.ones(len(at))
        made = {
            "prompt": [p for _, _, p, _ in rows],
            "completion": answers,
            "task": np.where(explains, "explain", "predict").tolist(),
            "weight": task_weights(self._lengths(answers), explains, self.alpha, weight),
        }
        if "domain" in data.columns:
            made["domain"] = data.take(at)["domain"]
        return data.new(made, parents=data.ids[at])

    def _told(self, run: Run, data: Data) -> tuple[list[str], list[str], list[str]]:
        """Prompts, reasons and labels of all rows; what is not known is empty."""
        prompts = list(data.text("prompt"))
        has = "completion" in data.columns
        if self.writer is None or self.alpha == 1:
            data.need("completion", who="step_by_step without a writer")
            if self.alpha < 1:
                data.need(self.rationale, who="step_by_step without a writer")
            reasons = list(data.text(self.rationale)) if self.alpha < 1 else [""] * len(prompts)
            return prompts, reasons, list(data.text("completion"))
        asked = [self.shots + p + self.cue for p in prompts]
        room = (self.writer.window or 1 << 30) - self.new
        if (longest := max(map(len, self.writer.tokenizer(asked, verbose=False)["input_ids"]))) > room:
            raise Bad(
                f"shots and prompt have {longest:,} tokens; the writer has room for {room:,} beside new={self.new}"
            )
        said = run.generate(self.writer, asked, self.new, self.temperature, key=("step_by_step",))
        pairs = [parsed(text, self.marker, self.stop) for text in said]
        written = [[f" {text}" if text else "" for text in side] for side in zip(*pairs, strict=True)]
        return prompts, written[0], list(data.text("completion")) if has else written[1]

    def _lengths(self, answers: list[str]) -> np.ndarray:
        """Trained tokens of each answer, its end among them: int64 (N,)."""
        if self.student is None:
            return np.array([len(a.split()) + 1 for a in answers])
        tok = self.student.tokenizer
        if tok is None:
            raise Bad(f"student={self.student!r} has no tokenizer to count with")
        ids = tok(answers, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array([len(i) + (tok.eos_token_id is not None) for i in ids])
