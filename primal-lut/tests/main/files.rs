//! Tensor files: what goes in comes out, and hostile content is refused without a panic.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use primal_lut::{Grid, LutError, QuantMatrix, TensorFile, TensorFileWriter};
use proptest::prelude::*;

fn matrices() -> [QuantMatrix; 3] {
    let weights: Vec<f32> = (0..35).map(|index| (index as f32 * 0.7).sin()).collect();
    let quantise = |grid: &Grid, rows: usize, cols: usize, group: usize| {
        let scales = vec![0.9; rows * cols.div_ceil(group)];
        QuantMatrix::quantise(grid, rows, cols, group, &weights, scales).unwrap()
    };
    let own = Grid::new("own", &[-1.0, -0.123_456_79, 0.0, 0.123_456_79, 1.0]).unwrap();
    [
        quantise(&Grid::prime(), 5, 7, 7),
        quantise(&Grid::fine(), 7, 5, 2),
        quantise(&own, 1, 35, 32),
    ]
}

const NORM: [f32; 3] = [1.0, f32::NAN, -0.0];
const BALLOT: [i8; 4] = [-127, 0, 1, 127];

fn writer(matrices: &[QuantMatrix; 3]) -> TensorFileWriter<'_> {
    let mut writer = TensorFileWriter::new();
    writer
        .i8("ballot", &[2, 2], &BALLOT)
        .f32("norm", &[3], &NORM)
        .f32("none", &[0, 4], &[]);
    for (name, matrix) in ["a", "b", "c"].into_iter().zip(matrices) {
        writer.quant(name, matrix);
    }
    writer.metadata("note", "free text \" with a quote");
    writer
}

fn sample() -> Vec<u8> {
    writer(&matrices()).to_bytes().unwrap()
}

/// Reads all that a file offers, in every way; errors are fine, panics are not.
fn read_everything(bytes: &[u8]) -> Result<(), LutError> {
    let file = TensorFile::from_bytes(bytes.to_vec())?;
    let mut result = Ok(());
    for name in file.quant_names() {
        match file.quant(name) {
            Ok(matrix) => assert_eq!(matrix.dequantise().len(), matrix.rows() * matrix.cols()),
            Err(error) => result = Err(error),
        }
    }
    for name in file.names() {
        let shape = file.shape(name)?;
        let floats = file.f32(name, shape).map_or(0, |values| values.len());
        let _ = file.read_f32_into(name, &mut vec![0.0; floats]);
        let _ = file.i8(name, shape);
    }
    result
}

/// A file of this header text and `data_len` zero bytes.
fn file_of(header: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_len, 0);
    bytes
}

/// A file of one prime matrix with metadata keys replaced or removed.
fn with_metadata(change: impl Fn(&mut BTreeMap<&str, String>)) -> Result<QuantMatrix, LutError> {
    let grid: Vec<f64> = Grid::prime()
        .values()
        .iter()
        .map(|&value| value.into())
        .collect();
    let mut metadata = BTreeMap::from([
        ("format_version", "1".to_owned()),
        ("grid:prime15", serde_json::to_string(&grid).unwrap()),
        (
            "tensor:w",
            r#"{"grid":"prime15","cols":3,"group":3}"#.to_owned(),
        ),
    ]);
    change(&mut metadata);
    let header = serde_json::json!({
        "__metadata__": metadata,
        "w.scales": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
        "w.codes": {"dtype": "U8", "shape": [1, 2], "data_offsets": [4, 6]},
    });
    let mut bytes = file_of(&header.to_string(), 6);
    let len = bytes.len();
    bytes[len - 2..].copy_from_slice(&[0x77, 0x77]);
    TensorFile::from_bytes(bytes)?.quant("w")
}

#[test]
fn rows_of_floats_are_read_alone() {
    let values: Vec<f32> = (0..12u8).map(f32::from).collect();
    let mut writer = TensorFileWriter::new();
    writer.f32("w", &[4, 3], &values);
    let file = TensorFile::from_bytes(writer.to_bytes().unwrap()).unwrap();
    assert_eq!(file.f32_rows("w", (4, 3), 1..3).unwrap(), values[3..9]);
    assert!(file.f32_rows("w", (4, 3), 4..4).unwrap().is_empty());
    for (size, rows) in [((4, 3), 3..5), ((4, 3), 0..usize::MAX), ((3, 4), 0..1)] {
        assert!(file.f32_rows("w", size, rows).is_err());
    }
}

#[test]
fn what_was_written_is_read() {
    let matrices = matrices();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    writer(&matrices).write(&path).unwrap();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        writer(&matrices).to_bytes().unwrap()
    );

    let file = TensorFile::open(&path).unwrap();
    for (name, matrix) in ["a", "b", "c"].into_iter().zip(&matrices) {
        assert_eq!(&file.quant(name).unwrap(), matrix);
        let rows = matrix.rows();
        let last = file.quant_rows(name, rows - 1..rows).unwrap();
        let cols = matrix.cols();
        assert_eq!(last.dequantise(), matrix.dequantise()[(rows - 1) * cols..]);
        assert!(file.quant_rows(name, rows..rows + 1).is_err());
        assert!(file.quant_rows(name, 0..0).is_err());
    }
    let bits = |values: &[f32]| {
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&file.f32("norm", &[3]).unwrap()), bits(&NORM));
    let mut norm = [0.0; 3];
    file.read_f32_into("norm", &mut norm).unwrap();
    assert_eq!(bits(&norm), bits(&NORM));
    assert_eq!(file.i8("ballot", &[2, 2]).unwrap(), BALLOT);
    assert!(file.f32("none", &[0, 4]).unwrap().is_empty());
    assert_eq!(file.metadata("note"), Some("free text \" with a quote"));
    assert_eq!(file.metadata("format_version"), Some("1"));
    assert_eq!(file.metadata("absent"), None);
    let names: Vec<_> = file.names().collect();
    let expected = [
        "a.codes", "a.scales", "b.codes", "b.high", "b.scales", "ballot", "c.codes", "c.scales",
        "none", "norm",
    ];
    assert_eq!(names, expected);
    assert_eq!(file.quant_names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(file.shape("a.codes").unwrap(), [5, 4]);
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    writer(&matrices()).write(&path).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let whole = std::fs::File::options().write(true).open(&path).unwrap();
    whole
        .set_len(std::fs::metadata(&path).unwrap().len() - 300)
        .unwrap();
    let error = file
        .f32("norm", &[3])
        .or(file.i8("ballot", &[2, 2]).map(|_| Vec::new()));
    assert!(error.is_err() || file.quant("a").is_err());
}

#[test]
fn errors_name_the_row_of_the_whole_matrix() {
    let grid = Grid::prime();
    let matrix = QuantMatrix::zeros(&grid, 5, 2, 2).unwrap();
    let mut writer = TensorFileWriter::new();
    writer.quant("w", &matrix);
    let mut bytes = writer.to_bytes().unwrap();
    let len = bytes.len();
    // The codes come last: five rows of one byte, then padding of the file.
    let codes = bytes.iter().rposition(|&byte| byte == 0x77).unwrap();
    assert!(codes < len);
    bytes[codes] = 0x7f;
    let file = TensorFile::from_bytes(bytes).unwrap();
    file.quant_rows("w", 0..4).unwrap();
    let error = file.quant_rows("w", 3..5).unwrap_err().to_string();
    assert!(error.contains("code 15 at row 4, column 0"), "{error}");
}

#[test]
fn other_programs_can_read_the_file_and_its_data_is_aligned() {
    let bytes = sample();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 10);
    let scales = file.tensor("a.scales").unwrap();
    assert_eq!(
        (scales.dtype(), scales.shape()),
        (safetensors::Dtype::F32, &[5, 1][..])
    );
    let start = scales.data().as_ptr() as usize - bytes.as_ptr() as usize;
    assert_eq!(start % 4, 0);
}

#[test]
fn equal_tensors_give_equal_bytes_in_any_order() {
    let matrices = matrices();
    let mut reversed = TensorFileWriter::new();
    reversed.metadata("note", "free text \" with a quote");
    for (name, matrix) in ["c", "b", "a"].into_iter().zip(matrices.iter().rev()) {
        reversed.quant(name, matrix);
    }
    reversed
        .f32("none", &[0, 4], &[])
        .f32("norm", &[3], &NORM)
        .i8("ballot", &[2, 2], &BALLOT);
    assert_eq!(reversed.to_bytes().unwrap(), sample());
}

#[test]
fn large_tensors_survive_the_chunked_conversion() {
    let values: Vec<f32> = (0..10_001).map(|index| index as f32).collect();
    let bytes = TensorFileWriter::new()
        .f32("x", &[73, 137], &values)
        .to_bytes()
        .unwrap();
    let file = TensorFile::from_bytes(bytes).unwrap();
    assert_eq!(file.f32("x", &[73, 137]).unwrap(), values);
}

#[test]
fn a_file_without_tensors_is_valid() {
    let file = TensorFile::from_bytes(TensorFileWriter::new().to_bytes().unwrap()).unwrap();
    assert_eq!(file.names().count(), 0);
}

#[test]
fn the_writer_reports_what_it_cannot_hold() {
    let [matrix, _, own] = matrices();
    let other = Grid::new("own", &[-1.0, 0.0, 1.0]).unwrap();
    let other = QuantMatrix::zeros(&other, 1, 1, 1).unwrap();
    let mut writers = Vec::new();
    for _ in 0..7 {
        writers.push(TensorFileWriter::new());
    }
    writers[0].f32("x", &[2, 2], &NORM);
    writers[1].f32("x", &[3], &NORM).f32("x", &[3], &NORM);
    writers[2].f32("__metadata__", &[3], &NORM);
    writers[3].metadata("tensor:x", "{}");
    writers[4].metadata("note", "a").metadata("note", "b");
    writers[5].quant("x", &own).quant("y", &other);
    writers[6].quant("x", &matrix).f32("x.codes", &[3], &NORM);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("never");
    for writer in writers {
        let error = writer.to_bytes().unwrap_err();
        assert!(matches!(error, LutError::Unwritable { .. }), "{error}");
        assert!(writer.write(&path).is_err() && !path.exists());
    }
}

#[test]
fn an_existing_file_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, "precious").unwrap();
    let error = writer(&matrices()).write(&path).unwrap_err();
    assert!(error.to_string().contains("cannot create"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(
        writer(&matrices())
            .write(&folder.path().join("no/such/folder"))
            .is_err()
    );
}

#[test]
fn a_read_that_does_not_fit_names_file_tensor_and_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    writer(&matrices()).write(&path).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let origin = path.display();
    assert_eq!(
        file.f32("norm", &[1, 3]).unwrap_err().to_string(),
        format!("{origin}: tensor `norm` is F32 [3], expected F32 [1, 3]")
    );
    assert!(matches!(
        file.i8("norm", &[3]),
        Err(LutError::WrongTensor { .. })
    ));
    assert!(matches!(
        file.read_f32_into("ballot", &mut [0.0; 4]),
        Err(LutError::WrongTensor { .. })
    ));
    assert!(matches!(
        file.read_f32_into("norm", &mut [0.0; 2]),
        Err(LutError::Length { .. })
    ));
    for error in [
        file.f32("zzz", &[1]).unwrap_err(),
        file.quant("norm").unwrap_err(),
    ] {
        assert!(matches!(error, LutError::MissingTensor { .. }), "{error}");
    }
}

#[test]
fn paths_that_are_no_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = TensorFile::open(&folder.path().join("missing")).unwrap_err();
    assert!(matches!(missing, LutError::Io { .. }) && missing.to_string().contains("missing"));
    assert!(TensorFile::open(folder.path()).is_err());
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let error = TensorFile::open(&empty).unwrap_err().to_string();
    assert!(
        error.ends_with("0 bytes are too short for a header"),
        "{error}"
    );
}

#[test]
fn every_truncation_and_every_extension_is_refused() {
    let mut bytes = sample();
    for len in 0..bytes.len() {
        assert!(
            read_everything(&bytes[..len]).is_err(),
            "cut to {len} bytes"
        );
    }
    assert!(read_everything(&bytes).is_ok());
    bytes.push(0);
    assert!(read_everything(&bytes).is_err());
}

#[test]
fn no_bit_flip_panics() {
    let mut bytes = sample();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = read_everything(&bytes);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn metadata_must_be_there_and_understood() {
    assert!(with_metadata(|_| ()).is_ok());
    let message = |change: &dyn Fn(&mut BTreeMap<&str, String>)| {
        with_metadata(change).unwrap_err().to_string()
    };
    let remove = |key: &'static str| message(&move |metadata| drop(metadata.remove(key)));
    let set = |key: &'static str, value: &str| {
        message(&|metadata| drop(metadata.insert(key, value.to_owned())))
    };
    assert!(remove("format_version").ends_with("has no metadata `format_version`"));
    assert!(remove("grid:prime15").ends_with("has no metadata `grid:prime15`"));
    assert!(remove("tensor:w").ends_with("has no tensor `w`"));
    assert!(set("format_version", "2").ends_with("has format_version 2, this build reads 1"));
    assert!(set("format_version", &"9".repeat(1000)).len() < 200);
    let known = set("grid:prime15", "[-1,0,1]");
    assert!(
        known.contains("`grid:prime15`") && known.contains("values this build knows"),
        "{known}"
    );
    for bad in [
        "",
        "{}",
        "[]",
        "[1e999]",
        "[-1e300,0,1e300]",
        "[-1,0,\"1\"]",
        "[null]",
    ] {
        assert!(
            set("grid:other", bad).contains("`grid:other` is not valid"),
            "{bad}"
        );
    }
    for bad in [
        "",
        "[]",
        r#"{"grid":"prime15","cols":3}"#,
        r#"{"grid":"prime15","cols":-3,"group":3}"#,
    ] {
        assert!(
            set("tensor:w", bad).contains("`tensor:w` is not valid"),
            "{bad}"
        );
    }
    for (cols, group) in [
        (0, 0),
        (3, 0),
        (3, 4),
        (5, 5),
        (1, 1),
        (usize::MAX, 1),
        (usize::MAX, usize::MAX),
    ] {
        set(
            "tensor:w",
            &format!(r#"{{"grid":"prime15","cols":{cols},"group":{group}}}"#),
        );
    }
}

#[test]
fn a_file_without_metadata_is_refused() {
    let foreign = r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let error = TensorFile::from_bytes(file_of(foreign, 4)).unwrap_err();
    assert!(matches!(error, LutError::MissingMetadata { .. }), "{error}");
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_allocated() {
    for header_len in [1, 1 << 20, 1 << 40, u64::MAX / 2, u64::MAX - 8, u64::MAX] {
        let bytes = header_len.to_le_bytes();
        assert!(matches!(
            TensorFile::from_bytes(bytes.to_vec()),
            Err(LutError::Container { .. })
        ));
    }
    let max = usize::MAX;
    for (shape, end) in [
        (format!("[{max}]"), max),
        (format!("[{max},{max}]"), 1),
        (format!("[{}]", 1usize << 60), 1 << 60),
        (format!("[0,{max}]"), 0),
        ("[]".into(), 1),
        ("[-1]".into(), 1),
        ("[1e3]".into(), 1000),
    ] {
        let header = format!(
            r#"{{"__metadata__":{{"format_version":"1"}},"x":{{"dtype":"U8","shape":{shape},"data_offsets":[0,{end}]}}}}"#
        );
        for data_len in [0, 1] {
            let _ = read_everything(&file_of(&header, data_len));
        }
        if end > 1 {
            assert!(read_everything(&file_of(&header, 1)).is_err());
        }
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(read_everything(&file_of(&deep, 0)).is_err());
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..9,
        prop::sample::select(vec![
            1 << 31,
            1 << 32,
            1 << 60,
            1 << 63,
            u64::MAX - 1,
            u64::MAX
        ]),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read_everything(&bytes).is_err());
        // The same as the header of an otherwise sound file.
        let mut sound = (bytes.len() as u64).to_le_bytes().to_vec();
        sound.extend(&bytes);
        prop_assert!(read_everything(&sound).is_err());
    }

    #[test]
    fn overwritten_stretches_never_panic(
        at in any::<prop::sample::Index>(),
        patch in prop::collection::vec(any::<u8>(), 1..20),
    ) {
        let mut bytes = sample();
        let at = at.index(bytes.len());
        for (byte, patch) in bytes[at..].iter_mut().zip(patch) {
            *byte = patch;
        }
        let _ = read_everything(&bytes);
    }

    #[test]
    fn well_formed_lies_never_panic(
        dtype in prop::sample::select(vec!["U8", "I8", "F32", "F4", "F64", "X"]),
        shape in prop::collection::vec(number(), 0..4),
        offsets in any::<bool>().prop_flat_map(|small| {
            if small { [0u64..9, 0u64..9].boxed() } else { [number().boxed(), number().boxed()].boxed() }
        }),
        note in [number(), number()],
        grid in prop::sample::select(vec!["prime15", "prime25", "none"]),
        data_len in 0usize..9,
    ) {
        let [start, end] = offsets;
        let [cols, group] = note;
        let values = |grid: Grid| {
            serde_json::to_string(&grid.values().iter().map(|&v| f64::from(v)).collect::<Vec<_>>()).unwrap()
        };
        let header = serde_json::json!({
            "__metadata__": {
                "format_version": "1",
                "grid:prime15": values(Grid::prime()),
                "grid:prime25": values(Grid::fine()),
                "tensor:w": format!(r#"{{"grid":"{grid}","cols":{cols},"group":{group}}}"#),
            },
            "w.codes": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]},
        });
        prop_assert!(read_everything(&file_of(&header.to_string(), data_len)).is_err());
    }
}
