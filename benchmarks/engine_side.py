"""One side of `benchmarks.engine`, in a process of its own; prints one line of JSON.

    python -m benchmarks.engine_side MODEL SIDE NUM_REQUESTS THREADS EVERY

The model has random weights drawn from a fixed seed, its output embeddings untied, and no
end token, so that every answer has the length that the workload gives it.
"""

import json
import math
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from worker.engine import routing
from worker.engine.checkpoint import Checkpoint, Limits
from worker.engine.decoding import Settings
from worker.engine.exact import ExactEngine, Group, length_class
from worker.engine.messages import ModelCard, Params, Request
from worker.engine.packed import pack
from worker.engine.routing import RoutingEngine
from worker.engine.scheduler import Scheduler, StepLimits
from worker.engine.sequence import Sequence
from worker.engine.spec import EngineSpec

MAX_SEQUENCES = 16
Work = list[tuple[list[int], int]]  # prompt, number of new tokens


def llama(width: int, layers: int, heads: int, inner: int) -> Any:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            vocab_size=32_000,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )
    )


def t5() -> Any:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=512,
            d_kv=64,
            d_ff=2048,
            num_layers=6,
            num_heads=8,
            vocab_size=32_128,
            decoder_start_token_id=0,
            tie_word_embeddings=False,
        )
    )


def marian() -> Any:
    return hf.MarianMTModel(
        hf.MarianConfig(
            vocab_size=58_101,
            d_model=512,
            encoder_layers=6,
            decoder_layers=6,
            encoder_attention_heads=8,
            decoder_attention_heads=8,
            encoder_ffn_dim=2048,
            decoder_ffn_dim=2048,
            max_position_embeddings=1024,
            pad_token_id=58_100,
            decoder_start_token_id=58_100,
            eos_token_id=0,
            forced_eos_token_id=None,
            tie_word_embeddings=False,
        )
    )


MODELS: dict[str, Callable[[], Any]] = {
    "llama-15m": lambda: llama(288, 6, 6, 768),
    "llama-60m": lambda: llama(512, 12, 8, 1536),
    "t5-small": t5,
    "marian": marian,
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 0.8 / math.sqrt(weight.shape[-1]))
        model.get_input_embeddings().weight.normal_(0, 1.0)
        model.get_output_embeddings().weight.normal_(0, 1.0)
    start_id = model.generation_config.decoder_start_token_id
    model.generation_config = hf.GenerationConfig(
        decoder_start_token_id=start_id, pad_token_id=0, do_sample=False
    )
    return model


def workload(num_requests: int) -> Work:
    """Prompts log-normal 16 to 512 tokens, answers log-normal 8 to 128."""
    draw = random.Random(1234)

    def length(median: float, sigma: float, least: int, most: int) -> int:
        return min(max(round(draw.lognormvariate(math.log(median), sigma)), least), most)

    sizes = [(length(64, 0.9, 16, 512), length(28, 0.8, 8, 128)) for _ in range(num_requests)]
    return [([draw.randrange(3, 30_000) for _ in range(prompt)], new) for prompt, new in sizes]


def generated(model: Any, work: Work) -> list[list[int]]:
    """One call of `generate`; each answer is cut at its own length."""
    width = max(len(prompt) for prompt, _ in work)
    before = not model.config.is_encoder_decoder

    def padded(row: list[int], pad: int) -> list[int]:
        pads = [pad] * (width - len(row))
        return pads + row if before else row + pads

    ids = torch.tensor([padded(prompt, 0) for prompt, _ in work])
    mask = torch.tensor([padded([1] * len(prompt), 0) for prompt, _ in work])
    most = max(new for _, new in work)
    rows = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most)
    rows = rows[:, width if before else 1 :].tolist()
    return [row[:new] for row, (_, new) in zip(rows, work, strict=True)]


def batches(model: Any, work: Work, size: int, by_output: bool = False) -> list[list[int]]:
    order = sorted(range(len(work)), key=lambda at: work[at][1] if by_output else at)
    answers: list[list[int]] = [[] for _ in work]
    for at in range(0, len(order), size):
        part = order[at : at + size]
        rows = generated(model, [work[each] for each in part])
        for each, row in zip(part, rows, strict=True):
            answers[each] = row
    return answers


def served(name: str, model: Any, work: Work, engine_name: str) -> Callable[[], list[list[int]]]:
    spec = EngineSpec(alias=name, checkpoint=name, max_sequences=MAX_SEQUENCES)
    own = model.generation_config
    model.generation_config = hf.GenerationConfig()
    card = ModelCard(
        alias=name,
        checkpoint=name,
        revision=None,
        family="seq2seq" if model.config.is_encoder_decoder else "causal",
        engine="exact",
        model_type=model.config.model_type,
        device="cpu",
        dtype="float32",
        max_context_tokens=None,
        num_parameters=0,
    )
    checkpoint = Checkpoint(model.config, NoTokenizer(), model, own, Limits(None, None), card)
    exact = engine_name == "exact"
    engine = ExactEngine(spec, checkpoint) if exact else RoutingEngine(spec, checkpoint)
    sequences = [sequence_of(at, *each) for at, each in enumerate(work)]
    if isinstance(engine, RoutingEngine):
        for sequence in sequences:
            engine.route(sequence)

    def run() -> list[list[int]]:
        scheduler = Scheduler(StepLimits.of(spec))
        scheduler.add(sequences)
        answers: list[list[int]] = [[] for _ in work]
        while (plan := scheduler.next_step()) is not None:
            for done in scheduler.apply(plan, engine.run(plan)):
                assert done.error is None, done.error
                answers[done.sequence.id] = list(done.answers[0].token_ids)
        return answers

    return run


def sequence_of(id_: int, prompt: list[int], num_new: int) -> Sequence:
    group = Group(Settings(max_new_tokens=0), length_class(len(prompt)), None, None, None)
    return Sequence(
        request=Request(id=id_, task="generate", text="", params=Params()),
        prompt_ids=tuple(prompt),
        settings=Settings(max_new_tokens=num_new),
        num_rows=1,
        num_prefill_tokens=len(prompt),
        group=group,
        runs_to_end=True,
    )


class NoTokenizer:
    """The workload is in token ids already."""

    eos_token_id = None
    pad_token_id = 0
    unk_token_id = None
    chat_template = None
    all_special_tokens = ()
    additional_special_tokens = ()

    def get_vocab(self) -> dict[str, int]:
        return {}


def main(name: str, side: str, num_requests: int, threads: int, every: int) -> None:
    torch.set_num_threads(threads)
    hf.logging.set_verbosity_error()
    work = workload(num_requests)
    model = build(name)
    side, _, how = side.partition(" ")
    if side in ("one", "static", "oracle") and how == "packed":
        pack(model)
    if how == "plain":
        routing.can_pack = lambda model: False
    if side == "one":
        work = work[::every]
        run = lambda: batches(model, work, 1)  # noqa: E731  # the sides are alike this way
    elif side == "static":
        run = lambda: batches(model, work, MAX_SEQUENCES)  # noqa: E731
    elif side == "oracle":
        run = lambda: batches(model, work, MAX_SEQUENCES, by_output=True)  # noqa: E731
    else:
        run = served(name, model, work, side)
    with torch.inference_mode():
        warm_up(model)
        started_at, computed_at = time.perf_counter(), time.process_time()
        answers = run()
        seconds = time.perf_counter() - started_at
        cpu_seconds = time.process_time() - computed_at
    num_tokens = sum(len(each) for each in answers)
    assert num_tokens == sum(new for _, new in work)
    speeds = {"wall": num_tokens / seconds, "cpu": num_tokens / cpu_seconds}
    print(json.dumps({**speeds, "answers": answers}))


def warm_up(model: Any) -> None:
    """What a first call costs is nobody's speed."""
    model.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=2, pad_token_id=0, decoder_start_token_id=0
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
