"""Tiny random models saved by the `transformers` library, and the logits it finds for them.

pip install torch transformers safetensors tokenizers numpy
python hf_golden.py --out ../../primal-model/tests/golden

Folders `hf_llama` (grouped queries, two shards, bfloat16), `hf_qwen2` (biases, tied head) and
`hf_gpt2` as `save_pretrained` writes them, each with `expected.safetensors`: `tokens` (T) as
float32 and `logits` (T, V) of the stored weights in float64, rounded to float32.
"""

import argparse
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM)

TEXT = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"]


def tokenizer():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=288, special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return made


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    out = arguments.parse_args().out
    made = tokenizer()
    vocab = made.get_vocab_size()
    llama = dict(vocab_size=vocab, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                 initializer_range=0.3, rms_norm_eps=1e-5, eos_token_id=0, bos_token_id=0)
    torch.manual_seed(11)
    built = {
        "hf_llama": LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **llama)).bfloat16(),
        "hf_qwen2": Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **llama)),
        "hf_gpt2": GPT2LMHeadModel(GPT2Config(
            vocab_size=vocab, n_positions=64, n_embd=16, n_layer=2, n_head=2,
            initializer_range=0.3, eos_token_id=0, bos_token_id=0)),
    }
    tokens = torch.tensor(made.encode(" ".join(TEXT)).ids)
    for name, model in built.items():
        for parameter_name, parameter in model.named_parameters():
            # Norms of exactly one and biases of zero would hide what is mixed up.
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape) * 0.2
                parameter.data += noise.to(parameter.dtype)
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size="20KB" if name == "hf_llama" else "1GB")
        made.save(str(folder / "tokenizer.json"))
        with torch.no_grad():
            logits = model.double().eval()(tokens[None]).logits[0]
        save_file({"tokens": tokens.float(), "logits": logits.float()},
                  str(folder / "expected.safetensors"))
        print(name, sorted((f.name, f.stat().st_size) for f in folder.iterdir()))


if __name__ == "__main__":
    main()
