//! Which compiled form of the kernels a device gets.

use super::cache;
use super::error::CudaError;
use super::nvrtc::Nvrtc;
use super::source::{OPTIONS, Unit};

/// PTX of NVRTC 11.8, by unit and compute capability (times ten): what any driver since CUDA 11.8
/// assembles for any card of that capability or a newer one, without NVRTC. Its first line names
/// the sources it was made of.
const CHECKED_IN: [(Unit, i32, &str); 3] = [
    (Unit::Kernels, 61, include_str!("../../cuda/kernels.ptx")),
    (Unit::Tensor, 75, include_str!("../../cuda/tensor_75.ptx")),
    (Unit::Tensor, 80, include_str!("../../cuda/tensor_80.ptx")),
];

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
    /// The newest PTX of a unit that is part of the program and for compute capability
    /// `capability` (times ten), if any is.
    pub fn checked_in(unit: Unit, capability: i32) -> Option<Image> {
        let fitting = CHECKED_IN
            .iter()
            .filter(|(of, needed, _)| *of == unit && *needed <= capability);
        let (_, needed, ptx) = fitting.max_by_key(|(_, needed, _)| needed)?;
        Some(Image {
            architecture: format!("compute_{needed}"),
            origin: "part of the program (NVRTC 11.8)".into(),
            bytes: ptx.as_bytes().to_vec(),
        })
    }

    /// Compiles a unit for compute capability `capability` (times ten), or takes it from the
    /// cache.
    pub fn compile(unit: Unit, nvrtc: &Nvrtc, capability: i32) -> Result<Image, CudaError> {
        let architecture = nvrtc.architecture_for(capability)?;
        let version = nvrtc.version_name();
        let name = cache::file_name(unit, &version, &architecture);
        let path = cache::folder().map(|it| it.join(name));
        if let Some(bytes) = path.as_deref().and_then(cache::read) {
            let origin = format!("NVRTC {version}, from the cache");
            return Ok(Image {
                architecture,
                origin,
                bytes,
            });
        }
        let compiled = nvrtc.compile(&unit.source(), &architecture, &OPTIONS)?;
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
        unit: Unit,
        choice: ImageChoice,
        capability: i32,
    ) -> Result<(Vec<Image>, Option<CudaError>), CudaError> {
        let checked_in = Image::checked_in(unit, capability);
        if choice == ImageChoice::CheckedIn {
            return Ok((checked_in.into_iter().collect(), None));
        }
        let compiled =
            Nvrtc::find(capability).and_then(|nvrtc| Image::compile(unit, &nvrtc, capability));
        match compiled {
            Ok(image) => Ok(([image].into_iter().chain(checked_in).collect(), None)),
            // The sources must compile; only a missing compiler is no reason to stop.
            Err(error @ CudaError::Compile(_)) => Err(error),
            Err(error) => Ok((checked_in.into_iter().collect(), Some(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo xtask ptx` makes it anew.
    #[test]
    fn the_checked_in_ptx_is_of_these_sources() {
        for (unit, capability, ptx) in CHECKED_IN {
            let first = ptx.lines().next().unwrap();
            assert_eq!(first, format!("// sources {}", unit.source_hash()));
            assert!(ptx.contains(&format!(".target sm_{capability}\n")));
            assert!(ptx.contains(".version 7.8\n") && !ptx.contains(".extern .func"));
        }
    }

    #[test]
    fn a_card_gets_the_newest_ptx_that_it_takes() {
        let of =
            |unit, capability| Image::checked_in(unit, capability).map(|image| image.architecture);
        assert_eq!(of(Unit::Kernels, 90).as_deref(), Some("compute_61"));
        assert_eq!(of(Unit::Tensor, 61), None);
        assert_eq!(of(Unit::Tensor, 75).as_deref(), Some("compute_75"));
        assert_eq!(of(Unit::Tensor, 86).as_deref(), Some("compute_80"));
    }
}
