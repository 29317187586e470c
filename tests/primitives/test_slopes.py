from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from trainlore.nouns import Data, Model
from trainlore.primitives.slopes import input_slopes, slope_spread, spread
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def test_the_spread_is_the_mean_standard_deviation_over_checkpoints():
    rng = np.random.default_rng(0)
    slopes, counted = rng.normal(size=(4, 5, 6)), rng.random((5, 6)) < 0.7
    got = spread(torch.tensor(slopes), torch.tensor(counted))
    for i in range(5):
        by_hand = [np.std([slopes[k, i, d] for k in range(4)]) for d in range(6) if counted[i, d]]
        assert got[i].item() == pytest.approx(np.mean(by_hand))


def test_input_slopes_are_the_rows_of_a_linear_layer_and_those_of_embeddings():
    linear, data = Model(nn.Linear(64, 10)), world("digits")["data"].take(range(70))
    batch = data.batch(range(5))
    assert torch.allclose(input_slopes(linear, batch), linear.net.weight[batch["labels"]])
    states = [{"weight": k * torch.ones(10, 64), "bias": torch.zeros(10)} for k in (0.0, 2.0)]
    assert slope_spread(Run(0), linear, data, states).tolist() == [1.0] * 70  # weights of 0 and 2: 1 from their mean
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3)  # fmt: skip
    bert = Model(BertForSequenceClassification(config).eval(), "classifier")
    rows = Data.of({"input_ids": [[3, 4, 5], [6, 7, 8, 9, 10]], "label": [0, 2]})
    slopes = input_slopes(bert, batch := rows.batch(range(2)))
    table = bert.net.get_input_embeddings().weight
    by_token = torch.autograd.grad(bert(batch)[1, 2], table)[0].mean(1)
    assert torch.allclose(slopes[1, :5], by_token[[6, 7, 8, 9, 10]], atol=1e-6)
    states = [{k: scale * v for k, v in bert.net.state_dict().items()} for scale in (1.0, 0.5)]
    assert (slope_spread(Run(0), bert, rows, states) > 0).all()
