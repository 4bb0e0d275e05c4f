//! The reader: everything that a file says is held against its length before it is believed.

use std::collections::BTreeMap;
use std::path::Path;

use super::{
    ALIGNMENT_KEY, ARRAY_TYPE, Array, DEFAULT_ALIGNMENT, MAGIC, STRING_TYPE, ScalarType,
    TensorType, VERSION, Value,
};
use crate::ModelError;
use crate::foreign::bytes::{ByteSource, Cursor, LFS_START, foreign, printable};

/// Header bytes read at most: bounds the memory that metadata can take, at about 4 bytes each.
const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Longest key or tensor name; the format allows 65,535 and 64.
const MAX_NAME_BYTES: u64 = 65_535;
/// How deep arrays may hold arrays.
const MAX_DEPTH: u32 = 4;
/// The format's limit.
const MAX_DIMENSIONS: u32 = 4;
/// Bytes of the shortest pair (empty key, type, one byte) and tensor (empty name, no dimension).
const MIN_PAIR_BYTES: u64 = 13;
const MIN_TENSOR_BYTES: u64 = 24;
/// Values converted at a time.
const CHUNK_VALUES: usize = 1 << 16;

/// An open GGUF file: metadata in memory, tensors on disk.
#[derive(Debug)]
pub struct GgufFile {
    source: ByteSource,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Offset of the data in the file.
    data_start: u64,
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Dimensions, the slowest first: a matrix is (rows, cols).
    pub shape: Vec<usize>,
    /// Type of the data.
    pub tensor_type: TensorType,
    /// Offset into the data, and length there.
    offset: u64,
    bytes: u64,
}

impl TensorInfo {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds nothing; no tensor of a file does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl GgufFile {
    /// Opens a file and checks its header. No tensor is read.
    ///
    /// # Errors
    /// [`ModelError::Foreign`] names the key, the tensor or the part of the header that is wrong:
    /// counts and lengths beyond the file, unknown types, duplicate names, tensors that overlap,
    /// are misaligned or end behind the file.
    pub fn open(path: &Path) -> Result<GgufFile, ModelError> {
        GgufFile::read(ByteSource::open(path)?)
    }

    /// The same for a file in memory.
    ///
    /// # Errors
    /// Those of [`GgufFile::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<GgufFile, ModelError> {
        GgufFile::read(ByteSource::from_bytes(bytes))
    }

    /// What errors call the file.
    pub fn origin(&self) -> &str {
        self.source.origin()
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The metadata, sorted by key.
    pub fn all_metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// A tensor's values, row-major.
    ///
    /// # Errors
    /// [`ModelError::Foreign`] for a missing tensor, another shape, values that are not finite,
    /// or a file that became shorter.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let Some(info) = self.tensors.get(name).cloned() else {
            return Err(self.error(name, "the file has no such tensor"));
        };
        if info.shape != shape {
            let found = &info.shape;
            return Err(self.error(name, format!("has shape {found:?}, expected {shape:?}")));
        }
        let kind = info.tensor_type;
        let mut values = vec![0.0; info.len()];
        let chunk = CHUNK_VALUES - CHUNK_VALUES % kind.block_values();
        let mut bytes = vec![0; chunk / kind.block_values() * kind.block_bytes()];
        let mut at = self.data_start + info.offset;
        for values in values.chunks_mut(chunk) {
            let bytes = &mut bytes[..values.len() / kind.block_values() * kind.block_bytes()];
            self.source.read_at(at, bytes, name)?;
            kind.dequantise(bytes, values);
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

    pub(crate) fn error(&self, place: &str, reason: impl ToString) -> ModelError {
        foreign(self.source.origin(), place, reason)
    }

    fn read(mut source: ByteSource) -> Result<GgufFile, ModelError> {
        let mut header = Header {
            cursor: Cursor::new(&mut source),
        };
        let (n_tensors, n_pairs) = header.counts()?;
        let metadata = header.pairs(n_pairs)?;
        let alignment = match metadata.get(ALIGNMENT_KEY) {
            None => DEFAULT_ALIGNMENT,
            Some(value) => value
                .as_u64()
                .filter(|it| it.is_power_of_two() && *it <= 1 << 20)
                .ok_or_else(|| header.error(ALIGNMENT_KEY, "is not a power of two up to 2^20"))?,
        };
        let tensors = header.tensors(n_tensors)?;
        let header_end = header.cursor.position();
        let data_start = header_end.next_multiple_of(alignment);
        // A file without tensors may leave out the padding before its data.
        let data_len = source.len().saturating_sub(data_start);
        let file = GgufFile {
            source,
            metadata,
            tensors,
            data_start,
        };
        file.check_places(alignment, data_len)?;
        Ok(file)
    }

    /// Tensors must be aligned, inside the file, and apart.
    fn check_places(&self, alignment: u64, data_len: u64) -> Result<(), ModelError> {
        let mut in_order: Vec<_> = self.tensors.iter().collect();
        in_order.sort_by_key(|(_, info)| info.offset);
        let mut before: Option<(&String, u64)> = None;
        for (name, info) in in_order {
            let offset = info.offset;
            if !offset.is_multiple_of(alignment) {
                let reason = format!("offset {offset} is not a multiple of {alignment}");
                return Err(self.error(name, reason));
            }
            let end = offset
                .checked_add(info.bytes)
                .filter(|end| *end <= data_len);
            let Some(end) = end else {
                let bytes = info.bytes;
                let reason = format!(
                    "{bytes} bytes at offset {offset} are not in the file's {data_len} of data"
                );
                return Err(self.error(name, reason));
            };
            if let Some((other, other_end)) = before
                && offset < other_end
            {
                let reason = format!("overlaps with tensor {}", printable(other));
                return Err(self.error(name, reason));
            }
            before = Some((name, end));
        }
        Ok(())
    }
}

struct Header<'s> {
    cursor: Cursor<'s>,
}

impl Header<'_> {
    fn counts(&mut self) -> Result<(u64, u64), ModelError> {
        let magic: [u8; 4] = self.cursor.array("magic")?;
        if magic == LFS_START[..4] {
            let reason = "this is a Git LFS pointer, not the weights; hint: git lfs pull";
            return Err(self.error("file", reason));
        }
        if magic != MAGIC {
            return Err(self.error("magic", "is not GGUF"));
        }
        let version = self.u32("version")?;
        if version != VERSION && version != 2 {
            let hint = if version.swap_bytes() <= VERSION {
                ", which is a big-endian file"
            } else {
                ""
            };
            let reason = format!("is {version}{hint}; this build reads 2 and 3, little-endian");
            return Err(self.error("version", reason));
        }
        let n_tensors = self.u64("number of tensors")?;
        let n_pairs = self.u64("number of metadata pairs")?;
        let left = self.cursor.remaining();
        for (place, count, least) in [
            ("number of tensors", n_tensors, MIN_TENSOR_BYTES),
            ("number of metadata pairs", n_pairs, MIN_PAIR_BYTES),
        ] {
            if count > left / least {
                let reason = format!("is {count}, too many for the {left} bytes that are left");
                return Err(self.error(place, reason));
            }
        }
        Ok((n_tensors, n_pairs))
    }

    fn pairs(&mut self, count: u64) -> Result<BTreeMap<String, Value>, ModelError> {
        let mut pairs = BTreeMap::new();
        for index in 0..count {
            let place = format!("key of metadata pair {index}");
            let key = self.name(&place)?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key)?;
            if pairs.contains_key(&key) {
                return Err(self.error(&key, "is there twice"));
            }
            pairs.insert(key, value);
            self.check_size()?;
        }
        Ok(pairs)
    }

    fn tensors(&mut self, count: u64) -> Result<BTreeMap<String, TensorInfo>, ModelError> {
        let mut tensors = BTreeMap::new();
        for index in 0..count {
            let name = self.name(&format!("name of tensor {index}"))?;
            let info = self.tensor_info(&name)?;
            if tensors.contains_key(&name) {
                return Err(self.error(&name, "is there twice"));
            }
            tensors.insert(name, info);
            self.check_size()?;
        }
        Ok(tensors)
    }

    fn tensor_info(&mut self, name: &str) -> Result<TensorInfo, ModelError> {
        let dimensions = self.u32(name)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let reason = format!("has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}");
            return Err(self.error(name, reason));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(name)?;
            let size = usize::try_from(size).ok().filter(|size| *size > 0);
            shape.push(size.ok_or_else(|| self.error(name, "has an impossible dimension"))?);
        }
        let id = self.u32(name)?;
        let tensor_type = TensorType::from_id(id).ok_or_else(|| {
            let known: Vec<_> = TensorType::all().map(TensorType::name).collect();
            let known = known.join(" ");
            let kind = TensorType::describe(id);
            let reason = format!("has type {kind}; this build reads {known}");
            self.error(name, reason)
        })?;
        let (values, bytes) = (tensor_type.block_values(), tensor_type.block_bytes());
        if !shape[0].is_multiple_of(values) {
            let (cols, kind) = (shape[0], tensor_type.name());
            let reason = format!("has rows of {cols}, not a multiple of {kind}'s {values}");
            return Err(self.error(name, reason));
        }
        let offset = self.u64(name)?;
        shape.reverse();
        // Four bytes a value is what it takes in memory.
        let len = shape
            .iter()
            .try_fold(4usize, |len, size| len.checked_mul(*size));
        let len = len.ok_or_else(|| self.error(name, format!("is too large: {shape:?}")))? / 4;
        Ok(TensorInfo {
            shape,
            tensor_type,
            offset,
            // Blocks take at most four bytes a value, so this product fits too.
            bytes: (len / values * bytes) as u64,
        })
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, ModelError> {
        Ok(match kind {
            STRING_TYPE => Value::String(self.string(u64::MAX, key)?),
            ARRAY_TYPE => Value::Array(self.list(MAX_DEPTH, key)?),
            _ => {
                let scalar = self.scalar_type(kind, key)?;
                let bytes = self.cursor.bytes(scalar.bytes() as u64, key)?;
                let value = scalar.decode(&bytes);
                Value::Scalar(value.ok_or_else(|| self.error(key, "is neither true nor false"))?)
            }
        })
    }

    fn list(&mut self, depth: u32, key: &str) -> Result<Array, ModelError> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        // A string has a length, an array a type and a length.
        let least = match kind {
            STRING_TYPE => 8,
            ARRAY_TYPE => 12,
            _ => self.scalar_type(kind, key)?.bytes() as u64,
        };
        let left = self.cursor.remaining().min(MAX_HEADER_BYTES);
        if count > left / least {
            let reason = format!("is a list of {count}, too long for the {left} bytes left");
            return Err(self.error(key, reason));
        }
        match kind {
            STRING_TYPE => {
                let texts = (0..count).map(|_| self.string(u64::MAX, key));
                Ok(Array::Strings(texts.collect::<Result<_, _>>()?))
            }
            ARRAY_TYPE if depth == 0 => {
                Err(self.error(key, format!("has lists more than {MAX_DEPTH} deep")))
            }
            ARRAY_TYPE => {
                let lists = (0..count).map(|_| self.list(depth - 1, key));
                Ok(Array::Arrays(lists.collect::<Result<_, _>>()?))
            }
            _ => {
                let scalar = self.scalar_type(kind, key)?;
                let bytes = self.cursor.bytes(count * least, key)?;
                if scalar == ScalarType::Bool && bytes.iter().any(|byte| *byte > 1) {
                    return Err(self.error(key, "holds values neither true nor false"));
                }
                Ok(Array::Scalars(scalar, bytes))
            }
        }
    }

    fn scalar_type(&self, kind: u32, key: &str) -> Result<ScalarType, ModelError> {
        ScalarType::from_id(kind)
            .ok_or_else(|| self.error(key, format!("has a value of unknown type {kind}")))
    }

    fn name(&mut self, place: &str) -> Result<String, ModelError> {
        let name = self.string(MAX_NAME_BYTES, place)?;
        if name.is_empty() {
            return Err(self.error(place, "is empty"));
        }
        Ok(name)
    }

    fn string(&mut self, longest: u64, place: &str) -> Result<String, ModelError> {
        let len = self.u64(place)?;
        if len > longest {
            return Err(self.error(place, format!("has {len} bytes")));
        }
        self.check_size()?;
        let bytes = self.cursor.bytes(len, place)?;
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            self.error(place, format!("is not UTF-8 at its byte {at}"))
        })
    }

    fn check_size(&self) -> Result<(), ModelError> {
        if self.cursor.position() > MAX_HEADER_BYTES {
            let reason = format!("is longer than {MAX_HEADER_BYTES} bytes");
            return Err(self.error("header", reason));
        }
        Ok(())
    }

    fn u32(&mut self, place: &str) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.cursor.array(place)?))
    }

    fn u64(&mut self, place: &str) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.cursor.array(place)?))
    }

    fn error(&self, place: &str, reason: impl ToString) -> ModelError {
        self.cursor.error(place, reason)
    }
}
