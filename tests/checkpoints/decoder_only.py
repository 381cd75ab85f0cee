"""Decoder-only models of the listed families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.checkpoints.saving import POSITIONS, WIDTH, save, widen
from tests.checkpoints.tokenizers import CHATML, byte_level, pieces, write_spm


def gpt2(folder: Path) -> None:
    """GPT-2 without a pad token, as published."""
    vocab, merges = byte_level(["<|endoftext|>"])
    tokenizer = hf.GPT2Tokenizer(vocab=vocab, merges=merges)
    config = hf.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    save(folder, tokenizer, hf.GPT2LMHeadModel(config))


def llama_like(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
    }


def llama(folder: Path) -> None:
    # Heads as wide as vector registers, as the fused step requires.
    save_llama(folder, hf.LlamaConfig, hf.LlamaForCausalLM, head_dim=16)


def mistral(folder: Path) -> None:
    save_llama(folder, hf.MistralConfig, hf.MistralForCausalLM, head_dim=16, sliding_window=None)


def save_llama(folder: Path, config: Any, model: Any, **own: Any) -> None:
    spm = pieces(420, model_type="bpe", byte_fallback=True)
    write_spm(spm, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = hf.LlamaTokenizer.from_pretrained(folder)
    save(
        folder,
        tokenizer,
        model(config(**{**llama_like(tokenizer), "num_key_value_heads": 2, **own})),
    )


def qwen2(folder: Path) -> None:
    save_qwen(folder, hf.Qwen2Config, hf.Qwen2ForCausalLM)


def qwen3(folder: Path) -> None:
    save_qwen(folder, hf.Qwen3Config, hf.Qwen3ForCausalLM, head_dim=16)


def save_qwen(folder: Path, config: Any, model_class: Any, **more: Any) -> None:
    """A chat model that samples by default."""
    vocab, merges = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = hf.Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHATML,
    )
    model = model_class(config(**llama_like(tokenizer), num_key_value_heads=2, **more))
    own = model.generation_config
    own.do_sample, own.temperature, own.top_k, own.top_p = True, 0.7, 20, 0.8
    own.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    own.pad_token_id = tokenizer.pad_token_id
    save(folder, tokenizer, model)


def opt(folder: Path) -> None:
    """OPT: learned positions that begin at two and are counted from the mask."""
    vocab, merges = byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer = hf.GPT2Tokenizer(
        vocab=vocab,
        merges=merges,
        unk_token="</s>",
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
    )
    config = hf.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        ffn_dim=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        word_embed_proj_dim=WIDTH,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    save(folder, tokenizer, hf.OPTForCausalLM(config))


def gpt_neox(folder: Path) -> None:
    vocab, merges = byte_level(["<|endoftext|>", "<|padding|>"])
    tokenizer = hf.GPTNeoXTokenizer(vocab=vocab, merges=merges)
    config = hf.GPTNeoXConfig(**llama_like(tokenizer))
    save(folder, tokenizer, hf.GPTNeoXForCausalLM(config))


def with_heads_of_32(folder: Path, model_type: str | None = None, **own: Any) -> Path:
    """A wider copy for vLLM, which supports no smaller heads on a CPU.

    model_type: of another family, if given
    own: settings of its configuration
    """
    config = hf.AutoConfig.from_pretrained(folder).to_dict()
    generation_config = hf.GenerationConfig.from_pretrained(folder)
    sizes = {"hidden_size": 128, "n_embd": 128, "word_embed_proj_dim": 128}
    sizes |= {"intermediate_size": 256, "ffn_dim": 256}
    config |= {name: size for name, size in sizes.items() if name in config}
    config |= {"head_dim": 32, "architectures": None, **own}
    own_type = config.pop("model_type")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = hf.AutoModelForCausalLM.from_config(
            hf.AutoConfig.for_model(model_type or own_type, **config)
        )
        model.generation_config = generation_config
        eos = generation_config.eos_token_id
        widen(model, eos if isinstance(eos, list) else [eos])
    model.save_pretrained(folder)
    return folder


DECODER_ONLY: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (gpt2, llama, mistral, qwen2, qwen3, opt, gpt_neox)
}
