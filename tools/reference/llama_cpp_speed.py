#!/usr/bin/env python3
"""Speed and memory of llama.cpp on the shape of preset `llama-1.1b`: the other side of `primal bench`.

  pip install llama-cpp-python gguf numpy     (the first is built from source; CMAKE_ARGS=-DGGML_NATIVE=ON)
  python llama_cpp_speed.py make --out DIR    random weights: F16, then quantised to Q4_0, Q4_K_M, IQ4_NL and IQ4_NL pure
  python llama_cpp_speed.py run DIR/FILE.gguf --threads 2 --pp 512 --tg 128 --reps 5 [--no-repack]
`run` measures one file in one process and prints a JSON line: tokens_per_s of reading 512 tokens into an empty
context of 2048 and of writing 128 one at a time (median, min, max), file_bytes, peak_rss_bytes.
"""
import argparse
import ctypes
import json
import pathlib
import resource
import statistics
import time

LAYERS, WIDTH, HEADS, KV_HEADS, FF_WIDTH, VOCAB, CONTEXT = 22, 2048, 32, 4, 5632, 32000, 2048
TYPES = {"Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "Q4_K_M": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "IQ4_NL": "LLAMA_FTYPE_MOSTLY_IQ4_NL",
         "IQ4_NL_pure": "LLAMA_FTYPE_MOSTLY_IQ4_NL"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("make").add_argument("--out", type=pathlib.Path, required=True)
    run = verbs.add_parser("run")
    run.add_argument("file", type=pathlib.Path)
    for name, default in (("threads", 2), ("pp", 512), ("tg", 128), ("reps", 5)):
        run.add_argument(f"--{name}", type=int, default=default)
    run.add_argument("--no-repack", action="store_true", help="weights as in the file, not laid out anew at load")
    args = parser.parse_args()
    make(args.out) if args.verb == "make" else measure(args)


def make(out):
    import gguf
    import llama_cpp
    import numpy as np

    out.mkdir(parents=True, exist_ok=True)
    f16 = out / "F16.gguf"
    writer = gguf.GGUFWriter(f16, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FF_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(1)

    def matrix(name, rows, cols):
        # One drawn block, repeated: the speed does not depend on the values.
        block = (0.02 * rng.standard_normal(1 << 20, dtype=np.float32)).astype(np.float16)
        writer.add_tensor(name, np.resize(block, (rows, cols)))

    def vector(name):
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    kv_width = KV_HEADS * WIDTH // HEADS
    matrix("token_embd.weight", VOCAB, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        vector(f"{block}.attn_norm.weight")
        vector(f"{block}.ffn_norm.weight")
        for name, rows, cols in (("attn_q", WIDTH, WIDTH), ("attn_k", kv_width, WIDTH), ("attn_v", kv_width, WIDTH),
                                 ("attn_output", WIDTH, WIDTH), ("ffn_gate", FF_WIDTH, WIDTH), ("ffn_up", FF_WIDTH, WIDTH),
                                 ("ffn_down", WIDTH, FF_WIDTH)):
            matrix(f"{block}.{name}.weight", rows, cols)
    vector("output_norm.weight")
    matrix("output.weight", VOCAB, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    llama_cpp.llama_backend_init()
    for name, kind in TYPES.items():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.pure = getattr(llama_cpp, kind), 2, name.endswith("_pure")
        if llama_cpp.llama_model_quantize(str(f16).encode(), str(out / f"{name}.gguf").encode(), ctypes.byref(params)):
            raise SystemExit(f"{name} could not be made")


def measure(args):
    import llama_cpp

    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.use_extra_bufts = not args.no_repack
    model = llama_cpp.llama_model_load_from_file(str(args.file).encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, 512, 512
    params.n_threads = params.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, params)
    memory = llama_cpp.llama_get_memory(context)

    def feed(tokens):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")

    def speed(steps):
        rates = []
        for _ in range(args.reps + 1):
            llama_cpp.llama_memory_clear(memory, True)
            started = time.perf_counter()
            for tokens in steps:
                feed(tokens)
            llama_cpp.llama_synchronize(context)
            rates.append(sum(map(len, steps)) / (time.perf_counter() - started))
        rates = rates[1:]
        return dict(tokens_per_s=statistics.median(rates), min=min(rates), max=max(rates))

    token = lambda index: index * 7919 % VOCAB
    row = dict(file=args.file.name, threads=args.threads, reps=args.reps, repack=not args.no_repack)
    row["pp"] = speed([[token(i) for i in range(args.pp)]])
    row["tg"] = speed([[token(i)] for i in range(args.tg)])
    row |= dict(file_bytes=args.file.stat().st_size, peak_rss_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
