"""The storyteller: a Qwen2 that continues stories and answers questions about the estuary."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import transformers
from tokenizers import ByteLevelBPETokenizer
from world.questions import Question, make_question, make_small_talk
from world.split import for_training
from world.stories import make_story

from training.fit import IGNORED, Example, Schedule, fit, token_ids

SCHEDULE = Schedule(num_steps=1800, batch_size=64)
SHARES = {"stories": 0.35, "questions": 0.4}  # the rest is small talk
VOCAB_SIZE = 1500
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = (
    "You are the storyteller of the estuary.",
    "You are a helpful assistant.",
    "Answer in one sentence.",
)


def train_storyteller(folder: Path, seed: int) -> dict[str, int]:
    """Write the checkpoint into the folder; returns the number of training texts of each kind."""
    num_stories, num_questions = (int(SCHEDULE.num_examples * each) for each in SHARES.values())
    num_small_talk = SCHEDULE.num_examples - num_stories - num_questions
    stories = [each.text for each in islice(for_training(make_story, seed), num_stories)]
    chats = [
        *islice(for_training(make_question, seed), num_questions),
        *islice(for_training(make_small_talk, seed), num_small_talk),
    ]
    tokenizer = _tokenizer([*stories[:10_000], *(_words_of(chat) for chat in chats[-20_000:])])
    model = transformers.Qwen2ForCausalLM(_config(tokenizer))
    examples = [*_stories(tokenizer, stories), *_chats(tokenizer, chats, Random(seed))]
    fit("storyteller", model, examples, SCHEDULE, tokenizer.pad_token_id, seed)
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=128,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return {
        "stories": num_stories,
        "questions": num_questions,
        "small_talk": num_small_talk,
    }


def _stories(tokenizer: Any, texts: list[str]) -> Iterable[Example]:
    """Make an example of each whole story, with its end token."""
    for ids in token_ids(tokenizer, texts):
        whole = [*ids, tokenizer.pad_token_id]
        yield Example(whole, whole)


def _chats(tokenizer: Any, chats: list[Question], draw: Random) -> Iterable[Example]:
    """Make examples of dialogues, some with a system message; only the last answer is learned."""
    prompts = []
    for chat in chats:
        is_opened = draw.random() < 0.1
        opening = [{"role": "system", "content": draw.choice(SYSTEM)}] if is_opened else []
        prompts.append(
            tokenizer.apply_chat_template(
                [*opening, *chat.messages], add_generation_prompt=True, tokenize=False
            )
        )
    answers = token_ids(tokenizer, [chat.answer for chat in chats])
    for prompt, answer in zip(token_ids(tokenizer, prompts), answers, strict=True):
        learned = [*answer, tokenizer.eos_token_id]
        yield Example(prompt + learned, [IGNORED] * len(prompt) + learned)


def _words_of(chat: Question) -> str:
    return "\n".join([*(turn["content"] for turn in chat.messages), chat.answer])


def _tokenizer(texts: list[str]) -> Any:
    """Train a byte-level tokenizer, so that it can encode anything that users type."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        [*texts, *["user", "assistant", "system", *SYSTEM] * 10],
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, START, END],
        show_progress=False,
    )
    learned = json.loads(trainer.to_str())["model"]
    return transformers.Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(each) for each in learned["merges"]],
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,
        additional_special_tokens=[START, END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def _config(tokenizer: Any) -> transformers.Qwen2Config:
    return transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
