"""Whether what one model says of tokens can be held against what another says of them."""

from __future__ import annotations

from trainlore.errors import Bad
from trainlore.nouns import Model


def same_tokens(student: Model, teacher: Model, who: str, role: str = "teacher") -> None:
    """Raise Bad where the two know other tokens: the teacher would read, and answer in, another language.

    Compared are how many tokens the networks know and, where both have a tokenizer, which number each token has. `who`
    asks and `role` names the teacher, both for the sentence. Models that read no tokens pass.
    """
    if student.input != "input_ids":
        return
    theirs, mine = (getattr(getattr(m.net, "config", None), "vocab_size", None) for m in (teacher, student))
    way = f"they must share a vocabulary, so give {who} a {role} with the student's tokenizer"
    if theirs != mine and None not in (theirs, mine):
        raise Bad(f"the {role} knows {theirs} tokens and the student {mine}: {way}")
    if teacher.tokenizer is None or student.tokenizer is None or teacher.tokenizer is student.tokenizer:
        return
    said, known = (dict(m.tokenizer.get_vocab()) for m in (teacher, student))
    if odd := next((word for word, at in said.items() if known.get(word) != at), None):
        here = f"number {known[odd]}" if odd in known else "none"
        raise Bad(f"token {odd!r} is number {said[odd]} of the {role}'s and {here} of the student's: {way}")
