# SPDX-License-Identifier: Apache-2.0
"""Files that other programs wrote, read by cbq: every value is the client's, bit for bit."""

import json
import shutil

from harness import MODEL, cell, expect_equal

# ---- GGUF ----

# Where blocks have halves, whose bits must not be those of infinities or NaN.
HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}


def random_blocks(name, rows, columns):
    """Rows of random bytes in blocks of a type: every code, scale and minimum occurs."""
    import gguf
    import numpy

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    random = numpy.random.default_rng(7)
    blocks = random.integers(0, 256, (rows * columns // block, size), dtype=numpy.uint8)
    for at in HALVES[name]:
        halves = random.normal(size=len(blocks)).astype(numpy.float16)
        blocks[:, at : at + 2] = halves.view(numpy.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def check_gguf(programs, name, made_by):
    import gguf
    import numpy

    kind = gguf.GGMLQuantizationType[name]
    rows, columns = 24, 1024
    floats = numpy.random.default_rng(3).normal(size=(rows, columns)).astype(numpy.float32)
    data = gguf.quants.quantize(floats, kind) if made_by == "quantize" else random_blocks(name, rows, columns)
    path = programs.fresh(f"{name}-{made_by}.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    if name in ("F32", "F16"):
        writer.add_tensor("a.weight", data.view(numpy.float32 if name == "F32" else numpy.float16))
    else:
        writer.add_tensor("a.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    count = expect_equal(programs.values(path)["a.weight"], gguf.quants.dequantize(data, kind), name)
    return f"{count} values"


for gguf_name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):

    @cell(f"read_gguf_{gguf_name}", f"GGUF {gguf_name}, written by `gguf.quants.quantize`", "cbq reads; gguf",
          ("gguf",))
    def quantized(programs, name=gguf_name):
        return check_gguf(programs, name, "quantize")


for gguf_name in HALVES:

    @cell(f"read_gguf_{gguf_name}_bytes", f"GGUF {gguf_name}, random blocks", "cbq reads; gguf", ("gguf",))
    def random_bytes(programs, name=gguf_name):
        return check_gguf(programs, name, "bytes")


# ---- compressed-tensors ----


def compressed_tensors_model(path, bits, activation_bits, symmetric, group):
    """A folder as LLM Compressor writes it: scales of minima and maxima, compressed by the package, saved."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                                 apply_quantization_config)
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group" if group else "channel",
                               group_size=group)
    tokens = None
    if activation_bits:
        tokens = QuantizationArgs(num_bits=activation_bits, symmetric=True, strategy="token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=tokens)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float16)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]))
    for module in model.modules():
        if getattr(module, "weight_scale", None) is None:
            continue
        parts = module.weight.reshape(module.weight.shape[0], -1, group or module.weight.shape[1])
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), weights)
        module.weight_scale.data.copy_(scale)
        if getattr(module, "weight_zero_point", None) is not None:
            module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(path)
    compressor.update_config(path)
    shutil.copy(MODEL / "tokenizer.json", path)


def compressed_tensors_values(path):
    """Codes as the package unpacks them, times scales in float32."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file

    tensors = load_file(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    bits = config["config_groups"]["group_0"]["weights"]["num_bits"]
    values = {}
    for name, scale in tensors.items():
        if not name.endswith(".weight_scale"):
            continue
        module = name[: -len(".weight_scale")]
        zero = tensors.get(module + ".weight_zero_point")
        if module + ".weight_packed" in tensors:
            shape = tensors[module + ".weight_shape"]
            codes = unpack_from_int32(tensors[module + ".weight_packed"], bits, shape)
            if zero is not None:
                zero = unpack_from_int32(zero, bits, torch.Size((int(shape[0]), scale.shape[1])), packed_dim=0)
        else:
            codes = tensors[module + ".weight"]
        parts = codes.to(torch.float32).reshape(codes.shape[0], scale.shape[1], -1)
        if zero is not None:
            parts = parts - zero.to(torch.float32).unsqueeze(-1)
        values[module + ".weight"] = (parts * scale.to(torch.float32).unsqueeze(-1)).reshape(codes.shape).numpy()
    return values


def check_compressed_tensors(programs, bits, activation_bits, symmetric, group):
    path = programs.fresh("compressed-tensors")
    compressed_tensors_model(path, bits, activation_bits, symmetric, group)
    theirs = compressed_tensors_values(path)
    ours = programs.values(programs.imported(path) if activation_bits or bits == 3 else path)
    count = sum(expect_equal(ours[name], values, name) for name, values in theirs.items())
    return f"{count} values of {len(theirs)} matrices"


for ct_name, ct_arguments in {
    "w4a16_g128": (4, 0, True, 128),
    "w4a16_g128_asym": (4, 0, False, 128),
    "w4a16_channel": (4, 0, True, None),
    "w4a16_channel_asym": (4, 0, False, None),
    "w3a16_g64": (3, 0, True, 64),
    "w2a16_g64_asym": (2, 0, False, 64),
    "w8a16_g128": (8, 0, True, 128),
    "w8a8_channel": (8, 8, True, None),
    "w4a8_g128": (4, 8, True, 128),
}.items():

    @cell(f"read_compressed_tensors_{ct_name}", f"compressed-tensors {ct_name}, written by the package",
          "cbq reads; compressed-tensors", ("compressed_tensors", "transformers", "torch"))
    def written(programs, arguments=ct_arguments):
        return check_compressed_tensors(programs, *arguments)


# ---- GPTQ and AWQ ----


def gptqmodel_model(path, method, bits, symmetric, group, version):
    """A folder with the linear layers packed by gptqmodel; returns the values that its modules decode, in float32."""
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
    from safetensors.torch import load_file, save_file

    tensors, values = load_file(MODEL / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors.pop(name).float()
        scale, zero = min_max_grid(weight, bits, symmetric, group)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        kind = TorchLinear if method == "gptq" else AwqTorchLinear
        packed = kind(bits=bits, group_size=group, sym=symmetric, desc_act=False, in_features=weight.shape[1],
                      out_features=weight.shape[0], bias=False)
        parts = ("qweight", "qzeros", "scales")
        if method == "gptq":
            index = (torch.arange(weight.shape[1]) // group).to(torch.int32)
            packed.pack(linear, scale, zero, index)
            half, packed.scales = packed.scales, packed.scales.float()
            decoded = packed.eval().dequantize_weight()
            packed.scales = half
            if version == 1:
                convert_gptq_v2_to_v1_format_module(packed, QuantizeConfig(bits=bits, group_size=group, sym=symmetric))
            parts += ("g_idx",)
        else:
            packed.pack(linear, scale, zero)
            decoded = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), bits, group)
        values[name] = decoded.T.numpy()
        for part in parts:
            tensors[name.replace("weight", part)] = getattr(packed, part).contiguous()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return values


def min_max_grid(weight, bits, symmetric, group):
    """Scales and zero points per group, [outputs, groups], as gptqmodel's quantizer finds them."""
    import torch

    parts = weight.reshape(weight.shape[0], -1, group)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = ((high - low) / (2**bits - 1)).half().float()
    zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else torch.round(-low / scale)
    return scale, zero.clamp(1 if not symmetric else 0, 2**bits - 1)


def check_gptqmodel(programs, method, bits, symmetric, group, version):
    path = programs.fresh(f"{method}-folder")
    path.mkdir()
    theirs = gptqmodel_model(path, method, bits, symmetric, group, version)
    config = json.loads((MODEL / "config.json").read_text())
    if method == "gptq":
        quantization = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": symmetric,
                        "lm_head": False, "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
                        "pack_dtype": "int32"}
        (path / "quantize_config.json").write_text(json.dumps(quantization))
    else:
        quantization = {"quant_method": "awq", "bits": bits, "group_size": group, "zero_point": not symmetric,
                        "version": "gemm", "modules_to_not_convert": None}
    config["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(config))
    shutil.copy(MODEL / "tokenizer.json", path)
    ours = programs.values(programs.imported(path))
    count = sum(expect_equal(ours[name], values, name) for name, values in theirs.items())
    return f"{count} values of {len(theirs)} matrices"


for pack_name, pack_arguments in {
    "gptq_v1_4bit": ("gptq", 4, True, 128, 1),
    "gptq_v2_4bit": ("gptq", 4, True, 128, 2),
    "gptq_v1_4bit_asym": ("gptq", 4, False, 64, 1),
    "gptq_v2_4bit_asym": ("gptq", 4, False, 64, 2),
    "gptq_v1_8bit": ("gptq", 8, True, 128, 1),
    "gptq_v1_2bit_asym": ("gptq", 2, False, 64, 1),
    "gptq_v2_3bit_asym": ("gptq", 3, False, 64, 2),
    "awq_4bit": ("awq", 4, False, 128, 0),
}.items():

    @cell(f"read_{pack_name}", f"{pack_name.replace('_', ' ')}, packed by gptqmodel", "cbq reads; gptqmodel",
          ("gptqmodel", "torch"))
    def packed_by_gptqmodel(programs, arguments=pack_arguments):
        return check_gptqmodel(programs, *arguments)
