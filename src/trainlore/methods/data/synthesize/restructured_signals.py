from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.verbs import Curate, method

DOCSTRINGS: tuple[dict[str, Any], ...] = (
    {"name": "first line", "find": [r"(?s)^(?P<answer>[^\n]+)\n\s*\n(?P<text>.+)"],
     "ask": ["What one line could stand above this?", "Sum this up in a line."]},
    {"name": "heading", "find": [r"(?s)^(?P<text>.+?)\n *(?P<answer>[A-Z][\w ]{2,20})\n *[-=~]{3,}\n",
                                 r"(?s)^(?P<text>.+?)\n *(?P<answer>[A-Z][a-z]{2,20}):\n"],
     "ask": ["What is the heading of the next section?", "Which section comes now?"]},
    {"name": "parameter", "find": [r"\n *(?P<about>[a-z_]\w*) ?: [^\n]+\n {4,}(?P<answer>\S[^\n]+)",
                                   r"\n +(?P<about>[a-z_]\w*)(?: ?\([^\n)]*\))?: (?P<answer>\S[^\n]+)",
                                   r"\n *:param (?P<about>\w+): (?P<answer>\S[^\n]+)"],
     "ask": ["What is {about}?", "What does the parameter {about} mean?"]},
    {"name": "example", "find": [r"\n *>>> (?P<about>[^\n]+)\n *(?P<answer>[^\s>.][^\n]*)"],
     "ask": ["What does {about} give?", "What is printed after {about}?"]},
    {"name": "name", "from": "name", "find": [r"(?P<answer>\w+)$"], "ask": ["What is this called?", "Name it."]},
    {"name": "signature", "from": "signature", "find": [r"(?P<answer>.+)"], "ask": ["How is it defined?", "Write its head."]},
    {"name": "kind", "from": "kind", "find": [r"(?P<answer>.+)"], "ask": ["What kind of thing is this?", "What is described?"]},
    {"name": "domain", "from": "domain", "find": [r"(?P<answer>.+)"], "ask": ["Where does this come from?", "Whose is it?"]},
)  # fmt: skip


def occurrences(data: Data, signal: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, pa.Array]]:
    """The rows in which a signal occurs, positions (M,) ascending, and for each its `text`, `about` and `answer`.

    The first pattern of `find` that matches counts. Without a group `text` it is the row's; without `about` it is empty.
    """
    column, left, found = _strings(data[signal.get("from", "text")]), np.arange(len(data)), []
    for pattern in signal["find"]:
        try:
            got = pc.extract_regex(column.take(pa.array(left)), pattern)
        except pa.ArrowInvalid as error:
            raise Bad(f"signal {signal['name']!r}: {pattern!r} cannot be searched for: {error}") from None
        hit = got.is_valid().to_numpy(zero_copy_only=False)
        names, got, at, left = [f.name for f in got.type], got.filter(pa.array(hit)), left[hit], left[~hit]
        if "answer" not in names:
            raise Bad(f"signal {signal['name']!r}: {pattern!r} has no group (?P<answer>...)")
        groups: dict[str, Any] = {"text": data["text"].take(pa.array(at)), "about": pa.array([""] * len(at))}
        groups |= {n: pc.struct_field(got, n) for n in names}
        found.append(pa.table({"at": at, **{n: pc.utf8_trim_whitespace(_strings(v)) for n, v in groups.items()}}))
    every = pa.concat_tables(found, promote_options="permissive").sort_by("at").combine_chunks()
    return every["at"].to_numpy(), {n: every[n].combine_chunks() for n in ("text", "about", "answer")}


def _strings(column: Any) -> pa.Array:
    """A column as text, the missing as empty text."""
    return pc.fill_null(pc.cast(pa.array(column) if isinstance(column, np.ndarray) else column, pa.large_string()), "")


def offered(code: np.ndarray, k: int, many: int, rng: np.random.Generator) -> np.ndarray:
    """Each row's own answer among up to `many` different ones of the k there are, in random order: (M,) -> (M, m)."""
    wrong = min(many, k) - 1
    shift = np.sort(rng.integers(0, max(1, k - wrong), (len(code), wrong)), 1) + np.arange(wrong) + 1
    return rng.permuted(np.concatenate([code[:, None], (code[:, None] + shift) % k], 1), axis=1)


@method(
    name="restructured_signals",
    title="Restructured pre-training (RST)",
    paper="arXiv:2206.11147",
    lit="p040",
    family="data/synthesize",
    year=2022,
    tier="core",
    status="stable",
    code="ExpressAI/reStructured-Pretraining",
)
class RestructuredSignals(Curate):
    """Turn what stands in documents by nature (headings, names, first lines) into questions with answers.

    ## What it does
    A signal is a regular expression with the group `answer` (also `text`, where the answer must not be in it, and `about`, what
    the question is about), the column it is looked for in, and questions. Every row in which it occurs gives one new row:

        prompt:  TEXT: <text> QUERY: <one of the questions> [ "<answer>" or "<another row's>" ]      completion:  <answer>

    A `choice` of the questions offers answers. At most `cap` rows of each signal stay, drawn at random. Without `signals`, those
    of Python's docstrings and of columns name, signature, kind and domain are looked for; a column that is not there is passed
    over. `signal` says what each row is, `parents` where it was found.

    ## Claim
    26 signals of ten sources, a T5 of 11 B: better than T0 on 52 of 55 sets, and 138.5 points of 150 in China's college entrance
    exam in English of 2018, 15 more than GPT-3 of 16 times its size.

    ## Cost
    A search with each expression. New rows lie in memory: signals * `cap` * (`longest` + `answer`) bytes, 0.9 GB as it stands,
    and for a moment the matches of one signal, rows * length of text (2 GB for 1 M rows of 2,000 characters).

    ## Fields worth tuning
    `signals`: what downstream tasks will ask for; `choice`.

    ## Watch out
    An expression that matches the wrong place teaches wrong answers: look at some rows of each signal. Where rows resemble each
    other, an answer that is right too may be offered as a wrong one.

    ## Differs from the paper
    Its extractors and prompts are made for each site; here an expression and a few questions for each signal. Read from the
    authors' list of 29 signals (46.9 M rows) and their model cards; how they mixed the signals was not to be seen: the cap is
    how many rows of each they give away freely.

    ## See also
    `backtranslation`, which writes the questions with a model; `metadata_conditioning`.
    """

    signals: tuple[dict[str, Any], ...] = ()
    """What to look for: name, find (expressions in RE2's syntax), ask (questions), from (the column; text); none: docstrings."""
    form: str = "TEXT: {text}\nQUERY: {query}\nANSWER:"
    """The prompt."""
    choice: float = 0.5
    """Share of the questions that offer answers."""
    options: int = 4
    """Answers offered, at most."""
    longest: int = 2000
    """Characters of the text shown."""
    answer: int = 200
    """Characters of an answer, at most: longer ones make no row."""
    cap: int = 50_000
    """Rows of a signal, at most."""

    ranges = {"choice": [0.0, 1.0]}
    tiny = {"world": "text", "longest": 80}

    def __call__(self, run: Run, data: Data) -> Data:
        if not 0 <= self.choice <= 1 or self.options < 2 or min(self.longest, self.answer, self.cap) < 1:
            raise Bad(f"choice={self.choice} must be a share, options at least 2, longest, answer and cap at least 1")
        if "{text}" not in self.form or "{query}" not in self.form:
            raise Bad(f"form={self.form!r} must hold {{text}} and {{query}}")
        data.need("text", who="restructured_signals")
        looked = self.signals or DOCSTRINGS
        for signal in looked:
            if missing := {"name", "find", "ask"} - set(signal):
                raise Bad(f"signal {signal.get('name', signal)!r} does not say {', '.join(sorted(missing))}")
        made = [self._rows(run, data, s) for s in looked if s.get("from", "text") in data.columns]
        if not sum(len(m["prompt"]) for m in made):
            raise Bad(f"none of {', '.join(s['name'] for s in looked)} is in these rows: say `signals` that are")
        at = np.concatenate([m.pop("at") for m in made])
        return data.new({n: [x for m in made for x in m[n]] for n in made[0]}, parents=data.ids[at])

    def _rows(self, run: Run, data: Data, signal: dict[str, Any]) -> dict[str, Any]:
        """The new rows of a signal by column, and the positions (M,) of the rows they were found in."""
        at, got = occurrences(data, signal)
        size = pc.utf8_length(got["answer"]).to_numpy()
        fits = np.flatnonzero((size > 0) & (size <= self.answer) & (pc.utf8_length(got["text"]).to_numpy() > 0))
        rng = run.numpy("restructured_signals", signal["name"])
        keep = np.sort(rng.permutation(fits)[: self.cap])
        text, about, answer = (got[n].take(pa.array(keep)) for n in ("text", "about", "answer"))
        coded = answer.dictionary_encode()
        names = np.array(coded.dictionary.to_pylist(), dtype=object)
        shown = offered(np.asarray(coded.indices).astype(np.int64), max(1, len(names)), self.options, rng)
        which = rng.integers(0, len(signal["ask"]), len(keep))
        chosen = (rng.random(len(keep)) < self.choice) & (len(names) > 1)
        queries = [signal["ask"][w].format(about=a) for w, a in zip(which, about.to_pylist(), strict=True)]
        for i in np.flatnonzero(chosen):
            *some, last = [f'"{x}"' for x in names[shown[i]]]
            queries[i] += f" {', '.join(some)} or {last}"
        cut = pc.utf8_slice_codeunits(text, 0, self.longest).to_pylist()
        return {
            "prompt": [self.form.format(text=t, query=q) for t, q in zip(cut, queries, strict=True)],
            "completion": [" " + a for a in answer.to_pylist()],
            "signal": [signal["name"]] * len(keep),
            "at": at[keep],
        }
