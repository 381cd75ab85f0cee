"""Meaningless prompts and a meaningless corpus, in four languages."""

from __future__ import annotations

import functools
import itertools
import random

WORDS = {
    "en": "the mill harbour keeper river report storm turned closed counted at night and morning "
    "water grain boat rain wheel slowly three seven translate summarize English French German to",
    "fr": "le moulin port gardien rivière rapport orage tournait fermé compté la nuit et matin "
    "eau grain bateau pluie roue lentement trois sept",
    "de": "die Mühle Hafen Wärter Fluss Bericht Sturm drehte geschlossen zählte in Nacht und "
    "Morgen Wasser Korn Boot Regen Rad langsam drei sieben",
    "zh": "今天 天气 很好 磨坊 港口 河流 报告 暴风雨 夜里 早上 水 谷物 船 雨 轮子 慢慢地",
}


@functools.cache
def corpus() -> tuple[str, ...]:
    """Some hundred meaningless sentences in four languages."""
    draw = random.Random(7)
    lines = []
    for language, words in WORDS.items():
        space = "" if language == "zh" else " "
        for _ in range(150):
            line = space.join(draw.choice(words.split()) for _ in range(draw.randint(4, 14)))
            lines.append(line + draw.choice(".!?,;"))
    return tuple(lines)


def sentences(num: int, language: str = "en", seed: int = 0) -> list[str]:
    """Prompts of very different lengths, some of them alike."""
    draw = random.Random(f"{seed} {language}")
    words = WORDS[language].split()
    lengths = itertools.islice(itertools.cycle([3, 21, 9, 8, 33, 20]), num)
    return [" ".join(draw.choice(words) for _ in range(length)) for length in lengths]
