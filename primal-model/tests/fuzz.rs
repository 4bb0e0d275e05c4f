//! Everything that reads a file from outside, fed with damaged files: an error or a value, never a
//! panic. A few thousand cases here; `cargo xtask fuzz --seconds N` goes on for as long as wanted.
//!
//! Mutations of sound seeds: bits, bytes, stretches cut, doubled and moved, numbers and words from a
//! list. A case that panics is written to a file that the message names.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use primal_lut::{Grid, QuantMatrix, TensorFile, TensorFileWriter};
use primal_model::checkpoint::Checkpoint;
use primal_model::config::Config;
use primal_model::data::Documents;
use primal_model::metrics::MetricsReader;
use primal_model::tokenizer::Tokenizer;

/// Cases of a target where no time is given.
const CASES: u64 = 300;

/// What breaks parsers: numbers at the edges of types, brackets, words of our formats.
const WORDS: [&str; 28] = [
    "0",
    "-1",
    "255",
    "256",
    "65536",
    "4294967295",
    "18446744073709551615",
    "1e999",
    "-0.0",
    "nan",
    "null",
    "true",
    "\"",
    "\\u0000",
    "\\ud800",
    "[",
    "]",
    "{",
    "}",
    "[[[[[[[[",
    "{\"a\":",
    ",",
    ":",
    "\n",
    "\r\n",
    "\u{feff}",
    "\0",
    "é",
];

struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    read: fn(&Path, &[u8]),
}

fn targets() -> Vec<Target> {
    vec![
        Target {
            name: "tensor file",
            seeds: vec![tensors(&Grid::prime()), tensors(&Grid::fine())],
            read: read_tensors,
        },
        Target {
            name: "configuration",
            seeds: ["small", "ghost-0.1b", "shakespeare-char"]
                .map(|name| {
                    Config::preset(name)
                        .unwrap()
                        .to_toml()
                        .unwrap()
                        .into_bytes()
                })
                .to_vec(),
            read: read_config,
        },
        Target {
            name: "tokenizer.json",
            seeds: vec![hugging_face_tokenizer()],
            read: read_tokenizer,
        },
        Target {
            name: "our tokenizer",
            seeds: vec![our_tokenizer()],
            read: read_our_tokenizer,
        },
        Target {
            name: "JSON lines",
            seeds: vec![
                b"{\"text\": \"one\"}\n{\"id\": [1, 2], \"text\": \"tw\\u00f6\"}\n".to_vec(),
            ],
            read: read_json_lines,
        },
        Target {
            name: "text",
            seeds: vec!["plain text, größer als nötig\n".repeat(3).into_bytes()],
            read: read_text,
        },
        Target {
            name: "metrics",
            seeds: vec![metrics()],
            read: read_metrics,
        },
        Target {
            name: "state.json",
            seeds: vec![state()],
            read: read_state,
        },
    ]
}

fn tensors(grid: &Grid) -> Vec<u8> {
    let matrix = QuantMatrix::zeros(grid, 3, 5, 5).unwrap();
    let mut writer = TensorFileWriter::new();
    writer
        .quant("w", &matrix)
        .f32("b", &[2, 2], &[1.0, 2.0, 3.0, f32::NAN]);
    writer
        .i8("votes", &[3], &[1, -1, 127])
        .metadata("note", "kept");
    writer.to_bytes().unwrap()
}

fn hugging_face_tokenizer() -> Vec<u8> {
    br###"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"<unk>",
"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"NFC"},
"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"vocab":{"<unk>":0,"a":1,"b":2,"ab":3,"c":4,"abc":5},"merges":["a b","ab c"]}}"###
        .to_vec()
}

fn our_tokenizer() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::from_spec("chars", ["some text"]).unwrap();
    tokenizer.save(folder.path()).unwrap();
    fs::read(folder.path().join("primal_tokenizer.json")).unwrap()
}

fn metrics() -> Vec<u8> {
    br#"{"step":1,"tokens":8,"train_loss":2.5,"tokens_per_s":9.0,"flip_rate":0.1,"lr":0.1,"peak_rss_bytes":5}
{"step":1,"val_loss":2.0,"bits_per_byte":3.0,"rss_bytes":4,"open_descriptors":5}
{"event":"layer","step":1,"layer":"blocks.0","grid":"prime15","weights":8,"flip_rate":0.5,"code_counts":[8],"ballot_counts":[],"ballot_saturated":0.0}
{"event":"skipped","step":2,"total":1}
"#
    .to_vec()
}

fn state() -> Vec<u8> {
    br#"{"format_version":1,"step":4,"tokens":64,"skipped_steps":0,"seconds":1.5,"data_fingerprint":"ab","vocab":9,
"files":{"model.safetensors":"00","optim.safetensors":"00","config.resolved.toml":"00"}}"#
        .to_vec()
}

fn read_tensors(_: &Path, bytes: &[u8]) {
    if let Ok(file) = TensorFile::from_bytes(bytes.to_vec()) {
        let names: Vec<&str> = file.names().chain(file.quant_names()).collect();
        for name in names {
            let _ = file.quant(name).map(|matrix| matrix.dequantise());
            if let Ok(shape) = file.shape(name) {
                let _ = (file.f32(name, shape), file.i8(name, shape));
            }
        }
    }
}

fn read_config(_: &Path, bytes: &[u8]) {
    if let Ok(config) = Config::from_toml(&String::from_utf8_lossy(bytes)) {
        let _ = config.validate().map(|()| config.to_toml());
    }
}

fn read_tokenizer(folder: &Path, bytes: &[u8]) {
    let path = folder.join("tokenizer.json");
    fs::write(&path, bytes).unwrap();
    if let Ok(tokenizer) = Tokenizer::from_spec(&path.to_string_lossy(), []) {
        use_tokenizer(&tokenizer);
    }
}

fn read_our_tokenizer(folder: &Path, bytes: &[u8]) {
    fs::write(folder.join("primal_tokenizer.json"), bytes).unwrap();
    if let Ok(tokenizer) = Tokenizer::load(folder) {
        use_tokenizer(&tokenizer);
    }
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in ["abc cab", "", "é\u{1f600}"] {
        let _ = tokenizer.encode(text).map(|ids| tokenizer.decode(&ids));
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    let _ = (tokenizer.vocab_size(), tokenizer.end_of_text());
}

fn read_json_lines(folder: &Path, bytes: &[u8]) {
    let path = folder.join("a.jsonl");
    fs::write(&path, bytes).unwrap();
    let _ = Documents::read(&[path], "text");
}

fn read_text(folder: &Path, bytes: &[u8]) {
    let path = folder.join("a.txt");
    fs::write(&path, bytes).unwrap();
    if let Ok(mut documents) = Documents::read(&[path], "text") {
        documents.split_off_tail(0.1);
    }
}

fn read_metrics(folder: &Path, bytes: &[u8]) {
    fs::write(folder.join("metrics.jsonl"), bytes).unwrap();
    let mut reader = MetricsReader::new(folder);
    reader.poll().unwrap();
    let _ = reader.record().newest_layers();
}

fn read_state(folder: &Path, bytes: &[u8]) {
    fs::write(folder.join("state.json"), bytes).unwrap();
    // No seal, so that what is wrong is met and not only noticed.
    fs::write(folder.join("DONE"), "").unwrap();
    let _ = Checkpoint::open(folder);
}

/// Random numbers from a seed (SplitMix64, Steele and others 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }

    /// A stretch of at most 16 bytes.
    fn stretch(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        start..(start + self.below(17)).min(len)
    }
}

fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        let len = bytes.len();
        let at = random.below(len + 1);
        match random.below(7) {
            0 if at < len => bytes[at] ^= 1 << random.below(8),
            1 if at < len => bytes[at] = random.below(256) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(random.stretch(len))),
            4 => {
                let copy = bytes[random.stretch(len)].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let word = WORDS[random.below(WORDS.len())].bytes();
                bytes.splice(at..at, word);
            }
            _ => {
                // A number or name replaced as a whole keeps the rest well formed.
                let ends = |byte: &u8| !byte.is_ascii_alphanumeric();
                let start = bytes[..at].iter().rposition(ends).map_or(0, |it| it + 1);
                let end = bytes[at..].iter().position(ends).map_or(len, |it| at + it);
                let word = WORDS[random.below(WORDS.len())].bytes();
                bytes.splice(start..end, word);
            }
        }
    }
    bytes
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let seconds = std::env::var("PRIMAL_FUZZ_SECONDS").ok();
    let seconds = seconds.map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
    let folder = tempfile::tempdir().unwrap();
    println!("| target | cases | seconds | panics |");
    println!("|---|---|---|---|");
    let mut crashes: Vec<PathBuf> = Vec::new();
    for target in targets() {
        let place = folder.path().join(target.name);
        fs::create_dir(&place).unwrap();
        for seed in &target.seeds {
            (target.read)(&place, seed);
        }
        let started = Instant::now();
        let mut cases = 0;
        let mut panics = 0;
        while seconds.map_or(cases < CASES, |seconds| started.elapsed() < seconds) {
            // Every case is a function of its number.
            let mut random = Random(cases);
            let seed = &target.seeds[random.below(target.seeds.len())];
            let bytes = mutate(seed, &mut random);
            if catch_unwind(AssertUnwindSafe(|| (target.read)(&place, &bytes))).is_err() {
                let path = std::env::temp_dir().join(format!("fuzz-{}-{cases}", target.name));
                fs::write(&path, &bytes).unwrap();
                crashes.push(path);
                panics += 1;
            }
            cases += 1;
        }
        let taken = started.elapsed().as_secs_f64();
        println!("| {} | {cases} | {taken:.1} | {panics} |", target.name);
    }
    assert!(crashes.is_empty(), "{crashes:?}");
}
