"""RouterBackend: in flight what is proved to be exact there, by `model.generate` the rest.

Both run on one loaded model. A request that must go to `generate` is run to its end in the
step in which it joins, with its like; the sequences in flight wait that long and go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from engine.attention.hf_plugin import UnknownAttention, install, uninstall
from engine.attention.layers import kv_shape_of
from engine.attention.selection import kv_cache_for
from engine.backends.generate import GenerateBackend, Sharing
from engine.backends.inflight import InflightBackend, Runner
from engine.checkpoint.generation_config import EXACT_CACHES
from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.model_state import Freshness
from engine.checkpoint.weights.layout import lay_out
from engine.core.completion import Completion
from engine.core.scheduler import StepPlan
from engine.core.sequence import Sequence
from engine.errors import Unloadable, in_words
from engine.kv_cache.base import KVCacheManager, KVShape
from engine.kv_cache.contiguous import ContiguousKVCache
from engine.kv_cache.joined import JoinedKVCache
from engine.kv_cache.joined_layers import UnknownCache
from engine.kv_cache.paged import PagedKVCache
from engine.kv_cache.planning.memory_planner import machine_for, refuse_beyond_memory
from engine.kv_cache.planning.row_size import RowSize
from engine.kv_cache.prefix_cache import PrefixCache
from engine.logging import error_location
from engine.proof import verdicts
from engine.proof.batch_probe import LEAVES_CHANGES
from engine.proof.proved_families import length_bound_rope, why_not_proved
from engine.proof.self_proof import AnsweredAlone, Disproved, Proof, answered_alone, prove
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED, sized
from engine.protocol.messages import Measurement, ModelCard, Output, Request
from engine.protocol.task_names import TaskName
from engine.runners.causal import CausalRunner
from engine.runners.length_switches import rotary_switch_of
from engine.runners.own_cache import OwnCacheRunner, probe_row_size
from engine.runners.seq2seq import Seq2SeqRunner
from engine.sampling.beam_search import supports_beam_search
from engine.sampling.resolve_params import SETTINGS
from engine.text.token_lengths import no_pause

log = logging.getLogger(__name__)

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
# Ways in flight, as a card and a verdict say them.
FAST, OWN_CACHE = "the fast way", "its own attention and cache"
# Rows for which a proof must find memory, however few the spec allows.
MIN_PROOF_ROWS = 32


class RouterBackend:
    def __init__(
        self,
        spec: EngineSpec,
        checkpoint: Checkpoint,
        poisoned: bool = False,
        is_paged: bool | None = None,
        exact: GenerateBackend | None = None,
        by_own_cache: bool = False,
    ) -> None:
        """poisoned: memory that must not be read is NaN, or far off; for tests
        is_paged: keys and values in one; None: on a GPU
        exact: if it was made before, of weights that are laid out
        by_own_cache: attention and cache are the model's own, of which nothing is known"""
        self.spec = spec
        self.checkpoint = checkpoint
        self.exact = exact or GenerateBackend(spec, checkpoint)
        self.text = self.exact.text
        self.reason = reason_of(self.exact)
        self.card: ModelCard = replace(
            checkpoint.card, engine="inflight", engine_reason=self.reason
        )
        if exact is None:
            lay_out(checkpoint.model, spec, checkpoint.reload)
        self.row_size: RowSize | None = None  # None: by its tokens alone
        if by_own_cache:
            runner = self._runner_by_own_cache(poisoned)
        else:
            runner = self._runner(poisoned, is_paged)
        if self.exact.freshness is not None:  # with what the runner put into the model
            self.exact.freshness = Freshness(checkpoint.model)
            if isinstance(runner, OwnCacheRunner):
                runner.freshness = self.exact.freshness
        self.in_flight = InflightBackend(self.exact, runner)
        self.reads_slices = isinstance(runner, CausalRunner)
        self.prefixes: PrefixCache[Any] | None = None
        if self.reads_slices:
            self.prefixes = getattr(runner.kv_cache, "prefixes", None)
        self.has_beams = supports_beam_search(checkpoint.model)
        self.rotary_switch = rotary_switch_of(checkpoint.model.config)

    def _runner(self, poisoned: bool, is_paged: bool | None) -> Runner:
        checkpoint = self.checkpoint
        install(checkpoint.model)
        shape = kv_shape_of(checkpoint.model)
        machine = machine_for(checkpoint, shape)
        self.sized = sized(self.spec, machine, "inflight", self.reason)
        if machine.max_paged_tokens is not None:
            refuse_beyond_memory(self.sized.spec, machine.max_paged_tokens(self.sized.spec))
        spec = self.sized.spec
        if poisoned:  # for a proof
            assert spec.max_sequences is not None
            spec = replace(spec, max_sequences=max(spec.max_sequences, MIN_PROOF_ROWS))
        return runner_of(checkpoint, kv_cache_for(spec, shape, poisoned, is_paged))

    def _runner_by_own_cache(self, poisoned: bool) -> Runner:
        checkpoint = self.checkpoint
        model = checkpoint.model
        self.row_size, form = probe_row_size(model)
        # As if all layers were one with one head.
        num_numbers = -(-self.row_size.place_bytes // (2 * model.dtype.itemsize))
        shape = KVShape(1, 1, num_numbers, model.dtype, model.device)
        # Nothing is reserved, so that there is no room to be planned.
        machine = replace(machine_for(checkpoint, shape), max_paged_tokens=None)
        self.sized = sized(self.spec, machine, "inflight", self.reason)
        kv_cache = JoinedKVCache(shape, poisoned)
        renew(self.exact)  # after the look at what it keeps of a row
        runner = OwnCacheRunner(model, kv_cache, start_id_of(checkpoint), form)
        # A recurrence reads padding, and temperatures count it.
        runner.pads_prompts = not (
            model.config.is_encoder_decoder
            or self.row_size.state_bytes
            or runner.temperature_step is not None
            or leaves_changes(self.exact)
        )
        return runner

    @property
    def pads_rows(self) -> bool:
        """Whether rows of several lengths share a pass."""
        runner = self.in_flight.runner
        return not isinstance(runner, OwnCacheRunner) or runner.pads_rows

    def note_proof(self, how: str) -> None:
        """Let the card and the settings say how it was proved."""
        self.reason = reason_of(self.exact, how)
        self.card = replace(self.card, engine_reason=self.reason)
        if self.spec.engine == "auto":
            self.sized = replace(self.sized, reasons={**self.sized.reasons, "engine": self.reason})

    @property
    def max_rows(self) -> int | None:
        bounds = (self.in_flight.blame.max_rows, self.exact.max_rows)
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
        if self.reads_slices:
            sequence.num_read_tokens = 0
        if self.prefixes is not None:
            sequence.blocks = self.prefixes.blocks_of(sequence.prompt_ids)
        num_prompt, settings = len(sequence.prompt_ids), sequence.settings
        sequence.num_prefill_tokens = num_prompt  # once, for all its rows
        num_columns = 1 if self.exact.is_encoder_decoder else num_prompt
        num_places = num_columns + settings.max_new_tokens
        if self.row_size is not None:
            num_places = self.row_size.num_places(num_places)
        sequence.num_cache_tokens = sequence.num_rows * num_places
        if self.exact.is_encoder_decoder:
            # A model's own cache has the encoder's output for each row, once it is joined.
            is_own = isinstance(self.in_flight.runner, OwnCacheRunner)
            num_copies = 1 + sequence.num_rows if is_own else 1
            sequence.num_cache_tokens += num_copies * num_prompt

    def is_proved(self, sequence: Sequence, own: Mapping[str, Any]) -> bool:
        """Whether the answer in flight is known to be that of `generate`."""
        settings = sequence.settings
        if settings.num_beams > 1 and (settings.do_sample or settings.stop or not self.has_beams):
            return False
        if self.rotary_switch is not None and self.rotary_switch.is_crossed(
            len(sequence.prompt_ids), settings.max_new_tokens
        ):
            return False
        return not unattended(own)

    def run(self, plan: StepPlan) -> list[Completion | None]:
        runs_to_completion = bool(plan.admitted) and plan.admitted[0].runs_to_completion
        with torch.inference_mode():
            admitted = () if runs_to_completion else plan.admitted
            results = self.in_flight.run(plan.running, plan.reading + admitted)
        if runs_to_completion:
            results += self.exact.run(StepPlan((), plan.admitted))
            renew(self.exact)  # frequencies that have grown
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


def reason_of(
    exact: GenerateBackend, how_proved: str = "proved to answer as model.generate does"
) -> str:
    """Why in flight, and which settings of the checkpoint cost which tasks that."""
    kept_out: dict[str, list[str]] = {}
    for task in TASKS:
        names = ", ".join(unattended(exact.text.own_settings(Request(id=0, task=task))))
        if names:
            kept_out.setdefault(names, []).append(task)
    if not kept_out:
        return how_proved
    said = "; ".join(f"{names} ({', '.join(tasks)})" for names, tasks in kept_out.items())
    return f"but by model.generate, for its generation configuration sets {said}"


def load(spec: EngineSpec) -> RouterBackend | GenerateBackend:
    """The engine that the spec means. Raises Unloadable."""
    checkpoint = Checkpoint.load(spec)
    reason = why_not_in_flight(checkpoint)
    if spec.engine == "exact":
        lay_out(checkpoint.model, spec, checkpoint.reload)
        return GenerateBackend(spec, checkpoint, reason or AS_CONFIGURED)
    if reason is None:
        return RouterBackend(spec, checkpoint)
    return load_unlisted(spec, checkpoint, reason)


def load_unlisted(
    spec: EngineSpec, checkpoint: Checkpoint, why_not_listed: str
) -> RouterBackend | GenerateBackend:
    """Load in flight if that is proved on the checkpoint now, or was before. Raises Unloadable."""
    key = verdicts.key_of(spec, checkpoint)
    kept = verdicts.read(key)
    why_not = why_not_tried(checkpoint)
    lay_out(checkpoint.model, spec, checkpoint.reload)
    exact = router = None
    if why_not is None and kept is not None:
        exact = GenerateBackend(spec, checkpoint, sharing=Sharing(kept["why_alone"]))
        why_not = kept["why_not"]
        if why_not is None:
            by_own_cache = kept["way"] == OWN_CACHE
            router = RouterBackend(spec, checkpoint, exact=exact, by_own_cache=by_own_cache)
            router.note_proof(f"{kept['how']} (at an earlier start)")
            if isinstance(runner := router.in_flight.runner, OwnCacheRunner):
                runner.pads_prompts, runner.pads_rows = kept["pads_prompts"], kept["pads_rows"]
                router.has_beams = kept["has_beams"]
    elif why_not is None:
        exact = GenerateBackend(spec, checkpoint)
        how = way = None
        try:
            router, way, how = proved(spec, checkpoint, exact)
            router.note_proof(how)
        except Disproved as disproved:
            why_not = str(disproved)
            renew(exact)
        verdict = {"way": way, "how": how, **limits_of_way(router)}
        verdicts.write(key, {**verdict, "why_not": why_not, "why_alone": exact.why_alone})
    extra = {"alias": spec.alias, "model_type": checkpoint.config.model_type}
    if router is not None:
        log.info("proved in flight", extra={**extra, "proof": router.reason})
        return router
    log.warning("not in flight", extra={**extra, "reason": why_not})
    if spec.engine == "inflight":
        raise Unloadable(
            f'model {spec.alias!r} cannot run in flight: {why_not}; use engine = "auto"'
        )
    reason = f"{why_not_listed}, and was not proved at load: {why_not}"
    sharing = None if exact is None else Sharing(exact.why_alone)
    return GenerateBackend(spec, checkpoint, reason, sharing)


def proved(
    spec: EngineSpec, checkpoint: Checkpoint, exact: GenerateBackend
) -> tuple[RouterBackend, str, str]:
    """The backend, its way, and how that was proved: the fast way where it passes. Raises
    Disproved."""
    alone = alone_or_disproved(exact)
    loaded = exact.freshness
    try:
        if leaves_changes(exact):
            raise Disproved(str(exact.why_alone))
        if rotary_switch_of(checkpoint.model.config) is not None:
            raise Disproved("its rotary frequencies depend on the length")
        router, proof = proved_by(FAST, spec, checkpoint, exact, alone)
        return router, FAST, f"{proof}; by {FAST}"
    except Disproved as disproved:
        why_not_fast = str(disproved)
    # Out of the except clause, which would keep the other cache alive.
    uninstall(checkpoint.model)
    exact.freshness = loaded
    log.info("not by the fast way", extra={"alias": spec.alias, "reason": why_not_fast})
    router, proof = proved_by(OWN_CACHE, spec, checkpoint, exact, alone)
    how = f"{proof}; by {OWN_CACHE}, for {why_not_fast}"
    how = how if router.pads_rows else f"{how}; rows of one length at a time"
    return router, OWN_CACHE, how if router.has_beams else f"{how}; beams by model.generate"


def alone_or_disproved(exact: GenerateBackend) -> AnsweredAlone:
    """Answer the trials by `generate`, once for both ways. Raises Disproved."""
    try:
        return answered_alone(exact, supports_beam_search(exact.model))
    except Exception as error:
        log.warning("the proof failed", extra={"error": error_location(error)})
        said = f"model.generate raised {type(error).__name__}: {in_words(error)}"
        raise Disproved(said) from error


def proved_by(
    way: str, spec: EngineSpec, checkpoint: Checkpoint, exact: GenerateBackend, alone: AnsweredAlone
) -> tuple[RouterBackend, Proof]:
    """Raises Disproved."""
    try:
        router = RouterBackend(
            spec, checkpoint, poisoned=True, exact=exact, by_own_cache=way == OWN_CACHE
        )
    except (UnknownAttention, UnknownCache) as error:
        raise Disproved(str(error)) from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        part = "attention" if way == FAST else "cache"
        reason = f"its {part} is of a kind of its own ({type(error).__name__}: {in_words(error)})"
        raise Disproved(reason) from error
    runner = router.in_flight.runner
    if isinstance(runner, OwnCacheRunner) and runner.has_own_form:
        alone = alone.without_beams()  # `generate` leaves such states where rows change places
    router.has_beams = alone.has_beams
    proof = prove_padded_or_not(exact, router, alone)
    kv_cache = runner.kv_cache
    assert isinstance(kv_cache, JoinedKVCache | ContiguousKVCache | PagedKVCache)
    kv_cache.poisoned = False
    return router, proof


def prove_padded_or_not(
    exact: GenerateBackend, router: RouterBackend, alone: AnsweredAlone
) -> Proof:
    """Prove the backend with as much padding as changes no answer. Raises Disproved."""
    runner = router.in_flight.runner
    try:
        return prove(exact, runner, router.has_beams, alone)
    except Disproved as disproved:
        if not isinstance(runner, OwnCacheRunner):
            raise
        if runner.pads_prompts:
            runner.pads_prompts = False  # it may be that alone
            return prove(exact, runner, router.has_beams, alone)
        if not exact.is_encoder_decoder:
            raise
        # Answers grow from one token, so that many are of one length, and these need no padding.
        runner.pads_rows = False
        try:
            return prove(exact, runner, router.has_beams, alone)
        except Disproved:
            raise disproved from None


def limits_of_way(router: RouterBackend | None) -> dict[str, bool]:
    """The fields of a verdict on padding and beams."""
    runner = None if router is None else router.in_flight.runner
    if router is None or not isinstance(runner, OwnCacheRunner):
        return {"pads_prompts": False, "pads_rows": True, "has_beams": True}
    return {
        "pads_prompts": runner.pads_prompts,
        "pads_rows": runner.pads_rows,
        "has_beams": router.has_beams,
    }


def leaves_changes(exact: GenerateBackend) -> bool:
    """Whether a request was seen to change the model for the next."""
    return exact.why_alone is not None and exact.why_alone.startswith(LEAVES_CHANGES)


def renew(exact: GenerateBackend) -> None:
    """Put back what was left on a model that may not keep it."""
    if exact.freshness is not None:
        with torch.inference_mode():
            exact.freshness.restore()


def why_not_tried(checkpoint: Checkpoint) -> str | None:
    """A reason that no few short requests would show; None if a proof is worth its time."""
    config = checkpoint.config
    if (rope := length_bound_rope(config)) is not None and rotary_switch_of(config) is None:
        return rope
    # Of the tokens of a step, all rows together. What counts by row shows in a proof.
    if getattr(config, "moe_eval_capacity_token_fraction", 1.0) < 1.0:
        return "its experts take a bounded number of tokens, for which rows compete"
    if config.is_encoder_decoder and start_id_of(checkpoint) is None:
        return "it does not say from which token its decoder starts"
    return None


def why_not_in_flight(checkpoint: Checkpoint) -> str | None:
    """The reason why a checkpoint cannot run in flight unproved; None if it can."""
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
