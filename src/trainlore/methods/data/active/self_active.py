from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.continuing import continued, prompts
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method

READ = 64  # letters of a text for each token of the window: what lies beyond them the network would not read


@method(
    name="self_active",
    title="Self-active pretraining (AfroLM)",
    paper="arXiv:2211.03263",
    lit="p557",
    family="data/active",
    year=2022,
    tier="llm",
    status="stable",
    code="bonaventuredossou/MLM_AL",
)
class SelfActive(Fit):
    """Pretrain in rounds, each on more text: the network itself rewrites the ends of texts it was not trained on.

    ## What it does
    Every round splits the texts of each domain anew into training and held-out texts (4 to 1) and trains from the
    weights given. Before the next round the network is learner and oracle at once: for as many draws as there are
    held-out texts,

        prompt    a held-out text (drawn with replacement) without its last int(0.15 n) + 1 words
        new text  the prompt and the likeliest words, one after another, as many as were cut off

    and the new texts join those of their domain, each once. The network of the last round is handed on.

    ## Claim
    23 African languages, a network trained from scratch on 14 times less data than AfriBERTa, XLM-R and mBERT is better
    than them on named entities, topics and sentiment. The rounds were not compared with training once.

    ## Cost
    `rounds` trainings from the start, and a forward for each word made.

    ## Fields worth tuning
    `rounds` (3 in the paper) against the steps of each.

    ## Watch out
    It teaches the network its own likeliest guesses, the opposite of asking where it is unsure, and nobody checks them.
    How many were made, and how many of them were new, is in the model's `about["self_active"]`. Here, on small texts of
    two domains, held-out loss was 0.01 higher than after as many steps on the given texts alone (n = 8, p = 0.34).
    Texts of more than 64 letters a token of the window are cut there first.

    ## Differs from the paper
    Follows the authors' code: the paper speaks of an oracle, the code completes held-out texts. Words are counted in
    tokens of the tokenizer where a network completes by tokens; causal networks go on writing, masked ones fill a mask
    at the end. At most `most` texts a domain and round (the code: as many as held out up to 10,000, else 2,000).

    ## See also
    `self_training`, `rest_em`.
    """

    rounds: int = 3
    """Trainings; texts are made between them."""
    held_out: float = 0.2
    """Share of each domain that is not trained on in a round, but completed."""
    cut: float = 0.15
    """Share of a text's words that is made anew; one more word is."""
    most: int = 2000
    """Texts made of a domain in a round, at most."""
    inner: tuple[Part, ...] = ()
    """Parts of every training; a masked network needs one that masks."""
    steps: int = 1000
    """Steps of each training."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate of each training."""

    tiny = {"world": "text", "rounds": 2, "steps": 5, "batch_size": 8, "most": 4}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        data.need("text", who="self_active")
        if model.kind not in ("causal", "masked"):
            raise Bad(f"self_active is for causal and masked models, not a {model.kind}")
        if self.rounds < 1 or self.most < 1 or not 0 < self.held_out < 1 or not 0 <= self.cut < 1:
            said = f"rounds={self.rounds}, most={self.most}, held_out={self.held_out}, cut={self.cut}"
            raise Bad(f"{said}: give at least 1, at least 1, between 0 and 1, and at least 0 and below 1")
        if len(data) < 2:
            raise Bad("self_active needs at least 2 rows: some to train on, some to complete")
        texts = [t[: READ * (model.window or 1 << 24)] for t in data.text("text")]
        domain = np.asarray(data["domain"]).astype(str) if "domain" in data.columns else np.full(len(texts), "")
        told = []
        for turn in range(self.rounds):
            out = self._held_out(run, domain, turn)
            now = model.copy()
            rows = Data.of([t for t, hidden in zip(texts, out, strict=True) if not hidden])
            how = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
            now = run.fit(now, now.encode(rows, truncate=True), *self.inner, **how)
            if turn == self.rounds - 1:
                break
            made, of = self._made(run, now, texts, domain, out, turn)
            seen = set(zip(texts, domain, strict=True))
            fresh = [m for m in dict.fromkeys(zip(made, of, strict=True)) if m not in seen]
            texts, domain = texts + [t for t, _ in fresh], np.append(domain, [d for _, d in fresh]).astype(str)
            told.append({"made": len(made), "new": len(fresh)})
        now.about["self_active"] = told
        return now

    def _held_out(self, run: Run, domain: np.ndarray, turn: int) -> np.ndarray:
        """Which texts are not trained on in this round: the share of each domain, but never all of one, bool (N,)."""
        out = np.zeros(len(domain), bool)
        for name in np.unique(domain):
            mine = run.numpy("self_active", "split", turn, str(name)).permutation(np.flatnonzero(domain == name))
            out[mine[: min(round(self.held_out * len(mine)), len(mine) - 1)]] = True
        return out

    def _made(
        self, run: Run, now: Model, texts: list[str], domain: np.ndarray, out: np.ndarray, turn: int
    ) -> tuple[list[str], list[str]]:
        """New texts and their domains."""
        drawn: list[int] = []
        for name in np.unique(domain):
            mine = np.array([i for i in np.flatnonzero(out & (domain == name)) if len(texts[i].split()) > 1])
            if len(mine):
                rng = run.numpy("self_active", "draw", turn, str(name))
                drawn += mine[rng.integers(len(mine), size=min(len(mine), self.most))].tolist()
        starts, cut = prompts([texts[i] for i in drawn], self.cut)
        keep = [i for i, s in enumerate(starts) if s]
        made = continued(run, now, [starts[i] for i in keep], [cut[i] for i in keep])
        return made, [str(domain[drawn[i]]) for i in keep]
