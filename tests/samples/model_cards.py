"""The card of a model that is not there."""

from engine.protocol.model_card import ModelCard

FAKE_CARD = ModelCard(
    alias="fake",
    checkpoint="fake",
    revision="one",
    family="fake",
    engine="fake",
    model_type="fake",
    device="cpu",
    dtype="float32",
    max_context_tokens=None,
    num_parameters=0,
)
