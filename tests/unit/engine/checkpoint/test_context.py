"""The context length is the configured positions, after rotary scaling."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from engine.checkpoint.context import context_tokens
from engine.proof.proved_families import odd_attention

YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


def config_of(folder: Path, **own: Any) -> Any:
    """The configuration as read from a file."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **sizes, **own}))
    return hf.AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    ("positions", "scaling", "expected"),
    [
        (32768, None, 32768),
        (32768, {"rope_type": "yarn", **YARN}, 131072),  # as Qwen's cards say
        (40960, {"rope_type": "yarn", **YARN}, 131072),  # Qwen 3
        (32768, {"type": "yarn", **YARN}, 131072),  # Qwen 2.5, in an older word
        (131072, {"rope_type": "yarn", **YARN}, 131072),
        (1048576, {"rope_type": "yarn", **YARN}, 1048576),
        (4096, {"rope_type": "linear", "factor": 2.0}, 8192),
        (4096, {"rope_type": "dynamic", "factor": 2.0}, 8192),
        (8192, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, 8192),
        (4096, {"rope_type": "default"}, 4096),
    ],
)  # fmt: skip
def test_the_factor_counts_from_the_original_positions(
    tmp_path: Path, positions: int, scaling: dict[str, Any] | None, expected: int
) -> None:
    own = {} if scaling is None else {"rope_scaling": scaling}
    config = config_of(tmp_path, max_position_embeddings=positions, **own)
    assert context_tokens(config, None, "encoder") == expected


WINDOW = "some of its layers look at a window only"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, WINDOW),
        ({"model_type": "mistral", "sliding_window": 128}, None),
        ({"model_type": "mistral", "sliding_window": 4096}, None),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, WINDOW),
        ({"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0}, None),
        # A part of the context, which is longer than the positions.
        ({"model_type": "mistral", "sliding_window": 128,
          "rope_scaling": {"rope_type": "yarn", "factor": 2.0,
                           "original_max_position_embeddings": 128}}, WINDOW),
    ],
)  # fmt: skip
def test_a_window_as_wide_as_the_context_is_none(
    tmp_path: Path, own: dict[str, Any], expected: str | None
) -> None:
    config = config_of(tmp_path, max_position_embeddings=128, **own)
    assert odd_attention(config) == expected


def test_the_length_of_a_table_of_biases_is_a_context() -> None:
    """MPT raises beyond this length."""
    assert context_tokens(hf.MptConfig(max_seq_len=64), None, "encoder") == 64
    assert context_tokens(hf.BloomConfig(), None, "encoder") is None
