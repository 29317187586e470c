from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.primitives.domains import domains
from trainlore.verbs import Part, method


def reminders(code: np.ndarray, special: np.ndarray, keep: float, generator: torch.Generator) -> np.ndarray:
    """Which rows of the special domains are kept for the second stage, bool (N,): the share `keep` of each domain.

    `code` int64 (N,); `special` the codes of the special domains. Of each at least one row, unless `keep` is 0.
    """
    kept = np.zeros(len(code), bool)
    order = torch.randperm(len(code), generator=generator).numpy()
    for k in special:
        own = order[code[order] == k]
        kept[own[: max(1, round(keep * len(own)))] if keep else []] = True
    return kept


@method(
    name="dual_stage_mixing",
    title="DMT (dual-stage mixed fine-tuning)",
    paper="arXiv:2310.05492",
    lit=["p325", "p246"],
    family="data/mix",
    year=2023,
    tier="core",
    status="stable",
)
class DualStageMixing(Part):
    """Train on the special domains first, then on the general ones with a small share of the special rows.

    ## What it does
    Splits training in two: all rows of the `special` domains, then the rows of all other domains together with a fixed
    random share `keep` of the special rows.

        stage 1, t < first * T:   every special row alike
        stage 2:                  every general row and the keep * N_special kept special rows alike

    By default `first` gives both stages the same number of passes: N_special / (N_special + N_general + kept).

    ## Claim
    LLaMA fine-tuned on mathematics, code and chat, keep 1/256: of all ways to combine the three it is best or level in
    chat, and keeps far more of the special skills than the same stages without them. At 7B 41.9 on GSM8K against 32.6,
    6.08 on MT-Bench; all mixed at once 47.5 and 5.76. At 33B 56.4 against 44.2.

    ## Cost
    None.

    ## Fields worth tuning
    `keep`: the paper goes from 1/256 up to 1/4; more keeps more of the special skills and costs general ones.

    ## Watch out
    `keep` is a share of the special rows, not of the draws: few rows, seen over and over with the general ones. General
    ability takes about a thousand rows, mathematics and code go on rising with more; the amount counts more than the
    ratio. Mixing helps while data is little, and the domains get in each other's way when it is much.
    Phases pay in pretraining too, and not every phase: Crystal (arXiv:2411.04156) learns text first and then 63% code
    with 37% text, and a third phase of nearly code alone improved nothing. Keep the old domains in, and stop there.

    ## Differs from the paper
    One training with one optimizer and schedule, where the paper fine-tunes twice; rows are drawn at random in a
    stage rather than in whole passes.

    ## See also
    `domain_upsampling` for the reverse order, `replay` for rows kept from an earlier training.
    """

    special: tuple[str, ...]
    """The domains of the first stage."""
    keep: float = 1 / 256
    """Share of each special domain's rows that stays in the second stage."""
    first: float | None = None
    """Share of training that is the first stage; by the rows of both stages when left out."""
    by: str = "domain"
    """Column that names a row's domain."""

    ranges = {"keep": [0.001, 0.1, "log"]}
    null = {"first": 0.0, "keep": 1.0}
    tiny = {"world": "text", "special": ["a"], "keep": 0.125, "first": 0.5}

    def start(self, loop) -> dict:
        names, code = domains(loop.data, self.by, "dual_stage_mixing")
        if strange := sorted(set(self.special) - set(names)):
            raise Bad(f"dual_stage_mixing: special names {', '.join(strange)}; the domains are {', '.join(names)}")
        if not 0 < len(set(self.special)) < len(names):
            raise Bad(
                f"dual_stage_mixing: special must name some of the domains and not all: {', '.join(names)}, "
                f"not {', '.join(self.special) or 'none'}"
            )
        if not 0 <= self.keep <= 1 or not (self.first is None or 0 <= self.first <= 1):
            raise Bad(f"dual_stage_mixing: keep and first must lie in 0..1, got {self.keep}, {self.first}")
        codes = np.array([names.index(n) for n in dict.fromkeys(self.special)])
        one = np.isin(code, codes)
        two = ~one | reminders(code, codes, self.keep, loop.rng("dual_stage_mixing"))
        first = one.sum() / (one.sum() + two.sum()) if self.first is None else self.first
        return {"one": torch.from_numpy(one).float(), "two": torch.from_numpy(two).float(), "first": float(first)}

    def odds(self, loop, s) -> Tensor | None:
        if loop.done < s["first"]:
            return s["one"]
        return s["two"] if self.keep < 1 else None
