"""Measure the parts of the time of the engine's steps: products, attention, sampling, the rest.

    python -m benchmarks.engine.profile [--models llama-60m,t5-small] [--json FILE]

The engine serves the workload under torch's profiler, in a process of its own, with a worker's
loop. An operation is counted by the kind of its name, wherever it is called; `python` is the time
of the loop in which no torch operation runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.engine.models import SHAPES, text
from benchmarks.engine.workload import drawn
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import Outputs, Run, Stop, from_bytes, to_bytes
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams

# An operation's kind is that of the first of these that is part of its name.
KINDS = (
    ("attention", ("attention", "softmax", "bmm", "baddbmm")),
    ("products", ("linear", "addmm", "mm", "matmul", "mkldnn")),
    ("choosing", ("argmax", "topk", "sort", "log_softmax", "max", "item", "_local_scalar")),
)
SHOWN = ("products", "attention", "choosing", "other", "python")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--models", default="llama-15m,llama-60m,gpt2,t5-small,marian,bart")
    parser.add_argument("--engine", default="inflight")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="append the shares here, one line each")
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here")
    arguments = parser.parse_args()
    print(f"{'share of time':12} " + " ".join(f"{each:>10}" for each in SHOWN))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for model in arguments.models.split(","):
            command = [sys.executable, "-m", "benchmarks.engine.models", str(folder), model]
            subprocess.run(command, check=True)
            shares = in_a_process(profiled, model, folder / model, arguments)
            print(f"{model:12} " + " ".join(f"{shares[each]:10.1%}" for each in SHOWN), flush=True)
            if arguments.json is not None:
                with arguments.json.open("a", encoding="utf-8") as file:
                    print(json.dumps({"model": model, "rows": arguments.rows, **shares}), file=file)


def in_a_process(call: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def profiled(model: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    from engine.process import load_engine, serve

    spec = EngineSpec(
        alias="profiled",
        checkpoint=str(folder),
        engine=arguments.engine,
        dtype="float32",
        threads=arguments.threads,
        max_sequences=arguments.rows,
    )
    requests = [
        Request(
            id=at,
            task="generate",
            text=text(each.prompt),
            params=SamplingParams(max_new_tokens=each.num_new),
        )
        for at, each in enumerate(drawn(arguments.requests, SHAPES[model].vocab_size))
    ]
    ours, its = (Connection(os.dup(each.fileno())) for each in socket.socketpair())
    watch_compiled()
    engine = load_engine(spec)
    parent = threading.Thread(target=ask, args=(ours, requests), daemon=True)
    parent.start()
    only_cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=only_cpu) as profile:
        started_at = time.perf_counter()
        serve(its, engine.sized.spec, engine)
        seconds = time.perf_counter() - started_at
    parent.join()
    return shares_of(profile, seconds)


def watch_compiled() -> None:
    """Name the calls of compiled code, so that torch's profiler sees them."""
    import torch

    from engine.attention import hf_plugin
    from engine.cpu.attention_backend import CpuAttentionBackend
    from engine.cpu.kernels import activation, rms_norm
    from engine.cpu.self_test import kernel_module

    def named(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with torch.profiler.record_function(name):
                return own(*arguments, **options)

        return call

    watched = [
        (CpuAttentionBackend, "_attend", "attention of rows"),
    ]
    packed_gemm, layer_calls = kernel_module("packed_gemm"), kernel_module("fused.layer_calls")
    if packed_gemm is not None:
        watched.append((packed_gemm.PackedGemmLinear, "_multiply", "packed linear"))
    if layer_calls is not None:
        from engine.cpu.kernels import softcap

        watch_table(
            {
                packed_gemm.run.address: "packed linear",
                rms_norm.run.address: "norm of rows",
                activation.run.address: "activation of rows",
                layer_calls.gather_rows.run.address: "gather of rows",
                layer_calls.packed_experts.run.address: "packed linear",
                softcap.run.address: "soft cap of rows",
                layer_calls.routing_kernels.choose.address: "router",
                layer_calls.routing_kernels.group.address: "router",
                layer_calls.routing_kernels.combine.address: "router",
            }
        )
    for kind, name, shown in watched:
        setattr(kind, name, named(shown, getattr(kind, name)))
    hf_plugin.attention = named("attention of a layer", hf_plugin.attention)
    rms_norm.rms_norm_rows = named("norm of rows", rms_norm.rms_norm_rows)
    activation.gated_rows = named("activation of rows", activation.gated_rows)


def watch_table(names: dict[int, str]) -> None:
    """Run the calls of a fused step one by one, each with a name for the profiler.

    names: by function; all other functions are attention
    """
    import torch

    from engine.cpu.fused.call_table import CallTable

    run = CallTable.run

    def run_apart(table: CallTable, num_threads: int) -> None:
        for index, function in enumerate(table.calls[:, 0].tolist()):
            with torch.profiler.record_function(names.get(function, "attention of rows")):
                run(table, num_threads, only=index)

    CallTable.run = run_apart  # type: ignore[assignment, method-assign]  # for this process


def ask(pipe: Connection, requests: list[Request]) -> None:
    """Send requests to the engine and wait for their outputs, as a worker does."""
    pipe.send_bytes(to_bytes(Run(tuple(requests))))
    num_left = len(requests)
    while num_left:
        frame = from_bytes(pipe.recv_bytes())
        assert isinstance(frame, Outputs)
        num_left -= len(frame.outputs)
    pipe.send_bytes(to_bytes(Stop()))


def shares_of(profile: Any, seconds: float) -> dict[str, float]:
    shares = dict.fromkeys(SHOWN, 0.0)
    for event in profile.key_averages():
        shares[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / seconds
    shares["python"] = max(0.0, 1.0 - sum(shares.values()))
    return shares


def kind_of(operation: str) -> str:
    for kind, names in KINDS:
        if any(name in operation for name in names):
            return kind
    return "other"


RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
