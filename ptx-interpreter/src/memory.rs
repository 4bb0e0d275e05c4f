//! Device memory whose every access is checked: bounds, alignment, initialisation, races.

use crate::error::Fault;
use crate::shadow::{Access, Place, Shadow};

/// Addresses of a buffer start at a multiple of this, far beyond the end of the one before, so
/// that an access that leaves its buffer still names it.
const SLOT_SHIFT: u32 = 36;
/// The first address; below it are the windows of shared and local memory.
const FIRST: u64 = 1 << 44;

/// Bytes with the knowledge of which were written.
#[derive(Clone, Default)]
pub(crate) struct Bytes {
    pub(crate) values: Vec<u8>,
    pub(crate) written: Vec<bool>,
}

impl Bytes {
    pub(crate) fn new(size: usize) -> Self {
        Bytes {
            values: vec![0xff; size],
            written: vec![false; size],
        }
    }

    /// Forgets what was written.
    pub(crate) fn clear(&mut self) {
        self.values.fill(0xff);
        self.written.fill(false);
    }

    /// Checks an access and returns its offset.
    #[inline]
    pub(crate) fn check(
        &self,
        offset: u64,
        bytes: usize,
        space: &'static str,
    ) -> Result<usize, Fault> {
        let inside = offset
            .checked_add(bytes as u64)
            .is_some_and(|end| end <= self.values.len() as u64);
        if inside {
            return Ok(offset as usize);
        }
        Err(Fault::OutOfBounds {
            bytes,
            offset,
            size: self.values.len(),
            space,
        })
    }

    #[inline]
    pub(crate) fn read(&self, at: usize, bytes: usize, space: &'static str) -> Result<u64, Fault> {
        let written = &self.written[at..at + bytes];
        let all = match bytes {
            4 => written == [true; 4],
            2 => written == [true; 2],
            _ => written.iter().all(|&written| written),
        };
        if !all {
            return Err(Fault::Uninitialised {
                offset: at as u64,
                space,
            });
        }
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&self.values[at..at + bytes]);
        Ok(u64::from_le_bytes(value))
    }

    #[inline]
    pub(crate) fn write(&mut self, at: usize, bytes: usize, value: u64) {
        self.values[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.written[at..at + bytes].fill(true);
    }
}

/// One allocation.
pub(crate) struct Buffer {
    pub(crate) bytes: Bytes,
    pub(crate) shadow: Shadow,
}

/// The global memory of a device.
#[derive(Default)]
pub struct Memory {
    /// By slot; a freed slot stays empty.
    buffers: Vec<Option<Buffer>>,
    used: usize,
    pub(crate) launches: u32,
}

impl Memory {
    /// No buffers.
    pub fn new() -> Self {
        Memory::default()
    }

    /// Allocates `bytes` uninitialised bytes; returns the address, which is never used again.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let slot = self.buffers.len() as u64;
        self.used += bytes;
        self.buffers.push(Some(Buffer {
            bytes: Bytes::new(bytes),
            shadow: Shadow::default(),
        }));
        FIRST + (slot << SLOT_SHIFT)
    }

    /// Frees the buffer that starts at `address`.
    pub fn free(&mut self, address: u64) -> Result<(), Fault> {
        let (slot, offset) = split(address).ok_or(Fault::WildAddress { address })?;
        if offset != 0 {
            return Err(Fault::WildAddress { address });
        }
        let buffer = self.buffers.get_mut(slot).and_then(Option::take);
        let buffer = buffer.ok_or(Fault::WildAddress { address })?;
        self.used -= buffer.bytes.values.len();
        Ok(())
    }

    /// Bytes allocated.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Copies `from` to `address`.
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let (buffer, offset) = self.locate(address)?;
        let at = buffer.bytes.check(offset, from.len(), "global")?;
        buffer.bytes.values[at..at + from.len()].copy_from_slice(from);
        buffer.bytes.written[at..at + from.len()].fill(true);
        Ok(())
    }

    /// Sets `count` bytes at `address` to `value`.
    pub fn fill(&mut self, address: u64, count: usize, value: u8) -> Result<(), Fault> {
        let (buffer, offset) = self.locate(address)?;
        let at = buffer.bytes.check(offset, count, "global")?;
        buffer.bytes.values[at..at + count].fill(value);
        buffer.bytes.written[at..at + count].fill(true);
        Ok(())
    }

    /// Copies from `address`; bytes that nobody wrote are an error.
    pub fn read(&mut self, address: u64, to: &mut [u8]) -> Result<(), Fault> {
        let (buffer, offset) = self.locate(address)?;
        let at = buffer.bytes.check(offset, to.len(), "global")?;
        let written = &buffer.bytes.written[at..at + to.len()];
        if let Some(hole) = written.iter().position(|&written| !written) {
            return Err(Fault::Uninitialised {
                offset: offset + hole as u64,
                space: "global",
            });
        }
        to.copy_from_slice(&buffer.bytes.values[at..at + to.len()]);
        Ok(())
    }

    fn locate(&mut self, address: u64) -> Result<(&mut Buffer, u64), Fault> {
        let (slot, offset) = split(address).ok_or(Fault::WildAddress { address })?;
        let buffer = self.buffers.get_mut(slot).and_then(Option::as_mut);
        Ok((buffer.ok_or(Fault::WildAddress { address })?, offset))
    }

    /// The buffer of an aligned access, checked against everything but initialisation.
    #[inline]
    pub(crate) fn access(
        &mut self,
        address: u64,
        bytes: usize,
        access: Access,
        now: &Place,
    ) -> Result<(&mut Bytes, usize), Fault> {
        let (buffer, offset) = self.locate(address)?;
        let at = buffer.bytes.check(offset, bytes, "global")?;
        let size = buffer.bytes.values.len();
        buffer
            .shadow
            .access((at, bytes, size), access, now, "global")?;
        Ok((&mut buffer.bytes, at))
    }
}

/// Slot and offset of a global address.
fn split(address: u64) -> Option<(usize, u64)> {
    let above = address.checked_sub(FIRST)?;
    Some((
        (above >> SLOT_SHIFT) as usize,
        above & ((1 << SLOT_SHIFT) - 1),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_copies_are_checked() {
        let mut memory = Memory::new();
        let (a, b) = (memory.allocate(8), memory.allocate(4));
        assert_eq!(memory.used(), 12);
        memory.write(a, &[1, 2, 3, 4]).unwrap();
        let mut out = [0; 4];
        memory.read(a, &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
        let hole = memory.read(a + 2, &mut out).unwrap_err();
        assert!(matches!(hole, Fault::Uninitialised { offset: 4, .. }));
        let beyond = memory.write(b, &[0; 5]).unwrap_err();
        assert!(matches!(
            beyond,
            Fault::OutOfBounds {
                bytes: 5,
                size: 4,
                ..
            }
        ));
        memory.free(b).unwrap();
        assert!(memory.free(b).is_err() && memory.write(b, &[0]).is_err());
        assert!(memory.free(a + 1).is_err());
        assert_eq!(memory.used(), 8);
    }
}
