"""Rephrasing: rewards, the marginal loss and its slope, and the blend, by hand."""

import numpy as np
import pytest
import torch

from trainlore.nouns import Model
from trainlore.primitives.rephrasing import blend, marginal_loss, rewards, task_rows


def test_rewards_and_loss_are_the_textbooks():
    rng = np.random.default_rng(0)
    own, of, log_p, fixed = (
        rng.normal(-1, 1, 3),
        rng.normal(-1, 1, (3, 4)),
        rng.normal(-9, 2, (3, 4)),
        rng.normal(-9, 2, (3, 4)),
    )
    gain = [[of[b][m] - own[b] for m in range(4)] for b in range(3)]
    wanted = [[(g - np.mean(row)) / np.std(row, ddof=1) for g in row] for row in gain]
    got = rewards(torch.tensor(own), torch.tensor(of))
    assert np.allclose(got, wanted)
    written = torch.tensor(log_p, requires_grad=True)
    loss = marginal_loss(written, got, torch.tensor(fixed), 0.1)
    marginal = -np.mean([np.log(sum(np.exp(log_p[b][m] + wanted[b][m]) for m in range(4))) for b in range(3)])
    pull = np.mean([(log_p[b][m] - fixed[b][m] + 1) * log_p[b][m] for b in range(3) for m in range(4)])
    assert loss.item() == pytest.approx(marginal + 0.1 * pull)
    loss.backward()
    for b in range(3):  # the gradient of the marginal is minus the posterior of each sample
        posterior = np.exp(log_p[b] + wanted[b]) / np.exp(log_p[b] + wanted[b]).sum()
        assert np.allclose(written.grad[b], -posterior / 3 + 0.1 * (log_p[b] - fixed[b] + 1) / 12)


def test_to_predict_half_of_the_say_is_the_inputs_own():
    own, of = torch.tensor([[0.0, -2.0]]), torch.tensor([[[-1.0, -1.0], [-3.0, -5.0]]])
    assert blend(own, of).tolist() == [[-1.0, -2.5]]


def test_rows_are_as_the_judge_reads_them():
    rows = task_rows(Model(torch.nn.Linear(2, 2), "classifier"), ["a", "b"], np.array([1, 0]))
    assert list(rows.text()) == ["a", "b"] and rows["label"].tolist() == [1, 0]
    rows = task_rows(Model(torch.nn.Linear(2, 2), "causal"), ["a", "b"], np.array(["yes", "no"], object))
    assert list(rows.text("prompt")) == ["a", "b"] and list(rows.text("completion")) == [" yes", " no"]
    with pytest.raises(ValueError, match="not a regressor"):
        task_rows(Model(torch.nn.Linear(2, 1), "regressor"), ["a"], np.array([1]))
