"""Models that are published as multimodal; only their text part is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as hf

from tests.checkpoints.decoder_only import llama_like
from tests.checkpoints.proved_at_load import EXPERTS, GQA, WINDOWED
from tests.checkpoints.saving import WIDTH, borrowed, save
from tests.checkpoints.tokenizers import byte_level


def multimodal(
    name: str, other: dict[str, Any], part: str = "vision_config", **text: Any
) -> Callable[[Path], None]:
    """A model of images or audio as published; its text model has the family's name unless `text`
    has a model_type.

    other, part: the configuration of the other modality, and its name
    """

    def write(folder: Path) -> None:
        vocab, merges = byte_level(["<|endoftext|>", "<|image|>", "<|video|>"])
        tokenizer = hf.GPT2Tokenizer(vocab=vocab, merges=merges)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>", "<|video|>"]})
        end, image, video = tokenizer("<|endoftext|><|image|><|video|>")["input_ids"]
        ends = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
        whole = hf.CONFIG_MAPPING[name]
        text_type = text.get("model_type") or type(whole().get_text_config()).model_type
        text_config = hf.CONFIG_MAPPING[text_type](
            **{**llama_like(tokenizer), **GQA, "tie_word_embeddings": False, **text, **ends}
        )
        # The families' names of image tokens.
        names = ("image_token_id", "image_token_index", "boi_token_id", "eoi_token_id")
        config = whole(
            text_config=text_config.to_dict(),
            **{part: other},
            tie_word_embeddings=False,
            **{each: image for each in names},
            **{each: video for each in ("video_token_id", "video_token_index")},
        )
        model = hf.AutoModelForMultimodalLM.from_config(config)
        model.generation_config.update(**ends)
        save(folder, tokenizer, model)

    return write


SEEING = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip

HEARING = {
    "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "num_mel_bins": 8, "max_source_positions": 16,
}  # fmt: skip

SEEING_QWEN = {
    **SEEING, "depth": 1, "num_heads": 2, "embed_dim": 16, "patch_size": 4,
    "out_hidden_size": WIDTH, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip

MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}

SOME = {"num_key_value_heads": 2, "head_dim": 8}

DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip


def phi4_multimodal(folder: Path) -> None:
    """Phi-4-multimodal, whose decoder itself takes images and audio."""
    with borrowed(multimodal("llava", SEEING, model_type="llama"), folder) as (tokenizer, whole):
        end, image = tokenizer.eos_token_id, whole.image_token_index
    config = hf.Phi4MultimodalConfig(
        **{**llama_like(tokenizer), **GQA, "pad_token_id": end}, sliding_window=None,
        original_max_position_embeddings=256,
        vision_config={**SEEING, "num_hidden_layers": 2, "crop_size": 16, "image_token_id": image},
        audio_config={
            "hidden_size": 16, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
            "ext_pw_out_channel": 16, "input_size": 8, "nemo_conv_channels": 16,
            "audio_token_id": image,
        },
    )  # fmt: skip
    model = hf.Phi4MultimodalForCausalLM(config)
    model.generation_config.update(pad_token_id=end, bos_token_id=end, eos_token_id=end)
    save(folder, tokenizer, model)


# Models that are published as multimodal, with the class of the text model to load.
MULTIMODAL: dict[str, Callable[[Path], None]] = {
    "gemma3_vision": multimodal("gemma3", SEEING, **WINDOWED, query_pre_attn_scalar=8),
    "mistral3": multimodal("mistral3", SEEING, **SOME, model_type="mistral"),
    "llava": multimodal("llava", SEEING, model_type="llama"),
    "qwen2_vl": multimodal("qwen2_vl", SEEING_QWEN, rope_parameters=MROPE),
    "qwen2_5_vl": multimodal("qwen2_5_vl", SEEING_QWEN, rope_parameters=MROPE),
    "qwen3_vl": multimodal("qwen3_vl", SEEING_QWEN, **SOME, rope_parameters=MROPE),
    "qwen3_vl_moe": multimodal(
        "qwen3_vl_moe", SEEING_QWEN, **EXPERTS, head_dim=8, rope_parameters=MROPE
    ),
    "llava_next": multimodal("llava_next", SEEING, model_type="llama"),
    "glm4v": multimodal("glm4v", SEEING_QWEN, rope_parameters=MROPE),
    "llama4_vision": multimodal(
        "llama4", SEEING | dict.fromkeys(
            ("vision_output_dim", "projector_input_dim", "projector_output_dim"), 16
        ),
        **SOME, intermediate_size_mlp=2 * WIDTH, num_local_experts=2, attention_chunk_size=12,
    ),
    "qwen2_audio": multimodal("qwen2_audio", HEARING, "audio_config", model_type="qwen2"),
    "qwen3_5_vision": multimodal("qwen3_5", SEEING_QWEN, **SOME, **DELTA),
    "gemma4_vision": multimodal(
        "gemma4", SEEING, **WINDOWED, hidden_size_per_layer_input=8, vocab_size_per_layer_input=384,
        global_head_dim=8,
    ),
}  # fmt: skip
