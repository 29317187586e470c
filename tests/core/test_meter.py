"""The meter against sums done by hand, and that nothing which goes wrong in a pass throws it off."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from trainlore.meter import Meter, watch
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import tiny


class Net(nn.Module):
    def __init__(self, inside=None):
        super().__init__()
        self.layer = inside or nn.Linear(3, 5, bias=False)

    def forward(self, x, fail=None):
        if fail is not None:
            self.layer(x)
            raise fail
        return self.layer(x)


@pytest.fixture
def net():
    made = Net()
    watch(made)
    return made


ONE = 2 * 3 * 5  # FLOPs of a row


def test_a_forward_and_a_backward_cost_what_the_products_do(net):
    meter = Meter()
    with meter.running():
        for rows in (4, 4, 9):
            net(torch.ones(rows, 3)).sum().backward()
        with torch.no_grad():
            net(torch.ones(2, 3))
    assert meter.forward == 19 * ONE and meter.backward == 2 * 17 * ONE and meter.rows == meter.tokens == 19
    assert meter.work == meter.forward + meter.backward and meter.seconds > 0 and meter.peak > 1 << 20


def test_frozen_weights_make_a_backward_half_as_dear(net):
    net.layer.weight.requires_grad_(False)
    watch(net)
    meter = Meter()
    with meter.running():
        net(torch.ones(4, 3, requires_grad=True)).sum().backward()
    assert meter.backward == meter.forward == 4 * ONE


def test_a_llama_costs_its_matrices_and_its_attention():
    w, run = tiny.world("text"), Run(0)
    batch = w["data"].batch([0, 1], w["model"])
    rows, length = batch["input_ids"].shape
    with run.meter.running(), torch.no_grad():
        w["model"](batch)
    products = sum(m.weight.numel() for m in w["model"].net.modules() if isinstance(m, nn.Linear))
    attention = 2 * (2 * 2 * rows * length * length * 32)  # layers, two products of width 32
    assert run.meter.forward == 2 * products * rows * length + attention and run.meter.tokens == rows * length


def test_a_longer_answer_costs_a_seq2seq_more():
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    model, bills = Model(t5.eval(), "seq2seq"), []
    for length in (8, 24):
        run = Run(0)
        batch = {"input_ids": torch.ones(2, 8, dtype=torch.long), "labels": torch.ones(2, length, dtype=torch.long)}
        with run.meter.running(), torch.no_grad():
            model(batch)
        bills.append(run.meter.forward)
    assert bills[1] > 1.5 * bills[0] > 0


def test_a_network_inside_another_is_paid_for_once(net):
    outer = Net(net)
    watch(outer)
    meter = Meter()
    with meter.running():
        outer(torch.ones(4, 3))
    assert meter.forward == 4 * ONE


def test_whoever_runs_pays_and_a_copy_pays_too(net):
    first, second = Meter(), Meter()
    net(torch.ones(4, 3))  # nobody's
    with first.running():
        late = net(torch.ones(4, 3))
    with second.running():
        copy.deepcopy(net)(torch.ones(2, 3))
    late.sum().backward()
    assert (first.forward, first.backward, second.forward) == (4 * ONE, 8 * ONE, 2 * ONE)


@pytest.mark.parametrize("fault", [RuntimeError("x"), KeyboardInterrupt()])
def test_a_pass_that_fails_throws_nothing_off(net, fault):
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    meter = Meter()
    with pytest.raises(type(fault)), meter.running():
        net(torch.ones(4, 3), fail=fault)
    assert not _get_current_dispatch_mode_stack()  # no counter is left at work
    with meter.running():
        net(torch.ones(4, 3))
    assert meter.forward == 4 * ONE
    with meter.running():
        with pytest.raises(RuntimeError):
            net(torch.ones(1, 3), fail=RuntimeError("x"))
        net(torch.ones(1, 3))
    assert meter.forward == 5 * ONE


def test_bills_are_added_and_come_back_from_json(net):
    meter = Meter()
    with meter.running():
        net(torch.ones(4, 3)).sum().backward()
    again = Meter.of(meter.state())
    assert again == meter
    again.add(meter)
    assert again.work == 2 * meter.work and again.rows == 8


def test_measuring_is_paid_for():
    w, run = tiny.world("digits"), Run(0)
    run.infer(w["model"], w["test"], lambda batch, out: out.sum(-1))
    per_row = 2 * sum(m.weight.numel() for m in w["model"].net.modules() if isinstance(m, nn.Linear))
    assert run.meter.forward == per_row * len(w["test"]) and run.meter.backward == 0
    plain = Model.of(nn.Sequential(nn.Linear(2, 2)))
    run = Run(0)
    run.fit(plain, Data.of({"features": np.ones((6, 2), np.float32), "label": [0, 1] * 3}), epochs=2, batch_size=3)
    assert run.meter.forward == 12 * 8 and run.meter.backward == 24 * 8 and run.meter.rows == 12


def test_a_loss_on_hidden_states_pays_for_the_blocks_below():
    w, run = tiny.world("text"), Run(0)
    model = w["model"]
    batch = {k: v for k, v in w["data"].batch([0, 1], model).items() if k in ("input_ids", "attention_mask")}

    def paid(loss):
        with run.meter.running():
            was = run.meter.forward, run.meter.backward
            out = model.net(**batch, output_hidden_states=True, use_cache=False)
            loss(out).backward()
            return (run.meter.backward - was[1]) / (run.meter.forward - was[0])

    top, middle = (lambda out: out.hidden_states[-1].sum()), (lambda out: out.hidden_states[1].square().sum())
    answer = lambda out: out.logits.sum()
    assert paid(answer) == paid(top) == pytest.approx(2)  # the activations, and the weights once more
    assert paid(middle) == pytest.approx(1)  # one block of two
    both = [paid(lambda out, last=last: sum(f(out) for f in last)) for last in ((middle, top), (top, middle, answer))]
    assert both == pytest.approx([2, 2])  # what lies below both is gone through once

    def twice(out):
        out.logits.sum().backward(retain_graph=True)
        return middle(out)

    assert paid(twice) == pytest.approx(3)


def test_few_logits_cost_less_than_all():
    w, bills = tiny.world("text"), []
    ids = w["data"].batch([0, 1], w["model"])["input_ids"]
    for few in (0, 1):
        run = Run(0)
        with run.meter.running(), torch.no_grad():
            w["model"].net(input_ids=ids, logits_to_keep=few)
        bills.append(run.meter.forward)
    head = w["model"].net.get_output_embeddings().weight.numel()
    assert bills[0] - bills[1] == pytest.approx(2 * 2 * (ids.shape[1] - 1) * head)
