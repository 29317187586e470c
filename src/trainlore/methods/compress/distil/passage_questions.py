from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="passage_questions",
    title="Questions and answers on passages, written with the passage in view",
    paper="arXiv:2412.14964",
    lit="p451",
    family="compress/distil",
    year=2024,
    tier="llm",
    code="kallekku/prompt-distillation",
    status="stable",
)
class PassageQuestions(Curate):
    """Write many questions on each passage and answer each with the passage in view, as rows to learn from without it.

    ## What it does
    The writer, mostly the model that is to learn, draws `questions` questions after each passage at a raised temperature,
    for variety, and an answer to each after passage and question.

        question ~ p(. | passage, "Question:")       answer ~ p(. | passage, "Question:", question, "Answer:")

    Rows that hold a `prompt` already are given an answer only. The rows made are `passage`, `prompt` and `completion`.

    ## Claim
    Distilled from more such rows, which cover more of the facts, a model answers without the passage better than by any other
    way tried, retrieval with it included.

    ## Cost
    Two texts written a question, each after the whole passage.

    ## Fields worth tuning
    `questions`: more until everything in the passage was asked about. `temperature`: the scripts have 1.5 for both.

    ## Watch out
    Nothing checks an answer: a writer that misreads the passage teaches its misreading. A question that comes twice for a
    passage is kept once, empty ones are dropped.

    ## Differs from the paper
    Formats are for models without a chat template; for others put the template's text into `before` and `after`.

    ## See also
    `prompt_distillation`, which learns from these rows.
    """

    writer: Model
    """Who asks and answers."""
    questions: int = 30
    """Questions written on each passage."""
    temperature: float = 1.5
    """Of the writing."""
    new: int = 64
    """Tokens that a question, and an answer, may have."""
    passage: str = "passage"
    """Column of the passages."""
    between: str = "\n\n"
    """Text between passage and question."""
    before: str = "Question: "
    """Text before the question, part of the prompt."""
    after: str = "\nAnswer:"
    """Text after the question, part of the prompt."""

    tiny = {"world": "sums", "writer": "$model", "passage": "completion", "questions": 2, "new": 4}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(self.passage, who="passage_questions")
        if self.questions < 1 or self.new < 1 or self.temperature <= 0:
            raise Bad(
                f"questions and new must be at least 1 and temperature above 0; they are {self.questions}, {self.new} and {self.temperature}"
            )
        passages, ids = list(data.text(self.passage)), data.ids
        if "prompt" in data.columns:
            asked = list(zip(range(len(data)), data.text("prompt"), strict=True))
        else:
            asked = self._asked(run, passages)
        said = self._written(run, [passages[i] + self.between + q for i, q in asked], "answers")
        rows = [(i, q, a) for (i, q), a in zip(asked, said, strict=True) if a]
        if not rows:
            raise Bad(f"writer={self.writer!r} wrote no answer to any of {len(asked):,} questions")
        made = {"passage": [passages[i] for i, _, _ in rows], "prompt": [q for _, q, _ in rows]}
        return data.new({**made, "completion": [f" {a}" for _, _, a in rows]}, parents=ids[[i for i, _, _ in rows]])

    def _asked(self, run: Run, passages: list[str]) -> list[tuple[int, str]]:
        """Each passage's different questions, as prompts: (passage, prompt)."""
        which = np.repeat(np.arange(len(passages)), self.questions).tolist()
        said = self._written(run, [passages[i] + self.between + self.before for i in which], "questions")
        found = (
            (i, f"{self.before}{q.splitlines()[0].strip()}{self.after}") for i, q in zip(which, said, strict=True) if q
        )
        return list(dict.fromkeys(found))

    def _written(self, run: Run, prompts: list[str], key: str) -> list[str]:
        """What the writer writes after each of these, without the space around it."""
        room = (self.writer.window or 1 << 30) - self.new
        if prompts and (longest := max(map(len, self.writer.tokenizer(prompts, verbose=False)["input_ids"]))) > room:
            raise Bad(
                f"a passage with its question has {longest:,} tokens; the writer has room for {room:,} beside new={self.new}"
            )
        return [
            t.strip()
            for t in run.generate(self.writer, prompts, self.new, self.temperature, key=("passage_questions", key))
        ]
