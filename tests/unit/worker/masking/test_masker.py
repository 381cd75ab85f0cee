"""What is taken out of a text stands in the answer again, and what the model did is reported."""

import json
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from db.outcome import Answer
from engine.protocol.request import ChatTurn
from tasks.configuration.masking import MaskingRules
from tests.samples.jobs import answer
from worker.attempts.dialogue import Dialogue
from worker.masking.finders import Match, finders_of
from worker.masking.masker import Masker

EMAILS = Masker(finders_of(MaskingRules(frozenset({"email"}))))


def restored(text: str, output: str) -> Answer:
    return EMAILS.masked({"text": text}).restored(answer(output))


def test_a_stored_placeholder_is_restored_to_the_users_text() -> None:
    made = restored("Write to a@b.de or c@d.de.", "Écrire à ⟦EMAIL_2⟧ ou ⟦EMAIL_1⟧.")
    assert made.output == "Écrire à c@d.de ou a@b.de."
    assert made.provenance["masking"] == {"masked": {"EMAIL": 2}, "lost": {}, "invented": {}}


def test_lost_and_invented_placeholders_are_reported_without_their_values() -> None:
    made = restored("a@b.de and a@b.de and c@d.de", "⟦EMAIL_1⟧, ⟦EMAIL_9⟧ ⟦CARD_1⟧ ⟦ EMAIL_2⟧")
    assert made.output == "a@b.de, ⟦EMAIL_9⟧ ⟦CARD_1⟧ ⟦ EMAIL_2⟧"
    assert made.provenance["masking"] == {
        "masked": {"EMAIL": 2},
        "lost": {"⟦EMAIL_1⟧": 1, "⟦EMAIL_2⟧": 1},
        "invented": {"⟦CARD_1⟧": 1, "⟦EMAIL_9⟧": 1},
    }
    assert "@" not in str(made.provenance)


def test_a_value_that_looks_like_a_placeholder_is_put_back_once() -> None:
    masker = Masker(finders_of(MaskingRules(patterns=(("K", "⟦X_1⟧!|b"),))))
    work = masker.masked({"text": "⟦X_1⟧! b"})
    assert work.contract["text"] == "⟦K_1⟧ ⟦K_2⟧"
    assert work.restored(answer("⟦K_2⟧ ⟦K_1⟧")).output == "b ⟦X_1⟧!"


def test_every_turn_of_a_chat_is_masked_and_its_roles_are_not() -> None:
    contract = {
        "messages": [
            {"role": "user", "content": "I am a@b.de"},
            {"role": "assistant", "content": [{"type": "text", "text": "a@b.de, c@d.de"}]},
        ],
        "max_new_tokens": 5,
    }
    assert EMAILS.masked(contract).contract == {
        "messages": [
            {"role": "user", "content": "I am ⟦EMAIL_1⟧"},
            {"role": "assistant", "content": [{"type": "text", "text": "⟦EMAIL_1⟧, ⟦EMAIL_2⟧"}]},
        ],
        "max_new_tokens": 5,
    }


def test_another_attempt_makes_the_same_placeholders() -> None:
    contract = {"text": "c@d.de a@b.de c@d.de"}
    assert EMAILS.masked(contract).contract == EMAILS.masked(contract).contract


def test_placeholders_of_an_earlier_attempt_stay_and_new_matches_get_new_ones() -> None:
    earlier = {"⟦EMAIL_1⟧": "c@d.de", "⟦EMAIL_3⟧": "of rules that were"}
    work = EMAILS.masked({"text": "a@b.de c@d.de e@f.de"}, earlier)
    assert work.contract["text"] == "⟦EMAIL_2⟧ ⟦EMAIL_1⟧ ⟦EMAIL_4⟧"
    made = work.restored(answer("⟦EMAIL_1⟧ ⟦EMAIL_3⟧"))
    assert made.output == "c@d.de ⟦EMAIL_3⟧"
    assert made.provenance["masking"]["masked"] == {"EMAIL": 3}


@pytest.mark.parametrize(
    ("label", "placeholder"),
    [
        ("NAME", "⟦NAME_1⟧"),
        ("EMAIL_ADDRESS", "⟦EMAILADDRESS_1⟧"),
        ("person", "⟦PERSON_1⟧"),
        ("B-Person", "⟦BPERSON_1⟧"),
        ("date of birth", "⟦DATEOFBIRTH_1⟧"),
        ("2nd_NAME", "⟦NDNAME_1⟧"),
        ("⟦NAME_1⟧", "⟦NAME1_1⟧"),
        ("X" * 99, f"⟦{'X' * 31}_1⟧"),
        ("名前", "⟦OTHER_1⟧"),
        ("", "⟦OTHER_1⟧"),
        (None, "⟦OTHER_1⟧"),
        (7, "⟦OTHER_1⟧"),
    ],
)
def test_a_match_with_any_label_is_masked_and_restored(label: Any, placeholder: str) -> None:
    """A label of another form went to the model in clear, or never came back into the answer."""
    names = SimpleNamespace(find=lambda text: [Match(3, 6, label)])
    work = Masker((names,)).masked({"text": "Hi Ada, hi"})
    assert work.contract["text"] == f"Hi {placeholder}, hi"
    made = work.restored(answer(f"Salut {placeholder}"))
    assert made.output == "Salut Ada"
    assert made.provenance["masking"]["lost"] == made.provenance["masking"]["invented"] == {}


def test_matches_of_a_plugged_in_finder_outside_the_text_are_ignored() -> None:
    def find(text: str) -> Iterable[Match]:
        return [
            Match(0, 3, "NAME"),
            Match(1, 5, "NAME"),
            Match(4, 99, "NAME"),
            Match(4, 7, "low"),
            Match(6, 6, "NAME"),
        ]

    work = Masker((SimpleNamespace(find=find),)).masked({"text": "Ada met Bob"})
    # Of the second its rest; the kind of the fourth is another program's, and masked as well.
    assert work.contract["text"] == "⟦NAME_1⟧ ⟦NAME_2⟧⟦LOW_1⟧ Bob"


def test_overlapping_matches_are_all_masked() -> None:
    """A longer match goes before a shorter, and of one that overlaps the rest is masked."""
    rest = MaskingRules(
        frozenset({"email"}), finders=("tests.unit.worker.masking.test_masker:OVERLAPPING",)
    )
    work = Masker(finders_of(rest)).masked({"text": OVERLAPPING.text})

    assert work.contract["text"] == "⟦N_1⟧ ⟦N_2⟧ of ⟦N_3⟧ <⟦EMAIL_1⟧> (⟦N_4⟧), she"
    assert work.put_back(work.contract["text"]) == OVERLAPPING.text


class Overlapping:
    text = "Ada King Lovelace Byron of Mail <ada@mail.example> (home), she"

    def find(self, text: str) -> list[Match]:
        of = self.text.index
        return [
            Match(0, 3, "N"),  # Ada
            Match(0, of(" Byron"), "N"),
            Match(of("Lovelace"), of(" of"), "N"),
            Match(of("Mail"), of("),"), "N"),  # around what the rules have found
        ]


OVERLAPPING = Overlapping()


def test_the_turns_before_a_chat_are_masked_with_the_same_placeholders() -> None:
    before = Dialogue(
        system=(ChatTurn("system", "You serve ada@example.org."),),
        turns=((ChatTurn("user", "I am bob@example.org"), ChatTurn("assistant", "Hello")),),
    )
    contract = {
        "messages": [{"role": "user", "content": "Write to bob@example.org and ada@example.org"}],
        "dialogue": before,
    }
    work = EMAILS.masked(contract)
    seen: Dialogue = work.contract["dialogue"]
    (question,) = work.contract["messages"]
    assert "@" not in "".join(each.content for each in seen.messages) + question["content"]
    names = {value: name for name, value in work.values.items()}
    assert seen.system[0].content == f"You serve {names['ada@example.org']}."
    assert (
        question["content"]
        == f"Write to {names['bob@example.org']} and " + names["ada@example.org"]
    )


def test_a_thought_is_for_the_user_as_the_answer_is() -> None:
    work = EMAILS.masked({"text": "Is ada@example.org right?"})
    (name,) = work.values
    answer = Answer(
        output=f"{name} is.",
        reasoning=f"They ask of {name}.",
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
        provenance={},
    )
    restored = work.restored(answer)
    assert restored.output == "ada@example.org is."
    assert restored.reasoning == "They ask of ada@example.org."


@pytest.mark.parametrize("asked", [{"json_object": True}, {"json_schema": {"type": "object"}}])
def test_a_restored_value_is_escaped_in_a_json_answer(asked: dict[str, Any]) -> None:
    value = 'K-"7"\\\n\u2028é'
    masker = Masker(finders_of(MaskingRules(patterns=(("K", r'K-"7"\\\n.é'),))))
    work = masker.masked({"text": f"Who is {value}?", **asked})
    made = work.restored(
        replace(answer('{"a": "⟦K_1⟧"}'), alternatives=('["⟦K_1⟧"]',), reasoning="⟦K_1⟧?")
    )
    assert json.loads(made.output) == {"a": value}
    assert json.loads(made.alternatives[0]) == [value]
    assert made.reasoning == f"{value}?"


def test_fields_that_reach_the_prompt_are_masked_like_the_text() -> None:
    """A schema is put into the prompt that asks again, a switch into the template's, and a stop
    that the model never writes stops nothing."""
    contract = {
        "text": "Is it ada@mail.example?",
        "stop": ["ada@mail.example"],
        "chat_template_kwargs": {"role": "of ada@mail.example", "enable_thinking": False},
        "json_schema": {
            "description": "Of ada@mail.example or bob@mail.example",
            "properties": {
                "who": {"enum": ["ada@mail.example", 7]},
                "title": {
                    "type": "string",
                    "pattern": "^.+@x.example$",
                    "const": "bob@mail.example",
                },
            },
        },
    }
    work = EMAILS.masked(contract)
    assert work.contract == {
        "text": "Is it ⟦EMAIL_1⟧?",
        "stop": ["⟦EMAIL_1⟧"],
        "chat_template_kwargs": {"role": "of ⟦EMAIL_1⟧", "enable_thinking": False},
        "json_schema": {
            "description": "Of ⟦EMAIL_1⟧ or ⟦EMAIL_2⟧",
            "properties": {
                "who": {"enum": ["⟦EMAIL_1⟧", 7]},
                "title": {"type": "string", "pattern": "^.+@x.example$", "const": "⟦EMAIL_2⟧"},
            },
        },
    }
    made = work.restored(answer('{"who": "⟦EMAIL_1⟧"}'))
    assert json.loads(made.output) == {"who": "ada@mail.example"}
    assert made.provenance["masking"]["lost"] == {}


@pytest.mark.parametrize("asked", [{"json_object": True}, {"json_schema": {"type": "object"}}])
def test_a_placeholder_in_json_of_ascii_is_one(asked: dict[str, Any]) -> None:
    """A model that escapes as `json.dumps` does gave the user `\\u27e6EMAIL_1\\u27e7`."""
    work = EMAILS.masked({"text": "ada@mail.example", **asked})
    said = {"a": "⟦EMAIL_1⟧", "b": "\\⟦EMAIL_1⟧", "c": "\\u27e6EMAIL_1\\u27e7"}
    made = work.restored(
        replace(
            answer(json.dumps(said)), alternatives=('["\\u27E6EMAIL_1\\u27E7", "⟦EMAIL_1\\u27e7"]',)
        )
    )
    assert json.loads(made.output) == {
        "a": "ada@mail.example",
        "b": "\\ada@mail.example",
        "c": "\\u27e6EMAIL_1\\u27e7",
    }
    assert json.loads(made.alternatives[0]) == ["ada@mail.example"] * 2
    assert made.provenance["masking"]["lost"] == made.provenance["masking"]["invented"] == {}
