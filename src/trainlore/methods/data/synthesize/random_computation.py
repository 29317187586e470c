from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method

BUFFER = 20  # rows of the buffer, in rows written at once
RESET = 0.96  # rows set back for each row written, half to one token repeated, half to random ones
SEED = 8  # tokens that a written row begins with
QUIET = 1e-8  # scale of the token embeddings: only a chaotic network tells tokens apart


class Computer(nn.Module):
    """LSTM layers with random weights that write the likeliest token after another, reading a second row along the way."""

    def __init__(self, tokens: int, width: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.width, self.layers = tokens, width, layers

    def draw(self, rng: torch.Generator, gain: float) -> None:
        """Take new weights, `gain` times as large in the layers as torch begins them."""
        w, bound = self.width, self.width**-0.5

        def even(*shape: int) -> Tensor:
            return (2 * torch.rand(*shape, generator=rng, dtype=torch.float64) - 1) * bound

        self.embed = QUIET * torch.randn(self.tokens, w, generator=rng, dtype=torch.float64)
        self.weights = [gain * even(4 * w, (2 if k else 3) * w) for k in range(self.layers)]
        self.biases = [gain * (even(4 * w) + even(4 * w)) for _ in range(self.layers)]
        self.head = even(self.tokens, w), even(self.tokens)

    def forward(self, conditions: Tensor, seeds: Tensor) -> Tensor:
        """conditions (B,T), seeds (B,S) -> (B,T): the seeds, then what is written."""
        rows, length = conditions.shape
        words = torch.cat([seeds, torch.zeros_like(conditions[:, seeds.shape[1] :])], 1)
        state = [[torch.zeros(rows, self.width, dtype=torch.float64)] * 2 for _ in range(self.layers)]
        for t in range(length - 1):
            x = torch.cat([self.embed[words[:, t]], self.embed[conditions[:, t]]], 1)
            for k, (hidden, cell) in enumerate(state):
                gates = F.linear(torch.cat([x, hidden], 1), self.weights[k], self.biases[k])
                enter, forget, value, leave = gates.chunk(4, 1)
                cell = forget.sigmoid() * cell + enter.sigmoid() * value.tanh()
                x = leave.sigmoid() * cell.tanh()
                state[k] = [x, cell]
            if t + 1 >= seeds.shape[1]:
                words[:, t + 1] = F.linear(x, *self.head).argmax(1)
        return words


@method(
    name="random_computation",
    title="Universal pre-training by iterated random computation",
    paper="arXiv:2506.20057",
    lit="p504",
    family="data/synthesize",
    year=2025,
    tier="core",
    status="stable",
    code="pbloem/up",
)
class RandomComputation(Fit):
    """Pretrain on what random networks make of each other's writing before the first row of data is seen.

    ## What it does
    A buffer of token rows, at first one token repeated each. For every batch, some rows are set back to that or to random tokens,
    an LSTM gets new random weights, and its writing takes the place of other rows z of the buffer:

        x_{t+1} = argmax f(x_t, z_t, state)     x begins as a piece of a third row;  f's layers times u^layers,  u ~ U(gain)

    so random computation is done on its own results. The batch is drawn from all of the buffer. After `before` such batches the
    model is trained on the data.

    ## Claim
    Transformers on bytes: after random computation alone they predict text and code in context better than chance, more so the
    larger they are; trained on the data then, they converge sooner (by about a million rows) and end better.

    ## Cost
    `before` steps more, and as many runs of a small LSTM over 2 * batch_size rows. Memory 8 * before * batch_size * length
    bytes: above 1 GiB from a million rows of 135 tokens.

    ## Fields worth tuning
    `before`; `gain`, from networks that repeat to networks in chaos.

    ## Watch out
    What is written depends on rounding where networks are chaotic: another machine makes other rows. The optimizer begins
    anew with the data. It pays where data are short, not steps: here 40 more steps on the data lowered the loss several
    times as much.

    ## Differs from the paper
    Follows the authors' code at its defaults, where scaling the layers once for each layer gives u^layers. Its transformer grows
    block by block with scaled learning rates; here the model is trained as any. Computed in 64 bits.

    ## See also
    `metadata_conditioning` and `ul2` for other pretraining.
    """

    before: int = 1000
    """Steps on random computation; 0 trains on the data alone."""
    length: int = 512
    """Tokens of a row, at most the model's window."""
    width: int = 128
    """Width of the random networks."""
    layers: int = 4
    """Their layers."""
    gain: tuple[float, float] = (1.0, 3.5)
    """Between which the scale u of their weights is drawn; it is taken to the power of the layers."""
    inner: tuple[Part, ...] = ()
    """Parts of the training on the data."""
    steps: int = 1000
    """Steps on the data."""
    batch_size: int = 32
    """Rows a step, in both trainings."""
    lr: float = 1e-3
    """Learning rate of both trainings."""

    ranges = {"before": [100, 10000, "log"], "width": [16, 256, "log"]}
    null = {"before": 0}
    tiny = {"world": "text", "before": 4, "length": 16, "width": 8, "layers": 2, "steps": 4, "batch_size": 4}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.before < 0 or min(self.width, self.layers, self.steps, self.batch_size) < 1 or self.length <= SEED:
            raise Bad(f"before must be at least 0, length above {SEED}, width, layers, steps and batch_size at least 1")
        if not 0 < self.gain[0] <= self.gain[1]:
            raise Bad(f"gain={self.gain}: give two numbers above 0, the smaller first")
        if model.kind != "causal":
            raise Bad(f"random_computation is for causal models, not a {model.kind}")
        data.need(who="random_computation")
        how = {"batch_size": self.batch_size, "lr": self.lr}
        if self.before:
            with run.meter.running():
                made = np.concatenate(list(self._batches(run, model)))
            run.fit(model, Data.of({"input_ids": made, "labels": made}), steps=self.before, **how)
        return run.fit(model, data, *self.inner, steps=self.steps, **how)

    def _batches(self, run: Run, model: Model) -> Iterator[np.ndarray]:
        """A batch (B,T) for every step, of which the buffer holds forty times as many."""
        tokens = model.net.get_input_embeddings().num_embeddings  # type: ignore[operator]
        length, write = min(self.length, model.window or self.length), 2 * self.batch_size
        computer, back = Computer(tokens, self.width, self.layers), round(RESET * write / 2)
        engine = Model(computer, "encoder")  # so that its passes are paid for
        begin = run.numpy("random_computation", "begin").integers(tokens, size=(BUFFER * write, 1))
        buffer = begin.repeat(length, 1)
        for step in range(self.before):
            rng = run.numpy("random_computation", step)
            old = rng.permutation(len(buffer))[: 2 * back]
            buffer[old[:back]] = rng.integers(tokens, size=(back, 1))
            buffer[old[back:]] = rng.integers(tokens, size=(back, length))
            computer.draw(run.rng("random_computation", step), rng.uniform(*self.gain) ** self.layers)
            seeds, conditions = (rng.permutation(len(buffer))[:write] for _ in range(2))
            at = int(rng.integers(length - SEED))
            read = torch.from_numpy(buffer[conditions]), torch.from_numpy(buffer[seeds, at : at + SEED])
            with torch.no_grad():
                buffer[conditions] = engine.net(*read).numpy()
            yield buffer[rng.permutation(len(buffer))[: self.batch_size]].astype(np.int32)
