from __future__ import annotations

import torch

from trainlore.nouns.hugging import preset
from trainlore.primitives.anatomy import bodies, feeds
from trainlore.primitives.blocks import biased, even, inside, shift, sizes, spread
from trainlore.primitives.shrinking import keep_neurons
from trainlore.worlds.tiny import llama


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit():
    return preset("vit-digits", seed=0, num_hidden_layers=2), {"pixel_values": rand(5, 1, 8, 8)}


def test_the_layers_inside_are_all_but_patches_and_head():
    model, _ = vit()
    linear = {path for path, m in model.net.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linear - inside(model).keys() == {"classifier"} and inside(model).keys() <= linear


def test_ranges_are_those_of_all_batches_together_without_padding():
    model = llama()
    path, heard = feeds(model)[0].readers[0], []
    hook = model.net.get_submodule(path).register_forward_pre_hook(lambda m, args: heard.append(args[0].flatten(0, 1)))
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    ids = torch.randint(5, 100, (2, 2, 6), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids[0], "attention_mask": mask}, {"input_ids": ids[1]}]
    mean, low, high = spread(model, {path}, batches)[path]
    hook.remove()
    x = torch.cat([heard[0][mask.flatten().bool()], heard[1]])
    torch.testing.assert_close(mean, x.mean(0))
    assert torch.equal(low, x.amin(0)) and torch.equal(high, x.amax(0)) and len(x) == 22


def test_a_shift_moves_what_is_read_and_not_the_outputs():
    model, batch = vit()
    before, feed = model(batch), feeds(model)[0]
    was = spread(model, feed.readers, [batch])
    by = rand(len(was[feed.readers[0]][0]), seed=3)
    assert biased(model.net, feed) and not biased(llama().net, feeds(llama())[0])
    shift(model.net, feed, by)
    now = spread(model, feed.readers, [batch])
    for path in feed.readers:
        for old, new in zip(was[path], now[path], strict=True):
            torch.testing.assert_close(new, old - by, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(batch), before, atol=1e-4, rtol=1e-4)


def test_sizes_are_what_the_blocks_have_now():
    model = llama()
    assert sizes(model) == {"groups": [2, 2], "neurons": [64, 64]} and even(model)
    keep_neurons(model.net, bodies(model)[1], torch.arange(10))
    assert sizes(model) == {"groups": [2, 2], "neurons": [64, 10]} and not even(model)
