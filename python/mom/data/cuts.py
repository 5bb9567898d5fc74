"""Where a text can be cut without changing its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["safe_cut", "safe_parts"]

#: Between ASCII characters of two classes: letters, digits, and the rest. (An apostrophe may begin the token ``'s``.)
_CLASS_ENDS = re.compile(
    r"(?<=[A-Za-z])(?=[!-@\[-`{-~])|(?<=[0-9])(?=[!-/:-~])|(?<=[!-&(-/:-@\[-`{-~])(?=[0-9A-Za-z])"
)
#: In text without white space, so many characters before the limit are searched for such a place.
_NEAR = 1 << 18


def safe_cut(text: str, start: int, limit: int) -> int | None:
    """The last place in (start, limit] where a cut changes no token of GPT-2's pre-tokenizer, None if there is none.

    Tokens of the pre-tokenizer have white space only at their beginning, or consist only of white space. So a token
    always ends before white space that follows another character. Later tokens do not depend on the text before this
    boundary. Text without white space is cut between letters, digits and punctuation, which share no token.
    """
    for mark in ("\n", " "):
        found = text.rfind(mark, start + 1, limit + 1)
        cut = start + len(text[start:found].rstrip(" \t\r\n")) if found > start else start
        if cut > start and not text[cut - 1].isspace():
            return cut
    near = max(start + 1, limit - _NEAR)
    return max((match.start() for match in _CLASS_ENDS.finditer(text, near, limit)), default=None)


def safe_parts(text: str, longest: int) -> Iterator[str]:
    """The text in parts of at most `longest` characters, cut at places as `safe_cut` finds them.

    A part without such a place is longer.
    """
    start = searched = 0
    while len(text) - searched > longest:
        cut = safe_cut(text, searched, searched + longest)
        if cut is None:
            searched += longest
        else:
            yield text[start:cut]
            start = searched = cut
    if start < len(text):
        yield text[start:]
