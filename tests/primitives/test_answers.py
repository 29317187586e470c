import numpy as np
import pytest
import torch

from trainlore.primitives.answers import choices, drawn, fingerprint, places
from trainlore.worlds.tiny import world


def test_draws_do_not_depend_on_the_rows_they_are_made_with():
    logits, rows = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 3, 11, 0])
    whole = drawn(logits, 5, rows, 2000)
    assert torch.equal(drawn(logits[2:3], 5, rows[2:3], 2000)[0], whole[2])
    shares = torch.nn.functional.one_hot(whole, 9).float().mean(-2)
    torch.testing.assert_close(shares, logits.softmax(-1), atol=0.06, rtol=0)


def test_fingerprints_tell_rows_apart():
    ids = torch.randint(50, (500, 12), generator=torch.Generator().manual_seed(0))
    assert len(fingerprint(ids).unique()) == 500 and torch.equal(fingerprint(ids)[7:9], fingerprint(ids[7:9]))
    swapped = ids[:1].clone()
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    assert fingerprint(swapped) != fingerprint(ids[:1]) or ids[0, 0] == ids[0, 1]
    assert fingerprint(torch.rand(3, 4)).shape == (3,)
    padded = torch.nn.functional.pad(ids, (0, 3), value=1)
    real = torch.nn.functional.pad(torch.ones_like(ids), (0, 3))
    assert torch.equal(fingerprint(padded, real), fingerprint(ids, torch.ones_like(ids)))


def test_places_are_the_models():
    data = world("text")["data"].take(range(5))
    length = np.diff(data.lists("input_ids")[1])
    assert (
        places("causal", data).tolist() == (length - 1).tolist() and places("masked", data).tolist() == length.tolist()
    )
    assert places("classifier", data).tolist() == [1] * 5
    choices("causal", "this")
    with pytest.raises(ValueError, match="this is about choices"):
        choices("encoder", "this")
