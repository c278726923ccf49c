"""Write `src/unicode_table.h` from what the `tokenizers` library does with every character.

The tokenizer in C must give the tokens of the tokenizer file, so its tables come from the library
that the Python runtime uses. Characters are unsettled, and refused by the C library, where their
treatment depends on their neighbours (combining marks that survive and may be reordered) or may
depend on the version of Unicode (unassigned in the version of this script's Python).

    python bindings/c/tools/make_unicode_table.py > bindings/c/src/unicode_table.h
"""

from __future__ import annotations

import sys
import textwrap
import unicodedata
from collections.abc import Iterable

import tokenizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

__all__ = ["main"]

_SWITCHES = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
_HANGUL = range(0xAC00, 0xD7A4)
_TWO_LETTERS = 0x130  # the only character whose lower case has two
CHARACTERS = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]


def normalised(switch: str) -> dict[int, str]:
    """What each character becomes when only `switch` is on."""
    normalizer = BertNormalizer(**{name: name == switch for name in _SWITCHES})
    return {code: normalizer.normalize_str(chr(code)) for code in CHARACTERS}


def ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run."""
    runs: list[tuple[int, int]] = []
    for code in sorted(codes):
        if runs and runs[-1][1] == code - 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs


def shifts(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """First, last, step and difference of runs of characters that move alike."""
    runs: list[tuple[int, int, int, int]] = []
    for code, delta in sorted(pairs):
        if runs:
            first, last, step, same = runs[-1]
            gap = code - last
            if delta == same and (gap == step or (first == last and gap <= 2)):
                runs[-1] = (first, code, gap, delta)
                continue
        runs.append((code, code, 1, delta))
    return runs


def write_table(kind: str, name: str, rows: Iterable[str]) -> None:
    """Write an array."""
    table = f"static const {kind} umdi_{name}[] = {{{', '.join(rows)}}};"
    sys.stdout.write(textwrap.fill(table, 100, break_on_hyphens=False) + "\n\n")


def write_ranges(name: str, codes: Iterable[int]) -> None:
    """Write a table of ranges."""
    rows = (f"{{0x{first:X}, 0x{last:X}}}" for first, last in ranges(codes))
    write_table("struct umdi_range", name, rows)


def main() -> None:
    """Write the header to standard output."""
    split = {code: BertPreTokenizer().pre_tokenize_str(f"a{chr(code)}b") for code in CHARACTERS}
    cleaned, chinese = normalised("clean_text"), normalised("handle_chinese_chars")
    bare, lower = normalised("strip_accents"), normalised("lowercase")
    mapped = [code for code in CHARACTERS if bare[code] not in ("", chr(code))]
    mapped = [code for code in mapped if code not in _HANGUL]
    sys.stdout.write(
        f"/* Made by tools/make_unicode_table.py from tokenizers {tokenizers.__version__} and\n"
        f" * Unicode {unicodedata.unidata_version}; do not edit. clang-format off */\n"
        "#include <stdint.h>\n\n"
        "struct umdi_range { uint32_t first, last; };\n"
        "struct umdi_shift { uint32_t first, last, step; int32_t delta; };\n"
        "struct umdi_decomposition { uint32_t character; uint16_t start, length; };\n\n"
    )
    write_ranges("space", (code for code in CHARACTERS if len(split[code]) == 2))
    write_ranges("punctuation", (code for code in CHARACTERS if len(split[code]) == 3))
    write_ranges("control", (code for code in CHARACTERS if not cleaned[code]))
    write_ranges("chinese", (code for code in CHARACTERS if chinese[code] != chr(code)))
    write_ranges("mark", (code for code in CHARACTERS if not bare[code]))
    unsettled = (
        code
        for code in CHARACTERS
        if any(map(unicodedata.combining, bare[code])) or unicodedata.category(chr(code)) == "Cn"
    )
    write_ranges("unsettled", unsettled)
    pool: list[int] = []
    rows = []
    for code in mapped:
        rows.append(f"{{0x{code:X}, {len(pool)}, {len(bare[code])}}}")
        pool += map(ord, bare[code])
    write_table("uint32_t", "decomposition_pool", (f"0x{code:X}" for code in pool))
    write_table("struct umdi_decomposition", "decomposed", rows)
    pairs = ((code, ord(lower[code][0]) - code) for code in CHARACTERS if lower[code] != chr(code))
    if [code for code in CHARACTERS if len(lower[code]) > 1] != [_TWO_LETTERS]:
        raise SystemExit("another character than U+0130 becomes two in lower case")
    moved = (f"{{0x{a:X}, 0x{b:X}, {step}, {delta}}}" for a, b, step, delta in shifts(pairs))
    write_table("struct umdi_shift", "lower_case", moved)


if __name__ == "__main__":
    main()
