from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.gradients import flat_weights, gradient_sum, put_weights
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run, readable
from trainlore.verbs import Measure, method

BETAS, EPSILON = (0.9, 0.95), 1e-8


def walk(start: Tensor, order: Sequence[int], slope: Callable[[int, Tensor, int], Tensor], lr: float) -> Tensor:
    """The weights (T + 1, P) that Adam goes through on blocks in this order; slope(t, weights, block) -> (P,)."""
    path, m, v = [start], torch.zeros_like(start), torch.zeros_like(start)
    for t, block in enumerate(order):
        g = slope(t, path[-1], block)
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
        step = (m / (1 - BETAS[0] ** (t + 1))) / ((v / (1 - BETAS[1] ** (t + 1))).sqrt() + EPSILON)
        path.append(path[-1] - lr * step)
    return torch.stack(path)


def expanded(path: Tensor, table: Tensor, taylor: int) -> Callable[[int, Tensor, int], Tensor]:
    """Slopes near a path from those on it: path (T + 1, P), table (T, blocks, P) of slopes at path[t].

    At order 0 the slope on the path; at order 1 with its change along the way off the path, read from the table as far as
    that way lies among the steps of the path.
    """
    ways = path[1:-1] - path[:1]
    inverse = torch.linalg.pinv((ways @ ways.T).double(), rtol=1e-6, hermitian=True).to(path)

    def slope(t: int, weights: Tensor, block: int) -> Tensor:
        if not taylor or t == 0:
            return table[t, block]
        share = inverse @ (ways @ (weights - path[t]))
        return table[t, block] + share @ (table[1:, block] - table[0, block])

    return slope


@method(
    name="order_effects",
    title="FUT (effects of training order without retraining)",
    paper="arXiv:2505.22042",
    lit="p402",
    family="data/order",
    year=2025,
    tier="core",
    status="stable",
)
class OrderEffects(Measure):
    """Estimate how the order of the rows moves a held-out loss, from one training.

    ## What it does
    Cuts the rows into T blocks, as they come, and trains on one a step by Adam, theta_0 .. theta_T, keeping the gradients of
    all blocks at each theta_t. Another order is then walked with gradients expanded around that path,

        g_b(gamma_t) = g_b(theta_t) + H_b (gamma_t - theta_t),      Adam's moments carried along

    where H_b times a way is read from how g_b changes along the path. The held-out loss at the end of each of `orders`
    random orders is measured. A row's value is the mean of it over the orders in which its block comes in the later half,
    less the mean over the others: below 0, it is better seen late. The notes hold `orders`, their `estimates`, the
    `reference` loss and the `best` order.

    ## Claim
    For a language model of 0.6B weights on WikiText-103 the estimates track the true results of retraining, well enough to
    choose a curriculum and to see where in the order a row is memorized.

    ## Cost
    T + 1 passes over the rows, one over `held_out` for each order. Memory: 4 T^2 bytes a weight (256 at T = 8) and 4 T more.

    ## Fields worth tuning
    `blocks` and `lr`: the larger the steps, the less an expansion sees. Sort the rows first by what shall be ordered: a
    domain, a length, a score; blocks of shuffled rows are all alike.

    ## Watch out
    One step a block is not a training: what matters over thousands of steps is not seen. The model is left as it was.

    ## Differs from the paper
    Only the abstract and a review could be read. It expands Adam's whole update, to the second order, and stores random
    projections. Here the gradient is expanded to the first and the moments carried exactly; its change comes from differences
    of stored gradients in place of second derivatives, so a way that no block took is not seen.

    ## See also
    `curriculum` (train in an order), `skill_it` (find one while training).
    """

    held_out: Data
    """Rows whose loss the orders are judged by."""
    blocks: int = 8
    """Number of blocks T, each a step."""
    orders: int = 32
    """Random orders to estimate."""
    lr: float = 1e-3
    """Learning rate of Adam, which has no decay here."""
    taylor: int = 1
    """Order of the expansion: 0 takes gradients as they were on the path, 1 adds how they change."""

    tiny = {"world": "digits", "held_out": "$test", "blocks": 4, "orders": 6, "lr": 0.01}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        data = readable(model, data, who="order_effects", losses=True)
        held_out = readable(model, self.held_out, who="order_effects's held_out", losses=True)
        if not 2 <= self.blocks <= len(data):
            raise Bad(f"blocks={self.blocks} must be at least 2 and at most the {len(data)} rows")
        if self.orders < 2 or self.taylor not in (0, 1):
            raise Bad(f"orders={self.orders} must be at least 2 and taylor={self.taylor} 0 or 1")
        model = model.copy()
        path, table = self._reference(run, model, data)
        notes: dict = {"reference": loss_at(run, model, path[-1], held_out)}
        slope, draw = expanded(path, table, self.taylor), run.numpy("order_effects")
        orders = np.stack([draw.permutation(self.blocks) for _ in range(self.orders)])
        estimates = [loss_at(run, model, walk(path[0], order, slope, self.lr)[-1], held_out) for order in orders]
        late, found = np.argsort(orders, 1) >= self.blocks / 2, np.array(estimates)  # late: (orders, blocks)
        effect = [found[k].mean() - found[~k].mean() if 0 < k.sum() < len(k) else 0.0 for k in late.T]
        notes |= {"orders": orders.tolist(), "estimates": estimates, "best": orders[found.argmin()].tolist()}
        value = np.array(effect)[block_of(len(data), self.blocks)]
        return Report.of("late_effect", value, better="", rows=data.ids, groups=data.groups("domain"), notes=notes)

    def _reference(self, run: Run, model: Model, data: Data) -> tuple[Tensor, Tensor]:
        """The path (T + 1, P) of the blocks in the order given, and every block's gradient at all but its end (T, T, P)."""
        pieces = [data.where(block_of(len(data), self.blocks) == k) for k in range(self.blocks)]
        table: list[Tensor] = []

        def slope(t: int, weights: Tensor, block: int) -> Tensor:
            put_weights(model, weights)
            table.append(torch.stack([gradient_sum(run, model, piece) / len(piece) for piece in pieces]))
            return table[-1][block]

        return walk(flat_weights(model), range(self.blocks), slope, self.lr), torch.stack(table)


def block_of(rows: int, blocks: int) -> np.ndarray:
    """Which of so many slices of like size each row is in, (rows,)."""
    return np.arange(rows) * blocks // rows


def loss_at(run: Run, model: Model, weights: Tensor, data: Data) -> float:
    """The mean row loss with these weights. Raises Bad where it is not finite."""
    put_weights(model, weights)
    loss = float(run.infer(model, data, lambda b, o: per_row(rowwise(model.kind, b, o), b, model.kind)).double().mean())
    if not np.isfinite(loss):
        raise Bad("order_effects: a held-out loss is not finite: look for NaN in the rows or weights, or lower `lr`")
    return loss
