from __future__ import annotations

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.alike import same_tokens
from trainlore.primitives.domains import domains
from trainlore.primitives.losses import aligned
from trainlore.primitives.teaching import kl, where_trained
from trainlore.verbs import Part, method


@method(
    name="teacher_routing",
    title="Domain alignment from expert (KD-DAE)",
    paper="arXiv:2406.19112",
    lit="p511",
    family="compress/distil",
    year=2024,
    tier="llm",
    code="flipkart-incubator/kd-dae",
    status="stable",
)
class TeacherRouting(Part):
    """Match a specialist's answers on the rows of its domains, and a general teacher's on all others.

    ## What it does
    Each row is taught by one of two models: those whose domain is in `domains` by the expert, the rest by the general
    teacher, so that the student learns the domain without leaving what it could do. Per trained token (or row):

        t(x) = expert if domain(x) in domains, else general
        loss = (1 - alpha) inner + alpha T^2 KL( softmax(t(x) / T) || softmax(student / T) )

    The general teacher may be the student itself as it was before.

    ## Claim
    Mistral 7B and 2x7B, taught by Mixtral 8x7B and then aligned with an expert on shopping: up to 7.9 on MT-Bench and 93.04%
    on AlpacaEval, above other models of more than 7B and 13B parameters. Domain rows are a tenth of the data there.

    ## Cost
    One teacher's forward pass a row and step; both teachers in memory.

    ## Fields worth tuning
    `alpha`: the authors leave the labels out.

    ## Watch out
    Both teachers and the student must share their vocabulary. The expert is never asked about general rows, nor the
    general teacher about the domain: a row with the wrong name is taught the wrong thing.

    ## Differs from the paper
    This is its second phase. In the first, instructions from one large teacher, the authors add a divergence of
    attention maps between layers of one shape, which is not here: use `kd`. They run both teachers on all rows and drop half
    of the answers. alpha and T are 1, as in their code.

    ## See also
    `kd` with one teacher; `sparse_answers` of each teacher on its own rows, kept for `sparse_logits`; `btm_average`
    merges experts instead.
    """

    general: Model
    """Teaches the rows of all other domains; it is not trained."""
    expert: Model
    """Teaches the rows of `domains`; it is not trained."""
    domains: tuple[str, ...]
    """The expert's domains."""
    by: str = "domain"
    """Column that names each row's domain."""
    alpha: float = 1.0
    """Weight of the teachers' answers; the labels have the rest."""
    temperature: float = 1.0
    """Divides all networks' logits."""

    ranges = {"alpha": [0.2, 1.0], "temperature": [1.0, 4.0, "log"]}
    null = {"alpha": 0.0}
    tiny = {"world": "text", "general": "$prior", "expert": "$expert_b", "domains": ["b"]}

    def start(self, loop):
        if loop.model.kind in ("regressor", "encoder", "denoiser"):
            raise Bad(
                f"teacher_routing teaches choices among classes or tokens, which a {loop.model.kind} model does not make"
            )
        if not 0 <= self.alpha <= 1 or self.temperature <= 0:
            raise Bad(
                f"alpha must be from 0 to 1 and temperature above 0; they are {self.alpha} and {self.temperature}"
            )
        if not self.alpha:
            return {}
        names, code = domains(loop.data, self.by, "teacher_routing")
        if missing := [d for d in self.domains if d not in names]:
            raise Bad(f"domains: no row is of {', '.join(missing)}; column {self.by!r} has {', '.join(names)}")
        if not self.domains:
            raise Bad(f"domains: name the expert's; column {self.by!r} has {', '.join(names)}")
        for name, teacher in (("general", self.general), ("expert", self.expert)):
            same_tokens(loop.model, teacher, "teacher_routing", f"{name} teacher")
            teacher.net.to(loop.device).eval()
        special = torch.tensor([name in self.domains for name in names])
        return {"special": special[torch.from_numpy(code)]}

    def loss(self, loop, s, batch, out, inner):
        if not self.alpha:
            return inner(batch, out)
        kind = loop.model.kind
        said = self._said(s, batch, out)
        gap = where_trained(kind, batch, kl(aligned(kind, out), aligned(kind, said), self.temperature))
        return (1 - self.alpha) * inner(batch, out) + self.alpha * self.temperature**2 * gap

    @torch.no_grad()
    def _said(self, s, batch, out) -> Tensor:
        """Each row's logits by its own teacher, in the form of the student's."""
        special = s["special"][batch["row"].cpu()].to(out.device)
        said = torch.empty_like(out)
        for teacher, mine in ((self.expert, special), (self.general, ~special)):
            if mine.any():
                few = {
                    k: v[mine] if torch.is_tensor(v) and v.dim() and len(v) == len(mine) else v
                    for k, v in batch.items()
                }
                answer = teacher(few)
                if answer.shape[1:] != out.shape[1:]:
                    raise Bad(
                        f"a teacher answers in the form {tuple(answer.shape[1:])} a row, the student in {tuple(out.shape[1:])}: "
                        "they must share classes or vocabulary"
                    )
                said[mine] = answer.to(said)
        return said
