from __future__ import annotations

import pytest
import torch

from trainlore.primitives.neighbours import nearest


@pytest.mark.parametrize("block", [3, 7, 64])
def test_blocks_find_what_all_pairs_find(block):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(23, 5, generator=g), torch.randn(17, 5, generator=g)
    for keys, k in ((None, 1), (None, 22), (y, 4), (y, 17)):
        other = x if keys is None else keys
        cosine = torch.stack([torch.stack([torch.cosine_similarity(a, b, dim=0) for b in other]) for a in x])
        if keys is None:
            cosine.fill_diagonal_(-2)
        want = cosine.topk(k, 1)
        near, where = nearest(x, k, keys, block)
        assert torch.allclose(near, want.values, atol=1e-6)
        assert torch.equal(where, want.indices)


def test_zero_rows_and_bad_k():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.1]])
    near, where = nearest(x, 2)
    assert where[1].tolist() == [2, 0] and near[0].abs().max() == 0
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k={k}"):
            nearest(x, k)
