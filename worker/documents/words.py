"""Words: counts the words of a text and cuts it after a number of them."""

import re

# Where words have no spaces between them, each character counts; Thai counts by its runs.
LONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{LONE}]|[^\W{LONE}]+(?:['’-]\w+)*")
SENTENCE = re.compile(r"[.!?…][\"'”’»)\]]*(?=\s|$)|[。！？।]")


def count_words(text: str) -> int:
    return sum(1 for _ in WORD.finditer(text))


def first_words(text: str, max_words: int) -> str:
    """The text, cut after its last whole sentence within the limit, or else after a word."""
    end = None
    for number, word in enumerate(WORD.finditer(text), start=1):
        if number == max_words:
            end = word.end()
        if number > max_words:
            break
    else:
        return text
    assert end is not None
    # Up to the next word, so that the mark behind the last one is among what is looked at.
    within = text[: word.start()].rstrip()
    sentences = [each.end() for each in SENTENCE.finditer(within)]
    return within[: sentences[-1]] if sentences else text[:end]
