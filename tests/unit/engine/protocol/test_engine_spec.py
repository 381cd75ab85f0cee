import pytest

from engine.errors import SpecError
from engine.protocol.engine_spec import EngineSpec


def spec(**settings) -> EngineSpec:
    return EngineSpec(alias="reports", checkpoint="x", **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "onnx"}, "auto, inflight, exact, ctranslate2, vllm, fake"),
        ({"dtype": "int8"}, "float32"),
        ({"device": "gpu"}, "cuda:N"),
        ({"device": "cuda:x"}, "cuda:N"),
        ({"gpu_memory_utilization": 0.0}, "a share"),
        ({"gpu_memory_utilization": 90}, "at most 1"),
        ({"max_sequences": 0}, "at least 1"),
        ({"threads": 0}, "at least 1"),
        ({"max_new_tokens": -1}, "at least 1"),
        ({"max_sequences": 64, "max_step_tokens": 32}, "could never advance"),
        ({"prompt": {"sing": "{text}"}}, "summarize, translate"),
        ({"prompt": {"summarize": "{document}"}}, "document"),
        ({"prompt": {"summarize": "{"}}, "cannot be filled in"),
        ({"prompt": {"summarize": "Summarize."}}, "{text}"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_in_words(settings, said):
    with pytest.raises(SpecError) as refused:
        spec(**settings)
    assert said in str(refused.value)
    assert "reports" in str(refused.value)


def test_a_spec_survives_json():
    whole = spec(
        device="cuda:1",
        replica=1,
        cpu_kernels=False,
        languages=("en", "fr"),
        prompt={"translate": "{source_language} > {target_language}: {text}"},
        max_input_tokens=9,
    )
    assert EngineSpec.from_json(whole.to_json()) == whole
