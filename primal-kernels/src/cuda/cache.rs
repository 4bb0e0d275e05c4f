//! Compiled kernels on disk, so that a program starts without compiling.
//!
//! A file's name is a hash of everything that the image depends on. It holds the sha256 of the
//! image, then the image: a damaged file is as good as none.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::source::{OPTIONS, Unit, hex};

const DIGEST_BYTES: usize = 32;

/// Where images lie; `None` where `PRIMAL_KERNEL_CACHE=off` or there is no home.
pub(crate) fn folder() -> Option<PathBuf> {
    match std::env::var_os("PRIMAL_KERNEL_CACHE") {
        Some(off) if off == "off" => None,
        Some(folder) => Some(folder.into()),
        None => {
            let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || Some(Path::new(&std::env::var_os("HOME")?).join(".cache"));
            Some(base.or_else(home)?.join("primal").join("kernels"))
        }
    }
}

/// The name of an image's file.
pub(crate) fn file_name(unit: Unit, nvrtc_version: &str, architecture: &str) -> String {
    let key = [
        unit.source_hash().as_str(),
        &OPTIONS.join(" "),
        nvrtc_version,
        architecture,
        env!("CARGO_PKG_VERSION"),
    ]
    .join("\n");
    let kind = if architecture.starts_with("sm_") {
        "cubin"
    } else {
        "ptx"
    };
    format!("{}.{kind}", hex(&Sha256::digest(key)))
}

/// A whole image, or `None`.
pub(crate) fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (digest, image) = bytes.split_at_checked(DIGEST_BYTES)?;
    (Sha256::digest(image).as_slice() == digest).then(|| image.to_vec())
}

/// Writes an image whole or not at all. A cache that cannot be written is no error.
pub(crate) fn write(path: &Path, image: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let mut bytes = Sha256::digest(image).to_vec();
    bytes.extend_from_slice(image);
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&temporary, bytes))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_none() {
        let folder = std::env::temp_dir().join(format!("primal-cache-{}", std::process::id()));
        let path = folder.join("deep").join("image.cubin");
        assert_eq!(read(&path), None);
        write(&path, b"an image");
        assert_eq!(read(&path).as_deref(), Some(&b"an image"[..]));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[DIGEST_BYTES + 2] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path), None);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(read(&path), None);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn everything_that_matters_is_in_the_name() {
        let name = |version, architecture| file_name(Unit::Kernels, version, architecture);
        let base = name("11.8", "sm_61");
        assert!(base.ends_with(".cubin"));
        assert_ne!(base, name("12.9", "sm_61"));
        assert_ne!(base, name("11.8", "sm_86"));
        assert_ne!(base, file_name(Unit::Tensor, "11.8", "sm_61"));
        assert!(name("11.8", "compute_61").ends_with(".ptx"));
    }
}
