#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the malformed files of this folder and expected.json, which says for each of them what class of fault it has,
who reads it and how it must be refused: `make_malformed.py`, from any folder.

The classes are those in which parsers of model files were found to be wrong: counts that wrap, products of sizes that
wrap, offsets beyond the file, and so on. Each file has one fault and is small. An expectation is the code of the error
and parts of its message, which has to name file, tensor or key, byte, what was found and what was wanted.
"""

import json
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "fuzz"))
sys.dont_write_bytecode = True

from make_seeds import GGUF_MODEL, LLAMA, MODULES, gguf, of_type, own, safetensors, text, value  # noqa: E402

expected = {}


def write(name, content, reader, fault, code, *parts):
    path = HERE / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    expected[name] = {"class": fault, "reader": reader, "code": code, "parts": list(parts)}


# ---- safetensors ----

def header(content, data=b"\0" * 8):
    raw = content if isinstance(content, bytes) else json.dumps(content, separators=(",", ":")).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def raw_entry(shape, offsets="[0,8]"):
    return b'{"w":{"dtype":"F32","shape":' + shape.encode() + b',"data_offsets":' + offsets.encode() + b"}}"


def safetensors_files():
    def bad(name, content, fault, code, *parts):
        write("safetensors_%s.safetensors" % name, content, "safetensors", fault, code, *parts)

    bad("length_huge", struct.pack("<Q", 1 << 40) + b"{}", "unbounded allocation from a tiny file", "bad_file",
        "byte 0", "header is too long", "1099511627776", "at most 100000000")
    bad("length_beyond_end", struct.pack("<Q", 1000) + b"{}", "tensor or header beyond the end of the file", "bad_file",
        "byte 0", "does not fit", "1000", "at most 2")
    bad("short", b"\x02\0\0", "truncated file", "bad_file", "byte 0", "3 bytes", "at least 8")
    bad("offsets_not_shape", header({"w": entry(shape=(3,))}), "offsets not checked against the shape", "bad_file",
        "byte 9, w", "8 bytes", "12 bytes for F32 [3]")
    bad("truncated", header({"w": entry()}, b"\0" * 7), "offsets consistent, file truncated", "bad_file", "byte 9, w",
        "[0, 8)", "within [0, 7)")
    bad("longer", header({"w": entry()}, b"\0" * 9), "data behind the last tensor", "bad_file", "data byte 8", "9 bytes",
        "8 bytes")
    bad("shape_wraps", header({"w": entry(shape=(1 << 62, 1 << 62), offsets=(0, 0))}, b""), "product of sizes wraps",
        "bad_shape", "byte 9, w", "64 bits", str(1 << 62))
    bad("bits_wrap", header({"w": entry(shape=(1 << 61,), offsets=(0, 0))}, b""), "product of sizes x type wraps",
        "bad_shape", "byte 9, w", "64 bits", str(1 << 61))
    bad("shape_wraps_beside_zero", header({"w": entry(shape=(0, 1 << 62, 1 << 62), offsets=(0, 0))}, b""),
        "product of sizes wraps", "accepted")
    bad("size_negative", header(raw_entry("[-2]")), "negative size", "bad_file", "byte 9, w", "shape", "0 to 2^64-1")
    bad("offset_negative", header(raw_entry("[2]", "[-8,0]")), "negative offset", "bad_file", "byte 9, w",
        "data_offsets", "0 to 2^64-1")
    bad("size_as_double", header(raw_entry("[2.0]")), "numbers through double", "bad_file", "byte 9, w", "shape")
    bad("size_beyond_64_bits", header(raw_entry("[18446744073709551618]")), "numbers through double", "bad_file",
        "byte 9, w", "shape")
    bad("size_over_32_bits", header({"w": entry("U8", (65536, 65537), (0, 65536))}, b"\0" * 65536)[:400],
        "size computed in 32 bits", "bad_file", "byte 9, w", "65536")
    bad("offsets_swapped", header({"w": entry(offsets=(8, 0))}), "offsets in the wrong order", "bad_file", "byte 9, w",
        "[8, 0)")
    two = {"a": entry(shape=(1,), offsets=(0, 4)), "b": entry(shape=(1,), offsets=(0, 4))}
    bad("overlap", header(two), "tensors that overlap", "bad_file", "b", "data byte 0", "data byte 4")
    two = {"a": entry(shape=(1,), offsets=(0, 4)), "b": entry(shape=(1,), offsets=(8, 12))}
    bad("hole", header(two, b"\0" * 12), "a hole between tensors", "bad_file", "b", "data byte 8", "data byte 4")
    bad("dims", header({"w": entry("U8", (1,) * 9, (0, 1))}, b"\0"), "more dimensions than the array has",
        "unsupported", "byte 9, w", "9", "at most 8")
    bad("dtype", header({"w": entry("F77")}), "enumerator out of range", "unsupported", "byte 9, w", "F77", "safetensors")
    bad("name_twice", header(b'{"w":' + json.dumps(entry()).encode() + b',"w":' + json.dumps(entry()).encode() + b"}"),
        "the same name twice", "bad_file", "byte ", "same key twice", "w", "once")
    bad("deep", header(b'{"w":' + b"[" * 500 + b"]" * 500 + b"}"), "recursion without a limit", "bad_file", "byte ",
        "nested too deeply", "4", "at most 3")
    bad("nul", header(b'{"w":\0{}}'), "a NUL byte in text", "bad_file", "byte 5", "NUL")
    bad("not_json", header(b'{"w":}'), "not JSON", "bad_file", "byte 6", "not valid JSON", "JSON")
    bad("unknown_key", header({"w": {**entry(), "x": 1}}), "a key that nobody reads", "bad_file", "byte 9, w", "x",
        "dtype, shape, data_offsets")
    bad("metadata_number", header({"__metadata__": {"a": 1}}, b""), "metadata of another type than is read", "bad_file",
        "__metadata__: a", "number", "text")


# ---- the index of a checkpoint ----

def index_files():
    good = safetensors({"a": of_type("F32", [2])})
    (HERE / "shard.safetensors").write_bytes(good)

    def bad(name, content, fault, *parts):
        write("index_%s.safetensors.index.json" % name, content, "safetensors", fault, "bad_file", *parts)

    bad("outside", {"weight_map": {"a": "../shard.safetensors"}}, "a path that leaves the folder", "a", "../shard",
        "*.safetensors")
    bad("no_map", {"weight_map": ["a"]}, "metadata of another type than is read", "weight_map", "array", "object")
    bad("number", {"weight_map": {"a": 7}}, "metadata of another type than is read", "a", "number", "text")
    bad("promises_more", {"weight_map": {"a": "shard.safetensors", "b": "shard.safetensors"}}, "a tensor that is missing",
        "b", "no such tensor", "shard.safetensors")
    bad("knows_less", {"weight_map": {"b": "shard.safetensors"}}, "a tensor that nobody listed", "json: a", "got shard.safetensors",
        "not in the index")
    bad("twice", b'{"weight_map":{"a":"shard.safetensors","a":"shard.safetensors"}}', "the same name twice", "byte ",
        "same key twice", "a")
    bad("deep", b"[" * 500 + b"]" * 500, "recursion without a limit", "byte 33", "nested too deeply", "33", "at most 32")


# ---- GGUF ----

def start(tensors=0, keys=0, version=3):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, keys)


def info(name, sizes, kind, offset=0, rank=None):
    count = len(sizes) if rank is None else rank
    return text(name) + struct.pack("<I", count) + b"".join(struct.pack("<Q", s) for s in sizes) + struct.pack(
        "<IQ", kind, offset)


def padded(content, data=b""):
    return content + b"\0" * (-len(content) % 32) + data


F32, Q4_0, I8 = 0, 2, 24


def gguf_counts():
    many = b"\0" * 64
    gguf_bad("key_count_wraps", start(keys=1 << 60) + many, "counts wrap the allocation", "byte 16", str(1 << 60),
             "at most 65536")
    gguf_bad("tensor_count_wraps", start(tensors=1 << 61) + many, "counts wrap the allocation", "byte 8", str(1 << 61),
             "at most 1000000")
    gguf_bad("tensor_count_beyond_end", start(tensors=1000) + many, "counts wrap the allocation", "byte 8", "1000")
    gguf_bad("text_length_wraps", start(keys=1) + struct.pack("<Q", (1 << 64) - 8) + many, "counts wrap the allocation",
             "byte 24", str((1 << 64) - 8), "at most 65535")
    gguf_bad("text_beyond_end", start(keys=1) + text("k") + struct.pack("<IQ", 8, 1 << 20) + many,
             "unbounded allocation from a tiny file", "k", "byte 45", "bytes left", "1048576 bytes")
    gguf_bad("text_huge", start(keys=1) + text("k") + struct.pack("<IQ", 8, 1 << 31) + many,
             "a token longer than 32 bits count", "k", "byte 37", str(1 << 31), "at most 16777216")
    gguf_bad("array_count_wraps", start(keys=1) + text("k") + struct.pack("<IIQ", 9, 10, 1 << 61) + many,
             "array count times element size wraps", "k", "byte 49", str(1 << 61), "at most")
    gguf_bad("array_beyond_end", start(keys=1) + text("k") + struct.pack("<IIQ", 9, 0, 1 << 20) + many,
             "unbounded allocation from a tiny file", "k", "byte 49", str(1 << 20))
    gguf_bad("fails_in_second_key", start(keys=2) + text("a") + value("list text", ["x", "y"]) + text("b") +
             struct.pack("<I", 99) + many, "failure with half of the metadata read", "b", "byte ", "99", "0 to 12")
    gguf_bad("ends_in_header", start(keys=1)[:20], "failure before anything was read", "byte 16", "4 bytes left",
             "8 bytes")


def gguf_sizes():
    gguf_bad("sum_of_sizes_wraps", padded(start(tensors=2) + info("a", [1 << 63], I8) + info("b", [1 << 63], I8, 1 << 63)),
             "sum of padded sizes wraps", "a", str(1 << 63) + " bytes", "0 bytes of data")
    gguf_bad("data_end_wraps", padded(start(tensors=1) + info("a", [(1 << 64) - 33], I8), b"\0" * 64),
             "overhead plus data size wraps", "a", str((1 << 64) - 33) + " bytes", "64 bytes of data")
    gguf_bad("dims_product_wraps", padded(start(tensors=1) + info("a", [1 << 32, 1 << 32], F32)),
             "product of sizes wraps", "a", "64 bits", str(1 << 32), code="bad_shape")
    gguf_bad("type_size_wraps", padded(start(tensors=1) + info("a", [1 << 62], F32)), "product of sizes x type wraps",
             "a", code="bad_shape")
    gguf_bad("padding_wraps", padded(start(tensors=1) + info("a", [(1 << 64) - 1], I8)), "padding wraps to zero", "a",
             str((1 << 64) - 1), "0 bytes of data")
    gguf_bad("elements_negative", padded(start(tensors=1) + info("a", [1 << 63], I8)), "element count goes negative",
             "a", str(1 << 63))
    gguf_bad("size_over_32_bits", padded(start(tensors=1) + info("a", [65536, 65537], I8), b"\0" * 64),
             "size computed in 32 bits", "a", str(65536 * 65537), "64 bytes of data")
    gguf_bad("offset_beyond_end", padded(start(tensors=1) + info("a", [1], I8, 1 << 40), b"\0" * 32),
             "tensor offset beyond the end of the file", "a", "offset %d" % (1 << 40), "offset 0")
    gguf_bad("tensor_beyond_end", padded(start(tensors=1) + info("a", [33], I8), b"\0" * 32),
             "tensor size beyond the end of the file", "a", "33 bytes at data byte 0", "32 bytes of data")
    gguf_bad("block_cut", padded(start(tensors=1) + info("a", [33], Q4_0), b"\0" * 64), "a block that is cut", "a", "33",
             "a multiple of 32", code="bad_shape")
    gguf_bad("dims", padded(start(tensors=1) + info("a", [1] * 5, I8), b"\0" * 32), "more dimensions than the array has",
             "a", "byte 33", "5", "at most 4")
    gguf_bad("dims_huge", padded(start(tensors=1) + info("a", [1], I8, rank=(1 << 32) - 1), b"\0" * 32),
             "more dimensions than the array has", "a", "byte 33", str((1 << 32) - 1), "at most 4")


def gguf_values():
    one = {"t": ("I8", [1])}
    for name, number in (("zero", 0), ("odd", 48), ("huge", 1 << 31)):
        gguf_bad("alignment_" + name, gguf({"general.alignment": ("u32", number)}, one), "alignment of zero, or absurd",
                 "general.alignment", str(number), "a power of two up to 1048576")
    gguf_bad("alignment_list", gguf({"general.alignment": ("list u32", [32])}, one),
             "metadata array of another type than is read", "general.alignment", "array", "u32")
    gguf_bad("value_type", start(keys=1) + text("k") + struct.pack("<I", 13) + b"\0" * 64, "enumerator out of range",
             "k", "byte 33", "13", "0 to 12")
    gguf_bad("element_type", start(keys=1) + text("k") + struct.pack("<IIQ", 9, 1 << 31, 0) + b"\0" * 64,
             "enumerator out of range", "k", "byte 37", str(1 << 31), "0 to 12")
    gguf_bad("tensor_type", padded(start(tensors=1) + info("a", [1], 99), b"\0" * 32), "enumerator out of range", "a",
             "byte 33", "number 99", code="unsupported")
    gguf_bad("list_of_lists", start(keys=1) + text("k") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 64,
             "recursion without a limit", "k", "byte 49", "array", code="unsupported")
    gguf_bad("boolean", start(keys=1) + text("k") + struct.pack("<IB", 7, 2) + b"\0" * 64, "a boolean of 2", "k",
             "byte 38", "0 or 1")
    twice = text("k") + value("u8", 1)
    gguf_bad("key_twice", padded(start(keys=2) + twice + twice), "the same name twice", "k", "2 values")
    gguf_bad("tensor_twice", padded(start(tensors=2) + info("a", [32], I8) + info("a", [32], I8, 32), b"\0" * 64),
             "the same name twice", "a", "2 tensors")
    gguf_bad("big_endian", struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "another endianness", "byte 4", "little-endian",
             code="unsupported")
    gguf_bad("version_1", start(version=1), "another version", "byte 4", "1", "2 or 3", code="unsupported")
    gguf_bad("magic", b"GGML" + start()[4:], "not a GGUF file", "byte 0", "GGUF")
    # Text is never interpreted: this one is a value like any other.
    gguf_bad("template", gguf({"tokenizer.chat_template": ("text", "{{ ''.__class__.__mro__ }}")}, one),
             "header text as template", code="accepted")
    # Numbers read from lists, found by fuzzing: the first element was taken, and one beyond the file of empty lists.
    gguf_bad("number_of_empty_list", gguf({"tokenizer.ggml.bos_token_id": ("list u8", [])}, {}),
             "metadata array of another type than is read", "tokenizer.ggml.bos_token_id", "array of u8", "an integer",
             reader="gguf_numbers")
    gguf_bad("number_of_list", gguf({"k": ("list f64", [1.0])}, {}), "metadata array of another type than is read", "k",
             "array of f64", "integer", reader="gguf_numbers")


def gguf_bad(name, content, fault, *parts, code="bad_file", reader="gguf"):
    write("gguf_%s.gguf" % name, content, reader, fault, code, *parts)


# ---- modules stored as codes: config.json, a NUL, then safetensors ----

def stored_files():
    module = MODULES[1]

    def tensors(**changed):
        parts = {"weight_packed": of_type("I32", [2, 4]), "weight_scale": ("F16", [2, 1], b"\x00\x2c" * 2),
                 "weight_shape": ("I64", [2], struct.pack("<2q", 2, 32))}
        parts.update(changed)
        return safetensors({module + "." + name: tensor for name, tensor in parts.items()})

    config = json.dumps({**LLAMA, "cbq": own({module: "w4a16_g32"})}).encode() + b"\0"

    def bad(name, fault, code, *parts, **changed):
        write("stored_%s.bin" % name, config + tensors(**changed), "stored", fault, code, *parts)

    bad("scale_nan", "NaN in scales", "not_finite", module, "row 1", "NaN", "finite",
        weight_scale=("F16", [2, 1], b"\x00\x2c\x01\x7e"))
    bad("shape_negative", "negative size", "bad_file", "weight_shape", "-2, 32",
        weight_shape=("I64", [2], struct.pack("<2q", -2, 32)))
    bad("shape_huge", "codes wrap the allocation", "bad_shape", "weight_packed", "I32 [2, 4]",
        weight_shape=("I64", [2], struct.pack("<2q", 2, (1 << 62) + 32)))
    bad("shape_floats", "metadata of another type than is read", "bad_file", "weight_shape", "F64", "I64 [2]",
        weight_shape=("F64", [2], b"\0" * 16))
    bad("zeros_unasked", "a tensor that nobody listed", "bad_file", module, "weight_zero_point", "none",
        weight_zero_point=of_type("I32", [1, 1]))


# ---- what the example engine reads ----

def config_files():
    def bad(name, content, fault, code, *parts):
        write("config_%s.json" % name, content, "config", fault, code, *parts)

    bad("layers", {**LLAMA, "num_hidden_layers": 100000}, "layer count above a fixed array", "bad_file",
        "num_hidden_layers", "100000", "4096")
    bad("layers_zero", {**LLAMA, "num_hidden_layers": 0}, "block count of zero", "bad_file", "num_hidden_layers", "0",
        "1 to")
    bad("heads_zero", {**LLAMA, "num_attention_heads": 0}, "division by zero", "bad_file", "num_attention_heads", "0")
    bad("negative", {**LLAMA, "hidden_size": -8}, "negative size", "bad_file", "hidden_size", "negative")
    bad("wide", {**LLAMA, "vocab_size": 1 << 40}, "product of sizes wraps", "bad_file", "vocab_size", str(1 << 40))
    bad("text", {**LLAMA, "head_dim": "4"}, "metadata of another type than is read", "bad_file", "head_dim", "string")
    longrope = {"rope_type": "longrope", "attention_factor": 1.0}
    bad("rope_factors_short", {**LLAMA, "rope_scaling": {**longrope, "short_factor": [1], "long_factor": [1]}},
        "lists of different lengths", "bad_file", "long_factor", "1", "2")
    bad("rope_factor_zero", {**LLAMA, "rope_scaling": {**longrope, "short_factor": [1, 0], "long_factor": [1, 0]}},
        "division by zero", "bad_file", "long_factor[1]", "0", "above 0")
    bad("rope_factor_text", {**LLAMA, "rope_scaling": {**longrope, "short_factor": [1, "2"], "long_factor": [1, "2"]}},
        "metadata of another type than is read", "bad_file", "long_factor[1]", '"2"', "above 0")


def gguf_model_files():
    def bad(name, sizes, factors, fault, code, *parts, kind="F32"):
        file = bytearray(gguf(GGUF_MODEL, {"rope_freqs.weight": (kind, sizes)}))
        file[-32:-32 + 4 * len(factors)] = struct.pack("<%df" % len(factors), *factors)
        write("gguf_model_%s.gguf" % name, bytes(file), "gguf_model", fault, code, "rope_freqs.weight", *parts)

    bad("factors_short", [1], [2.0], "lists of different lengths", "bad_shape", "[1]", "[2]")
    bad("factors_matrix", [2, 1], [2.0, 2.0], "more dimensions than are read", "bad_shape", "[1, 2]", "[2]")
    bad("factor_zero", [2], [1.0, 0.0], "division by zero", "bad_file", "[1]", "0.0", "above 0")
    bad("factor_negative", [2], [-2.0, 1.0], "negative number", "bad_file", "[0]", "-2.0", "above 0")
    bad("factor_nan", [2], [1.0, float("nan")], "NaN in factors", "not_finite", "NaN", "finite")
    bad("factors_half", [2], [], "a tensor of another type than is read", "unsupported", "F16", "F32", kind="F16")


def vocabulary_files():
    base = {"tokenizer.ggml.model": ("text", "llama"), "tokenizer.ggml.tokens": ("list text", ["<unk>", "<s>", "</s>", "a"]),
            "tokenizer.ggml.scores": ("list f32", [0.0] * 4), "tokenizer.ggml.token_type": ("list i32", [2, 3, 3, 1])}

    def bad(name, fault, code, *parts, **changed):
        metadata = {**base, **{"tokenizer.ggml." + key: content for key, content in changed.items()}}
        write("vocabulary_%s.gguf" % name, gguf(metadata, {}), "vocabulary", fault, code, *parts)

    bad("bos", "default special id beyond the vocabulary", "bad_file", "BOS", "4", "0 to below 4",
        bos_token_id=("u32", 4))
    bad("bos_negative", "negative id", "bad_file", "tokenizer.ggml.bos_token_id", "-2", bos_token_id=("i32", -2))
    bad("byte_token", "byte token <0x-1>", "bad_file", "tokenizer.ggml.tokens", "<0x-1>",
        tokens=("list text", ["<unk>", "<s>", "</s>", "<0x-1>"]), token_type=("list i32", [2, 3, 3, 6]))
    bad("token_type", "enumerator out of range", "bad_file", "a", "99", "0 to 6", token_type=("list i32", [2, 3, 3, 99]))
    bad("tokens_numbers", "metadata array of another type than is read", "bad_file", "tokenizer.ggml.tokens",
        "array of u32", "an array of texts", tokens=("list u32", [1, 2]))
    bad("types_floats", "metadata array of another type than is read", "bad_file", "tokenizer.ggml.token_type",
        "array of f32", "an integer", token_type=("list f32", [2.0, 3.0, 3.0, 1.0]))
    bad("scores_short", "lists of different lengths", "bad_file", "tokenizer.ggml.scores", "3", "4",
        scores=("list f32", [0.0] * 3))
    bad("score_nan", "NaN in scores", "not_finite", "a", scores=("list f32", [0.0, 0.0, 0.0, float("nan")]))
    bad("twice", "the same name twice", "bad_file", "a", "ids 2 and 3", tokens=("list text", ["<unk>", "<s>", "a", "a"]))


def tokenizer_files():
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}

    def bad(name, content, fault, code, *parts):
        write("tokenizer_%s.json" % name, content, "tokenizer", fault, code, *parts)

    bad("id_negative", {"model": {**model, "vocab": {"a": -1}}}, "negative id", "bad_file", "a", "-1", "0 to below")
    bad("id_huge", {"model": {**model, "vocab": {"a": 1 << 40}}}, "unbounded allocation from a tiny file", "bad_file",
        "a", str(1 << 40), "0 to below")
    bad("id_twice", {"model": {**model, "vocab": {"a": 0, "b": 0}}}, "the same id twice", "bad_file", "b", "0")
    bad("merge", {"model": {**model, "merges": ["a c"]}}, "a token that is missing", "bad_file", "merges[0]", "c")
    bad("deep", b"[" * 500 + b"]" * 500, "recursion without a limit", "bad_file", "byte 17", "17", "at most 16")
    bad("name_twice", b'{"model":{},"model":{}}', "the same name twice", "bad_file", "byte ", "model")
    grows = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 60
    bad("grows", {"normalizer": {"type": "Sequence", "normalizers": grows}, "model": model},
        "unbounded allocation from a tiny file", "bad_argument", "at most 1048592 bytes")


def main():
    for old in HERE.iterdir():
        if old.suffix in (".gguf", ".json", ".safetensors", ".bin"):
            old.unlink()
    for files in (safetensors_files, index_files, gguf_counts, gguf_sizes, gguf_values, stored_files, config_files,
                  gguf_model_files, vocabulary_files, tokenizer_files):
        files()
    text_of = json.dumps(dict(sorted(expected.items())), indent=1) + "\n"
    (HERE / "expected.json").write_text(text_of)


if __name__ == "__main__":
    main()
