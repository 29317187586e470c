from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.domains import domain_means, domains, exponentiated, row_odds
from trainlore.runs import Run
from trainlore.verbs import Part, method


def differences(features: Tensor) -> Tensor:
    """How unlike the others each domain is, (K,): the mean distance of its features (K, D) to all K, itself included."""
    return torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist").mean(1)


def router(net: nn.Module) -> nn.Module | None:
    """The last module that says which experts a token goes to: one whose class is called a router. None: no experts."""
    found = [m for m in net.modules() if "router" in type(m).__name__.lower()]
    return found[-1] if found else None


def gate_loads(run: Run, model: Model, data: Data, gate: nn.Module) -> Tensor:
    """How many of each row's tokens the gate sent to each expert, float64 (N, experts); padding does not count."""
    seen: list[Any] = []

    def loads(batch: Batch, out: Tensor) -> Tensor:
        logits, chosen = _routed(seen.pop(), gate)
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        sent = F.one_hot(chosen.reshape(*mask.shape, -1), logits).double()  # (B, T, experts a token, experts)
        return (sent * mask[..., None, None]).sum((1, 2))

    hook = gate.register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        return run.infer(model, data, loads)
    finally:
        hook.remove()


def _routed(out: Any, gate: nn.Module) -> tuple[int, Tensor]:
    """The number of experts, and those each token goes to (tokens, experts a token), of what a router put out."""
    parts = [v for v in (out if isinstance(out, tuple) else (out,)) if isinstance(v, Tensor)]
    scores = next(v for v in parts if v.is_floating_point())
    experts = int(getattr(gate, "num_experts", scores.shape[-1]))
    whole = [v for v in parts if not v.is_floating_point()]
    return experts, whole[-1] if whole else scores.topk(int(getattr(gate, "top_k", 1)), -1).indices


@method(
    name="dynamic_mixing",
    title="Dynamic data mixing for mixtures of experts",
    paper="arXiv:2406.11256",
    lit="p383",
    family="data/mix",
    year=2024,
    tier="core",
    status="stable",
    code="Spico197/MoE-SFT",
)
class DynamicMixing(Part):
    """Draw more from domains that the model treats unlike the others, less from those that repeat them.

    ## What it does
    Every `every` steps some rows of each domain go through the model. What a domain is to it, g_i, is how the last router
    spreads the domain's tokens over the experts; of a model without experts the mean hidden state.

        g_i = tokens sent to each expert / all of them        (no experts: mean hidden state / its length)
        d_i = mean over j of || g_i - g_j ||
        w_i <- w_i exp(eta d_i) / normalizer,   then   (1 - floor) w_i + floor / K

    ## Claim
    LLaMA-MoE 3.5B and MoLM 700M tuned on chat, reasoning, code and mathematics: ahead of the same data in even shares or
    by size, on knowledge and reasoning and on MT-Bench. The shares end at 0.32 for mathematics and 0.18 for chat.

    ## Cost
    A pass over rows * domains rows every `every` steps.

    ## Fields worth tuning
    `eta`: loads sum to 1, so that distances are some tenths.

    ## Watch out
    Unlike is not useful: noise and a foreign language are unlike everything. The shares accumulate, as if the distances
    were a reward, and only `floor` holds them back: with many updates all but one domain end at it. Two copies of one
    domain still get, together, more than it would alone; deduplicate first.

    ## Differs from the paper
    Its code in all else: the last layer's load, Euclidean distance, the mean with the zero to itself, eta 10 and floor
    0.05, even shares to begin with. It looks at a development set of each domain, here at training rows, a fixed random
    choice. It freezes the gates in training; freeze them where that matters. Hidden states for dense models are ours.

    ## See also
    `uniform_mixture`, its rival; `online_data_mixing`, which looks at losses.
    """

    eta: float = 10.0
    """How strongly differences move the shares."""
    floor: float = 0.05
    """The part of the draws that is spread evenly."""
    every: int = 100
    """Steps between two looks."""
    rows: int = 20
    """Rows of each domain looked at; all where it has fewer."""
    by: str = "domain"
    """Column that names a row's domain."""

    null = None  # even shares are not the data's own mixture
    tiny = {"world": "digits", "by": "label", "every": 5}

    def start(self, loop) -> dict:
        names, code = domains(loop.data, self.by, "dynamic_mixing")
        if len(names) < 3:
            raise Bad(
                f"dynamic_mixing: {len(names)} domains are always equally unlike: it needs three or more in {self.by!r}"
            )
        if not 0 <= self.floor <= 1 or self.eta < 0:
            raise Bad(f"dynamic_mixing: floor lies in 0..1 and eta is at least 0, got {self.floor}, {self.eta}")
        if min(self.every, self.rows) < 1:
            raise Bad(f"dynamic_mixing: every and rows must be at least 1, got {self.every}, {self.rows}")
        order = torch.randperm(len(code), generator=loop.rng("dynamic_mixing")).numpy()
        looked = np.concatenate([order[code[order] == k][: self.rows] for k in range(len(names))])
        s = {"code": torch.from_numpy(code), "count": torch.from_numpy(np.bincount(code))}
        share = torch.full((len(names),), 1 / len(names), dtype=torch.float64)
        return {**s, "looked": torch.from_numpy(looked), "share": share, "odds": row_odds(s["code"], share, s["count"])}

    def odds(self, loop, s) -> Tensor:
        if loop.t and loop.t % self.every == 0:
            s["share"] = exponentiated(s["share"], differences(self._features(loop, s)), self.eta, self.floor)
            s["odds"] = row_odds(s["code"], s["share"], s["count"])
        return s["odds"]

    def _features(self, loop: Any, s: dict) -> Tensor:
        """What each domain is to the model, float64 (K, D)."""
        rows, gate = loop.data.take(s["looked"].numpy()), router(loop.model.net)
        values = loop.run.embed(loop.model, rows) if gate is None else gate_loads(loop.run, loop.model, rows, gate)
        means = domain_means(values, s["code"][s["looked"]], len(s["share"]))
        return (
            means / means.norm(dim=1, keepdim=True).clamp(min=1e-12)
            if gate is None
            else means / means.sum(1, keepdim=True)
        )
