"""Byte-pair vocabularies that know given words as one token each.

The trainer of `tokenizers` numbers its alphabet differently in every process, and a model is worth nothing with
another numbering; this one gives the same vocabulary every time.
"""

from collections.abc import Iterable, Sequence


def byte_pairs(alphabet: Iterable[str], words: Iterable[Sequence[str]]) -> tuple[dict[str, int], list[str]]:
    """(ids of all tokens, merges as in merges.txt), for words given as sequences of symbols of the alphabet."""
    ranks = {}
    for word in words:
        symbols = list(word)
        while len(symbols) > 1:
            pairs = list(zip(symbols, symbols[1:], strict=False))
            pair = min((pair for pair in pairs if pair in ranks), key=ranks.get, default=pairs[0])
            ranks.setdefault(pair, len(ranks))
            place = pairs.index(pair)
            symbols[place : place + 2] = ["".join(pair)]
    tokens = dict.fromkeys([*alphabet, *map("".join, ranks)])
    return {token: number for number, token in enumerate(tokens)}, [" ".join(pair) for pair in ranks]
