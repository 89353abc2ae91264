"""Pandoc's Markdown: text that comes from data or users, tables and blocks of code."""

import re
from collections.abc import Sequence

NUMBER = re.compile(
    r"–|[-−+]?\d[\d,.]*(e[-+]\d+| × 10)?[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]*%?(\s?±\s?[\d.]+%?| \[\S+ \S+\])?"
)
"""A cell that holds a number, with its deviation or interval if there is one, or none."""


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def escaped(text: str) -> str:
    """Text on one line that stands for itself, in a table's cell too."""
    return " ".join(re.sub(r"([\\|*_`$<>\[\]^~#@])", r"\\\1", text).split())


def typeset(text: str) -> str:
    """Text with a true minus (U+2212), and with powers of ten as written: 2 × 10⁻⁵ for 2e-05."""

    def power(match: re.Match[str]) -> str:
        exponent = str(int(match[2])).translate(SUPERSCRIPTS)
        return f"10{exponent}" if match[1] == "1" else f"{match[1]} × 10{exponent}"

    text = re.sub(r"(?<![\w.-])-(?=[\d.])", "−", text)
    return re.sub(r"(?<![\w.-])(\d(?:\.\d+)?)e([-+]\d+)\b", power, text)


def fenced(text: str, language: str = "") -> str:
    """A block of code, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(
    rows: Sequence[Sequence[str]],
    headings: Sequence[str],
    bold: Sequence[Sequence[bool]] | None = None,
) -> str:
    """A pipe table; pandoc takes the columns' widths from the rule if a line is long.

    Args:
        rows: cells as text, which is escaped; columns of numbers are aligned to the right.
        headings: one per column.
        bold: whether each cell of the rows is bold; none is by default.
    """
    rules = []
    for heading, *texts in zip(headings, *rows, strict=True):
        # A long column counts no more than 45: the short ones keep room for their longest word.
        line = "-" * (3 + min(45, max(map(len, [heading, *texts]))))
        numbers = texts and all(map(NUMBER.fullmatch, texts))
        rules.append(f"{line}:" if numbers else f":{line}")
    texts = [list(map(escaped, row)) for row in [headings, *rows]]
    for row, column in [] if bold is None else zip(*bold.nonzero(), strict=True):
        texts[row + 1][column] = f"**{texts[row + 1][column]}**"
    lines = ["| " + " | ".join(row) + " |" for row in texts]
    return "\n".join([lines[0], "|" + "|".join(rules) + "|", *lines[1:]])
