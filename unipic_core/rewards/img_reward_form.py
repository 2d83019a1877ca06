"""What the pairwise judge is asked, the form that it has to answer in, and how its verdict is read."""

import re

FORM = re.compile(r"(?P<comparison>.*\S.*)\nBetter: (?P<verdict>[12])", re.DOTALL)


def ask(prompt: str) -> str:
    """The question about two pictures."""
    return (
        f"Which of the two pictures shows this better: {prompt}? "
        'Compare them, then write "Better: 1" or "Better: 2" as the last line.'
    )


def answer(comparison: str, verdict: int) -> str:
    """An answer in the asked form."""
    return f"{comparison}\nBetter: {verdict}"


def read_verdict(text: str) -> int | None:
    """1 or 2; None unless a comparison comes first and one verdict, as the last line."""
    found = FORM.fullmatch(text.strip())
    return int(found["verdict"]) if found and "Better:" not in found["comparison"] else None
