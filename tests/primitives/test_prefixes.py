from __future__ import annotations

import torch

from trainlore.primitives.prefixes import under_prefixes, written
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def test_a_prefix_of_embedded_tokens_is_those_tokens():
    model = world("text")["prior"]
    ids = torch.arange(5, 17).view(2, 6)
    starts = torch.tensor([[20, 21], [30, 31], [40, 41]])
    with torch.no_grad():
        found = under_prefixes(model.net, model.net.get_input_embeddings()(starts), ids)
        for k, start in enumerate(starts):
            whole = torch.cat([start.expand(2, -1), ids], 1)
            said = model.net(whole).logits.log_softmax(-1)[:, 1:-1]
            assert torch.allclose(found[k], said.gather(-1, ids[..., None])[..., 0], atol=1e-5)


def test_what_is_written_is_named_and_goes_on_from_the_prefix():
    model, run = world("text")["prior"], Run(0)
    prefix = model.net.get_input_embeddings()(torch.tensor([20, 21, 22])).detach()
    first = written(run, model, prefix, 5, 6, 1.0, 10, "a", 0, size=5)
    assert len(first) == 5 and first == written(run, model, prefix, 5, 6, 1.0, 10, "a", 0, size=5)
    assert first != written(run, model, prefix, 5, 6, 1.0, 10, "a", 1, size=5)
    likeliest = written(run, model, prefix, 3, 1, 1.0, 1, "a", size=2)
    with torch.no_grad():
        token = int(model.net(torch.tensor([[20, 21, 22]])).logits[0, -1].argmax())
    assert likeliest == [model.tokenizer.decode([token], skip_special_tokens=True)] * 3
