"""Packs plain checkpoints with packers that share no code with the unpacking.

Each packs a matrix with loops over its numbers, as the format's own description says, and returns
the float32 matrix of the dequantized numbers.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Packed = tuple[dict[str, torch.Tensor], np.ndarray]  # tensors by the ends of their names; weight
PACKED = re.compile(r"\.layers\.\d+\..*_proj\.weight$")
GROUP = 8
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4 += [-each for each in FP4]
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def tensor(values: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(np.asarray(values).tolist(), dtype=dtype)


def drawn(seed: str, shape: tuple[int, int], below: int) -> np.ndarray:
    draw = random.Random(seed)
    return np.array([[draw.randrange(below) for _ in range(shape[1])] for _ in range(shape[0])])


def half_scales(seed: str, shape: tuple[int, int], size: float) -> torch.Tensor:
    draw = random.Random(f"scales {seed}")
    rows = [[size * draw.uniform(0.5, 1.5) for _ in range(shape[1])] for _ in range(shape[0])]
    return torch.tensor(rows).half()


def gptq(name: str, shape: tuple[int, int], bits: int, version: int, shuffled: bool) -> Packed:
    num_out, num_in = shape
    per, num_groups = 32 // bits, num_in // GROUP
    values = drawn(name, (num_in, num_out), 2**bits)
    zeros = drawn(f"{name} zeros", (num_groups, num_out), 2**bits)
    scales = half_scales(name, (num_groups, num_out), 0.4 / 2**bits)
    groups = [each // GROUP for each in range(num_in)]
    if shuffled:
        random.Random(name).shuffle(groups)
    words = np.zeros((num_in // per, num_out), dtype=object)
    for at in range(num_in):
        for to in range(num_out):
            words[at // per, to] += int(values[at, to]) << (bits * (at % per))
    zero_words = np.zeros((num_groups, num_out // per), dtype=object)
    for at in range(num_groups):
        for to in range(num_out):
            kept = (int(zeros[at, to]) - (version == 1)) % 2**bits
            zero_words[at, to // per] += kept << (bits * (to % per))
    weight = np.array(
        [
            [
                np.float32(int(values[at, to]) - int(zeros[groups[at], to]))
                * np.float32(scales[groups[at], to].item())
                for at in range(num_in)
            ]
            for to in range(num_out)
        ],
        dtype=np.float32,
    )
    packed = {
        "qweight": tensor(np.vectorize(signed)(words), torch.int32),
        "qzeros": tensor(np.vectorize(signed)(zero_words), torch.int32),
        "scales": scales,
    }
    if shuffled:
        packed["g_idx"] = torch.tensor(groups, dtype=torch.int32)
    return packed, weight


def awq(name: str, shape: tuple[int, int]) -> Packed:
    num_out, num_in = shape
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    values = drawn(name, (num_in, num_out), 16)
    zeros = drawn(f"{name} zeros", (num_in // GROUP, num_out), 16)
    scales = half_scales(name, (num_in // GROUP, num_out), 0.03)

    def words(numbers: np.ndarray) -> torch.Tensor:
        rows = []
        for row in numbers.tolist():
            rows.append(
                [
                    signed(sum(row[at + order[place]] << (4 * place) for place in range(8)))
                    for at in range(0, len(row), 8)
                ]
            )
        return torch.tensor(rows, dtype=torch.int32)

    weight = np.array(
        [
            [
                np.float32(int(values[at, to]) - int(zeros[at // GROUP, to]))
                * np.float32(scales[at // GROUP, to].item())
                for at in range(num_in)
            ]
            for to in range(num_out)
        ],
        dtype=np.float32,
    )
    return {"qweight": words(values), "qzeros": words(zeros), "scales": scales}, weight


def four_bits_of_a_table(name: str, shape: tuple[int, int], nested: bool) -> Packed:
    """bitsandbytes, NF4."""
    num = shape[0] * shape[1]
    codes = drawn(name, (1, num), 16)[0].tolist()
    blocksize, nested_blocksize, offset = 64, 4, 0.05
    num_blocks = -(-num // blocksize)
    state = {
        "quant_type": "nf4", "blocksize": blocksize, "dtype": "bfloat16", "shape": list(shape)
    }  # fmt: skip
    packed = {
        "weight": torch.tensor(
            [[codes[at] * 16 + codes[at + 1]] for at in range(0, num, 2)], dtype=torch.uint8
        ),
        "weight.quant_map": torch.tensor(NF4),
    }
    if nested:
        state |= {
            "nested_blocksize": nested_blocksize, "nested_dtype": "float32",
            "nested_offset": offset,
        }  # fmt: skip
        table = torch.linspace(-1, 1, 256)
        numbers = drawn(f"{name} scales", (1, num_blocks), 256)[0].tolist()
        of_all = torch.linspace(0.02, 0.04, -(-num_blocks // nested_blocksize))
        scales = [
            np.float32(table[number].item()) * np.float32(of_all[at // nested_blocksize].item())
            + np.float32(offset)
            for at, number in enumerate(numbers)
        ]
        packed |= {
            "weight.absmax": torch.tensor(numbers, dtype=torch.uint8),
            "weight.nested_absmax": of_all,
            "weight.nested_quant_map": table,
        }
    else:
        drawn_scales = half_scales(name, (1, num_blocks), 0.3)[0].float()
        scales = [np.float32(each) for each in drawn_scales.tolist()]
        packed["weight.absmax"] = drawn_scales
    packed["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(
        list(json.dumps(state).encode()), dtype=torch.uint8
    )
    flat = [
        np.float32(np.float32(NF4[code]) * scales[at // blocksize]) for at, code in enumerate(codes)
    ]
    return packed, np.array(flat, dtype=np.float32).reshape(shape)


def eight_bits_of_bitsandbytes(name: str, shape: tuple[int, int]) -> Packed:
    values = drawn(name, shape, 255) - 127
    scales = half_scales(name, (1, shape[0]), 0.5)[0].float()
    weight = values.astype(np.float32) * (scales.numpy()[:, None] / np.float32(127))
    packed = {"weight": tensor(values, torch.int8), "SCB": scales}
    return packed | {"weight_format": torch.zeros((), dtype=torch.uint8)}, weight


def words_of_compressed_tensors(
    name: str, shape: tuple[int, int], bits: int, symmetric: bool, shuffled: bool = False
) -> Packed:
    num_out, num_in = shape
    per, half = 32 // bits, 2 ** (bits - 1)
    values = drawn(name, shape, 2**bits) - half
    num_groups = num_in // GROUP
    scales = half_scales(name, (num_out, num_groups), 0.4 / 2**bits)
    zeros = np.zeros((num_out, num_groups), dtype=int)
    if not symmetric:
        zeros = drawn(f"{name} zeros", (num_out, num_groups), 2**bits) - half
    groups = [each // GROUP for each in range(num_in)]
    if shuffled:
        random.Random(name).shuffle(groups)
    words = np.zeros((num_out, -(-num_in // per)), dtype=object)
    for at in range(num_out):
        for to in range(num_in):
            words[at, to // per] += (int(values[at, to]) + half) << (bits * (to % per))
    packed = {
        "weight_packed": tensor(np.vectorize(signed)(words), torch.int32),
        "weight_scale": scales,
        "weight_shape": torch.tensor(shape),
    }
    if not symmetric:
        zero_words = np.zeros((-(-num_out // per), num_groups), dtype=object)
        for at in range(num_out):
            for to in range(num_groups):
                zero_words[at // per, to] += (int(zeros[at, to]) + half) << (bits * (at % per))
        packed["weight_zero_point"] = tensor(np.vectorize(signed)(zero_words), torch.int32)
    if shuffled:
        packed["weight_g_idx"] = torch.tensor(groups, dtype=torch.int32)
    weight = np.array(
        [
            [
                np.float32(int(values[at, to]) - int(zeros[at, groups[to]]))
                * np.float32(scales[at, groups[to]].item())
                for to in range(num_in)
            ]
            for at in range(num_out)
        ],
        dtype=np.float32,
    )
    return packed, weight


def bytes_of_compressed_tensors(name: str, shape: tuple[int, int], symmetric: bool) -> Packed:
    values = drawn(name, shape, 256) - 128
    scales = half_scales(name, (shape[0], 1), 0.002).float()
    packed = {"weight": tensor(values, torch.int8), "weight_scale": scales}
    zeros = np.zeros((shape[0], 1), dtype=int)
    if not symmetric:
        zeros = drawn(f"{name} zeros", (shape[0], 1), 256) - 128
        packed["weight_zero_point"] = tensor(zeros, torch.int8)
    return packed, (values - zeros).astype(np.float32) * scales.numpy()


def eight_bits_of_a_float(
    name: str, shape: tuple[int, int], scale_name: str, block: tuple[int, int] | None,
    kind: str = "float",
) -> Packed:  # fmt: skip
    """block: rows and columns that share a scale; None: the whole matrix
    kind: of the scales
    """
    draw = torch.Generator().manual_seed(len(name) + shape[0])
    weight = torch.randn(shape, generator=draw).to(torch.float8_e4m3fn)
    rows, columns = block or shape
    sizes = (-(-shape[0] // rows), -(-shape[1] // columns))
    scales = half_scales(name, sizes, 0.15).float()
    if kind != "float":
        exponents = drawn(name, sizes, 3) + 123
        scales = torch.tensor((2.0 ** (exponents - 127)).tolist())
    restored = np.zeros(shape, dtype=np.float32)
    numbers = weight.float()
    for at in range(shape[0]):
        for to in range(shape[1]):
            scale = np.float32(scales[at // rows, to // columns].item())
            restored[at, to] = np.float32(numbers[at, to].item()) * scale
    if kind == "e8m0":
        scales = scales.to(torch.float8_e8m0fnu)
    elif kind == "bytes":
        scales = torch.tensor(exponents.tolist(), dtype=torch.uint8)
    if block is None:
        scales = scales.reshape(())
    return {"weight": weight, scale_name: scales}, restored


def four_bits_of_a_float(name: str, shape: tuple[int, int], of_all: float | None) -> Packed:
    """NVFP4 with a global scale, or MXFP4."""
    size = 16 if of_all else 32
    codes = drawn(name, shape, 16)
    packed: dict[str, torch.Tensor] = {
        "weight_packed": torch.tensor(
            [
                [row[at] + 16 * row[at + 1] for at in range(0, len(row), 2)]
                for row in codes.tolist()
            ],
            dtype=torch.uint8,
        )
    }
    sizes = (shape[0], shape[1] // size)
    if of_all is None:
        exponents = drawn(f"{name} scales", sizes, 3) + 123
        packed["weight_scale"] = torch.tensor(exponents.tolist(), dtype=torch.uint8)
        scales = (2.0 ** (exponents - 127)).astype(np.float32)
    else:
        half = half_scales(name, sizes, 20.0).to(torch.float8_e4m3fn)
        packed |= {"weight_scale": half, "weight_global_scale": torch.tensor([of_all])}
        scales = half.float().numpy() / np.float32(of_all)
    values = np.array([[FP4[code] for code in row] for row in codes.tolist()], dtype=np.float32)
    return packed, values * scales.repeat(size, axis=1)


CT = {"quant_method": "compressed-tensors", "quantization_status": "compressed", "ignore": []}


def ct(format_: str, **weights: Any) -> dict[str, Any]:
    group = {"weights": weights, "targets": ["Linear"], "input_activations": None}
    return {**CT, "format": format_, "config_groups": {"group_0": group}}


Pack = Callable[[str, tuple[int, int]], Packed]
GPTQ = {"quant_method": "gptq", "group_size": GROUP, "sym": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
# Settings and packer of each format, one per line.
FORMATS: dict[str, tuple[dict[str, Any], Pack]] = {
    "gptq": ({**GPTQ, "bits": 4}, lambda n, s: gptq(n, s, 4, 1, False)),
    "gptq_act_order": (
        {**GPTQ, "bits": 4, "desc_act": True, "checkpoint_format": "gptq"},
        lambda n, s: gptq(n, s, 4, 1, True),
    ),
    "gptq_v2": (
        {**GPTQ, "bits": 4, "checkpoint_format": "gptq_v2"}, lambda n, s: gptq(n, s, 4, 2, True)
    ),
    "gptq_v2_by_its_other_name": (
        {**GPTQ, "bits": 4, "format": "gptq_v2"}, lambda n, s: gptq(n, s, 4, 2, False)
    ),
    "gptq_8": ({**GPTQ, "bits": 8}, lambda n, s: gptq(n, s, 8, 1, False)),
    "gptq_2": ({**GPTQ, "bits": 2}, lambda n, s: gptq(n, s, 2, 1, False)),
    "auto_round": (
        {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"},
        lambda n, s: gptq(n, s, 4, 1, False),
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
         "version": "gemm"}, awq,
    ),
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        lambda n, s: four_bits_of_a_table(n, s, nested=False),
    ),
    "nf4_nested": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
         "bnb_4bit_use_double_quant": True},
        lambda n, s: four_bits_of_a_table(n, s, nested=True),
    ),
    "bnb_int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bits_of_bitsandbytes
    ),
    "ct_int4": (
        ct("pack-quantized", num_bits=4, type="int", strategy="group", group_size=GROUP),
        lambda n, s: words_of_compressed_tensors(n, s, 4, True),
    ),
    "ct_int4_zeros": (
        ct("pack-quantized", num_bits=4, type="int", symmetric=False, strategy="group"),
        lambda n, s: words_of_compressed_tensors(n, s, 4, False),
    ),
    "ct_int4_act_order": (
        ct("pack-quantized", num_bits=4, type="int", strategy="group", actorder="group"),
        lambda n, s: words_of_compressed_tensors(n, s, 4, True, shuffled=True),
    ),
    "ct_int8_words": (
        ct("pack-quantized", num_bits=8, type="int", strategy="group"),
        lambda n, s: words_of_compressed_tensors(n, s, 8, True),
    ),
    "ct_int8": (
        ct("int-quantized", num_bits=8, type="int", strategy="channel"),
        lambda n, s: bytes_of_compressed_tensors(n, s, True),
    ),
    "ct_int8_zeros": (
        ct("int-quantized", num_bits=8, type="int", symmetric=False, strategy="channel"),
        lambda n, s: bytes_of_compressed_tensors(n, s, False),
    ),
    "ct_fp8_rows": (
        ct("float-quantized", num_bits=8, type="float", strategy="channel"),
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale", (1, s[1])),
    ),
    "ct_fp8": (
        ct("naive-quantized", num_bits=8, type="float", strategy="tensor"),
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale", None),
    ),
    "ct_fp8_blocks": (
        ct("float-quantized", num_bits=8, type="float", strategy="block",
           block_structure=[8, 16]),
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale", (8, 16)),
    ),
    "ct_fp8_last_block_short": (
        ct("float-quantized", num_bits=8, type="float", strategy="block",
           block_structure=[12, 20]),
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale", (12, 20)),
    ),
    # Three blocks of 24, 24 and 16 columns; from the shapes alone they could be of 22 each.
    "ct_fp8_two_uneven_blocks": (
        ct("float-quantized", num_bits=8, type="float", strategy="block",
           block_structure="24x24"),
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale", (24, 24)),
    ),
    "ct_nvfp4": (
        ct("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group"),
        lambda n, s: four_bits_of_a_float(n, s, 700.0),
    ),
    "ct_mxfp4": (
        ct("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group"),
        lambda n, s: four_bits_of_a_float(n, s, None),
    ),
    "fp8": (
        {**FP8, "weight_block_size": [8, 16]},
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale_inv", (8, 16)),
    ),
    "fp8_last_block_short": (
        {**FP8, "weight_block_size": [12, 20]},
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale_inv", (12, 20)),
    ),
    "fp8_ue8m0": (
        {**FP8, "weight_block_size": [8, 16], "scale_fmt": "ue8m0"},
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale_inv", (8, 16), "e8m0"),
    ),
    "fp8_of_all": (
        {**FP8, "weight_block_size": None},
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale_inv", None),
    ),
    "mxfp8": (
        {**FP8, "quant_method": "mxfp8", "weight_block_size": [1, 32]},
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale_inv", (1, 32), "bytes"),
    ),
    "fbgemm_fp8": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        lambda n, s: eight_bits_of_a_float(n, s, "weight_scale", (1, s[1])),
    ),
}  # fmt: skip


def pack(source: Path, folder: Path, settings: dict[str, Any], packer: Pack) -> Path:
    """Write the checkpoint with packed projections, and a float one of the dequantized weights.

    Returns the folder of the float one, `folder`-float.
    """
    plain = folder.with_name(f"{folder.name}-float")
    weights = load_file(source / "model.safetensors")
    packed, floats = dict(weights), dict(weights)
    for name, weight in weights.items():
        if PACKED.search(name):
            del packed[name]
            tensors, restored = packer(name, tuple(weight.shape))
            base = name.removesuffix("weight")
            packed |= {base + each: tensors[each] for each in tensors}
            floats[name] = torch.from_numpy(np.ascontiguousarray(restored))
    for to, tensors in ((folder, packed), (plain, floats)):
        shutil.copytree(source, to)
        save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return plain
