from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from trainlore.nouns import Data, Model
from trainlore.primitives import ghosts
from trainlore.primitives.gradients import (
    Losses,
    flat_weights,
    gradient_sum,
    put_weights,
    row_dots,
    row_gradients,
    row_norms,
)
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import llama, world


def naive(model, data, layers=""):
    """A loop over rows: the gradient of each, (N, P)."""
    found, losses = [], Losses(model).eval()
    weights = [p for n, p in model.net.named_parameters() if p.requires_grad and layers in n]
    if model.input == "input_ids" and "input_ids" not in data.columns:
        data = model.encode(data)
    for i in range(len(data)):
        slopes = torch.autograd.grad(losses(data.batch([i], model)).sum(), weights, allow_unused=True)
        found.append(torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for w, g in zip(weights, slopes)]))
    return torch.stack(found).detach()


def features(n=9, width=6, classes=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Data.of(
        {
            "features": torch.randn(n, width, generator=rng).numpy(),
            "label": torch.randint(classes, (n,), generator=rng).numpy(),
        }
    )


class Convolved(nn.Module):
    """Layers with no ghost: a convolution, a norm over groups, weights of its own, ReLU in place, a layer used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4)
        self.twice, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
        self.scale = nn.PReLU(num_parameters=4)

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.conv(x[:, None])), inplace=True)
        x = self.scale(x).flatten(1)
        return self.head(self.twice(self.twice(x).tanh()).relu_())


@cache
def models():
    torch.manual_seed(0)
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    text, digits = llama(), world("digits")
    few = text.encode(Data(two_domains.make(7, seed=0)))
    small = {"vocab_size": 384, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=384, n_embd=16, n_layer=1, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=2)
    )
    bert = BertForSequenceClassification(
        BertConfig(**small, intermediate_size=32, max_position_embeddings=128, num_labels=4, pad_token_id=0)
    )
    labelled = few.without("labels").with_(label=[0, 1, 2, 3, 0, 1, 2])
    return {
        "mlp": (digits["model"], digits["data"].take(range(9))),
        "tied llama": (text, few),
        "gpt2": (Model(gpt2.eval(), "causal", text.tokenizer), few),
        "bert": (Model(bert.eval(), "classifier", text.tokenizer), labelled),
        "odd layers": (Model(Convolved()), features()),
        "bare": (Model(nn.Linear(6, 4)), features()),
    }


@pytest.mark.filterwarnings("ignore")
def test_everything_is_what_a_loop_over_rows_gives_on_every_kind_of_network():
    for name, (model, data) in models().items():
        true, run = naive(model, data), Run(0)
        direction = torch.randn(true.shape[1], generator=run.rng("d"))
        for chunk in (0, 4):
            assert torch.allclose(row_norms(run, model, data, chunk=chunk), true.norm(dim=1), rtol=2e-4), name
        got = row_gradients(run, model, data)
        assert torch.allclose(got, true, rtol=1e-3, atol=1e-6), name
        along = row_dots(run, model, data, direction)
        assert torch.allclose(along, true @ direction, rtol=1e-3, atol=1e-4), name
        weights = torch.arange(len(data)).float()
        assert torch.allclose(gradient_sum(run, model, data, weights), weights @ true, rtol=1e-3, atol=1e-5), name
        assert all(p.grad is None for p in model.net.parameters())


def test_the_ghost_way_is_taken_and_holds_no_gradient(monkeypatch):
    def not_here(*_):
        raise AssertionError("a slower way was taken")

    monkeypatch.setattr(ghosts, "vectorized", not_here)
    for model, data in models().values():
        assert row_norms(Run(0), model, data).shape == (len(data),)
    whole, (model, data) = ghosts.whole, models()["mlp"]

    def one_row(part):  # the first, by which the way is checked
        return whole(part) if len(part[0].right if isinstance(part, list) else part) == 1 else not_here()

    monkeypatch.setattr(ghosts, "whole", one_row)
    assert (row_norms(Run(0), model, data) > 0).all()
    assert (row_dots(Run(0), model, data, torch.ones(model.size)) != 0).all()


def test_layers_are_listened_to_once_a_pass_and_left_as_they_were(monkeypatch):
    opened, plain = [], ghosts.Listener._open
    monkeypatch.setattr(ghosts.Listener, "_open", lambda ear: opened.append(len(ear.owners)) or plain(ear))
    model, data = models()["mlp"]
    row_norms(Run(0), model, data, chunk=2)
    assert opened == [sum(isinstance(m, nn.Linear) for m in model.net.modules())]
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    model, data, held = Model(net), features(), net[0].forward
    net[0].forward = forward = lambda x: held(x) / 2  # somebody else's, as a wrapper of devices has it
    true = naive(model, data).norm(dim=1)
    assert torch.allclose(row_norms(Run(0), model, data, chunk=2), true, rtol=2e-4)
    assert net[0].forward is forward and "forward" not in net[2].__dict__
    loner = Model(Loner())
    with pytest.raises(ValueError, match="give chunk=1"):
        row_norms(Run(0), loner, features(), chunk=4)
    assert "forward" not in loner.net.net.__dict__


def test_what_hooks_make_of_a_layer_is_seen(monkeypatch):
    monkeypatch.setattr(ghosts, "vectorized", lambda *_: pytest.fail("a slower way was taken"))
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    net[0].register_forward_pre_hook(lambda m, args: (args[0].round(),))
    net[2].register_forward_hook(lambda m, args, out: 3 * out)
    model, data = Model(net), features()
    assert torch.allclose(row_gradients(Run(0), model, data), naive(model, data), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_gradients_are_written_where_they_belong(dtype):
    rng = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=rng, dtype=dtype)

    ids, units = torch.tensor([[1, 4, 1], [0, 0, 2]]), torch.eye(5, dtype=dtype)
    once, twice = ghosts.Factors(drawn(2, 1, 5), drawn(2, 1, 4)), ghosts.Factors(drawn(2, 3, 5), drawn(2, 3, 4))
    looked = ghosts.Factors(ids, drawn(2, 3, 4), 5)
    parts = {"a": [once], "b": drawn(2, 3), "c": [looked], "d": [twice], "e": [looked, twice], "f": [once, looked]}

    def by_hand(part, row):
        if isinstance(part, torch.Tensor):
            return part[row]
        lefts = [(units[f.left[row]] if f.height else f.left[row], f.right[row]) for f in part]
        return sum(torch.outer(u, v) for left, right in lefts for u, v in zip(left, right)).flatten()

    out = torch.full((2, 3 + 5 * 20), float("nan"))
    ghosts.write(parts, out)
    wanted = [torch.cat([by_hand(p, row) for p in parts.values()]) for row in range(2)]
    assert torch.allclose(out, torch.stack(wanted).float(), atol=1e-6)


def test_float64_to_rounding_and_frozen_weights_do_not_count():
    class Exact(Convolved):
        def forward(self, x):
            return super().forward(x.double())

    model, data = Model(Exact().double()), features()
    model.net.twice.requires_grad_(False)
    true = naive(model, data)
    assert torch.allclose(row_norms(Run(0), model, data).double(), true.norm(dim=1), rtol=1e-6)
    assert row_gradients(Run(0), model, data).shape == true.shape


class Crossed(nn.Module):
    """Reads the time axis first: with as many places as rows nothing but the numbers shows it."""

    def __init__(self):
        super().__init__()
        self.one, self.head = nn.Linear(1, 3), nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.one(x.T[..., None]).tanh().mean(0))


def test_a_network_that_mixes_up_the_axes_is_noticed():
    model, data = Model(Crossed()), features(n=6, width=6)
    assert torch.allclose(row_norms(Run(0), model, data), naive(model, data).norm(dim=1), rtol=1e-4)


class Loner(nn.Module):
    """Takes one row at a time, which neither whole batches nor vmap can."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, x):
        if len(x) > 1 or x.sum().item() > 1e9:
            raise RuntimeError("one row at a time")
        return self.net(x)


def test_an_ordinary_backward_for_each_row_where_nothing_else_goes():
    model, data = Model(Loner()), features()
    direction, true = torch.randn(model.size, generator=Run(0).rng("d")), naive(model, data)
    assert torch.allclose(row_dots(Run(0), model, data, direction), true @ direction, rtol=1e-3, atol=1e-4)
    assert torch.allclose(row_gradients(Run(0), model, data), true, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="give chunk=1"):
        row_norms(Run(0), model, data, chunk=4)


def test_layers_with_norms_of_their_own_and_rows_too_long_for_one_pass(monkeypatch):
    class Gemma(nn.Module):  # the weight is a difference from 1
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            return x * (1 + self.weight)

    PlusRMSNorm = type("PlusRMSNorm", (Gemma,), {})
    model, data = Model(nn.Sequential(nn.LayerNorm(6), PlusRMSNorm(), nn.RMSNorm(6), nn.Linear(6, 4))), features()
    for p in model.net.parameters():
        nn.init.normal_(p, generator=Run(0).rng("p"))
    assert torch.allclose(row_gradients(Run(0), model, data), naive(model, data), rtol=1e-3, atol=1e-6)
    model, data = models()["tied llama"]
    monkeypatch.setattr("trainlore.runs.TOKENS", 100)
    monkeypatch.setattr(ghosts, "PIECE", 64)
    true = naive(model, data)
    assert torch.allclose(row_norms(Run(0), model, data), true.norm(dim=1), rtol=2e-4)
    assert torch.allclose(row_gradients(Run(0), model, data), true, rtol=1e-3, atol=1e-6)


def test_layers_are_chosen_by_name_and_projections_keep_products():
    model, data = models()["tied llama"]
    true, run = naive(model, data, "mlp"), Run(0)
    assert torch.allclose(row_gradients(run, model, data, layers="mlp"), true, rtol=1e-3, atol=1e-6)
    assert torch.allclose(row_norms(run, model, data, layers="mlp"), true.norm(dim=1), rtol=1e-4)
    whole = naive(model, data)
    for how in ("rademacher", "gaussian"):
        small = row_gradients(run, model, data, project=600, how=how)
        assert small.shape == (7, 600)
        again = row_gradients(run, model, data.take([3, 1]), project=600, how=how, chunk=1)
        assert torch.allclose(small[[3, 1]], again, rtol=1e-3, atol=1e-4)
        scale = whole.norm(dim=1)[:, None] * whole.norm(dim=1)
        assert ((small @ small.T - whole @ whole.T) / scale).abs().max() < 0.25
    with pytest.raises(ValueError, match="layers='nowhere'"):
        row_norms(run, model, data, layers="nowhere")
    with pytest.raises(ValueError, match="project=0"):
        row_gradients(run, model, data, project=0)
    with pytest.raises(ValueError, match="direction has shape"):
        row_dots(run, model, data, torch.ones(3))
    with pytest.raises(ValueError, match="chunk=-1"):
        row_norms(run, model, data, chunk=-1)


def test_every_pass_is_paid_for_and_later_ones_as_usual():
    model, data = models()["mlp"]
    plain = Run(0)
    plain.infer(model, data, lambda b, o: o)
    price = plain.meter.forward / len(data)
    row_norms(run := Run(0), model, data)  # the rows and one more, checked by an ordinary backward
    assert run.meter.forward == (len(data) + 1) * price and run.meter.backward == 2 * run.meter.forward
    row_dots(run := Run(0), model, data, torch.ones(model.size))
    assert run.meter.forward == (len(data) + 1) * price and run.meter.backward == 2 * run.meter.forward
    run.infer(model, data, lambda b, o: o)
    assert run.meter.forward == (2 * len(data) + 1) * price


def test_weights_go_out_flat_and_come_back():
    model = world("digits")["model"]
    first = next(model.net.parameters()).requires_grad_(False)
    flat, held = flat_weights(model), first.clone()
    assert len(flat) == sum(p.numel() for p in model.net.parameters()) - first.numel()
    put_weights(model, 2 * flat)
    assert torch.equal(flat_weights(model), 2 * flat) and torch.equal(first, held)
