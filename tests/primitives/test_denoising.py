from collections import Counter

import pytest
import torch

from trainlore.primitives.denoising import joined, replace_runs, span_counts, span_mask, tail_mask


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def full(n, value):
    return torch.full((n,), float(value))


def runs(mask):
    """[(start, end)] of the true runs of a list of bool."""
    out, start = [], None
    for i, m in enumerate([*mask, False]):
        if m and start is None:
            start = i
        elif not m and start is not None:
            out.append((start, i))
            start = None
    return out


def test_counts_are_t5s():
    """512 tokens, 15% in spans of 3: 77 hidden in 26 spans (banker's rounding as in TensorFlow)."""
    hidden, spans = span_counts(torch.tensor([512, 512, 10, 2, 1]), full(5, 0.15), full(5, 3))
    assert hidden.tolist() == [77, 77, 2, 1, 0] and spans.tolist() == [26, 26, 1, 1, 0]


@pytest.mark.parametrize(("rate", "span"), [(0.15, 3), (0.5, 3), (0.5, 8), (0.15, 64), (0.5, 64)])
def test_spans_are_as_many_and_as_long_as_counted(rate, span):
    lengths = torch.tensor([64, 37, 5, 2, 1, 50])
    hidden, spans = span_counts(lengths, full(6, rate), full(6, span))
    for seed in range(20):
        mask = span_mask(lengths, full(6, rate), full(6, span), 64, generator(seed))
        for row, n, h, s in zip(mask.tolist(), lengths.tolist(), hidden.tolist(), spans.tolist(), strict=True):
            found = runs(row)
            assert sum(row) == h and len(found) == s and not any(row[n:])
            if h:
                assert not row[0] and row[n - 1]


def test_all_cuts_are_alike():
    """8 tokens, half hidden, in spans of 2: 3 x 3 ways to cut 4 kept and 4 hidden into two, each as likely."""
    mask = span_mask(torch.full((9000,), 8), full(9000, 0.5), full(9000, 2), 8, generator())
    counts = Counter(map(tuple, mask.tolist()))
    assert len(counts) == 9 and all(850 < c < 1150 for c in counts.values())


def test_the_tail_is_hidden_by_a_share_of_that_mean():
    lengths = torch.full((4000,), 41)
    share = tail_mask(lengths, full(4000, 0.25), 48, generator()).float().sum(1) / 41
    assert share.min() == pytest.approx(1 / 41) and share.max() == pytest.approx(21 / 41)
    assert share.mean() == pytest.approx(11 / 41, abs=0.01)
    assert not tail_mask(torch.tensor([1]), full(1, 0.25), 4, generator()).any()


def naive(ids, mask, sentinels, mark):
    """T5's rule by hand: a masked run becomes its sentinel, everything else stays."""
    out, run = [], -1
    for i, (token, hide) in enumerate(zip(ids, mask, strict=True)):
        if not hide:
            out.append(token)
        elif i == 0 or not mask[i - 1]:
            run += 1
            out += [sentinels[run]] if mark else []
    return out


def test_inputs_and_targets_mend_each_other():
    lengths = torch.tensor([20, 13, 7])
    ids = torch.arange(60).reshape(3, 20)
    mask = span_mask(lengths, full(3, 0.4), full(3, 2), 20, generator(3))
    sentinels, mark = torch.arange(900, 932), torch.tensor([True, True, False])
    for hide in (mask, ~mask):
        got, n = replace_runs(ids, hide, lengths, sentinels, mark)
        for row in range(3):
            size = int(lengths[row])
            assert got[row, : n[row]].tolist() == naive(
                ids[row, :size].tolist(), hide[row, :size].tolist(), sentinels.tolist(), bool(mark[row])
            )
    inputs, targets = (replace_runs(ids, m, lengths, sentinels, mark)[0][0].tolist() for m in (mask, ~mask))
    tokens = [t for t in inputs + targets if t < 900]
    assert sorted(set(tokens) - {0}) == list(range(1, 20))  # nothing lost, and each sentinel on both sides
    assert [t for t in inputs if t >= 900] == [t for t in targets if t >= 900]


def test_the_papers_sentence():
    """Thank you [for inviting] me to your party [last] week, as T5's figure has it."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 1, 0]]).bool()
    args = ids, torch.tensor([10]), torch.tensor([99, 98, 97]), torch.tensor([True])
    inputs, _ = replace_runs(args[0], mask, *args[1:])
    targets, _ = replace_runs(args[0], ~mask, *args[1:])
    assert inputs.tolist() == [[1, 2, 99, 5, 6, 7, 8, 98, 10]]
    assert targets.tolist() == [[99, 3, 4, 98, 9, 97]]


def test_joined_rows_are_flush_and_padded():
    pieces = [(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])), (torch.tensor([[4], [5]]), torch.tensor([0, 1]))]
    assert joined(pieces, pad=-100).tolist() == [[1, 2], [3, 5]]
    assert joined(pieces, pad=9, width=3).tolist() == [[1, 2, 9], [3, 5, 9]]
