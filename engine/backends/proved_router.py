"""Loads a checkpoint of no listed family in flight, by the first way whose proof passes.

The fast way, with our attention and KV cache, is tried before the model's own.
"""

from __future__ import annotations

import logging

import torch

from engine.attention.hf_plugin import UnknownAttention, uninstall
from engine.backends.generate import GenerateBackend
from engine.backends.router import RouterBackend, leaves_changes
from engine.checkpoint.loader import Checkpoint
from engine.errors import EngineError, Unloadable, in_words
from engine.kv_cache.contiguous import ContiguousKVCache
from engine.kv_cache.own_cache.joined import JoinedKVCache
from engine.kv_cache.own_cache.joined_layers import UnknownCache
from engine.kv_cache.paged import PagedKVCache
from engine.logging import error_location
from engine.proof.answered_alone import AnsweredAlone, answer_alone, answered_alone
from engine.proof.disproved import Disproved
from engine.proof.self_proof import Proof, prove
from engine.proof.trials import trials_of
from engine.protocol.engine_spec import EngineSpec
from engine.runners.length_switches import rotary_switch_of
from engine.runners.own_cache import OwnCacheRunner
from engine.sampling.beam_search import supports_beam_search

log = logging.getLogger(__name__)

# Ways in flight, as a card and a verdict say them.
FAST, OWN_CACHE = "the fast way", "its own attention and cache"


def proved(
    spec: EngineSpec, checkpoint: Checkpoint, exact: GenerateBackend
) -> tuple[RouterBackend, str, str]:
    """Return the backend, its way, and how it was proved. Raises Disproved."""
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
        refuse_if_it_answers_nothing(exact)
        raise Disproved(said) from error


def refuse_if_it_answers_nothing(exact: GenerateBackend) -> None:
    """Raise Unloadable if `generate` cannot answer even a few plain tokens."""
    try:
        with torch.inference_mode():
            answer_alone(exact, trials_of(exact, has_beams=False)[0])
    except torch.OutOfMemoryError:
        return
    except Exception as error:
        spec = exact.spec
        raise Unloadable(
            f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r} answers nothing: "
            f"model.generate itself raises {type(error).__name__}: {in_words(error)}; "
            "use one that transformers can run"
        ) from error


def proved_by(
    way: str, spec: EngineSpec, checkpoint: Checkpoint, exact: GenerateBackend, alone: AnsweredAlone
) -> tuple[RouterBackend, Proof]:
    """Load and prove the backend by one way. Raises Disproved."""
    try:
        router = RouterBackend(
            spec, checkpoint, poisoned=True, exact=exact, by_own_cache=way == OWN_CACHE
        )
    except (UnknownAttention, UnknownCache) as error:
        raise Disproved(str(error)) from error
    except (Disproved, EngineError):
        raise
    except Exception as error:  # a model's own code may raise what it likes
        part = "attention" if way == FAST else "cache"
        reason = f"its {part} is of a kind of its own ({type(error).__name__}: {in_words(error)})"
        raise Disproved(reason) from error
    runner = router.in_flight.runner
    if isinstance(runner, OwnCacheRunner) and runner.has_own_form:
        alone = alone.without_beams()  # `generate` does not reorder such states
    router.has_beams = alone.has_beams
    proof = prove_padded_or_not(exact, router, alone)
    kv_cache = runner.kv_cache
    assert isinstance(kv_cache, JoinedKVCache | ContiguousKVCache | PagedKVCache)
    kv_cache.poisoned = False
    return router, proof


def prove_padded_or_not(
    exact: GenerateBackend, router: RouterBackend, alone: AnsweredAlone
) -> Proof:
    """Prove the backend with padding, else with as much as changes no answer. Raises Disproved."""
    runner = router.in_flight.runner
    try:
        return prove(exact, runner, router.has_beams, alone)
    except Disproved as disproved:
        if not isinstance(runner, OwnCacheRunner):
            raise
        if runner.pads_prompts:
            runner.pads_prompts = False  # padding may be the only fault
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
