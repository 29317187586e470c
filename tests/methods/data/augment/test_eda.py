from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.augment.eda import EDA, edited
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.primitives import edits
from trainlore.runs import Run
from trainlore.worlds import two_domains

DOMAINS = ("a", "b", "c", "d")
SST2 = Path(__file__).parents[5] / "shared" / "data" / "sst2" / "dev.tsv"
LIKE = {"film": ["movie"], "good": ["fine", "nice"]}
ROWS = {"text": ["a good film and one to see again soon", "film", ""], "label": [1, 0, 1]}


class Bag(torch.nn.Module):
    """Classifies a text by the mean of its tokens' embeddings."""

    main_input_name = "input_ids"

    def __init__(self, tokens, classes):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(tokens, 32), torch.nn.Linear(32, classes)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))


def texts(n, seed, domains=DOMAINS):
    table = two_domains.make(n, seed, domains)
    return Data(table).with_(label=np.array([domains.index(d) for d in table["domain"].to_pylist()]))


def accuracy(run, rows, *parts, domains=DOMAINS, batch_size=32):
    tokenizer = two_domains.tokenizer()
    with run.global_rng("net"):
        model = Model(Bag(len(tokenizer), len(domains)), "classifier", tokenizer)
    run.fit(model, rows, *parts, steps=100, batch_size=batch_size, lr=1e-2, precision="fp32")
    return Accuracy()(run, model, texts(400, 2, domains)).value


def test_every_row_gets_its_copies_and_the_old_rows_stay():
    data = Data.of(ROWS)
    out = EDA(n_aug=9, synonyms=LIKE)(data)
    assert len(out) == 30 and list(out.text())[:3] == ROWS["text"] and out["augmented"].tolist() == [0] * 3 + [1] * 27
    assert out["parents"].tolist() == [0, 1, 2, *np.repeat([0, 1, 2], 9)] and out["label"].tolist()[3:12] == [1] * 9
    assert set(list(out.text())[3:12]) - {ROWS["text"][0]}
    assert EDA(n_aug=0)(Run(0), data) is data
    assert list(EDA(n_aug=2)(Run(1), data).text()) == list(EDA(n_aug=2)(Run(1), data).text())


def test_one_edit_at_a_time_does_what_the_textbook_says():
    data, old = Data.of(ROWS).take([0] * 200), Counter(ROWS["text"][0].split())
    none = {"alpha_sr": 0.0, "alpha_ri": 0.0, "alpha_rs": 0.0, "p_rd": 0.0, "synonyms": LIKE, "n_aug": 1}

    def made(**one):
        return [t.split() for t in list(EDA(**{**none, **one})(data).text())[200:]]

    for words in made(alpha_sr=0.23):  # floor(0.23 * 9) = 2 different words
        assert "movie" in words and set(words) & {"fine", "nice"} and len(words) == 9
    assert {w for words in made(alpha_ri=0.01) for w in Counter(words) - old} == {"movie", "fine", "nice"}
    assert all(len(words) == 10 for words in made(alpha_ri=0.01))  # at least one, however small the share
    assert all(Counter(words) == old and words != ROWS["text"][0].split() for words in made(alpha_rs=0.1))
    assert np.mean([len(words) for words in made(p_rd=0.3)]) == pytest.approx(9 * 0.7, abs=0.3)
    assert any(set(words) - set(old) for words in made(typos=0.2))


def test_the_pool_holds_the_four_edits_alike():
    words, kin = edits.synonyms(edits.Words.of([ROWS["text"][0]] * 300), LIKE)
    alphas = {"exchange": 0.1, "insert": 0.1, "swap": 0.1, "delete": 0.1}
    out, origin = edited(words, kin, 9, alphas, np.random.default_rng(0), np.zeros(len(words.names), bool))
    assert len(out) == 2700 and np.array_equal(origin, np.repeat(np.arange(300), 9))
    put_in = [sum(len(t.split()) == 10 for t in out[i : i + 9]) for i in range(0, 2700, 9)]
    assert set(put_in) == {0, 1, 2, 3} and np.mean(put_in) == pytest.approx(9 / 4, abs=0.1)  # 9 // 4 + 1 = 3 at most


def test_stop_words_are_not_exchanged():
    how = {"synonyms": {"the": ["THE"]}, "alpha_sr": 1.0, "alpha_ri": 0.0, "alpha_rs": 0.0, "p_rd": 0.0}
    assert set(EDA(**how)(["the end"]).text()) == {"the end"}
    assert "THE end" in set(EDA(**how, stop_words=False)(["the end"]).text())


@pytest.mark.skipif(not SST2.exists(), reason="the real rows are not beside the repository")
def test_real_rows_with_synonyms_of_their_own():
    lines = [line.rsplit("\t", 1) for line in SST2.read_text().splitlines()][:400]
    data = Data.of({"text": [t for t, _ in lines], "label": [int(y) for _, y in lines]})
    out = EDA(n_aug=4)(data)
    changed = np.array(list(out.text())[400:]) != np.repeat([" ".join(t.split()) for t, _ in lines], 4)
    assert changed.mean() > 0.8 and np.array_equal(out["label"][400:], np.repeat(data["label"], 4))


def test_bad_input_is_named():
    for fields, name in (
        ({"alpha_sr": 2.0}, "alpha_sr=2.0"),
        ({"n_aug": -1}, "n_aug=-1"),
        ({"nearest": 0}, "nearest=0"),
    ):
        with pytest.raises(ValueError, match=name):
            EDA(**fields)(Data.of(ROWS))
    with pytest.raises(ValueError, match="all 0"):
        EDA(alpha_sr=0.0, alpha_ri=0.0, alpha_rs=0.0, p_rd=0.0)(Data.of(ROWS))
    with pytest.raises(ValueError, match="'body'"):
        EDA(column="body")(Data.of(ROWS))


def measure(seed: int, arm: str) -> float:
    run, rows = Run(seed), texts(40, 5000 + seed)
    return accuracy(run, EDA()(run, rows) if arm == "method" else rows)


CLAIM = Claim(
    method="eda",
    world="text",
    rival="the rows alone, at the same number of steps",
    quantity="test accuracy of a bag of words with 10 rows of each of four domains",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
