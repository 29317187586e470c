from __future__ import annotations

from itertools import product

import pytest
import torch
import transformers

from trainlore.claims import Claim
from trainlore.methods.compress.prune.ziplm import ZipLM, ladder
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.anatomy import bodies
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.masks import weight_of
from trainlore.primitives.shrinking import columns, count, shrink
from trainlore.primitives.sizing import database, timed, whole
from trainlore.runs import Run
from trainlore.worlds.tiny import world

LITTLE = {"rows": 32, "by": "work", "tolerance": 9.0}


def kept(model: Model) -> list[tuple[int, int]]:
    return [(b.groups, count(model.net, b)) for b in bodies(model)]


def test_sizes_fall_by_a_tenth_down_to_nothing():
    assert ladder(3072, 0.9)[:4] == [3072, 2764, 2487, 2238] and ladder(3072, 0.9)[-2:] == [1, 0]
    assert ladder(1, 0.9) == [1, 0]


def test_without_tries_the_layers_errors_alone_decide():
    at = world("text")
    model = at["teacher"].copy()
    sizes = {"heads": [0, 1], "neurons": [0, 16, 32, 51, 57]}
    batches = batches_of(Run(0), model, at["data"], 32, 8, "ziplm")
    sites = database(model, batches, lambda body, part, n: ladder(n, 0.5) if part == "neurons" else sizes[part])
    found = bodies(model)
    times = [timed(model, found[s.body], s.part, [len(v.kept) for v in s.levels], batches[0], "work") for s in sites]
    total, cut = whole(model, batches[0], "work"), sum(t[0] for t in times)
    budget = total / 2 - (total - cut)  # embeddings, norms and head stay as they are

    def both(levels):
        pairs = list(zip(sites, times, levels, strict=True))
        return sum(t[n] for _, t, n in pairs), sum(s.levels[n].error for s, _, n in pairs)

    every = product(*(range(len(s.levels)) for s in sites))
    best = min((p for p in every if both(p)[0] <= budget), key=lambda p: both(p)[1])
    after = Run(0).step(ZipLM(tries=0, ratio=0.5, **LITTLE), at["teacher"].copy(), at["data"])
    groups = [len(s.levels[n].kept) for s, n in zip(sites, best, strict=True)]
    assert kept(after) == [(groups[0], groups[1]), (groups[2], groups[3])]
    told = after.about["ziplm"]
    assert told["speedup"] == pytest.approx(total / whole(after, batches[0], "work")) and told["speedup"] >= 2
    assert told["blocks"] == pytest.approx(cut / both(best)[0]) and both(best)[0] <= budget


@pytest.mark.parametrize(("by", "speedup"), [("work", 1.6), ("seconds", 1.05)])  # half of so small a pass cannot be cut
def test_the_model_is_as_fast_as_was_asked_and_smaller(by, speedup):
    at = world("text")
    method = ZipLM(speedup=speedup, tries=5, judged=8, **{**LITTLE, "by": by})
    after = Run(0).step(method, at["teacher"].copy(), at["data"])
    assert after.about["ziplm"]["speedup"] >= speedup * (1 - 1e-9) and after.size < at["teacher"].size
    assert after.about["ziplm"]["neurons"] == [n for _, n in kept(after)]
    Run(0).fit(after, at["data"], steps=2, batch_size=8, precision="fp32")


def test_trying_weightings_strays_less_on_what_it_is_judged_on():
    at, lost = world("text"), []
    for tries in (0, 30):
        run = Run(0)
        after = run.step(ZipLM(speedup=2.0, tries=tries, **LITTLE), at["teacher"].copy(), at["data"])
        said = run.infer(at["teacher"], at["data"], lambda b, out: out[:, :8])
        lost.append(float((run.infer(after, at["data"], lambda b, out: out[:, :8]) - said).norm()))
    assert lost[1] <= lost[0]


@pytest.mark.parametrize("name", ["text", "gpt2", "vit"])
def test_cut_alike_it_loads_in_plain_transformers(name, tmp_path):
    at, g = world("text"), torch.Generator().manual_seed(0)
    data = at["data"]
    if name == "text":
        model = at["teacher"].copy()
    elif name == "gpt2":
        config = transformers.GPT2Config(vocab_size=len(at["teacher"].tokenizer), n_embd=16, n_layer=2, n_head=2)
        model = Model.of(config, seed=1)
        model.net.eval()
        model.tokenizer = at["teacher"].tokenizer
    else:
        model = preset("vit-digits", num_hidden_layers=2)
        data = Data.of({"pixel_values": torch.randn(32, 1, 8, 8, generator=g).numpy(), "label": [0, 1] * 16})
    after = Run(0).step(ZipLM(speedup=1.3, tries=3, uniform=True, **LITTLE), model, data)
    assert len(set(kept(after))) == 1 and after.about["ziplm"]["speedup"] >= 1.3 * (1 - 1e-9)
    folder = str(after.save(tmp_path / "small"))
    batch = data.batch(range(4), after)
    plain = type(after.net).from_pretrained(folder).eval()
    torch.testing.assert_close(Model.of(plain, kind=after.kind)(batch), after(batch))
    torch.testing.assert_close(Model.of(folder)(batch), after(batch))


@pytest.mark.parametrize("fields", [{"speedup": 1.0}, {"ratio": 1.0}, {"rows": 0}, {"damp": 0.0}, {"by": "watts"}])
def test_bad_input_is_named(fields):
    at = world("text")
    with pytest.raises(ValueError, match=next(iter(fields))):
        ZipLM(**{**LITTLE, **fields})(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="known part by part|no list of repeated"):
        ZipLM(**LITTLE)(world("digits")["teacher"], world("digits")["data"])


def test_what_cannot_be_is_said():
    at = world("text")
    with pytest.raises(ValueError, match="uniform"):
        unlike = shrink(at["teacher"].copy(), [[0], None])
        ZipLM(uniform=True, **LITTLE)(unlike, at["data"])
    with pytest.raises(
        ValueError, match=r"nothing is that quick: at its smallest sizes the model is \d\.\d+ times faster"
    ):
        ZipLM(speedup=500.0, **LITTLE)(at["teacher"].copy(), at["data"])


def by_magnitude(model: Model) -> Model:
    """Half of the heads and half of the neurons of every block: those with the largest weights where they are read."""
    groups, neurons = [], []
    for body in bodies(model):
        for part, path, into in (("heads", body.heads_out, groups), ("neurons", body.neurons_out, neurons)):
            mine = columns(model.net, body, part)
            size = weight_of(model.net.get_submodule(path))[:, mine].square().sum((0, 2))
            into.append(size.argsort(descending=True)[: len(mine) // 2].tolist())
    return shrink(model, groups, neurons)


def measure(seed: int, arm: str) -> float:
    at, run = world("text"), Run(seed)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    model, batch = by_magnitude(at["teacher"].copy()), at["data"].batch(range(8), at["teacher"])
    if arm == "method":
        speedup = whole(at["teacher"], batch, "work") / whole(model, batch, "work")
        method = ZipLM(speedup=speedup, tries=20, rows=64, by="work", tolerance=9.0)
        model = run.step(method, at["teacher"].copy(), at["data"])
    after = run.infer(model, at["held_out"], lambda b, out: out[:, :8])
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="ziplm",
    world="text",
    rival="half of every block's heads and neurons, by magnitude",
    quantity="relative distance of the logits on unseen rows at half the work of the blocks",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
