from __future__ import annotations

import pytest
import torch

from trainlore.nouns.hugging import preset
from trainlore.primitives.heads import Twin, features, head, heads, one_head, with_token
from trainlore.worlds.tiny import world


def test_the_head_is_the_last_linear_layer_and_features_are_what_it_reads():
    at = world("digits")
    path, last = head(at["model"].net)
    assert at["model"].net.get_submodule(path) is last and last.out_features == 10
    batch = at["test"].batch(range(5))
    torch.testing.assert_close(last(features(at["model"], batch)), at["model"](batch))
    assert features(at["model"], batch).requires_grad
    with pytest.raises(ValueError, match="no linear layer"):
        head(torch.nn.ReLU())


def test_two_heads_fold_into_one_that_answers_alike():
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    own = net[2]
    net[2] = Twin(own)
    assert heads(net) == (own, net[2].distillation_classifier)
    with torch.no_grad():
        net[2].distillation_classifier.weight.add_(1.0)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    before = net(x)
    one_head(net)
    assert net[2] is own
    torch.testing.assert_close(net(x), before)


def test_the_new_token_changes_nothing_but_attention_and_the_heads_start_alike():
    net = preset("vit-digits", seed=1, num_hidden_layers=2).net
    made = with_token(net)
    assert type(made).__name__ == "DeiTForImageClassificationWithTeacher" and not made.training
    x = torch.randn(3, 1, 8, 8)
    inside = made.deit.embeddings(x)
    torch.testing.assert_close(inside[:, [0, *range(2, 18)]], net.vit.embeddings(x))
    assert (inside[:, 1] == 0).all()
    for p, q in zip(made.cls_classifier.parameters(), made.distillation_classifier.parameters(), strict=True):
        assert torch.equal(p, q)
    mine, theirs = made.state_dict(), net.state_dict()
    assert all(torch.equal(theirs[k], mine[k.replace("vit.", "deit.")]) for k in theirs if "vit.layers" in k)
