#!/usr/bin/env python3
"""Golden values of a tiny GPT: loss, logits and every gradient, in float64, for the tests of primal-model.

  python gpt_golden.py --out ../../primal-model/tests/golden
Writes one safetensors file a variant and MANIFEST.toml. The same command gives the same bytes.

Every matrix is a grid matrix, weight[row][col] = scale[row] * grid[code[row][col]] on the prime grid, so a
reader checks the float path with the same file by expanding the matrices it wants as float.
  gpt_untied.safetensors       head of its own, no biases
  gpt_tied_biased.safetensors  head tied to the token embedding, biases everywhere

Tensors of a file (NAME is a matrix: tok_embedding, pos_embedding, blocks.N.{qkv,attention_out,up,down}, head):
  tokens, targets        U32 (batch, time)
  loss                   F64 (1), mean cross-entropy over all tokens in nats
  logits                 F32 (time, vocab) of the first sequence
  NAME.codes             U8  (rows, cols), not packed, 7 is zero
  NAME.scales            F32 (rows)
  NAME.grad              F32 (rows, cols), dL/dW with respect to the dense effective weight
  NAME.scales.grad       F32 (rows)
  VECTOR, VECTOR.grad    F32 (n): blocks.N.{norm1,norm2}.{weight,bias}, norm.{weight,bias},
                         blocks.N.{qkv,attention_out,up,down}.bias
Rows of qkv are [q heads | k heads | v heads]; head h of q is rows h*D..(h+1)*D. A tied head adds its gradient
to tok_embedding's. The metadata key `model` holds the shape of the model as JSON.
"""
import argparse
import hashlib
import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save

LAYERS, HEADS, WIDTH, FF_WIDTH, CONTEXT, VOCAB, BATCH, NORM_EPS = 2, 2, 32, 96, 16, 67, 3, 1e-5
HEAD_DIM = WIDTH // HEADS
HALF_GRID = [1 / 13, 1 / 11, 1 / 7, 1 / 5, 1 / 3, 1 / 2, 1.0]
GRID = np.array([-v for v in reversed(HALF_GRID)] + [0.0] + HALF_GRID, dtype=np.float32)
HEAD = "# Golden values of the tests: where each file comes from.\n"
VARIANTS = {"gpt_untied": dict(tied=False, biased=False, seed=1), "gpt_tied_biased": dict(tied=True, biased=True, seed=2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the golden files")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, variant in VARIANTS.items():
        tensors = dump(**variant)
        data = save(tensors, metadata={"model": json.dumps(model_metadata(variant))})  # one key: their order is not fixed
        write(out, f"{name}.safetensors", data, "gpt_golden.py", "float64 on the CPU")
        print(f"{name}: loss {tensors['loss'][0]:.9f}")


def write(out, name, data, script, how):
    """Writes a golden file and its entry in MANIFEST.toml, other entries untouched."""
    (out / name).write_bytes(data)
    manifest = out / "MANIFEST.toml"
    head, *entries = (manifest.read_text() if manifest.exists() else HEAD).split("\n[[file]]\n")
    entries = [entry.rstrip("\n") + "\n" for entry in entries if not entry.startswith(f'name = "{name}"\n')]
    entries.append(
        f'name = "{name}"\nsha256 = "{hashlib.sha256(data).hexdigest()}"\nbytes = {len(data)}\n'
        f'origin = "tools/reference/{script}, PyTorch {torch.__version__.split("+")[0]}, {how}"\n'
        f'command = "python tools/reference/{script} --out primal-model/tests/golden"\n'
    )
    manifest.write_text("\n[[file]]\n".join([head, *sorted(entries)]))
    print(f"{name}: {len(data)} bytes")


def model_metadata(variant):
    return dict(n_layer=LAYERS, n_head=HEADS, width=WIDTH, ff_width=FF_WIDTH, context=CONTEXT, vocab_size=VOCAB,
                batch=BATCH, norm_eps=NORM_EPS, tie_head=variant["tied"], biases=variant["biased"], grid="prime15")


def dump(tied, biased, seed):
    rng = np.random.default_rng(seed)
    tokens, targets = (rng.integers(VOCAB, size=(BATCH, CONTEXT), dtype=np.uint32) for _ in range(2))
    codes, scales = {}, {}
    for name, (rows, cols, std) in matrix_shapes(tied).items():
        scales[name] = (2.5 * std * rng.uniform(0.7, 1.3, rows)).astype(np.float32)
        ideal = rng.normal(0, std, (rows, cols)) / scales[name][:, None]
        codes[name] = np.abs(ideal[:, :, None] - GRID).argmin(2).astype(np.uint8)
    vectors = {}
    for name, (size, centre) in vector_shapes(biased).items():
        vectors[name] = (centre + 0.1 * rng.normal(size=size)).astype(np.float32)

    def leaves():
        scale = {n: torch.tensor(s, dtype=torch.float64) for n, s in scales.items()}
        dense = {n: (scale[n][:, None] * torch.tensor(GRID[codes[n]], dtype=torch.float64)).requires_grad_() for n in codes}
        vector = {n: torch.tensor(v, dtype=torch.float64).requires_grad_() for n, v in vectors.items()}
        return dense, vector

    dense, vector = leaves()
    ids, wanted = torch.tensor(tokens.astype(np.int64)), torch.tensor(targets.astype(np.int64))
    logits = forward(dense, vector, ids)
    loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    loss.backward()
    check_by_differences(dense, vector, ids, wanted)

    tensors = {"tokens": tokens, "targets": targets, "loss": np.array([loss.item()]), "logits": f32(logits[0])}
    for name, weight in dense.items():
        row_grad = (weight.grad * torch.tensor(GRID[codes[name]], dtype=torch.float64)).sum(1)
        tensors |= {f"{name}.codes": codes[name], f"{name}.scales": scales[name],
                    f"{name}.grad": f32(weight.grad), f"{name}.scales.grad": f32(row_grad)}
    for name, value in vector.items():
        tensors |= {name: vectors[name], f"{name}.grad": f32(value.grad)}
    return tensors


def matrix_shapes(tied):
    """Rows, columns and standard deviation of every matrix."""
    std = WIDTH ** -0.5
    shapes = {"tok_embedding": (VOCAB, WIDTH, 0.5), "pos_embedding": (CONTEXT, WIDTH, 0.3)}
    for n in range(LAYERS):
        shapes |= {f"blocks.{n}.qkv": (3 * WIDTH, WIDTH, 1.5 * std), f"blocks.{n}.attention_out": (WIDTH, WIDTH, std),
                   f"blocks.{n}.up": (FF_WIDTH, WIDTH, std), f"blocks.{n}.down": (WIDTH, FF_WIDTH, FF_WIDTH ** -0.5)}
    return shapes if tied else shapes | {"head": (VOCAB, WIDTH, std)}


def vector_shapes(biased):
    """Length and centre of every vector."""
    shapes, norms = {}, [f"blocks.{n}.norm{i}" for n in range(LAYERS) for i in (1, 2)] + ["norm"]
    for norm in norms:
        shapes[f"{norm}.weight"] = (WIDTH, 1.0)
        if biased:
            shapes[f"{norm}.bias"] = (WIDTH, 0.0)
    if biased:
        for n in range(LAYERS):
            for part, rows in [("qkv", 3 * WIDTH), ("attention_out", WIDTH), ("up", FF_WIDTH), ("down", WIDTH)]:
                shapes[f"blocks.{n}.{part}.bias"] = (rows, 0.0)
    return shapes


def forward(dense, vector, ids):
    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), vector[f"{name}.weight"], vector.get(f"{name}.bias"), NORM_EPS)

    def linear(x, name):
        return F.linear(x, dense[name], vector.get(f"{name}.bias"))

    batch, time = ids.shape
    later = torch.ones(time, time, dtype=torch.bool).triu(1)
    x = dense["tok_embedding"][ids] + dense["pos_embedding"][:time]
    for n in range(LAYERS):
        block = f"blocks.{n}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.qkv").view(batch, time, 3, HEADS, HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) * HEAD_DIM ** -0.5).masked_fill(later, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, time, WIDTH)
        x = x + linear(mixed, f"{block}.attention_out")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.up"), approximate="tanh")
        x = x + linear(hidden, f"{block}.down")
    return F.linear(norm(x, "norm"), dense.get("head", dense["tok_embedding"]))


def check_by_differences(dense, vector, ids, wanted, step=1e-5):
    """The gradient along a random direction of each parameter agrees with a central difference."""
    rng = torch.Generator().manual_seed(3)
    for name, value in (dense | vector).items():
        direction = torch.randn(value.shape, generator=rng, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                value += sign * step * direction
                losses.append(F.cross_entropy(forward(dense, vector, ids).flatten(0, 1), wanted.flatten()).item())
                value -= sign * step * direction
        numeric, exact = (losses[0] - losses[1]) / (2 * step), (value.grad * direction).sum().item()
        if abs(numeric - exact) > 1e-6 * max(1.0, abs(exact)):
            raise SystemExit(f"{name}: difference {numeric}, gradient {exact}")


def f32(tensor):
    return np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())


if __name__ == "__main__":
    main()
