//! Where the libraries of CUDA lie: with the loader, in CUDA's folders, in Python's packages.

use std::path::{Path, PathBuf};

/// Where a library may lie, in the order of preference: `names` that its file may have, and
/// `packages`, the folders below a Python's packages.
pub(crate) fn candidates(names: &[&str], packages: &[&str]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for variable in ["CUDA_PATH", "CUDA_HOME"] {
        if let Some(cuda) = std::env::var_os(variable) {
            folders.push(Path::new(&cuda).join("lib64"));
        }
    }
    folders.push("/usr/local/cuda/lib64".into());
    folders.push("/opt/cuda/lib64".into());
    let mut pythons: Vec<PathBuf> = vec!["/usr/local/lib".into(), "/usr/lib".into()];
    if let Some(environment) = std::env::var_os("VIRTUAL_ENV") {
        pythons.insert(0, Path::new(&environment).join("lib"));
    }
    if let Some(home) = std::env::var_os("HOME") {
        pythons.push(Path::new(&home).join(".local/lib"));
    }
    for python in pythons {
        folders.extend(wheel_folders(&python, packages));
    }
    // A bare name asks the loader.
    let by_name = names.iter().map(PathBuf::from);
    let by_folder = folders
        .iter()
        .flat_map(|folder| names.iter().map(|name| folder.join(name)))
        .filter(|path| path.exists());
    by_name.chain(by_folder).collect()
}

/// The folders `packages` of the Pythons below `lib`, which holds `python3.x` folders.
fn wheel_folders(lib: &Path, packages: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(lib) else {
        return Vec::new();
    };
    let mut pythons: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with("python3")
        })
        .collect();
    pythons.sort();
    pythons
        .iter()
        .flat_map(|python| ["site-packages", "dist-packages"].map(|it| python.join(it)))
        .flat_map(|installed| packages.iter().map(move |it| installed.join(it)))
        .collect()
}
