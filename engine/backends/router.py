"""RouterBackend: in flight what is proved to be exact there, by `model.generate` the rest.

Both run on one loaded model. A request that must go to `generate` is run to its end in the
step in which it joins, with its like; the sequences in flight wait that long and go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from engine.attention.hf_plugin import install
from engine.attention.selection import kv_cache_for
from engine.backends.generate import GenerateBackend
from engine.backends.generation_config import EXACT_CACHES
from engine.backends.inflight import InflightBackend, Runner
from engine.backends.loader import Checkpoint
from engine.backends.proved_families import why_not_proved
from engine.backends.weight_layout import lay_out
from engine.core.completion import Completion
from engine.core.scheduler import StepPlan
from engine.core.sequence import Sequence
from engine.errors import Unloadable
from engine.kv_cache.base import KVCacheManager
from engine.kv_cache.kv_shape import probe_kv_shape
from engine.kv_cache.memory_planner import machine_for, refuse_beyond_memory
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED, sized
from engine.protocol.messages import Measurement, ModelCard, Output, Request
from engine.protocol.task_names import TaskName
from engine.runners.causal import CausalRunner
from engine.runners.seq2seq import Seq2SeqRunner
from engine.sampling.beam_search import supports_beam_search
from engine.sampling.resolve_params import SETTINGS
from engine.text.token_lengths import no_pause

# What a checkpoint's own generation configuration may say. The first are attended to in
# flight, or by what both engines share; the others have no say in the tokens.
ATTENDED_TO = frozenset(SETTINGS) | {
    "bad_words_ids", "bos_token_id", "decoder_start_token_id", "eos_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "max_length", "min_length", "pad_token_id",
    "prefix", "stop_strings",
    # By the processors that `transformers` makes of them, for each request its own.
    "begin_suppress_tokens", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "min_p",
    "remove_invalid_values", "renormalize_logits", "sequence_bias", "suppress_tokens", "top_h",
    "typical_p",
}  # fmt: skip
INERT = frozenset(
    {
        "_from_model_config", "transformers_version", "use_cache", "output_attentions",
        "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate",
        "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "assistant_lookbehind", "target_lookbehind", "is_assistant",
        "disable_compile", "prefill_chunk_size", "low_memory", "cache_config",
    }
)  # fmt: skip
# The same of others, at these values.
NEUTRAL: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "guidance_scale": 1.0,
    "num_beam_groups": 1,
    "token_healing": False,
}
TASKS: tuple[TaskName, ...] = ("generate", "summarize", "translate", "chat")
IN_FLIGHT = "in flight"  # the one group of all that share steps


class RouterBackend:
    def __init__(
        self,
        spec: EngineSpec,
        checkpoint: Checkpoint,
        poisoned: bool = False,
        is_paged: bool | None = None,
    ) -> None:
        """poisoned: memory that must not be read is NaN; for tests
        is_paged: keys and values in one; None: on a GPU"""
        self.spec = spec
        self.checkpoint = checkpoint
        self.exact = GenerateBackend(spec, checkpoint)
        self.text = self.exact.text
        self.reason = reason_of(self.exact)
        self.card: ModelCard = replace(
            checkpoint.card, engine="inflight", engine_reason=self.reason
        )
        lay_out(checkpoint.model, spec, checkpoint.reload)
        install(checkpoint.model)
        shape = probe_kv_shape(checkpoint.model)
        machine = machine_for(checkpoint, shape)
        self.sized = sized(spec, machine, "inflight", self.reason)
        if machine.max_paged_tokens is not None:
            refuse_beyond_memory(self.sized.spec, machine.max_paged_tokens(self.sized.spec))
        kv_cache = kv_cache_for(self.sized.spec, shape, poisoned, is_paged)
        self.in_flight = InflightBackend(self.exact, runner_of(checkpoint, kv_cache))
        self.has_beams = supports_beam_search(checkpoint.model)

    @property
    def max_rows(self) -> int | None:
        bounds = (self.in_flight.max_rows, self.exact.max_rows)
        return min((each for each in bounds if each is not None), default=None)

    def encode(self, request: Request, between_slices: Callable[[], None] = no_pause) -> Sequence:
        sequence = self.exact.encode(request, between_slices)
        own = self.text.own_settings(request)
        if self.is_proved(sequence, own):
            self.route(sequence)
        return sequence

    def measure(
        self, request: Request, between_slices: Callable[[], None] = no_pause
    ) -> Measurement:
        return self.text.measure(request, self.sized.spec.max_cache_tokens, between_slices)

    def route(self, sequence: Sequence) -> None:
        """Let it run in flight."""
        sequence.batch_key = IN_FLIGHT
        sequence.runs_to_completion = False
        num_prompt, settings = len(sequence.prompt_ids), sequence.settings
        sequence.num_prefill_tokens = num_prompt  # once, for all its rows
        num_columns = 1 if self.exact.is_encoder_decoder else num_prompt
        sequence.num_cache_tokens = sequence.num_rows * (num_columns + settings.max_new_tokens)
        if self.exact.is_encoder_decoder:
            sequence.num_cache_tokens += num_prompt

    def is_proved(self, sequence: Sequence, own: Mapping[str, Any]) -> bool:
        """Whether the answer in flight is known to be that of `generate`."""
        settings = sequence.settings
        if settings.num_beams > 1 and (settings.do_sample or settings.stop or not self.has_beams):
            return False
        return not unattended(own)

    def run(self, plan: StepPlan) -> list[Completion | None]:
        runs_to_completion = bool(plan.admitted) and plan.admitted[0].runs_to_completion
        with torch.inference_mode():
            results = self.in_flight.run(plan.running, () if runs_to_completion else plan.admitted)
        if runs_to_completion:
            results += self.exact.run(StepPlan((), plan.admitted))
        return results

    def drop(self, sequences: Iterable[Sequence]) -> None:
        self.in_flight.drop(sequences)

    def check(self, running: Iterable[Sequence]) -> None:
        """Raise InvariantBroken if a KV cache is kept for other sequences than `running`."""
        self.in_flight.check(running)

    def decode(self, completion: Completion) -> Output:
        return self.text.decode(completion)


def unattended(own: Mapping[str, Any]) -> list[str]:
    """The settings of a checkpoint that only `generate` attends to, by name."""
    return sorted(name for name, value in own.items() if not is_attended_to(name, value))


def is_attended_to(name: str, value: Any) -> bool:
    if value is None or name in ATTENDED_TO or name in INERT:
        return True
    if name == "cache_implementation":
        return value in EXACT_CACHES
    return name in NEUTRAL and bool(value == NEUTRAL[name])


def reason_of(exact: GenerateBackend) -> str:
    """Why in flight, and which settings of the checkpoint cost which tasks that."""
    kept_out: dict[str, list[str]] = {}
    for task in TASKS:
        names = ", ".join(unattended(exact.text.own_settings(Request(id=0, task=task))))
        if names:
            kept_out.setdefault(names, []).append(task)
    if not kept_out:
        return "proved to answer as model.generate does"
    said = "; ".join(f"{names} ({', '.join(tasks)})" for names, tasks in kept_out.items())
    return f"but by model.generate, for its generation configuration sets {said}"


def load(spec: EngineSpec) -> RouterBackend | GenerateBackend:
    """The engine that the spec means. Raises Unloadable."""
    checkpoint = Checkpoint.load(spec)
    reason = why_not_in_flight(checkpoint)
    if spec.engine != "exact" and reason is None:
        return RouterBackend(spec, checkpoint)
    if spec.engine == "inflight":
        raise Unloadable(
            f'model {spec.alias!r} cannot run in flight: {reason}; use engine = "auto"'
        )
    lay_out(checkpoint.model, spec, checkpoint.reload)
    return GenerateBackend(spec, checkpoint, reason or AS_CONFIGURED)


def why_not_in_flight(checkpoint: Checkpoint) -> str | None:
    """None if it can be run in flight."""
    model = checkpoint.model
    config = model.config
    reason = why_not_proved(model)
    if reason is not None:
        return reason
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return f"its attention is {config._attn_implementation}, not sdpa"
    if config.is_encoder_decoder and start_id_of(checkpoint) is None:
        return "it does not say from which token its decoder starts"
    return None


def start_id_of(checkpoint: Checkpoint) -> int | None:
    own = checkpoint.generation_config
    start_id = (
        own.bos_token_id if own.decoder_start_token_id is None else own.decoder_start_token_id
    )
    return start_id if isinstance(start_id, int) else None


def runner_of(checkpoint: Checkpoint, kv_cache: KVCacheManager) -> Runner:
    if not checkpoint.config.is_encoder_decoder:
        return CausalRunner(checkpoint.model, kv_cache)
    start_id = start_id_of(checkpoint)
    assert start_id is not None
    return Seq2SeqRunner(checkpoint.model, start_id, kv_cache)
