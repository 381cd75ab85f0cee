"""VllmBackend: greedy answers of decoder-only models by vLLM, with continuous batching.

It is an optional extra, for those who run vLLM already. vLLM loads the checkpoint and owns the KV
cache; prompts, settings, limits and texts are ours, so token ids go in and come out. Whatever is
not known to be exact with vLLM is refused by name: at load if the checkpoint decides it, else for
the request.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.backends.greedy_only import not_attended_to, refuse_unless_greedy, with_forced_end
from engine.checkpoint.folder import place
from engine.checkpoint.loader import Checkpoint, choose_device
from engine.checkpoint.parts import first_sentence
from engine.core.completion import Completion
from engine.core.scheduler import StepPlan
from engine.core.sequence import Sequence
from engine.device_errors import release_memory
from engine.errors import EngineBroken, GenerationFailed, InvariantBroken, Unloadable
from engine.kv_cache.paged import PAGE_TOKENS, num_pages
from engine.kv_cache.planning.kv_shape import probe_kv_shape
from engine.kv_cache.planning.memory_planner import machine_for, refuse_beyond_memory
from engine.logging import error_location
from engine.proof.proved_families import odd_attention
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED, Sized, sized
from engine.protocol.model_card import ModelCard
from engine.protocol.output import Measurement, Output
from engine.protocol.request import Request
from engine.sampling.resolve_params import SETTINGS, ResolvedParams
from engine.text.processor import TextProcessor
from engine.text.token_lengths import no_pause

log = logging.getLogger(__name__)

# Families that tests/parity covers.
PROVED = ("gpt2", "llama", "mistral", "opt", "qwen2", "qwen3")
# Kinds of rotary positions, of those that do not depend on the length.
PROVED_ROPES = ("default", "linear", "llama3")
# What a checkpoint's own generation configuration may say beside what is inert or neutral.
SUPPORTED = frozenset(SETTINGS) | {
    "bos_token_id", "eos_token_id", "forced_eos_token_id", "max_length", "min_length",
    "pad_token_id",
}  # fmt: skip
IN_FLIGHT = "vllm"  # the batch key of all sequences in vLLM


class VllmBackend:
    """Runs sequences in vLLM. Always: vLLM holds exactly the sequences of `running`."""

    def __init__(self, spec: EngineSpec, checkpoint: Checkpoint) -> None:
        """Take the model out of the checkpoint and load vLLM. Raises Unloadable."""
        reason = why_not(spec, checkpoint)
        if reason is not None:
            raise Unloadable(
                f'model {spec.alias!r} cannot run by vLLM: {reason}; use engine = "auto"'
            )
        self.checkpoint = checkpoint
        shape = probe_kv_shape(checkpoint.model)
        machine = machine_for(checkpoint, shape)
        self.sized = no_more_than_used(sized(spec, machine, "vllm", AS_CONFIGURED), checkpoint)
        if machine.max_paged_tokens is not None:
            refuse_beyond_memory(self.sized.spec, machine.max_paged_tokens(self.sized.spec))
        self.text = TextProcessor(spec, checkpoint, self.sized.spec.max_step_tokens)
        self.end_ids = sorted(checkpoint.eos_token_ids)
        # vLLM loads the model again, and one copy is enough.
        device = checkpoint.model.device
        checkpoint.model = None
        gc.collect()
        release_memory(device)
        self.vllm = imported()
        refuse_unfit(self.vllm, spec.alias, device.type, shape.head_size)
        self.llm_engine = llm_engine_of(
            self.vllm, checkpoint, self.sized.spec, shape.bytes_per_token
        )
        self.running: dict[int, Sequence] = {}
        self.max_rows: int | None = None
        self.card: ModelCard = replace(
            checkpoint.card,
            engine="vllm",
            versions={**checkpoint.card.versions, "vllm": self.vllm.__version__},
        )

    @classmethod
    def load(cls, spec: EngineSpec) -> VllmBackend:
        """Load the checkpoint into vLLM.

        Raises Unloadable, or ImportError before anything is loaded.
        """
        imported()
        device = choose_device(spec, torch.cuda.device_count())
        if device.type == "cpu":
            return cls(spec, Checkpoint.load(spec))
        # vLLM takes the first that it sees.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = only(device.index or 0, visible)
        engine = cls(spec, Checkpoint.load(replace(spec, device="cuda:0")))
        engine.card = replace(engine.card, device=str(device))
        return engine

    def encode(self, request: Request, between_slices: Callable[[], None] = no_pause) -> Sequence:
        sequence = self.text.encode(request, between_slices)
        refuse_unless_greedy(sequence.settings, "vLLM")
        sequence.batch_key = IN_FLIGHT
        sequence.num_cache_tokens = len(sequence.prompt_ids) + sequence.settings.max_new_tokens
        return sequence

    def measure(
        self, request: Request, between_slices: Callable[[], None] = no_pause
    ) -> Measurement:
        return self.text.measure(request, self.max_cached_prompt, between_slices)

    def max_cached_prompt(self, settings: ResolvedParams) -> int:
        """The longest prompt that fits into the cache with its answers."""
        assert self.sized.spec.max_cache_tokens is not None
        return self.sized.spec.max_cache_tokens // settings.num_rows - 1 - settings.max_new_tokens

    def run(self, plan: StepPlan) -> list[Completion | None]:
        """Run one step of vLLM.

        vLLM may read a prompt in chunks or delay it; its sequence then gets no token in this step.
        """
        ended: dict[int, Completion] = {}
        for sequence in plan.admitted:
            try:
                self._add(sequence)
            except Exception as error:
                log.error("request failed", extra={"error": error_location(error)})
                failure = GenerationFailed(error, "handing the prompt to vLLM")
                ended[sequence.id] = Completion.failed(sequence, failure)
        for output in self._step():
            sequence = self.running.pop(int(output.request_id))
            ended[sequence.id] = self._completion(sequence, output.outputs[0])
        return [ended.get(each.id) for each in plan.sequences]

    def drop(self, sequences: Iterable[Sequence]) -> None:
        ids = [each.id for each in sequences if self.running.pop(each.id, None) is not None]
        self.llm_engine.abort_request([str(each) for each in ids])

    def decode(self, completion: Completion) -> Output:
        return self.text.decode(completion)

    def check(self, running: Iterable[Sequence]) -> None:
        """Raise InvariantBroken unless vLLM holds exactly the running sequences."""
        ids = {each.id for each in running}
        num_held = self.llm_engine.get_num_unfinished_requests()
        if ids != self.running.keys() or num_held != len(ids):
            raise InvariantBroken(
                f"vLLM holds {num_held} sequences, {sorted(self.running)} are counted, "
                f"{sorted(ids)} run"
            )

    def _add(self, sequence: Sequence) -> None:
        settings = sequence.settings
        params = self.vllm.SamplingParams(
            temperature=0.0,  # greedy
            max_tokens=settings.max_new_tokens,
            # A checkpoint may ask for more than the request allows; here that is an error.
            min_tokens=min(settings.min_new_tokens, settings.max_new_tokens),
            stop_token_ids=self.end_ids,
            ignore_eos=True,  # vLLM knows a single one; ours are listed above
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        prompt = self.vllm.inputs.engine.tokens_input(list(sequence.prompt_ids))
        self.llm_engine.add_request(str(sequence.id), prompt, params)
        self.running[sequence.id] = sequence

    def _step(self) -> list[Any]:
        try:
            return self.llm_engine.step()  # type: ignore[no-any-return]  # a list of outputs
        except Exception as error:
            # The state of vLLM is unknown now. The parent restarts the process and finds the
            # request at fault.
            log.error("step failed", extra={"error": error_location(error)})
            raise EngineBroken(f"a step of vLLM failed: {type(error).__name__}") from error

    def _completion(self, sequence: Sequence, output: Any) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise EngineBroken(f"vLLM ended a sequence by {output.finish_reason!r}")
        forced = self.checkpoint.generation_config.forced_eos_token_id
        row = with_forced_end(list(output.token_ids), sequence.settings.max_new_tokens, forced)
        return Completion(sequence, (self.text.answer(sequence, row, None),))


def why_not(spec: EngineSpec, checkpoint: Checkpoint) -> str | None:
    """The reason that greedy answers may not be exact; None if they are known to be."""
    config = checkpoint.config
    if config.is_encoder_decoder:
        return f"{config.model_type} is an encoder-decoder"
    if config.model_type not in PROVED:
        return f"{config.model_type} is not among the proved families ({', '.join(PROVED)})"
    if type(checkpoint.model).__module__.split(".")[0] != "transformers":
        return "it brings code of its own"
    if spec.quantization != "none":
        return f"quantization = {spec.quantization!r} is not known there"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized"
    odd = odd_attention(config)
    if odd is not None:
        return odd
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in PROVED_ROPES:
        return f"its rotary positions are {rope['rope_type']}"
    if getattr(config, "sliding_window", None) is not None:
        return "its attention looks at a window only"
    if not getattr(config, "scale_attn_weights", True) or getattr(
        config, "scale_attn_by_inverse_layer_idx", False
    ):
        return "its attention is scaled in a way of its own"
    if checkpoint.limits.max_answer_context_tokens is None:
        return "it does not say how many positions it has"
    ignored = not_attended_to(checkpoint.own, SUPPORTED)
    if ignored is not None:
        return f"its own {ignored} is not attended to there"
    return None


def no_more_than_used(chosen: Sized, checkpoint: Checkpoint) -> Sized:
    """Limit the cache to what all rows can fill: vLLM allocates it at once."""
    spec, context = chosen.spec, checkpoint.limits.max_answer_context_tokens
    assert context is not None
    assert spec.max_sequences is not None
    assert spec.max_cache_tokens is not None
    most = spec.max_sequences * context
    if chosen.reasons["max_cache_tokens"] == AS_CONFIGURED or spec.max_cache_tokens <= most:
        return chosen
    reason = f"as much as {spec.max_sequences} sequences can be"
    return Sized(
        replace(spec, max_cache_tokens=most), {**chosen.reasons, "max_cache_tokens": reason}
    )


def imported() -> Any:
    """Import vLLM with our settings in the environment, which it reads on import."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the model is in this process
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"  # it may quote what belongs to users
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override the size chosen here
    import vllm
    import vllm.inputs.engine
    import vllm.platforms
    import vllm.sampling_params

    return vllm


def refuse_unfit(vllm: Any, alias: str, device_type: str, head_size: int) -> None:
    """Raise Unloadable for faults that vLLM would report in its first step, or never."""
    built_for = vllm.platforms.current_platform.device_type
    reason = None
    if built_for != device_type:
        reason = f"the vLLM that is installed is for {built_for}, and the model is on {device_type}"
    elif device_type == "cpu":
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        known = CPUAttentionBackend.get_supported_head_sizes()
        if head_size not in known:
            listed = ", ".join(map(str, known))
            reason = f"its heads have {head_size} numbers, and vLLM on a CPU knows {listed}"
    if reason is not None:
        raise Unloadable(f'model {alias!r} cannot run by vLLM: {reason}; use engine = "auto"')


def llm_engine_of(vllm: Any, checkpoint: Checkpoint, spec: EngineSpec, bytes_per_token: int) -> Any:
    """Return a vLLM engine with the checkpoint loaded. Raises Unloadable.

    spec: with every limit chosen
    """
    context = checkpoint.limits.max_answer_context_tokens
    assert context is not None
    assert spec.max_sequences is not None
    assert spec.max_cache_tokens is not None
    folder_or_name = place(spec)
    is_folder = Path(folder_or_name).is_dir()
    num_cache_bytes = (
        num_pages(spec.max_sequences, spec.max_cache_tokens) * PAGE_TOKENS * bytes_per_token
    )
    try:
        arguments = vllm.EngineArgs(
            model=folder_or_name,
            # The commit that was checked, since the branch may have moved on.
            revision=None if is_folder else checkpoint.card.revision,
            trust_remote_code=spec.trust_remote_code,
            skip_tokenizer_init=True,
            generation_config="vllm",  # the checkpoint's own is in every request
            dtype=checkpoint.card.dtype,
            # Longer ones are refused before they come here.
            max_model_len=min(context, spec.max_cache_tokens),
            max_num_seqs=spec.max_sequences,
            max_num_batched_tokens=spec.max_step_tokens,
            block_size=PAGE_TOKENS,
            kv_cache_memory_bytes=num_cache_bytes,
            gpu_memory_utilization=spec.gpu_memory_utilization,
            enable_prefix_caching=False,
            async_scheduling=False,  # each step returns its own tokens
            # On a CPU compiling takes a minute and a compiler, which may not be there.
            enforce_eager=checkpoint.card.device == "cpu",
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
        return vllm.LLMEngine.from_engine_args(arguments)
    except Exception as error:
        raise Unloadable(
            f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r} cannot be loaded by vLLM "
            f'({first_sentence(error)}); use engine = "auto"'
        ) from error


def only(index: int, visible: str | None) -> str:
    """Return the CUDA_VISIBLE_DEVICES value for one of the visible GPUs. visible: None: all"""
    return str(index) if visible is None else visible.split(",")[index]
