"""The small text world: domains differ as promised, and the tokenizer is the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from trainlore.errors import Bad
from trainlore.worlds import two_domains as world


def bigrams(texts, smooth=0.5):
    """Log shares of a word after a word, counted the plain way."""
    place = {w: i for i, w in enumerate(world.WORDS)}
    counts = np.full((len(place), len(place)), smooth)
    for text in texts:
        words = [place[w] for w in text.split()]
        for a, b in pairwise(words):
            counts[a, b] += 1
    return np.log(counts / counts.sum(1, keepdims=True)), place


def score(texts, table):
    shares, place = table
    return np.array([np.mean([shares[place[a], place[b]] for a, b in pairwise(t.split())]) for t in texts])


def texts(domain, n=600, seed=5):
    return world.make(n, seed=seed, domains=(domain,))["text"].to_pylist()


def test_texts_are_of_the_promised_length_and_domains_even():
    made = world.make(400, seed=0)
    lengths = [len(t.split()) for t in made["text"].to_pylist()]
    assert min(lengths) == 10 and max(lengths) == 40
    assert Counter(made["domain"].to_pylist()) == {"a": 200, "b": 200}
    assert set(" ".join(made["text"].to_pylist()).split()) == set(world.WORDS) and len(world.WORDS) == len(
        set(world.WORDS)
    )
    assert made.equals(world.make(400, seed=0)) and not made.equals(world.make(400, seed=1))
    assert not set(made["text"].to_pylist()) & set(world.make(400, seed=1)["text"].to_pylist())
    assert Counter(world.make(9, seed=0, domains=("a", "b", "c"))["domain"].to_pylist()) == {"a": 3, "b": 3, "c": 3}
    assert world.make(0, seed=0).num_rows == 0


def test_domains_differ_and_the_target_resembles_b():
    a, b = (bigrams(texts(d, 2000, seed=1)) for d in "ab")
    for domain, near in (("a", a), ("b", b)):
        far = b if near is a else a
        assert (score(texts(domain), near) > score(texts(domain), far)).mean() > 0.99
    gap = {d: np.mean(score(texts(d), b) - score(texts(d), a)) for d in ("a", "b", "target")}
    assert gap["a"] < 0 < 0.7 * gap["b"] < gap["target"] < gap["b"]
    words = [Counter(" ".join(texts(d, 2000)).split()) for d in "ab"]
    top = [{w for w, _ in c.most_common(10)} for c in words]
    assert len(top[0] & top[1]) < 5  # a bag of words tells them apart as well


def test_order_matters_within_a_domain():
    b = bigrams(texts("b", 2000, seed=1))
    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(t.split())) for t in texts("b")]
    assert (score(texts("b"), b) > score(shuffled, b)).mean() > 0.95


def test_copies_and_noise_are_what_they_are_called():
    made = world.make(1000, seed=0, duplicates=0.2, noise=0.1)
    plain = world.make(1000, seed=0)
    rows = made.to_pylist()
    assert Counter(r["made"] for r in rows) == {"copy": 200, "noise": 100, "clean": 700}
    clean = {(r["text"], r["domain"]) for r in rows if r["made"] == "clean"}
    assert all((r["text"], r["domain"]) in clean for r in rows if r["made"] == "copy")
    assert all(r["text"] == p["text"] for r, p in zip(rows, plain.to_pylist(), strict=True) if r["made"] == "clean")
    b = bigrams(texts("b", 2000, seed=1))
    noise = score([r["text"] for r in rows if r["made"] == "noise"], b)
    assert (
        noise.mean() < score([r["text"] for r in rows if r["made"] == "clean" and r["domain"] == "b"], b).mean() - 0.5
    )
    assert "made" not in plain.column_names


def test_pairs_go_on_from_one_prompt_in_two_ways():
    rows = world.pairs(300, seed=0).to_pylist()
    assert all(len(r[k].split()) == 8 for r in rows for k in ("prompt", "chosen", "rejected"))
    b = bigrams(texts("b", 2000, seed=1))
    chosen, rejected = (score([r["prompt"] + r[k] for r in rows], b) for k in ("chosen", "rejected"))
    assert (chosen > rejected).mean() > 0.9
    assert (score([r["prompt"] for r in rows], b) > -4).mean() > 0.9


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"domains": ()}, "domains"),
        ({"n": -1}, "n=-1"),
        ({"noise": 1.0}, "noise"),
        ({"duplicates": -0.1}, "duplicates"),
    ],
)
def test_bad_questions_are_refused(how, says):
    with pytest.raises(Bad, match=says):
        world.make(**{"n": 3, "seed": 0, **how})


def test_the_tokenizer_is_small_lossless_and_short(tmp_path):
    from transformers import AutoTokenizer

    tok = world.tokenizer()
    assert len(tok) == world.VOCABULARY and len({tok.pad_token_id, tok.bos_token_id, tok.eos_token_id}) == 3
    lines = world.make(200, seed=9)["text"].to_pylist()
    ids = tok(lines)["input_ids"]
    assert tok.batch_decode(ids) == lines and max(map(len, ids)) < 100
    odd = "Ünknown wörds, 數\n"
    assert tok.decode(tok(odd)["input_ids"]) == odd
    for r in world.pairs(50, seed=0).to_pylist():  # a prompt and its answer are tokenized apart and joined
        assert (
            tok(r["prompt"])["input_ids"] + tok(r["chosen"])["input_ids"] == tok(r["prompt"] + r["chosen"])["input_ids"]
        )
    tok.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(lines)["input_ids"] == ids


def test_training_the_tokenizer_again_gives_the_same():
    code = "from trainlore.worlds import two_domains as w; import zlib; print(zlib.crc32(w._trained().encode()))"
    beside = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], env=beside, capture_output=True, text=True, check=True).stdout
    assert int(out) == zlib.crc32(world._trained().encode())
