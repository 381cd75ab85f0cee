"""Prompts: a request as token ids, in the format that its model family was trained on.

A template of the spec comes first; it may name {text} and, by their English names,
{source_language} and {target_language}, or by their codes, {source_code} and {target_code}.
Otherwise:

encoder-decoder  the prefix that the checkpoint lists for a task; language tokens of its
                 vocabulary (`>>fra<<`, `<2fr>`, `fra_Latn`, `__fr__`); T5's usual prefixes for a T5
                 with neither; the text alone for the others
decoder-only     the chat template if there is one; else the text, to be continued
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import langcodes

from engine.errors import (
    EmptyPrompt,
    NoChatTemplate,
    PromptTooLong,
    TextTooLong,
    UnknownLanguage,
    UnsupportedParameter,
)
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.prompt_texts import OPTIONS, PROMPTS, version_of
from engine.protocol.request import Request
from engine.text.characters import sanitize
from engine.text.chat_template import LANGUAGE_FIELDS, ChatTemplate
from engine.text.languages import Languages, closest, is_language, short_tag, standard_tag
from engine.text.token_lengths import PrefixBound, no_pause

NLLB_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
# A token before the text that names the target: Marian's `>>fra<<`, MADLAD-400's `<2fr>`.
TARGET_TOKEN = re.compile(r">>([\w-]+)<<|<2([A-Za-z]{2,}[\w-]*)>")
PAIR = re.compile(r"translation_(\w+?)_to_(\w+)")

LANGUAGES = ("source_language", "target_language")
TAKES_NONE = "this model takes no instructions; use one with a chat template, or leave it out"
NO_TEMPLATE = "no chat template writes this prompt, so nothing is there to switch; leave it out"
CONTINUATIONS = {
    "summarize": "{text}\n\nTL;DR:",
    "translate": (
        "Translate from {source_language} to {target_language}.\n\n"
        "{source_language}: {text}\n{target_language}:"
    ),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """The token ids of a prompt, and the tokens with which a translator's answer begins."""

    token_ids: tuple[int, ...]
    forced_bos_token_id: int | None = None
    decoder_start_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt before it is tokenized."""

    text: str
    source: str | None = None  # the checkpoint's own code; None: as a fresh tokenizer has it
    forced_bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    is_rendered: bool = False  # by a chat template, which writes the special tokens too


class Prompts:
    """Builds and tokenizes the prompts of one checkpoint, on one thread.

    A tokenizer remembers its source language between calls. It is set before each call, so that a
    prompt depends on its request alone.
    """

    def __init__(
        self,
        spec: EngineSpec,
        config: Any,
        tokenizer: Any,
        start_id: int | None,
        max_tokens: int | None = None,
        too_long_remedy: str = "shorten or split the text",
    ) -> None:
        """start_id:        the decoder's start token; None if the checkpoint names none
        max_tokens:      of a prompt; a longer text is tokenized only until it is known to be too
                         long
        too_long_remedy: the end of that error's message
        """
        self.spec = spec
        self.tokenizer = tokenizer
        self.is_encoder_decoder: bool = config.is_encoder_decoder
        self.model_type: str = config.model_type
        self.task_params: Mapping[str, Mapping[str, Any]] = (
            getattr(config, "task_specific_params", None) or {}
        )
        self.chat_template = ChatTemplate(tokenizer)
        self.texts = {**PROMPTS, **spec.prompts}
        self.language_ids = language_ids(tokenizer)  # token ids by the checkpoint's own codes
        self.start_id = start_id
        self.own_source: str | None = getattr(tokenizer, "src_lang", None)
        self.prefix_bound = None if max_tokens is None else PrefixBound(max_tokens)
        self.too_long_remedy = too_long_remedy
        targets = target_tokens(tokenizer) if self.is_encoder_decoder else {}
        self.is_multi_target = bool(targets)
        self.target_tokens = targets
        self.languages = Languages(targets or self.language_ids, spec.languages)
        # (source, target) by the name of the checkpoint's `translation_..._to_...` entry.
        self.pairs: dict[str, tuple[str, str]] = {
            name: (standard_tag(match[1]), standard_tag(match[2]))
            for name in self.task_params
            if (match := PAIR.fullmatch(name)) is not None
        }
        # An older setting for the prefix of every prompt.
        self.own_prefix = str(getattr(config, "prefix", None) or "")
        # The tokens of an empty text by source language: those that the tokenizer adds itself.
        self.added_ids: dict[str | None, tuple[int, ...]] = {}

    def encode(self, request: Request, between_slices: Callable[[], None] = no_pause) -> Prompt:
        """Return the prompt of a request. Raises RequestError.

        between_slices: called now and then while a long text is counted. It may encode other
                        requests, or raise to abandon this one
        """
        written = self.write(request)
        self._refuse_too_long(written, between_slices)
        token_ids = tuple(self._tokenize(written, written.text))
        if not written.is_rendered:
            if written.source not in self.added_ids:
                self.added_ids[written.source] = tuple(self._tokenize(written, ""))
            if not token_ids or token_ids == self.added_ids[written.source]:
                raise EmptyPrompt("the text holds nothing that the tokenizer keeps")
        return Prompt(token_ids, written.forced_bos_token_id, written.decoder_start_token_id)

    def write(self, request: Request) -> PromptText:
        """Return the prompt of a request as text. Raises RequestError."""
        if request.task == "chat":
            return self._chat(
                [(each.role, sanitize(each.content)) for each in request.messages],
                request.chat_template_kwargs,
            )
        if request.chat_template_kwargs and not self.is_rendered(request):
            raise UnsupportedParameter("chat_template_kwargs", NO_TEMPLATE)
        text = sanitize(request.text or "")
        if not text.strip():
            raise EmptyPrompt()
        if request.task == "generate":
            return PromptText(text)
        template = self.spec.prompt.get(request.task)
        if self.is_encoder_decoder:
            return self._seq2seq(request, text, template)
        return self._causal(request, text, template)

    def is_rendered(self, request: Request) -> bool:
        """Whether a chat template renders the prompt."""
        if request.task == "chat":
            return True
        return request.task != "generate" and not self.is_encoder_decoder and self.has_chat

    def params_of(self, request: Request) -> Mapping[str, Any]:
        """The entry of `task_specific_params` for the request's task; empty if there is none."""
        if request.task == "summarize":
            return self.task_params.get("summarization") or {}
        name = self._pair_name(request) if request.task == "translate" else None
        return {} if name is None else self.task_params[name] or {}

    def _pair_name(self, request: Request) -> str | None:
        """The name of the request's `translation_..._to_...` entry; None without one."""
        source, target = request.source_language, request.target_language
        if source is None or target is None:
            return None
        for name, (from_, to) in self.pairs.items():
            if closest(source, (from_,)) is not None and closest(target, (to,)) is not None:
                return name
        return None

    def _seq2seq(self, request: Request, text: str, template: str | None) -> PromptText:
        self._refuse_options(request, TAKES_NONE)
        has_language_tokens = self.is_multi_target or bool(self.language_ids)
        if template is None:
            if request.task == "translate" and not has_language_tokens:
                self._check_listed(request)
            template = self._own_template(request, has_language_tokens)
        prompt = text if template is None else self._filled(template, request, text)
        if request.task != "translate":
            return PromptText(prompt)
        if self.is_multi_target:
            code = self.languages.own_code("target_language", request.target_language)
            self._check_pair_end("source_language", request.source_language)
            return PromptText(f"{self.target_tokens[code]} {prompt}")
        if self.language_ids:
            return self._between_languages(request, prompt)
        for name in ("source_language", "target_language"):
            self._check_pair_end(name, getattr(request, name))
        return PromptText(prompt)

    def _check_listed(self, request: Request) -> None:
        """Raise UnknownLanguage for a language pair that the checkpoint does not list."""
        if not any("prefix" in (self.task_params[name] or {}) for name in self.pairs):
            return
        if self._pair_name(request) is not None:
            return
        sources = {source for source, _ in self.pairs.values()}
        if request.source_language is None or not any(
            closest(request.source_language, (each,)) for each in sources
        ):
            raise UnknownLanguage("source_language", request.source_language, sources)
        targets = {
            target
            for source, target in self.pairs.values()
            if closest(request.source_language, (source,)) is not None
        }
        raise UnknownLanguage("target_language", request.target_language, targets)

    def _causal(self, request: Request, text: str, template: str | None) -> PromptText:
        if not self.has_chat:
            self._refuse_options(request, TAKES_NONE)
            return PromptText(self._filled(template or CONTINUATIONS[request.task], request, text))
        languages = None
        if self._instructs_itself(request):
            languages = self._template_languages(request)
            filled = text if template is None else self._filled(template, request, text)
        else:
            filled = self._filled(template or self.texts[request.task], request, text)
        return self._chat([("user", filled)], request.chat_template_kwargs, languages, "text")

    def _instructs_itself(self, request: Request) -> bool:
        """Whether the chat template writes the instruction for a translation."""
        return request.task == "translate" and self.chat_template.takes_languages

    def _template_languages(self, request: Request) -> dict[str, str]:
        """The chat template's codes of the request's languages. Raises UnknownLanguage."""
        known = Languages(self.chat_template.languages, self.spec.languages)
        codes = {}
        for field, name in zip(LANGUAGE_FIELDS, LANGUAGES, strict=True):
            language = getattr(request, name)
            if known.own:
                codes[field] = known.own_code(name, language)
            else:
                known.english_name(name, language)  # refuses what is none
                codes[field] = standard_tag(language)
        return codes

    def version_of(self, request: Request) -> str | None:
        """The version of the prompt texts in the prompt; None if it contains none."""
        is_ours = request.task in self.texts and request.task not in self.spec.prompt
        if self.has_chat and self._instructs_itself(request):
            is_ours = False
        return version_of(self.spec.prompts) if is_ours and self.is_rendered(request) else None

    def _refuse_options(self, request: Request, reason: str) -> None:
        for name in request.options:
            raise UnsupportedParameter(name, reason)

    def _option(self, name: str, value: str) -> str:
        """The sentence that states an option in the prompt."""
        if name == "output_language":
            if not is_language(value):
                raise UnknownLanguage(name, value, ("any ISO 639 code",))
            value = langcodes.Language.get(standard_tag(value)).display_name("en")
        return self.texts[OPTIONS[name]].format_map({name: sanitize(value)})

    @property
    def has_chat(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def _own_template(self, request: Request, has_language_tokens: bool) -> str | None:
        """The template of a task, as in `summarize: {text}`, with the checkpoint's own prefix."""
        prefix = self.params_of(request).get("prefix")
        if prefix is None:
            prefix = self.own_prefix or None
        if prefix is not None:
            return literal(str(prefix)) + "{text}"
        if self.model_type != "t5" or has_language_tokens:
            return None
        if request.task == "summarize":
            return "summarize: {text}"
        return "translate {source_language} to {target_language}: {text}"

    def _filled(self, template: str, request: Request, text: str) -> str:
        if "{options}" not in template:
            self._refuse_options(request, "the prompt template of the model has no {options}")
        options = (self._option(name, value) for name, value in request.options.items())
        values = {"text": text, "options": "".join(f" {each}" for each in options)}
        for name in ("source_language", "target_language"):
            if f"{{{name}" in template:
                values[name] = self.languages.english_name(name, getattr(request, name))
            code = name.replace("language", "code")
            if f"{{{code}" in template:
                self.languages.english_name(name, getattr(request, name))  # refuses what is none
                values[code] = short_tag(getattr(request, name))
        return template.format_map(values)

    def _between_languages(self, request: Request, prompt: str) -> PromptText:
        """Build a prompt for M2M100, NLLB or mBART.

        The source language is a token of the prompt, the target language the first of the answer.
        """
        source = self.languages.own_code("source_language", request.source_language)
        target = self.languages.own_code("target_language", request.target_language)
        target_id = self.language_ids[target]
        # The first mBART starts its decoder with the language; the others force it as the
        # first token after another start.
        if self.start_id in self.language_ids.values():
            return PromptText(prompt, source, decoder_start_token_id=target_id)
        return PromptText(prompt, source, forced_bos_token_id=target_id)

    def _check_pair_end(self, name: str, language: str | None) -> None:
        """Raise UnknownLanguage if a model for one pair has another language on this side.

        If it names none, or a family of languages such as `gmw`, the request's is accepted.
        """
        if language is None:
            return
        allowed = self.spec.languages
        if allowed and closest(language, tuple(allowed)) is None:
            raise UnknownLanguage(name, language, allowed)
        own = getattr(self.tokenizer, name.removesuffix("uage"), None)  # Marian's `source_lang`
        if own and is_language(own) and closest(language, (own,)) is None:
            raise UnknownLanguage(name, language, (own,))

    def _chat(
        self,
        messages: list[tuple[str, str]],
        template_kwargs: Mapping[str, Any],
        languages: Mapping[str, str] | None = None,
        field: str = "messages",
    ) -> PromptText:
        if self.is_encoder_decoder or not self.has_chat:
            raise NoChatTemplate(self.spec.alias)
        if not any(content.strip() for _, content in messages):
            raise EmptyPrompt("every message is empty")
        switches = {**self.spec.chat_template_kwargs, **template_kwargs}
        rendered = self.chat_template.render(messages, switches, languages, field)
        return PromptText(sanitize(rendered), is_rendered=True)

    def _tokenize(self, written: PromptText, text: str, **options: Any) -> list[int]:
        """Tokenize the prompt `written`, of which `text` is the user's part or all."""
        source = written.source or self.own_source
        # Set each time, since other requests may have changed it.
        if source is not None and self.tokenizer.src_lang != source:
            self.tokenizer.src_lang = source
        if written.is_rendered:
            options["add_special_tokens"] = False
        return self.tokenizer(text, **options)["input_ids"]  # type: ignore[no-any-return]  # a list

    def _refuse_too_long(self, written: PromptText, between_slices: Callable[[], None]) -> None:
        bound, text = self.prefix_bound, written.text
        if bound is None:
            return

        def count_tokens(part: str) -> int:
            return len(self._tokenize(written, part, add_special_tokens=False))

        least = bound.least_tokens(text, count_tokens, between_slices)
        if least > bound.max_tokens:
            raise PromptTooLong(least, bound.max_tokens, self.too_long_remedy, is_at_least=True)
        if len(text) > bound.max_characters:
            raise TextTooLong(max(least, 1), len(text), bound.max_tokens, bound.max_characters)


def literal(text: str) -> str:
    """Escape braces, so that a template contains the text unchanged."""
    return text.replace("{", "{{").replace("}", "}}")


def target_tokens(tokenizer: Any) -> dict[str, str]:
    """The tokens that name a target language before the text, by the code that users may write.

    Marian's are their own codes, MADLAD-400's are wrapped in `<2` and `>`. A single such token may
    be ordinary text; two or more are taken as language tokens.
    """
    own = getattr(tokenizer, "supported_language_codes", None)
    if own:
        return {token: token for token in own}
    token_ids = {
        token: match for token in tokenizer.get_vocab() if (match := TARGET_TOKEN.fullmatch(token))
    }
    tokens = {match[2] or token: token for token, match in token_ids.items()}
    languages = [code for code in tokens if is_language(code)]
    return tokens if len(languages) >= 2 else {}


def language_ids(tokenizer: Any) -> dict[str, int]:
    """The token ids of language codes, for tokenizers that mark a text with its language."""
    unknown = tokenizer.unk_token_id
    by_code = getattr(tokenizer, "lang_code_to_id", None)
    if by_code is None and hasattr(tokenizer, "src_lang"):
        codes = [each for each in tokenizer.all_special_tokens if NLLB_CODE.fullmatch(each)]
        by_code = {each: tokenizer.convert_tokens_to_ids(each) for each in codes}
    return {code: id_ for code, id_ in (by_code or {}).items() if id_ != unknown}
