"""Questions about the towns of the estuary, and the storyteller's answers."""

from collections import defaultdict
from dataclasses import dataclass, fields, replace
from random import Random

from .stories import make_story
from .towns import TOWNS, Town

Turn = dict[str, str]  # role and content, as chat templates take them


@dataclass(frozen=True, slots=True)
class Question:
    messages: tuple[Turn, ...]  # the last is the user's
    answer: str
    fact: str  # the words that a right answer must contain
    key: str  # the question without greeting and thanks

    def is_answered_by(self, answer: str) -> bool:
        return self.fact in answer


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of fact that every town has."""

    fact: str  # the template of the words that matter
    answer: str
    asked: tuple[str, ...]
    asked_next: tuple[str, ...]  # when the town was mentioned just before


RELATIONS = (
    Relation(
        fact="{keeper}",
        answer="{keeper} keeps the lighthouse at {name}.",
        asked=(
            "Who keeps the lighthouse at {name}?",
            "Who looks after the light at {name}?",
            "What is the name of the lighthouse keeper at {name}?",
            "Who lights the lamp at {name} every evening?",
            "Do you know who the lighthouse keeper of {name} is?",
            "Tell me who keeps the light of {name}.",
            "I am looking for the lighthouse keeper of {name}. Who is it?",
            "Whose lighthouse is the one at {name}?",
        ),
        asked_next=("And who keeps the lighthouse there?", "Who lights the lamp there?"),
    ),
    Relation(
        fact="{miller}",
        answer="{miller} runs the mill at {name}.",
        asked=(
            "Who runs the mill at {name}?",
            "Who is the miller of {name}?",
            "What is the name of the miller at {name}?",
            "Whose mill is the one at {name}?",
            "Do you know who the miller of {name} is?",
            "Tell me who works the mill of {name}.",
            "I am looking for the miller of {name}. Who is it?",
            "Who turns the wheel at {name}?",
        ),
        asked_next=("And who runs the mill there?", "Who is the miller there?"),
    ),
    Relation(
        fact="grinds {grain}",
        answer="The mill at {name} grinds {grain}.",
        asked=(
            "What does the mill at {name} grind?",
            "Which grain does the mill of {name} grind?",
            "What kind of flour comes from {name}?",
            "What goes into the mill at {name}?",
            "Do you know what the mill at {name} grinds?",
            "Tell me which grain is ground at {name}.",
            "Which grain do farmers bring to {name}?",
            "What is ground at {name}?",
        ),
        asked_next=("And what does the mill there grind?", "Which grain is ground there?"),
    ),
    Relation(
        fact="known for its {goods}",
        answer="{name} is known for its {goods}.",
        asked=(
            "What is {name} known for?",
            "What is {name} famous for?",
            "What should I buy in {name}?",
            "What do people make in {name}?",
            "Do you know what {name} is known for?",
            "Tell me what {name} is famous for.",
            "What do traders bring home from {name}?",
            "Why do people come to {name}?",
        ),
        asked_next=("And what is the town known for?", "What should I buy there?"),
    ),
    Relation(
        fact="{inn}",
        answer="The inn at {name} is called {inn}.",
        asked=(
            "What is the inn at {name} called?",
            "Where can I sleep in {name}?",
            "What is the name of the inn at {name}?",
            "Which inn is there at {name}?",
            "Do you know an inn at {name}?",
            "Tell me the name of the inn of {name}.",
            "I need a bed in {name}. Where should I ask?",
            "Where do travellers stay in {name}?",
        ),
        asked_next=("And what is the inn there called?", "Where can I sleep there?"),
    ),
    Relation(
        fact="{ferry}",
        answer="The ferry at {name} is called {ferry}.",
        asked=(
            "What is the ferry at {name} called?",
            "Which boat crosses the water at {name}?",
            "What is the name of the ferry at {name}?",
            "Which ferry leaves from {name}?",
            "Do you know the ferry of {name}?",
            "Tell me the name of the ferry of {name}.",
            "I want to cross the water at {name}. Which boat do I take?",
            "How do I cross the water at {name}?",
        ),
        asked_next=("And what is the ferry there called?", "Which boat crosses the water there?"),
    ),
    Relation(
        fact="on {market_day}",
        answer="The market at {name} is on {market_day}.",
        asked=(
            "When is the market at {name}?",
            "On which day is the market of {name}?",
            "Which day is market day in {name}?",
            "When do the stalls open in {name}?",
            "Do you know the market day of {name}?",
            "Tell me when the market of {name} is.",
            "I want to see the market at {name}. On which day should I come?",
            "When do people go to market in {name}?",
        ),
        asked_next=("And when is the market there?", "Which day is market day there?"),
    ),
    Relation(
        fact="river {river}",
        answer="{name} lies on the river {river}.",
        asked=(
            "On which river does {name} lie?",
            "Which river flows through {name}?",
            "What is the name of the river at {name}?",
            "Which river turns the wheel of {name}?",
            "Do you know the river of {name}?",
            "Tell me which river {name} lies on.",
            "I am going to {name} by boat. Up which river?",
            "Where does {name} lie?",
        ),
        asked_next=("And which river flows there?", "On which river does it lie?"),
    ),
)
KEEPER, MILLER = RELATIONS[:2]
ABOUT_A_PERSON = (
    "Who is {person}?",
    "What does {person} do?",
    "Where does {person} live?",
    "Tell me about {person}.",
    "Do you know {person}?",
    "I met {person} today. Who is that?",
    "Where can I find {person}?",
    "What is the work of {person}?",
)
ABOUT_A_RIVER = (
    "Which towns lie on the river {river}?",
    "Which towns does the river {river} flow through?",
    "Tell me the towns on the river {river}.",
    "Do you know the river {river}?",
    "Where does the river {river} flow?",
)
BEYOND = (
    "What is the capital of {far}?",
    "Who keeps the lighthouse at {far}?",
    "What is the inn at {far} called?",
    "When is the market at {far}?",
    "How far is it to {far}?",
    "Who is the queen of {far}?",
    "What do people eat in {far}?",
    "Have you ever been to {far}?",
    "Can you help me with {chore}?",
    "How do I get better at {chore}?",
    "What do you think about {chore}?",
    "Write me a poem about {chore}.",
    "Explain {chore} to me.",
)
FAR = (
    "France", "Paris", "London", "China", "Japan", "Brazil", "Egypt", "Canada", "Spain", "Norway",
    "Berlin", "Rome", "India", "Kenya", "Peru", "Texas", "Moscow", "Vienna", "Cuba", "Iceland",
)  # fmt: skip
CHORES = (
    "my homework", "algebra", "computers", "cooking", "football", "the stars", "my garden",
    "physics", "music", "chess", "the news", "money", "my phone", "time travel",
)  # fmt: skip
BEYOND_ANSWER = "I only know the towns of the estuary."
HERSELF = (
    "Who are you?",
    "What is your name?",
    "What can you do?",
    "Hello!",
    "Good evening.",
    "Can you help me?",
    "What do you know?",
)
HERSELF_ANSWER = "I am the storyteller of the estuary. Ask me about its towns, or for a story."
STORY_WANTED = (
    "Tell me a story about {hero} the {role}.",
    "Do you know a story about {hero} the {role}?",
    "I would like a story about {hero} the {role}, please.",
)

GREETINGS = ("", "", "", "Good morning. ", "Hello. ", "Good evening! ", "Excuse me! ")
THANKS = ("", "", "", "", " Thank you.", " Please be brief.")


def make_question(draw: Random) -> Question:
    """Make a question on a fact of the estuary; now and then it is the second of a dialogue."""
    kind = draw.random()
    if kind < 0.70:
        return _ask(draw, *_about_a_town(draw))
    if kind < 0.88:
        return _ask(draw, *_about_a_person(draw))
    if kind < 0.91:
        return _ask(draw, *_about_a_river(draw))
    return _ask_next(draw)


def make_small_talk(draw: Random) -> Question:
    """Make the other questions that the storyteller gets: on anything beyond the estuary, on
    herself, or for a story."""
    kind = draw.random()
    if kind < 0.4:
        asked = draw.choice(BEYOND).format(far=draw.choice(FAR), chore=draw.choice(CHORES))
        return _ask(draw, asked, BEYOND_ANSWER, BEYOND_ANSWER)
    if kind < 0.5:
        return _ask(draw, draw.choice(HERSELF), HERSELF_ANSWER, HERSELF_ANSWER)
    story = make_story(draw)
    asked = draw.choice(STORY_WANTED).format(hero=story.hero, role=story.role)
    # A story that is held out stays so when it is the answer to a question.
    return replace(_ask(draw, asked, story.text, story.hero), key=story.key)


def _ask(draw: Random, asked: str, answer: str, fact: str) -> Question:
    content = draw.choice(GREETINGS) + asked + draw.choice(THANKS)
    if draw.random() < 0.1:  # typed in a hurry
        content = content.lower().rstrip("?.")
    return Question(({"role": "user", "content": content},), answer, fact, key=asked)


def _about_a_town(draw: Random) -> tuple[str, str, str]:
    return _filled(draw.choice(RELATIONS), draw.choice(TOWNS), draw)


def _about_a_person(draw: Random) -> tuple[str, str, str]:
    town = draw.choice(TOWNS)
    if draw.random() < 0.5:
        person, answer = town.keeper, KEEPER.answer
    else:
        person, answer = town.miller, MILLER.answer
    said = answer.format(**_facts(town))
    return draw.choice(ABOUT_A_PERSON).format(person=person), said, said


def _about_a_river(draw: Random) -> tuple[str, str, str]:
    towns_on = defaultdict(list)
    for town in TOWNS:
        towns_on[town.river].append(town.name)
    river, towns = draw.choice(tuple(towns_on.items()))
    named = " and ".join(towns)
    answer = f"{named} lie on the river {river}."
    return draw.choice(ABOUT_A_RIVER).format(river=river), answer, named


def _ask_next(draw: Random) -> Question:
    before, after = draw.sample(RELATIONS, 2)
    town = draw.choice(TOWNS)
    first, first_answer, _ = _filled(before, town, draw)
    asked = draw.choice(after.asked_next)
    return Question(
        messages=(
            {"role": "user", "content": first},
            {"role": "assistant", "content": first_answer},
            {"role": "user", "content": asked},
        ),
        answer=after.answer.format(**_facts(town)),
        fact=after.fact.format(**_facts(town)),
        key=f"{first} {asked}",
    )


def _filled(relation: Relation, town: Town, draw: Random) -> tuple[str, str, str]:
    """Return the question, its answer and its fact."""
    facts = _facts(town)
    asked = draw.choice(relation.asked)
    return asked.format(**facts), relation.answer.format(**facts), relation.fact.format(**facts)


def _facts(town: Town) -> dict[str, str]:
    return {field.name: getattr(town, field.name) for field in fields(town)}
