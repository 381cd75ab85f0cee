"""Tiny checkpoints of each family in Hugging Face format, with random weights.

The tokenizers are of the kind that the family has, trained here on a small text. The
weights are drawn large and the output embeddings apart from the input embeddings, so
that greedy answers vary from token to token and from prompt to prompt; a model that
says one token for ever would agree with anything.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers as hf
from tokenizers import ByteLevelBPETokenizer

WIDTH = 32
# Where the usual seed gives a model that repeats itself or does not hear its encoder.
SEEDS = {"marian": 5, "m2m100": 6, "pegasus": 0, "bigbird_pegasus": 2, "nllb_moe": 0, "t5gemma": 5}
POSITIONS = 256

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

WORDS = {
    "en": "the mill harbour keeper river report storm turned closed counted at night and morning "
    "water grain boat rain wheel slowly three seven translate summarize English French German to",
    "fr": "le moulin port gardien rivière rapport orage tournait fermé compté la nuit et matin "
    "eau grain bateau pluie roue lentement trois sept",
    "de": "die Mühle Hafen Wärter Fluss Bericht Sturm drehte geschlossen zählte in Nacht und "
    "Morgen Wasser Korn Boot Regen Rad langsam drei sieben",
    "zh": "今天 天气 很好 磨坊 港口 河流 报告 暴风雨 夜里 早上 水 谷物 船 雨 轮子 慢慢地",
}


@functools.cache
def corpus() -> tuple[str, ...]:
    """Some hundred sentences without meaning in four languages."""
    draw = random.Random(7)
    lines = []
    for language, words in WORDS.items():
        space = "" if language == "zh" else " "
        for _ in range(150):
            line = space.join(draw.choice(words.split()) for _ in range(draw.randint(4, 14)))
            lines.append(line + draw.choice(".!?,;"))
    return tuple(lines)


def sentences(num: int, language: str = "en", seed: int = 0) -> list[str]:
    """Prompts of very different lengths, some of them alike."""
    draw = random.Random(f"{seed} {language}")
    words = WORDS[language].split()
    lengths = itertools.islice(itertools.cycle([3, 21, 9, 8, 33, 20]), num)
    return [" ".join(draw.choice(words) for _ in range(length)) for length in lengths]


def build(kind: str, folder: Path) -> Path:
    """Write the checkpoint of one of KINDS into the folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS.get(kind, 1))
        named = UNPROVED | UNLISTED | CHANGED_BY_REQUESTS | AMPLE | LONG
        (KINDS | named | SCALED | SWITCHED | MULTIMODAL)[kind](folder)
    return folder


def widen(model: Any, eos_token_ids: list[int]) -> None:
    """Weights at which attention and positions matter; an end that comes now and then.

    With tied embeddings, or with layers so strong that they drown the token before, a
    random model repeats itself.
    """
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                is_cross = "encoder_attn.out_proj" in name or "EncDecAttention.o." in name
                gain = 1.0 if is_cross else 0.8
                weight.normal_(0, gain / math.sqrt(weight.shape[-1]))
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Embedding):
                # A T5 knows positions by this bias alone.
                module.weight.normal_(0, 2.0 if "relative" in name else 1.0)
        head.weight.normal_(0, 1.0)
        head.weight[eos_token_ids] *= 1.6


# Tokenizers


def pieces(vocab_size: int, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece model of the corpus; unigram unless it is told otherwise."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def scores(spm: sentencepiece.SentencePieceProcessor) -> list[tuple[str, float]]:
    return [(spm.id_to_piece(each), spm.get_score(each)) for each in range(spm.get_piece_size())]


def write_spm(spm: sentencepiece.SentencePieceProcessor, path: Path) -> str:
    path.write_bytes(spm.serialized_model_proto())
    return str(path)


def byte_level(special_tokens: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and merges of a byte-level BPE."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        corpus(), vocab_size=380, special_tokens=special_tokens, show_progress=False
    )
    state = json.loads(trainer.to_str())["model"]
    return state["vocab"], [tuple(each) for each in state["merges"]]


def t5_tokenizer(model_max_length: int = 128) -> Any:
    spm = pieces(260, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return hf.T5Tokenizer(
        vocab=[*scores(spm), *((f"<extra_id_{each}>", 0.0) for each in range(9, -1, -1))],
        extra_ids=10,
        model_max_length=model_max_length,
    )


# Encoder-decoders


def t5(folder: Path) -> None:
    save_t5(folder, hf.T5Config, hf.T5ForConditionalGeneration)


def mt5(folder: Path) -> None:
    save_t5(folder, hf.MT5Config, hf.MT5ForConditionalGeneration)


def save_t5(folder: Path, config_type: Any, model_type: Any) -> None:
    tokenizer = t5_tokenizer()
    config = config_type(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    save(folder, tokenizer, model_type(config))


def bart_like(tokenizer: Any, **own: Any) -> dict[str, Any]:
    """What the configurations of BART's relatives have in common."""
    return {
        "vocab_size": len(tokenizer),
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * WIDTH,
        "decoder_ffn_dim": 2 * WIDTH,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "forced_eos_token_id": None,
        **own,
    }


def bart(folder: Path) -> None:
    """As a published summarizer is: with beams and lengths of its own."""
    vocab, merges = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer = hf.BartTokenizer(vocab=vocab, merges=merges)
    config = hf.BartConfig(**bart_like(tokenizer, decoder_start_token_id=2))
    model = hf.BartForConditionalGeneration(config)
    own = model.generation_config
    own.num_beams, own.max_length, own.min_length = 4, 24, 8
    own.length_penalty, own.no_repeat_ngram_size, own.early_stopping = 2.0, 3, True
    own.forced_bos_token_id, own.forced_eos_token_id = 0, 2
    save(folder, tokenizer, model)


def pegasus(folder: Path) -> None:
    spm = pieces(260, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    before = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{each}>" for each in range(2, 103))]
    vocab = [*((each, 0.0) for each in before), ("<unk>", 0.0), *scores(spm)[3:]]
    tokenizer = hf.PegasusTokenizer(vocab=vocab)
    config = hf.PegasusConfig(**bart_like(tokenizer, decoder_start_token_id=0))
    save(folder, tokenizer, hf.PegasusForConditionalGeneration(config))


def marian(folder: Path) -> None:
    save_marian(folder, [], source_lang="en", target_lang="fr")


def marian_multi(folder: Path) -> None:
    """To several languages, named by a token before the text."""
    save_marian(folder, [">>fra<<", ">>deu<<"], source_lang="eng", target_lang="mul")


def save_marian(folder: Path, codes: list[str], **languages: str) -> None:
    source, target = pieces(260), pieces(240, character_coverage=1.0)
    names = {each for spm in (source, target) for each, _ in scores(spm)[3:]}
    vocab = ["</s>", "<unk>", *sorted(names), *codes, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({each: at for at, each in enumerate(vocab)}))
    tokenizer = hf.MarianTokenizer(
        source_spm=write_spm(source, folder / "source.spm"),
        target_spm=write_spm(target, folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
        **languages,
    )
    start = tokenizer.pad_token_id
    config = hf.MarianConfig(
        **bart_like(tokenizer, decoder_start_token_id=start, decoder_vocab_size=len(tokenizer))
    )
    model = hf.MarianMTModel(config)
    # Published ones may not say the pad token, from which their decoder starts.
    model.generation_config.bad_words_ids = [[start]]
    save(folder, tokenizer, model)


def m2m100(folder: Path) -> None:
    spm = pieces(260)
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *(each for each, _ in scores(spm)[3:])]
    (folder / "vocab.json").write_text(json.dumps({each: at for at, each in enumerate(vocab)}))
    tokenizer = hf.M2M100Tokenizer(
        vocab_file=str(folder / "vocab.json"),
        spm_file=write_spm(spm, folder / "sentencepiece.bpe.model"),
    )
    size = len(vocab) + len(tokenizer.lang_code_to_id) + tokenizer.num_madeup_words
    save_m2m100(folder, tokenizer, size)


def nllb(folder: Path) -> None:
    """NLLB is an M2M100 model with another tokenizer."""
    spm = pieces(260, model_type="bpe")
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for piece, _ in scores(spm)[3:]:
        vocab[piece] = len(vocab)
    merges = [
        (piece[:at], piece[at:])
        for piece in vocab
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab and not piece.startswith("<")
    ]
    tokenizer = hf.NllbTokenizer(vocab=vocab, merges=merges)
    save_m2m100(folder, tokenizer, len(tokenizer))


def save_m2m100(folder: Path, tokenizer: Any, vocab_size: int) -> None:
    own = bart_like(tokenizer, decoder_start_token_id=2) | {"vocab_size": vocab_size}
    save(folder, tokenizer, hf.M2M100ForConditionalGeneration(hf.M2M100Config(**own)))


def mbart(folder: Path) -> None:
    tokenizer = hf.MBart50Tokenizer(vocab=[list(each) for each in scores(pieces(260))])
    config = hf.MBartConfig(**bart_like(tokenizer, decoder_start_token_id=2))
    save(folder, tokenizer, hf.MBartForConditionalGeneration(config))


# Decoder-only


def gpt2(folder: Path) -> None:
    """Without a pad token, as published."""
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
    # Heads as wide as registers, as the fused step needs them.
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
    """A chat model that samples unless it is told otherwise."""
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
    """Learned positions that begin at two and are counted from the mask."""
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
    """The same with a wider model, for vLLM, which knows no smaller heads on a CPU.

    model_type: if it is to be of another family; own: of its configuration
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


def save(folder: Path, tokenizer: Any, model: Any) -> None:
    tokenizer.save_pretrained(folder)
    eos = model.generation_config.eos_token_id
    widen(model, eos if isinstance(eos, list) else [eos])
    model.save_pretrained(folder)


ENCODER_DECODERS: dict[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (t5, mt5, bart, pegasus, marian, marian_multi, m2m100, nllb, mbart)
}
DECODER_ONLY: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (gpt2, llama, mistral, qwen2, qwen3, opt, gpt_neox)
}
KINDS = ENCODER_DECODERS | DECODER_ONLY


def as_decoder(folder: Path, kind: str, model_class: Any, **own: Any) -> None:
    """The decoder of an encoder-decoder alone, as its `...ForCausalLM`."""
    source = build(kind, folder / "source")
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    config = hf.AutoConfig.from_pretrained(source)
    config.is_encoder_decoder, config.is_decoder = False, True
    save(folder, tokenizer, model_class(config))
    shutil.rmtree(source)


def bart_decoder(folder: Path) -> None:
    as_decoder(folder, "bart", hf.BartForCausalLM)


def mbart_decoder(folder: Path) -> None:
    as_decoder(folder, "mbart", hf.MBartForCausalLM)


def marian_decoder(folder: Path) -> None:
    as_decoder(folder, "marian", hf.MarianForCausalLM)


def pegasus_decoder(folder: Path) -> None:
    as_decoder(folder, "pegasus", hf.PegasusForCausalLM)


def rwkv(folder: Path) -> None:
    vocab, merges = byte_level(["<|endoftext|>"])
    tokenizer = hf.GPT2Tokenizer(vocab=vocab, merges=merges)
    config = hf.RwkvConfig(
        vocab_size=len(tokenizer),
        context_length=POSITIONS,
        hidden_size=WIDTH,
        attention_hidden_size=WIDTH,
        num_hidden_layers=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save(folder, tokenizer, hf.RwkvForCausalLM(config))


def longrope(num_tokens: int, num_frequencies: int) -> dict[str, Any]:
    """Its rotary frequencies are others once a text is longer than so many tokens."""
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": num_tokens,
        "short_factor": [1.0] * num_frequencies,
        "long_factor": [1.0 + each for each in range(num_frequencies)],
    }


def llama_dynamic(folder: Path) -> None:
    """Its rotary frequencies grow beyond the positions."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    save_llama(folder, hf.LlamaConfig, hf.LlamaForCausalLM, head_dim=16, rope_parameters=rope)


def llama_yarn(folder: Path) -> None:
    """As Qwen's cards say: the context is the factor times the original."""
    rope = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 48,
    }  # fmt: skip
    own = {"rope_parameters": rope, "max_position_embeddings": 48}
    save_llama(folder, hf.LlamaConfig, hf.LlamaForCausalLM, head_dim=16, **own)


def bigbird_pegasus(folder: Path, **own: Any) -> None:
    """Texts above 5 + 2 blocks are attended to in blocks."""
    spm = pieces(260, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    before = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{each}>" for each in range(2, 103))]
    vocab = [*((each, 0.0) for each in before), ("<unk>", 0.0), *scores(spm)[3:]]
    tokenizer = hf.PegasusTokenizer(vocab=vocab)
    own = {"block_size": 4, "num_random_blocks": 1, **own}
    own = bart_like(tokenizer, decoder_start_token_id=0, **own)
    config = hf.BigBirdPegasusConfig(**own, attention_type="block_sparse")
    save(folder, tokenizer, hf.BigBirdPegasusForConditionalGeneration(config))


def nllb_moe(folder: Path, fraction: float = 0.25) -> None:
    """Its rows compete for experts that take fewer tokens than come; at a fraction of 1 they take
    all, as in what is published."""
    source = build("m2m100", folder / "source")
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    own = hf.AutoConfig.from_pretrained(source).to_dict()
    names = (
        "vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads",
        "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings",
        "pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id",
    )  # fmt: skip
    config = hf.NllbMoeConfig(
        **{name: own[name] for name in names},
        num_experts=4,
        moe_eval_capacity_token_fraction=fraction,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
    )
    save(folder, tokenizer, hf.NllbMoeForConditionalGeneration(config))
    shutil.rmtree(source)


def rwkv_rescaled(folder: Path) -> None:
    """It divides its weights at its first forward, once."""
    rwkv(folder)
    model = hf.RwkvForCausalLM.from_pretrained(folder)
    model.config.rescale_every = 1
    model.save_pretrained(folder)


# Families whose requests may not share a call.
UNPROVED: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (rwkv, rwkv_rescaled, nllb_moe)
}


def unlisted(config_type: Any, **own: Any) -> Callable[[Path], None]:
    """One of the decoder-only families that are named nowhere, with GPT-2's tokenizer."""

    def write(folder: Path) -> None:
        vocab, merges = byte_level(["<|endoftext|>"])
        tokenizer = hf.GPT2Tokenizer(vocab=vocab, merges=merges)
        ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = config_type(**{**llama_like(tokenizer), "pad_token_id": None, **own, **ends})
        save(folder, tokenizer, hf.AutoModelForCausalLM.from_config(config))

    return write


JAMBA = {
    "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
    "expert_layer_period": 2, "num_experts": 2, "mamba_dt_rank": 4, "use_mamba_kernels": False,
}  # fmt: skip
# Recurrent layers.
MAMBA = {"state_size": 4, "time_step_rank": 4}
MAMBA_2 = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}  # fmt: skip
DELTA_NET = {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8,
}  # fmt: skip
LONGCAT = {
    "num_layers": 1, "num_hidden_layers": 2, "ffn_hidden_size": 2 * WIDTH,
    "expert_ffn_hidden_size": WIDTH, "n_routed_experts": 4, "zero_expert_num": 1, "moe_topk": 2,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "head_dim": 8,
}  # fmt: skip


def unlisted_seq2seq(
    config_type: Any, model_type: str, model_max_length: int = 128, **own: Any
) -> Callable[[Path], None]:
    """An encoder-decoder that is named nowhere, with the tokenizer of T5, which takes so many
    tokens, or Pegasus."""

    def write(folder: Path) -> None:
        if model_type == "t5":
            tokenizer = t5_tokenizer(model_max_length)
            sizes = {"d_kv": 8, "d_ff": 2 * WIDTH, "num_layers": 2, "num_heads": 4}
            config = config_type(
                vocab_size=len(tokenizer), d_model=WIDTH, decoder_start_token_id=0,
                pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, **sizes, **own,
            )  # fmt: skip
        else:
            source = build("pegasus", folder / "source")
            tokenizer = hf.AutoTokenizer.from_pretrained(source)
            shutil.rmtree(source)
            config = config_type(**bart_like(tokenizer, decoder_start_token_id=0, **own))
        save(folder, tokenizer, hf.AutoModelForSeq2SeqLM.from_config(config))

    return write


def t5gemma(folder: Path) -> None:
    """Windows in every other layer of both stacks."""
    tokenizer = t5_tokenizer()
    stack = {
        **llama_like(tokenizer), "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 12,
        "query_pre_attn_scalar": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    config = hf.T5GemmaConfig(
        encoder=stack, decoder=stack, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    save(folder, tokenizer, hf.T5GemmaForConditionalGeneration(config))


def t5gemma2(folder: Path) -> None:
    """Published with eyes, of which a text makes no use. Self- and cross-attention are one."""
    tokenizer = t5_tokenizer()
    stack = {
        **llama_like(tokenizer), "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 12,
        "query_pre_attn_scalar": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    eyes = {
        "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 4, "image_size": 16, "patch_size": 8,
        "vision_use_head": False,
    }  # fmt: skip
    size = len(tokenizer)
    marks = {"boi_token_index": size - 3, "eoi_token_index": size - 2}
    encoder = {
        "text_config": stack, "vision_config": eyes, "mm_tokens_per_image": 4, **marks,
        "image_token_index": size - 1,
    }  # fmt: skip
    config = hf.T5Gemma2Config(
        encoder=encoder, decoder=stack, image_token_index=size - 1, pad_token_id=0, bos_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    save(folder, tokenizer, hf.T5Gemma2ForConditionalGeneration(config))


def fsmt(folder: Path) -> None:
    """Two vocabularies; positions that skip the pad token."""
    source = build("pegasus", folder / "source")
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    shutil.rmtree(source)
    own = bart_like(tokenizer, decoder_start_token_id=tokenizer.eos_token_id)
    del own["vocab_size"]
    size = len(tokenizer)
    config = hf.FSMTConfig(
        langs=["en", "de"], src_vocab_size=size, tgt_vocab_size=size, num_beams=1, **own
    )
    save(folder, tokenizer, hf.FSMTForConditionalGeneration(config))


def prophetnet(folder: Path) -> None:
    """It predicts several tokens ahead in streams of their own."""
    source = build("pegasus", folder / "source")
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    shutil.rmtree(source)
    config = hf.ProphetNetConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH, num_encoder_layers=2, num_decoder_layers=2,
        num_encoder_attention_heads=4, num_decoder_attention_heads=4, num_buckets=8,
        relative_max_distance=16, max_position_embeddings=POSITIONS, pad_token_id=0,
        bos_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    save(folder, tokenizer, hf.ProphetNetForConditionalGeneration(config))


def seamless(folder: Path) -> None:
    """The text part of a model that also hears and speaks."""
    source = build("m2m100", folder / "source")
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    own = hf.AutoConfig.from_pretrained(source).to_dict()
    shutil.rmtree(source)
    config = hf.SeamlessM4TConfig(
        vocab_size=own["vocab_size"], hidden_size=WIDTH, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH, max_position_embeddings=POSITIONS, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    save(folder, tokenizer, hf.SeamlessM4TForTextToText(config))


GQA = {"num_key_value_heads": 2}
WINDOWED = {**GQA, "head_dim": 8, "sliding_window": 12}
SHARED_KEYS = {
    **WINDOWED, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
EXPERTS = {
    **GQA, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": WIDTH, "first_k_dense_replace": 1, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip


# Families that no list names, and that are proved when they are loaded: a line for each. Windows
# are shorter than most prompts.
UNLISTED: dict[str, Callable[[Path], None]] = {
    "bloom": unlisted(hf.BloomConfig, n_layer=2, n_head=4),
    "mpt": unlisted(hf.MptConfig, d_model=WIDTH, n_layers=2, n_heads=4, max_seq_len=POSITIONS),
    "falcon": unlisted(hf.FalconConfig),
    "falcon_alibi": unlisted(hf.FalconConfig, alibi=True, multi_query=False),
    "gpt_bigcode": unlisted(hf.GPTBigCodeConfig, n_embd=WIDTH, n_layer=2, n_head=4),
    "gptj": unlisted(
        hf.GPTJConfig, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=POSITIONS, rotary_dim=8
    ),
    "gemma": unlisted(hf.GemmaConfig, **GQA, head_dim=8),
    "gemma2": unlisted(hf.Gemma2Config, **WINDOWED, query_pre_attn_scalar=8),
    "gemma3": unlisted(hf.Gemma3TextConfig, **WINDOWED, query_pre_attn_scalar=8),
    "phi": unlisted(hf.PhiConfig),
    "phi3": unlisted(hf.Phi3Config, **GQA, sliding_window=12),
    # Without windows, and with heads as wide as registers: by the fused step.
    "phi3_full": unlisted(hf.Phi3Config, **GQA, hidden_size=2 * WIDTH, sliding_window=None),
    "stablelm": unlisted(hf.StableLmConfig, **GQA),
    "olmo": unlisted(hf.OlmoConfig, **GQA),
    "olmo2": unlisted(hf.Olmo2Config, **GQA),
    "olmo3": unlisted(hf.Olmo3Config, **GQA, sliding_window=12),
    "granite": unlisted(hf.GraniteConfig, **GQA),
    "smollm3": unlisted(hf.SmolLM3Config, **GQA),
    "glm4": unlisted(hf.Glm4Config, **GQA, head_dim=8),
    "cohere": unlisted(hf.CohereConfig, **GQA),
    "cohere2": unlisted(hf.Cohere2Config, **WINDOWED),
    "starcoder2": unlisted(hf.Starcoder2Config, **GQA, sliding_window=12),
    # Heads as wide as registers, as the fused step needs them, which knows no windows.
    "mistral_window": unlisted(hf.MistralConfig, **{**WINDOWED, "head_dim": 16}),
    "qwen2_window": unlisted(
        hf.Qwen2Config, **GQA, use_sliding_window=True, sliding_window=12, max_window_layers=1
    ),
    "mixtral": unlisted(hf.MixtralConfig, **EXPERTS),
    "qwen3_moe": unlisted(hf.Qwen3MoeConfig, **EXPERTS, head_dim=8),
    "gpt_oss": unlisted(hf.GptOssConfig, **EXPERTS, head_dim=8, sliding_window=12),
    "deepseek_v2": unlisted(hf.DeepseekV2Config, **LATENT),
    "deepseek_v3": unlisted(hf.DeepseekV3Config, **LATENT),
    "longcat": unlisted(hf.LongcatFlashConfig, **LONGCAT),
    "mamba": unlisted(hf.MambaConfig, **MAMBA),
    "falcon_mamba": unlisted(hf.FalconMambaConfig, **MAMBA),
    "mamba2": unlisted(
        hf.Mamba2Config, state_size=4, num_heads=8, head_dim=8, n_groups=1, chunk_size=8
    ),
    "jamba": unlisted(hf.JambaConfig, **GQA, **JAMBA),
    "bamba": unlisted(hf.BambaConfig, **GQA, **MAMBA_2, attn_layer_indices=[1]),
    "granite_hybrid": unlisted(
        hf.GraniteMoeHybridConfig, **EXPERTS, **MAMBA_2, shared_intermediate_size=WIDTH,
        layer_types=["linear_attention", "full_attention"],
    ),
    "falcon_h1": unlisted(hf.FalconH1Config, **GQA, **MAMBA_2, mamba_d_ssm=64),
    "zamba": unlisted(
        hf.ZambaConfig, num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1,
        mamba_d_state=4, mamba_dt_rank=4, attention_head_dim=16, num_key_value_heads=4,
        use_mamba_kernels=False,
    ),
    "zamba2": unlisted(
        hf.Zamba2Config, num_hidden_layers=3, mamba_d_state=4, n_mamba_heads=4, chunk_size=8,
        layers_block_type=["linear_attention", "hybrid", "linear_attention"],
        use_mamba_kernels=False, num_key_value_heads=4,
    ),
    "nemotron_h": unlisted(
        hf.NemotronHConfig, **GQA, head_dim=8, ssm_state_size=4, mamba_num_heads=8,
        mamba_head_dim=8, n_groups=1, chunk_size=8, use_mamba_kernels=False,
        layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
    ),
    "lfm2": unlisted(hf.Lfm2Config, **GQA, layer_types=["conv", "full_attention"]),
    "lfm2_moe": unlisted(
        hf.Lfm2MoeConfig, **EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1
    ),
    "qwen3_next": unlisted(hf.Qwen3NextConfig, **EXPERTS, **DELTA_NET),
    "qwen3_5": unlisted(hf.Qwen3_5TextConfig, **GQA, **DELTA_NET),
    "qwen3_5_moe": unlisted(hf.Qwen3_5MoeTextConfig, **EXPERTS, **DELTA_NET),
    "olmo_hybrid": unlisted(hf.OlmoHybridConfig, **GQA, **DELTA_NET),
    "llama4": unlisted(
        hf.Llama4TextConfig, **EXPERTS, head_dim=8, num_hidden_layers=4, attention_chunk_size=12,
        floor_scale=8, intermediate_size_mlp=2 * WIDTH,
        layer_types=["chunked_attention", "full_attention"] * 2, no_rope_layers=[1, 0] * 2,
    ),
    # Layers that take the keys of others.
    "gemma4": unlisted(
        hf.Gemma4TextConfig, **SHARED_KEYS, global_head_dim=8, vocab_size_per_layer_input=381
    ),
    "gemma3n": unlisted(
        hf.Gemma3nTextConfig, **SHARED_KEYS, vocab_size_per_layer_input=381, laurel_rank=8,
        altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 4,
    ),
    "zaya": unlisted(
        hf.ZayaConfig, **{**EXPERTS, "num_experts_per_tok": 1}, head_dim=8, router_hidden_size=16
    ),
    "lfm3": unlisted(
        hf.Lfm3Config, **WINDOWED, num_hidden_layers=3,
        layer_types=["conv", "sliding_attention", "full_attention"],
    ),
    "kimi_linear": unlisted(
        hf.KimiLinearConfig, **{**LATENT, "q_lora_rank": None}, num_experts=4,
        num_experts_per_token=2, linear_head_dim=8, linear_num_heads=4, model_max_length=POSITIONS,
        layer_types=["linear_attention", "full_attention"], mlp_layer_types=["dense", "sparse"],
    ),
    "umt5": unlisted_seq2seq(hf.UMT5Config, "t5"),
    "longt5": unlisted_seq2seq(hf.LongT5Config, "t5", local_radius=8),
    "t5gemma": t5gemma,
    "blenderbot": unlisted_seq2seq(hf.BlenderbotConfig, "pegasus"),
    "pegasus_x": unlisted_seq2seq(
        hf.PegasusXConfig, "pegasus", block_size=8, num_global_tokens=4
    ),
    "longt5_global": unlisted_seq2seq(
        hf.LongT5Config, "t5", local_radius=8, global_block_size=4,
        encoder_attention_type="transient-global",
    ),
    "t5gemma2": t5gemma2,
    "blenderbot_small": unlisted_seq2seq(hf.BlenderbotSmallConfig, "pegasus"),
    "mvp": unlisted_seq2seq(hf.MvpConfig, "pegasus"),
    "plbart": unlisted_seq2seq(hf.PLBartConfig, "pegasus"),
    "led": unlisted_seq2seq(
        hf.LEDConfig, "pegasus", attention_window=8, max_encoder_position_embeddings=POSITIONS,
        max_decoder_position_embeddings=POSITIONS,
    ),
    "fsmt": fsmt,
    "prophetnet": prophetnet,
    "seamless": seamless,
    "switch": unlisted_seq2seq(
        hf.SwitchTransformersConfig, "t5", num_decoder_layers=2, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    ),
    "bart_decoder": bart_decoder,
    "mbart_decoder": mbart_decoder,
    "marian_decoder": marian_decoder,
    "pegasus_decoder": pegasus_decoder,
}  # fmt: skip
# What leaves something on the model, so that each request is to be held against a fresh one.
CHANGED_BY_REQUESTS: dict[str, Callable[[Path], None]] = {"bigbird_pegasus": bigbird_pegasus}
# Experts that take every token, as published.
AMPLE: dict[str, Callable[[Path], None]] = {
    "nllb_moe_ample": functools.partial(nllb_moe, fraction=1.0)
}
# Long documents: more tokens than the families above have positions.
LONG: dict[str, Callable[[Path], None]] = {
    "led_long": unlisted_seq2seq(
        hf.LEDConfig, "pegasus", attention_window=32, max_encoder_position_embeddings=20_000,
        max_decoder_position_embeddings=POSITIONS,
    ),
    "longt5_long": unlisted_seq2seq(hf.LongT5Config, "t5", 20_000, local_radius=31),
    "longt5_global_long": unlisted_seq2seq(
        hf.LongT5Config, "t5", 20_000, local_radius=31, global_block_size=16,
        encoder_attention_type="transient-global",
    ),
    "pegasus_x_long": unlisted_seq2seq(
        hf.PegasusXConfig, "pegasus", block_size=32, num_global_tokens=8,
        max_position_embeddings=20_000,
    ),
    "bigbird_pegasus_long": functools.partial(
        bigbird_pegasus, block_size=16, max_position_embeddings=20_000
    ),
}  # fmt: skip
# Listed, with a context that is longer than the positions that their configurations name.
SCALED: dict[str, Callable[[Path], None]] = {"llama_yarn": llama_yarn}
# Their rotary frequencies are others beyond 64 tokens, or follow the length beyond POSITIONS.
SWITCHED: dict[str, Callable[[Path], None]] = {
    "phi3_longrope": unlisted(
        hf.Phi3Config, **GQA, original_max_position_embeddings=64, rope_parameters=longrope(64, 4)
    ),
    "llama_longrope": unlisted(hf.LlamaConfig, **GQA, rope_parameters=longrope(64, 4)),
    "llama_dynamic": llama_dynamic,
}


def multimodal(name: str, vision: dict[str, Any], **text: Any) -> Callable[[Path], None]:
    """One that sees, as published: its text model is named as the family does, unless `text` has a
    model_type."""

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
        # How the families name the places of an image.
        names = ("image_token_id", "image_token_index", "boi_token_id", "eoi_token_id")
        config = whole(
            text_config=text_config.to_dict(),
            vision_config=vision,
            tie_word_embeddings=False,
            **{each: image for each in names},
            **{each: video for each in ("video_token_id", "video_token_index")},
        )
        model = hf.AutoModelForImageTextToText.from_config(config)
        model.generation_config.update(**ends)
        save(folder, tokenizer, model)

    return write


SEEING = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
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

# Published as multimodal, with the class of the text model that is to be loaded of each.
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
    "qwen3_5_vision": multimodal("qwen3_5", SEEING_QWEN, **SOME, **DELTA),
    "gemma4_vision": multimodal(
        "gemma4", SEEING, **WINDOWED, hidden_size_per_layer_input=8, vocab_size_per_layer_input=384,
        global_head_dim=8,
    ),
}  # fmt: skip
