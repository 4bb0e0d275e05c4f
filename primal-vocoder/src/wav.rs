//! WAV files in and out, and other sample rates.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Cursor, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use hound::{SampleFormat, WavReader, WavSpec, WavWriter};
use rubato::audioadapter_buffers::direct::SequentialSlice;
use rubato::{Fft, FixedSync, Resampler};

use crate::error::VocoderError;

/// Most samples of a channel that are read: an hour and a half at 48 kHz.
const MAX_SAMPLES: usize = 1 << 28;

/// Sample rates that a file may have.
const RATES_HZ: std::ops::RangeInclusive<u32> = 1000..=384_000;

/// Input frames of a step of the resampler.
const RESAMPLE_CHUNK: usize = 1024;

/// A mono sound.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// Samples in −1..1.
    pub samples: Vec<f32>,
    /// Samples a second.
    pub rate_hz: u32,
    /// Bytes of samples that the header promises and the file does not have.
    pub missing_bytes: u64,
}

/// Reads a WAV file of 8 to 32 bits or float32; several channels are averaged. A file that was
/// written to a pipe, with a length of 0 or FFFFFFFF, is read to its end; of one that is cut short
/// there is what is left.
///
/// # Errors
/// [`VocoderError::Io`]; [`VocoderError::Wav`] for a file without a sample, a format that is not
/// read and samples that are not finite.
pub fn read_wav(path: &Path) -> Result<Sound, VocoderError> {
    let file = File::open(path).map_err(|source| VocoderError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    let fail = |reason: String| VocoderError::Wav {
        path: path.to_owned(),
        reason,
    };
    let (mended, missing_bytes) =
        mended(BufReader::new(file)).map_err(|error| fail(error.to_string()))?;
    let reader = WavReader::new(mended).map_err(|error| fail(error.to_string()))?;
    let spec = reader.spec();
    if spec.channels == 0 || spec.channels > 64 {
        return Err(fail(format!("{} channels", spec.channels)));
    }
    if !RATES_HZ.contains(&spec.sample_rate) {
        return Err(fail(format!("{} samples a second", spec.sample_rate)));
    }
    let channels = usize::from(spec.channels);
    if reader.len() as usize / channels > MAX_SAMPLES {
        return Err(fail(format!("{} samples are too many", reader.len())));
    }
    let samples = match (spec.sample_format, spec.bits_per_sample) {
        (SampleFormat::Float, 32) => mix(reader.into_samples::<f32>(), channels, 1.0),
        (SampleFormat::Int, bits @ 8..=32) => {
            let scale = 0.5_f32.powi(i32::from(bits) - 1);
            let values = reader.into_samples::<i32>();
            mix(
                values.map(|value| value.map(|value| value as f32)),
                channels,
                scale,
            )
        }
        (format, bits) => return Err(fail(format!("{format:?} samples of {bits} bits"))),
    };
    let samples = samples.map_err(|error| fail(error.to_string()))?;
    if samples.iter().any(|sample| !sample.is_finite()) {
        return Err(fail("a sample is not finite".to_owned()));
    }
    Ok(Sound {
        samples,
        rate_hz: spec.sample_rate,
        missing_bytes,
    })
}

/// Lengths of a data chunk that say "to the end": what programs leave that cannot go back.
const OPEN_LENGTHS: [u32; 3] = [0, u32::MAX, 0x7fff_ffff];

/// The format and the samples of a WAV file as a file whose lengths are true, and how many bytes
/// of samples are missing. Chunks of odd length have a pad byte; other chunks are left out.
fn mended(mut file: impl Read + Seek) -> io::Result<(impl Read, u64)> {
    let len = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let mut riff = [0; 12];
    let read = file.read_exact(&mut riff);
    if read.is_err() || &riff[..4] != b"RIFF" || &riff[8..] != b"WAVE" {
        return Err(invalid("no RIFF and WAVE at its beginning"));
    }
    let mut format: Vec<u8> = Vec::new();
    loop {
        let mut head = [0; 8];
        if file.read_exact(&mut head).is_err() {
            return Err(invalid("no chunk of samples"));
        }
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let at = file.stream_position()?;
        if &head[..4] == b"fmt " {
            // 40 bytes are the longest there are.
            format = vec![0; size.min(64) as usize];
            file.read_exact(&mut format)?;
        } else if &head[..4] == b"data" {
            let left = len.saturating_sub(at);
            let is_open = OPEN_LENGTHS.contains(&size)
                && u64::from(size) != left
                && !(size == 0 && chunks_follow(&mut file, at)?);
            let claimed = if is_open { left } else { u64::from(size) };
            // Whole samples of all channels only.
            let block = format
                .get(12..14)
                .map_or(0, |it| u64::from(u16::from_le_bytes([it[0], it[1]])))
                .max(1);
            let there = claimed.min(left) / block * block;
            let there = there.min(u64::from(u32::MAX) / block * block);
            if there == 0 && claimed > 0 {
                return Err(invalid("cut off before its first sample"));
            }
            let missing = claimed.saturating_sub(left);
            let mut header = b"RIFF\xff\xff\xff\x7fWAVEfmt ".to_vec();
            header.extend((format.len() as u32).to_le_bytes());
            header.extend(&format);
            header.extend(b"data");
            header.extend((there as u32).to_le_bytes());
            file.seek(SeekFrom::Start(at))?;
            return Ok((Cursor::new(header).chain(file.take(there)), missing));
        }
        file.seek(SeekFrom::Start(at + u64::from(size) + u64::from(size % 2)))?;
    }
}

/// Whether a chunk that explains itself comes at once: then a length of 0 is meant.
fn chunks_follow(file: &mut (impl Read + Seek), at: u64) -> io::Result<bool> {
    let mut name = [0; 4];
    let is_there = file.read_exact(&mut name).is_ok();
    file.seek(SeekFrom::Start(at))?;
    Ok(is_there && [*b"LIST", *b"id3 ", *b"fact", *b"cue "].contains(&name))
}

/// Averages channels. The header's count of samples sizes nothing: memory grows with what is read.
fn mix(
    values: impl Iterator<Item = hound::Result<f32>>,
    channels: usize,
    scale: f32,
) -> hound::Result<Vec<f32>> {
    let scale = scale / channels as f32;
    let (mut samples, mut sum) = (Vec::new(), 0.0);
    for (index, value) in values.enumerate() {
        sum += value?;
        if index % channels == channels - 1 {
            samples.push(sum * scale);
            sum = 0.0;
        }
    }
    Ok(samples)
}

/// Writes samples as a mono WAV file of 16 bits; what is beyond −1..1 is clipped.
///
/// # Errors
/// [`VocoderError::Io`].
pub fn write_wav(path: &Path, samples: &[f32], rate_hz: u32) -> Result<(), VocoderError> {
    let mut stream = WavStream::create(path, rate_hz)?;
    stream.write(samples)?;
    stream.finish()
}

/// The bytes of a mono WAV file of 16 bits.
///
/// # Errors
/// [`VocoderError::Io`] for more than a WAV file can hold.
pub fn wav_bytes(samples: &[f32], rate_hz: u32) -> Result<Vec<u8>, VocoderError> {
    let mut bytes = Cursor::new(Vec::with_capacity(44 + 2 * samples.len()));
    write_wav_to(&mut bytes, samples, rate_hz)
        .map_err(|error| wav_error(Path::new("(bytes)"), error))?;
    Ok(bytes.into_inner())
}

/// A WAV file as [`write_wav`] makes it, written piece by piece.
pub struct WavStream {
    writer: WavWriter<BufWriter<File>>,
    path: PathBuf,
}

impl WavStream {
    /// Begins the file.
    ///
    /// # Errors
    /// [`VocoderError::Io`].
    pub fn create(path: &Path, rate_hz: u32) -> Result<WavStream, VocoderError> {
        let file = File::create(path).map_err(|source| VocoderError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })?;
        let writer = WavWriter::new(BufWriter::new(file), spec(rate_hz));
        Ok(WavStream {
            writer: writer.map_err(|error| wav_error(path, error))?,
            path: path.to_owned(),
        })
    }

    /// Appends samples; what is beyond −1..1 is clipped.
    ///
    /// # Errors
    /// [`VocoderError::Io`] when the disk is full.
    pub fn write(&mut self, samples: &[f32]) -> Result<(), VocoderError> {
        let written = write_samples(&mut self.writer, samples);
        written.map_err(|error| wav_error(&self.path, error))
    }

    /// Completes the header.
    ///
    /// # Errors
    /// [`VocoderError::Io`] when the disk is full.
    pub fn finish(self) -> Result<(), VocoderError> {
        let WavStream { writer, path } = self;
        writer.finalize().map_err(|error| wav_error(&path, error))
    }
}

/// What went wrong in writing a file.
fn wav_error(path: &Path, error: hound::Error) -> VocoderError {
    let source = match error {
        hound::Error::IoError(source) => source,
        other => io::Error::other(other.to_string()),
    };
    VocoderError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    }
}

fn write_wav_to(to: impl Write + Seek, samples: &[f32], rate_hz: u32) -> hound::Result<()> {
    let mut writer = WavWriter::new(to, spec(rate_hz))?;
    write_samples(&mut writer, samples)?;
    writer.finalize()
}

fn write_samples(writer: &mut WavWriter<impl Write + Seek>, samples: &[f32]) -> hound::Result<()> {
    for sample in samples {
        writer.write_sample((sample.clamp(-1.0, 1.0) * 32_767.0).round() as i16)?;
    }
    Ok(())
}

fn spec(rate_hz: u32) -> WavSpec {
    WavSpec {
        channels: 1,
        sample_rate: rate_hz,
        bits_per_sample: 16,
        sample_format: SampleFormat::Int,
    }
}

/// Converts samples from one rate to another.
///
/// # Errors
/// [`VocoderError::Resample`].
pub fn resample(input: &[f32], from_hz: u32, to_hz: u32) -> Result<Vec<f32>, VocoderError> {
    if from_hz == to_hz || input.is_empty() {
        return Ok(input.to_vec());
    }
    let fail = |reason: String| VocoderError::Resample {
        from_hz,
        to_hz,
        reason,
    };
    if !RATES_HZ.contains(&from_hz) || !RATES_HZ.contains(&to_hz) {
        return Err(fail("rates are 1,000 to 384,000 Hz".to_owned()));
    }
    let (from, to) = (from_hz as usize, to_hz as usize);
    let mut resampler = Fft::<f32>::new(from, to, RESAMPLE_CHUNK, 1, FixedSync::Input)
        .map_err(|error| fail(error.to_string()))?;
    let adapter =
        SequentialSlice::new(input, 1, input.len()).map_err(|error| fail(error.to_string()))?;
    let output = resampler
        .process_all(&adapter, input.len(), None)
        .map_err(|error| fail(error.to_string()))?;
    let mut samples = output.take_data();
    // The resampler computes the length in floating point and may be one off.
    samples.truncate((input.len() * to).div_ceil(from));
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tone(len: usize, rate_hz: f32) -> Vec<f32> {
        (0..len)
            .map(|t| 0.5 * (std::f32::consts::TAU * 440.0 * t as f32 / rate_hz).sin())
            .collect()
    }

    fn wav_22k(samples: &[f32]) -> Vec<u8> {
        wav_bytes(samples, 22_050).unwrap()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Sound, VocoderError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        read_wav(file.path())
    }

    #[test]
    fn sounds_come_back() {
        let samples = tone(1000, 22_050.0);
        let sound = read_bytes(&wav_22k(&samples)).unwrap();
        assert_eq!((sound.samples.len(), sound.rate_hz), (1000, 22_050));
        for (a, b) in samples.iter().zip(&sound.samples) {
            assert!((a - b).abs() < 1.0 / 32_000.0);
        }
        let loud = read_bytes(&wav_22k(&[2.0, -2.0])).unwrap();
        assert!(loud.samples[0] > 0.999 && loud.samples[1] < -0.999);
    }

    #[test]
    fn channels_are_averaged_in_every_format() {
        for (bits, format, one) in [
            (8, SampleFormat::Int, 64),
            (16, SampleFormat::Int, 1 << 14),
            (24, SampleFormat::Int, 1 << 22),
            (32, SampleFormat::Int, 1 << 30),
        ] {
            let spec = WavSpec {
                channels: 2,
                sample_rate: 8000,
                bits_per_sample: bits,
                sample_format: format,
            };
            let mut bytes = Cursor::new(Vec::new());
            let mut writer = WavWriter::new(&mut bytes, spec).unwrap();
            for value in [one, 0, one, -one] {
                writer.write_sample(value).unwrap();
            }
            writer.finalize().unwrap();
            assert_eq!(
                read_bytes(&bytes.into_inner()).unwrap().samples,
                [0.25, 0.0],
                "{bits}"
            );
        }
    }

    #[test]
    fn broken_files_are_errors() {
        let good = wav_22k(&tone(100, 22_050.0));
        for len in 0..good.len() {
            match read_bytes(&good[..len]) {
                Ok(sound) => {
                    assert_eq!(sound.samples.len(), (len - 44) / 2, "{len} bytes");
                    assert_eq!(sound.missing_bytes, (good.len() - len) as u64);
                }
                Err(error) => assert!(len < 46, "{len} bytes: {error}"),
            }
        }
        // Every byte of the header set to extremes: an error or a sound, never a panic.
        for at in 0..44 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Ok(sound) = read_bytes(&bytes) {
                    assert!(sound.samples.len() <= 200, "byte {at} = {value}");
                }
            }
        }
        assert!(matches!(
            read_wav(Path::new("/nowhere.wav")),
            Err(VocoderError::Io { .. })
        ));
    }

    #[test]
    fn lengths_that_are_not_true_are_mended() {
        let good = wav_22k(&tone(100, 22_050.0));
        let want = read_bytes(&good).unwrap();
        for (length, missing) in [
            (0, 0),
            (u32::MAX, 0),
            (0x7fff_ffff, 0),
            (0xffff_fff0, 0xffff_fff0 - 200),
            (300, 100),
        ] {
            let mut bytes = good.clone();
            bytes[40..44].copy_from_slice(&u32::to_le_bytes(length));
            let sound = read_bytes(&bytes).unwrap();
            assert_eq!(
                (&sound.samples, sound.missing_bytes),
                (&want.samples, missing),
                "{length}"
            );
        }
        // A chunk of odd length before the samples, with its pad byte; one behind them.
        let mut padded = good[..36].to_vec();
        padded.extend(b"LIST\x03\0\0\0abc\0");
        padded.extend(&good[36..]);
        padded.extend(b"id3 \x02\0\0\0xy");
        assert_eq!(read_bytes(&padded).unwrap(), want);
        let mut empty = good[..40].to_vec();
        empty.extend(b"\0\0\0\0LIST\x02\0\0\0xy");
        assert!(read_bytes(&empty).unwrap().samples.is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_of_writing() {
        let error =
            write_wav(Path::new("/dev/full"), &tone(100_000, 22_050.0), 22_050).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /dev/full");
    }

    #[test]
    fn a_tone_keeps_its_pitch_at_another_rate() {
        for (from, to) in [(44_100, 22_050), (16_000, 22_050), (22_050, 48_000)] {
            let samples = resample(&tone(from as usize, from as f32), from, to).unwrap();
            assert_eq!(samples.len(), to as usize, "{from} to {to}");
            let want = tone(to as usize, to as f32);
            for t in 4000..to as usize - 4000 {
                // The delay that is cut off is rounded to whole samples: half of one is 0.03 here.
                assert!((samples[t] - want[t]).abs() < 0.04, "{from} to {to} at {t}");
            }
        }
        assert_eq!(resample(&[0.5], 8000, 8000).unwrap(), [0.5]);
        assert!(resample(&[], 8000, 16_000).unwrap().is_empty());
        assert!(resample(&[0.5], 0, 16_000).is_err());
    }
}
