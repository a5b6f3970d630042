"""Text of models and data made harmless: what would act on a page or a terminal is shown instead."""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    """``text`` with control characters as pictures (ESC becomes ␛) and invisible ones that reorder text as ⟨U+202E⟩.

    New lines and tabs stay. HTML and Markdown marks are escaped elsewhere.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or (code >= 32 and unicodedata.category(character) not in ("Cc", "Cf", "Cs")):
        return character
    if code < 32:
        return chr(0x2400 + code)
    return "␡" if code == 127 else f"⟨U+{code:04X}⟩" if character not in JOINERS else character


#: format characters that emoji and several scripts are written with
JOINERS = "\u200c\u200d"
