from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers as hf

from trainlore.claims import Claim
from trainlore.methods.start.growth.g_stack import GStack, growth_tokens
from trainlore.nouns import Model
from trainlore.primitives import losses
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GEMMA = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4}


def made(name: str) -> torch.nn.Module:
    with Run(0).global_rng(name):
        return {
            "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
            "gpt2": lambda: hf.GPT2LMHeadModel(
                hf.GPT2Config(
                    vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, scale_attn_by_inverse_layer_idx=True
                )
            ),
            "gemma": lambda: hf.Gemma3ForCausalLM(
                hf.Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"])
            ),
            "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL)),
            "t5": lambda: hf.T5ForConditionalGeneration(
                hf.T5Config(
                    vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
                )
            ),
            "vit": lambda: hf.ViTForImageClassification(
                hf.ViTConfig(
                    image_size=8, patch_size=4, num_channels=1, **{k: v for k, v in SMALL.items() if k != "vocab_size"}
                )
            ),
        }[name]().eval()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "bert", "t5", "vit"])
def test_a_grown_model_is_one_of_its_depth(name, tmp_path):
    net = made(name)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    grown = GStack(times=3)(Run(0), Model.of(net)).net
    batch = {"input_ids": torch.arange(20).view(2, 10)}
    if name == "vit":
        batch = {"pixel_values": torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    if name == "t5":
        batch["decoder_input_ids"] = torch.arange(8).view(2, 4)
    grown.save_pretrained(tmp_path)
    back, report = type(net).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(**batch).logits, grown(**batch).logits, rtol=0, atol=1e-6)
    after = grown.state_dict()
    where = {
        "llama": "model.layers.",
        "gpt2": "transformer.h.",
        "gemma": "model.layers.",
        "bert": "bert.encoder.layer.",
    }
    where |= {"t5": "decoder.block.", "vit": "vit.layers."}
    for key, value in before.items():  # the textbook: layer i of the small one is layers i, i + 2 and i + 4
        if key.startswith(where[name]):
            i, _, rest = key.removeprefix(where[name]).partition(".")
            copies = [k for n in (0, 2, 4) if (k := f"{where[name]}{int(i) + n}.{rest}") in after]
            assert len(copies) == (1 if "relative_attention_bias" in key else 3)
            assert all(torch.equal(after[k], value) for k in copies)
            assert len({after[k].data_ptr() for k in copies}) == len(copies)
        elif "block" not in key:
            assert torch.equal(after[key], value)
    if hasattr(grown, "generate") and name not in ("bert", "vit"):
        grown.generation_config.eos_token_id = None
        how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        asked = batch["input_ids"]
        assert torch.equal(grown.generate(asked, **how), grown.generate(asked, **how, use_cache=False))


def test_when_to_grow_is_the_papers():
    for billions, tokens, said in ((7, 2e12, 11.11), (8, 15e12, 6.58), (70, 2e12, 42.48)):
        assert growth_tokens(billions * 1e9, 6 * billions * 1e9 * tokens) / 1e9 == pytest.approx(said, abs=0.01)


def test_once_is_nothing_and_less_is_an_error():
    model = llama()
    before = model.fingerprint
    assert GStack(times=1)(Run(0), model).fingerprint == before
    with pytest.raises(ValueError, match="times"):
        GStack(times=0)(Run(0), model)


@cache
def grown(seed: int) -> tuple[float, float]:
    """The loss after 60 steps small and 30 grown, and the work it took."""
    at, run = world("text", seed), Run(seed)
    run.fit(at["model"], at["data"], steps=60, **HOW["text"])
    model = run.fit(run.step(GStack(times=2), at["model"]), at["data"], steps=30, **HOW["text"])
    return held_out_loss(model, at, seed), run.meter.work


def held_out_loss(model: Model, at: dict, seed: int) -> float:
    def rows(batch, out):
        return losses.per_row(losses.rowwise("causal", batch, out), batch, "causal")

    return float(Run(seed).infer(model, at["held_out"], rows).mean())


def measure(seed: int, arm: str) -> float:
    """The rival is a deep model from random weights that may spend the same work."""
    if arm == "method":
        return grown(seed)[0]
    at = world("text", seed)
    model = Run(seed).fit(llama(seed, layers=4), at["data"], work=grown(seed)[1], **HOW["text"])
    return held_out_loss(model, at, seed)


CLAIM = Claim(
    method="g_stack",
    world="text",
    rival="random initial weights at equal work",
    quantity="held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
