"""OwnCacheRunner: forward passes with the model's own attention and cache.

The model gets the inputs that `model.generate` gives it for a left-padded batch. Nothing need be
known about its attention, so windows, soft caps, sinks and ALiBi are its own business. Prompts are
prefilled one by one where padding would change them, as in some recurrent models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from engine.checkpoint.model_state import Freshness
from engine.core.sequence import Sequence
from engine.kv_cache.base import KVCacheManager, SequenceCache
from engine.kv_cache.own_cache.cache_forms import CacheForm, form_beside, form_made_by
from engine.kv_cache.own_cache.joined import (
    EncoderOutput,
    JoinedKVCache,
    JoinedSequenceCache,
    keys_by_layer,
)
from engine.kv_cache.own_cache.joined_layers import KeysValues, contents_of
from engine.kv_cache.planning.row_size import RowSize
from engine.runners.base import NONE_BEGUN
from engine.runners.length_switches import rotary_switch_of, temperature_step_of
from engine.runners.position_embedding import install_position_embedding
from engine.runners.row_masks import RowMasks
from engine.sampling.seeded import seeded

# Rows are padded to the longest of a pass. A separate pass for much longer rows reads the weights
# again, but saves memory, and time if most of the reading is keys.
NO_MATTER = 512
FACTOR = 4
# The padding of a pass of prompts that costs less than another pass.
PADDING_SHARE = 0.25
FEW_TOKENS = 64


class OwnCacheRunner:
    def __init__(
        self,
        model: Any,
        kv_cache: JoinedKVCache,
        default_start_id: int | None,
        form: CacheForm | None = None,
    ) -> None:
        """default_start_id: the decoder's first token, unless a sequence names another
        form:             the form of the model's cache; None: a DynamicCache
        """
        self.model = model
        self.kv_cache: KVCacheManager = kv_cache
        self.joined = kv_cache
        self.default_start_id = default_start_id
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.parameters = frozenset(inspect.signature(model.forward).parameters)
        self.past_name = past_name_of(model)
        self.form = form or CacheForm()
        self.has_rotary_switch = rotary_switch_of(model.config) is not None
        self.temperature_step = temperature_step_of(model.config)
        self.encoded_type: type[Any] = BaseModelOutput  # of this encoder
        # Of those that some cache holds.
        self.encoded_prompts: WeakValueDictionary[tuple[int, ...], EncoderOutput] = (
            WeakValueDictionary()
        )
        self.pads_prompts = False  # several prompts in one pass; set if that is proved
        # False: only rows of one length share a pass, for models that padding affects.
        self.pads_rows = True
        # Restored before each prompt, if prompts change the model.
        self.freshness: Freshness | None = None
        self.decoder_positions = None
        if self.is_encoder_decoder or "position_ids" not in self.parameters:
            self.decoder_positions = install_position_embedding(model.get_decoder())
        self.row_masks = RowMasks(model.get_decoder() if self.is_encoder_decoder else None)

    @property
    def has_own_form(self) -> bool:
        """Whether the model's states have a form other than a DynamicCache."""
        return type(self.form) is not CacheForm

    def refresh(self) -> None:
        """Do nothing: the runner stores nothing of the configuration."""

    def start_ids(self, sequence: Sequence) -> tuple[int, ...]:
        """The tokens of a row before its first new token."""
        if not self.is_encoder_decoder:
            return sequence.prompt_ids
        start_id = sequence.decoder_start_token_id
        start_id = self.default_start_id if start_id is None else start_id
        assert start_id is not None
        return (start_id,)

    def prefill(
        self, sequences: list[Sequence], begun: Mapping[int, SequenceCache] = NONE_BEGUN
    ) -> tuple[list[Any], Tensor]:
        """Prefill prompts. Returns their caches, and the logits of each first new token.

        The logits are (sequences, vocab).
        """
        done: dict[Sequence, tuple[Any, Tensor]] = {}
        for group in prompt_groups(sequences, self._side_of if self.pads_prompts else None):
            computed = self._prefill_padded(group) if len(group) > 1 else [self._prefill(*group)]
            done |= zip(group, computed, strict=True)
        ordered = [done[each] for each in sequences]
        return [cache for cache, _ in ordered], torch.cat([logits for _, logits in ordered])

    def prefill_and_decode(
        self,
        sequences: list[Sequence],
        caches: list[Any],
        tokens: list[int],
        begun: Mapping[int, SequenceCache] = NONE_BEGUN,
    ) -> None:
        """Return None: prompts and decode steps never share a pass."""

    def _prefill(self, sequence: Sequence) -> tuple[JoinedSequenceCache, Tensor]:
        if self.is_encoder_decoder:
            return self._prefill_decoder(sequence)
        prompt = torch.tensor([sequence.prompt_ids], device=self.model.device)
        positions = torch.arange(prompt.shape[1], device=prompt.device)[None]
        cache = self.joined.new_sequence(sequence.num_rows)
        with self._reading(sequence, cache):
            logits, past = self._forward(
                prompt, self._new_cache(), positions, is_first=True,
                attention_mask=torch.ones_like(prompt),
            )  # fmt: skip
        cache.layers = self.form.contents(past)
        cache.commit_prompt(len(sequence.prompt_ids))
        return cache, logits[:, -1]

    def _prefill_padded(
        self, sequences: list[Sequence]
    ) -> list[tuple[JoinedSequenceCache, Tensor]]:
        """Prefill prompts in one pass, padded on the left."""
        width = max(len(each.prompt_ids) for each in sequences)
        num_pads = [width - len(each.prompt_ids) for each in sequences]
        # Padding is masked, so any token works.
        ids = [
            [each.prompt_ids[0]] * pads + list(each.prompt_ids)
            for each, pads in zip(sequences, num_pads, strict=True)
        ]
        device = self.model.device
        at = torch.arange(width, device=device) - torch.tensor(num_pads, device=device)[:, None]
        positions = at.clamp(min=0)
        if self.freshness is not None:
            self.freshness.restore()
        with self._at(positions):
            logits, past = self._forward(
                torch.tensor(ids, device=device), self._new_cache(), positions,
                is_first=True, attention_mask=(at >= 0).long(),
            )  # fmt: skip
        contents = self.form.contents(past, len(sequences))
        done = []
        for row, sequence in enumerate(sequences):
            cache, num_tokens = self.joined.new_sequence(sequence.num_rows), width - num_pads[row]
            cache.layers = [each.of_row(row, num_tokens) for each in contents]
            cache.commit_prompt(num_tokens)
            done.append((cache, logits[row : row + 1, -1]))
        return done

    def _prefill_decoder(self, sequence: Sequence) -> tuple[JoinedSequenceCache, Tensor]:
        """Encode a prompt, unless a running sequence has an equal one, and start the decoder."""
        encoded, past = self.encoded_prompts.get(sequence.prompt_ids), new_cache(self.model)
        prompt = torch.tensor([sequence.prompt_ids], device=self.model.device)
        cache = self.joined.new_sequence(sequence.num_rows)
        # Random numbers that the prefill draws depend on the seed.
        if encoded is None or (self.freshness is not None and sequence.settings.do_sample):
            with self._reading(sequence, cache):
                states = self._encode(prompt)
        if encoded is not None:
            states = encoded.states
            past.cross_attention_cache = filled_cache(encoded.layers)
            past.is_updated = dict.fromkeys(range(len(encoded.layers)), True)
        start = torch.tensor([self.start_ids(sequence)], device=prompt.device)
        logits, _ = self._forward(
            start, past, torch.zeros_like(start), is_first=True,
            attention_mask=torch.ones_like(prompt), decoder_attention_mask=torch.ones_like(start),
            encoder_outputs=self.encoded_type(last_hidden_state=states),
        )  # fmt: skip
        if encoded is None:
            encoded = EncoderOutput(states, keys_by_layer(past.cross_attention_cache))
            self.encoded_prompts[sequence.prompt_ids] = encoded
        cache.layers, cache.encoded = contents_of(past.self_attention_cache), encoded
        cache.commit_prompt(1)
        return cache, logits[:, -1]

    def _encode(self, prompt: Tensor) -> Tensor:
        """Encode a prompt, (1, tokens) int64. Returns (1, tokens, width)."""
        output = self.model.get_encoder()(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), return_dict=True
        )
        self.encoded_type = type(output)
        states: Tensor = output.last_hidden_state
        return states

    @contextmanager
    def _reading(self, sequence: Sequence, cache: JoinedSequenceCache) -> Iterator[None]:
        """Restore the model as it was loaded, and prefill within this context.

        BigBird rebuilds layers at a short text, with random weights that it draws from the stream
        that also samples the answer.
        """
        if self.freshness is None:
            yield
            return
        self.freshness.restore()
        if not sequence.settings.do_sample:
            yield
            return
        assert sequence.settings.seed is not None
        device = self.model.device
        with seeded(device, sequence.settings.seed):
            yield
            is_cuda = device.type == "cuda"
            cache.random_state = (
                torch.cuda.get_rng_state(device) if is_cuda else torch.get_rng_state()
            )

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        """Run a decode step: write the newest token of each row, and return the logits of the next.

        The caller counts the tokens as written. Returns (rows, vocab), valid until the next call.
        """
        row_tokens, at = {}, 0
        for cache in caches:
            row_tokens[cache] = tokens[at : at + cache.num_rows]
            at += cache.num_rows
        groups = by_length(caches, self.pads_rows, self._side_of)
        if len(groups) == 1:
            return self._decode(caches, tokens)
        logits: dict[Any, Tensor] = {}
        for group in groups:
            found = self._decode(group, [token for each in group for token in row_tokens[each]])
            logits |= zip(group, found.split([each.num_rows for each in group]), strict=True)
        return torch.cat([logits[each] for each in caches])

    def _side_of(self, num_tokens: int) -> tuple[int, int]:
        """The side of the length switches: only rows on the same side may share a pass.

        num_tokens: before the newest token
        """
        side = temperature = 0
        if self.has_rotary_switch:
            switch = rotary_switch_of(self.model.config)  # a proof may have moved it
            side = switch is not None and num_tokens >= switch.length
        if self.temperature_step is not None:
            temperature = (num_tokens + 1) // self.temperature_step
        return int(side), temperature

    def _decode(self, caches: list[JoinedSequenceCache], tokens: list[int]) -> Tensor:
        rows = self.joined.join(caches)
        lengths = [cache.length for cache in caches for _ in range(cache.num_rows)]
        inputs = torch.tensor([tokens, lengths], device=self.model.device)
        token_ids, positions = inputs[0, :, None], inputs[1, :, None]
        mask = rows.mask()
        if not self.is_encoder_decoder:
            past = self.form.past_of(rows.past, rows.layers)
            with self._at(positions):
                logits, _ = self._forward(token_ids, past, positions, attention_mask=mask)
            self.form.store(rows.layers)
            return logits[:, -1]
        with self._at(positions), self.row_masks.at(mask, any(rows.num_pads)):
            logits, _ = self._forward(
                token_ids, rows.past, positions, attention_mask=rows.encoder_mask,
                decoder_attention_mask=mask,
                encoder_outputs=self.encoded_type(last_hidden_state=rows.encoder_states),
            )  # fmt: skip
        return logits[:, -1]

    def _at(self, positions: Tensor) -> AbstractContextManager[None]:
        """Pass `positions` to a position embedding that takes none, within this context."""
        if self.decoder_positions is None:
            return nullcontext()
        return self.decoder_positions.at(positions)

    def _new_cache(self) -> Any:
        return None if self.form.is_made_by_model else new_cache(self.model)

    def _forward(
        self, token_ids: Tensor, past: Any, positions: Tensor, is_first: bool = False, **inputs: Any
    ) -> tuple[Tensor, Any]:
        """Run the model. Returns the logits, (rows, tokens, vocab), and the cache that it used.

        The cache may be a new object. token_ids, positions: (rows, tokens)
        """
        name = "decoder_position_ids" if self.is_encoder_decoder else "position_ids"
        if name in self.parameters:
            inputs[name] = positions
        if "logits_to_keep" in self.parameters:
            inputs["logits_to_keep"] = 1
        inputs[self.past_name] = past
        prepared = self.model.prepare_inputs_for_generation(
            token_ids, next_sequence_length=token_ids.shape[1], use_cache=True,
            is_first_iteration=is_first, **inputs,
        )  # fmt: skip
        output = self.model(**prepared, return_dict=True)
        return output.logits, getattr(output, self.past_name, past)


def past_name_of(model: Any) -> str:
    """The name of the cache argument of a model's forward."""
    parameters = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in parameters else "past_key_values"


def filled_cache(layers: list[KeysValues]) -> DynamicCache:
    cache: Any = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache  # type: ignore[no-any-return]  # its layers are of any kind


def new_cache(model: Any) -> Any:
    """An empty cache with the layer kinds that `model.generate` would use."""
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def prompt_groups(
    sequences: list[Sequence], side_of: Callable[[int], Hashable] | None
) -> list[list[Sequence]]:
    """Group prompts to prefill in one pass each, of lengths that need little padding.

    side_of: all prompts of a group have the same value; None: each prompt is a group
    """
    if side_of is None:
        return [[each] for each in sequences]
    groups: list[list[Sequence]] = []
    longest = num_tokens = num_padding = 0
    for each in sorted(sequences, key=lambda one: -len(one.prompt_ids)):
        length = len(each.prompt_ids)
        num_tokens, num_padding = num_tokens + length, num_padding + longest - length
        is_alike = num_padding <= max(FEW_TOKENS, num_tokens * PADDING_SHARE)
        if not groups or not is_alike or side_of(length - 1) != side_of(longest - 1):
            groups.append([])
            longest, num_tokens, num_padding = length, length, 0
        groups[-1].append(each)
    return groups


def by_length(
    caches: list[JoinedSequenceCache], pads_rows: bool, side_of: Callable[[int], Hashable]
) -> list[list[JoinedSequenceCache]]:
    """Group sequences so that padding is bounded.

    No row is padded to more than FACTOR times its length, or NO_MATTER, and no encoder's output to
    more than twice its length, or NO_MATTER, since each row has a copy. All are on the same side.

    pads_rows: False: rows of a group have equal lengths
    """
    groups: dict[Hashable, list[JoinedSequenceCache]] = {}
    for each in caches:
        num_tokens = rough_length(each.length, FACTOR) if pads_rows else each.length
        num_encoded = 0 if each.encoded is None else each.encoded.states.shape[1]
        kind = (side_of(each.length), num_tokens, rough_length(num_encoded, 2))
        groups.setdefault(kind, []).append(each)
    return list(groups.values())


def rough_length(num_tokens: int, factor: int) -> int:
    """A class of lengths in which none is more than `factor` times another, or NO_MATTER."""
    at = 0
    while num_tokens > NO_MATTER:
        num_tokens = -(-num_tokens // factor)
        at += 1
    return at


@torch.inference_mode()
def probe_row_size(model: Any) -> tuple[RowSize, CacheForm]:
    """The size and the form of a model's cache for one row.

    Raises UnknownCache, and any error of the model.
    """
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    past, name = new_cache(model), past_name_of(model)
    if model.config.is_encoder_decoder:
        encoded = model.get_encoder()(input_ids=token, return_dict=True)
        model(
            encoder_outputs=encoded, decoder_input_ids=token, past_key_values=past, use_cache=True
        )
        return RowSize.of(contents_of(past.self_attention_cache)), CacheForm()
    fresh = Freshness(model)
    try:
        try:
            output = model(token, use_cache=True, **{name: past})
            form = form_beside(fresh)
        except Exception:  # it may take another kind of cache
            output = model(token, use_cache=True)
            made = form_made_by(getattr(output, name, None))
            if made is None:
                raise
            form = made
        return RowSize.of(form.contents(getattr(output, name, past))), form
    finally:
        fresh.restore()
