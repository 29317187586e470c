from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.losses import aligned, targets, token_logprobs
from trainlore.primitives.reparam import reshaped
from trainlore.runs import Run
from trainlore.verbs import Shape, method


@method(
    name="btm_average",
    title="Branch-Train-Merge: average of experts",
    paper="arXiv:2208.03306",
    lit="p445",
    family="start/merging",
    year=2022,
    tier="core",
    status="stable",
    code="hadasah/btm",
)
class BTMAverage(Shape):
    """Merge language models trained on different domains into one, each weighed by how well it explains the target.

    ## What it does
    Branch: every expert starts from the same seed model. Train: each on its own domain. Merge (this step):

        theta = sum_j w_j theta_j,      w = the domain posterior of `target`, or 1/k without one

    The posterior is estimated over rows 1 .. n of the target with a prior that follows it (w_0 uniform):

        p_j(t) proportional to w_j * product over s < t of p(x_s | x_<s, expert j)        at every token t of a row
        w <- (1 - decay) w + decay * mean over t of p(t)                                  after every row; the first: w = mean

    The weights of the model given are overwritten: it lends its form, and belongs among `experts` if it should count.

    ## Claim
    Sets of experts beat a dense GPT-style model of equal training cost in and out of their domains, and 64 of them (22.4B
    weights in all) match one trained with 2.5 times the work. They can be averaged into one model for cheap inference.
    Experts trained on random splits of the data do not work.

    ## Cost
    A pass of every expert over at most `rows` target rows; then one pass over the weights.

    ## Fields worth tuning
    `target`, above all; `top` keeps the k best experts and drops the crowd.

    ## Watch out
    Experts must share a seed model and a tokenizer: the average of models trained apart is noise. When one expert is far
    better than the others its weight goes to 1 and the average is that expert.

    ## Differs from the paper
    The ensemble at inference, its stronger and dearer form, is not here. Rows are taken in order, `rows` of them.
    """

    experts: tuple[Model, ...]
    """Models trained from one seed, on a domain each."""
    target: Data | None = None
    """Rows of the domain the merged model is for; without them experts count alike."""
    rows: int = 100
    """Target rows to estimate the posterior from."""
    decay: float = 0.3
    """Share of the newest row in the running posterior."""
    top: int | None = None
    """Number of experts to keep; all when left out."""

    tiny = {"world": "text", "experts": ["$expert_a", "$expert_b"], "target": "$target", "rows": 8}

    def __call__(self, run: Run, model: Model) -> Model:
        if not self.experts:
            raise Bad("experts must name at least one model")
        if self.top is not None and not 1 <= self.top <= len(self.experts):
            raise Bad(f"top must be from 1 to the {len(self.experts)} experts, not {self.top}")
        if not 0 < self.decay <= 1:
            raise Bad(f"decay must be above 0 and at most 1, not {self.decay}")
        states = [expert.net.state_dict() for expert in self.experts]
        for i, state in enumerate(states):
            alike(model.net.state_dict(), state, f"experts[{i}]")
        weights = self._weights(run)
        merged = average(states, weights.tolist())
        model.net.load_state_dict(merged)
        model.about["btm_weights"] = weights.tolist()
        return reshaped(model)

    def _weights(self, run: Run) -> Tensor:
        k = len(self.experts)
        if self.target is None:
            weights = torch.full((k,), 1 / k, dtype=torch.float64)
        else:
            if self.rows < 1 or not len(self.target):
                raise Bad(f"a posterior needs rows of the target: rows={self.rows}, target has {len(self.target)}")
            some = self.target.take(range(min(self.rows, len(self.target))))
            weights = domain_posterior([_row_logprobs(run, expert, some) for expert in self.experts], self.decay)
        if self.top is not None:
            weights = weights.where(weights >= weights.topk(self.top).values[-1], 0.0)
        return weights / weights.sum()


def domain_posterior(rows: Sequence[Sequence[Tensor]], decay: float = 0.3) -> Tensor:
    """Weights (k,) float64 of k experts from the log-probabilities of tokens: rows[j][i] is (T_i,), of expert j and row i."""
    running = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    for i in range(len(rows[0])):
        logp = torch.stack([expert[i].double() for expert in rows])  # (k, T)
        if not logp.shape[1]:
            continue
        before = logp.cumsum(1) - logp
        posterior = (before + running.log()[:, None]).softmax(0).mean(1)
        running = posterior if i == 0 else (1 - decay) * running + decay * posterior
    return running


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of state dicts, in float32 and back; counters and other integers are the first one's."""
    merged = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            merged[name] = first.clone()
            continue
        total = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
        for state, weight in zip(states, weights, strict=True):
            total.add_(state[name].to(total), alpha=weight)
        merged[name] = total.to(first.dtype)
    return merged


def alike(mine: Mapping[str, Tensor], other: Mapping[str, Tensor], who: str) -> None:
    """Raise Bad unless two state dicts have the same names and shapes."""
    for name in sorted(mine.keys() ^ other.keys()):
        raise Bad(f"{who} does not match the model: only one of them has {name}")
    for name, value in mine.items():
        if value.shape != other[name].shape:
            raise Bad(f"{who} does not match the model: {name} is {tuple(other[name].shape)}, not {tuple(value.shape)}")


def _row_logprobs(run: Run, model: Model, data: Data) -> list[Tensor]:
    """log p of every token that is predicted, a tensor (T_i,) a row."""
    if "input_ids" not in data.columns:
        data = model.encode(data, truncate=True)
    longest = int((data.lists("input_ids")[1][1:] - data.lists("input_ids")[1][:-1]).max())

    def padded(batch: dict, out: Tensor) -> Tensor:
        labels = targets(model.kind, batch)
        value = token_logprobs(aligned(model.kind, out), labels).double().masked_fill(labels == -100, torch.nan)
        return torch.nn.functional.pad(value, (0, longest + 8 - value.shape[1]), value=torch.nan)

    return [row[~row.isnan()] for row in run.infer(model, data, padded)]
