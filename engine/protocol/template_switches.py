"""Template switches: variable names that a switch of a chat template may not have."""

# Variables that the engine gives to a template, or that would change the form of its output.
RESERVED = frozenset(
    {
        "add_generation_prompt", "add_special_tokens", "bos_token", "chat_template",
        "continue_final_message", "conversation", "eos_token", "max_length", "messages",
        "pad_token", "padding", "raise_exception", "return_assistant_tokens_mask", "return_dict",
        "return_tensors", "self", "strftime_now", "tokenize", "tokenizer_kwargs",
        "tools", "documents", "truncation", "unk_token",
    }
)  # fmt: skip
MAX_NAME_CHARACTERS = 64


def is_name(name: str) -> bool:
    return name.isascii() and name.isidentifier() and len(name) <= MAX_NAME_CHARACTERS
