//! A spectrogram as a PNG picture, to be looked at.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use primal_kernels::Signal;

use crate::error::VocoderError;
use crate::mel::FLOOR;

/// Pixels of a band.
const BAND_PIXELS: usize = 4;

/// Widest picture: browsers and viewers give up somewhere beyond.
const MAX_FRAMES: usize = 1 << 15;

/// Log-mel values from black to the brightest colour.
const RANGE: (f32, f32) = (-11.5, 1.5);

/// Colours from quiet to loud; brightness rises evenly.
const COLOURS: [[u8; 3]; 5] = [
    [0, 0, 0],
    [70, 15, 110],
    [185, 55, 90],
    [250, 150, 40],
    [255, 255, 200],
];

/// Writes log-mel values (bands, frames) as a picture: time to the right, one pixel a frame, pitch
/// upwards, four pixels a band. A frame or value that is not finite is drawn as silence.
///
/// # Errors
/// [`VocoderError::MelFile`] for a spectrogram without frames or with more than 32,768;
/// [`VocoderError::Io`].
pub fn write_spectrogram(path: &Path, mel: &Signal) -> Result<(), VocoderError> {
    if mel.is_empty() || mel.len() > MAX_FRAMES {
        return Err(VocoderError::MelFile {
            path: path.to_owned(),
            reason: format!("a picture has 1 to {MAX_FRAMES} frames, not {}", mel.len()),
        });
    }
    let io_error = |source| VocoderError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let height = mel.channels() * BAND_PIXELS;
    let mut pixels = Vec::with_capacity(height * (mel.len() + 1));
    for line in (0..height).rev() {
        // The filter of a line: none.
        pixels.push(0);
        pixels.extend(
            mel.row(line / BAND_PIXELS)
                .iter()
                .map(|&value| shade(value)),
        );
    }
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&pixels).map_err(io_error)?;
    let packed = packed.finish().map_err(io_error)?;

    // PNG, third edition: width, height, 8 bits a pixel, a palette, the only compression and
    // filter, not interlaced.
    let mut header = Vec::new();
    header.extend((mel.len() as u32).to_be_bytes());
    header.extend((height as u32).to_be_bytes());
    header.extend([8, 3, 0, 0, 0]);
    let palette: Vec<u8> = (0..=255).flat_map(colour).collect();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, data) in [
        (b"IHDR", &header),
        (b"PLTE", &palette),
        (b"IDAT", &packed),
        (b"IEND", &Vec::new()),
    ] {
        let mut crc = Crc::new();
        crc.update(name);
        crc.update(data);
        file.extend((data.len() as u32).to_be_bytes());
        file.extend_from_slice(name);
        file.extend_from_slice(data);
        file.extend(crc.sum().to_be_bytes());
    }
    fs::write(path, file).map_err(io_error)
}

/// A value's place in the palette.
fn shade(value: f32) -> u8 {
    let value = if value.is_finite() {
        value
    } else {
        FLOOR.ln() as f32
    };
    ((value - RANGE.0) / (RANGE.1 - RANGE.0) * 255.0).clamp(0.0, 255.0) as u8
}

/// A place's colour, between the nearest two of [`COLOURS`].
fn colour(place: u8) -> [u8; 3] {
    let at = f32::from(place) / 255.0 * (COLOURS.len() - 1) as f32;
    let index = (at as usize).min(COLOURS.len() - 2);
    let (low, high, part) = (COLOURS[index], COLOURS[index + 1], at - index as f32);
    std::array::from_fn(|i| {
        (f32::from(low[i]) * (1.0 - part) + f32::from(high[i]) * part).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_picture_has_a_pixel_for_every_value() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        let mel = Signal::from_rows(2, &[-11.5, -5.0, 1.5, f32::NAN, 0.0, 9.0]);
        write_spectrogram(&path, &mel).unwrap();
        let file = fs::read(&path).unwrap();
        assert_eq!(&file[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(file[16..24], [0, 0, 0, 3, 0, 0, 0, 8]);
        let mut at = 8;
        let mut names = Vec::new();
        let mut pixels = Vec::new();
        while at < file.len() {
            let len = u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
            let (name, data) = (&file[at + 4..at + 8], &file[at + 8..at + 8 + len]);
            let mut crc = Crc::new();
            crc.update(&file[at + 4..at + 8 + len]);
            assert_eq!(file[at + 8 + len..at + 12 + len], crc.sum().to_be_bytes());
            if name == b"IDAT" {
                flate2::read::ZlibDecoder::new(data)
                    .read_to_end(&mut pixels)
                    .unwrap();
            }
            names.push(name.to_vec());
            at += 12 + len;
        }
        assert_eq!(names, [b"IHDR", b"PLTE", b"IDAT", b"IEND"]);
        let lines: Vec<&[u8]> = pixels.chunks(4).collect();
        assert_eq!(lines[0], [0, 0, shade(0.0), 255]);
        assert_eq!(lines[7], [0, 0, shade(-5.0), 255]);
        assert_eq!(
            (lines.len(), colour(0), colour(255)),
            (8, COLOURS[0], COLOURS[4])
        );
        let error = write_spectrogram(&path, &Signal::new(2)).unwrap_err();
        assert!(error.to_string().contains("not 0"), "{error}");
    }
}
