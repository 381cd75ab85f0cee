"""Finds the shape of the keys and values that a model caches, by one forward pass.

Configurations name it in a dozen ways; the model's own cache has it in one.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

from engine.kv_cache.base import KVShape


@torch.inference_mode()
def probe_kv_shape(model: Any) -> KVShape:
    """The KV shape of a model's decoder, which is also that of its encoder's output."""
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    past: Any
    if model.config.is_encoder_decoder:
        past = EncoderDecoderCache(DynamicCache(), DynamicCache())
        encoded = torch.zeros(1, 1, model.config.hidden_size, device=model.device)
        model(
            encoder_outputs=(encoded.to(model.dtype),),
            decoder_input_ids=token,
            past_key_values=past,
            use_cache=True,
        )
        layers = [*past.self_attention_cache.layers, *past.cross_attention_cache.layers]
        num_layers = len(layers) // 2
    else:
        past = DynamicCache()
        model(token, past_key_values=past, use_cache=True)
        layers = past.layers
        num_layers = len(layers)
    shapes = {tuple(each.shape) for layer in layers for each in (layer.keys, layer.values)}
    assert len(shapes) == 1, f"layers keep {shapes}"
    ((_, num_heads, _, head_size),) = shapes
    return KVShape(num_layers, num_heads, head_size, layers[0].keys.dtype, model.device)
