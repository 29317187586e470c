from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trainlore.primitives import losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_in_pieces_is_torchs(monkeypatch, dtype):
    monkeypatch.setattr(losses, "LARGE", 0)
    monkeypatch.setattr(losses, "PIECE", {"cpu": 3 * 11})  # pieces of three rows and a last one of one
    torch.manual_seed(0)
    logits, wanted = (4 * torch.randn(10, 11)).to(dtype), torch.tensor([1, -100, 3, 10, 0, 5, 5, -100, 2, 7])
    share = torch.rand(10)
    mine, torchs = (logits.clone().requires_grad_() for _ in range(2))
    found = losses.cross_entropy(mine, wanted)
    right = F.cross_entropy(torchs.float(), wanted, reduction="none", ignore_index=-100)
    torch.testing.assert_close(found, right, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(losses.cross_entropy(logits, wanted), right, atol=2e-6, rtol=1e-6)  # of no gradient
    (found * share).sum().backward()
    (right * share).sum().backward()
    torch.testing.assert_close(mine.grad, torchs.grad, atol=1e-7 if dtype == torch.float32 else 1e-3, rtol=8e-3)
    assert mine.grad.dtype == dtype and not mine.grad[1].any()


def test_cross_entropy_in_pieces_can_be_differentiated_twice(monkeypatch):
    monkeypatch.setattr(losses, "LARGE", 0)
    wanted = torch.tensor([1, -100, 3])

    def slope(of, logits):
        (g,) = torch.autograd.grad(of(logits, wanted).square().sum(), logits, create_graph=True)
        (again,) = torch.autograd.grad(g.square().sum(), logits)
        return again

    logits = torch.randn(3, 4, dtype=torch.float32, requires_grad=True)
    plain = slope(lambda x, y: F.cross_entropy(x, y, reduction="none", ignore_index=-100), logits)
    torch.testing.assert_close(slope(losses.cross_entropy, logits), plain, atol=1e-5, rtol=1e-5)
    per_row = torch.func.vmap(torch.func.grad(lambda x, y: losses.cross_entropy(x[None], y[None]).sum()))
    assert per_row(logits.detach()[[0, 2]], wanted[[0, 2]]).shape == (2, 4)
