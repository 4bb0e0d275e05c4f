"""A tiny random model of every family that is read, as `transformers` saves it and as a GGUF file,
with what `transformers` finds for it.

pip install torch transformers safetensors tokenizers gguf numpy
python family_golden.py --out ../../primal-model/tests/golden

A folder a family below `families`: `config.json`, `model.safetensors` (bfloat16), `model.gguf` where llama.cpp has
the architecture, and `expected.safetensors`: `tokens` (T) as float32, `loss` (1), the mean over
the text, and `logits` (8, V) of its last tokens, in float64 from the stored weights, rounded to
float32. The tokenizer is that of `hf_golden.py`. `cases` is one Llama, whose `cases.json` changes
keys of its `config.json`; `expected.safetensors` holds `NAME.loss` and `NAME.logits` of each.
"""

import argparse
import copy
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers as hf
from gpt_golden import write
from hf_golden import TEXT, tokenizer
from safetensors.torch import load_file, save_file

# How a GGUF file names, turns and describes a family: architecture, whether queries and keys are
# stored in neighbouring pairs, whether `transformers` stores them so already, more keys.
LLAMA = dict(arch="llama", pairs=True)
ROWS = 8


def sizes(**more):
    return dict(dict(vocab_size=288, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                     initializer_range=0.3, rms_norm_eps=1e-5, eos_token_id=0, bos_token_id=0,
                     pad_token_id=0, tie_word_embeddings=True), **more)


def families():
    llama3 = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0,
                  high_freq_factor=4.0, original_max_position_embeddings=8192)
    long = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.25, 1.5],
                long_factor=[2.0, 3.0, 4.0])
    granite = dict(attention_multiplier=0.7, residual_multiplier=0.6, embedding_multiplier=3.0,
                   logits_scaling=2.5)
    return {
        "llama3": (hf.LlamaConfig(**sizes(head_dim=16, max_position_embeddings=131072,
                                          rope_parameters=llama3)), LLAMA),
        "ministral": (hf.MinistralConfig(**sizes(head_dim=8)), None),
        "qwen3": (hf.Qwen3Config(**sizes(head_dim=8)), dict(arch="qwen3")),
        "granite": (hf.GraniteConfig(**sizes(**granite)), dict(arch="granite", pairs=True)),
        "granite_untied": (hf.GraniteConfig(**sizes(tie_word_embeddings=False, **granite)),
                           dict(arch="granite", pairs=True)),
        "ernie4_5": (hf.Ernie4_5Config(**sizes(head_dim=8, use_bias=False)),
                     dict(arch="ernie4_5", stored_in_pairs=True)),
        "helium": (hf.HeliumConfig(**sizes(head_dim=4)), None),
        "seed_oss": (hf.SeedOssConfig(**sizes(head_dim=8, attention_bias=True,
                                              attention_out_bias=False, tie_word_embeddings=False)),
                     dict(arch="seed_oss", norm2="post_attention_norm")),
        "phi3": (hf.Phi3Config(**sizes(tie_word_embeddings=False)), dict(arch="phi3")),
        "phi4_mini": (hf.Phi3Config(**sizes(num_attention_heads=2, num_key_value_heads=1,
                                            partial_rotary_factor=0.75, rope_parameters=long,
                                            original_max_position_embeddings=48)),
                      dict(arch="phi3")),
        "smollm3": (hf.SmolLM3Config(**sizes(num_hidden_layers=4, no_rope_layer_interval=4)),
                    dict(arch="smollm3", pairs=True)),
    }


def shake(model):
    """Norms of exactly one and biases of zero would hide what is mixed up."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn(parameter.shape) * 0.2


def found(model, tokens):
    with torch.no_grad():
        logits = model.double().eval()(tokens[None]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:])
    return loss.reshape(1).float(), logits[-ROWS:].float().contiguous()


def build(config):
    return hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager",
                                               dtype=torch.float32)


def to_pairs(weight, heads):
    """As llama.cpp's converter orders queries and keys: rows i and i + D/2 of a head side by side."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, config, tensors, made, arch, pairs=False, stored_in_pairs=False, norm2=None):
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, arch)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    turned = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(turned)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if rope["rope_type"] == "longrope":
        original = config.original_max_position_embeddings
        factor = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(
            float(np.sqrt(1 + np.log(factor) / np.log(original))))
        for part in ["long", "short"]:
            writer.add_tensor(f"rope_factors_{part}.weight",
                              np.array(rope[f"{part}_factor"], dtype=np.float32))
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, turned))
    vocabulary = made.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece == "<|endoftext|>" else 1 for piece in pieces])
    merges = json.loads(made.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, weight in tensors.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        base, end = name.rsplit(".", 1)
        where = f"{names.get_name(base)}.{end}"
        if norm2 and ".post_attention_layernorm." in name:
            layer = name.split(".")[2]
            where = f"blk.{layer}.{norm2}.weight"
        value = weight.float().numpy()
        for part, heads in [("q_proj", config.num_attention_heads),
                            ("k_proj", config.num_key_value_heads)]:
            if pairs and part in name:
                value = to_pairs(value, heads)
        if value.ndim == 1:
            writer.add_tensor(where, value)
        else:
            raw = gguf.quants.quantize(np.ascontiguousarray(value), gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(where, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_factors(rope, dim):
    frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    waves, original = 2 * np.pi / frequencies, rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    return (1 / (smooth + (1 - smooth) / rope["factor"])).astype(np.float32)


def cases():
    yarn = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                original_max_position_embeddings=4096)
    return {
        "plain": dict(rope_type="default", rope_theta=10000.0),
        "yarn": yarn,
        "yarn_truncate": dict(yarn, truncate=False),
        "yarn_betas": dict(yarn, beta_fast=4, beta_slow=0.5),
        "yarn_attention_factor": dict(yarn, attention_factor=1.4),
        "yarn_mscale": dict(yarn, mscale=0.7, mscale_all_dim=1.3),
        "yarn_mscale_alone": dict(yarn, mscale=0.7),
        "linear": dict(rope_type="linear", rope_theta=10000.0, factor=4.0),
        "longrope": dict(rope_type="longrope", rope_theta=10000.0, factor=2.0,
                         short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 1.1, 1.2, 1.3],
                         original_max_position_embeddings=32),
    }


def write_cases(out, tokens):
    torch.manual_seed(12)
    config = hf.LlamaConfig(**sizes(head_dim=8))
    model = build(config)
    shake(model)
    model.bfloat16().save_pretrained(out)
    # A head of its own in the file, beside a configuration that ties it.
    tensors = load_file(out / "model.safetensors")
    head = torch.randn(288, 16).bfloat16() * 0.3
    save_file(dict(tensors, **{"lm_head.weight": head}), str(out / "untied.safetensors"))
    expected = {}
    for name, rope in cases().items():
        changed = copy.deepcopy(config)
        changed.rope_parameters = rope
        again = build(changed)
        again.load_state_dict(tensors, strict=False)
        again.tie_weights()
        expected[f"{name}.loss"], expected[f"{name}.logits"] = found(again, tokens)
    config.tie_word_embeddings = False
    again = build(config)
    again.load_state_dict(dict(tensors, **{"lm_head.weight": head}), strict=True)
    expected["untied.loss"], expected["untied.logits"] = found(again, tokens)
    expected["tokens"] = tokens.float()
    save_file(expected, str(out / "expected.safetensors"))
    (out / "cases.json").write_text(json.dumps(cases(), indent=1) + "\n")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    golden = arguments.parse_args().out
    out = golden / "families"
    made = tokenizer()
    tokens = torch.tensor(made.encode(" ".join(TEXT)).ids)
    for name, (config, form) in families().items():
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(11)
        model = build(config)
        shake(model)
        model.bfloat16().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tensors = load_file(folder / "model.safetensors")
        if form:
            write_gguf(folder / "model.gguf", config, tensors, made, **form)
        # A model of its own: the rounding to bfloat16 has touched the frequencies of this one.
        again = build(config)
        again.load_state_dict(tensors, strict=False)
        again.tie_weights()
        loss, logits = found(again, tokens)
        save_file({"tokens": tokens.float(), "loss": loss, "logits": logits},
                  str(folder / "expected.safetensors"))
        print(name, round(loss.item(), 5), sum(f.stat().st_size for f in folder.iterdir()), "bytes")
    folder = out / "cases"
    shutil.rmtree(folder, ignore_errors=True)
    write_cases(folder, tokens)
    (folder / "generation_config.json").unlink(missing_ok=True)
    how = f"transformers {hf.__version__}, the `gguf` package 0.19.0, float64 on the CPU"
    for file in sorted(out.rglob("*.*")):
        write(golden, str(file.relative_to(golden)), file.read_bytes(), "family_golden.py", how)


if __name__ == "__main__":
    main()
