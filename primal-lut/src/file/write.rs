//! The writer: streams borrowed tensors into a new file.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};
use serde::Serialize;

use super::{
    FORMAT_VERSION, GRID_PREFIX, KIND, KIND_KEY, LENGTH_BYTES, QuantNote, RESERVED_NAME,
    TENSOR_PREFIX, VERSION_KEY,
};
use crate::error::LutError;
use crate::quant::QuantMatrix;

/// Elements converted at a time when f32 are written.
const WRITE_CHUNK: usize = 1 << 12;

/// Collects borrowed tensors and writes them as one file. The same tensors and metadata give the
/// same bytes, in whatever order they were added.
///
/// What the format cannot hold (a shape that does not fit the data, a name used twice) is
/// reported when the file is written.
#[derive(Debug, Default)]
pub struct TensorFileWriter<'a> {
    tensors: Vec<Tensor<'a>>,
    metadata: BTreeMap<String, String>,
    /// The first thing that cannot be written: name and reason.
    problem: Option<(String, String)>,
}

impl<'a> TensorFileWriter<'a> {
    /// A writer of no tensors.
    pub fn new() -> Self {
        TensorFileWriter::default()
    }

    /// Adds a quantised matrix and the values of its grid.
    pub fn quant(&mut self, name: &str, matrix: &'a QuantMatrix) -> &mut Self {
        let rows = matrix.rows();
        let codes = Data::Bytes(matrix.nibbles());
        self.push(
            format!("{name}.codes"),
            &[rows, matrix.row_bytes()],
            Dtype::U8,
            codes,
        );
        if let Some(high) = matrix.high() {
            let shape = [rows, matrix.high_row_bytes()];
            self.push(format!("{name}.high"), &shape, Dtype::U8, Data::Bytes(high));
        }
        let scales = Data::F32(matrix.scales());
        self.push(
            format!("{name}.scales"),
            &[rows, matrix.groups_per_row()],
            Dtype::F32,
            scales,
        );

        let grid = matrix.grid();
        let note = QuantNote {
            grid: grid.id().into(),
            cols: matrix.cols(),
            group: matrix.group(),
        };
        self.note(format!("{TENSOR_PREFIX}{name}"), &note);
        // Widened: every JSON reader gives back the same f32.
        let values: Vec<f64> = grid.values().iter().map(|&value| value.into()).collect();
        self.note(format!("{GRID_PREFIX}{}", grid.id()), &values);
        self
    }

    /// Adds an f32 tensor, row-major.
    pub fn f32(&mut self, name: &str, shape: &[usize], values: &'a [f32]) -> &mut Self {
        self.push(name.to_owned(), shape, Dtype::F32, Data::F32(values));
        self
    }

    /// Adds an i8 tensor, row-major.
    pub fn i8(&mut self, name: &str, shape: &[usize], values: &'a [i8]) -> &mut Self {
        self.push(
            name.to_owned(),
            shape,
            Dtype::I8,
            Data::Bytes(bytemuck::cast_slice(values)),
        );
        self
    }

    /// Adds metadata of the caller's own.
    pub fn metadata(&mut self, key: &str, value: &str) -> &mut Self {
        let ours = [VERSION_KEY, KIND_KEY].contains(&key)
            || key.starts_with(GRID_PREFIX)
            || key.starts_with(TENSOR_PREFIX);
        if ours {
            self.refuse(key, "the key is the format's own");
        } else if self
            .metadata
            .insert(key.into(), value.into())
            .is_some_and(|old| old != value)
        {
            self.refuse(key, "the key has two values");
        }
        self
    }

    /// Streams the tensors into a new file and syncs it to the disk. The name itself is durable
    /// once the caller has synced the folder. On an error no file is left behind.
    ///
    /// # Errors
    /// [`LutError::Unwritable`] for what the format cannot hold, [`LutError::Io`] if the file
    /// exists already or cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LutError> {
        let (header, order) = self.header()?;
        let io_error = |action| {
            move |source| LutError::Io {
                action,
                path: path.to_path_buf(),
                source,
            }
        };
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(io_error("create"))?;
        let written = write_and_sync(file, &header, &order);
        if written.is_err() {
            // Frees the space of what did not fit; the error that matters is `written`.
            let _ = fs::remove_file(path);
        }
        written.map_err(io_error("write"))
    }

    /// The file's content.
    ///
    /// # Errors
    /// [`LutError::Unwritable`] for what the format cannot hold.
    pub fn to_bytes(&self) -> Result<Vec<u8>, LutError> {
        let (header, order) = self.header()?;
        let mut bytes = Vec::new();
        match write_parts(&mut bytes, &header, &order) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(unwritable("tensors", error)),
        }
    }

    fn push(&mut self, name: String, shape: &[usize], dtype: Dtype, data: Data<'a>) {
        let len = shape
            .iter()
            .try_fold(1usize, |len, &dim| len.checked_mul(dim));
        if len != Some(data.len()) {
            let reason = format!("shape {shape:?} does not fit its {} elements", data.len());
            self.refuse(&name, &reason);
        }
        self.tensors.push(Tensor {
            name,
            shape: shape.to_vec(),
            dtype,
            data,
        });
    }

    fn note(&mut self, key: String, note: &impl Serialize) {
        match serde_json::to_string(note) {
            Ok(text) => {
                let old = self.metadata.insert(key.clone(), text.clone());
                if old.is_some_and(|old| old != text) {
                    self.refuse(&key, "the key has two values");
                }
            }
            Err(error) => self.refuse(&key, &error.to_string()),
        }
    }

    fn refuse(&mut self, name: &str, reason: &str) {
        self.problem
            .get_or_insert_with(|| (name.to_owned(), reason.to_owned()));
    }

    /// The file up to the tensors' data, and the tensors in the order of their data.
    fn header(&self) -> Result<(Vec<u8>, Vec<&Tensor<'a>>), LutError> {
        if let Some((name, reason)) = &self.problem {
            return Err(unwritable(name, reason));
        }
        // Widest type first: since the data starts at a multiple of 8, all of it is aligned.
        let mut order: Vec<_> = self.tensors.iter().collect();
        order.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));

        // The crate's own serialiser keeps metadata in a hash map, whose order changes from run
        // to run; equal checkpoints must be equal bytes.
        let mut metadata = self.metadata.clone();
        metadata.insert(VERSION_KEY.into(), FORMAT_VERSION.to_string());
        metadata.insert(KIND_KEY.into(), KIND.into());
        let mut entries = BTreeMap::new();
        entries.insert(RESERVED_NAME, to_json(RESERVED_NAME, &metadata)?);
        let mut offset = 0;
        for tensor in &order {
            let end = offset + tensor.data.byte_len();
            let info = TensorInfo {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                data_offsets: (offset, end),
            };
            offset = end;
            if entries
                .insert(&tensor.name, to_json(&tensor.name, &info)?)
                .is_some()
            {
                return Err(unwritable(
                    &tensor.name,
                    "the name is used twice or reserved",
                ));
            }
        }
        let mut text = serde_json::to_vec(&entries).map_err(|error| unwritable("header", error))?;
        text.resize(text.len().next_multiple_of(LENGTH_BYTES), b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text);
        Ok((header, order))
    }
}

#[derive(Debug)]
struct Tensor<'a> {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    data: Data<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Data<'a> {
    Bytes(&'a [u8]),
    F32(&'a [f32]),
}

impl Data<'_> {
    fn len(self) -> usize {
        match self {
            Data::Bytes(bytes) => bytes.len(),
            Data::F32(values) => values.len(),
        }
    }

    fn byte_len(self) -> usize {
        match self {
            Data::Bytes(bytes) => bytes.len(),
            Data::F32(values) => size_of_val(values),
        }
    }

    fn write(self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Data::Bytes(bytes) => to.write_all(bytes),
            Data::F32(values) => {
                // The format is little-endian on every machine.
                let mut buffer = [[0; size_of::<f32>()]; WRITE_CHUNK];
                for values in values.chunks(WRITE_CHUNK) {
                    for (bytes, value) in buffer.iter_mut().zip(values) {
                        *bytes = value.to_le_bytes();
                    }
                    to.write_all(buffer[..values.len()].as_flattened())?;
                }
                Ok(())
            }
        }
    }
}

fn write_and_sync(file: File, header: &[u8], order: &[&Tensor<'_>]) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(1 << 20, file);
    write_parts(&mut to, header, order)?;
    to.into_inner()?.sync_all()
}

fn write_parts(to: &mut impl Write, header: &[u8], order: &[&Tensor<'_>]) -> io::Result<()> {
    to.write_all(header)?;
    order.iter().try_for_each(|tensor| tensor.data.write(to))
}

fn to_json(name: &str, value: &impl Serialize) -> Result<serde_json::Value, LutError> {
    serde_json::to_value(value).map_err(|error| unwritable(name, error))
}

fn unwritable(name: &str, reason: impl ToString) -> LutError {
    LutError::Unwritable {
        name: name.to_owned(),
        reason: reason.to_string(),
    }
}
