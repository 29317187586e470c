from __future__ import annotations

import json

import pytest

from trainlore.errors import Bad
from trainlore.methods.compress.distil.kd import KD
from trainlore.methods.compress.distil.meal_v2 import MEALV2
from trainlore.methods.compress.distil.prompt_distillation import PromptDistillation
from trainlore.methods.compress.distil.sparse_logits import SparseLogits
from trainlore.methods.compress.distil.teacher_routing import TeacherRouting
from trainlore.methods.compress.prune.adaptive_sparse_trainer import AdaptiveSparseTrainer
from trainlore.nouns import Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.alike import same_tokens
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world


def renamed(model: Model) -> Model:
    """A model of as many tokens, two of which have changed places."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    said = json.loads(model.tokenizer.backend_tokenizer.to_str())
    words = said["model"]["vocab"]
    first, second = sorted(words, key=words.get)[-2:]
    words[first], words[second] = words[second], words[first]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(said)))
    return Model(model.net, model.kind, other)


def test_the_same_tokens_pass_and_others_are_named():
    mine, sums = llama(), llama(arithmetic=True)
    for other in (mine, mine.copy(), llama(1), Model(mine.net, "causal")):
        same_tokens(mine, other, "kd")
    with pytest.raises(
        Bad, match=rf"the source knows {len(sums.tokenizer)} tokens and the student {len(mine.tokenizer)}"
    ):
        same_tokens(mine, sums, "kd", "source")
    with pytest.raises(Bad, match=r"token .* is number \d+ of the teacher's and number \d+ of the student's"):
        same_tokens(mine, renamed(mine.copy()), "kd")
    same_tokens(preset("mlp"), preset("mlp", width=8), "kd")  # neither reads tokens


TEACHERS = {
    "kd": lambda t: KD(teacher=t),
    "meal_v2": lambda t: MEALV2(teachers=(t,)),
    "sparse_logits": lambda t: SparseLogits(teacher=t),
    "adaptive_sparse_trainer": lambda t: AdaptiveSparseTrainer(teacher=t),
    "teacher_routing": lambda t: TeacherRouting(general=t, expert=t, domains=("b",)),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_of_another_vocabulary_is_refused_before_the_first_step(name):
    at = world("text")
    with pytest.raises(Bad, match=f"vocabulary, so give {name} a .*teacher with the student's tokenizer"):
        Run(0).fit(at["model"], at["data"], TEACHERS[name](world("sums")["model"]), steps=1, **HOW["text"])


def test_prompts_are_not_distilled_from_another_vocabulary():
    at = world("sums")
    part = PromptDistillation(teacher=llama(), passage="prompt", between="")
    with pytest.raises(Bad, match="vocabulary, so give prompt_distillation"):
        Run(0).fit(at["model"], at["data"], part, steps=1, **HOW["sums"])
