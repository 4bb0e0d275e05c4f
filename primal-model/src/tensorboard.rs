//! TensorBoard event files with scalars.
//!
//! Written here because no crate fits: `tensorboard-rs` 0.5.9 brings `image` 0.23 and `protobuf` 2
//! (RUSTSEC-2024-0437), `tboard` 0.1.1 needs `protoc` at build time, `tfrecord` brings an async
//! runtime; scalars need eight fields of four messages.
//!
//! The format: a file is a sequence of records (TensorFlow's `lib/io/record_writer.h`), a record
//! holds one protobuf `Event` (`tensorboard/compat/proto/{event,summary}.proto`).

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ModelError;

/// Appends events to one file; every event is on disk when the call returns.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
    /// Seconds since 1970 by the system's clock, which may jump.
    clock: fn() -> f64,
    /// Time of the last event: times never fall.
    last_time: f64,
    /// Buffers that only grow, so that a steady run does not allocate.
    summary: Vec<u8>,
    event: Vec<u8>,
    record: Vec<u8>,
}

impl EventFile {
    /// Starts a new event file in `folder`, which is created where needed. TensorBoard reads all
    /// files of a folder in the order of their names, and what earlier files say of `first_step`
    /// and later steps is dropped, so a resumed run starts a new file.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the folder or the file cannot be created.
    pub fn create(folder: &Path, first_step: u32) -> Result<EventFile, ModelError> {
        EventFile::create_at(folder, first_step, seconds_since_epoch)
    }

    fn create_at(
        folder: &Path,
        first_step: u32,
        clock: fn() -> f64,
    ) -> Result<EventFile, ModelError> {
        fs::create_dir_all(folder).map_err(ModelError::io("create", folder))?;
        // After a clock that was set back, the new file must still come behind the old ones.
        let newest = newest_file_seconds(folder).map_err(ModelError::io("list", folder))?;
        let seconds = newest.max(clock() as u64);
        for number in 0u32.. {
            let path = folder.join(format!(
                "events.out.tfevents.{seconds:010}.{number:03}.primal"
            ));
            match File::create_new(&path) {
                Ok(file) => {
                    let (summary, event, record) = (Vec::new(), Vec::new(), Vec::new());
                    let mut events = EventFile {
                        file,
                        path,
                        clock,
                        last_time: seconds as f64,
                        summary,
                        event,
                        record,
                    };
                    bytes_field(&mut events.event, 3, b"brain.Event:2");
                    events.write_event(0)?;
                    // Event.session_log (7): SessionLog { status (1) = START (1) }, the mark from
                    // which on readers drop what they have.
                    bytes_field(&mut events.event, 7, &[key(1, VARINT) as u8, 1]);
                    events.write_event(first_step)?;
                    return Ok(events);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(ModelError::io("create", &path)(error)),
            }
        }
        unreachable!("four billion event files in one second")
    }

    /// Appends one event with scalars of a step: (tag, value) each.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the disk is full or gone.
    pub fn scalars(&mut self, step: u32, scalars: &[(&str, f64)]) -> Result<(), ModelError> {
        self.summary.clear();
        for (tag, value) in scalars {
            // Summary.value (1): Value { tag = 1, simple_value = 2 (float) }.
            let tag_len = 1 + varint_len(tag.len() as u64) + tag.len();
            varint(&mut self.summary, key(1, LENGTH_DELIMITED));
            varint(&mut self.summary, (tag_len + 5) as u64);
            bytes_field(&mut self.summary, 1, tag.as_bytes());
            varint(&mut self.summary, key(2, FIXED_32));
            self.summary.extend((*value as f32).to_le_bytes());
        }
        bytes_field(&mut self.event, 5, &self.summary);
        self.write_event(step)
    }

    /// Completes `self.event` with wall time and step and writes it as a record.
    fn write_event(&mut self, step: u32) -> Result<(), ModelError> {
        self.last_time = self.last_time.max((self.clock)());
        varint(&mut self.event, key(1, FIXED_64));
        self.event.extend(self.last_time.to_le_bytes());
        varint(&mut self.event, key(2, VARINT));
        varint(&mut self.event, u64::from(step));
        frame(&mut self.record, &self.event);
        self.event.clear();
        self.file
            .write_all(&self.record)
            .map_err(ModelError::io("write", &self.path))
    }
}

/// Largest time among the names of the event files of a folder, 0 without any.
fn newest_file_seconds(folder: &Path) -> std::io::Result<u64> {
    let mut newest = 0;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let seconds = name
            .to_str()
            .and_then(|name| name.strip_prefix("events.out.tfevents.")?.split('.').next());
        newest = newest.max(seconds.and_then(|it| it.parse().ok()).unwrap_or(0));
    }
    Ok(newest)
}

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED_32: u64 = 5;

/// Field number and wire type as protobuf packs them.
fn key(field: u64, wire_type: u64) -> u64 {
    field << 3 | wire_type
}

fn bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, key(field, LENGTH_DELIMITED));
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (value | 1).ilog2() as usize / 7 + 1
}

/// One record: length (u64), its checksum, the content, its checksum.
fn frame(out: &mut Vec<u8>, content: &[u8]) {
    let length = (content.len() as u64).to_le_bytes();
    out.clear();
    out.extend(length);
    out.extend(masked_crc32c(&length).to_le_bytes());
    out.extend_from_slice(content);
    out.extend(masked_crc32c(content).to_le_bytes());
}

/// The checksum, rotated and shifted so that checksums of checksums stay useful.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), reflected, bit by bit: a few hundred bytes a step.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let by_bit = |crc: u32, _| {
        if crc & 1 == 1 {
            crc >> 1 ^ POLYNOMIAL
        } else {
            crc >> 1
        }
    };
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), by_bit))
}

fn seconds_since_epoch() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[]), 0);
    }

    #[test]
    fn varints_have_the_announced_length() {
        for value in [
            0,
            1,
            127,
            128,
            16_383,
            16_384,
            u64::from(u32::MAX),
            u64::MAX,
        ] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
    }

    /// Splits a file into the contents of its records, checking every checksum.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut contents = Vec::new();
        while !file.is_empty() {
            let (head, rest) = file.split_at(12);
            let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
            assert_eq!(head[8..], masked_crc32c(&head[..8]).to_le_bytes());
            let (content, rest) = rest.split_at(length);
            let (checksum, rest) = rest.split_at(4);
            assert_eq!(checksum, masked_crc32c(content).to_le_bytes());
            contents.push(content.to_vec());
            file = rest;
        }
        contents
    }

    #[test]
    fn events_are_laid_out_as_tensorboard_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let tb = folder.path().join("tb");
        let mut events = EventFile::create(&tb, 1).unwrap();
        let second = EventFile::create(&tb, 1).unwrap();
        assert_ne!(events.path, second.path);
        events
            .scalars(300, &[("loss/train", 1.5), ("lr", 0.25)])
            .unwrap();
        events.scalars(301, &[]).unwrap();
        let records = records(&fs::read(&events.path).unwrap());
        assert_eq!(records.len(), 4);
        assert!(records[0].starts_with(b"\x1a\x0dbrain.Event:2\x09"));
        assert!(records[1].starts_with(b"\x3a\x02\x08\x01\x09"));
        assert!(records[1].ends_with(&[0x10, 1]));
        let mut expected = b"\x2a\x1e\x0a\x11\x0a\x0aloss/train\x15".to_vec();
        expected.extend(1.5f32.to_le_bytes());
        expected.extend(b"\x0a\x09\x0a\x02lr\x15");
        expected.extend(0.25f32.to_le_bytes());
        expected.push(0x09);
        assert_eq!(records[2][..expected.len()], expected);
        // The double of the wall time, then field 2, the step: 300 = 0b10_0101100.
        assert_eq!(records[2][expected.len() + 8..], [0x10, 0xac, 0x02]);
    }

    /// Wall time of a record: it comes behind everything but the step.
    fn time(record: &[u8], step_bytes: usize) -> f64 {
        let end = record.len() - 1 - step_bytes;
        f64::from_le_bytes(record[end - 8..end].try_into().unwrap())
    }

    #[test]
    fn a_clock_that_jumps_breaks_neither_order_nor_names() {
        let folder = tempfile::tempdir().unwrap();
        let late = || 2_000_000_000.5;
        let early = || 1_000_000_000.5;
        let mut events = EventFile::create_at(folder.path(), 1, late).unwrap();
        events.scalars(1, &[("a", 1.0)]).unwrap();
        events.clock = early;
        events.scalars(2, &[("a", 1.0)]).unwrap();
        events.clock = || -5.0;
        events.scalars(3, &[("a", 1.0)]).unwrap();
        let times: Vec<f64> = records(&fs::read(&events.path).unwrap())[2..]
            .iter()
            .map(|record| time(record, 1))
            .collect();
        assert_eq!(times, [2_000_000_000.5; 3]);
        let resumed = EventFile::create_at(folder.path(), 3, early).unwrap();
        assert!(resumed.path > events.path, "{:?}", resumed.path);
    }
}
