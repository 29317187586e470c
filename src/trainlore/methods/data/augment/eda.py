from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives import edits
from trainlore.primitives.edits import Kin, Words
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def edited(
    words: Words, kin: Kin, many: int, alphas: dict[str, float], rng: np.random.Generator, skip: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """`many` edited copies of every row: the texts, and the row (M,) each came from, ascending.

    alphas: for each edit of exchange, insert, swap and delete its share of the words; an edit with share 0 is not made.
    A pool holds many // edits + 1 copies by each edit, and `many` of the pool are drawn without replacement.
    """
    kinds = [kind for kind, share in alphas.items() if share > 0]
    pool = len(kinds) * (many // len(kinds) + 1)
    which = rng.random((len(words), pool)).argsort(1)[:, :many] % len(kinds)
    texts, origins = [], []
    for number, kind in enumerate(kinds):
        origin = np.repeat(np.arange(len(words)), (which == number).sum(1))
        some = words.take(origin)
        times = np.maximum(1, (alphas[kind] * some.lengths).astype(np.int64)) * (some.lengths > 0)
        if kind == "exchange":
            some = edits.exchange(some, times, kin, rng, skip)
        elif kind == "insert":
            some = edits.insert(some, times, kin, rng)
        elif kind == "swap":
            some = edits.swap(some, times, rng)
        else:
            some = edits.delete(some, alphas[kind], rng)
        texts += some.texts()
        origins.append(origin)
    origin = np.concatenate(origins)
    order = np.argsort(origin, kind="stable")
    return [texts[i] for i in order], origin[order]


@method(
    name="eda",
    title="EDA (easy data augmentation)",
    paper="arXiv:1901.11196",
    family="data/augment",
    year=2019,
    tier="core",
    status="stable",
    code="jasonwei20/eda_nlp",
)
class EDA(Curate):
    """Add copies of every row with a few words exchanged, put in, swapped or left out.

    ## What it does
    Each new row is a copy by one of four edits of its words, n = max(1, floor(alpha * words)):

        exchange   n different words, no stop words, for a synonym      insert   n synonyms of its words, anywhere
        swap       two words, n times                                   delete   each word with probability p

    The old rows stay. New ones have `augmented` 1, and the id of the row they came from in `parents`. Without `synonyms`
    those are the nearest words by their use in these very rows (mutual information, singular vectors).

    ## Claim
    On five English classification sets, with convolutional and recurrent networks, training on half of the rows and their
    copies is on average as accurate as on all rows without. The gain is largest below 500 rows.

    ## Cost
    No model. About 60 (n_aug + 1) bytes a word while it works, 12 GB for 1 M rows of 20 words and 9 copies: on one core
    about 3 million new words a second. Training sees n_aug + 1 times the rows.

    ## Fields worth tuning
    `n_aug` (the authors say 16 below 500 rows, 4 above 5,000) and the four shares (0.05 to 0.1).

    ## Watch out
    Encode after it: token columns are dropped, white space becomes one space. Labels of words (tags, spans) do not survive.
    A word that decides the class ("not") can go: raise nothing above 0.2. Synonyms learned from a few hundred rows are
    words used alike, which good and bad are too. For frozen or lightly tuned models (LoRA, prefixes: p541,
    arXiv:2303.02577) such copies help some tasks and harm others, the more the larger the model, the harder the task and
    the more heavily the text is altered: race it against none.
    Not reproduced here: with 40 rows of four made-up domains a bag of words gained half a point (n = 10, interval 0 to 1), and
    in trials a small convolution nothing.

    ## Differs from the paper
    Synonyms came from WordNet; give a mapping for that. Text is not cut down to lower-case letters. A synonym put in may be
    of a stop word only if that has one, and is drawn evenly (the authors' code takes the first it finds, and never puts it
    last). All four edits count alike in the pool, also where one is switched off. `typos` is ours.

    ## See also
    `mixup` for numbers, `class_generator` for wholly new texts, `augment_curriculum` for the order to show them in.
    """

    n_aug: int = 9
    """New rows made of each row; 0 changes nothing."""
    alpha_sr: float = 0.1
    """Share of a row's words exchanged for synonyms in one copy."""
    alpha_ri: float = 0.1
    """Synonyms put in, as a share of the row's words."""
    alpha_rs: float = 0.1
    """Swaps of two words, as a share of the row's words."""
    p_rd: float = 0.1
    """Probability of each word to be left out."""
    typos: float = 0.0
    """Probability of each character of a new row to be mistyped."""
    synonyms: dict[str, list[str]] | None = None
    """What may stand in for a word; none: the words used most alike in these rows."""
    nearest: int = 5
    """Without `synonyms`, how many words may stand in for one."""
    stop_words: bool = True
    """Leave the commonest English function words as they are when exchanging."""
    column: str = "text"
    """The text column that is edited."""

    ranges = {"alpha_sr": [0.02, 0.3, "log"], "n_aug": [1, 16, "log"]}
    null = {"n_aug": 0}
    tiny = {"world": "text", "n_aug": 2}

    def __call__(self, run: Run, data: Data) -> Data:
        alphas = {"exchange": self.alpha_sr, "insert": self.alpha_ri, "swap": self.alpha_rs, "delete": self.p_rd}
        for name in ("alpha_sr", "alpha_ri", "alpha_rs", "p_rd", "typos"):
            if not 0 <= getattr(self, name) <= 1:
                raise Bad(f"{name}={getattr(self, name)}: a share, from 0 to 1")
        if self.n_aug < 0 or self.nearest < 1:
            raise Bad(f"n_aug={self.n_aug}, nearest={self.nearest}: at least 0 copies, and at least 1 word to stand in")
        if not any(alphas.values()) and not self.typos:
            raise Bad("alpha_sr, alpha_ri, alpha_rs, p_rd and typos are all 0: every copy would be the row; raise one")
        data.need(self.column, who="eda")
        if not self.n_aug:
            return data
        words, rng = Words.of(data.text(self.column)), run.numpy("eda")
        if self.synonyms is not None:
            words, kin = edits.synonyms(words, self.synonyms)
        else:
            kin = edits.neighbours(words, self.nearest)
        skip = np.array([self.stop_words and w.lower() in edits.STOP for w in words.names], bool)
        if any(alphas.values()):
            texts, origin = edited(words, kin, self.n_aug, alphas, rng, skip)
        else:
            origin = np.repeat(np.arange(len(data)), self.n_aug)
            texts = words.take(origin).texts()
        if self.typos:
            texts = edits.typos(texts, self.typos, rng)
        return edits.added(data, {self.column: texts}, origin)
