from __future__ import annotations

import numpy as np
import torch

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.nouns.report import Measured
from trainlore.primitives.holding import hold, let_go
from trainlore.primitives.masks import matrices, plain, top_global, top_layers, top_pattern, weight_of, write
from trainlore.runs import Run
from trainlore.verbs import Measure, Part, method


def knee(shares, scores) -> tuple[float, float, float]:
    """Where two straight lines that meet fit the scores best, and their slopes before and after.

    shares (N,) rising, scores (N,) where higher is better, N >= 4. Where no second line falls faster than the first there
    is no knee: then the last share, and the one slope twice.
    """
    x, y = np.asarray(shares, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    places = np.linspace(x[1], x[-2], 201)
    basis = np.stack([np.ones((201, len(x))), np.tile(x, (201, 1)), np.maximum(0, x - places[:, None])], -1)
    fits = np.linalg.pinv(basis) @ y
    best = int(((np.einsum("cnk,ck->cn", basis, fits) - y) ** 2).sum(1).argmin())
    _, first, bend = fits[best]
    if bend >= 0:
        slope = float(np.polyfit(x, y, 1)[0])
        return float(x[-1]), slope, slope
    return float(places[best]), float(first), float(first + bend)


@method(
    name="essential_sparsity",
    title="Essential sparsity",
    paper="arXiv:2306.03805",
    lit="p071",
    code="VITA-Group/essential_sparsity",
    family="compress/prune",
    year=2023,
    tier="core",
    status="stable",
)
class EssentialSparsity(Measure):
    """Find out how many of a model's smallest weights can go at once before its score starts to fall fast.

    ## What it does
    For each share s a copy of the model loses its smallest weights, s of them, at once, and `judge` scores it on the data:

        score(s) ~ a + b s + c max(0, s - knee)     least squares, c < 0 (for scores where higher is better)

    The report's first value is the knee; then come the scores, one a share. Its notes hold the slopes before and after the
    knee and `within`, the largest share up to which no score loses more than `loss` of the dense one. With `neighbours` m
    the copies keep n of every m neighbours, n = m ... 1. With `steps` each copy is first fine-tuned on `train`, zeros held.

    ## Claim
    In BERT, OPT, ViT and DINO models 30 to 50 % of the weights can go at no more than 1 % loss on a task learned after;
    beyond a sharp point the score falls fast. It holds for n:m patterns and a 7B language model; masks found by much
    training hardly differ below the point, and more pretraining data moves it up.

    ## Cost
    A copy, a selection and a pass of `judge` for each share (and `steps` of training).

    ## Fields worth tuning
    `shares`: closer where the knee is. `steps`: without training the knee comes earlier.

    ## Watch out
    Two lines always find some knee in a curve that bends: look at the slopes, and at the scores. Where no share is fatal the knee
    is the last one. A score with a few wild values (perplexity) pulls the knee to its end: judge by accuracy or loss.

    ## Differs from the paper
    The authors read the point off their curves; the two lines are ours.

    ## See also
    magnitude, granet.
    """

    judge: Measure
    """What scores a copy; its first metric counts."""
    shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of the weights to take away, rising from 0."""
    scope: str = "global"
    """What is ranked together: global (all layers) or layer."""
    neighbours: int = 0
    """m of the patterns n:m to sweep; 0: free zeros by `shares`."""
    loss: float = 0.01
    """Share of the dense score that `within` allows to be lost."""
    steps: int = 0
    """Steps of fine-tuning of each copy."""
    train: Data | None = None
    """Rows to fine-tune on."""
    inner: tuple[Part, ...] = ()
    """Parts of that training."""
    batch_size: int = 32
    """Rows a step of it."""
    lr: float = 1e-3
    """Its learning rate."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to prune; all but the output head when empty."""

    tiny = {"world": "digits", "judge": {"accuracy": {}}, "shares": [0.0, 0.3, 0.6, 0.9]}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        data.need(who="essential_sparsity")
        m = self.neighbours
        shares = [(m - n) / m for n in range(m, 0, -1)] if m else list(self.shares)
        if len(shares) < 4 or shares[0] != 0 or any(a >= b for a, b in zip(shares, [*shares[1:], 1.0], strict=True)):
            raise Bad(f"shares={tuple(shares)} must be four or more, rising from 0 to below 1 (neighbours: 4 or more)")
        if self.scope not in ("global", "layer"):
            raise Bad(f"scope={self.scope!r} is neither global nor layer")
        if self.loss < 0:
            raise Bad(f"loss={self.loss} must be at least 0")
        if self.steps and self.train is None:
            raise Bad(f"steps={self.steps} of fine-tuning need rows in `train`")
        found = [self._judged(run, model, data, share) for share in shares]
        better, scores = found[0].better, np.array([one.value for one in found])
        if better not in ("higher", "lower"):
            raise Bad(f"judge says of {found[0].metric} neither that higher nor that lower is better")
        sign = 1.0 if better == "higher" else -1.0
        place, before, after = knee(shares, sign * scores)
        lost = sign * (scores[0] - scores) > self.loss * abs(scores[0])
        notes = {
            "within": shares[int(lost.argmax()) - 1] if lost.any() else shares[-1],
            "slopes": [sign * before, sign * after],
            "shares": shares,
            "judged": found[0].metric,
        }
        return Report.join(
            Report.of("essential sparsity", [place], better="higher", notes=notes),
            Report.of(f"{found[0].metric} by share", scores, better=better),
        )

    def _judged(self, run: Run, model: Model, data: Data, share: float) -> Measured:
        """The judge's first metric of a copy without this share of its weights."""
        copy = model.copy()
        layers = plain(matrices(copy.net, self.targets))
        scores = {path: weight_of(layer).abs() for path, layer in layers.items()}
        if m := self.neighbours:
            masks = {path: top_pattern(s, m - round(share * m), m) for path, s in scores.items()}
        else:
            masks = (top_global if self.scope == "global" else top_layers)(scores, 1 - share)
        with torch.no_grad():
            for path, layer in layers.items():
                write(layer, weight_of(layer).masked_fill(~masks[path], 0.0))
        if self.steps:
            hold(layers, masks)
            how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
            run.fit(copy, self.train, *self.inner, **how)
            let_go(layers)
        return run.step(self.judge, copy, data).measured[0]
