//! Positional reads from a file or a buffer, every one held against its length.
//!
//! Foreign files are read in pieces instead of being mapped: a file that is cut short while it is
//! open is then an error and not a signal, and a converted tensor is all that is in memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::ModelError;

/// Bytes that a header is read in.
const BUFFER_BYTES: usize = 1 << 16;

/// How the small text file begins that Git LFS leaves where the real one was not fetched:
/// `version https://git-lfs...`.
pub(crate) const LFS_START: &[u8; 8] = b"version ";

/// Something of known length that bytes are read from.
#[derive(Debug)]
pub(crate) struct ByteSource {
    /// What errors call it.
    origin: String,
    len: u64,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    File(File),
    Bytes(Vec<u8>),
}

impl ByteSource {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(ModelError::io("read", path))?;
        let info = file.metadata().map_err(ModelError::io("read", path))?;
        let origin = path.display().to_string();
        if !info.is_file() {
            return Err(foreign(&origin, "file", "is not a regular file"));
        }
        Ok(ByteSource {
            origin,
            len: info.len(),
            inner: Inner::File(file),
        })
    }

    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        ByteSource {
            origin: "(bytes)".to_owned(),
            len: bytes.len() as u64,
            inner: Inner::Bytes(bytes),
        }
    }

    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` from `offset` on; `place` is what an error says was being read.
    pub(crate) fn read_at(
        &mut self,
        offset: u64,
        out: &mut [u8],
        place: &str,
    ) -> Result<(), ModelError> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            let (n, len) = (out.len(), self.len);
            let reason = format!("{n} bytes at offset {offset} are not in a file of {len}");
            return Err(foreign(&self.origin, place, reason));
        }
        match &mut self.inner {
            Inner::Bytes(bytes) => {
                // Within the length, which is a usize.
                let start = offset as usize;
                out.copy_from_slice(&bytes[start..start + out.len()]);
                Ok(())
            }
            Inner::File(file) => file
                .seek(SeekFrom::Start(offset))
                .and_then(|_| file.read_exact(out))
                .map_err(|error| foreign(&self.origin, place, error)),
        }
    }
}

/// Reads a header from its start, never beyond the end of the source.
pub(crate) struct Cursor<'s> {
    source: &'s mut ByteSource,
    /// Offset of the buffer's first byte, and how far into the buffer reading has come.
    start: u64,
    used: usize,
    buffer: Vec<u8>,
}

impl<'s> Cursor<'s> {
    pub(crate) fn new(source: &'s mut ByteSource) -> Self {
        Cursor {
            source,
            start: 0,
            used: 0,
            buffer: Vec::new(),
        }
    }

    /// Offset of the next byte.
    pub(crate) fn position(&self) -> u64 {
        self.start + self.used as u64
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> u64 {
        self.source.len - self.position()
    }

    pub(crate) fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N], ModelError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, place)?;
        Ok(bytes)
    }

    /// The next `len` bytes; the length is checked before memory is taken.
    pub(crate) fn bytes(&mut self, len: u64, place: &str) -> Result<Vec<u8>, ModelError> {
        if len > self.remaining() {
            let left = self.remaining();
            return Err(self.error(place, format!("claims {len} bytes, {left} are left")));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes, place)?;
        Ok(bytes)
    }

    pub(crate) fn error(&self, place: &str, reason: impl ToString) -> ModelError {
        foreign(self.source.origin(), place, reason)
    }

    fn fill(&mut self, out: &mut [u8], place: &str) -> Result<(), ModelError> {
        let mut done = 0;
        while done < out.len() {
            if self.used == self.buffer.len() {
                let (start, left) = (self.position(), self.remaining());
                if left == 0 {
                    return Err(self.error(place, format!("the file ends at byte {start}")));
                }
                self.start = start;
                self.used = 0;
                self.buffer
                    .resize(left.min(BUFFER_BYTES as u64) as usize, 0);
                self.source.read_at(start, &mut self.buffer, place)?;
            }
            let n = (out.len() - done).min(self.buffer.len() - self.used);
            out[done..done + n].copy_from_slice(&self.buffer[self.used..self.used + n]);
            done += n;
            self.used += n;
        }
        Ok(())
    }
}

/// An error about a foreign file; hostile text in it is cut to a readable length.
pub(crate) fn foreign(file: &str, place: &str, reason: impl ToString) -> ModelError {
    ModelError::Foreign {
        file: file.to_owned(),
        place: printable(place),
        reason: reason.to_string(),
    }
}

/// At most 80 characters of a name that a file gave, control characters made visible.
pub(crate) fn printable(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(80)
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            escaped
                .into_iter()
                .flatten()
                .chain((!c.is_control()).then_some(c))
        })
        .collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}
