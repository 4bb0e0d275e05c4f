#!/usr/bin/env python3
"""Do exports continue a text as our model does? Greedy tokens of `primal generate --compute float`, `transformers` and llama.cpp.

  pip install transformers torch llama-cpp-python gguf numpy     (two environments will do: see --llama-python)
  python export_check.py --primal target/release/primal --model DIR --work DIR [--prompt TEXT] [-n 64]
Exports the model as a Hugging Face folder and as GGUF (float32 unless --type says otherwise), lets each tool write n tokens after the prompt at
temperature 0, and compares the texts; what int8, the default, writes is shown beside. Exit status 1 if one of the float texts differs.
"""
import argparse
import json
import pathlib
import subprocess
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--primal", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--type", default="f32", help="of the exports; f16 rounds values, which may turn a close choice")
    parser.add_argument("--llama-python", default=sys.executable, help="the Python that has llama-cpp-python")
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    args.work.mkdir(parents=True, exist_ok=True)
    folder, file = args.work / "hf", args.work / "model.gguf"
    for to, out in (("hf", folder), ("gguf", file)):
        if not out.exists():
            subprocess.run([args.primal, "export", "--model", args.model, "--to", to, "--type", args.type, "--out", out], check=True)

    def write(compute):
        command = [args.primal, "generate", "--model", args.model, "-p", args.prompt, "-n", str(args.n), "--temperature", "0",
                   "--compute", compute, "--json"]
        text = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["text"]
        return text.removeprefix(args.prompt)

    ours, int8 = write("float"), write("int8")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    ids = tokenizer(args.prompt, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, max_new_tokens=args.n, do_sample=False)
    theirs = {"transformers": tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)}

    script = pathlib.Path(__file__).with_name("llama_cpp_perplexity.py")
    command = [args.llama_python, script, "greedy", file, "--prompt", args.prompt, "-n", str(args.n)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    theirs["llama.cpp"] = tokenizer.decode(json.loads(found), skip_special_tokens=True)

    print("ours         ", json.dumps(ours))
    for name, text in (theirs | {"ours in int8": int8}).items():
        print(f"{name:<13}", "the same" if text == ours else json.dumps(text))
    sys.exit(any(text != ours for text in theirs.values()))


if __name__ == "__main__":
    main()
