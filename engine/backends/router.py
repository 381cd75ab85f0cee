"""RouterBackend: runs in flight what is proved exact there, and the rest by `model.generate`.

Both backends share one loaded model. A request for `generate` runs to completion in the step that
admits it; the sequences in flight wait for that step and continue.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from engine.attention.hf_plugin import install
from engine.attention.layers import kv_shape_of, windows_of
from engine.attention.selection import kv_cache_for
from engine.backends.generate import GenerateBackend
from engine.backends.inflight import InflightBackend
from engine.backends.supported_settings import reason_of, unsupported_settings
from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.model_state import Freshness
from engine.checkpoint.weights.layout import lay_out
from engine.core.completion import Completion
from engine.core.scheduler import StepPlan
from engine.core.sequence import Sequence
from engine.kv_cache.base import KVShape, WindowedKVCache
from engine.kv_cache.own_cache.joined import JoinedKVCache
from engine.kv_cache.planning.memory_planner import machine_for, refuse_beyond_memory
from engine.kv_cache.planning.row_size import RowSize
from engine.kv_cache.prefix_cache import PrefixCache
from engine.proof.batch_probe import LEAVES_CHANGES
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import sized
from engine.protocol.model_card import ModelCard
from engine.protocol.output import Measurement, Output
from engine.protocol.request import Request
from engine.runners.base import Runner
from engine.runners.causal import CausalRunner
from engine.runners.length_switches import rotary_switch_of
from engine.runners.own_cache import OwnCacheRunner, probe_row_size
from engine.runners.seq2seq import Seq2SeqRunner
from engine.sampling.beam_search import supports_beam_search
from engine.sampling.resolve_params import ResolvedParams
from engine.text.token_lengths import no_pause

IN_FLIGHT = "in flight"  # the batch key of all sequences in flight
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
        """poisoned:     fill memory that must not be read with NaN or extreme values; for tests
        is_paged:     whether the KV cache is paged; None: on a GPU only
        exact:        the `generate` backend, if it exists already; its weights are laid out
        by_own_cache: use the model's own attention and cache
        """
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
        self.row_size: RowSize | None  # of the cache; None: one slot for each token
        if by_own_cache:
            runner = self._runner_by_own_cache(poisoned)
        else:
            runner = self._runner(poisoned, is_paged)
        if self.exact.freshness is not None:  # a new snapshot, after the runner changed the model
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
        windows = windows_of(checkpoint.model)
        kv_cache = kv_cache_for(spec, shape, poisoned, is_paged, windows)
        runner = runner_of(checkpoint, kv_cache)
        self.row_size = kv_cache.row_size
        return runner

    def _runner_by_own_cache(self, poisoned: bool) -> Runner:
        checkpoint = self.checkpoint
        model = checkpoint.model
        self.row_size, form = probe_row_size(model)
        # Described as a single layer with a single head.
        num_numbers = -(-self.row_size.place_bytes // (2 * model.dtype.itemsize))
        shape = KVShape(1, 1, num_numbers, model.dtype, model.device)
        # This cache reserves no memory, so none is planned.
        machine = replace(machine_for(checkpoint, shape), max_paged_tokens=None)
        self.sized = sized(self.spec, machine, "inflight", self.reason)
        kv_cache = JoinedKVCache(shape, poisoned)
        renew(self.exact)  # after `probe_row_size`
        runner = OwnCacheRunner(model, kv_cache, start_id_of(checkpoint), form)
        # A recurrent layer reads padding, and temperatures count it.
        runner.pads_prompts = not (
            model.config.is_encoder_decoder
            or self.row_size.state_bytes
            or runner.temperature_step is not None
            or leaves_changes(self.exact)
        )
        return runner

    @property
    def pads_rows(self) -> bool:
        """Whether rows of different lengths share a pass."""
        runner = self.in_flight.runner
        return not isinstance(runner, OwnCacheRunner) or runner.pads_rows

    def note_proof(self, how: str) -> None:
        """Record in the model card and the settings how the checkpoint was proved."""
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
        return self.text.measure(request, self.max_cached_prompt, between_slices)

    def max_cached_prompt(self, settings: ResolvedParams) -> int:
        """The longest prompt that fits into the cache with its answers; below 0 if none does."""
        spec = self.sized.spec
        assert spec.max_cache_tokens is not None
        assert spec.max_step_tokens is not None
        lengths = range(spec.max_step_tokens + 1)
        needed = partial(self.num_cache_tokens, settings)
        return bisect_right(lengths, spec.max_cache_tokens, key=needed) - 1

    def route(self, sequence: Sequence) -> None:
        """Schedule the sequence in flight."""
        sequence.batch_key = IN_FLIGHT
        sequence.runs_to_completion = False
        if self.reads_slices:
            sequence.num_read_tokens = 0
        if self.prefixes is not None:
            sequence.blocks = self.prefixes.blocks_of(sequence.prompt_ids)
        num_prompt = len(sequence.prompt_ids)
        sequence.num_prefill_tokens = num_prompt  # once, for all its rows
        sequence.num_cache_tokens = self.num_cache_tokens(sequence.settings, num_prompt)

    def num_cache_tokens(self, settings: ResolvedParams, num_prompt: int) -> int:
        """The number of cache slots that a prompt and its longest answers take."""
        num_columns = 1 if self.exact.is_encoder_decoder else num_prompt
        num_places = num_columns + settings.max_new_tokens
        if self.row_size is not None:
            num_places = self.row_size.num_places(num_places)
        num_tokens = settings.num_rows * num_places
        if self.exact.is_encoder_decoder:
            # A model's own cache has the encoder's output for each row, once it is joined.
            is_own = isinstance(self.in_flight.runner, OwnCacheRunner)
            num_copies = 1 + settings.num_rows if is_own else 1
            if self.row_size is not None:
                num_prompt = self.row_size.num_whole_places(num_prompt)
            num_tokens += num_copies * num_prompt
        return num_tokens

    def is_proved(self, sequence: Sequence, own: Mapping[str, Any]) -> bool:
        """Whether the answer in flight is known to be that of `generate`."""
        settings = sequence.settings
        if settings.num_beams > 1 and (settings.do_sample or settings.stop or not self.has_beams):
            return False
        if self.rotary_switch is not None and self.rotary_switch.is_crossed(
            len(sequence.prompt_ids), settings.max_new_tokens
        ):
            return False
        return not unsupported_settings(own)

    def run(self, plan: StepPlan) -> list[Completion | None]:
        runs_to_completion = bool(plan.admitted) and plan.admitted[0].runs_to_completion
        with torch.inference_mode():
            admitted = () if runs_to_completion else plan.admitted
            results = self.in_flight.run(plan.running, plan.reading + admitted)
        if runs_to_completion:
            results += self.exact.run(StepPlan((), plan.admitted))
            renew(self.exact)  # such as rotary frequencies that have grown
        return results

    def drop(self, sequences: Iterable[Sequence]) -> None:
        self.in_flight.drop(sequences)

    def check(self, running: Iterable[Sequence]) -> None:
        """Raise InvariantBroken unless exactly the sequences of `running` own caches."""
        self.in_flight.check(running)

    def decode(self, completion: Completion) -> Output:
        return self.text.decode(completion)


def leaves_changes(exact: GenerateBackend) -> bool:
    """Whether the probe saw a request change the model for the next one."""
    return exact.why_alone is not None and exact.why_alone.startswith(LEAVES_CHANGES)


def renew(exact: GenerateBackend) -> None:
    """Undo the changes that a request left on a model on which they would affect the next one."""
    if exact.freshness is not None:
        with torch.inference_mode():
            exact.freshness.restore()


def start_id_of(checkpoint: Checkpoint) -> int | None:
    own = checkpoint.generation_config
    start_id = (
        own.bos_token_id if own.decoder_start_token_id is None else own.decoder_start_token_id
    )
    return start_id if isinstance(start_id, int) else None


def runner_of(checkpoint: Checkpoint, kv_cache: WindowedKVCache) -> Runner:
    if not checkpoint.config.is_encoder_decoder:
        return CausalRunner(checkpoint.model, kv_cache)
    start_id = start_id_of(checkpoint)
    assert start_id is not None
    return Seq2SeqRunner(checkpoint.model, start_id, kv_cache)
