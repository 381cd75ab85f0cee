"""docs/models.md: what it says to write in tidemill.toml is read, prompts included."""

import re
from pathlib import Path

import pytest

from engine.protocol.engine_spec import EngineSpec
from tasks.configuration.catalog import Catalog
from tests.running.workers import ROOT

PAGE = (ROOT / "docs" / "models.md").read_text()
BY_NAME = PAGE.partition("## By name")[2]
SECTIONS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", BY_NAME, re.DOTALL | re.MULTILINE))
NAMES = (
    "Qwen 3", "Qwen 3.5", "Gemma 3", "Gemma 4", "Llama 3", "Llama 4", "Phi-4", "Mistral Small 3",
    "LFM2", "Falcon-H1",
    "SmolLM3", "gpt-oss", "Granite", "OLMo", "Aya", "TranslateGemma", "MADLAD-400", "NLLB", "Tower",
    "Seed-X",
)  # fmt: skip


def test_every_popular_model_has_a_section() -> None:
    assert tuple(SECTIONS) == NAMES


@pytest.mark.parametrize("name", SECTIONS)
def test_every_setting_on_the_models_page_is_accepted(name: str, tmp_path: Path) -> None:
    (fragment,) = re.findall(r"^```toml\n(.*?)^```", SECTIONS[name], re.DOTALL | re.MULTILINE)
    path = tmp_path / "tidemill.toml"
    path.write_text(fragment)
    (model,) = Catalog.load(path).models.values()
    spec = EngineSpec.from_json(
        {"alias": model.alias, "checkpoint": model.checkpoint, "prompt": model.prompt,
         "chat_template_kwargs": model.chat_template_kwargs}
    )  # fmt: skip
    assert EngineSpec.from_json(spec.to_json()) == spec
    assert "/" in model.checkpoint
    assert set(model.prompt) <= set(model.tasks)


def test_all_fragments_are_one_configuration_together(tmp_path: Path) -> None:
    path = tmp_path / "tidemill.toml"
    path.write_text("\n".join(re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)))
    assert len(Catalog.load(path).models) == len(NAMES)
