"""Content keys: digests of everything that determines a model's answer.

They cover the request (task, text or messages, languages, every parameter), the version of the
recipe, and the model as it was loaded: checkpoint and revision, engine, device, type, library
versions, prompt templates. The whole model card is included, so that a setting that is added to it
later counts at once.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from engine.protocol.engine_spec import EngineSpec
from engine.protocol.model_card import ModelCard
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from engine.protocol.task_names import TaskName
from worker.recipes.versions import RECIPE_VERSIONS

# Settings of batch sizes and devices, which change no answer.
WITHOUT_EFFECT = frozenset(
    {
        "cpu_kernels", "gpu_memory_utilization", "kv_cache", "max_cache_tokens", "max_held",
        "max_sequences", "max_step_tokens", "prefix_caching", "replica", "threads",
        "fake_step_seconds", "fake_fail_on", "fake_out_of_memory_on", "fake_crash_on",
    }
)  # fmt: skip


def model_digest(spec: EngineSpec, card: ModelCard) -> bytes:
    """The digest of a loaded model."""
    settings = {name: value for name, value in spec.to_json().items() if name not in WITHOUT_EFFECT}
    loaded = card.to_json()
    for each in (settings, loaded):  # replicas on two GPUs answer alike
        each["device"] = each["device"].partition(":")[0]
    del loaded["engine_reason"]  # prose
    return hashlib.sha256(_json([settings, loaded])).digest()


def request_digest(request: Request, model: bytes, *, with_seed: bool = True) -> bytes:
    """The digest of a request to a model. model: the model's digest"""
    fields = request.to_json()
    del fields["id"]
    fields.pop("is_interactive", None)
    if not with_seed:
        fields["params"].pop("seed", None)
    digest = hashlib.sha256(model)
    digest.update(_json([RECIPE_VERSIONS[request.task], fields]))
    return digest.digest()


@dataclass(frozen=True, slots=True)
class SharingScope:
    """The set of jobs that share answers with each other."""

    tenant: str | None  # None: with everybody
    has_seed: bool  # the job names a seed, so that its samples are reproducible

    def key(self, request: Request, model: bytes) -> "ContentKey | None":
        """The key of a request's answer; None if it may not be shared.

        A greedy or beam answer does not depend on the seed, so a seed that the worker chose is left
        out of the key. If a job does not say whether it samples, the checkpoint decides; the output
        then tells.
        """
        if request.is_measured or (samples(request.params) and not self.has_seed):
            return None
        asked = request_digest(request, model, with_seed=self.has_seed)
        digest = hashlib.sha256(self._scope + b"\0" + asked).digest()
        return ContentKey(digest, model, self)

    def document_digest(self, task: str, contract: Mapping[str, Any], model: bytes) -> bytes:
        """The digest of a whole job, under which the keys of its requests are stored.

        Only the engine can split a document. An estimate uses this entry to find out whether all
        parts were answered before.
        """
        digest = hashlib.sha256(b"document\0" + self._scope + b"\0" + model)
        digest.update(_json([RECIPE_VERSIONS[cast(TaskName, task)], task, dict(contract)]))
        return digest.digest()

    @property
    def _scope(self) -> bytes:
        return b"" if self.tenant is None else f"tenant {self.tenant}".encode()


@dataclass(frozen=True, slots=True)
class ContentKey:
    """The key of a stored answer, and the values that it was computed from."""

    digest: bytes
    model: bytes  # the digest of the requested model
    sharing: SharingScope


def samples(params: SamplingParams) -> bool | None:
    """Whether a request samples; None: the checkpoint decides."""
    if params.do_sample is not None:
        return params.do_sample
    if params.temperature is not None:
        return params.temperature > 0
    return True if params.top_k is not None or params.top_p is not None else None


# Built once: json.dumps builds an encoder in each call with options.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _json(value: Any) -> bytes:
    return _encode(value).encode()
