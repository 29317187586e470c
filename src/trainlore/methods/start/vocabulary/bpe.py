from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.reparam import reshaped
from trainlore.primitives.vocabulary import sides
from trainlore.runs import Run
from trainlore.verbs import Shape, method

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>", "mask_token": "<|mask|>"}


@method(
    name="bpe",
    title="Byte-level byte-pair encoding",
    paper="doi:10.18653/v1/P16-1162",
    family="start/vocabulary",
    year=2016,
    tier="core",
    status="stable",
)
class BPE(Shape):
    """Train a tokenizer on a corpus and give the model embeddings for it.

    ## What it does
    Starts from the 256 bytes and, until there are `vocab` tokens, makes the most frequent pair of neighbours inside words a
    token of its own. No text is out of its vocabulary and decoding gives back every byte. The model gets an embedding (and
    an untied output) row a token, normal with the spread its rows had, named by the seed; the sizes and the ids of the
    special tokens in its config follow:

        <|begin|> 0,  <|end|> 1,  <|pad|> 2,  <|mask|> 3

    ## Claim
    Subword units translate rare words better than a back-off dictionary: 1.1 and 1.3 BLEU on WMT 15 English to German and to
    Russian. Byte-level units came with GPT-2.

    ## Cost
    One pass over the corpus on the CPU.

    ## Fields worth tuning
    `vocab`: more tokens make shorter texts and larger embeddings, each trained on fewer occurrences.

    ## Watch out
    Whatever the embeddings knew is gone: this is for models before pretraining (`constrained_word2vec` adds tokens to a
    trained one). A small corpus may not have enough pairs that occur twice; the vocabulary is then smaller than asked for.

    ## Differs from the paper
    The symbols at the start are bytes, not characters, and words are told apart by GPT-2's rules, a leading space being part
    of the word.
    """

    corpus: Data
    """Text the tokenizer is trained on."""
    vocab: int = 4096
    """Number of tokens, with bytes and special tokens."""
    column: str = "text"
    """The column of the corpus that holds the text."""
    min_frequency: int = 2
    """How often a pair must occur to become a token."""

    tiny = {"world": "text", "corpus": "$data", "vocab": 300}

    def __call__(self, run: Run, model: Model) -> Model:
        from transformers import PreTrainedTokenizerFast

        if not hasattr(model.net, "resize_token_embeddings"):
            raise Bad(f"{type(model.net).__name__} has no token embeddings: bpe is for transformers' language models")
        if self.vocab < (least := 256 + len(SPECIALS)):
            raise Bad(f"vocab must be {least} or more (256 bytes, {len(SPECIALS)} special tokens), not {self.vocab}")
        self.corpus.need(self.column, who="bpe")
        trained = train(self.corpus.text(self.column), self.vocab, self.min_frequency)
        limit = {} if model.window is None else {"model_max_length": model.window}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, **SPECIALS, **limit)
        renew(model.net, len(tokenizer), tokenizer.pad_token_id, run)
        name(model.net, tokenizer)
        model.tokenizer = tokenizer
        return reshaped(model)


def train(texts: Iterable[str], vocab: int, min_frequency: int = 2) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab` tokens; the same texts always give the same one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=min_frequency,
        special_tokens=list(SPECIALS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@torch.no_grad()
def renew(net: Any, size: int, pad: int, run: Run) -> None:
    """Give the net `size` new embedding rows, and new output rows where these are not the same; their spread stays."""
    spread = {side: float(rows.weight.float().std()) for side, rows in sides(net).items()}
    with run.global_rng("bpe"):  # resizing draws rows of its own, which are not kept
        net.resize_token_embeddings(size, mean_resizing=False)
    for side, rows in sides(net).items():
        drawn = torch.randn(rows.weight.shape, generator=run.rng("bpe", side)) * spread[side]
        rows.weight.copy_(drawn)
        if getattr(rows, "padding_idx", None) is not None:
            rows.padding_idx = pad
            rows.weight[pad] = 0
        if getattr(rows, "bias", None) is not None:
            rows.bias.zero_()


def name(net: Any, tokenizer: Any) -> None:
    """Write the ids of the special tokens into the net's config and the one it generates by."""
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for config in (net.config, getattr(net, "generation_config", None)):
        if config is None:
            continue
        for key, value in ids.items():
            setattr(config, key, value)
        if getattr(net.config, "is_encoder_decoder", False):
            config.decoder_start_token_id = tokenizer.pad_token_id
