"""Refusals in the words of many models, and answers that only sound like one."""

import pytest

from db.suspicion import Suspicion
from tasks.errors import SettingsError
from tests.unit.worker.guards.test_guard import examined
from worker.errors import JobError, QualityGuardFailed
from worker.guards.guard import Guard
from worker.guards.refusals import is_refusal

REFUSALS = [
    "I'm sorry, I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "Sorry, but as an AI language model, I cannot do this.",
    "As an AI language model, I don't have opinions.",
    "As a large language model I am not able to browse.",
    "I cannot provide instructions for that.",
    "I can't help with that.",
    "I won't be able to assist you with this.",
    "I am unable to fulfill this request.",
    "Unfortunately, I cannot access the document.",
    "I must respectfully decline.",
    "**I'm sorry**, but I cannot translate this text.",
    "Hello! I apologize, but I can't discuss this topic.",
    "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
    "Leider kann ich diese Frage nicht beantworten.",
    "Dabei kann ich Ihnen nicht helfen.",
    "Als KI-Sprachmodell habe ich keine Meinung.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "Désolée, je ne peux pas répondre à cette demande.",
    "En tant qu'IA, je n'ai pas d'avis.",
    "En tant que modèle de langage, je ne peux pas.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Como modelo de lenguaje, no tengo opiniones.",
    "Mi dispiace, ma non posso aiutarti.",
    "In quanto IA, non ho opinioni.",
    "Desculpe, mas não posso ajudar com isso.",
    "Como uma inteligência artificial, não tenho opinião.",
    "Het spijt me, maar ik kan je daar niet mee helpen.",
    "Przykro mi, ale nie mogę w tym pomóc.",
    "Üzgünüm, bu konuda size yardımcı olamam.",
    "Извините, но я не могу помочь с этим.",
    "Как языковая модель, я не имею мнения.",
    "На жаль, я не можу допомогти.",
    "عذرًا، لا يمكنني المساعدة في ذلك.",
    "क्षमा करें, मैं इसमें मदद नहीं कर सकता।",
    "很抱歉\uff0c我无法提供帮助。",
    "作为一个人工智能,我没有个人意见。",
    "申し訳ありませんが、お手伝いできません。",
    "죄송합니다, 도와드릴 수 없습니다.",
]
ANSWERS = [
    "",
    "The minister said that she cannot help with that.",
    "I'm sorry to hear that your dog is ill. Give it water.",
    "Sorry seems to be the hardest word.",
    "Unfortunately, the ferry was late.",
    "As an artist she was known all over Europe.",
    "I can't wait to see the harbour again.",
    "I cannot recommend this hotel enough.",
    "The report asks what an AI may do. " * 5 + "As an AI, it may not refuse.",
    "Ich kann nicht schwimmen.",
    "Als Kind war er oft am Meer.",
    "Je ne peux pas venir demain.",
    "No puedo dormir.",
    "Leider regnet es.",
    "我无法入睡。",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_typical_refusal_is_detected(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_ordinary_answer_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize("task", ["summarize", "generate", "chat"])
def test_a_refusal_is_suspicious(task: str) -> None:
    answer = examined(REFUSALS[0], task=task, text="Write a poem.")
    assert not isinstance(answer, JobError)
    assert Suspicion.REFUSED in answer.signals.suspicions


def test_a_refusal_in_the_source_may_be_translated() -> None:
    source = "I'm sorry, but I cannot help with that. Please ask somebody else."
    translated = "Je suis désolé, mais je ne peux pas vous aider. Demandez à quelqu'un d'autre."
    answer = examined(translated, text=source)
    assert not isinstance(answer, JobError)
    assert Suspicion.REFUSED not in answer.signals.suspicions
    other = examined(translated, text="The ferry leaves at nine. Please be there in time.")
    assert not isinstance(other, JobError)
    assert Suspicion.REFUSED in other.signals.suspicions


def test_phrases_are_added_and_the_whole_is_switched_off() -> None:
    own = {"refusal_phrases": ["Nescio", "that is above my station"]}
    for said in ("NESCIO, domine.", "Good sir! That is above my station."):
        answer = examined(said, task="chat", guards=own)
        assert not isinstance(answer, JobError)
        assert answer.signals.suspicions == (Suspicion.REFUSED,)
    off = examined(REFUSALS[0], task="chat", guards={"chat": {"refusals": False}})
    assert not isinstance(off, JobError)
    assert off.signals.suspicions == ()


def test_a_refusal_may_fail_the_job() -> None:
    failed = examined(REFUSALS[0], task="chat", guards={"actions": {"refused": "fail"}})
    assert isinstance(failed, QualityGuardFailed)
    assert "refused" in str(failed)
    assert "sorry" not in str(failed)


@pytest.mark.parametrize("phrases", ["I may not", [""], [3], {"a": "b"}])
def test_phrases_are_a_list_of_texts(phrases: object) -> None:
    with pytest.raises(SettingsError, match=r"guards\.refusal_phrases"):
        Guard({"refusal_phrases": phrases})
