"""Faults of a step, each of which breaks one thing that it must get right."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.backends.router import RouterBackend
from engine.kv_cache.own_cache.joined import JoinedKVCache, JoinedRows, JoinedSequenceCache
from engine.kv_cache.own_cache.joined_layers import SpareLayer
from engine.proof import answered_in_flight
from tests import checkpoints


def roll_rows(decode):
    return lambda runner, tokens, positions: decode(runner, tokens, positions).roll(1, dims=0)


def break_it(fault: str, engine: RouterBackend, monkeypatch) -> None:
    runner = engine.in_flight.runner
    if fault == "mask":  # a row sees the columns before its first token
        whole = JoinedRows.mask
        monkeypatch.setattr(JoinedRows, "mask", lambda rows: torch.ones_like(whole(rows)))
    elif fault == "padding":  # a row's first token is hidden from it
        whole = JoinedRows.mask

        def hidden(rows):
            mask = whole(rows)
            mask[:, :-2] = mask[:, :-2] * torch.roll(mask, 1, dims=1)[:, :-2]
            mask[:, 0] = 0
            return mask

        monkeypatch.setattr(JoinedRows, "mask", hidden)
    elif fault == "length":  # the newest token goes where the one before is
        whole_resize = SpareLayer.resize

        def resize(layer, num_columns):
            whole_resize(layer, num_columns)
            if layer.keys.shape[0] > 1:
                layer.keys[:, :, -1] = layer.keys[:, :, 0]

        monkeypatch.setattr(SpareLayer, "resize", resize)
    elif fault == "rows":  # two rows of a step have each other's logits
        decode = runner._decode
        monkeypatch.setattr(
            runner, "_decode", lambda caches, tokens: decode(caches, tokens).roll(1, dims=0)
        )
    elif fault == "reorder":  # beams keep the keys of others
        monkeypatch.setattr(JoinedSequenceCache, "reorder", lambda cache, rows: None)
    elif fault == "shuffled":  # beams take the keys of the wrong parents
        reorder = JoinedSequenceCache.reorder
        monkeypatch.setattr(
            JoinedSequenceCache, "reorder", lambda cache, rows: reorder(cache, rows.flip(0))
        )
    elif fault == "left":  # once a row has left, the others' padding is seen
        whole, forget, left = JoinedRows.mask, JoinedKVCache.forget, []
        monkeypatch.setattr(
            JoinedKVCache, "forget", lambda *given: left.append(True) or forget(*given)
        )
        monkeypatch.setattr(
            JoinedRows, "mask",
            lambda rows: torch.ones_like(whole(rows)) if left else whole(rows),
        )  # fmt: skip
    elif fault == "encoder":  # all of the longest prompt is seen
        joined_of = JoinedKVCache._joined

        def unmasked(manager, caches):
            rows = joined_of(manager, caches)
            rows.encoder_mask = torch.ones_like(rows.encoder_mask)
            return rows

        monkeypatch.setattr(JoinedKVCache, "_joined", unmasked)
    elif fault == "window":  # in flight every token is seen, and none is dropped
        if not runner.is_encoder_decoder:
            monkeypatch.setattr(
                "engine.runners.own_cache.new_cache", lambda model: checkpoints.hf.DynamicCache()
            )
        whole_decode = runner._decode
        configs = {
            id(each.config): each.config
            for each in runner.model.modules()
            if hasattr(each, "config") and hasattr(each.config, "sliding_window")
        }

        def decode(caches, tokens):
            short = {id_: each.sliding_window for id_, each in configs.items()}
            for each in configs.values():
                each.sliding_window = 1000
            try:
                return whole_decode(caches, tokens)
            finally:
                for id_, each in configs.items():
                    each.sliding_window = short[id_]

        monkeypatch.setattr(runner, "_decode", decode)
    else:  # a processor that looks back does nothing
        whole_choice = engine.in_flight._choice_of

        def choice_of(backend, sequence):
            settings = replace(sequence.settings, repetition_penalty=1.0)
            sequence.settings = settings
            return whole_choice.__func__(backend, sequence)

        monkeypatch.setattr(answered_in_flight.RecordingBackend, "_choice_of", choice_of)
