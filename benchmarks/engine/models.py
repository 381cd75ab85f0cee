"""Writes the models: common sizes, with random weights.

    python -m benchmarks.engine.models FOLDER NAME...

Output embeddings are untied and drawn large, so that the tokens of an answer differ. Only its
length ends an answer. The vocabulary is the words t0, t1, ..., so that the workload, which is made
of token ids, can be given to every side.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import transformers as hf


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The settings of a configuration that determine the cost of a token."""

    family: str
    width: int
    layers: int  # of the decoder; an encoder has as many
    heads: int
    inner: int  # of the feed-forward part
    vocab_size: int
    positions: int = 1024

    @property
    def is_encoder_decoder(self) -> bool:
        return self.family in ("t5", "marian", "bart", "t5gemma")


SHAPES = {
    "llama-1m": Shape(
        family="llama", width=128, layers=4, heads=4, inner=384, vocab_size=2048, positions=2048
    ),
    "llama-15m": Shape(
        family="llama", width=288, layers=6, heads=6, inner=768, vocab_size=32_000, positions=2048
    ),
    "llama-60m": Shape(
        family="llama", width=512, layers=12, heads=8, inner=1536, vocab_size=32_000, positions=2048
    ),
    "gpt2": Shape(family="gpt2", width=768, layers=12, heads=12, inner=3072, vocab_size=50_257),
    "t5-small": Shape(family="t5", width=512, layers=6, heads=8, inner=2048, vocab_size=32_128),
    "marian": Shape(family="marian", width=512, layers=6, heads=8, inner=2048, vocab_size=58_101),
    "bart": Shape(family="bart", width=768, layers=6, heads=12, inner=3072, vocab_size=50_265),
    # Unlisted families, which are proved when they are loaded.
    "gemma3": Shape(
        family="gemma3",
        width=512,
        layers=12,
        heads=8,
        inner=1536,
        vocab_size=32_000,
        positions=2048,
    ),
    "phi3": Shape(
        family="phi3", width=512, layers=12, heads=8, inner=1536, vocab_size=32_000, positions=2048
    ),
    # Two of eight experts for each token, so that a token uses 60M of 120M weights.
    "mixtral": Shape(
        family="mixtral",
        width=512,
        layers=8,
        heads=8,
        inner=768,
        vocab_size=32_000,
        positions=2048,
    ),
    "t5gemma": Shape(
        family="t5gemma",
        width=512,
        layers=6,
        heads=8,
        inner=1536,
        vocab_size=32_000,
        positions=2048,
    ),
}
PAD, BOS, EOS = 0, 1, 2
LAST_OF_LAYER = (
    "o.weight", "wo.weight", "out_proj.weight", "fc2.weight", "o_proj.weight",
    "down_proj.weight", "c_proj.weight",
)  # fmt: skip


def checkpoint(folder: Path, name: str) -> Path:
    """Return the folder of a model; writes the checkpoint if it does not exist yet."""
    place = folder / name
    if not (place / "done").exists():
        place.mkdir(parents=True, exist_ok=True)
        write(place, SHAPES[name])
        (place / "done").touch()
    return place


def write(place: Path, shape: Shape) -> None:
    import torch
    import transformers as hf

    torch.manual_seed(0)
    model = made(shape)
    widen(model)
    start_id = model.config.decoder_start_token_id if shape.is_encoder_decoder else None
    model.generation_config = hf.GenerationConfig(
        decoder_start_token_id=start_id, pad_token_id=PAD, do_sample=False
    )
    model.save_pretrained(place)
    tokenizer(shape).save_pretrained(place)
    sizes = {
        "num_parameters": sum(each.numel() for each in model.parameters()),
        "versions": {"torch": torch.__version__, "transformers": hf.__version__},
    }
    (place / "sizes.json").write_text(json.dumps(sizes))


def widen(model: Any) -> None:
    """Widen the weights so that answers vary from token to token and from prompt to prompt.

    If the layers hide the previous token, a model repeats one token for ever, and every engine
    agrees with it. Here all of 24 tokens after each of four prompts are different.
    """
    import torch

    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # T5's are always tied
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                is_cross = "encoder_attn." in name or "EncDecAttention." in name
                gain = 0.4 if name.endswith(LAST_OF_LAYER) and not is_cross else 0.8
                weight.normal_(0, gain / math.sqrt(weight.shape[-1]))
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_(0, 2.0)
                # As in published models; CTranslate2 lets Marian start from zeros anyway.
                if module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0.0
        head.weight.normal_(0, 1.0)
        # The special tokens are never chosen, for engines that cannot continue after an end token.
        head.weight[[PAD, BOS, EOS, *special_ids(model.config)]] = 0.0


def special_ids(config: Any) -> list[int]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = [getattr(config, name, None) for name in names]  # T5 has no start of a text
    return [each for each in ids if each is not None]


def made(shape: Shape) -> Any:
    import transformers as hf

    if shape.family == "llama":
        return hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=shape.width,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                intermediate_size=shape.inner,
                vocab_size=shape.vocab_size,
                max_position_embeddings=shape.positions,
                tie_word_embeddings=False,
            )
        )
    if shape.family == "gpt2":
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(
                n_embd=shape.width,
                n_layer=shape.layers,
                n_head=shape.heads,
                n_inner=shape.inner,
                n_positions=shape.positions,
                vocab_size=shape.vocab_size,
                bos_token_id=BOS,
                eos_token_id=EOS,
                tie_word_embeddings=False,
            )
        )
    if shape.family in ("gemma3", "phi3", "mixtral", "t5gemma"):
        return newer(shape)
    if shape.family == "t5":
        return hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=shape.width,
                d_kv=shape.width // shape.heads,
                d_ff=shape.inner,
                num_layers=shape.layers,
                num_heads=shape.heads,
                vocab_size=shape.vocab_size,
                decoder_start_token_id=PAD,
                tie_word_embeddings=False,
            )
        )
    if shape.family == "marian":
        pad = shape.vocab_size - 1  # as in those of OPUS
        own = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0}
        config = hf.MarianConfig(**bart_like(shape), **own, activation_function="swish")
        return hf.MarianMTModel(config)
    own = {"pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 0}
    return hf.BartForConditionalGeneration(hf.BartConfig(**bart_like(shape), **own))


def newer(shape: Shape) -> Any:
    """Return a model of a family of 2023-25, with two query heads for each key head, as in most."""
    import transformers as hf

    size = shape.width // shape.heads
    common: dict[str, Any] = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads // 2,
        "intermediate_size": shape.inner,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    gemma = {"head_dim": size, "query_pre_attn_scalar": size, "sliding_window": 256}
    if shape.family == "gemma3":
        return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**common, **gemma))
    if shape.family == "phi3":
        return hf.Phi3ForCausalLM(hf.Phi3Config(**common))
    if shape.family == "mixtral":
        return hf.MixtralForCausalLM(hf.MixtralConfig(**common))
    stack = {**common, **gemma}
    return hf.T5GemmaForConditionalGeneration(
        hf.T5GemmaConfig(
            encoder=stack, decoder=stack, vocab_size=shape.vocab_size, decoder_start_token_id=PAD,
            pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, tie_word_embeddings=False,
        )
    )  # fmt: skip


def bart_like(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocab_size,
        "d_model": shape.width,
        "encoder_layers": shape.layers,
        "decoder_layers": shape.layers,
        "encoder_attention_heads": shape.heads,
        "decoder_attention_heads": shape.heads,
        "encoder_ffn_dim": shape.inner,
        "decoder_ffn_dim": shape.inner,
        "max_position_embeddings": shape.positions,
        "forced_eos_token_id": None,
        "tie_word_embeddings": False,
    }


def tokenizer(shape: Shape) -> hf.PreTrainedTokenizerFast:
    """Return a tokenizer with a word for each token, and without an end token, so that no side adds
    or expects one."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"t{each}": each for each in range(shape.vocab_size)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=shape.positions, pad_token=f"t{PAD}"
    )


def text(prompt: tuple[int, ...]) -> str:
    return " ".join(f"t{each}" for each in prompt)


if __name__ == "__main__":
    for each in sys.argv[2:]:
        checkpoint(Path(sys.argv[1]), each)
