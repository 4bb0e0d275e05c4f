//! Safetensors files of other tools: float tensors read one at a time, and the writer of ours.
//!
//! A file is a u64 length, a JSON header of that length (name → type, shape, offsets into the
//! data), and the data. Source: the format's description in the safetensors repository.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::bytes::{ByteSource, LFS_START, foreign};
use crate::ModelError;

/// Largest header read, as in the safetensors crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;
/// Values converted at a time.
const CHUNK_VALUES: usize = 1 << 16;

/// An open file: header in memory, tensors on disk.
#[derive(Debug)]
pub struct SafetensorsFile {
    source: ByteSource,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Offset in the file.
    offset: u64,
}

impl SafetensorsFile {
    /// Opens a file and checks its header. No tensor is read.
    ///
    /// # Errors
    /// [`ModelError::Foreign`]: a header that is too long or not valid, tensors that overlap,
    /// leave holes or end elsewhere than the file.
    pub fn open(path: &Path) -> Result<SafetensorsFile, ModelError> {
        SafetensorsFile::read(ByteSource::open(path)?)
    }

    /// The same for a file in memory.
    ///
    /// # Errors
    /// Those of [`SafetensorsFile::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<SafetensorsFile, ModelError> {
        SafetensorsFile::read(ByteSource::from_bytes(bytes))
    }

    /// Names and shapes, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let entries = self.tensors.iter();
        entries.map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// A tensor's values, row-major, from F32, F16 or BF16.
    ///
    /// # Errors
    /// [`ModelError::Foreign`] for a missing tensor, another shape, another type, values that are
    /// not finite.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let Some(entry) = self.tensors.get(name).cloned() else {
            return Err(self.error(name, "the file has no such tensor"));
        };
        if entry.shape != shape {
            let found = &entry.shape;
            return Err(self.error(name, format!("has shape {found:?}, expected {shape:?}")));
        }
        let (size, convert): (usize, fn(&[u8]) -> f32) = match entry.dtype {
            Dtype::F32 => (4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Dtype::F16 => (2, |b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
            Dtype::BF16 => (2, |b| bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            other => {
                let reason = format!("has type {other}, expected F32, F16 or BF16");
                return Err(self.error(name, reason));
            }
        };
        // The header was checked: the file holds this many values.
        let mut values = vec![0.0; shape.iter().product()];
        let mut bytes = vec![0; size * CHUNK_VALUES.min(values.len())];
        let mut at = entry.offset;
        for values in values.chunks_mut(CHUNK_VALUES) {
            let bytes = &mut bytes[..size * values.len()];
            self.source.read_at(at, bytes, name)?;
            for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size)) {
                *value = convert(bytes);
            }
            at += bytes.len() as u64;
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => {
                let value = values[index];
                Err(self.error(name, format!("value {index} is {value}")))
            }
        }
    }

    /// sha256 of a tensor's type, shape and bytes: equal digest, equal tensor.
    pub(super) fn digest(&mut self, name: &str) -> Result<Vec<u8>, ModelError> {
        let Some(entry) = self.tensors.get(name).cloned() else {
            return Err(self.error(name, "the file has no such tensor"));
        };
        let mut digest = Sha256::new();
        digest.update(format!("{} {:?}", entry.dtype, entry.shape));
        let values: usize = entry.shape.iter().product();
        let (mut at, end) = (entry.offset, values * entry.dtype.bitsize() / 8);
        let end = entry.offset + end as u64;
        let mut bytes = vec![0; 1 << 20];
        while at < end {
            let n = (end - at).min(bytes.len() as u64) as usize;
            self.source.read_at(at, &mut bytes[..n], name)?;
            digest.update(&bytes[..n]);
            at += n as u64;
        }
        Ok(digest.finalize().to_vec())
    }

    fn error(&self, place: &str, reason: impl ToString) -> ModelError {
        foreign(self.source.origin(), place, reason)
    }

    fn read(mut source: ByteSource) -> Result<SafetensorsFile, ModelError> {
        let origin = source.origin().to_owned();
        let bad = |reason: String| foreign(&origin, "header", reason);
        let mut length = [0; LENGTH_BYTES as usize];
        source.read_at(0, &mut length, "header")?;
        if &length == LFS_START {
            let reason = "this is a Git LFS pointer, not the weights; hint: git lfs pull";
            return Err(foreign(&origin, "file", reason));
        }
        let header_len = u64::from_le_bytes(length);
        let after_length = source.len() - LENGTH_BYTES;
        if header_len > after_length.min(MAX_HEADER_BYTES) {
            let len = source.len();
            return Err(bad(format!("claims {header_len} bytes in a file of {len}")));
        }
        let mut header = vec![0; header_len as usize];
        source.read_at(LENGTH_BYTES, &mut header, "header")?;
        // Parsing checks that the tensors lie end to end and fit their shapes.
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| bad(error.to_string()))?;
        let data_len = after_length - header_len;
        if header.data_len() as u64 != data_len {
            let described = header.data_len();
            return Err(bad(format!(
                "describes {described} bytes of tensors, the file holds {data_len}"
            )));
        }
        let entries = header.tensors().into_iter().map(|(name, info)| {
            let entry = Entry {
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: LENGTH_BYTES + header_len + info.data_offsets.0 as u64,
            };
            (name, entry)
        });
        Ok(SafetensorsFile {
            tensors: entries.collect(),
            source,
        })
    }
}

/// What an exported file stores a value in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// As it is.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl FloatType {
    /// The name in Hugging Face configurations.
    pub fn torch_name(self) -> &'static str {
        match self {
            FloatType::F32 => "float32",
            FloatType::F16 => "float16",
            FloatType::Bf16 => "bfloat16",
        }
    }

    /// Bytes of a value.
    fn bytes(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }
}

/// Writes a safetensors file of tensors of one type, one at a time in the planned order.
#[derive(Debug)]
pub(crate) struct SafetensorsWriter {
    path: PathBuf,
    to: BufWriter<File>,
    kind: FloatType,
    rest: std::vec::IntoIter<(String, usize)>,
}

impl SafetensorsWriter {
    /// Creates the file and writes the header of the tensors (name, shape).
    pub(crate) fn create(
        path: &Path,
        kind: FloatType,
        tensors: &[(String, Vec<usize>)],
    ) -> Result<Self, ModelError> {
        let mut header = Map::new();
        // What the `transformers` library asks for.
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let dtype = match kind {
            FloatType::F32 => "F32",
            FloatType::F16 => "F16",
            FloatType::Bf16 => "BF16",
        };
        let mut offset = 0;
        let mut rest = Vec::new();
        for (name, shape) in tensors {
            let len: usize = shape.iter().product();
            let end = offset + kind.bytes() * len;
            let info = json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, end] });
            if header.insert(name.clone(), info).is_some() {
                let origin = path.display().to_string();
                return Err(foreign(&origin, name, "is there twice"));
            }
            rest.push((name.clone(), len));
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // Data starts at a multiple of eight.
        header.resize(header.len().next_multiple_of(8), b' ');
        let file = File::create(path).map_err(ModelError::io("create", path))?;
        let mut to = BufWriter::with_capacity(1 << 20, file);
        to.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| to.write_all(&header))
            .map_err(ModelError::io("write", path))?;
        Ok(SafetensorsWriter {
            path: path.to_path_buf(),
            to,
            kind,
            rest: rest.into_iter(),
        })
    }

    /// Writes the next tensor.
    pub(crate) fn tensor(&mut self, name: &str, values: &[f32]) -> Result<(), ModelError> {
        let expected = self.rest.next();
        if expected.is_none_or(|(planned, len)| planned != name || len != values.len()) {
            let origin = self.path.display().to_string();
            return Err(foreign(
                &origin,
                name,
                "is not the tensor that was planned here",
            ));
        }
        let bytes: Vec<u8> = match self.kind {
            FloatType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            FloatType::F16 => values
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
            FloatType::Bf16 => values
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
        };
        self.to
            .write_all(&bytes)
            .map_err(ModelError::io("write", &self.path))
    }

    /// Ends the file and syncs it.
    pub(crate) fn finish(self) -> Result<(), ModelError> {
        let path = self.path;
        let file = self.to.into_inner().map_err(|error| error.into_error());
        file.and_then(|file| file.sync_all())
            .map_err(ModelError::io("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::foreign::fuzz;

    /// A small file of three types.
    fn sound() -> Vec<u8> {
        let header = json!({
            "__metadata__": { "format": "pt" },
            "a": { "dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8] },
            "b": { "dtype": "F16", "shape": [2], "data_offsets": [8, 12] },
            "c": { "dtype": "BF16", "shape": [2], "data_offsets": [12, 16] },
            "d": { "dtype": "I8", "shape": [1], "data_offsets": [16, 17] },
        });
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([1.5f32, -2.0].map(f32::to_le_bytes).as_flattened());
        bytes.extend(
            [0.5f32, 4.0]
                .map(|v| f16::from_f32(v).to_le_bytes())
                .as_flattened(),
        );
        bytes.extend(
            [0.25f32, 8.0]
                .map(|v| bf16::from_f32(v).to_le_bytes())
                .as_flattened(),
        );
        bytes.push(1);
        bytes
    }

    fn read_all(bytes: Vec<u8>) -> Result<usize, ModelError> {
        let mut file = SafetensorsFile::from_bytes(bytes)?;
        let names: Vec<_> = file
            .tensors()
            .map(|(n, s)| (n.to_owned(), s.to_vec()))
            .collect();
        let mut values = 0;
        for (name, shape) in names {
            // Other types than floats are refused one by one.
            values += file.tensor(&name, &shape).map_or(0, |tensor| tensor.len());
        }
        Ok(values)
    }

    #[test]
    fn every_float_type_is_read() {
        let mut file = SafetensorsFile::from_bytes(sound()).unwrap();
        assert_eq!(file.tensor("a", &[2, 1]).unwrap(), [1.5, -2.0]);
        assert_eq!(file.tensor("b", &[2]).unwrap(), [0.5, 4.0]);
        assert_eq!(file.tensor("c", &[2]).unwrap(), [0.25, 8.0]);
        let error = |found: Result<Vec<f32>, ModelError>| found.unwrap_err().to_string();
        assert!(error(file.tensor("d", &[1])).contains("d: has type I8"));
        assert!(error(file.tensor("e", &[1])).contains("e: the file has no such tensor"));
        assert!(error(file.tensor("a", &[1, 2])).contains("shape [2, 1], expected [1, 2]"));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let with_header = |header: &str, data: usize| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.resize(bytes.len() + data, 0);
            bytes
        };
        let nested = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        for bytes in [
            vec![0; 7],
            u64::MAX.to_le_bytes().to_vec(),
            with_header("", 0),
            with_header("{", 0),
            with_header(&nested, 0),
            with_header(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
                4,
            ),
            with_header(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                3,
            ),
            with_header(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            with_header(
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#,
                4,
            ),
            with_header(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                4,
            ),
        ] {
            let error = SafetensorsFile::from_bytes(bytes).unwrap_err().to_string();
            assert!(error.contains("header: "), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let values = [1.0, -0.5, 3.0, 0.0, 1e-3, 7.0];
        let tensors = [("x".to_owned(), vec![2, 3]), ("y".to_owned(), vec![1])];
        for kind in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let path = folder.path().join(kind.torch_name());
            let mut writer = SafetensorsWriter::create(&path, kind, &tensors).unwrap();
            writer.tensor("x", &values).unwrap();
            assert!(writer.tensor("z", &[1.0]).is_err());
            let mut writer = SafetensorsWriter::create(&path, kind, &tensors).unwrap();
            writer.tensor("x", &values).unwrap();
            writer.tensor("y", &[2.0]).unwrap();
            writer.finish().unwrap();
            let mut file = SafetensorsFile::open(&path).unwrap();
            let found = file.tensor("x", &[2, 3]).unwrap();
            assert!(
                found.iter().zip(values).all(|(a, b)| (a - b).abs() < 1e-5),
                "{found:?}"
            );
            assert_eq!(file.tensor("y", &[1]).unwrap(), [2.0]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(fuzz::cases()))]

        #[test]
        fn damaged_files_never_panic(changes in fuzz::changes(300), end in fuzz::end()) {
            let bytes = fuzz::mutate(&sound(), &changes, end);
            if let Ok(values) = read_all(bytes) {
                prop_assert!(values <= 300);
            }
        }
    }
}
