//! The writer: the header from a list of tensors, then the data of each as it comes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{ARRAY_TYPE, Array, DEFAULT_ALIGNMENT, MAGIC, STRING_TYPE, TensorType, VERSION, Value};
use crate::ModelError;
use crate::foreign::bytes::foreign;

/// A tensor to be written: name, shape (slowest dimension first) and type.
type Planned = (String, Vec<usize>, TensorType);

/// Writes a GGUF file tensor by tensor, so that one of them is in memory at a time.
///
/// The tensors are [planned](GgufWriter::plan) first, since the header names them all; then
/// [`GgufWriter::start`] writes the header and [`Started::tensor`] the data, in the same order.
#[derive(Debug, Default)]
pub struct GgufWriter {
    metadata: BTreeMap<String, Value>,
    tensors: Vec<Planned>,
}

/// A file whose header is written.
#[derive(Debug)]
pub struct Started {
    path: PathBuf,
    to: BufWriter<File>,
    rest: std::vec::IntoIter<Planned>,
}

impl GgufWriter {
    /// A file of nothing.
    pub fn new() -> Self {
        GgufWriter::default()
    }

    /// Sets a metadata key.
    pub fn set(&mut self, key: &str, value: Value) -> &mut Self {
        self.metadata.insert(key.to_owned(), value);
        self
    }

    /// Announces a tensor.
    pub fn plan(&mut self, name: &str, shape: &[usize], tensor_type: TensorType) -> &mut Self {
        let planned = (name.to_owned(), shape.to_vec(), tensor_type);
        self.tensors.push(planned);
        self
    }

    /// The header: everything before the data, padded to the alignment.
    fn header(&self) -> Vec<u8> {
        let mut to = MAGIC.to_vec();
        to.extend(VERSION.to_le_bytes());
        to.extend((self.tensors.len() as u64).to_le_bytes());
        to.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(key, &mut to);
            match value {
                Value::Scalar(scalar) => {
                    to.extend(scalar.scalar_type().id().to_le_bytes());
                    scalar.encode(&mut to);
                }
                Value::String(text) => {
                    to.extend(STRING_TYPE.to_le_bytes());
                    put_string(text, &mut to);
                }
                Value::Array(array) => {
                    to.extend(ARRAY_TYPE.to_le_bytes());
                    put_array(array, &mut to);
                }
            }
        }
        let mut offset = 0u64;
        for (name, shape, tensor_type) in &self.tensors {
            put_string(name, &mut to);
            to.extend((shape.len() as u32).to_le_bytes());
            for size in shape.iter().rev() {
                to.extend((*size as u64).to_le_bytes());
            }
            to.extend(tensor_type.id().to_le_bytes());
            to.extend(offset.to_le_bytes());
            offset += bytes_of(shape, *tensor_type).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        to.resize(to.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        to
    }

    /// Creates the file and writes its header.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Foreign`] for a tensor whose rows are no whole blocks or
    /// whose type is only read.
    pub fn start(self, path: &Path) -> Result<Started, ModelError> {
        let origin = path.display().to_string();
        for (name, shape, kind) in &self.tensors {
            let whole = shape
                .last()
                .is_some_and(|cols| cols.is_multiple_of(kind.block_values()));
            if !whole || !kind.quantise(&[], &mut Vec::new()) {
                let reason = format!("cannot be written as {} with shape {shape:?}", kind.name());
                return Err(foreign(&origin, name, reason));
            }
        }
        let file = File::create(path).map_err(ModelError::io("create", path))?;
        let mut to = BufWriter::with_capacity(1 << 20, file);
        to.write_all(&self.header())
            .map_err(ModelError::io("write", path))?;
        Ok(Started {
            path: path.to_path_buf(),
            to,
            rest: self.tensors.into_iter(),
        })
    }
}

impl Started {
    /// Writes the next tensor, which must be `name`; `values` are row-major.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Foreign`] for another tensor than the planned one.
    pub fn tensor(&mut self, name: &str, values: &[f32]) -> Result<(), ModelError> {
        let planned = self.rest.next();
        let fits = |(planned, shape, _): &Planned| {
            planned == name && shape.iter().product::<usize>() == values.len()
        };
        let Some((_, shape, kind)) = planned.filter(fits) else {
            let origin = self.path.display().to_string();
            return Err(foreign(
                &origin,
                name,
                "is not the tensor that was planned here",
            ));
        };
        let mut bytes = Vec::with_capacity(bytes_of(&shape, kind) as usize);
        kind.quantise(values, &mut bytes);
        bytes.resize(bytes.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        self.to
            .write_all(&bytes)
            .map_err(ModelError::io("write", &self.path))
    }

    /// Ends the file and syncs it.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Foreign`] when a planned tensor was not written.
    pub fn finish(mut self) -> Result<(), ModelError> {
        if let Some((name, ..)) = self.rest.next() {
            let origin = self.path.display().to_string();
            return Err(foreign(&origin, &name, "was planned and not written"));
        }
        let path = self.path;
        let file = self.to.into_inner().map_err(|error| error.into_error());
        file.and_then(|file| file.sync_all())
            .map_err(ModelError::io("write", &path))
    }
}

fn bytes_of(shape: &[usize], kind: TensorType) -> u64 {
    (shape.iter().product::<usize>() / kind.block_values() * kind.block_bytes()) as u64
}

fn put_string(text: &str, to: &mut Vec<u8>) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

fn put_array(array: &Array, to: &mut Vec<u8>) {
    match array {
        Array::Scalars(kind, bytes) => {
            to.extend(kind.id().to_le_bytes());
            to.extend(((bytes.len() / kind.bytes()) as u64).to_le_bytes());
            to.extend(bytes);
        }
        Array::Strings(texts) => {
            to.extend(STRING_TYPE.to_le_bytes());
            to.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| put_string(text, to));
        }
        Array::Arrays(arrays) => {
            to.extend(ARRAY_TYPE.to_le_bytes());
            to.extend((arrays.len() as u64).to_le_bytes());
            arrays.iter().for_each(|array| put_array(array, to));
        }
    }
}
