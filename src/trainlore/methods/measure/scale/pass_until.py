from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.runs import Run
from trainlore.verbs import Measure, method


def pass_rate(passes, samples, wanted: int) -> np.ndarray:
    """Unbiased pass rates (N,) after sampling until `wanted` passes or a cap, from passes and samples seen (N,).

    (wanted - 1) / (samples - 1) where the wanted passes came, passes / samples where the cap came first.
    """
    passes, samples = np.asarray(passes, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    return np.where(passes >= wanted, (wanted - 1) / np.maximum(samples - 1, 1), passes / samples)


def task_law(sizes, rates) -> tuple[float, float]:
    """(c, alpha) of rate = exp(-c * size^-alpha) from model sizes (L,) and mean pass rates (L,), a line in log size and log(-log rate)."""
    slope, level = np.polyfit(np.log(_sizes(sizes, rates, 2)), twice_log(rates), 1)
    return float(np.exp(level)), float(-slope)


def bend(sizes, rates) -> float:
    """Curvature of log(-log rate) over log size (L,): below 0 the rate grows faster than the law (emergence), above 0 slower."""
    return float(2 * np.polyfit(np.log(_sizes(sizes, rates, 3)), twice_log(rates), 2)[0])


def twice_log(rates) -> np.ndarray:
    """log(-log rate) (L,)."""
    rates = np.asarray(rates, dtype=np.float64)
    if not ((rates > 0) & (rates < 1)).all():
        raise Bad("the law needs pass rates strictly between 0 and 1: sample more, or leave that model out")
    return np.log(-np.log(rates))


def _sizes(sizes, rates, least: int) -> np.ndarray:
    sizes = np.asarray(sizes, dtype=np.float64)
    if sizes.shape != np.shape(rates) or len(np.unique(sizes)) < least or not (sizes > 0).all():
        raise Bad(f"sizes and rates must pair up, with {least} different sizes above 0 or more")
    return sizes


@method(
    name="pass_until",
    title="PassUntil",
    paper="arXiv:2310.03262",
    lit="p310",
    family="measure/scale",
    year=2023,
    tier="core",
    status="stable",
)
class PassUntil(Measure):
    """Sample answers until some pass, so that rates far below one in a hundred can be told from zero.

    ## What it does
    For every row, completions of `prompt` are drawn at `temperature` until `passes` of them equal the row's `completion` (white
    space at the ends aside) or `most` were drawn. With r passes wanted and K samples drawn the rate is

        (r - 1) / (K - 1)      when the r passes came
        k / most               when the cap came first, with k passes

    which together is unbiased whatever the cap. `task_law` fits rate = exp(-c * size^-alpha) over a ladder of models (a line in
    log size and log(-log rate)), and `bend` says whether they leave it: below 0 is what the authors call emergence.

    ## Claim
    Seen at this resolution tasks improve along a law long before one-shot accuracy leaves zero: a 2.4B model's score on
    generated code was predicted to 0.05% before it was trained.

    ## Cost
    About `passes` / rate samples a row, `most` at most; rows that are done are not sampled again.

    ## Fields worth tuning
    `passes`: the relative error of a row is about 1 / sqrt(passes). `most`: the smallest rate seen is about 1 / `most`.

    ## Watch out
    A ladder whose mean rate is carried by a few easy rows is fitted to those rows. Rates belong to a temperature: 0 samples the
    same answer again and again. Words of a prompt that tokenize differently from training make rates that are no model's fault.

    ## Differs from the paper
    It estimates r / K and stops at 1e5 samples: both are biased (upwards, and at the cap), as its reviewers noted; here the
    estimate is the unbiased one, which needs two passes or more. The instance-wise law by a solution's loss is left out.

    ## See also
    power_law
    """

    passes: int = 2
    """Passes to wait for, 2 or more."""
    most: int = 1000
    """Samples a row at most."""
    temperature: float = 1.0
    """Temperature of the samples."""
    new: int = 32
    """Tokens of a completion at most."""
    chunk: int = 16
    """Samples a row and round."""

    tiny = {"world": "sums", "most": 8, "chunk": 4, "new": 4}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        data.need("prompt", "completion", who="pass_until")
        if self.passes < 2:
            raise Bad(f"passes must be 2 or more, not {self.passes}: from a single pass no unbiased rate follows")
        if self.most < self.passes or self.chunk < 1 or self.temperature <= 0:
            raise Bad("most must reach passes, and chunk and temperature be above 0")
        prompts = list(data.text("prompt"))
        wanted = np.array([answer.strip() for answer in data.text("completion")], dtype=object)
        hits, drawn = np.zeros(len(data), int), np.zeros(len(data), int)
        open_rows, at = np.arange(len(data)), 0
        while len(open_rows):
            n = min(self.chunk, self.most - at)
            texts = run.generate(
                model,
                [prompts[i] for i in open_rows for _ in range(n)],
                self.new,
                self.temperature,
                key=("pass_until", at),
            )
            right = (
                np.array([t.strip() for t in texts], dtype=object).reshape(-1, n) == wanted[open_rows, None]
            ).astype(int)
            total = hits[open_rows, None] + right.cumsum(1)
            done = total[:, -1] >= self.passes
            until = np.where(
                done, (total >= self.passes).argmax(1) + 1, n
            )  # what was drawn after the last wanted pass is not looked at
            hits[open_rows] = np.minimum(total[:, -1], self.passes)
            drawn[open_rows] += until
            at += n
            open_rows = open_rows[~done] if at < self.most else open_rows[:0]
        rates = pass_rate(hits, drawn, self.passes)
        notes = {"capped": float((hits < self.passes).mean()), "size": model.size}
        rate = Report.of("pass rate", rates, rows=data.ids, notes=notes)
        return Report.join(rate, Report.of("samples", drawn, better="", rows=data.ids))
