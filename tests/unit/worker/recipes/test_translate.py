"""Whole documents through a real engine: the demo translator, and a tiny random NLLB."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import transformers as hf

from db.outcome import Answer
from db.states import JobState
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Choice, Output
from tests import checkpoints
from tests.running.translator import Translator
from tests.running.workers import ROOT
from worker.documents.translation.glossary import Glossary
from worker.recipes import Work
from worker.recipes.draft import Draft
from worker.recipes.translate import translate

SIX = {
    "The tide is low.": "La marée est basse.",
    "The ferry waits at the harbour.": "Le bac attend au port.",
    "Bartholomew gave the old key to the baker.": (
        "Bartholomew a donné la vieille clé au boulanger."
    ),
    "Did the girls find Nell's hat?": "Est-ce que les filles ont trouvé le chapeau de Nell ?",
    "The tide is high.": "La marée est haute.",
    "The baker waits.": "Le boulanger attend.",
}


@pytest.fixture(scope="module")
def translator() -> Iterator[Translator]:
    checkpoint = str(ROOT / "examples" / "models" / "translator")
    it = Translator(EngineSpec(alias="toy", checkpoint=checkpoint, device="cpu", threads=1))
    yield it
    it.client.stop()


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Translator]:
    folder = checkpoints.build("nllb", Path(tmp_path_factory.mktemp("nllb")))
    it = Translator(EngineSpec(alias="nllb", checkpoint=str(folder), device="cpu", threads=1))
    yield it
    it.client.stop()


def report(answer: Answer) -> dict[str, Any]:
    document: dict[str, Any] = answer.provenance["document"]
    return document


def test_a_paragraph_of_six_sentences_comes_back_as_six(translator: Translator) -> None:
    answer = translator.answer(" ".join(SIX))
    assert answer.output == " ".join(SIX.values())
    assert answer.finish_reason == "stop"
    assert report(answer)["num_sentences"] == report(answer)["num_translated"] == 6


def test_a_letter_comes_back_in_its_layout(translator: Translator) -> None:
    letter = "  {}\r\n\r\n- {}\r\n- {}\r\n\r\n> {} {}\r\n\t{}  \r\n"
    answer = translator.answer(letter.format(*SIX))
    assert answer.output == letter.format(*SIX.values())
    found = report(answer)
    assert found["source_characters"] == len(letter.format(*SIX))
    assert found["translated_characters"] == sum(map(len, SIX))
    assert found["kept_characters"] == len(letter.format("", "", "", "", "", ""))


def test_subtitles_come_back_cue_for_cue(translator: Translator) -> None:
    cues = (
        "1\n00:00:07,882 --> 00:00:10,510\n{}\n{}\n\n"
        "2\n00:00:10,593 --> 00:00:12,804\n- {}\n- {}\n\n3\n00:00:13,000 --> 00:00:14,000\n{} {}\n"
    )
    answer = translator.answer(cues.format(*SIX))
    assert answer.output == cues.format(*SIX.values())
    assert report(answer)["format"] == "subtitles"


@pytest.mark.parametrize("sentence", SIX)
def test_a_sentence_is_translated_alone_as_in_its_document(
    translator: Translator, sentence: str
) -> None:
    assert translator.answer(sentence).output == SIX[sentence]


def test_each_sentence_is_asked_for_once(translator: Translator) -> None:
    one = translator.answer("The tide is low.")
    many = translator.answer("The tide is low. " * 50)
    assert many.output == "La marée est basse. " * 50
    assert many.completion_tokens == one.completion_tokens
    assert report(many)["num_sentences"] == report(many)["num_translated"] == 50


def test_a_document_with_more_sentences_than_a_step_holds_is_translated(nllb: Translator) -> None:
    words = checkpoints.WORDS["en"].split()
    lines = [f"The {one} {other}." for one in words[:18] for other in words[:16]]
    answer = nllb.answer("\n".join(lines), max_new_tokens=2, num_beams=1)
    assert report(answer)["num_sentences"] == len(lines) == 288
    assert answer.output.count("\n") == 287


def test_several_returned_sequences_are_several_documents(translator: Translator) -> None:
    answer = translator.answer(
        "The tide is low.\n\nThe ferry waits.", num_beams=3, num_return_sequences=2
    )
    assert len(answer.alternatives) == 1
    assert [each.count("\n\n") for each in (answer.output, *answer.alternatives)] == [1, 1]


def test_placeholders_come_back_to_the_letter(translator: Translator) -> None:
    source = (
        "Hello {name}, the tide is low. Did %s find Nell's hat? The ferry waits, see "
        "https://x.org/a?b=c or bob@example.org. **The tide** is `low. Really`. <b>The baker</b> "
        "waits for ${x} and {{ y }}."
    )
    answer = translator.answer(source)
    for each in (
        "{name}",
        "%s",
        "https://x.org/a?b=c",
        "bob@example.org",
        "`low. Really`",
        "<b>",
        "</b>",
        "${x}",
        "{{ y }}",
    ):
        assert answer.output.count(each) == 1, each
    assert answer.output.count("**") == 2
    found = report(answer)
    assert found["num_sentences"] == found["num_translated"] == 5
    assert found["num_placeholders"] == 11, "the signs of bold words among them"
    assert found["num_retried"] > 0, "this model knows no placeholder"
    assert found["missed"] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The tide is low.", "La marée\n\n- est basse."),  # alone, it is the model's answer
        (" The tide is low.\n", " La marée\n\n- est basse.\n"),
        ("- The tide is low.\n", "- La marée - est basse.\n"),
        (
            "1\n00:00:01,000 --> 00:00:02,000\nThe tide is low.\n",
            "1\n00:00:01,000 --> 00:00:02,000\nLa marée - est basse.\n",
        ),
        ("The tide is low.\n\n12\n", "La marée - est basse.\n\n12\n"),
    ],
)
def test_an_answer_on_several_lines_breaks_no_layout(
    translator: Translator, text: str, expected: str
) -> None:
    contract = {"text": text, "source_language": "en", "target_language": "fr"}
    work = Work(uuid4(), "translate", contract, translator.client.card, count(1))
    steps = translate(work)
    (request,) = next(steps)
    assert request.text == "The tide is low."
    choice = Choice("La marée\n\n- est basse.", "stop", 6)
    with pytest.raises(StopIteration) as ended:
        steps.send((Output(request_id=request.id, choices=(choice,)),))
    assert ended.value.value.output == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://x.org/a",
        "```\nThe tide is low.\n```",
        "12345\n\n67890",
        "bob@example.org",
        "{name}",
    ],
)
def test_a_source_without_words_is_never_sent(translator: Translator, text: str) -> None:
    num_steps = translator.client.progress.num_prompt_tokens
    answer = translator.answer(text)
    assert answer.output == text
    assert (answer.prompt_tokens, answer.completion_tokens) == (0, 0)
    assert translator.client.progress.num_prompt_tokens == num_steps
    assert report(answer)["num_sentences"] == 0


def test_fenced_code_among_sentences_stays(translator: Translator) -> None:
    code = "```python\nprint('The tide is high. The baker waits.')\n```"
    answer = translator.answer(f"The tide is low.\n\n{code}\n\nThe baker waits.")
    assert answer.output == f"La marée est basse.\n\n{code}\n\nLe boulanger attend."


def test_a_word_of_a_hundred_thousand_characters_ends(nllb: Translator) -> None:
    answer = nllb.answer("The mill. " + "A" * 100_000 + ". The boat.", max_new_tokens=2)
    found = report(answer)
    assert found["num_sentences"] == 3
    assert found["num_cut"] > 0
    assert answer.finish_reason == "length"


def test_a_sentence_longer_than_the_model_is_cut_at_words(nllb: Translator) -> None:
    limit = nllb.client.card.max_context_tokens
    assert limit is not None
    answer = nllb.answer("the mill and " * limit + "the boat.", max_new_tokens=2)
    assert report(answer)["num_cut"] > 0


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The tide is low. The baker waits.", "not_subtitles"),
        ("0:00:01.000,0:00:02.000\nThe tide is low.\n", "not_subtitles"),
        ("WEBVTT\n\nNOTE nothing is said\n", None),
        ("Film\n\n1\n00:00:01,000 --> 00:00:02,000\nThe tide is low.\n", None),
    ],
)
def test_a_text_without_a_cue_is_no_subtitles(
    translator: Translator, text: str, code: str | None
) -> None:
    outcome = translator.outcome(text, format="subtitles")
    assert outcome.error_code == code
    if code is None:
        assert outcome.answer is not None
        assert outcome.answer.output == text.replace("The tide is low.", "La marée est basse.")


def test_an_error_of_a_request_is_its_jobs_error(nllb: Translator) -> None:
    outcome = nllb.outcome("The mill. The boat.", target_language="tlh")
    assert (outcome.state, outcome.error_code) == (JobState.FAILED, "unknown_language")


def test_the_source_language_is_detected(translator: Translator, nllb: Translator) -> None:
    answer = translator.answer(" ".join(SIX), source_language="auto", languages=("en>fr",))
    assert answer.output == " ".join(SIX.values())
    assert report(answer)["source_language"] == "en"
    assert report(answer)["detected_confidence"] > 0.9
    german = "Die Flut ist niedrig und die Fähre wartet im Hafen."
    answer = nllb.answer(german, source_language="auto", max_new_tokens=2)
    assert report(answer)["source_language"] == "de"
    named = nllb.answer(german, source_language="deu_Latn", max_new_tokens=2)
    assert answer.output == named.output


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("Die Flut ist niedrig und die Fähre wartet im Hafen.", ("en>fr",)),
        ("Zahlung", ()),
        ("12345 67890 12345 67890", ()),
    ],
)
def test_a_language_that_is_not_clear_is_an_error_with_candidates(
    translator: Translator, text: str, languages: tuple[str, ...]
) -> None:
    outcome = translator.outcome(text, source_language="auto", languages=languages)
    assert (outcome.state, outcome.error_code) == (JobState.FAILED, "language_unclear")
    message = outcome.error_message or ""
    assert "candidates: " in message
    assert "source_language" in message
    assert text not in message


@pytest.mark.parametrize(
    "user_case",
    [
        "Hi George. Roy, got to talk to you.",
        "Check it out, folks!\nA photo of us from my wedding.",
        "The missing mobster was at your wedding?\nThe whole town is looking for him.",
    ],
)
def test_no_sentence_is_dropped(nllb: Translator, user_case: str) -> None:
    """Each sentence is answered as it would be alone."""

    def alone(text: str) -> str:
        return nllb.answer(text, max_new_tokens=12).output

    joint = "\n" if "\n" in user_case else " "
    one, other = user_case.split("\n") if "\n" in user_case else ("Hi George.", user_case[11:])
    answer = nllb.answer(user_case, max_new_tokens=12)
    assert answer.output == joint.join(" ".join(alone(each).split()) for each in (one, other))
    assert report(answer)["num_sentences"] == 2


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Translator]:
    """A model that ends at once, unless it may not."""
    folder = checkpoints.build("marian", Path(tmp_path_factory.mktemp("silent")))
    model = hf.MarianMTModel.from_pretrained(folder)
    model.final_logits_bias[0, model.config.eos_token_id] = 1000.0
    model.save_pretrained(folder)
    it = Translator(EngineSpec(alias="silent", checkpoint=str(folder), device="cpu", threads=1))
    yield it
    it.client.stop()


def test_a_sentence_that_came_out_empty_is_asked_for_another_way(silent: Translator) -> None:
    text = "The mill turned.\n\nThe boat closed."
    answer = silent.answer(text)
    first, second = answer.output.split("\n\n")
    assert first
    assert second
    assert report(answer)["num_asked_again"] == 2
    assert report(answer)["empty"] == []
    assert answer.signals.num_empty_parts == 0


def test_a_sentence_that_stays_empty_is_reported(translator: Translator) -> None:
    text = "The ferry waits at the harbour. The tide is low."
    answer = translator.answer(text, stop=["La mar"])
    assert answer.output == "Le bac attend au port. "
    assert report(answer)["empty"] == [{"sentence": 1, "start": 32, "end": 48}]
    assert text[32:48] == "The tide is low."
    assert report(answer)["num_asked_again"] == 1
    assert answer.signals.num_empty_parts == 1


def test_a_translation_has_signals_over_all_its_sentences(translator: Translator) -> None:
    answer = translator.answer(" ".join(SIX) + " Nell Nell Nell Nell.")
    signals = answer.signals
    assert signals.num_missed_placeholders == signals.num_empty_parts == 0
    assert signals.length_ratio == pytest.approx(1.1, abs=0.3)
    assert signals.untranslated_share is not None
    assert signals.untranslated_share < 0.2
    cut = translator.answer(" ".join(SIX), max_new_tokens=3)
    assert cut.signals.num_cut_parts == 6


def test_a_guard_asks_for_a_part_again_with_other_settings(translator: Translator) -> None:
    text = " ".join(SIX)
    again = {"actions": {"cut_by_length": "retry"}, "retry_with": {"max_new_tokens": 60}}
    flagged = translator.answer(text, max_new_tokens=3, guards={})
    retried = translator.answer(text, max_new_tokens=3, guards=again)
    assert flagged.signals.suspicions[:1] == ("cut_by_length",)
    assert "guards" not in flagged.provenance
    assert retried.output == " ".join(SIX.values())
    assert retried.signals.suspicions == ()
    assert retried.provenance["guards"] == {"num_retried": 6, "num_better": 6}
    assert retried.prompt_tokens == 2 * flagged.prompt_tokens, "what was dropped was computed, too"


def test_a_retry_that_is_no_better_is_dropped_and_may_fail_the_job(translator: Translator) -> None:
    again = {"actions": {"cut_by_length": "retry"}, "retry_with": {"max_new_tokens": 3}}
    flagged = translator.answer("The tide is low.", max_new_tokens=3, guards={})
    retried = translator.answer("The tide is low.", max_new_tokens=3, guards=again)
    assert retried.output == flagged.output
    assert retried.signals.suspicions == flagged.signals.suspicions
    assert retried.provenance["guards"] == {"num_retried": 1, "num_better": 0}
    refused = {**again, "retry_with": {"max_new_tokens": 100_000}}
    answer = translator.answer("The tide is low.", max_new_tokens=3, guards=refused)
    assert answer.output == flagged.output, "what the engine refuses costs nothing"
    fatal = {**again, "actions": {"cut_by_length": "retry_or_fail"}}
    outcome = translator.outcome("The tide is low.", max_new_tokens=3, guards=fatal)
    assert (outcome.state, outcome.error_code) == (JobState.FAILED, "quality_guard")


def test_a_translation_uses_the_terms_of_its_glossary(translator: Translator) -> None:
    text = "The ferry waits at the harbour. The tide is low.\n\n- Did the girls find Nell's hat?"
    glossary = {"harbour": "havre", "tide": "marée", "girls": None}
    answer = translator.answer(text, glossary=glossary)
    found = report(answer)
    assert "havre" in answer.output
    assert "port" not in answer.output
    assert "girls" in answer.output
    # What the model says by itself is asked for once.
    assert "La marée est basse." in answer.output
    assert (found["num_terms"], found["num_retried"], found["missed_terms"]) == (3, 2, [])
    assert answer.signals.num_missed_terms == 0
    assert answer.output.count("\n\n- ") == 1


def test_terms_and_placeholders_in_one_sentence_are_both_kept(translator: Translator) -> None:
    answer = translator.answer(
        "Hello {name}, the ferry waits at the **harbour**, see https://x.org/harbour.",
        glossary={"harbour": "havre", "ferry": None},
    )
    assert answer.output.count("{name}") == 1
    assert answer.output.count("https://x.org/harbour") == 1
    assert "ferry" in answer.output
    assert "**havre**" in answer.output
    assert report(answer)["missed"] == report(answer)["missed_terms"] == []


def test_a_term_that_cannot_be_kept_is_reported(translator: Translator) -> None:
    answer = translator.answer(
        "The tide is low. The ferry waits at the harbour.",
        glossary={"harbour": "havre"},
        stop=["havre", "au "],
        guards={},
    )
    # What is cut within the parts around a term is no miss of it.
    assert report(answer)["missed_terms"] == []
    assert "havre" in answer.output


def test_a_sentence_that_is_only_a_term_is_its_translation(translator: Translator) -> None:
    answer = translator.answer("Tidemill. The tide is low.", glossary={"Tidemill": None})
    assert answer.output == "Tidemill. La marée est basse."
    whole = translator.answer("Harbour", glossary={"harbour": "havre"})
    assert whole.output == "Havre"
    assert whole.finish_reason == "stop"


def test_a_model_that_keeps_placeholders_keeps_terms_in_its_sentence() -> None:
    """The second way: what stands for a term is read by the model, and is then the term."""
    terms = Glossary({"harbour": "havre"}).find("The {T1} harbour")
    draft = Draft("The {T1} harbour", 100, (), terms)
    draft.hold_terms()
    (held,) = draft.pending()
    assert held.words == "The {T1} {TT1}"
    choice = Choice("Le {T1} {TT1}.", "stop", 3)
    held.take(Output(request_id=1, choices=(choice,)), is_last=True)
    assert draft.choice(0) == "Le {T1} havre."
    assert draft.miss_terms() == {}


def test_a_way_through_two_models_is_one_after_the_other(
    nllb: Translator, translator: Translator
) -> None:
    """Each sentence is what the second makes of what the first makes of it, alone."""
    text = "Die Mühle drehte.\n\n- Der Hafen."
    route = [
        {"model": "nllb", "source_language": "de", "target_language": "en", "languages": []},
        {"model": "toy", "source_language": "en", "target_language": "fr", "languages": []},
    ]
    answer = nllb.answer(
        text, source_language="de", route=route, max_new_tokens=8, others=(translator,)
    )

    def alone(sentence: str) -> str:
        middle = nllb.answer(sentence, source_language="de", target_language="en", max_new_tokens=8)
        drafted = translator.client_answer(middle.output, max_new_tokens=8)
        return " ".join(drafted.split())

    first, second = "Die Mühle drehte.", "Der Hafen."
    assert answer.output == f"{alone(first)}\n\n- {alone(second)}"
    assert [each["model"] for each in report(answer)["route"]] == ["nllb", "toy"]
    assert all("checkpoint" in each for each in report(answer)["route"])
    assert report(answer)["source_language"] == "de"


def test_a_job_goes_on_where_its_next_model_is(nllb: Translator, translator: Translator) -> None:
    route = [
        {
            "model": "nllb",
            "source_language": "auto",
            "target_language": "en",
            "languages": ["de>en", "it>en"],
        },
        {"model": "toy", "source_language": "en", "target_language": "fr", "languages": []},
    ]
    german = "Die Flut ist niedrig und die Fähre wartet im Hafen."
    fields = {"source_language": "auto", "route": route, "max_new_tokens": 6, "seed": 1}
    whole = nllb.answer(german, others=(translator,), **fields)
    segments: dict[int, dict[str, Any]] = {}
    moved = nllb.outcome(german, segments=segments, **fields)
    assert (moved.state, moved.model, moved.blamed) == (JobState.QUEUED, "toy", False)
    assert len(segments) == 1
    num_prompts = nllb.client.progress.num_prompt_tokens
    ended = translator.outcome(german, segments=segments, **fields)
    assert ended.answer is not None
    assert ended.answer.output == whole.output
    assert report(ended.answer)["route"] == report(whole)["route"]
    assert report(ended.answer)["source_language"] == "de"
    assert nllb.client.progress.num_prompt_tokens == num_prompts
    lost = translator.outcome(german, attempt=200, **fields)
    assert (lost.state, lost.error_code) == (JobState.FAILED, "way_too_long")


@pytest.mark.parametrize(
    "text", ["\u200b\u200b", "\n\n- \n\n> \n", "| | |\n|---|---|\n| | |", "...", "🙂 🙂", "\ufeff"]
)
def test_empty_parts_come_back_as_they_are(translator: Translator, text: str) -> None:
    answer = translator.answer(text, guards={})
    assert answer.output == text
    assert answer.signals.num_empty_parts == 0


def test_a_mixed_text_has_its_main_language_or_is_unclear(nllb: Translator) -> None:
    english = "The tide is low and the ferry waits at the harbour."
    german = "Die Flut ist niedrig und die Fähre wartet im Hafen."
    fields = {"source_language": "auto", "max_new_tokens": 2, "languages": ("en", "de", "fr")}
    answer = nllb.answer(f"{german} {english} {german} {german}", **fields)
    assert report(answer)["source_language"] == "de"
    assert 0.5 <= report(answer)["detected_confidence"] <= 1
    half = nllb.outcome(f"{german[:30]} {english[:30]}", **fields)
    if half.answer is None:
        assert half.error_code == "language_unclear"
        assert "de " in (half.error_message or "")
        assert "en " in (half.error_message or "")
    else:
        assert report(half.answer)["source_language"] in ("de", "en")


def test_und_is_detected_like_auto(translator: Translator) -> None:
    answer = translator.answer(" ".join(SIX), source_language="und", languages=("en>fr",))
    assert answer.output == " ".join(SIX.values())
    assert report(answer)["source_language"] == "en"
    outcome = translator.outcome("Zahlung", source_language="und", languages=("en>fr", "de>fr"))
    assert outcome.error_code == "language_unclear"
    assert "undetermined (und): its 7 letters" in (outcome.error_message or "")
