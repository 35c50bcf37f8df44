"""Names of classes in figures: in one line, not too long, with a font that has their characters, and never taken for a formula."""

from functools import lru_cache

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from ddcnn.errors import escaped


def label(name: str, most: int) -> str:
    """The name in ``most`` characters; those that no font has are written as code, such as ``\\u732b``."""
    _, missing = fallbacks(frozenset(name))
    pieces = [one.encode("unicode_escape").decode() if one in missing else escaped(one) for one in " ".join(name.split()) or '""']
    text = "".join(pieces)
    while len(text) > most:  # a code is left out as a whole
        pieces.pop()
        text = "".join(pieces) + "…"
    return text.replace("$", r"\$")  # after it was shortened: a single $ would begin a formula


@lru_cache
def fallbacks(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Font families, beside the usual one, that have some of the characters; and the characters that no font here has."""
    shown = frozenset(one for one in characters if escaped(one) == one and not one.isspace())
    missing = shown - _drawn_by(findfont(FontProperties()), shown)
    families = []
    for font in sorted(fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400, font.name)):
        if not missing:
            break
        if "Last Resort" not in font.name and (found := _drawn_by(font.fname, missing)):  # that one has a box for every character
            families.append(font.name)
            missing -= found
    return tuple(families), missing


def _drawn_by(path: str, characters: frozenset[str]) -> frozenset[str]:
    """The characters that a font can draw; none of one that Matplotlib cannot use, as fonts of coloured pictures."""
    try:
        font = get_font(path)
        font.set_size(10, 100)
        found = [one for one in characters if font.get_char_index(ord(one))]
        for one in found:
            font.load_char(ord(one))
    except (OSError, RuntimeError, ValueError):  # what FreeType and reading a file raise
        return frozenset()
    return frozenset(found)
