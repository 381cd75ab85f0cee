"""Loads the backend that a spec asks for: in flight by name, in flight by proof, or `generate`."""

from __future__ import annotations

import logging

from engine.backends.generate import GenerateBackend, Sharing
from engine.backends.proved_router import OWN_CACHE, limits_of_way, proved
from engine.backends.router import RouterBackend, renew, start_id_of
from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.weights.layout import lay_out
from engine.errors import Unloadable
from engine.proof import verdicts
from engine.proof.disproved import Disproved
from engine.proof.proved_families import length_bound_rope, why_not_proved
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED
from engine.runners.length_switches import rotary_switch_of
from engine.runners.own_cache import OwnCacheRunner

log = logging.getLogger(__name__)


def load(spec: EngineSpec) -> RouterBackend | GenerateBackend:
    """Load the backend that the spec asks for. Raises Unloadable."""
    checkpoint = Checkpoint.load(spec)
    reason = why_not_in_flight(checkpoint)
    if spec.engine == "exact":
        lay_out(checkpoint.model, spec, checkpoint.reload)
        engine = GenerateBackend(spec, checkpoint, reason or AS_CONFIGURED)
        engine.probed.clear()
        return engine
    if reason is None:
        return RouterBackend(spec, checkpoint)
    return load_unlisted(spec, checkpoint, reason)


def load_unlisted(
    spec: EngineSpec, checkpoint: Checkpoint, why_not_listed: str
) -> RouterBackend | GenerateBackend:
    """Load the in-flight backend if a proof passes now or passed before. Raises Unloadable."""
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
    if exact is not None:
        exact.probed.clear()
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


def why_not_tried(checkpoint: Checkpoint) -> str | None:
    """A reason that a few short requests could not reveal; None if a proof is worth its time."""
    config = checkpoint.config
    if (rope := length_bound_rope(config)) is not None and rotary_switch_of(config) is None:
        return rope
    # Experts with a capacity for the tokens of a step; one for each row would show in a proof.
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
