//! The reader: everything a file says is checked before it is used.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::{FORMAT_VERSION, GRID_PREFIX, LENGTH_BYTES, QuantNote, TENSOR_PREFIX, VERSION_KEY};
use crate::error::LutError;
use crate::grid::Grid;
use crate::quant::{Layout, QuantMatrix};

/// Largest header read: what the safetensors crate accepts too.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor file. Opening it checks the container and every grid; tensors stay on disk until they
/// are asked for, and what a matrix says of itself is checked then. No content of a file panics.
#[derive(Debug)]
pub struct TensorFile {
    /// What errors call the file.
    origin: String,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
    grids: BTreeMap<String, Grid>,
    data: Data,
}

/// Where the tensors are.
#[derive(Debug)]
enum Data {
    Memory(Vec<u8>),
    File {
        file: Mutex<File>,
        /// Where the tensors begin, in bytes.
        start: u64,
    },
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`LutError::Io`]; [`LutError::Container`] for files that are no safetensors or cut short;
    /// [`LutError::FormatVersion`], [`LutError::MissingMetadata`] and [`LutError::Metadata`].
    pub fn open(path: &Path) -> Result<TensorFile, LutError> {
        let io_error = |source| LutError::Io {
            action: "read",
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(io_error)?;
        let info = file.metadata().map_err(io_error)?;
        let origin = path.display().to_string();
        if !info.is_file() {
            return Err(container(&origin, "it is not a regular file"));
        }
        let opened = TensorFile::read(origin, &file, info.len(), |start, _| {
            Ok(Data::File {
                file: Mutex::new(file.try_clone()?),
                start,
            })
        });
        opened.map_err(|error| match error {
            ReadError::Io(source) => io_error(source),
            ReadError::Lut(error) => error,
        })
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<TensorFile, LutError> {
        let origin = "(bytes)".to_owned();
        let len = bytes.len() as u64;
        let read = TensorFile::read(origin.clone(), bytes.as_slice(), len, |_, source| {
            let mut data = Vec::new();
            source.read_to_end(&mut data)?;
            Ok(Data::Memory(data))
        });
        read.map_err(|error| match error {
            ReadError::Io(error) => container(&origin, error),
            ReadError::Lut(error) => error,
        })
    }

    /// The matrix that was written under this name.
    ///
    /// # Errors
    /// [`LutError::MissingTensor`], [`LutError::WrongTensor`], [`LutError::MissingMetadata`],
    /// [`LutError::Metadata`], and those of [`QuantMatrix::from_planes`].
    pub fn quant(&self, name: &str) -> Result<QuantMatrix, LutError> {
        let rows = self.quant_info(name)?.rows;
        self.quant_rows(name, 0..rows)
    }

    /// Some rows of the matrix that was written under this name, as a matrix of their own: what a
    /// reader takes who has no room for all of it.
    ///
    /// # Errors
    /// Those of [`TensorFile::quant`]; [`LutError::Position`] for rows that are not there.
    pub fn quant_rows(&self, name: &str, rows: Range<usize>) -> Result<QuantMatrix, LutError> {
        let QuantInfo {
            grid,
            rows: all,
            cols,
            group,
        } = self.quant_info(name)?;
        if rows.start > rows.end || rows.end > all {
            return Err(LutError::Position {
                row: rows.end.max(rows.start),
                col: 0,
                rows: all,
                cols,
            });
        }
        let layout = Layout::new(all, cols, group, name)?;
        let part = |suffix: &str, dtype, width: usize, bytes: usize| {
            let name = format!("{name}.{suffix}");
            let range = rows.start * width * bytes..rows.end * width * bytes;
            self.tensor_bytes(&name, dtype, &[all, width], range)
        };
        let nibbles = part("codes", Dtype::U8, layout.row_bytes(), 1)?.into_owned();
        let high = match grid.is_wide() {
            true => Some(part("high", Dtype::U8, layout.high_row_bytes(), 1)?.into_owned()),
            false => None,
        };
        let scales = floats(&part("scales", Dtype::F32, layout.groups, 4)?);
        let n_rows = rows.len();
        QuantMatrix::from_planes(&grid, n_rows, cols, group, nibbles, high, scales, name)
            .map_err(|error| error.after_rows(rows.start))
    }

    /// Grid and sizes of the matrix that was written under this name, as its notes say.
    ///
    /// # Errors
    /// Those of [`TensorFile::quant`] that concern the notes.
    pub fn quant_info(&self, name: &str) -> Result<QuantInfo, LutError> {
        let key = format!("{TENSOR_PREFIX}{name}");
        let Some(text) = self.metadata.get(&key) else {
            return Err(self.missing(name));
        };
        let note: QuantNote = serde_json::from_str(text)
            .map_err(|error| metadata_error(&self.origin, &key, error))?;
        let grid = self
            .grids
            .get(&note.grid)
            .ok_or_else(|| LutError::MissingMetadata {
                file: self.origin.clone(),
                key: format!("{GRID_PREFIX}{}", note.grid),
            })?;
        let codes = self.info(&format!("{name}.codes"))?;
        Ok(QuantInfo {
            grid: grid.clone(),
            rows: codes.shape.first().copied().unwrap_or_default(),
            cols: note.cols,
            group: note.group,
        })
    }

    /// An f32 tensor of exactly this shape, row-major.
    ///
    /// # Errors
    /// [`LutError::MissingTensor`], [`LutError::WrongTensor`].
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LutError> {
        Ok(floats(&self.tensor(name, Dtype::F32, shape)?))
    }

    /// Some rows of an f32 tensor of exactly this shape (rows, columns).
    ///
    /// # Errors
    /// Those of [`TensorFile::f32`]; [`LutError::Position`] for rows that are not there.
    pub fn f32_rows(
        &self,
        name: &str,
        (rows, cols): (usize, usize),
        part: Range<usize>,
    ) -> Result<Vec<f32>, LutError> {
        if part.start > part.end || part.end > rows {
            return Err(LutError::Position {
                row: part.end.max(part.start),
                col: 0,
                rows,
                cols,
            });
        }
        let bytes = part.start * cols * 4..part.end * cols * 4;
        let bytes = self.tensor_bytes(name, Dtype::F32, &[rows, cols], bytes)?;
        Ok(floats(&bytes))
    }

    /// An i8 tensor of exactly this shape, row-major.
    ///
    /// # Errors
    /// [`LutError::MissingTensor`], [`LutError::WrongTensor`].
    pub fn i8(&self, name: &str, shape: &[usize]) -> Result<Vec<i8>, LutError> {
        let bytes = self.tensor(name, Dtype::I8, shape)?;
        Ok(bytes.iter().map(|&byte| byte.cast_signed()).collect())
    }

    /// Copies an f32 tensor of any shape with `out.len()` elements into `out`, row-major.
    ///
    /// # Errors
    /// [`LutError::MissingTensor`], [`LutError::WrongTensor`], [`LutError::Length`].
    pub fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), LutError> {
        let shape = self.info(name)?.shape.clone();
        let bytes = self.tensor(name, Dtype::F32, &shape)?;
        let chunks = bytes.as_chunks().0;
        if chunks.len() != out.len() {
            return Err(LutError::Length {
                name: name.to_owned(),
                what: "tensor",
                expected: out.len(),
                found: chunks.len(),
            });
        }
        for (value, &bytes) in out.iter_mut().zip(chunks) {
            *value = f32::from_le_bytes(bytes);
        }
        Ok(())
    }

    /// Names of the stored tensors, sorted; a matrix `N` is there as `N.codes`, `N.scales`, ...
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names of the quantised matrices, sorted, as [`TensorFile::quant`] takes them.
    pub fn quant_names(&self) -> impl Iterator<Item = &str> {
        self.metadata
            .keys()
            .filter_map(|key| key.strip_prefix(TENSOR_PREFIX))
    }

    /// Shape of a stored tensor.
    ///
    /// # Errors
    /// [`LutError::MissingTensor`].
    pub fn shape(&self, name: &str) -> Result<&[usize], LutError> {
        Ok(&self.info(name)?.shape)
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Reads a file of `len` bytes. No buffer is sized by the file's content before that content
    /// has been held against `len`.
    fn read<R: Read>(
        origin: String,
        mut source: R,
        len: u64,
        data: impl FnOnce(u64, &mut R) -> io::Result<Data>,
    ) -> Result<TensorFile, ReadError> {
        let mut length = [0; LENGTH_BYTES];
        let Some(after_length) = len.checked_sub(LENGTH_BYTES as u64) else {
            let reason = format!("{len} bytes are too short for a header");
            return Err(container(&origin, reason).into());
        };
        source.read_exact(&mut length)?;
        let header_len = u64::from_le_bytes(length);
        if header_len > after_length.min(MAX_HEADER_BYTES) {
            let reason = format!("a header of {header_len} bytes in a file of {len}");
            return Err(container(&origin, reason).into());
        }
        let header = read_buffer(&mut source, header_len)?;
        // Parsing checks that the tensors lie end to end and fit their shapes.
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| container(&origin, error))?;
        let data_len = after_length - header_len;
        if header.data_len() as u64 != data_len {
            let described = header.data_len();
            let reason =
                format!("its tensors take {described} bytes but it holds {data_len} of them");
            return Err(container(&origin, reason).into());
        }
        let metadata: BTreeMap<_, _> = header
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        check_version(&origin, &metadata)?;
        let grids = read_grids(&origin, &metadata)?;
        let tensors = header
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()));
        let tensors = tensors.collect();
        let data = data(LENGTH_BYTES as u64 + header_len, &mut source)?;
        Ok(TensorFile {
            origin,
            tensors,
            metadata,
            grids,
            data,
        })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, LutError> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    /// The bytes of a tensor of this type and shape.
    fn tensor(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Cow<'_, [u8]>, LutError> {
        let (start, end) = self.info(name)?.data_offsets;
        self.tensor_bytes(name, dtype, shape, 0..end.saturating_sub(start))
    }

    /// Some bytes of a tensor of this type and shape.
    fn tensor_bytes(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        range: Range<usize>,
    ) -> Result<Cow<'_, [u8]>, LutError> {
        let info = self.info(name)?;
        if info.dtype != dtype || info.shape != shape {
            return Err(LutError::WrongTensor {
                file: self.origin.clone(),
                name: name.to_owned(),
                expected: format!("{dtype} {shape:?}"),
                found: format!("{} {:?}", info.dtype, info.shape),
            });
        }
        let (start, end) = info.data_offsets;
        let range = start + range.start..start + range.end;
        if range.end > end {
            return Err(container(&self.origin, "a range outside its tensor"));
        }
        match &self.data {
            Data::Memory(data) => {
                let bytes = data.get(range).map(Cow::Borrowed);
                bytes.ok_or_else(|| container(&self.origin, "offsets outside the data"))
            }
            Data::File { file, start } => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let read = file
                    .seek(SeekFrom::Start(start + range.start as u64))
                    .and_then(|_| read_buffer(&mut *file, range.len() as u64));
                read.map(Cow::Owned).map_err(|source| LutError::Io {
                    action: "read",
                    path: self.origin.clone().into(),
                    source,
                })
            }
        }
    }

    fn missing(&self, name: &str) -> LutError {
        LutError::MissingTensor {
            file: self.origin.clone(),
            name: name.to_owned(),
        }
    }
}

/// What a file says of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantInfo {
    /// The grid of its codes.
    pub grid: Grid,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Columns that share a scale.
    pub group: usize,
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// Reading can fail in the file system or in the content; only the caller knows the path.
enum ReadError {
    Io(io::Error),
    Lut(LutError),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

impl From<LutError> for ReadError {
    fn from(error: LutError) -> ReadError {
        ReadError::Lut(error)
    }
}

/// Reads exactly `len` bytes; `len` is no more than the file's length.
fn read_buffer(source: &mut impl Read, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(len)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    source.take(len as u64).read_to_end(&mut buffer)?;
    if buffer.len() < len {
        // The file became shorter while it was read.
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(buffer)
}

fn check_version(origin: &str, metadata: &BTreeMap<String, String>) -> Result<(), LutError> {
    let found = metadata
        .get(VERSION_KEY)
        .ok_or_else(|| LutError::MissingMetadata {
            file: origin.to_owned(),
            key: VERSION_KEY.to_owned(),
        })?;
    if *found == FORMAT_VERSION.to_string() {
        return Ok(());
    }
    Err(LutError::FormatVersion {
        file: origin.to_owned(),
        // Hostile text may be long.
        found: found.chars().take(40).collect(),
        supported: FORMAT_VERSION,
    })
}

fn read_grids(
    origin: &str,
    metadata: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Grid>, LutError> {
    let mut grids = BTreeMap::new();
    for (key, text) in metadata {
        let Some(id) = key.strip_prefix(GRID_PREFIX) else {
            continue;
        };
        let values: Vec<f64> =
            serde_json::from_str(text).map_err(|error| metadata_error(origin, key, error))?;
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        let grid = Grid::new(id, &values).map_err(|error| metadata_error(origin, key, error))?;
        grids.insert(id.to_owned(), grid);
    }
    Ok(grids)
}

fn container(file: &str, reason: impl ToString) -> LutError {
    LutError::Container {
        file: file.to_owned(),
        reason: reason.to_string(),
    }
}

fn metadata_error(file: &str, key: &str, reason: impl ToString) -> LutError {
    LutError::Metadata {
        file: file.to_owned(),
        key: key.to_owned(),
        reason: reason.to_string(),
    }
}
