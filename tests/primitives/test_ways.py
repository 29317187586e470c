"""Ways: the flat gradient and the matching loss by hand, a network as a function, fresh weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trainlore.primitives.ways import flat_gradient, loss_of, matching_loss, reset

X = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 1])


def linear(weights, x, y):
    return F.cross_entropy(x @ weights[0] + weights[1], y)


def some(seed):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((2, 2), (2,))]


def test_the_flat_gradient_is_the_formula_on_one_long_vector():
    w, rho, alpha = some(0), 0.3, 0.4

    def slope(flat):
        parts = [flat[:4].reshape(2, 2).requires_grad_(), flat[4:].requires_grad_()]
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(linear(parts, X, Y), parts)])

    flat = torch.cat([v.reshape(-1) for v in w])
    g = slope(flat.clone())
    h = slope(flat + rho * flat**2 * g / (flat * g).norm())
    wanted = h - alpha * (g - (g @ h) / (h @ h) * h)
    got = torch.cat([v.reshape(-1) for v in flat_gradient(linear, w, X, Y, rho, alpha)])
    assert torch.allclose(got, wanted)
    plain = torch.cat([v.reshape(-1) for v in flat_gradient(linear, w, X, Y, 0.0, alpha)])
    assert torch.allclose(plain, g)


def test_the_matching_loss_is_that_of_sgd_and_its_slope_that_of_differences():
    start, goal, rate = some(1), some(2), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    rows = X.clone().requires_grad_()
    loss = matching_loss(linear, start, goal, rows, Y, rate, 3)
    layer = torch.nn.Linear(2, 2).double()
    layer.weight.data, layer.bias.data = start[0].T.clone(), start[1].clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(layer(X), Y).backward()
        optimizer.step()
    ends = [layer.weight.data.T, layer.bias.data]
    missed, way = (sum(float(((a - b) ** 2).sum()) for a, b in zip(s, goal, strict=True)) for s in (ends, start))
    assert loss.item() == pytest.approx(missed / way)
    loss.backward()
    step = torch.zeros_like(X)
    step[1, 0] = 1e-5
    up, down = (matching_loss(linear, start, goal, X + s * step, Y, rate, 3).item() for s in (1, -1))
    assert rows.grad[1, 0].item() == pytest.approx((up - down) / 2e-5, rel=1e-4)
    assert rate.grad.abs() > 0


def test_a_network_is_a_function_of_its_weights():
    torch.manual_seed(0)
    net, other = (torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)) for _ in "ab")
    loss, weights = loss_of(net), [p.detach().clone() for p in other.parameters()]
    assert loss(weights, X.float(), Y).item() == pytest.approx(F.cross_entropy(other(X.float()), Y).item())
    before = [p.detach().clone() for p in net.parameters()]
    fresh = reset(net)
    assert all(torch.equal(a, b) for a, b in zip(fresh, net.parameters())) and not torch.equal(fresh[0], before[0])
    assert all(a is not b for a, b in zip(fresh, net.parameters()))


def test_weights_that_do_nothing_have_no_slope():
    weights = [*some(0), torch.ones(3, dtype=torch.float64)]
    slopes = flat_gradient(linear, weights, X, Y, 0.3, 0.4)
    assert (slopes[2] == 0).all() and (slopes[0] != 0).any()
