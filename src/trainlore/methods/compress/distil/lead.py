from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.ranking import layer_scores, ranker, triples
from trainlore.primitives.teaching import kl
from trainlore.verbs import Part, method


def informed(scores: Tensor, temperature: float) -> Tensor:
    """Weights (L,) of a teacher's layers by how well each finds the right text: scores (L, B, M), text b right for query b.

    softmax over layers of (mean log probability of the right text) / temperature."""
    right = scores.float().log_softmax(-1).diagonal(dim1=1, dim2=2)
    return (right.mean(1) / temperature).softmax(0)


def lead_loss(
    student: Tensor, teacher: Tensor, mine: list[int], theirs: list[int], temperature: float, layer_temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Three losses of each query, (B,): contrastive, of the last layers' answers, and of the layers between.

    student (L, B, M), teacher (K, B, M): each layer's scores of all M texts, text b the right one for query b; layer
    mine[i] of the student learns from theirs[i] of the teacher.
    """
    hard = F.cross_entropy(student[-1].float(), torch.arange(student.shape[1], device=student.device), reduction="none")
    response = kl(student[-1], teacher[-1] / temperature)
    gaps = kl(student[mine], teacher[theirs] / temperature)
    return hard, response, (informed(teacher[theirs], layer_temperature)[:, None] * gaps).sum(0)


@method(
    name="lead",
    title="LEAD: liberal feature-based distillation",
    paper="arXiv:2212.05225",
    lit="p479",
    family="compress/distil",
    year=2022,
    tier="core",
    code="microsoft/SimXNS",
    status="stable",
)
class LEAD(Part):
    """Teach a model that embeds queries and texts by how each layer of a larger one ranks the batch's texts.

    ## What it does
    Every layer of teacher and student ranks the texts of the batch for a query by dot products of its mean hidden states.
    Those rankings can be compared whatever the widths, depths and tokenizers. Rows hold `prompt` (the query), `chosen`
    (its text) and `rejected` (a hard negative); the texts of all other rows are negatives too.

        p_l(d | q) = softmax_d( q_l . d_l )      over the 2 B texts of the batch
        loss = - log p(d+ | q)  +  response KL( p^t || p )  +  features sum_i w_i KL( p^t_{t(i)} || p_{s(i)} )
        w = softmax_i( mean log p^t_{t(i)}(d+ | q) / layer_temperature )

    s(i) and t(i) are `layers` of the layers below the last, drawn at random and in order, anew every `every` steps. Layers
    of the teacher that find the right text weigh more.

    ## Claim
    MS MARCO passages and documents, TREC 2019 and 2020: six-layer students ahead of all other distillations tried, taught
    by twelve-layer dual encoders, ColBERT or cross-encoders.

    ## Cost
    Two passes of the student and two of the teacher a step, over B queries and 2 B texts.

    ## Fields worth tuning
    `layers`: the authors' code has 5 of 6 for passages and all 6 for documents with six-layer students.

    ## Watch out
    The batch is the list of candidates: it cannot be split (no `micro_batch`), and a text that answers two of its queries
    is a false negative for one. Start student and teacher from a model that was tuned to rank, as the authors do: dot
    products of untrained vectors are large, and here a learning rate of 3e-3 from scratch ranked worse than no training.
    Not reproduced here (10 seeds, three-layer students without pretraining, 40 pairs): against the contrastive loss alone
    3.7 points fewer pairs ordered after 20 steps, 2.4 more after 30, both within the noise.

    ## Differs from the paper
    The teacher is a dual encoder and stays as it is; the authors train it along with the student, towards it too, and
    give cross-encoders a scoring head a layer. Means of tokens, not the first token; the layer of token vectors, which
    the authors may draw, is left out. One hard negative a row.

    ## See also
    `margin_mse` where only the answers of the teacher are to be learned.
    """

    teacher: Model
    """Embeds queries and texts; it is not trained."""
    layers: int = 5
    """How many pairs of layers; at most as many as either model has below its last."""
    response: float = 1.0
    """Weight of the last layers' divergence."""
    features: float = 1.0
    """Weight of the layers' divergence."""
    temperature: float = 1.0
    """Divides the teacher's scores."""
    layer_temperature: float = 10.0
    """Divides what decides the weights of the layers; the higher, the more even."""
    every: int = 10
    """Steps after which the layers are drawn anew."""

    needs = {"prompt": "text", "chosen": "text", "rejected": "text"}
    rowwise = False
    ranges = {"response": [0.1, 3.0, "log"], "features": [0.1, 3.0, "log"], "layers": [1, 12]}
    null = None  # it owns the loss
    tiny = {"world": "pairs", "teacher": "$reference"}

    def start(self, loop):
        ranker(loop.model, "lead")
        ranker(self.teacher, "lead's teacher")
        for name, least in (("layers", 1), ("every", 1), ("response", 0), ("features", 0)):
            if getattr(self, name) < least:
                raise Bad(f"{name} must be at least {least}; it is {getattr(self, name)}")
        if self.temperature <= 0 or self.layer_temperature <= 0:
            raise Bad(
                f"temperatures must be above 0; they are {self.temperature} and {self.layer_temperature} (layer_temperature)"
            )
        self.teacher.net.to(loop.device).eval()
        return {}

    def _drawn(self, loop, *depths):
        """Layers of each model, in order: as many of all but its last as are asked for and both have."""
        count = min(self.layers, *(depth - 1 for depth in depths))
        if count < 1:
            raise Bad(f"lead compares layers below the last; the models have {' and '.join(map(str, depths))} layers")
        rng = loop.rng("lead", loop.t // self.every)
        return [torch.randperm(depth - 1, generator=rng)[:count].sort().values.tolist() for depth in depths]

    def forward(self, loop, s, batch):
        return layer_scores(loop.model, *triples(loop.data, batch["row"]))

    def loss(self, loop, s, batch, out):
        with torch.no_grad():
            said = layer_scores(self.teacher, *triples(loop.data, batch["row"]))
        mine, theirs = self._drawn(loop, len(out), len(said))
        hard, response, features = lead_loss(out, said, mine, theirs, self.temperature, self.layer_temperature)
        return hard + self.response * response + self.features * features
