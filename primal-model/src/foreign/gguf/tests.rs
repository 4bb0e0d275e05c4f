//! The reader against the reference package's file, and against damage of every kind.

use proptest::prelude::*;

use super::*;

const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/blocks.gguf");

fn golden() -> GgufFile {
    GgufFile::from_bytes(GOLDEN.to_vec()).unwrap()
}

/// Reads everything there is; returns how many values were read.
fn read_all(bytes: Vec<u8>) -> Result<usize, crate::ModelError> {
    let mut file = GgufFile::from_bytes(bytes)?;
    let tensors = file.tensors().clone();
    let mut values = 0;
    for (name, info) in &tensors {
        values += file.tensor(name, &info.shape)?.len();
    }
    Ok(values)
}

#[test]
fn every_type_holds_the_values_that_the_reference_finds() {
    let mut file = golden();
    let of_reference = |kind: &TensorType| ![TensorType::F32, TensorType::Q8_K].contains(kind);
    for kind in TensorType::all().filter(of_reference) {
        let found = file.tensor(kind.name(), &[2, 256]).unwrap();
        let expected = file
            .tensor(&format!("{}.expected", kind.name()), &[2, 256])
            .unwrap();
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let name = kind.name();
            // A zero of either sign: the reference takes it from integers.
            let same = found.to_bits() == expected.to_bits() || (*found == 0.0 && *expected == 0.0);
            assert!(same, "{name} {index}: {found} {expected}");
        }
    }
}

#[test]
fn a_block_of_bytes_has_one_scale() {
    let mut bytes = 0.5f32.to_le_bytes().to_vec();
    bytes.extend((0..=255).map(|q: u8| q));
    bytes.extend([0; 32]);
    let mut values = [0.0; 256];
    TensorType::Q8_K.dequantise(&bytes, &mut values);
    assert_eq!((values[3], values[128], values[255]), (1.5, -64.0, -0.5));
}

#[test]
fn types_that_are_not_read_are_named() {
    for (id, name) in [
        (16, "IQ2_XXS"),
        (28, "F64"),
        (41, "Q1_0"),
        (77, "77"),
        (10, "Q2_K"),
    ] {
        assert_eq!(TensorType::describe(id), name);
    }
}

#[test]
fn every_type_of_metadata_is_read() {
    let file = golden();
    let get = |key: &str| file.metadata(&format!("test.{key}")).unwrap().clone();
    let integer = |key: &str| match get(key) {
        Value::Scalar(Scalar::Integer(_, value)) => value,
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(integer("u8"), 200);
    assert_eq!(integer("i8"), -100);
    assert_eq!(integer("u16"), 60_000);
    assert_eq!(integer("i16"), -30_000);
    assert_eq!(integer("u32"), 4_000_000_000);
    assert_eq!(integer("i32"), -2_000_000_000);
    assert_eq!(integer("u64"), u64::MAX.into());
    assert_eq!(integer("i64"), i64::MIN.into());
    assert_eq!(
        (get("f32").as_f64(), get("f64").as_f64()),
        (Some(0.5), Some(0.1))
    );
    assert_eq!(get("bool").as_bool(), Some(true));
    assert_eq!(get("string").as_str(), Some("ein Käse"));
    assert_eq!(get("strings").as_strings().unwrap(), ["a", "", "ß"]);
    assert_eq!(get("numbers").as_numbers().unwrap(), [1.0, -2.0, 3.0]);
    assert_eq!((get("i8").as_u64(), get("string").as_u64()), (None, None));
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut writer = GgufWriter::new();
    for (key, value) in golden().all_metadata() {
        writer.set(key, value.clone());
    }
    let nested = Array::Arrays(vec![
        Array::Strings(vec!["x".into()]),
        Array::Strings(vec![]),
    ]);
    writer.set("test.nested", Value::Array(nested.clone()));
    let values: Vec<f32> = (0..96).map(|i| (i as f32 - 40.0) / 16.0).collect();
    let kinds = [
        TensorType::F32,
        TensorType::F16,
        TensorType::BF16,
        TensorType::Q8_0,
    ];
    for kind in kinds {
        writer.plan(kind.name(), &[3, 32], kind);
    }
    let mut started = writer.start(&path).unwrap();
    for kind in kinds {
        started.tensor(kind.name(), &values).unwrap();
    }
    started.finish().unwrap();

    let mut file = GgufFile::open(&path).unwrap();
    assert_eq!(file.metadata("test.nested"), Some(&Value::Array(nested)));
    for (key, value) in golden().all_metadata() {
        assert_eq!(file.metadata(key), Some(value), "{key}");
    }
    for (kind, tolerance) in kinds.into_iter().zip([0.0, 1e-3, 1e-2, 2.5 / 254.0]) {
        let found = file.tensor(kind.name(), &[3, 32]).unwrap();
        let close = |(found, value): (&f32, &f32)| (found - value).abs() <= tolerance * 3.5;
        assert!(
            found.iter().zip(&values).all(close),
            "{}: {found:?}",
            kind.name()
        );
    }
}

#[test]
fn packed_values_pack_to_themselves() {
    let values: Vec<f32> = (0..320)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013)
        .collect();
    for kind in [TensorType::F16, TensorType::BF16, TensorType::Q8_0] {
        let (mut once, mut twice, mut back) = (Vec::new(), Vec::new(), vec![0.0; 320]);
        assert!(kind.quantise(&values, &mut once));
        kind.dequantise(&once, &mut back);
        assert!(kind.quantise(&back, &mut twice));
        assert_eq!(once, twice, "{}", kind.name());
    }
}

#[test]
fn a_file_that_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let start = |kind, shape: &[usize]| {
        let mut writer = GgufWriter::new();
        writer.plan("t", shape, kind);
        writer.start(&path)
    };
    assert!(start(TensorType::Q4_K, &[1, 256]).is_err());
    assert!(start(TensorType::Q8_0, &[32, 31]).is_err());
    assert!(
        start(TensorType::F16, &[2, 2])
            .unwrap()
            .tensor("u", &[0.0; 4])
            .is_err()
    );
    assert!(
        start(TensorType::F16, &[2, 2])
            .unwrap()
            .tensor("t", &[0.0; 3])
            .is_err()
    );
    assert!(start(TensorType::F16, &[2, 2]).unwrap().finish().is_err());
}

/// A header by hand: `pairs` and `tensors` are the bytes that follow the counts.
fn file(n_tensors: u64, n_pairs: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(n_tensors.to_le_bytes());
    bytes.extend(n_pairs.to_le_bytes());
    bytes.extend(rest.concat());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A tensor's entry.
fn entry(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

/// A list in a list in a list …
fn deep(levels: usize) -> Vec<u8> {
    let mut bytes = [text("k"), 9u32.to_le_bytes().to_vec()].concat();
    for _ in 0..levels {
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.push(0);
    bytes
}

#[test]
fn hostile_headers_are_named() {
    let list = |kind: u32, count: u64| {
        [
            text("k"),
            9u32.to_le_bytes().to_vec(),
            kind.to_le_bytes().to_vec(),
            count.to_le_bytes().to_vec(),
        ]
        .concat()
    };
    let scalar =
        |kind: u32, bytes: &[u8]| [text("k"), kind.to_le_bytes().to_vec(), bytes.to_vec()].concat();
    let align = [
        text("general.alignment"),
        4u32.to_le_bytes().to_vec(),
        vec![3, 0, 0, 0],
    ]
    .concat();
    let pad = [0u8; 256];
    let two = |a: Vec<u8>, b: Vec<u8>| [a, b].concat();
    for (bytes, parts) in [
        (vec![], ["magic", "ends at byte 0"]),
        (b"GGML\x03\0\0\0".to_vec(), ["magic", "is not GGUF"]),
        (b"GGUF\0\0\0\x03".to_vec(), ["version", "big-endian"]),
        (b"GGUF\x01\0\0\0".to_vec(), ["version", "is 1"]),
        (
            file(u64::MAX, 0, &[&pad]),
            ["number of tensors", "too many"],
        ),
        (
            file(0, 1 << 40, &[&pad]),
            ["number of metadata pairs", "too many"],
        ),
        (
            file(0, 1, &[&u64::MAX.to_le_bytes(), &pad]),
            ["key of metadata pair 0", "has 1844"],
        ),
        (
            file(0, 1, &[&[9, 0, 0, 0, 0, 0, 0, 0], b"abc", &[0; 2]]),
            ["pair 0", "claims 9 bytes, 5"],
        ),
        (file(0, 1, &[&text(""), &pad]), ["pair 0", "is empty"]),
        (
            file(0, 1, &[&[1, 0, 0, 0, 0, 0, 0, 0, 0xff], &pad]),
            ["pair 0", "not UTF-8"],
        ),
        (
            file(0, 1, &[&scalar(13, &[]), &pad]),
            ["k", "unknown type 13"],
        ),
        (
            file(0, 1, &[&scalar(7, &[2]), &pad]),
            ["k", "neither true nor false"],
        ),
        (
            file(0, 1, &[&scalar(8, &[255; 8]), &pad]),
            ["k", "claims 1844"],
        ),
        (
            file(0, 2, &[&scalar(0, &[1]), &scalar(0, &[1])]),
            ["k", "twice"],
        ),
        (file(0, 1, &[&list(0, u64::MAX), &pad]), ["k", "too long"]),
        (
            file(0, 1, &[&list(8, 33), &pad]),
            ["k", "list of 33, too long for the 256"],
        ),
        (file(0, 1, &[&list(9, 1 << 60), &pad]), ["k", "too long"]),
        (file(0, 1, &[&deep(9), &pad]), ["k", "more than 4 deep"]),
        (
            file(0, 1, &[&align, &pad]),
            ["general.alignment", "power of two"],
        ),
        (
            file(1, 0, &[&entry("t", &[], 0, 0), &pad]),
            ["t", "0 dimensions"],
        ),
        (
            file(1, 0, &[&entry("t", &[1; 5], 0, 0), &pad]),
            ["t", "5 dimensions"],
        ),
        (
            file(1, 0, &[&entry("t", &[0], 0, 0), &pad]),
            ["t", "impossible dimension"],
        ),
        (
            file(1, 0, &[&entry("t", &[1 << 40, 1 << 40], 0, 0), &pad]),
            ["t", "too large"],
        ),
        (
            file(1, 0, &[&entry("t", &[4], 99, 0), &pad]),
            ["t", "type 99"],
        ),
        (
            file(1, 0, &[&entry("t", &[33], 2, 0), &pad]),
            ["t", "not a multiple of Q4_0's 32"],
        ),
        (
            file(1, 0, &[&entry("t", &[4], 0, 16), &pad]),
            ["t", "offset 16 is not a multiple"],
        ),
        (
            file(1, 0, &[&entry("t", &[1000], 0, 0), &pad]),
            ["t", "4000 bytes at offset 0"],
        ),
        (
            file(1, 0, &[&entry("t", &[4], 0, u64::MAX - 31), &pad]),
            ["t", "not in the file's"],
        ),
        (
            file(
                2,
                0,
                &[&two(entry("t", &[4], 0, 0), entry("t", &[4], 0, 32)), &pad],
            ),
            ["t", "twice"],
        ),
        (
            file(
                2,
                0,
                &[&two(entry("a", &[12], 0, 0), entry("b", &[4], 0, 32)), &pad],
            ),
            ["b", "overlaps with tensor a"],
        ),
    ] {
        let error = read_all(bytes).unwrap_err().to_string();
        assert!(
            parts.iter().all(|part| error.contains(part)),
            "{parts:?}: {error}"
        );
        assert!(error.starts_with("(bytes): "), "{error}");
    }
}

#[test]
fn names_in_errors_are_short_and_printable() {
    let name = format!("a\n\x1b[31m{}", "x".repeat(5000));
    let bytes = file(1, 0, &[&entry(&name, &[4], 99, 0), &[0; 64]]);
    let error = read_all(bytes).unwrap_err().to_string();
    assert!(
        error.len() < 400 && !error.contains(['\n', '\x1b']),
        "{error}"
    );
}

#[test]
fn missing_tensors_other_shapes_and_bad_values_are_named() {
    let mut file = golden();
    let error = |result: Result<Vec<f32>, crate::ModelError>| result.unwrap_err().to_string();
    assert!(error(file.tensor("nothing", &[1])).contains("nothing: the file has no such tensor"));
    assert!(error(file.tensor("F16", &[256, 2])).contains("has shape [2, 256], expected [256, 2]"));
    let mut bytes = self::file(1, 0, &[&entry("t", &[2], 0, 0)]);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend([0, 0, 0, 0, 0, 0, 0xc0, 0x7f]);
    assert!(
        error(GgufFile::from_bytes(bytes).unwrap().tensor("t", &[2])).contains("value 1 is NaN")
    );
}

#[test]
fn every_truncation_is_an_error() {
    let header_bytes = 4096.min(GOLDEN.len());
    let ends = (0..header_bytes).chain((header_bytes..GOLDEN.len()).step_by(977));
    for end in ends {
        assert!(read_all(GOLDEN[..end].to_vec()).is_err(), "cut at {end}");
    }
    assert!(read_all(GOLDEN.to_vec()).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::foreign::fuzz::cases()))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), counts in any::<[u8; 2]>()) {
        let _ = read_all(bytes.clone());
        // Behind a sound start, so that the parser goes deeper.
        let _ = read_all(file(u64::from(counts[0] % 4), u64::from(counts[1] % 6), &[&bytes]));
    }

    #[test]
    fn mutated_files_never_panic(changes in crate::foreign::fuzz::changes(2048), end in crate::foreign::fuzz::end()) {
        let bytes = crate::foreign::fuzz::mutate(GOLDEN, &changes, end);
        // What is still read has the size that the file has room for.
        if let Ok(values) = read_all(bytes) {
            prop_assert!(values <= 2 * GOLDEN.len());
        }
    }
}
