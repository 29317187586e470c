import pytest
import torch

from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.primitives import ranking
from trainlore.runs import Run
from trainlore.worlds.tiny import llama, world
from trainlore.worlds.two_domains import tokenizer


def bert(labels):
    model = preset("bert-4m", vocab=384, labels=labels, num_hidden_layers=2, hidden_size=24, num_attention_heads=2)
    model.tokenizer = tokenizer()
    return model


def test_the_last_layer_is_what_run_embed_has_and_a_gradient_flows():
    model, texts = llama(layers=3), ["bada", "bada glea gloe tave", "nara"]
    mine = ranking.embeddings(model, texts)
    assert mine.shape == (3, 3, 32) and mine.requires_grad
    torch.testing.assert_close(mine[-1].detach(), Run(0).embed(model, model.encode(Data.of(texts))))
    seen = []
    handle = model.blocks[0].register_forward_hook(
        lambda m, i, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        alone = ranking.embeddings(model, texts[2:])
    handle.remove()
    real = len(model.tokenizer(texts[2])["input_ids"]) + 1  # and the end
    torch.testing.assert_close(alone[0, 0], seen[0][0, :real].mean(0))
    torch.testing.assert_close(alone[:, 0], mine.detach()[:, 2])  # padding changes nothing


def test_scores_are_dot_products_layer_by_layer():
    model = llama()
    with torch.no_grad():
        scores = ranking.layer_scores(model, ["bada", "nara"], ["glea", "tave", "bada"])
        query, text = ranking.embeddings(model, ["nara"]), ranking.embeddings(model, ["tave"])
    assert scores.shape == (2, 2, 3)
    torch.testing.assert_close(scores[:, 1, 1], (query * text).sum(-1)[:, 0])


def test_triples_come_as_queries_chosen_then_rejected():
    data = world("pairs")["data"].take([5, 3])
    query, texts = ranking.triples(data, torch.tensor([1, 0]))
    assert query == list(data.text("prompt"))[::-1]
    assert texts == list(data.text("chosen"))[::-1] + list(data.text("rejected"))[::-1]


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_cross_encoder_reads_query_and_text_as_one_row(outputs, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK", 4)  # several blocks give what one gives
    teacher, data = bert(outputs), world("pairs")["data"].take(range(9))
    got = ranking.margins(Run(0), (teacher,), data)
    tok, scores = teacher.tokenizer, []
    for side in ("chosen", "rejected"):
        texts = [q + a for q, a in zip(data.text("prompt"), data.text(side), strict=True)]
        with torch.no_grad():
            out = [
                teacher.net(input_ids=torch.tensor([tok(t)["input_ids"] + [tok.eos_token_id]])).logits[0] for t in texts
            ]
        scores.append(torch.stack(out)[:, -1] - (torch.stack(out)[:, 0] if outputs == 2 else 0))
    torch.testing.assert_close(got, scores[0] - scores[1], rtol=1e-4, atol=1e-5)


def test_any_other_model_embeds_both_apart():
    nouns = world("pairs")
    data = nouns["data"].take(range(5))
    with torch.no_grad():
        scores = ranking.layer_scores(nouns["model"], *ranking.triples(data, torch.arange(5)))[-1]
    want = scores[range(5), range(5)] - scores[range(5), range(5, 10)]
    torch.testing.assert_close(ranking.margins(Run(0), (nouns["model"],), data), want, rtol=1e-4, atol=1e-5)


def test_bad_teachers_are_named():
    with pytest.raises(ValueError, match="3 numbers a row"):
        ranking.margins(Run(0), (bert(3),), world("pairs")["data"])
    with pytest.raises(ValueError, match="tokenizer"):
        ranking.margins(Run(0), [Model(torch.nn.Linear(2, 1), "regressor")], world("pairs")["data"])
    with pytest.raises(ValueError, match="chosen"):
        ranking.margins(Run(0), (llama(),), Data.of({"prompt": ["a"]}))
