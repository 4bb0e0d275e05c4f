//! Everything that reads a file from outside, fed with damaged files: an error or a value, never a
//! panic, and no more memory than a file of that size explains. A few thousand cases here;
//! `cargo xtask fuzz --seconds N` goes on for as long as wanted.
//!
//! Mutations of sound seeds: bits, bytes, stretches cut, doubled and moved, numbers and words from a
//! list. A case that panics or takes too much is written to a file that the message names. The file
//! of a case that ends the process is still in the folder that is named at the start.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use primal_kernels::{CountingAllocator, Isa};
use primal_lut::{Grid, QuantMatrix, TensorFile, TensorFileWriter};
use primal_model::chat::{ChatTemplate, Message};
use primal_model::checkpoint::Checkpoint;
use primal_model::config::{Compute, Config, DataConfig};
use primal_model::data::{Dataset, Documents};
use primal_model::export::{ExportFormat, export};
use primal_model::foreign::ForeignModel;
use primal_model::foreign::gguf::{GgufFile, TensorType};
use primal_model::foreign::names::{Parameter, parameters};
use primal_model::foreign::safetensors::SafetensorsFile;
use primal_model::import::{ImportOptions, import};
use primal_model::metrics::MetricsReader;
use primal_model::tokenizer::Tokenizer;
use primal_model::voice::{FrontEnd, Voice, read_corpus};
use primal_vocoder::{Generator, VocoderConfig, Weights, read_mel, read_wav, resample, wav_bytes};
use sha2::{Digest, Sha256};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// Cases of a target where no time is given.
const CASES: u64 = 300;

/// Most bytes that reading a case may hold at once: the files are below a megabyte.
const MOST_BYTES: u64 = 256 << 20;

/// Longest time of a case, on a machine that does other things besides.
const LONGEST: Duration = Duration::from_secs(20);

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

/// What lengths and counts might be, little-endian.
const NUMBERS: [u64; 8] = [0, 1, 255, 65_535, 1 << 31, 1 << 32, 1 << 63, u64::MAX];

/// A kind of file.
struct Target {
    name: &'static str,
    /// The file that is damaged, in a folder of its own.
    file: &'static str,
    seeds: Vec<Vec<u8>>,
    /// Sound files beside it.
    beside: Vec<(String, Vec<u8>)>,
    /// Reads the file, or its folder, and uses what comes out; whether it was read.
    read: fn(&Path) -> bool,
}

impl Target {
    fn new(
        name: &'static str,
        file: &'static str,
        seeds: Vec<Vec<u8>>,
        read: fn(&Path) -> bool,
    ) -> Self {
        let beside = Vec::new();
        Target {
            name,
            file,
            seeds,
            beside,
            read,
        }
    }

    /// One of the files of `folder` is damaged.
    fn of_folder(
        name: &'static str,
        file: &'static str,
        folder: &[(String, Vec<u8>)],
        read: fn(&Path) -> bool,
    ) -> Self {
        let (damaged, beside): (Vec<_>, Vec<_>) =
            folder.iter().cloned().partition(|(name, _)| name == file);
        let seeds = damaged.into_iter().map(|(_, bytes)| bytes).collect();
        Target {
            beside,
            ..Target::new(name, file, seeds, read)
        }
    }
}

fn targets(place: &Path) -> Vec<Target> {
    let (llama, checkpoint, gguf) = models(place);
    let presets = ["small", "ghost-0.1b", "shakespeare-char"].map(|name| {
        Config::preset(name)
            .unwrap()
            .to_toml()
            .unwrap()
            .into_bytes()
    });
    let of_llama = |name, file, read| Target::of_folder(name, file, &llama, read);
    let of_checkpoint = |name, file, read| Target::of_folder(name, file, &checkpoint, read);
    let voice = files(&repository("primal-model/assets/voice"));
    let vocoder = files(&repository("primal-vocoder/tests/golden"));
    let golden = |name: &str| {
        vocoder
            .iter()
            .find(|file| file.0 == name)
            .unwrap()
            .1
            .clone()
    };
    let vocoder_config = serde_json::to_vec(&tiny_vocoder()).unwrap();
    let mut tiny = vec![
        ("config.json".to_owned(), vocoder_config.clone()),
        ("generator.ckpt".to_owned(), golden("tiny_official.pth")),
    ];
    vec![
        Target::new(
            "tensor file",
            "t.safetensors",
            vec![tensors(&Grid::prime()), tensors(&Grid::fine())],
            read_tensors,
        ),
        Target::new("configuration", "c.toml", presets.to_vec(), read_config),
        Target::new(
            "tokenizer.json",
            "tokenizer.json",
            vec![hugging_face_tokenizer()],
            read_tokenizer,
        ),
        Target::new(
            "our tokenizer",
            "primal_tokenizer.json",
            vec![our_tokenizer()],
            read_our_tokenizer,
        ),
        Target::new(
            "JSON lines",
            "a.jsonl",
            vec![b"{\"text\": \"one\"}\n{\"id\": [1, 2], \"text\": \"tw\\u00f6\"}\n".to_vec()],
            read_documents,
        ),
        Target::new(
            "text",
            "a.txt",
            vec!["plain text, größer als nötig\n".repeat(3).into_bytes()],
            read_documents,
        ),
        Target::new(
            "conversations",
            "chats.jsonl",
            vec![conversations()],
            read_conversations,
        ),
        Target::new("metrics", "metrics.jsonl", vec![metrics()], read_metrics),
        of_checkpoint("checkpoint: state", "state.json", read_checkpoint),
        of_checkpoint("checkpoint: weights", "model.safetensors", read_checkpoint),
        of_checkpoint(
            "checkpoint: configuration",
            "config.resolved.toml",
            read_checkpoint,
        ),
        of_llama(
            "Hugging Face: config.json",
            "config.json",
            read_foreign_folder,
        ),
        of_llama(
            "Hugging Face: index",
            "model.safetensors.index.json",
            read_foreign_folder,
        ),
        of_llama(
            "Hugging Face: weights",
            "model-00002-of-00002.safetensors",
            read_foreign_folder,
        ),
        of_llama(
            "Hugging Face: chat template",
            "tokenizer_config.json",
            read_chat_template,
        ),
        Target::new(
            "safetensors",
            "a.safetensors",
            vec![safetensors()],
            read_safetensors,
        ),
        Target::new(
            "GGUF",
            "a.gguf",
            vec![
                gguf,
                fs::read(repository("primal-model/tests/golden/blocks.gguf")).unwrap(),
            ],
            read_gguf,
        ),
        Target::new("WAV", "a.wav", sounds(), read_sound),
        Target::new(
            "mel spectrogram",
            "a.safetensors",
            vec![mel()],
            read_spectrogram,
        ),
        Target::of_folder("vocoder: config.json", "config.json", &tiny, read_vocoder),
        Target::of_folder("vocoder: PyTorch", "generator.ckpt", &tiny, read_vocoder),
        Target::new(
            "vocoder: SpeechBrain",
            "generator.ckpt",
            vec![golden("tiny_speechbrain.ckpt")],
            read_vocoder_weights,
        ),
        Target::new(
            "vocoder: pickle",
            "generator.ckpt",
            vec![legacy_pickle()],
            read_vocoder_weights,
        ),
        {
            let weights = Weights::random(&tiny_vocoder(), 1).unwrap();
            let path = place.join("vocoder.safetensors");
            weights.write(&path).unwrap();
            tiny[1] = ("generator.safetensors".to_owned(), fs::read(path).unwrap());
            Target::of_folder(
                "vocoder: safetensors",
                "generator.safetensors",
                &tiny,
                read_vocoder,
            )
        },
        Target::of_folder(
            "voice: configuration",
            "config.resolved.toml",
            &voice,
            read_voice,
        ),
        Target::of_folder("voice: weights", "model.safetensors", &voice, read_voice),
        Target::of_folder(
            "corpus: alignment",
            "alignment.jsonl",
            &corpus(),
            read_voice_corpus,
        ),
        Target::of_folder(
            "corpus: metadata",
            "metadata.csv",
            &corpus(),
            read_voice_corpus,
        ),
        Target::new(
            "text to speak",
            "a.txt",
            vec!["In 1999, Dr. Smith paid $5.20 (3/4) at 10:30; {S OW1} x^2!".into()],
            read_speech,
        ),
    ]
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The files of a folder by name.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

type Files = Vec<(String, Vec<u8>)>;

/// A tiny Llama: its Hugging Face folder, a checkpoint made of it, and its GGUF file.
fn models(place: &Path) -> (Files, Files, Vec<u8>) {
    let golden = repository("primal-model/tests/golden/hf_llama");
    let mut llama = files(&golden);
    llama.retain(|(name, _)| name != "expected.safetensors");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}\
                    {% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}";
    let settings = serde_json::json!({
        "chat_template": template, "bos_token": "<s>", "eos_token": { "content": "</s>" },
    });
    llama.push((
        "tokenizer_config.json".to_owned(),
        settings.to_string().into_bytes(),
    ));
    let from = place.join("llama");
    fs::create_dir(&from).unwrap();
    for (name, bytes) in &llama {
        fs::write(from.join(name), bytes).unwrap();
    }
    let options = ImportOptions {
        grid: Grid::prime(),
        group: 0,
        rounding: None,
        calibration: None,
        calibration_tokens: 0,
        float_parts: Vec::new(),
        context: None,
    };
    let imported = import(
        Isa::best(),
        &from,
        &place.join("run"),
        &options,
        &mut |_| (),
    )
    .unwrap();
    let gguf = place.join("llama.gguf");
    let checkpoint = Checkpoint::open(&imported.checkpoint).unwrap();
    export(&checkpoint, ExportFormat::Gguf(TensorType::Q8_0), &gguf).unwrap();
    (llama, files(&imported.checkpoint), fs::read(gguf).unwrap())
}

/// The shape of the golden PyTorch files.
fn tiny_vocoder() -> VocoderConfig {
    VocoderConfig {
        upsample_rates: vec![4, 3],
        upsample_kernel_sizes: vec![8, 7],
        upsample_initial_channel: 8,
        resblock_kernel_sizes: vec![3, 5],
        resblock_dilation_sizes: vec![vec![1, 3, 2], vec![1, 2, 1]],
        num_mels: 5,
        hop_size: 12,
        ..VocoderConfig::v1()
    }
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

fn conversations() -> Vec<u8> {
    br#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi?"},{"role":"assistant","content":"Yes."}]}
{"instruction":"Add.","input":"1 2","output":"3"}
{"prompt":"a","completion":"b"}
"#
    .to_vec()
}

fn metrics() -> Vec<u8> {
    br#"{"step":1,"tokens":8,"train_loss":2.5,"tokens_per_s":9.0,"flip_rate":0.1,"lr":0.1,"peak_rss_bytes":5}
{"step":1,"val_loss":2.0,"bits_per_byte":3.0,"rss_bytes":4,"open_descriptors":5}
{"event":"layer","step":1,"layer":"blocks.0","grid":"prime15","weights":8,"flip_rate":0.5,"code_counts":[8],"ballot_counts":[],"ballot_saturated":0.0}
{"event":"skipped","step":2,"total":1}
"#
    .to_vec()
}

/// A small file of several types.
fn safetensors() -> Vec<u8> {
    let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"c":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]},"d":{"dtype":"I8","shape":[1],"data_offsets":[16,17]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend([0; 17]);
    bytes
}

/// 16 bits mono, and float32 and 24 bits in stereo.
fn sounds() -> Vec<Vec<u8>> {
    let samples: Vec<f32> = (0..200).map(|t| (t as f32 * 0.1).sin()).collect();
    let riff = |format: u16, bits: u16, data: &[u8]| {
        let mut bytes = b"RIFF".to_vec();
        bytes.extend((36 + data.len() as u32).to_le_bytes());
        bytes.extend(b"WAVEfmt ");
        bytes.extend(16u32.to_le_bytes());
        let (channels, rate_hz) = (2u16, 22_050u32);
        let frame_bytes = channels * bits / 8;
        bytes.extend([format, channels].map(u16::to_le_bytes).as_flattened());
        let per_second = rate_hz * u32::from(frame_bytes);
        bytes.extend([rate_hz, per_second].map(u32::to_le_bytes).as_flattened());
        bytes.extend([frame_bytes, bits].map(u16::to_le_bytes).as_flattened());
        bytes.extend(b"data");
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(data);
        bytes
    };
    let floats: Vec<u8> = samples.iter().flat_map(|it| it.to_le_bytes()).collect();
    vec![
        wav_bytes(&samples, 16_000).unwrap(),
        riff(3, 32, &floats),
        riff(1, 24, &floats[..600]),
    ]
}

fn mel() -> Vec<u8> {
    let header = br#"{"mel":{"dtype":"F32","shape":[80,3],"data_offsets":[0,960]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend([0; 960]);
    bytes
}

fn corpus() -> Files {
    let alignment =
        br#"{"id": "a-1", "symbols": ["<bos>", "S", "OW1", "<eos>"], "frames": [3, 4, 9, 2]}
"#;
    vec![
        ("alignment.jsonl".to_owned(), alignment.to_vec()),
        ("metadata.csv".to_owned(), b"a-1|So.|so\nb|2|two\n".to_vec()),
    ]
}

/// A PyTorch file without an archive around it, whose checksums would catch most damage: the bias
/// of a vocoder's last layer (as `torch.save` wrote it until version 1.6).
fn legacy_pickle() -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec();
    file.extend(b"\x80\x02M\xe9\x03.");
    file.extend(b"\x80\x02}(X\x10\0\0\0protocol_versionM\xe9\x03X\x0d\0\0\0little_endian\x88");
    file.extend(b"X\x0a\0\0\0type_sizes}u.");
    file.extend(b"\x80\x02}(X\x0e\0\0\0conv_post.biasctorch._utils\n_rebuild_tensor_v2\n(");
    file.extend(b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x007X\x03\0\0\0cpuK\x04NtQ");
    file.extend(b"K\x01K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRu.");
    file.extend(b"\x80\x02](X\x01\0\0\x007e.");
    file.extend(4u64.to_le_bytes());
    file.extend([0; 16]);
    file
}

fn read_tensors(path: &Path) -> bool {
    let Ok(file) = TensorFile::from_bytes(fs::read(path).unwrap()) else {
        return false;
    };
    let names: Vec<&str> = file.names().chain(file.quant_names()).collect();
    for name in names {
        let _ = file.quant(name).map(|matrix| matrix.dequantise());
        if let Ok(shape) = file.shape(name) {
            let _ = (file.f32(name, shape), file.i8(name, shape));
        }
    }
    true
}

fn read_config(path: &Path) -> bool {
    Config::from_toml(&lossy(path))
        .and_then(|config| config.validate().and_then(|()| config.to_toml()))
        .is_ok()
}

fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

fn read_tokenizer(path: &Path) -> bool {
    let tokenizer = Tokenizer::from_spec(&path.to_string_lossy(), []);
    tokenizer.map(|it| use_tokenizer(&it)).is_ok()
}

fn read_our_tokenizer(path: &Path) -> bool {
    let tokenizer = Tokenizer::load(path.parent().unwrap());
    tokenizer.map(|it| use_tokenizer(&it)).is_ok()
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in ["abc cab", "", "é\u{1f600}"] {
        let _ = tokenizer.encode(text).map(|ids| tokenizer.decode(&ids));
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    let _ = (tokenizer.vocab_size(), tokenizer.end_of_text());
}

fn read_documents(path: &Path) -> bool {
    let documents = Documents::read(&[path.to_path_buf()], "text");
    documents.map(|mut it| it.split_off_tail(0.1)).is_ok()
}

fn read_conversations(path: &Path) -> bool {
    let config = DataConfig {
        instructions: true,
        train: vec![path.to_path_buf()],
        ..DataConfig::default()
    };
    Dataset::load(&config, None).is_ok()
}

fn read_metrics(path: &Path) -> bool {
    let mut reader = MetricsReader::new(path.parent().unwrap());
    reader.poll().unwrap();
    !reader.record().newest_layers().is_empty()
}

/// A checkpoint that is sealed with the damage in it.
fn read_checkpoint(path: &Path) -> bool {
    let folder = path.parent().unwrap();
    let name = path.file_name().unwrap().to_string_lossy();
    fs::write(folder.join("DONE"), "").unwrap();
    if name != "state.json" {
        let state = fs::read(folder.join("state.json")).unwrap();
        let mut state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        let hash = Sha256::digest(fs::read(path).unwrap());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        state["files"][&*name] = hash.into();
        fs::write(folder.join("state.json"), state.to_string()).unwrap();
    }
    Checkpoint::open(folder).is_ok_and(|checkpoint| {
        let packed = checkpoint.load_for_inference(Compute::Int8).is_ok();
        let whole = checkpoint.load_model().is_ok();
        packed && whole && checkpoint.load_tokenizer().is_ok()
    })
}

fn read_foreign_folder(path: &Path) -> bool {
    read_foreign(path.parent().unwrap())
}

fn read_foreign(path: &Path) -> bool {
    let Ok(mut model) = ForeignModel::open(path, None) else {
        return false;
    };
    let tokenizer = model.tokenizer().map(|it| use_tokenizer(&it)).is_ok();
    let shape = *model.shape();
    let mut read = |it: Parameter| model.parameter(&it.name, it.rows, it.cols).is_ok();
    parameters(&shape)
        .into_iter()
        .fold(tokenizer, |all, parameter| read(parameter) && all)
}

fn read_chat_template(path: &Path) -> bool {
    let Ok(tokenizer) = Tokenizer::load(path.parent().unwrap()) else {
        return false;
    };
    let Some(Ok(Some(template))) = tokenizer.settings().map(ChatTemplate::new) else {
        return false;
    };
    let messages = [Message::user("Hi {{ 1 }}?"), Message::assistant("é")];
    template.render(&messages, true).is_ok()
}

fn read_safetensors(path: &Path) -> bool {
    let Ok(mut file) = SafetensorsFile::open(path) else {
        return false;
    };
    let tensors = file.tensors();
    let tensors: Vec<_> = tensors
        .map(|(name, shape)| (name.to_owned(), shape.to_vec()))
        .collect();
    for (name, shape) in tensors {
        let _ = file.tensor(&name, &shape);
    }
    true
}

fn read_gguf(path: &Path) -> bool {
    read_foreign(path);
    let Ok(mut file) = GgufFile::open(path) else {
        return false;
    };
    let tensors = file.tensors().iter();
    let tensors: Vec<_> = tensors
        .map(|(name, info)| (name.clone(), info.shape.clone()))
        .collect();
    for (name, shape) in tensors {
        let _ = file.tensor(&name, &shape);
    }
    true
}

fn read_sound(path: &Path) -> bool {
    let sound = read_wav(path);
    sound.is_ok_and(|sound| resample(&sound.samples, sound.rate_hz, 22_050).is_ok())
}

fn read_spectrogram(path: &Path) -> bool {
    read_mel(path).is_ok()
}

fn read_vocoder(path: &Path) -> bool {
    Generator::open(path.parent().unwrap()).is_ok()
}

fn read_vocoder_weights(path: &Path) -> bool {
    Weights::open(path).is_ok_and(|weights| weights.names().count() > 0)
}

fn read_voice(path: &Path) -> bool {
    Voice::open(path.parent().unwrap()).is_ok()
}

fn read_voice_corpus(path: &Path) -> bool {
    read_corpus(path.parent().unwrap()).is_ok()
}

fn read_speech(path: &Path) -> bool {
    thread_local!(static FRONT_END: FrontEnd = FrontEnd::new().unwrap());
    FRONT_END.with(|front_end| front_end.sentences(&lossy(path)).is_ok())
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
        // What a file says of itself mostly stands at its beginning.
        let reach = [len, len.min(2048)][random.below(2)];
        let at = random.below(reach + 1);
        match random.below(8) {
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
            6 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = [2, 4, 8][random.below(3)];
                let places = bytes[at..].iter_mut().zip(number);
                places.take(width).for_each(|(byte, new)| *byte = new);
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

/// The variable `name` of the environment, as what it should be.
fn variable<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let time: Option<Duration> = variable("PRIMAL_FUZZ_SECONDS").map(Duration::from_secs);
    let first: u64 = variable("PRIMAL_FUZZ_FIRST").unwrap_or(0);
    let only: Option<String> = variable("PRIMAL_FUZZ_TARGET");
    let folder = tempfile::tempdir().unwrap();
    println!("in {}", folder.path().display());
    println!("| target | cases | seconds | panics | most memory, KB | longest, ms |");
    println!("|---|---|---|---|---|---|");
    let mut bad: Vec<PathBuf> = Vec::new();
    for target in targets(folder.path()) {
        if only
            .as_ref()
            .is_some_and(|only| !target.name.contains(only))
        {
            continue;
        }
        let place = folder
            .path()
            .join(target.name.replace([' ', ':', '/'], "_"));
        fs::create_dir(&place).unwrap();
        for (name, bytes) in &target.beside {
            fs::write(place.join(name), bytes).unwrap();
        }
        let path = place.join(target.file);
        assert!(!target.seeds.is_empty(), "{}", target.name);
        for (number, seed) in target.seeds.iter().enumerate() {
            fs::write(&path, seed).unwrap();
            assert!((target.read)(&path), "{}: seed {number}", target.name);
        }
        let started = Instant::now();
        let (mut cases, mut panics) = (0, 0);
        let (mut most, mut longest) = (0, Duration::ZERO);
        while time.map_or(cases < CASES, |time| started.elapsed() < time) {
            // Every case is a function of its number.
            let mut random = Random(first + cases);
            let seed = &target.seeds[random.below(target.seeds.len())];
            let bytes = mutate(seed, &mut random);
            fs::write(&path, &bytes).unwrap();
            let (began, held) = (Instant::now(), ALLOCATOR.restart_most_held());
            let panicked = catch_unwind(AssertUnwindSafe(|| (target.read)(&path))).is_err();
            let (taken, held) = (began.elapsed(), ALLOCATOR.most_held().saturating_sub(held));
            most = most.max(held);
            longest = longest.max(taken);
            panics += u64::from(panicked);
            if panicked || held > MOST_BYTES || taken > LONGEST {
                let name = format!("fuzz-{}-{}", target.file, first + cases);
                let kept = std::env::temp_dir().join(name);
                fs::write(&kept, &bytes).unwrap();
                println!("{}: {held} bytes, {taken:?}, {panicked}", kept.display());
                bad.push(kept);
            }
            cases += 1;
        }
        let taken = started.elapsed().as_secs_f64();
        println!(
            "| {} | {cases} | {taken:.1} | {panics} | {} | {} |",
            target.name,
            most / 1000,
            longest.as_millis()
        );
    }
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn a_tensor_that_repeats_one_number_takes_no_more_than_its_file() {
    let mut file = legacy_pickle();
    let (sound, huge) = (b"K\x01\x85K\x01\x85", b"J\0\0\0\x10\x85K\0\x85");
    let at = file
        .windows(sound.len())
        .position(|it| it == sound)
        .unwrap();
    // 2^28 elements, each the same one.
    file.splice(at..at + sound.len(), huge.iter().copied());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generator.ckpt");
    fs::write(&path, file).unwrap();
    let error = Weights::open(&path).unwrap_err().to_string();
    assert!(error.contains("larger than the file"), "{error}");
}
