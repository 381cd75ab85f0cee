"""Tests of what only some processors have: elsewhere they are skipped, and say so."""

import pytest

from engine.cpu.quantized_linear import has_bfloat16_products

# `quantization = "bfloat16"` is refused elsewhere, which tests/unit/engine/checkpoint shows.
NEEDS_BFLOAT16 = pytest.mark.skipif(
    not has_bfloat16_products(), reason="this processor does not multiply bfloat16"
)
