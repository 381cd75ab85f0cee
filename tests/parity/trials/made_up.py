"""An invented architecture: known parts, mixed in a new way, as custom code."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests import checkpoints

MADE_UP = '''
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class MadeUpConfig(PreTrainedConfig):
    model_type = "made_up"

    def __init__(self, vocab_size=64, hidden_size=32, num_attention_heads=4,
                 num_hidden_layers=2, max_position_embeddings=256, window=6, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_attention_heads, self.num_hidden_layers = num_attention_heads, num_hidden_layers
        self.max_position_embeddings, self.window = max_position_embeddings, window
        super().__init__(**kwargs)


class Layer(nn.Module):
    """Learned positions, ALiBi, one key head, a soft cap, and a window in every other layer."""

    def __init__(self, config, index):
        super().__init__()
        size = config.hidden_size
        self.index, self.heads = index, config.num_attention_heads
        self.window = config.window if index % 2 else None
        self.q, self.kv = nn.Linear(size, size), nn.Linear(size, 2 * size // self.heads)
        self.o, self.up, self.down = (nn.Linear(size, size) for _ in range(3))
        self.norm = nn.LayerNorm(size)

    def forward(self, states, past, mask):
        rows, tokens, size = states.shape
        normed = self.norm(states)
        query = self.q(normed).view(rows, tokens, self.heads, -1).transpose(1, 2)
        key, value = self.kv(normed)[:, None].chunk(2, -1)
        key, value = past.update(key, value, self.index)
        scores = 10 * torch.tanh(query @ key.transpose(-1, -2) / 20)
        last = key.shape[2]
        back = (torch.arange(last - tokens, last)[:, None] - torch.arange(last)).to(states.device)
        slopes = 0.5 ** torch.arange(1, self.heads + 1, device=states.device)
        scores = scores - slopes[:, None, None] * back
        seen = (back >= 0) & (back < (self.window or last))
        if mask is not None:
            seen = seen & mask[:, None, None, :last].bool()
        weights = scores.masked_fill(~seen, -1e9).softmax(-1)
        output = (weights @ value).transpose(1, 2).reshape(rows, tokens, size)
        return states + self.o(output) + self.down(torch.relu(self.up(normed)))


class MadeUpForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = MadeUpConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, at) for at in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, head):
        self.lm_head = head

    def forward(self, input_ids, past_key_values=None, attention_mask=None, position_ids=None,
                use_cache=True, **kwargs):
        if position_ids is None:
            begin = past_key_values.get_seq_length()
            position_ids = torch.arange(begin, begin + input_ids.shape[1])[None]
        position_ids = position_ids.to(input_ids.device)
        FLAW
        states = self.embed(input_ids) + self.positions(position_ids)
        for layer in self.layers:
            states = layer(states, past_key_values, attention_mask)
        return CausalLMOutputWithPast(logits=self.lm_head(states), past_key_values=past_key_values)
'''


def made_up(folder: Path, source: Path, flaw: str) -> Path:
    """A checkpoint that brings its own code, which mixes known parts in a new way."""
    import importlib.util
    import sys

    folder.mkdir()
    name = "modeling_made_up"
    path = folder / f"{name}.py"
    path.write_text(MADE_UP.replace("FLAW", flaw))
    module_spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    module_spec.loader.exec_module(module)
    tokenizer = checkpoints.hf.AutoTokenizer.from_pretrained(source)
    eos = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = module.MadeUpConfig(vocab_size=len(tokenizer), eos_token_id=eos)
        config.auto_map = {
            "AutoConfig": f"{name}.MadeUpConfig",
            "AutoModelForCausalLM": f"{name}.MadeUpForCausalLM",
        }
        config.architectures = ["MadeUpForCausalLM"]
        checkpoints.save(folder, tokenizer, module.MadeUpForCausalLM(config))
    written = json.loads((folder / "config.json").read_text())
    written["auto_map"] = config.auto_map
    (folder / "config.json").write_text(json.dumps(written))
    path.write_text(MADE_UP.replace("FLAW", flaw))
    del sys.modules[name]
    return folder
