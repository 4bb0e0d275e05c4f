//! Which compiled form of the kernels a device gets.

use super::cache;
use super::error::CudaError;
use super::nvrtc::Nvrtc;
use super::source::{OPTIONS, source};

/// PTX of NVRTC 11.8 for compute_61: what any driver since CUDA 11.8 assembles for any card from
/// Pascal on, without NVRTC. Its first line names the sources it was made of.
pub const CHECKED_IN_PTX: &str = include_str!("../../cuda/kernels.ptx");

/// Where the kernels come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageChoice {
    /// NVRTC if there is one that knows the card, else the PTX that is part of the program.
    #[default]
    Auto,
    /// The PTX that is part of the program.
    CheckedIn,
}

/// The kernels, ready for a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// "sm_61" for machine code, "compute_61" for PTX.
    pub architecture: String,
    /// Who compiled it.
    pub origin: String,
    /// CUBIN or PTX.
    pub bytes: Vec<u8>,
}

impl Image {
    /// The PTX that is part of the program.
    pub fn checked_in() -> Image {
        Image {
            architecture: "compute_61".into(),
            origin: "part of the program (NVRTC 11.8)".into(),
            bytes: CHECKED_IN_PTX.as_bytes().to_vec(),
        }
    }

    /// Compiles for compute capability `capability` (times ten), or takes it from the cache.
    pub fn compile(nvrtc: &Nvrtc, capability: i32) -> Result<Image, CudaError> {
        let architecture = nvrtc.architecture_for(capability)?;
        let version = nvrtc.version_name();
        let path = cache::folder().map(|it| it.join(cache::file_name(&version, &architecture)));
        if let Some(bytes) = path.as_deref().and_then(cache::read) {
            let origin = format!("NVRTC {version}, from the cache");
            return Ok(Image {
                architecture,
                origin,
                bytes,
            });
        }
        let compiled = nvrtc.compile(&source(), &architecture, &OPTIONS)?;
        if let Some(path) = path {
            cache::write(&path, &compiled.image);
        }
        Ok(Image {
            architecture,
            origin: format!("NVRTC {version}"),
            bytes: compiled.image,
        })
    }

    /// What to try on a device, best first, and why something better is missing.
    pub(crate) fn candidates(
        choice: ImageChoice,
        capability: i32,
    ) -> Result<(Vec<Image>, Option<CudaError>), CudaError> {
        if choice == ImageChoice::CheckedIn {
            return Ok((vec![Image::checked_in()], None));
        }
        let compiled = Nvrtc::find(capability).and_then(|nvrtc| Image::compile(&nvrtc, capability));
        match compiled {
            Ok(image) => Ok((vec![image, Image::checked_in()], None)),
            // The sources must compile; only a missing compiler is no reason to stop.
            Err(error @ CudaError::Compile(_)) => Err(error),
            Err(error) => Ok((vec![Image::checked_in()], Some(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::source::source_hash;

    /// `cargo xtask ptx` makes it anew.
    #[test]
    fn the_checked_in_ptx_is_of_these_sources() {
        let first = CHECKED_IN_PTX.lines().next().unwrap();
        assert_eq!(first, format!("// sources {}", source_hash()));
        assert!(
            CHECKED_IN_PTX.contains(".target sm_61") && CHECKED_IN_PTX.contains(".version 7.8")
        );
        assert!(!CHECKED_IN_PTX.contains(".extern .func"));
    }
}
