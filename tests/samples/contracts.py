"""Random valid and invalid contracts for Hypothesis."""

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tasks.contracts.by_task import CONTRACTS
from tasks.contracts.contract import Contract
from tasks.errors import ContractError

WORDS = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=20).map(" ".join)
LANGUAGES = st.sampled_from(["en", "fr", "de", "pt-BR", "fra_Latn", "zh"])
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": WORDS}
    ),
    max_size=4,
).map(lambda before: [*before, {"role": "user", "content": "and now"}])

OWN_FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "summarize": {"text": WORDS},
    "generate": {"text": WORDS},
    "translate": {"text": WORDS, "source_language": LANGUAGES, "target_language": LANGUAGES},
    "chat": {"messages": MESSAGES},
}

PARAMS: dict[str, st.SearchStrategy[Any]] = {
    "max_new_tokens": st.integers(1, 200),
    "min_new_tokens": st.integers(0, 50),
    "max_length": st.integers(1, 300),
    "do_sample": st.booleans(),
    "temperature": st.floats(0, 100),
    "top_k": st.integers(1, 1_000_000),
    "top_p": st.floats(0, 1, exclude_min=True),
    "num_beams": st.integers(1, 8),
    "length_penalty": st.floats(-100, 100),
    "early_stopping": st.booleans(),
    "repetition_penalty": st.floats(0, 100, exclude_min=True),
    "no_repeat_ngram_size": st.integers(0, 1000),
    "num_return_sequences": st.integers(1, 8),
    "seed": st.integers(0, 2**63 - 1),
    "stop": st.lists(st.text(min_size=1, max_size=8), max_size=3) | st.text(min_size=1, max_size=4),
}

NAMES = st.text(min_size=1, max_size=20)
WHO: dict[str, st.SearchStrategy[Any]] = {
    "lane": st.sampled_from(["interactive", "bulk"]),
    "priority": st.integers(-100, 100),
    "tenant": NAMES,
    "custom_id": NAMES,
    "metadata": st.dictionaries(NAMES, st.text(max_size=20), max_size=4),
    "idempotency_key": NAMES,
    "deadline": st.datetimes(timezones=st.timezones()).map(lambda each: each.isoformat()),
    "time_limit_seconds": st.floats(60, 86400),
}

# What somebody may send where something else is expected.
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=20),  # with surrogates and NUL
    st.just(" \n"),
    st.just("a\x00b"),
    st.just("half a character: \ud83d"),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@st.composite
def wild_fields(draw: st.DrawFn) -> tuple[type[Contract], dict[str, Any]]:
    """A task and fields for it, some of which may be wrong, missing or unknown."""
    task = draw(st.sampled_from(sorted(CONTRACTS)))
    optional = {**PARAMS, **WHO}
    fields: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {name: each | JUNK for name, each in OWN_FIELDS[task].items()},
            optional={name: each | JUNK for name, each in optional.items()},
        )
    )
    for missing in draw(st.sets(st.sampled_from(sorted(fields)), max_size=1)):
        del fields[missing]
    fields.update(draw(st.dictionaries(st.text(st.characters(), max_size=8), JUNK, max_size=1)))
    return CONTRACTS[task], fields


@st.composite
def acceptable_contracts(draw: st.DrawFn) -> Contract:
    """A valid contract."""
    task = draw(st.sampled_from(sorted(CONTRACTS)))
    names = draw(st.sets(st.sampled_from(sorted({*PARAMS, *WHO})), max_size=5))
    fields = draw(
        st.fixed_dictionaries(
            {**OWN_FIELDS[task], **{name: {**PARAMS, **WHO}[name] for name in sorted(names)}}
        )
    )
    try:
        return CONTRACTS[task].parse(fields)
    except ContractError:
        assume(False)
        raise
