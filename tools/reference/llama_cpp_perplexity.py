#!/usr/bin/env python3
"""Perplexity of llama.cpp's own types on the windows of `primal eval`, and greedy tokens.

  pip install llama-cpp-python gguf numpy
  python llama_cpp_perplexity.py make SOURCE.gguf --out DIR [--types Q4_0 ..]     requantises SOURCE
  python llama_cpp_perplexity.py score FILE.gguf --text TEXT --window 512 --tokens 10240
  python llama_cpp_perplexity.py greedy FILE.gguf --prompt TEXT -n 64             token ids up to the end of the text, one JSON list
`score` counts what `primal eval --window W --tokens N` counts: windows of W tokens apart, spread over the text, no
start token, every prediction in them; one JSON line.
"""
import argparse
import ctypes
import json
import math
import pathlib

import llama_cpp
import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("make", "score", "greedy"):
        part = verbs.add_parser(verb)
        part.add_argument("file", type=pathlib.Path)
        part.add_argument("--threads", type=int, default=2)
        if verb == "make":
            part.add_argument("--out", type=pathlib.Path, required=True)
            part.add_argument("--types", nargs="+", default=["Q4_0", "Q4_K_M", "IQ4_NL"])
        elif verb == "score":
            part.add_argument("--text", type=pathlib.Path, required=True)
            part.add_argument("--window", type=int, default=512)
            part.add_argument("--tokens", type=int, default=10240)
        else:
            part.add_argument("--prompt", required=True)
            part.add_argument("-n", type=int, default=64)
    args = parser.parse_args()
    llama_cpp.llama_backend_init()
    {"make": make, "score": score, "greedy": greedy}[args.verb](args)


def make(args):
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.types:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}"), args.threads, True
        to = args.out / f"{name}.gguf"
        if llama_cpp.llama_model_quantize(str(args.file).encode(), str(to).encode(), ctypes.byref(params)):
            raise SystemExit(f"{name} could not be made")
        print(to, to.stat().st_size, "bytes")


class Model:
    def __init__(self, args, context):
        self.model = llama_cpp.llama_model_load_from_file(str(args.file).encode(), llama_cpp.llama_model_default_params())
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = args.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(context, 0, 1)

    def tokens(self, text):
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), room, len(room), False, False)
        return list(room[:n])

    def logits(self, tokens, first, all_rows):
        """(rows, vocabulary) of the tokens, or of the last one, that begin at place `first`."""
        if first == 0:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i] = token, first + i
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
            self.batch.logits[i] = all_rows or i + 1 == len(tokens)
        if llama_cpp.llama_decode(self.context, self.batch):
            raise SystemExit("llama_decode failed")
        rows = len(tokens) if all_rows else 1
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), shape=(rows, self.n_vocab))


def score(args):
    model = Model(args, args.window)
    tokens = model.tokens(args.text.read_text(encoding="utf-8"))
    everything = (len(tokens) - 1) // args.window
    wanted = min(max(args.tokens // args.window, 1), everything)
    nats, count = 0.0, 0
    for window in range(wanted):
        start = window * everything // wanted * args.window
        part = tokens[start:start + args.window + 1]
        logits = model.logits(part[:-1], 0, True).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        sums = np.log(np.exp(logits).sum(axis=1))
        nats += float((sums - logits[np.arange(args.window), part[1:]]).sum())
        count += args.window
    loss = nats / count
    size = args.file.stat().st_size
    print(json.dumps(dict(file=args.file.name, bytes=size, tokens=count, loss=loss, perplexity=math.exp(loss))))


def greedy(args):
    model = Model(args, 512)
    tokens, written = model.tokens(args.prompt), []
    place = 0
    while len(written) < args.n:
        row = model.logits(tokens, place, False)[0]
        place += len(tokens)
        tokens = [int(row.argmax())]
        if llama_cpp.llama_vocab_is_eog(model.vocab, tokens[0]):
            break
        written += tokens
    print(json.dumps(written))


if __name__ == "__main__":
    main()
