"""A family that no list names runs in flight once its checkpoint was proved, and not otherwise."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.attention.forward_context import DecoderContext
from engine.attention.hf_plugin import uninstall
from engine.attention.paged_backend import PagedAttentionBackend
from engine.backends import generate, router
from engine.backends.generate import GenerateBackend
from engine.backends.router import RouterBackend, load
from engine.checkpoint.loader import Checkpoint
from engine.errors import Unloadable
from engine.kv_cache import joined, joined_layers
from engine.kv_cache.joined import JoinedKVCache, JoinedRows, JoinedSequenceCache
from engine.kv_cache.joined_layers import LayerContent, SpareLayer, StateLayer
from engine.kv_cache.paged import PagedKVCache
from engine.kv_cache.row_size import RowSize
from engine.proof import self_proof, verdicts
from engine.proof.batch_probe import MAX_OFF
from engine.proof.self_proof import Disproved, prove
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import Params, Request
from engine.runners.causal import CausalRunner
from engine.runners.own_cache import OwnCacheRunner
from engine.runners.seq2seq import Seq2SeqRunner
from tests import checkpoints
from tests.engines import Bench
from tests.parity.alone import Alone

SETTINGS = [
    {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False},
    {"max_new_tokens": 4, "do_sample": False},
    {"max_new_tokens": 8, "do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    {"max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.4},
    {"max_new_tokens": 7, "do_sample": True, "seed": 5},
]


def spec_of(folder: Path, **settings) -> EngineSpec:
    return EngineSpec(**{"alias": "a", "checkpoint": str(folder), "device": "cpu", **settings})


def requests() -> list[Request]:
    return [
        Request(id=at, task="generate", text=text, params=Params(**SETTINGS[at % len(SETTINGS)]))
        for at, text in enumerate(checkpoints.sentences(15, seed=3))
    ]


def let_join(bench: Bench, waiting: list[Request]) -> dict:
    """They join two by two while others run."""
    while waiting:
        bench.submit(*waiting[:2])
        waiting = waiting[2:]
        bench.advance()
    return {each.request_id: each for each in bench.finish()}


# Those whose attention is not the usual one, which run by their own attention and cache.
BY_OWN_CACHE = {
    "bloom": "attends by code of its own",
    "mpt": "attends by code of its own",
    "gptj": "attends by code of its own",
    "falcon": "does not attend by the interface",
    "falcon_alibi": "of a kind of its own",
    "deepseek_v2": "keys are of another size than its values",
    "deepseek_v3": "keys are of another size than its values",
    "longcat": "keys are of another size than its values",
    "umt5": "have other logits",  # a bias of its own in each layer
    "longt5": "are others than by",
    "pegasus_x": "are others than by",
    "longt5_global": "are others than by",
    "t5gemma2": "attends to the encoder by parts of its own",
    "mvp": "attends by code of its own",
    "led": "attends by code of its own",
    "fsmt": "attends by code of its own",
    "prophetnet": "attends by code of its own",
    "seamless": "attends to the encoder by parts of its own",
    "switch": "leaves the model changed",  # by a note of its router
    **dict.fromkeys(
        ("bart_decoder", "mbart_decoder", "marian_decoder", "pegasus_decoder"),
        "takes no position_ids",
    ),
    # Recurrent layers, alone or beside attention.
    **dict.fromkeys(("mamba", "falcon_mamba", "mamba2"), "attends by code of its own"),
    **dict.fromkeys(
        (
            "jamba",
            "bamba",
            "granite_hybrid",
            "zamba2",
            "nemotron_h",
            "lfm2",
            "lfm2_moe",
            "lfm3",
            "qwen3_next",
            "qwen3_5",
            "qwen3_5_moe",
            "olmo_hybrid",
            "kimi_linear",
        ),
        "its layers are not counted one by one",
    ),
    **dict.fromkeys(("falcon_h1", "zamba", "zaya"), "have other logits"),
    "llama4": "have other logits",  # attention in chunks
}


@pytest.mark.parametrize("kind", checkpoints.UNLISTED)
def test_a_family_that_no_list_names_answers_in_flight_as_alone(kind, folder_of):
    spec = spec_of(folder_of(kind), max_sequences=8)
    engine = load(spec)
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    # As many as there is time for, and at least six.
    assert re.match(r"proved at load: (\d+) of \1 requests", engine.card.engine_reason)
    if kind in BY_OWN_CACHE:
        assert isinstance(engine.in_flight.runner, OwnCacheRunner)
        _, _, reason = engine.card.engine_reason.partition("by its own attention and cache, for ")
        assert BY_OWN_CACHE[kind] in reason
    else:
        assert isinstance(engine.in_flight.runner, CausalRunner | Seq2SeqRunner)
        assert engine.card.engine_reason.endswith("; by the fast way")
    engine.in_flight.runner.kv_cache.poisoned = True
    bench = Bench(engine, spec)
    outputs = let_join(bench, requests())
    assert bench.progress.num_in_flight == len(outputs) == 15
    assert max(len(plan.sequences) for plan in bench.plans) > 2
    alone = Alone(kind, folder_of(kind))
    for each in requests():
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        found = [list(choice.token_ids) for choice in outputs[each.id].choices]
        assert outputs[each.id].failure is None
        assert found == expected, f"{kind} {each.id}"
    assert len({each.choices[0].token_ids for each in outputs.values()}) > 8


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("mistral", {"sliding_window": 16}),
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}),
    ],
)
def test_an_odd_configuration_of_a_listed_family_is_proved_too(kind, own, folder_of, tmp_path):
    folder = tmp_path / kind
    shutil.copytree(folder_of(kind), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | own
    config.pop("layer_types", None)
    path.write_text(json.dumps(config))
    engine = load(spec_of(folder, engine="inflight"))
    assert isinstance(engine, RouterBackend)
    assert isinstance(engine.in_flight.runner, CausalRunner)


# What is wrong shows


@pytest.mark.parametrize("kind", ["gemma2", "bloom", "t5gemma", "blenderbot"])
@pytest.mark.parametrize(
    "fault", ["mask", "padding", "length", "rows", "reorder", "encoder", "window", "processors"]
)
def test_a_fault_in_flight_is_caught(kind, fault, folder_of, monkeypatch):
    """Each breaks one thing that a step must get right."""
    applies = {
        "encoder": kind in ("t5gemma", "blenderbot"),
        "window": kind in ("gemma2", "t5gemma"),
    }
    spec = spec_of(folder_of(kind))
    checkpoint = Checkpoint.load(spec)
    engine = RouterBackend(spec, checkpoint, poisoned=True, by_own_cache=True)
    if not applies.get(fault, True):
        fault = "rows"
    break_it(fault, engine, monkeypatch)
    with pytest.raises(Disproved):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "mixtral", "t5gemma"])
@pytest.mark.parametrize("fault", ["window", "softcap", "sinks", "scale", "position", "prompts"])
@pytest.mark.parametrize("cpu_kernels", [True, False])
def test_a_fault_in_the_fast_way_is_caught(kind, fault, cpu_kernels, folder_of, monkeypatch):
    """Each hides one thing that a call of the attention says, in the steps or in the prompts."""
    windowed, capped = ("gemma2", "gpt_oss", "t5gemma"), ("gemma2", "t5gemma")
    has = {"window": windowed, "softcap": capped, "sinks": ("gpt_oss",)}
    spec = spec_of(folder_of(kind), cpu_kernels=cpu_kernels)
    checkpoint = Checkpoint.load(spec)
    for module in checkpoint.model.modules():
        if getattr(module, "attn_logit_softcapping", None) is not None:
            module.attn_logit_softcapping = 2.0  # of 50 no weights as small as these are near
    engine = RouterBackend(spec, checkpoint, poisoned=True)
    runner = engine.in_flight.runner
    assert isinstance(runner, CausalRunner | Seq2SeqRunner)
    if fault == "position":
        decode = runner._decode_forward
        monkeypatch.setattr(
            type(runner), "_decode_forward",
            lambda runner, tokens, positions: decode(tokens, positions + (len(tokens) > 1)),
        )  # fmt: skip
    elif fault == "prompts":  # the first prompt of a row is seen by the next
        name = "_prefill_forward" if isinstance(runner, CausalRunner) else "_encode"
        whole = getattr(runner, name)
        monkeypatch.setattr(
            type(runner), name,
            lambda runner, batch: whole(replace(batch, spans=joined_spans(batch.spans))),
        )  # fmt: skip
    else:
        change = {"scale": 0.1} if fault == "scale" else {fault: None}
        whole_attend = DecoderContext.attend

        def attend(context, layer, query, key, value, scoring, bias):
            if layer == 1 or fault == "window":
                scoring = replace(scoring, **change)
            return whole_attend(context, layer, query, key, value, scoring, bias)

        monkeypatch.setattr(DecoderContext, "attend", attend)
    try:
        if kind in has.get(fault, [kind]):
            with pytest.raises(Disproved):
                prove(engine.exact, runner, engine.has_beams)
        else:
            prove(engine.exact, runner, engine.has_beams)
    finally:
        uninstall(engine.checkpoint.model)


def joined_spans(spans):
    """A prompt and the next as one."""
    if len(spans) < 2:
        return spans
    return ((spans[0][0], spans[1][1]), *spans[2:])


@pytest.mark.parametrize("kind", ["phi3", "gemma2", "gpt_oss", "qwen3_moe", "t5gemma"])
@pytest.mark.parametrize("fault", [None, "window"])
def test_pages_know_windows_soft_caps_and_sinks_too(kind, fault, folder_of, monkeypatch):
    spec = spec_of(folder_of(kind), max_sequences=4, max_cache_tokens=4_096)
    engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, is_paged=True)
    assert isinstance(engine.in_flight.runner.kv_cache, PagedKVCache)
    if fault is not None:
        whole = PagedAttentionBackend.attend

        def attend(attention, layer, query, keys, values, scoring):
            return whole(attention, layer, query, keys, values, replace(scoring, window=None))

        monkeypatch.setattr(PagedAttentionBackend, "attend", attend)
    if fault is None or kind == "qwen3_moe":
        proof = prove(engine.exact, engine.in_flight.runner, engine.has_beams)
        assert proof.num_equal == proof.num_requests >= 6  # as many as there is time for
    else:
        with pytest.raises(Disproved):
            prove(engine.exact, engine.in_flight.runner, engine.has_beams)


@pytest.mark.parametrize("why_alone", [None, "nobody knows"])
def test_the_way_that_is_slower_serves_where_the_fast_one_fails(
    why_alone, folder_of, tmp_path, monkeypatch
):
    monkeypatch.setattr(generate, "why_not_batched", lambda *_: why_alone)
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path / "kept"))
    asked = []
    whole = self_proof.answer_alone
    monkeypatch.setattr(
        self_proof, "answer_alone", lambda *given: asked.append(given) or whole(*given)
    )
    monkeypatch.setattr(CausalRunner, "_decode_forward", roll_rows(CausalRunner._decode_forward))
    spec = spec_of(folder_of("granite"))
    for again in (False, True):
        engine = load(spec)
        assert isinstance(engine, RouterBackend)
        assert isinstance(engine.in_flight.runner, OwnCacheRunner)
        assert "by its own attention and cache, for " in engine.card.engine_reason
        assert ("at an earlier start" in engine.card.engine_reason) == again
        # The model is as it was loaded.
        assert engine.checkpoint.model.config._attn_implementation == "sdpa"
    assert len(asked) == 18  # for both ways


def test_what_runs_by_generate_leaves_the_fast_way_its_attention(folder_of, monkeypatch):
    """Where calls are not shared, the model is put back to what it was when it was loaded."""
    monkeypatch.setattr(generate, "why_not_batched", lambda *_: "nobody knows")
    spec = spec_of(folder_of("granite"), max_sequences=8)
    engine = load(spec)
    assert isinstance(engine.in_flight.runner, CausalRunner)
    bench = Bench(engine, spec)
    drawn = Params(max_new_tokens=4, do_sample=True, seed=1, num_beams=2)
    bench.answers([Request(id=100, task="generate", text="river", params=drawn)])
    assert bench.progress.num_by_generate == 1
    outputs = let_join(bench, requests())
    assert bench.progress.num_in_flight == 15
    alone = Alone("granite", folder_of("granite"))
    for each in requests():
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected


def roll_rows(decode):
    return lambda runner, tokens, positions: decode(runner, tokens, positions).roll(1, dims=0)


def break_it(fault: str, engine: RouterBackend, monkeypatch) -> None:
    runner = engine.in_flight.runner
    if fault == "mask":  # a row sees the columns before its first token
        whole = JoinedRows.mask
        monkeypatch.setattr(JoinedRows, "mask", lambda rows: torch.ones_like(whole(rows)))
    elif fault == "padding":  # a row's first token is hidden from it
        whole = JoinedRows.mask

        def hidden(rows):
            mask = whole(rows)
            mask[:, :-2] = mask[:, :-2] * torch.roll(mask, 1, dims=1)[:, :-2]
            mask[:, 0] = 0
            return mask

        monkeypatch.setattr(JoinedRows, "mask", hidden)
    elif fault == "length":  # the newest token goes where the one before is
        whole_resize = SpareLayer.resize

        def resize(layer, num_columns):
            whole_resize(layer, num_columns)
            if layer.keys.shape[0] > 1:
                layer.keys[:, :, -1] = layer.keys[:, :, 0]

        monkeypatch.setattr(SpareLayer, "resize", resize)
    elif fault == "rows":  # two rows of a step have each other's logits
        decode = runner._decode
        monkeypatch.setattr(
            runner, "_decode", lambda caches, tokens: decode(caches, tokens).roll(1, dims=0)
        )
    elif fault == "reorder":  # beams keep the keys of others
        monkeypatch.setattr(JoinedSequenceCache, "reorder", lambda cache, rows: None)
    elif fault == "encoder":  # all of the longest prompt is seen
        joined_of = JoinedKVCache._joined

        def unmasked(manager, caches):
            rows = joined_of(manager, caches)
            rows.encoder_mask = torch.ones_like(rows.encoder_mask)
            return rows

        monkeypatch.setattr(JoinedKVCache, "_joined", unmasked)
    elif fault == "window":  # in flight every token is seen, and none is dropped
        if not runner.is_encoder_decoder:
            monkeypatch.setattr(
                "engine.runners.own_cache.new_cache", lambda model: checkpoints.hf.DynamicCache()
            )
        whole_decode = runner._decode
        configs = {
            id(each.config): each.config
            for each in runner.model.modules()
            if hasattr(each, "config") and hasattr(each.config, "sliding_window")
        }

        def decode(caches, tokens):
            short = {id_: each.sliding_window for id_, each in configs.items()}
            for each in configs.values():
                each.sliding_window = 1000
            try:
                return whole_decode(caches, tokens)
            finally:
                for id_, each in configs.items():
                    each.sliding_window = short[id_]

        monkeypatch.setattr(runner, "_decode", decode)
    else:  # a processor that looks back does nothing
        whole_choice = engine.in_flight._choice_of

        def choice_of(backend, sequence):
            settings = replace(sequence.settings, repetition_penalty=1.0)
            sequence.settings = settings
            return whole_choice.__func__(backend, sequence)

        monkeypatch.setattr(self_proof.RecordingBackend, "_choice_of", choice_of)


@pytest.mark.parametrize("kind", ["mamba", "qwen3_5", "lfm2"])
@pytest.mark.parametrize("fault", ["stale", "late", "lost", "rows", "reorder"])
def test_a_fault_of_a_state_is_caught(kind, fault, folder_of, monkeypatch):
    """A recurrent layer has no mask that would hide another's state."""
    whole = StateLayer.content
    if fault == "stale":  # what a step has made is forgotten
        monkeypatch.setattr(
            StateLayer, "settle", lambda layer, num: setattr(layer, "num_counted", num)
        )
    elif fault == "late":  # where the company changes, the last token is forgotten
        monkeypatch.setattr(StateLayer, "content", lambda layer, rows, columns: LayerContent(
            states={name: each[rows] for name, each in layer.counted.items()}
        ))  # fmt: skip
    elif fault == "lost":  # where the company changes, a state begins anew
        monkeypatch.setattr(StateLayer, "content", lambda *given: LayerContent(
            states={name: each * 0 for name, each in whole(*given).states.items()}
        ))  # fmt: skip
    elif fault == "rows":  # rows have each other's states
        hold = StateLayer.hold_states

        def hold_states(layer, states, num_columns):
            hold(layer, {name: each.roll(1, dims=0) for name, each in states.items()}, num_columns)

        monkeypatch.setattr(StateLayer, "hold_states", hold_states)
    else:  # beams keep the states of others
        monkeypatch.setattr(StateLayer, "content", lambda *given: LayerContent(
            states={name: each.clone() for name, each in whole(*given).states.items()}
        ))  # fmt: skip
    spec = spec_of(folder_of(kind))
    engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, by_own_cache=True)
    with pytest.raises(Disproved, match=r"than by model\.generate"):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


@pytest.mark.parametrize("num_columns", [-1, 1])
def test_a_window_that_is_off_by_one_is_caught(num_columns, folder_of, monkeypatch):
    whole = SpareLayer.first_seen
    monkeypatch.setattr(
        SpareLayer, "first_seen",
        lambda layer, num: max(whole(layer, num) + (num_columns if layer.window else 0), 0),
    )  # fmt: skip
    spec = spec_of(folder_of("gemma3"))
    engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, by_own_cache=True)
    with pytest.raises(Disproved):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


def test_a_model_that_is_disproved_answers_by_generate_and_says_why(folder_of, monkeypatch, caplog):
    monkeypatch.setattr(JoinedRows, "mask", lambda rows: torch.ones(
        sum(each.num_rows for each in rows.caches), rows.num_columns() + 1, dtype=torch.int64
    ))  # fmt: skip
    monkeypatch.setattr(CausalRunner, "_decode_forward", roll_rows(CausalRunner._decode_forward))
    spec = spec_of(folder_of("phi"))
    engine = load(spec)
    assert isinstance(engine, GenerateBackend)
    assert "was not proved at load: rows that change" in engine.card.engine_reason
    assert engine.sized.reasons["engine"].endswith("0.0001)")
    assert "not in flight" in caplog.messages
    with pytest.raises(Unloadable, match="have other logits than by"):
        load(replace(spec, engine="inflight"))


# Architectures that are nobody's

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


def test_an_architecture_that_nobody_has_heard_of_runs_in_flight(folder_of, tmp_path):
    folder = made_up(tmp_path / "made_up", folder_of("gpt2"), "pass")
    with pytest.raises(Unloadable, match="trust_remote_code"):
        load(spec_of(folder))
    spec = spec_of(folder, trust_remote_code=True)
    engine = load(spec)
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    bench = Bench(engine, spec)
    asked = requests()
    outputs = let_join(bench, asked)
    assert bench.progress.num_in_flight == len(asked)
    alone = checkpoints.hf.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = checkpoints.hf.AutoTokenizer.from_pretrained(folder)
    for each in asked[::5]:
        ids = torch.tensor([tokenizer(each.text)["input_ids"]])
        expected = alone.generate(ids, **SETTINGS[0])[0, ids.shape[1] :].tolist()
        assert list(outputs[each.id].choices[0].token_ids) == expected


@pytest.mark.parametrize(
    "flaw",
    [
        "position_ids = position_ids + (input_ids.shape[0] > 1)",
        # Only in a row that has joined longer ones, and only past its prompt.
        "position_ids = position_ids + int(attention_mask is not None "
        "and input_ids.shape[1] == 1 and attention_mask.shape[1] > int(position_ids.min()) + 1)",
        # Only from the fourth row on.
        "position_ids = position_ids + (torch.arange(input_ids.shape[0])[:, None] > 2)",
    ],
)
def test_a_position_off_by_one_in_company_is_caught(flaw, folder_of, tmp_path):
    folder = made_up(tmp_path / "made_up", folder_of("gpt2"), flaw)
    engine = load(spec_of(folder, trust_remote_code=True))
    assert isinstance(engine, GenerateBackend)
    assert "others in company" in engine.card.engine_reason or "in flight" in (
        engine.card.engine_reason
    )


# Half precision, and a second start


def test_in_half_precision_logits_are_held_to_a_bound_and_the_agreement_is_said(folder_of):
    engine = load(spec_of(folder_of("olmo2"), dtype="bfloat16"))
    assert isinstance(engine, RouterBackend)
    assert "of 18 requests answered in flight" in engine.card.engine_reason
    bound = self_proof.max_off(engine.checkpoint.model)
    assert MAX_OFF < 2**-8 < bound < 0.3


def test_a_fault_shows_in_half_precision_too(folder_of, monkeypatch):
    monkeypatch.setattr(joined, "POISON", 3.0)
    spec = spec_of(folder_of("olmo2"), dtype="bfloat16")
    engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, by_own_cache=True)
    break_it("mask", engine, monkeypatch)
    with pytest.raises(Disproved, match="where rounding is at most"):
        prove(engine.exact, engine.in_flight.runner, engine.has_beams)


def test_a_second_start_takes_the_verdict_of_the_first(folder_of, tmp_path, monkeypatch):
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path / "kept"))
    folder = tmp_path / "phi"
    shutil.copytree(folder_of("phi"), folder)
    spec = spec_of(folder)
    assert "at an earlier start" not in load(spec).card.engine_reason
    with monkeypatch.context() as patch:
        patch.setattr(router, "prove", lambda *_: pytest.fail("it was proved again"))
        again = load(spec)
        assert isinstance(again, RouterBackend)
        assert again.card.engine_reason.endswith("(at an earlier start)")
    # Other weights are another checkpoint, whose verdict is its own.
    proofs = []
    monkeypatch.setattr(router, "prove", lambda *given: proofs.append(given) or prove(*given))
    model = checkpoints.hf.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0] += 1
    model.save_pretrained(folder)
    load(spec)
    load(replace(spec, dtype="bfloat16"))
    assert len(proofs) == 2


def test_a_refusal_is_kept_as_well(folder_of, tmp_path, monkeypatch):
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path / "kept"))
    with monkeypatch.context() as patch:
        patch.setattr(CausalRunner, "_decode_forward", roll_rows(CausalRunner._decode_forward))
        patch.setattr(JoinedSequenceCache, "reorder", lambda *_: None)
        reasons = [load(spec_of(folder_of("phi"))).card.engine_reason]
    monkeypatch.setattr(router, "prove", lambda *_: pytest.fail("it was tried again"))
    reasons.append(load(spec_of(folder_of("phi"))).card.engine_reason)
    assert reasons[0] == reasons[1]
    assert "was not proved at load" in reasons[0]


@pytest.mark.parametrize("kind", ["gptj", "falcon_h1", "qwen3_5", "mamba"])
def test_a_step_that_fails_can_be_run_again(kind, folder_of, monkeypatch):
    """A model that raises after some of its layers have stored the newest token."""
    monkeypatch.setattr(joined_layers, "SPARE_COLUMNS", 3)
    spec = spec_of(folder_of(kind))
    bench = Bench(load(spec), spec)
    expected = let_join(bench, requests())
    engine = load(spec)
    bench, model, calls = Bench(engine, spec), engine.checkpoint.model, [0]

    def fail(*_):
        calls[0] += 1
        if calls[0] % 5 == 0 and len(engine.in_flight.running_sequences) > 1:
            raise ValueError("now and then")

    # Fails a step of several, never the same one run alone.
    whole = engine.in_flight.runner._decode

    def decode(caches, tokens):
        hook = model.lm_head.register_forward_hook(fail) if len(caches) > 1 else None
        try:
            return whole(caches, tokens)
        finally:
            if hook is not None:
                hook.remove()

    engine.in_flight.runner._decode = decode
    found = let_join(bench, requests())
    assert calls[0] > 5
    assert {id_: each.choices for id_, each in found.items()} == {
        id_: each.choices for id_, each in expected.items()
    }


def test_keys_that_a_window_has_left_are_dropped(folder_of, monkeypatch):
    monkeypatch.setattr(joined_layers, "SPARE_COLUMNS", 4)
    spec = spec_of(folder_of("gemma2"))
    engine = RouterBackend(spec, Checkpoint.load(spec), by_own_cache=True)
    bench = Bench(engine, spec)
    params = Params(max_new_tokens=40, min_new_tokens=40, do_sample=False)
    asked = [replace(each, params=params) for each in requests()]
    bench.submit(*asked[:5])
    most: dict[bool, int] = {False: 0, True: 0}
    while bench.advance() is not None:
        for rows in engine.in_flight.runner.kv_cache.joined:
            for layer in rows.layers:
                num = layer.buffers[0].shape[2]
                most[layer.is_sliding] = max(most[layer.is_sliding], num)
    assert 12 <= most[True] <= 12 - 1 + 4
    assert most[False] > 60
    alone = Alone("gemma2", folder_of("gemma2"))
    outputs = {each.request_id: each for each in bench.collect()}
    for each in asked[:5]:
        (expected,) = alone.generate(
            each.text, max_new_tokens=40, min_new_tokens=40, do_sample=False
        )
        assert list(outputs[each.id].choices[0].token_ids) == expected


def test_a_state_counts_in_the_cache_however_short_the_row(folder_of):
    keys = torch.zeros(1, 2, 1, 8)  # 64 bytes of a token in one layer
    states = {("recurrent", 0): torch.zeros(1, 1000)}
    full, windowed = LayerContent((keys, keys)), LayerContent((keys, keys), window=6)
    assert RowSize.of([full, full]).num_places(7) == 7
    hybrid = RowSize.of([full, LayerContent(states=states)])
    assert hybrid.place_bytes == 128
    assert hybrid.num_places(7) == 7 + 32  # 4000 bytes are 31.25 places
    assert RowSize.of([LayerContent(states=states)]).num_places(10_000) == 1
    bound = 6 + joined_layers.SPARE_COLUMNS
    assert RowSize.of([full, windowed]).num_places(1000) == (1000 + bound) / 2
    engine = load(spec_of(folder_of("qwen3_5")))
    sequence = engine.encode(requests()[0])
    num_tokens = len(sequence.prompt_ids) + sequence.settings.max_new_tokens
    assert sequence.num_cache_tokens == engine.row_size.num_places(num_tokens) > num_tokens


def test_much_longer_rows_take_a_pass_of_their_own(folder_of, monkeypatch):
    monkeypatch.setattr("engine.runners.own_cache.NO_MATTER", 16)
    widths = []
    whole = OwnCacheRunner._decode

    def decode(runner, caches, tokens):
        widths.append(sorted(each.length for each in caches))
        return whole(runner, caches, tokens)

    monkeypatch.setattr(OwnCacheRunner, "_decode", decode)
    engine = load(spec_of(folder_of("gptj")))
    assert isinstance(engine, RouterBackend)
    assert {each[-1] > 16 for each in widths} == {True, False}
    assert all(each[0] > 16 or each[-1] <= 16 for each in widths)


# Rotary frequencies that depend on the length


@pytest.mark.parametrize(
    ("kind", "switch", "has_far_side"),
    [("phi3_longrope", 64, True), ("llama_longrope", 64, True), ("llama_dynamic", 256, False)],
)
def test_a_request_on_one_side_of_the_rotary_switch_runs_in_flight(
    kind, switch, has_far_side, folder_of
):
    """Others run by `generate`; none changes what another is answered."""
    settings = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False}
    spec = spec_of(folder_of(kind), engine="inflight", max_sequences=8)
    engine = load(spec)
    engine.in_flight.runner.kv_cache.poisoned = True
    tokenizer = Alone(kind, folder_of(kind)).tokenizer
    ids = tokenizer(" ".join(checkpoints.sentences(80, seed=4)), add_special_tokens=False)
    ids = ids["input_ids"]
    # Before the switch, beyond it and across it, in turn.
    lengths = [switch - 30, switch + 20, switch - 4, 5, switch + 7, switch - 8, 12, switch + 40]
    asked = [
        Request(
            id=at, task="generate", text=tokenizer.decode(ids[at * 9 : at * 9 + num_tokens]),
            params=Params(**settings, num_beams=1 + 2 * (at % 3 == 0)),
        )
        for at, num_tokens in enumerate([*lengths, *lengths])
    ]  # fmt: skip
    kinds = set()
    for each in asked:
        sequence = engine.encode(each)
        num_tokens = len(sequence.prompt_ids)
        is_near, is_far = num_tokens + 9 <= switch, num_tokens > switch
        kinds.add((is_near, is_far))
        assert sequence.runs_to_completion == (not is_near and not (is_far and has_far_side))
    assert len(kinds) == 3
    bench = Bench(engine, spec)
    outputs = let_join(bench, list(asked))
    assert 4 < bench.progress.num_in_flight < len(asked)
    for each in asked:
        expected = Alone(kind, folder_of(kind)).generate(
            each.text, **settings, num_beams=each.params.num_beams
        )
        assert outputs[each.id].failure is None
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected


@pytest.mark.parametrize("kind", ["phi3_longrope", "llama_longrope"])
def test_sides_of_the_rotary_switch_that_mix_are_caught(kind, folder_of, monkeypatch):
    monkeypatch.setattr(OwnCacheRunner, "_side_of", lambda runner, num_tokens: 0)
    engine = load(spec_of(folder_of(kind)))
    assert isinstance(engine, GenerateBackend)
    assert "where rounding is at most" in engine.card.engine_reason


def test_rows_at_other_temperatures_that_mix_are_caught(folder_of, monkeypatch):
    monkeypatch.setattr(OwnCacheRunner, "_side_of", lambda runner, num_tokens: 0)
    assert isinstance(load(spec_of(folder_of("llama4"))), GenerateBackend)


# Prompts that are computed in one pass


def test_prompts_of_like_length_are_computed_in_one_pass(folder_of, monkeypatch):
    monkeypatch.setattr("engine.runners.own_cache.FEW_TOKENS", 6)
    groups = []
    whole = OwnCacheRunner._prefill_padded

    def prefill_padded(runner, sequences):
        groups.append([len(each.prompt_ids) for each in sequences])
        return whole(runner, sequences)

    monkeypatch.setattr(OwnCacheRunner, "_prefill_padded", prefill_padded)
    spec = spec_of(folder_of("gemma2"), max_sequences=16)
    engine = RouterBackend(spec, Checkpoint.load(spec), by_own_cache=True)
    assert engine.in_flight.runner.pads_prompts
    prove(engine.exact, engine.in_flight.runner, engine.has_beams)
    assert any(len(set(each)) > 1 for each in groups)  # the proof has padded ones
    groups.clear()
    bench = Bench(engine, spec)
    outputs = bench.answers(requests())
    assert sum(map(len, groups)) > 8
    for each in groups:
        padding = sum(max(each) - length for length in each)
        assert padding <= max(6, sum(each) / 4)
    alone = Alone("gemma2", folder_of("gemma2"))
    for each in requests():
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected


@pytest.mark.parametrize(
    "flaw",
    [
        # Positions are counted from the padding on, where there is some.
        "position_ids = torch.arange(input_ids.shape[1])[None] if input_ids.shape[1] > 1 "
        "else position_ids",
    ],
)
def test_a_model_that_reads_padding_computes_prompts_one_by_one(flaw, folder_of, tmp_path):
    folder = made_up(tmp_path / "made_up", folder_of("gpt2"), flaw)
    engine = load(spec_of(folder, trust_remote_code=True))
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    assert not engine.in_flight.runner.pads_prompts


@pytest.mark.parametrize("kind", ["qwen3_5", "mamba", "llama4"])
def test_a_recurrence_sees_no_padding(kind, folder_of):
    assert not load(spec_of(folder_of(kind))).in_flight.runner.pads_prompts


# Context is what rotary scaling makes of it


@pytest.mark.parametrize(
    ("kind", "num_tokens", "backend"),
    [("llama_yarn", 140, RouterBackend), ("llama_dynamic", 400, RouterBackend)],
)
def test_a_text_beyond_the_positions_is_answered_as_generate_answers_it(
    kind, num_tokens, backend, folder_of
):
    spec = spec_of(folder_of(kind))
    engine = load(spec)
    assert isinstance(engine, backend)
    bench = Bench(engine, spec)
    alone = Alone(kind, folder_of(kind))
    text = " ".join(checkpoints.sentences(60, seed=9))
    ids = alone.tokenizer(text)["input_ids"][:num_tokens]
    text = alone.tokenizer.decode(ids, skip_special_tokens=True)
    params = Params(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    asked = [
        Request(id=at, task="generate", text=each, params=params)
        for at, each in enumerate([text, *checkpoints.sentences(3), text])
    ]
    outputs = bench.answers(asked)
    assert outputs[0].failure is None
    assert outputs[0].prompt_tokens > alone.model.config.max_position_embeddings
    for each in asked:
        (expected,) = Alone(kind, folder_of(kind)).generate(
            each.text, max_new_tokens=6, min_new_tokens=6, do_sample=False
        )
        assert list(outputs[each.id].choices[0].token_ids) == expected
    limit = engine.checkpoint.limits.max_answer_context_tokens
    too_long = Request(id=9, task="generate", text=text * limit, params=params)
    assert bench.answers([too_long])[9].failure.code == "prompt_too_long"


@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
def test_a_window_as_wide_as_the_context_is_none(kind, folder_of, tmp_path):
    """It runs as a listed one, up to the end of its context."""
    folder = shutil.copytree(folder_of(kind), tmp_path / kind)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    num_positions = config["max_position_embeddings"]
    config |= {"sliding_window": num_positions, "use_sliding_window": True, "max_window_layers": 0}
    config.pop("layer_types", None)
    path.write_text(json.dumps(config))
    spec = spec_of(folder)
    engine = load(spec)
    assert isinstance(engine, RouterBackend)
    assert "at load" not in engine.card.engine_reason
    alone = Alone(kind, folder)
    ids = alone.tokenizer(" ".join(checkpoints.sentences(60, seed=9)))["input_ids"]
    texts = [
        alone.tokenizer.decode(ids[: num_positions - 20], skip_special_tokens=True),
        *checkpoints.sentences(3),
    ]
    params = Params(max_new_tokens=9, min_new_tokens=9, do_sample=False)
    asked = [
        Request(id=at, task="generate", text=text, params=params) for at, text in enumerate(texts)
    ]
    outputs = Bench(engine, spec).answers(asked)
    assert outputs[0].prompt_tokens > num_positions - 40
    for each in asked:
        (expected,) = alone.generate(each.text, max_new_tokens=9, min_new_tokens=9, do_sample=False)
        assert list(outputs[each.id].choices[0].token_ids) == expected
