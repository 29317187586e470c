"""Grammars: heads of trees, shares of rules, and what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

from trainlore.primitives.grammar import Grammar, Node, chain_of, rules_of

TREES = [
    "(S (NP (DT the) (NN cat)) (VP (VBZ sees) (NP (DT a) (JJ red) (NN ball))))",
    "(S (NP (DT the) (NN dog)) (VP (VBZ sees) (NP (DT the) (NN ball))))",
    "(S (NP (DT a) (JJ old) (NN dog)) (VP (VBZ sleeps)))",
]


def test_rules_and_heads_of_a_tree():
    rules = dict(rules_of(TREES[0]))
    seen, ball, the = Node("VP", "sees", "VBZ"), Node("NP", "ball", "NN"), Node("DT", "the", "DT")
    assert rules[Node("S", "sees", "VBZ")] == (Node("NP", "cat", "NN"), seen)
    assert rules[seen] == (Node("VBZ", "sees", "VBZ"), ball) and rules[the] == ("the",)
    assert rules_of(TREES[0])[-1][0].label == "S"
    for bad in ("(S (NP a)", "(S )", "word", "(S ()) ", ""):
        with pytest.raises(ValueError, match="parse"):
            rules_of(bad)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_shares_of_rules_are_the_formula(smooth):
    grammar, rng = Grammar(), np.random.default_rng(0)
    for tree in TREES:
        grammar.add(rules_of(tree))
    dog = Node("NP", "dog", "NN")  # twice with its head; five noun phrases with a noun
    drawn = [grammar.choose(dog, smooth, rng) for _ in range(4000)]
    for rule in set(grammar.loose["NP", "NN"]):
        wanted = (2 * grammar.exact[dog][rule] / 2 + smooth * grammar.loose["NP", "NN"][rule] / 5) / (2 + smooth)
        assert drawn.count(rule) / 4000 == pytest.approx(wanted, abs=0.03)


def test_a_chain_is_its_words_one_after_another():
    grammar = Grammar()
    grammar.add(chain_of(" a  b c"))
    a, b, c = (Node("S", w, "W") for w in "abc")
    assert chain_of(" a  b c") == [(c, ("c",)), (b, ("b", c)), (a, ("a", b))] and chain_of("") == []
    assert grammar.write(("a", b), 0.0, 9, np.random.default_rng(0)) == "a b c"
    assert grammar.write(("a", b), 0.0, 2, np.random.default_rng(0)) is None


def test_what_is_counted_later_is_drawn_too():
    grammar, rng = Grammar(), np.random.default_rng(0)
    grammar.add(chain_of("a b"))
    a = Node("S", "a", "W")
    assert {grammar.choose(a, 0.0, rng) for _ in range(20)} == {("a", Node("S", "b", "W"))}
    grammar.add(chain_of("a c"))
    assert len({grammar.choose(a, 0.0, rng) for _ in range(50)}) == 2
