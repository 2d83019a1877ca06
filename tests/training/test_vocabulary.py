import itertools

from transformers import CLIPTokenizer

from unipic_core.training.scratch import write_clip_tokenizer
from unipic_core.training.vocabulary import byte_pairs


def test_every_word_is_one_token_in_any_order(tmp_path):
    words = ["and", "triangle", "an", "triangles", "tri"]
    for number, order in enumerate(itertools.permutations(words)):
        folder = tmp_path / str(number)
        write_clip_tokenizer(folder, list(order), 77, "!")
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        assert [len(tokenizer.tokenize(word)) for word in words] == [1] * len(words)
        if number == 20:
            break


def test_repeated_pairs_merge_from_the_left():
    vocabulary, merges = byte_pairs("ab", ["aaab"])
    assert merges == ["a a", "aa a", "aaa b"]
    assert vocabulary == {"a": 0, "b": 1, "aa": 2, "aaa": 3, "aaab": 4}
