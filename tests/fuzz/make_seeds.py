#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzzing targets whose formats are text or simple: `make_seeds.py FOLDER`.

Each tensor type, value type and structure that a parser knows is in some seed, so that libFuzzer only has to break
them. Seeds of packed files, saved sequences and calibration states come from make_seeds.cpp, which uses cbq's own
writers. The corpus in the tree is what `cbq_fuzz -merge=1` leaves of both.
"""

import json
import pathlib
import struct
import sys

# ---- safetensors ----

DTYPES = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
          "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64,
          "F64": 64, "I64": 64, "U64": 64}


def pattern(count, start=0):
    return bytes((start + 37 * i) % 127 for i in range(count))


def safetensors(tensors, metadata=None):
    """`tensors`: name -> (dtype, shape, bytes), laid out in this order."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def elements(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def of_type(dtype, shape, start=0):
    return dtype, shape, pattern(elements(shape) * DTYPES[dtype] // 8, start)


def safetensors_seeds():
    yield "empty", safetensors({})
    yield "metadata", safetensors({"a": of_type("F32", [2, 3])}, {"format": "pt", "x": "\u00e4"})
    for first in range(0, len(DTYPES), 5):
        names = list(DTYPES)[first:first + 5]
        yield "types%d" % first, safetensors({n: of_type(n, [2, 4]) for n in names})
    yield "ranks", safetensors({"scalar": of_type("F32", []), "vector": of_type("F16", [3]),
                                "empty": of_type("F32", [0, 4]), "deep": of_type("U8", [1, 1, 2, 1, 1, 1, 1, 1])})
    yield "numbers", safetensors({"f64": ("F64", [2], struct.pack("<2d", 1e300, -0.0)),
                                  "f32": ("F32", [3], struct.pack("<3f", float("nan"), float("inf"), 1e-40)),
                                  "f16": ("F16", [2], b"\x00\x7c\x01\x00"), "bf16": ("BF16", [1], b"\x80\x7f")})


# ---- a checkpoint with an index ----

def index_seeds():
    shard = safetensors({"a": of_type("F32", [1, 2]), "c": of_type("F16", [2])})
    for name, places in {"two": {"a": "a.safetensors", "c": "a.safetensors", "b": "b.safetensors"},
                         "one": {"a": "a.safetensors", "c": "a.safetensors"},
                         "lacks": {"a": "a.safetensors", "d": "b.safetensors"},
                         "outside": {"a": "../a.safetensors"}}.items():
        index = {"metadata": {"total_size": 16}, "weight_map": places}
        yield name, json.dumps(index).encode() + b"\0" + shard


# ---- GGUF ----

KINDS = {"u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
         "f32": (6, "<f"), "boolean": (7, "<B"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d")}
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22),
         "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110),
         "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "IQ4_NL": (20, 32, 18),
         "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8), "F64": (28, 1, 8),
         "BF16": (30, 1, 2), "TQ1_0": (34, 256, 54), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36)}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, content):
    if kind == "text":
        return struct.pack("<I", 8) + text(content)
    if kind.startswith("list "):
        inner = kind[5:]
        number = 8 if inner == "text" else KINDS[inner][0]
        head = struct.pack("<IIQ", 9, number, len(content))
        return head + b"".join(text(c) if inner == "text" else struct.pack(KINDS[inner][1], c) for c in content)
    number, form = KINDS[kind]
    return struct.pack("<I", number) + struct.pack(form, content)


def gguf(metadata, tensors, version=3, alignment=32):
    """`metadata`: key -> (kind, content); `tensors`: name -> (type, sizes innermost first)."""
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    for key, (kind, content) in metadata.items():
        head += text(key) + value(kind, content)
    data = b""
    for name, (kind, sizes) in tensors.items():
        number, block, size = TYPES[kind]
        head += text(name) + struct.pack("<I", len(sizes)) + b"".join(struct.pack("<Q", s) for s in sizes)
        head += struct.pack("<IQ", number, len(data))
        content = bytearray(pattern(elements(sizes) // block * size, len(data)))
        if kind == "Q4_1":  # a minimum that is a whole number of steps
            for at in range(0, len(content), size):
                content[at:at + 4] = b"\x00\x3c\x00\xc8"
        data += bytes(content) + b"\0" * (-len(content) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def every_value():
    numbers = {"u8": 200, "i8": -100, "u16": 60000, "i16": -30000, "u32": 4000000000, "i32": -2000000000, "f32": 1.5,
               "boolean": 1, "u64": 2**64 - 1, "i64": -3, "f64": 2.25}
    metadata = {"a." + kind: (kind, content) for kind, content in numbers.items()}
    metadata["a.text"] = ("text", "llama")
    metadata["b.text"] = ("list text", ["x", "", "yz"])
    metadata.update({"b." + kind: ("list " + kind, [content]) for kind, content in numbers.items()})
    metadata["b.none"] = ("list u8", [])
    return metadata


def gguf_seeds():
    yield "values", gguf(every_value(), {"t": ("F32", [3, 2])})
    yield "version2", gguf({"a": ("u32", 1)}, {}, version=2)
    yield "alignment", gguf({"general.alignment": ("u32", 64)}, {"t": ("F16", [3]), "u": ("I8", [1])}, alignment=64)


def gguf_decode_seeds():
    names = list(TYPES)
    for first in range(0, len(names), 4):
        part = names[first:first + 4]
        yield "types%d" % first, gguf({}, {n: (n, [TYPES[n][1], 2]) for n in part})
    yield "ranks", gguf({}, {"scalar": ("F32", []), "empty": ("Q8_0", [32, 0]), "four": ("F32", [2, 1, 1, 2])})


GGUF_MODEL = {"general.architecture": ("text", "llama"), "llama.block_count": ("u32", 1),
              "llama.embedding_length": ("u32", 8), "llama.feed_forward_length": ("u32", 16),
              "llama.attention.head_count": ("u32", 2), "llama.attention.head_count_kv": ("u32", 1),
              "llama.attention.key_length": ("u32", 4), "llama.context_length": ("u32", 32),
              "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5), "llama.rope.freq_base": ("f32", 1e4),
              "tokenizer.ggml.tokens": ("list text", ["<unk>", "<s>", "</s>", "a"])}


def gguf_model_seeds():
    start = {**GGUF_MODEL, "llama.rope.scaling.type": ("text", "linear"), "llama.rope.scaling.factor": ("f32", 2.0)}
    yield "rope_freqs", gguf(GGUF_MODEL, {"output.weight": ("F32", [8, 4]), "rope_freqs.weight": ("F32", [2])})
    ids = {"tokenizer.ggml.bos_token_id": ("u32", 0), "tokenizer.ggml.eos_token_id": ("u32", 1),
           "tokenizer.ggml.add_bos_token": ("boolean", 1), "tokenizer.ggml.add_eos_token": ("boolean", 1)}
    for pre in ("gpt-2", "llama-bpe", "smollm", ""):
        yield "bpe_" + pre.replace("-", ""), gguf({
            **start, "tokenizer.ggml.model": ("text", "gpt2"), "tokenizer.ggml.pre": ("text", pre),
            "tokenizer.ggml.tokens": ("list text", ["<s>", "</s>", "a", "t", "\u0120", "s", "at", "\u0120t", "1"]),
            "tokenizer.ggml.token_type": ("list i32", [3, 3, 1, 1, 1, 1, 1, 1, 4]),
            "tokenizer.ggml.merges": ("list text", ["a t", "\u0120 t"]), **ids}, {})
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "t", "s", "\u2581t", "st", "a"]
    yield "pieces", gguf({
        **start, "tokenizer.ggml.model": ("text", "llama"), "tokenizer.ggml.tokens": ("list text", pieces),
        "tokenizer.ggml.token_type": ("list i32", [2, 3, 3, 6, 1, 1, 1, 1, 1, 4]),
        "tokenizer.ggml.scores": ("list f32", [-float(i) for i in range(len(pieces))]),
        "tokenizer.ggml.unknown_token_id": ("u32", 0), "tokenizer.ggml.add_space_prefix": ("boolean", 1), **ids}, {})


# ---- config.json ----

LLAMA = {"model_type": "llama", "vocab_size": 64, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 32,
         "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
         "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": [1, 2]}
MODULES = ["model.embed_tokens", "model.layers.0.mlp.up_proj"]


def arguments(bits, strategy, group=None, symmetric=True, dynamic=False):
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group,
            "dynamic": dynamic, "actorder": None}


def foreign(targets, weights, inputs=None):
    group = {"targets": targets, "format": "pack-quantized", "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": group}}


def own(schemes, **more):
    return {"version": 2 if more else 1, "method": "rtn", "head_bits": 8, "schemes": schemes,
            "embeddings": [m for m in schemes if "embed" in m], **more}


def config_seeds():
    rotary = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
              "original_max_position_embeddings": 32}
    yield "llama", {**LLAMA, "rope_theta": 1e4, "rope_scaling": rotary}
    yield "llama5", {**LLAMA, "rope_parameters": {"rope_theta": 5e5, "type": "linear", "factor": 2}}
    longrope = {"rope_type": "longrope", "short_factor": [1.0, 2.5], "long_factor": [1.0, 2.5], "attention_factor": 1.0,
                "original_max_position_embeddings": 32}
    yield "longrope", {**LLAMA, "rope_parameters": {"rope_theta": 5e5, **longrope}}
    yield "opt", {"model_type": "opt", "vocab_size": 64, "hidden_size": 8, "ffn_dim": 16, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "do_layer_norm_before": True, "word_embed_proj_dim": 8,
                  "activation_function": "gelu", "enable_bias": True, "_remove_final_layer_norm": False}
    yield "bloom", {"model_type": "bloom", "vocab_size": 64, "n_embed": 8, "n_layer": 1, "num_attention_heads": 2,
                    "seq_length": 32, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
    inputs = arguments(8, "token", dynamic=True)
    yield "linear", {**LLAMA, "quantization_config": foreign(["Linear"], arguments(4, "group", 32), inputs)}
    yield "named", {**LLAMA, "quantization_config": foreign(MODULES, arguments(8, "channel"),
                                                            arguments(8, "tensor", symmetric=False))}
    schemes = dict(zip(MODULES, ["w8a16", "w4a8_g32"]))
    yield "own", {**LLAMA, "cbq": own(schemes)}
    yield "own2", {**LLAMA, "cbq": own(schemes, input_rotations={MODULES[1]: {"type": "hadamard", "block": 8}},
                                       activation_clips={MODULES[1]: 0.5}, static_activations=[])}


def quantized_modules():
    """The config and tensors of one module for each form that is stored."""
    for bits, group, affine, own_file in ((4, 32, False, False), (8, None, False, False), (2, 32, True, False),
                                          (3, 32, True, True), (5, None, True, True), (8, 64, True, True)):
        outputs, inputs = 3, 70 if own_file else 64
        groups = 1 if group is None else -(-inputs // group)
        words = -(-inputs * bits // 32)
        module = MODULES[1]
        tensors = {module + ".weight_packed": of_type("I32", [outputs, words]),
                   module + ".weight_scale": ("F16", [outputs, groups], b"\x00\x2c" * (outputs * groups)),
                   module + ".weight_shape": ("I64", [2], struct.pack("<2q", outputs, inputs)),
                   module + ".input_scale": ("F32", [1], struct.pack("<f", 0.5)),
                   module + ".input_zero_point": ("I8", [1], b"\x03")}
        if affine:
            zero_words = -(-outputs * bits // 32)
            tensors[module + ".weight_zero_point"] = of_type("I32", [zero_words, groups])
        if own_file:
            name = "w%da16" % bits + ("" if group is None else "_g%d" % group) + ("_asym" if affine else "")
            config = {**LLAMA, "cbq": own({module: name})}
        else:
            strategy = "channel" if group is None else "group"
            static = arguments(8, "tensor", symmetric=False)
            config = {**LLAMA, "quantization_config": foreign(["Linear"], arguments(bits, strategy, group, not affine),
                                                              static)}
        yield "w%d_%s" % (bits, group), json.dumps(config).encode() + b"\0" + safetensors(tensors)


# ---- tokenizer.json ----

def tokenizer_seeds():
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "\u0120a": 4}, "merges": ["a b", ["\u0120", "a"]],
             "unk_token": None, "byte_fallback": False, "fuse_unk": False, "ignore_merges": False}
    special = {"id": 5, "content": "<s>", "single_word": False, "lstrip": True, "rstrip": True, "normalized": False,
               "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                         {"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}}
    yield "bytes", {"added_tokens": [special], "normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level,
                    "post_processor": template, "decoder": {"type": "ByteLevel"}, "model": model}
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\s+(?!\S)|[^\s\p{L}]"}, "behavior": "MergedWithPrevious",
             "invert": False}
    digits = {"type": "Digits", "individual_digits": True}
    for behavior in ("Isolated", "Removed", "Contiguous", "MergedWithNext"):
        yield "split" + behavior, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {**split, "behavior": behavior}, digits, byte_level]}, "model": {**model, "ignore_merges": True}}
    pieces = {"<unk>": 0, "<0x41>": 1, "\u2581": 2, "a": 3, "\u2581a": 4, "b": 6}
    sentence = {**model, "vocab": pieces, "merges": ["\u2581 a"], "unk_token": "<unk>", "byte_fallback": True,
                "fuse_unk": True}
    steps = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
             {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    normalizers = [{"type": "Prepend", "prepend": "\u2581"},
                   {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    yield "pieces", {"added_tokens": [{**special, "normalized": True, "special": False}],
                     "normalizer": {"type": "Sequence", "normalizers": normalizers},
                     "decoder": {"type": "Sequence", "decoders": steps}, "model": sentence}
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}
    yield "metaspace", {"pre_tokenizer": metaspace, "decoder": metaspace, "model": sentence}


def recipe_seeds():
    yield "all", {"method": "rtn", "scheme": "w4a16_g32", "calibration": ["a", "b"], "rate": 0.5, "steps": 3,
                  "explain": True, "schemes": [{"pattern": "*.0.*", "scheme": "w8a8"}]}
    yield "rival", {"epochs": 3, "explain": False, "calibration": "c"}
    yield "wrong", {"epochs": 300, "steps": [1, 2]}


def main():
    out = pathlib.Path(sys.argv[1])

    def write(target, name, content):
        folder = out / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    binary = {"safetensors": safetensors_seeds, "checkpoint_index": index_seeds, "gguf": gguf_seeds,
              "gguf_decode": gguf_decode_seeds, "gguf_model": gguf_model_seeds, "model_config": config_seeds,
              "stored": quantized_modules, "recipe": recipe_seeds}
    for target, seeds in binary.items():
        for name, content in seeds():
            write(target, name, content)
    for name, content in tokenizer_seeds():
        write("tokenizer", name, json.dumps(content).encode() + b"\0" + "ab <s> a\u2581b 12\n\t".encode() + b"\xff")


if __name__ == "__main__":
    main()
