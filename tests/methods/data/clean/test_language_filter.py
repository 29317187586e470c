"""The language filter: what is kept, why the rest went, and a missing library named."""

import sys

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.clean import language_filter
from trainlore.methods.data.clean.language_filter import LanguageFilter
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.runs import Run

TEXTS = {
    "en": "The committee has decided that the meeting will take place next week, and everybody is asked to bring notes.",
    "de": "Der Ausschuss hat beschlossen, dass die Sitzung n\u00e4chste Woche stattfindet, und alle sollen Notizen mitbringen.",
    "fr": "Le comit\u00e9 a d\u00e9cid\u00e9 que la r\u00e9union aura lieu la semaine prochaine, et chacun est pri\u00e9 d'apporter ses notes.",
    "ru": "\u041a\u043e\u043c\u0438\u0442\u0435\u0442 \u0440\u0435\u0448\u0438\u043b, \u0447\u0442\u043e \u0437\u0430\u0441\u0435\u0434\u0430\u043d\u0438\u0435 \u0441\u043e\u0441\u0442\u043e\u0438\u0442\u0441\u044f \u043d\u0430 \u0441\u043b\u0435\u0434\u0443\u044e\u0449\u0435\u0439 \u043d\u0435\u0434\u0435\u043b\u0435.",
}
EMPTY = ["", "  ", "123 -- !"]


@pytest.fixture
def library():
    return pytest.importorskip("py3langid")


def test_kept_are_those_wanted_and_the_reason_stands(library):
    data = Data.of([*TEXTS.values(), *EMPTY])
    kept = LanguageFilter(languages=("de", "ru"))(data)
    assert kept.ids.tolist() == [1, 3] and (kept["language_chance"] >= 0.65).all()
    gone = kept.dropped()
    assert gone["language"].to_pylist() == ["en", "fr", "", "", ""] and (gone["language_chance"][2:] == 0).all()
    assert len(LanguageFilter(sure=0.0)(data)) == 7


def test_the_chance_is_the_sum_over_the_wanted_ones(library):
    known = dict(language_filter.identifier().rank(TEXTS["fr"][:20]))
    _, chance = language_filter.shares([TEXTS["fr"][:20]], ("fr", "ca"))
    assert chance[0] == pytest.approx(known["fr"] + known["ca"]) and sum(known.values()) == pytest.approx(1, abs=1e-4)
    fewer = LanguageFilter(languages=("ca",), among=("ca", "ru"), sure=0.5)(Data.of([TEXTS["fr"], TEXTS["ru"]]))
    assert fewer.ids.tolist() == [0] and language_filter.identifier().labels == language_filter.identifier(()).labels


def test_only_the_beginning_counts(library):
    long = TEXTS["en"] + TEXTS["ru"] * 100_000
    assert len(LanguageFilter(characters=100)(Data.of([long, long]))) == 2
    assert len(LanguageFilter()(Data.of([long]))) == 0


def test_bad_fields_are_named(library):
    for fields, said in (
        ({"languages": ("english",)}, "'english' is not known"),
        ({"languages": ()}, "name a language"),
        ({"sure": 2.0}, "sure=2"),
        ({"characters": 0}, "characters=0"),
        ({"among": ("fr",)}, "'en' is wanted"),
        ({"column": "story"}, "story"),
    ):
        with pytest.raises(ValueError, match=said):
            LanguageFilter(**fields)(Data.of(["x"]))


def test_without_the_library_it_names_the_extra(monkeypatch):
    for name in ("py3langid", "py3langid.langid"):
        monkeypatch.setitem(sys.modules, name, None)
    language_filter._whole.cache_clear()
    with pytest.raises(ValueError, match=r"trainlore\[language\]"):
        LanguageFilter()(Data.of(["x"]))


def measure(seed: int, arm: str) -> float:
    """The share of English among the rows kept of fragments of 5 to 12 words in three languages."""
    rng = np.random.default_rng(seed)
    fragments, code = [], rng.choice(["en", "de", "fr"], 300)
    for c in code:
        words = TEXTS[c].split()
        at, size = rng.integers(0, 8), rng.integers(5, 13)
        fragments.append(" ".join(words[at : at + size]))
    data = Data.of(fragments)
    kept = LanguageFilter(sure=0.5)(Run(seed), data) if arm == "method" else RandomRows(keep=0.33)(Run(seed), data)
    return float((code[kept.ids] == "en").mean())


CLAIM = Claim(
    method="language_filter",
    world="languages",
    rival="random_rows",
    quantity="share of English among the rows kept",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
