"""OwnCacheRunner: forward passes by a model's own code alone, attention and cache included.

What a model is given is what `model.generate` gives it for a batch that is padded on the left:
nothing of its attention need be known here, so windows, soft caps, sinks and ALiBi are its own.
Prompts are computed one by one where padding would change them, which a recurrence may.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from engine.core.sequence import Sequence
from engine.kv_cache.base import KVCacheManager
from engine.kv_cache.joined import Encoded, JoinedKVCache, JoinedSequenceCache, keys_by_layer
from engine.kv_cache.joined_layers import contents_of
from engine.kv_cache.row_size import RowSize
from engine.runners.length_switches import rotary_switch_of, temperature_step_of
from engine.runners.position_embedding import install_position_embedding

# Rows are padded to the longest of a pass. A pass of its own for the much longer ones reads the
# weights again, and saves memory and time where keys are the most of what is read.
NO_MATTER = 512
FACTOR = 4
# Of the prompts of a pass; so much more is computed faster than in another pass.
PADDING_SHARE = 0.25
FEW_TOKENS = 64


class OwnCacheRunner:
    def __init__(self, model: Any, kv_cache: JoinedKVCache, default_start_id: int | None) -> None:
        """default_start_id: of an encoder-decoder, unless a sequence names another"""
        self.model = model
        self.kv_cache: KVCacheManager = kv_cache
        self.joined = kv_cache
        self.default_start_id = default_start_id
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.parameters = frozenset(inspect.signature(model.forward).parameters)
        self.past_name = past_name_of(model)
        self.has_rotary_switch = rotary_switch_of(model.config) is not None
        self.temperature_step = temperature_step_of(model.config)
        self.pads_prompts = False  # several in one pass; set where that is proved
        self.decoder_positions = None
        if self.is_encoder_decoder:
            self.decoder_positions = install_position_embedding(model.get_decoder())

    def refresh(self) -> None:
        """Look at the model anew. Nothing is kept of it."""

    def start_ids(self, sequence: Sequence) -> tuple[int, ...]:
        """The tokens of a row before the first new one."""
        if not self.is_encoder_decoder:
            return sequence.prompt_ids
        start_id = sequence.decoder_start_token_id
        start_id = self.default_start_id if start_id is None else start_id
        assert start_id is not None
        return (start_id,)

    def prefill(self, sequences: list[Sequence]) -> tuple[list[Any], Tensor]:
        """Compute prompts. Returns their caches, and the logits of each first new token:
        (sequences, vocab)."""
        done: dict[Sequence, tuple[Any, Tensor]] = {}
        for group in prompt_groups(sequences, self._side_of if self.pads_prompts else None):
            computed = self._prefill_padded(group) if len(group) > 1 else [self._prefill(*group)]
            done |= zip(group, computed, strict=True)
        ordered = [done[each] for each in sequences]
        return [cache for cache, _ in ordered], torch.cat([logits for _, logits in ordered])

    def prefill_and_decode(
        self, sequences: list[Sequence], caches: list[Any], tokens: list[int]
    ) -> None:
        """Returns None: a prompt is computed without company."""

    def _prefill(self, sequence: Sequence) -> tuple[JoinedSequenceCache, Tensor]:
        past: Any = new_cache(self.model)
        output = self._forward_prompt(sequence, past)
        cache = self.joined.new_sequence(sequence.num_rows)
        if self.is_encoder_decoder:
            states, logits = output
            cache.layers = contents_of(past.self_attention_cache)
            cache.encoded = Encoded(states, keys_by_layer(past.cross_attention_cache))
            cache.commit_prompt(1)
        else:
            logits, past = output
            cache.layers = contents_of(past)
            cache.commit_prompt(len(sequence.prompt_ids))
        return cache, logits[:, -1]

    def _prefill_padded(
        self, sequences: list[Sequence]
    ) -> list[tuple[JoinedSequenceCache, Tensor]]:
        """Prompts in one pass, padded on the left."""
        width = max(len(each.prompt_ids) for each in sequences)
        num_pads = [width - len(each.prompt_ids) for each in sequences]
        # What stands in the padding is masked, so that any token will do.
        ids = [
            [each.prompt_ids[0]] * pads + list(each.prompt_ids)
            for each, pads in zip(sequences, num_pads, strict=True)
        ]
        device = self.model.device
        at = torch.arange(width, device=device) - torch.tensor(num_pads, device=device)[:, None]
        logits, past = self._forward(
            torch.tensor(ids, device=device), new_cache(self.model), at.clamp(min=0),
            is_first=True, attention_mask=(at >= 0).long(),
        )  # fmt: skip
        contents = contents_of(past, len(sequences))
        done = []
        for row, sequence in enumerate(sequences):
            cache, num_tokens = self.joined.new_sequence(sequence.num_rows), width - num_pads[row]
            cache.layers = [each.of_row(row, num_tokens) for each in contents]
            cache.commit_prompt(num_tokens)
            done.append((cache, logits[row : row + 1, -1]))
        return done

    def _forward_prompt(self, sequence: Sequence, past: Any) -> tuple[Any, Any]:
        """The encoder's states, if there is an encoder, and the logits; else the logits, and the
        cache that the model filled."""
        prompt = torch.tensor([sequence.prompt_ids], device=self.model.device)
        mask = torch.ones_like(prompt)
        if not self.is_encoder_decoder:
            positions = torch.arange(prompt.shape[1], device=prompt.device)[None]
            return self._forward(prompt, past, positions, is_first=True, attention_mask=mask)
        encoder = self.model.get_encoder()
        encoded = encoder(input_ids=prompt, attention_mask=mask, return_dict=True)
        start = torch.tensor([self.start_ids(sequence)], device=prompt.device)
        logits, _ = self._forward(
            start, past, torch.zeros_like(start), is_first=True, attention_mask=mask,
            decoder_attention_mask=torch.ones_like(start), encoder_outputs=encoded,
        )  # fmt: skip
        return encoded.last_hidden_state, logits

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        """Compute a step: store the newest token of each row, which the caller then counts, and
        return the logits of the next, (rows, vocab), good until the next call."""
        row_tokens, at = {}, 0
        for cache in caches:
            row_tokens[cache] = tokens[at : at + cache.num_rows]
            at += cache.num_rows
        groups = by_length(caches, self._side_of)
        if len(groups) == 1:
            return self._decode(caches, tokens)
        logits: dict[Any, Tensor] = {}
        for group in groups:
            found = self._decode(group, [token for each in group for token in row_tokens[each]])
            logits |= zip(group, found.split([each.num_rows for each in group]), strict=True)
        return torch.cat([logits[each] for each in caches])

    def _side_of(self, num_tokens: int) -> tuple[int, int]:
        """The side of the switch a row is on: rows of one side may share a pass.

        num_tokens: before the newest"""
        side = temperature = 0
        if self.has_rotary_switch:
            switch = rotary_switch_of(self.model.config)  # a proof may have it elsewhere
            side = switch is not None and num_tokens >= switch.length
        if self.temperature_step is not None:
            temperature = (num_tokens + 1) // self.temperature_step
        return int(side), temperature

    def _decode(self, caches: list[JoinedSequenceCache], tokens: list[int]) -> Tensor:
        rows = self.joined.join(caches)
        lengths = [cache.length for cache in caches for _ in range(cache.num_rows)]
        inputs = torch.tensor([tokens, lengths], device=self.model.device)
        token_ids, positions = inputs[0, :, None], inputs[1, :, None]
        if not self.is_encoder_decoder:
            logits, _ = self._forward(token_ids, rows.past, positions, attention_mask=rows.mask())
            return logits[:, -1]
        at: Any = nullcontext()
        if self.decoder_positions is not None:
            at = self.decoder_positions.at(positions)
        with at:
            logits, _ = self._forward(
                token_ids, rows.past, positions, attention_mask=rows.encoder_mask,
                decoder_attention_mask=rows.mask(),
                encoder_outputs=BaseModelOutput(last_hidden_state=rows.encoder_states),
            )  # fmt: skip
        return logits[:, -1]

    def _forward(
        self, token_ids: Tensor, past: Any, positions: Tensor, is_first: bool = False, **inputs: Any
    ) -> tuple[Tensor, Any]:
        """(rows, tokens, vocab) logits, and the cache that the model used, which may be another.
        token_ids, positions: (rows, tokens)"""
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
    """The name by which a model takes its cache."""
    parameters = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in parameters else "past_key_values"


def new_cache(model: Any) -> Any:
    """An empty cache, with the kinds of layers that `model.generate` would give it."""
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def prompt_groups(
    sequences: list[Sequence], side_of: Callable[[int], Hashable] | None
) -> list[list[Sequence]]:
    """Prompts that are computed in one pass each, so alike in length that little is padding.

    side_of: all of a group are on one side; None: each is a group of its own
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
    caches: list[JoinedSequenceCache], side_of: Callable[[int], Hashable]
) -> list[list[JoinedSequenceCache]]:
    """Groups in which no row is padded to more than FACTOR times its length, or NO_MATTER, and
    all are on one side."""
    groups: dict[tuple[Hashable, int], list[JoinedSequenceCache]] = {}
    for each in caches:
        num_tokens, group = each.length, 0
        while num_tokens > NO_MATTER:
            num_tokens //= FACTOR
            group += 1
        groups.setdefault((side_of(each.length), group), []).append(each)
    return list(groups.values())


@torch.inference_mode()
def probe_row_size(model: Any) -> RowSize:
    """The size of what a model keeps of a row. Raises what the model raises, and UnknownCache."""
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    past, name = new_cache(model), past_name_of(model)
    if model.config.is_encoder_decoder:
        model(input_ids=token, decoder_input_ids=token, past_key_values=past, use_cache=True)
        return RowSize.of(contents_of(past.self_attention_cache))
    output = model(token, use_cache=True, **{name: past})
    return RowSize.of(contents_of(getattr(output, name, past)))
