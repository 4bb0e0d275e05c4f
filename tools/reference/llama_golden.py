#!/usr/bin/env python3
"""Golden values of tiny Llama-family decoders: loss, logits and every gradient, in float64; frequencies of rotary positions.

  python llama_golden.py --out ../../primal-model/tests/golden
Writes a safetensors file a variant, rope_frequencies.safetensors, and their entries in MANIFEST.toml. The same
command gives the same bytes. Before anything is written the logits are compared with those of the model of the same
weights in `transformers` (largest difference 1e-5 of the largest logit), and the gradients with central differences.

  llama_untied.safetensors   4 heads of 10 over 2 key/value heads in a width of 32, head of its own (LlamaForCausalLM)
  llama_tied.safetensors     4 heads of 8 over 1, head tied, biases of q, k and v alone, llama3 scaling (Qwen2ForCausalLM)
  llama_normed.safetensors   4 heads of 6 over 2 with a norm of each head's queries and keys (Qwen3ForCausalLM)
  llama_still.safetensors    the second block does not turn queries and keys (SmolLM3ForCausalLM)
The tensors are those of gpt_golden.py without pos_embedding; `up` has the rows [gate | up], norms have no biases.

  rope_frequencies.safetensors   linear, llama3, yarn: F32 (D / 2) inverse frequencies, NAME.sharpness F32 (1), for a
                                 head of 64, theta 10000, factor 8, original context 2048, other numbers as in CASES
"""
import argparse
import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import save
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gpt_golden import GRID, f32, write

LAYERS, WIDTH, FF_WIDTH, CONTEXT, VOCAB, BATCH, NORM_EPS, THETA = 2, 32, 48, 16, 67, 3, 1e-6, 100.0
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=12)
VARIANTS = {
    "llama_untied": dict(heads=4, kv_heads=2, head_dim=10, tied=False, qkv_bias=False, scaling=None, seed=3),
    "llama_tied": dict(heads=4, kv_heads=1, head_dim=8, tied=True, qkv_bias=True, scaling=LLAMA3, seed=4),
    "llama_normed": dict(heads=4, kv_heads=2, head_dim=6, tied=True, qkv_bias=False, scaling=None, seed=5, qk_norm=True),
    "llama_still": dict(heads=4, kv_heads=2, head_dim=8, tied=True, qkv_bias=False, scaling=None, seed=6, still=(1,)),
}
CASES = {
    "linear": dict(rope_type="linear", factor=8.0),
    "llama3": dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    "yarn": dict(rope_type="yarn", factor=8.0, beta_fast=32.0, beta_slow=1.0),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the golden files")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    how = f"transformers {transformers.__version__}, float64 on the CPU"
    for name, variant in VARIANTS.items():
        tensors = Case(**variant).dump()
        data = save(tensors, metadata={"model": json.dumps(variant)})
        write(out, f"{name}.safetensors", data, "llama_golden.py", how)
        print(f"{name}: loss {tensors['loss'][0]:.9f}")
    write(out, "rope_frequencies.safetensors", save(frequency_cases()), "llama_golden.py", how)


def frequency_cases():
    tensors = {}
    for name, scaling in CASES.items():
        scaling = scaling | dict(rope_theta=10000.0, original_max_position_embeddings=2048)
        config = transformers.LlamaConfig(head_dim=64, max_position_embeddings=16384, rope_parameters=scaling)
        frequencies, sharpness = ROPE_INIT_FUNCTIONS[name](config, "cpu")
        tensors |= {name: f32(frequencies), f"{name}.sharpness": np.array([sharpness], dtype=np.float32)}
    return tensors


class Case:
    def __init__(self, heads, kv_heads, head_dim, tied, qkv_bias, scaling, seed, qk_norm=False, still=()):
        self.qk_norm, self.still = qk_norm, still
        self.heads, self.kv_heads, self.head_dim, self.tied, self.qkv_bias = heads, kv_heads, head_dim, tied, qkv_bias
        rng = np.random.default_rng(seed)
        self.tokens, self.targets = (rng.integers(VOCAB, size=(BATCH, CONTEXT), dtype=np.uint32) for _ in range(2))
        self.codes, self.scales, self.vectors = {}, {}, {}
        for name, (rows, cols, std) in self.matrix_shapes().items():
            self.scales[name] = (2.5 * std * rng.uniform(0.7, 1.3, rows)).astype(np.float32)
            ideal = rng.normal(0, std, (rows, cols)) / self.scales[name][:, None]
            self.codes[name] = np.abs(ideal[:, :, None] - GRID).argmin(2).astype(np.uint8)
        for name, (size, centre) in self.vector_shapes().items():
            self.vectors[name] = (centre + 0.1 * rng.normal(size=size)).astype(np.float32)
        common = dict(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=FF_WIDTH, num_hidden_layers=LAYERS,
                      num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=CONTEXT,
                      rms_norm_eps=NORM_EPS, tie_word_embeddings=tied, attn_implementation="eager",
                      rope_parameters=(scaling or dict(rope_type="default")) | dict(rope_theta=THETA))
        if qkv_bias:
            config = transformers.Qwen2Config(**common)
            self.theirs = transformers.Qwen2ForCausalLM(config)
        elif qk_norm:
            self.theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(head_dim=head_dim, **common))
        elif still:
            turns = [int(n not in still) for n in range(LAYERS)]
            self.theirs = transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(no_rope_layers=turns, pad_token_id=None, **common))
        else:
            config = transformers.LlamaConfig(head_dim=head_dim, **common)
            self.theirs = transformers.LlamaForCausalLM(config)
        # In float64: transformers keeps them in float32.
        self.frequencies = THETA ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        if scaling:
            self.frequencies = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].double()

    def matrix_shapes(self):
        """Rows, columns and standard deviation of every matrix."""
        std, q_width = WIDTH ** -0.5, self.heads * self.head_dim
        shapes = {"tok_embedding": (VOCAB, WIDTH, 0.5)}
        for n in range(LAYERS):
            block = f"blocks.{n}"
            shapes |= {f"{block}.qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, WIDTH, 1.5 * std),
                       f"{block}.attention_out": (WIDTH, q_width, q_width ** -0.5),
                       f"{block}.up": (2 * FF_WIDTH, WIDTH, 1.5 * std), f"{block}.down": (WIDTH, FF_WIDTH, 1.5 * FF_WIDTH ** -0.5)}
        return shapes if self.tied else shapes | {"head": (VOCAB, WIDTH, std)}

    def vector_shapes(self):
        """Length and centre of every vector."""
        shapes = {f"blocks.{n}.norm{i}.weight": (WIDTH, 1.0) for n in range(LAYERS) for i in (1, 2)}
        shapes["norm.weight"] = (WIDTH, 1.0)
        if self.qk_norm:
            shapes |= {f"blocks.{n}.{part}_norm.weight": (self.head_dim, 1.0) for n in range(LAYERS) for part in ("query", "key")}
        if self.qkv_bias:
            shapes |= {f"blocks.{n}.qkv.bias": ((self.heads + 2 * self.kv_heads) * self.head_dim, 0.0) for n in range(LAYERS)}
        return shapes

    def dump(self):
        scale = {n: torch.tensor(s, dtype=torch.float64) for n, s in self.scales.items()}
        dense = {n: (scale[n][:, None] * torch.tensor(GRID[c], dtype=torch.float64)).requires_grad_() for n, c in self.codes.items()}
        vector = {n: torch.tensor(v, dtype=torch.float64).requires_grad_() for n, v in self.vectors.items()}
        ids, wanted = torch.tensor(self.tokens.astype(np.int64)), torch.tensor(self.targets.astype(np.int64))

        def loss_of(logits):
            return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())

        logits = self.forward(dense, vector, ids)
        loss = loss_of(logits)
        loss.backward()
        self.compare_with_transformers(dense, vector, ids, logits)
        check_by_differences(dense, vector, lambda: loss_of(self.forward(dense, vector, ids)))
        tensors = {"tokens": self.tokens, "targets": self.targets, "loss": np.array([loss.item()]), "logits": f32(logits[0])}
        for name, weight in dense.items():
            row_grad = (weight.grad * torch.tensor(GRID[self.codes[name]], dtype=torch.float64)).sum(1)
            tensors |= {f"{name}.codes": self.codes[name], f"{name}.scales": self.scales[name],
                        f"{name}.grad": f32(weight.grad), f"{name}.scales.grad": f32(row_grad)}
        for name, value in vector.items():
            tensors |= {name: self.vectors[name], f"{name}.grad": f32(value.grad)}
        return tensors

    def forward(self, dense, vector, ids):
        def norm(x, name):
            return x * (x.pow(2).mean(-1, keepdim=True) + NORM_EPS).rsqrt() * vector[f"{name}.weight"]

        def linear(x, name):
            return F.linear(x, dense[name], vector.get(f"{name}.bias"))

        batch, time = ids.shape
        angles = torch.arange(time, dtype=torch.float64)[:, None] * self.frequencies

        def turn(x):
            re, im = x.chunk(2, -1)
            return torch.cat([re * angles.cos() - im * angles.sin(), im * angles.cos() + re * angles.sin()], -1)

        later = torch.ones(time, time, dtype=torch.bool).triu(1)
        heads, kv_heads = self.heads, self.kv_heads
        x = dense["tok_embedding"][ids]
        for n in range(LAYERS):
            block = f"blocks.{n}"
            qkv = linear(norm(x, f"{block}.norm1"), f"{block}.qkv").view(batch, time, heads + 2 * kv_heads, self.head_dim)
            q, k, v = qkv.transpose(1, 2).split([heads, kv_heads, kv_heads], 1)
            if self.qk_norm:
                q, k = norm(q, f"{block}.query_norm"), norm(k, f"{block}.key_norm")
            if n not in self.still:
                q, k = turn(q), turn(k)
            k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
            scores = (q @ k.transpose(-1, -2) * self.head_dim ** -0.5).masked_fill(later, float("-inf"))
            x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{block}.attention_out")
            gate, up = linear(norm(x, f"{block}.norm2"), f"{block}.up").chunk(2, -1)
            x = x + linear(F.silu(gate) * up, f"{block}.down")
        return F.linear(norm(x, "norm"), dense.get("head", dense["tok_embedding"]))

    def compare_with_transformers(self, dense, vector, ids, logits):
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        state = {"model.embed_tokens.weight": dense["tok_embedding"], "model.norm.weight": vector["norm.weight"],
                 "lm_head.weight": dense.get("head", dense["tok_embedding"])}
        for n in range(LAYERS):
            ours, theirs = f"blocks.{n}", f"model.layers.{n}"
            state |= {f"{theirs}.{part}_layernorm.weight": vector[f"{ours}.norm{i}.weight"] for i, part in ((1, "input"), (2, "post_attention"))}
            for kind, source in (("weight", dense.get(f"{ours}.qkv")), ("bias", vector.get(f"{ours}.qkv.bias"))):
                if source is not None:
                    state |= {f"{theirs}.self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", source.split([q, kv, kv]))}
            if self.qk_norm:
                state |= {f"{theirs}.self_attn.{p[0]}_norm.weight": vector[f"{ours}.{p}_norm.weight"] for p in ("query", "key")}
            gate, up = dense[f"{ours}.up"].chunk(2)
            state |= {f"{theirs}.self_attn.o_proj.weight": dense[f"{ours}.attention_out"], f"{theirs}.mlp.gate_proj.weight": gate,
                      f"{theirs}.mlp.up_proj.weight": up, f"{theirs}.mlp.down_proj.weight": dense[f"{ours}.down"]}
        model = self.theirs.double().eval()
        model.load_state_dict({name: value.detach() for name, value in state.items()})
        with torch.no_grad():
            difference = (model(ids).logits - logits).abs().max() / logits.abs().max()
        print(f"largest difference from transformers: {difference:.1e} of the largest logit")
        if difference > 1e-5:
            raise SystemExit("the logits differ from those of transformers")


def check_by_differences(dense, vector, loss, step=1e-5):
    """The gradient along a random direction of each parameter agrees with a central difference."""
    rng = torch.Generator().manual_seed(3)
    for name, value in (dense | vector).items():
        direction = torch.randn(value.shape, generator=rng, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                value += sign * step * direction
                losses.append(loss().item())
                value -= sign * step * direction
        numeric, exact = (losses[0] - losses[1]) / (2 * step), (value.grad * direction).sum().item()
        if abs(numeric - exact) > 1e-6 * max(1.0, abs(exact)):
            raise SystemExit(f"{name}: difference {numeric}, gradient {exact}")


if __name__ == "__main__":
    main()
