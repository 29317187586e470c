from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
import transformers

from trainlore.nouns import Data, Model
from trainlore.primitives.anatomy import bodies
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.grids import Grid, settle
from trainlore.primitives.masks import weight_of, write
from trainlore.primitives.shrinking import KEPT, PARTS, columns, count, cutting, sayable, shaped, shrink
from trainlore.primitives.sizing import (
    answers,
    cut_to,
    database,
    fit_budget,
    put,
    rising,
    strayed,
    table,
    timed,
    weighted,
    whole,
)
from trainlore.runs import Run

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NETS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**WORDS, **SIZES, attention_bias=True)),
    "qwen": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(num_key_value_heads=2, head_dim=8, **WORDS, **SIZES)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(num_key_value_heads=2, **WORDS, **SIZES)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, **WORDS)),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**WORDS, **SIZES)),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **SIZES)
    ),
}


def small(name: str) -> tuple[Model, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, 0.7 if weight.dim() == 1 else 0.0, 0.3)
    if name == "vit":
        return Model.of(net), {"pixel_values": torch.randn(2, 1, 8, 8)}
    return Model.of(net), {"input_ids": torch.randint(3, 50, (2, 6))}


def emptied(model: Model, groups, neurons) -> Model:
    """The same model with the columns of what goes set to zero where it is read: the textbook of cutting it out."""
    model = model.copy()
    for at, body in enumerate(bodies(model)):
        for part, kept, path in zip(PARTS, (groups[at], neurons[at]), (body.heads_out, body.neurons_out), strict=True):
            layer, mine = model.net.get_submodule(path), columns(model.net, body, part)
            gone = [g for g in range(len(mine)) if kept is not None and g not in kept]
            weight = weight_of(layer).clone()
            weight[:, mine[gone].flatten()] = 0
            write(layer, weight)
    return model


def numbers(model: Model) -> list[tuple[int, int]]:
    return [(b.groups, count(model.net, b)) for b in bodies(model)]


CUTS = {"alike": ([[1], [0]], [[0, 5, 23], [7, 1, 2]]), "unlike": ([[0], None], [[3, 4], list(range(20))])}
CUTS |= {"nothing left": ([[], [1]], [[2], []]), "one side": (None, [[0, 9], [4, 5]])}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", NETS)
def test_what_is_cut_out_is_what_is_set_to_zero(name, cut):
    model, batch = small(name)
    groups, neurons = CUTS[cut]
    groups = [None, None] if groups is None else groups
    want = emptied(model, groups, neurons)(batch)
    size = model.size
    after = shrink(model, groups, neurons)
    torch.testing.assert_close(after(batch), want, rtol=1e-4, atol=1e-5)
    assert after.size < size and all(p.requires_grad for p in after.net.parameters())
    whole = len(columns(NETS[name](), bodies(Model.of(NETS[name]()))[0], "heads"))
    assert numbers(after) == [
        (whole if g is None else len(g), 24 * (name != "gpt2") + 64 * (name == "gpt2") if n is None else len(n))
        for g, n in zip(groups, neurons, strict=True)
    ]
    loss = after(batch).square().mean()  # it can be trained on
    loss.backward()
    again = after.copy()
    torch.testing.assert_close(again(batch), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "heads"), [("llama", 2), ("qwen", 1), ("qwen2", 1), ("vit", 3), ("gpt2", 4), ("bert", 4)]
)
def test_blocks_cut_alike_load_in_plain_transformers(name, heads, tmp_path):
    model, batch = small(name)
    kept = [list(range(heads))] * 2
    assert sayable(model, "heads", heads) and sayable(model, "neurons", 7)
    after = shrink(model, kept, [[0, 3, 4, 5, 9, 11, 20], [1, 2, 3, 4, 5, 6, 7]])
    assert not hasattr(after.net.config, KEPT)
    folder = str(after.save(tmp_path / "small"))
    plain = type(model.net).from_pretrained(folder).eval()
    assert sum(p.numel() for p in plain.parameters()) == after.size
    for back in (Model.of(folder), Model.of(plain)):
        torch.testing.assert_close(back(batch), after(batch))
    assert numbers(Model.of(folder)) == numbers(after) == [(heads, 7)] * 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
@pytest.mark.parametrize("cut", ["unlike", "nothing left"])
def test_a_config_says_what_blocks_that_differ_keep(name, cut, tmp_path):
    model, batch = small(name)
    after = shrink(model, *CUTS[cut])
    config = type(after.net.config).from_dict(after.net.config.to_dict())
    anew = shaped(type(after.net)(config)).eval()
    anew.load_state_dict(after.net.state_dict())
    torch.testing.assert_close(Model.of(anew)(batch), after(batch))
    assert numbers(Model.of(anew)) == numbers(after)
    after.net.save_pretrained(tmp_path / "raw")
    back, info = cutting(type(after.net)).from_pretrained(str(tmp_path / "raw"), output_loading_info=True)
    back.__class__ = type(after.net)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(Model.of(back.eval())(batch), after(batch))


@pytest.mark.parametrize(("name", "kept"), [("gpt2", 2), ("bert", 2), ("llama", 3), ("llama", 0)])
def test_heads_that_plain_transformers_cannot_say_are_kept_in_mind(name, kept):
    model, _ = small(name)
    assert not sayable(model, "heads", kept)
    after = shrink(model, [list(range(kept))] * 2, [[0, 1]] * 2)
    assert getattr(after.net.config, KEPT) == {"groups": [kept, kept]}
    assert {getattr(after.net.config, k, 2) for k in ("intermediate_size", "n_inner")} == {2}


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen"])
def test_a_block_without_heads_writes_as_before(name):
    model, batch = small(name)
    after = shrink(model, [[], [0]], [[0, 1, 2]] * 2)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 5}
    ids = batch["input_ids"]
    assert torch.equal(after.net.generate(ids, use_cache=True, **how), after.net.generate(ids, use_cache=False, **how))


def test_it_can_be_cut_again_and_bad_input_is_named():
    model, batch = small("llama")
    once = shrink(model, [[0, 1], [0, 2, 3]], [list(range(9)), list(range(7))])
    want = emptied(once, [[1], [0]], [[5], [6]])(batch)
    twice = shrink(once, [[1], [0]], [[5], [6]])
    torch.testing.assert_close(twice(batch), want, rtol=1e-4, atol=1e-5)
    assert not hasattr(twice.net.config, KEPT) and twice.net.config.num_attention_heads == 1
    for bad in ([[1], None], [[0, 0], None], [[-1], None]):
        with pytest.raises(ValueError, match="different numbers from 0 to 0"):
            shrink(twice, bad)
    with pytest.raises(ValueError, match="2 blocks"):
        shrink(twice, [None])
    olmo = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**WORDS, **SIZES))  # norms its queries across heads
    with pytest.raises(ValueError, match="q_norm acts across heads"):
        shrink(Model.of(olmo), [[0], None])
    model, _ = small("llama")
    path = bodies(model)[0].neurons_out
    layer = model.net.get_submodule(path)
    grid = Grid.of(weight_of(layer), "int4", "channel")
    settle(model, path, layer, grid.round(weight_of(layer)), grid)
    with pytest.raises(ValueError, match="quantized already"):
        shrink(model, [[0], None])


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_is_spent_as_well_as_trying_everything_does(seed):
    rng = np.random.default_rng(seed)
    losses = [rng.random(rng.integers(1, 5)) for _ in range(4)]
    times = [rng.integers(0, 9, len(row)).astype(float) for row in losses]
    budget = float(rng.integers(4, 30))
    every = [
        p
        for p in product(*(range(len(r)) for r in losses))
        if sum(t[i] for t, i in zip(times, p, strict=True)) <= budget
    ]
    if not every:
        with pytest.raises(ValueError, match="nothing is that quick"):
            fit_budget(losses, times, budget, buckets=int(budget))
        return
    best = min(sum(r[i] for r, i in zip(losses, p, strict=True)) for p in every)
    for buckets in (int(budget), 100 * int(budget)):
        got = fit_budget(losses, times, budget, buckets)
        assert sum(t[i] for t, i in zip(times, got, strict=True)) <= budget
        assert sum(r[i] for r, i in zip(losses, got, strict=True)) == pytest.approx(best)


def test_a_rounded_choice_never_passes_the_budget():
    losses, times = [[0.0, 1.0]] * 2, [[0.54, 0.1]] * 2  # 0.54 rounds to 5 of 10: two of them would seem to fit
    assert sorted(fit_budget(losses, times, 1.0, buckets=10)) == [0, 1]
    with pytest.raises(ValueError, match="buckets"):
        fit_budget(losses, times, 1.0, buckets=0)


def test_weights_are_searched_as_long_as_there_is_a_gain():
    asked = []

    def judge(weights):
        asked.append(weights.copy())
        return float(np.abs(weights - 0.5).sum())

    best = weighted(judge, 20, 30, np.random.default_rng(0))
    assert (asked[0] == 1).all() and judge(best) == min(map(judge, asked[:])) < judge(asked[0]) / 2
    assert len({a.tobytes() for a in asked[:31]}) == 31 and len(asked) > 31 + 2 * 30


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_sizes_cost_what_they_hold(name):
    model, batch = small(name)
    body = bodies(model)[1]
    for part, most in (("heads", body.groups), ("neurons", count(model.net, body))):
        work = timed(model, body, part, [most, most // 2, 0], batch, "work")
        assert work[0] == 2 * work[1] > 0 == work[2]
        seconds = timed(model, body, part, [most, 0], batch, repeats=2)
        assert (seconds > 0).all()
        x = 2 * (6 if name != "vit" else 5) * 16  # places times the hidden size
        assert part == "heads" or work[0] == 2 * x * most * (3 if name == "llama" else 2)
    with pytest.raises(ValueError, match="by="):
        timed(model, body, "heads", [1], batch, by="watts")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_a_table_adds_up_to_the_whole_pass_before_and_after_cutting(name):
    model, batch = small(name)
    places = [(at, part, [n, n // 2]) for at in (0, 1) for part, n in zip(PARTS, numbers(model)[at], strict=True)]
    rows, rest = table(model, places, batch, "work")
    assert rest > 0 and rest + sum(row[0] for row in rows) == pytest.approx(whole(model, batch, "work"))
    groups, neurons = ([range(sizes[1]) for _, p, sizes in places if p == part] for part in PARTS)
    cut = shrink(model.copy(), groups, neurons)
    assert rest + sum(row[1] for row in rows) == pytest.approx(whole(cut, batch, "work"))
    rows, rest = table(model, places, batch)
    assert rest >= 0 and all(row[0] >= row[1] > 0 for row in rows) and (rows[0] == rows[2]).all()


def test_more_never_costs_less():
    sizes, times = np.array([4, 3, 2, 1, 0]), np.array([9.0, 10.0, 4.0, 5.0, 1.0])
    assert rising(sizes, times).tolist() == [9.5, 9.5, 4.5, 4.5, 1.0]
    assert rising(sizes[::-1], times[::-1]).tolist() == [1.0, 4.5, 4.5, 9.5, 9.5]


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_a_database_holds_least_squares_answers_and_cuts_to_them(name):
    model, _ = small(name)
    column = "pixel_values" if name == "vit" else "input_ids"
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(24, 1, 8, 8, generator=g) if name == "vit" else torch.randint(3, 50, (24, 6), generator=g)
    batches = batches_of(Run(0), model, Data.of({column: rows.numpy(), "label": [0, 1, 2] * 8}), 24, 8, "test")
    state = copy.deepcopy(model.net.state_dict())
    sites = database(model, batches, lambda body, part, n: [n // 2, 0], damp=1e-4)
    assert all(torch.equal(v, state[k]) for k, v in model.net.state_dict().items())
    assert [(s.body, s.part) for s in sites] == [(0, "heads"), (0, "neurons"), (1, "heads"), (1, "neurons")]
    for site in sites:
        assert [len(level.kept) for level in site.levels] == [len(site.groups), len(site.groups) // 2, 0]
        assert 0 == site.levels[0].error < site.levels[1].error < site.levels[2].error == 1
    seen, layer = [], model.net.get_submodule(sites[0].path)
    hook = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].flatten(0, 1)))
    before = answers(model, batches)
    hook.remove()
    x, w, level = torch.cat(seen), weight_of(layer), sites[0].levels[1]
    kept = sites[0].groups[level.kept].flatten()
    best = torch.linalg.lstsq(x[:, kept].double(), (x @ w.T).double()).solution.T
    off = ((x[:, kept] @ level.weight.T - x @ w.T).square().sum() / (x @ w.T).square().sum()).item()
    ideal = (
        (x[:, kept].double() @ best.T - (x @ w.T).double()).square().sum() / (x @ w.T).double().square().sum()
    ).item()
    assert off == pytest.approx(ideal, rel=0.02) and level.error == pytest.approx(ideal, rel=0.05)
    assert strayed(model, batches, before) == pytest.approx(0, abs=1e-6)
    for site, at in zip(sites, [1, 1, 2, 1], strict=True):
        put(model.net, site, at)
    gap = strayed(model, batches, before)
    after = cut_to(model, sites, [1, 1, 2, 1])
    assert gap > 0.001 and strayed(after, batches, before) == pytest.approx(gap, rel=1e-3)
    assert [g for g, _ in numbers(after)] == [2, 0]


def test_inputs_that_say_the_same_need_damping():
    model, _ = small("llama")
    rows = Data.of({"input_ids": np.full((8, 6), 7), "label": [0] * 8})  # one token: all places read alike
    batches = batches_of(Run(0), model, rows, 8, 8, "test")
    assert len(database(model, batches, lambda body, part, n: [0], damp=0.01)) == 4
    with pytest.raises(ValueError, match="damp=1e-12"):
        database(model, batches, lambda body, part, n: [0], damp=1e-12)
