"""A GGUF file with every tensor type that we read and the values the `gguf` package finds in it.

pip install gguf numpy
python gguf_golden.py --out ../../primal-model/tests/golden

For each type a tensor `TYPE` of random blocks and a float32 tensor `TYPE.expected`. Numbers are
a fixed function of the seed.
"""

import argparse
import hashlib
import pathlib

import gguf
import numpy as np

TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K",
         "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"]
ROWS, COLS = 2, 256
# Where a block keeps half-precision numbers, which random bytes would make infinite.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "Q2_K": [80, 82], "Q3_K": [108],
          "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": []}


def blocks(name, rng):
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    if values == 1:
        numbers = rng.standard_normal((ROWS, COLS), dtype=np.float32)
        return kind, gguf.quants.quantize(numbers, kind)
    data = rng.integers(0, 256, (ROWS, COLS // values, size), dtype=np.uint8)
    for at in HALVES[name]:
        halves = rng.standard_normal((ROWS, COLS // values)).astype("<f2")
        data[..., at:at + 2] = halves.view(np.uint8).reshape(ROWS, COLS // values, 2)
    if name == "MXFP4":
        # Exponents of numbers that half precision has too, and the two smallest.
        data[..., 0] = 117 + data[..., 0] % 16
        data[0, 0, 0], data[0, 1, 0] = 0, 1
    return kind, data.reshape(ROWS, -1)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    out = arguments.parse_args().out / "blocks.gguf"
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60_000)
    writer.add_int16("test.i16", -30_000)
    writer.add_uint32("test.u32", 4_000_000_000)
    writer.add_int32("test.i32", -2_000_000_000)
    writer.add_uint64("test.u64", 2**64 - 1)
    writer.add_int64("test.i64", -(2**63))
    writer.add_float32("test.f32", 0.5)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "ein Käse")
    writer.add_array("test.strings", ["a", "", "ß"])
    writer.add_array("test.numbers", [1, -2, 3])
    for name in TYPES:
        kind, data = blocks(name, rng)
        writer.add_tensor(name, data, raw_dtype=kind)
        writer.add_tensor(f"{name}.expected", gguf.quants.dequantize(data, kind).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(out.name, hashlib.sha256(out.read_bytes()).hexdigest(), out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
