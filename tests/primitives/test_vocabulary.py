import pytest

from trainlore.primitives.vocabulary import encoded, extended, learn_merges, sides
from trainlore.worlds.tiny import world


def test_new_tokens_occur_and_nothing_is_lost():
    at = world("text")
    texts, old = list(at["target"].text("text")), at["model"].tokenizer
    new = extended(old, texts, 25)
    assert len(new) == len(old) + 25 and len(old) == 384
    seen = {i for ids in new(texts)["input_ids"] for i in ids}
    assert len(seen & set(range(384, 409))) >= 20  # some are only steps on the way to longer ones
    assert all(new.decode(ids) == t for ids, t in zip(new(texts)["input_ids"], texts, strict=True))
    assert sum(map(len, new(texts)["input_ids"])) < 0.9 * sum(map(len, old(texts)["input_ids"]))
    assert new.get_vocab().items() >= old.get_vocab().items()


def test_merges_are_of_tokens_most_frequent_first_and_other_tokenizers_are_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    old = world("text")["model"].tokenizer
    pieces = old.convert_ids_to_tokens(old("ab", add_special_tokens=False)["input_ids"])
    assert len(pieces) == 2 and learn_merges(old, ["ab ab ab", "xy xy"], 1)[0] == tuple(pieces)
    ids, words = next(encoded(old, ["ab ab"]))
    assert len(ids) == len(words) and len(set(words)) == 2
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match="only a BPE"):
        extended(other, ["a"], 1)


def test_tied_rows_are_one_side():
    import transformers

    net = world("text")["model"].net
    assert sides(net) == {"input": net.get_input_embeddings()}
    apart = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**net.config.to_dict(), "tie_word_embeddings": False})
    )
    assert sides(apart) == {"input": apart.model.embed_tokens, "output": apart.lm_head}
