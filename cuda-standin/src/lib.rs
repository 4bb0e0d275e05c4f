//! A `libcuda.so` whose device is the PTX interpreter, and a `libnccl.so.2` between several of them.
//!
//! The loader of a CUDA program opens `libcuda.so` by name. This crate is a shared library of that
//! name: [`install`] opens it first, and from then on the process has a GPU that runs PTX (and no
//! CUBIN) and checks every access to its memory. Child processes find it in a folder on their
//! `LD_LIBRARY_PATH`, made by [`library_folder`].
//!
//! Faults can be injected, by [`StandIn::inject`] in this process and by variables in a child's:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `CUDA_STANDIN_DEVICES` | devices; 0: `CUDA_ERROR_NO_DEVICE` | 1 |
//! | `CUDA_STANDIN_SM` | compute capability, or a list of one a device | 61 |
//! | `CUDA_STANDIN_DRIVER` | driver version; below 11080: PTX of 11.8 is refused | 11080 |
//! | `CUDA_STANDIN_MEMORY` | bytes of a device | 11 GiB |
//! | `CUDA_STANDIN_FAIL_ALLOCATION` | this allocation, from 1, finds no memory | none |
//! | `CUDA_STANDIN_FAIL_LAUNCH` | this launch, from 1, ends in an illegal address | none |
//! | `CUDA_STANDIN_FAIL_COLLECTIVE` | this collective, from 1, breaks the device | none |
//! | `CUDA_STANDIN_NCCL` | version of NCCL | 22105 |
//!
//! `CUDA_STANDIN_COVERAGE` names a folder into which every device writes which lines of the PTX it
//! executed.
//!
//! ```no_run
//! let standin = cuda_standin::install(1)?;
//! // ... use CUDA ...
//! println!("{} instructions", standin.counts(0).instructions);
//! # Ok::<(), cuda_standin::InstallError>(())
//! ```

mod coverage;
mod device;
mod driver;
mod nccl;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

/// The file that cargo makes of this crate.
const LIBRARY: &str = "libcuda_standin.so";
/// Whether buffers share allocations, as primal-model reads it.
const POOL_VARIABLE: &str = "PRIMAL_GPU_POOL";
/// Where NCCL lies, as primal-kernels reads it.
const NCCL_VARIABLE: &str = "PRIMAL_NCCL";

/// Why the stand-in could not be put in place.
#[derive(Debug, Clone)]
pub struct InstallError(String);

impl std::fmt::Display for InstallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the stand-in driver cannot be used: {}", self.0)
    }
}

impl std::error::Error for InstallError {}

/// A fault to come on one device, or another property of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Injection {
    /// The n-th allocation from now on, from 1, finds no memory; 0 takes the injection back.
    FailAllocation = 0,
    /// The n-th launch from now on, from 1, ends in an illegal address; 0 takes it back.
    FailLaunch = 1,
    /// Bytes of the device's memory.
    Memory = 2,
    /// The n-th collective from now on, from 1, breaks the device; 0 takes it back.
    FailCollective = 3,
    /// Its compute capability, times ten.
    Capability = 4,
}

/// What a device executed since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DeviceCounts {
    /// Kernels launched.
    pub launches: u64,
    /// PTX instructions.
    pub instructions: u64,
    /// Float instructions among them.
    pub float: u64,
    /// dp4a among them.
    pub dot4: u64,
    /// mma.sync among them, counted by every lane.
    pub matrix: u64,
    /// Bytes read from global memory.
    pub global_read_bytes: u64,
    /// Bytes written to it.
    pub global_written_bytes: u64,
    /// Bytes copied between host and device, either way.
    pub copied_bytes: u64,
    /// Bytes given to collectives of several devices.
    pub given_bytes: u64,
    /// Bytes allocated now.
    pub used_bytes: u64,
    /// The most that was ever allocated.
    pub peak_bytes: u64,
}

/// The installed stand-in. Its state lies in the shared library, not in this copy of the crate.
pub struct StandIn {
    inject: Symbol<unsafe extern "C" fn(u32, u32, u64)>,
    counts: Symbol<unsafe extern "C" fn(u32, *mut DeviceCounts)>,
    _library: Library,
}

impl StandIn {
    /// Prepares a fault of device `ordinal`, or changes the device.
    pub fn inject(&self, ordinal: u32, what: Injection, value: u64) {
        // SAFETY: the symbol has this type, and takes any values.
        unsafe { (self.inject)(ordinal, what as u32, value) }
    }

    /// What device `ordinal` executed since the last call; launches and traffic start again at 0.
    pub fn counts(&self, ordinal: u32) -> DeviceCounts {
        let mut counts = DeviceCounts::default();
        // SAFETY: the symbol has this type, and writes one `DeviceCounts`.
        unsafe { (self.counts)(ordinal, &raw mut counts) };
        counts
    }
}

/// Makes this process's `libcuda.so` the stand-in, with `devices` devices unless the environment
/// says otherwise, and the stand-in its NCCL. Later calls return the same; a real driver that was
/// opened before stays. Buffers of a pool become allocations of their own, whose ends the stand-in
/// watches.
pub fn install(devices: u32) -> Result<&'static StandIn, InstallError> {
    static INSTALLED: OnceLock<Result<StandIn, InstallError>> = OnceLock::new();
    let result = INSTALLED.get_or_init(|| {
        let path = library_path(LIBRARY)?;
        let wrong = |error: libloading::Error| InstallError(error.to_string());
        for (variable, value) in [
            (POOL_VARIABLE, "off".as_ref()),
            (NCCL_VARIABLE, path.as_os_str()),
        ] {
            if std::env::var_os(variable).is_none() {
                // SAFETY: the programs that call this, tests, read the environment by std alone,
                // which takes turns.
                unsafe { std::env::set_var(variable, value) };
            }
        }
        // SAFETY: the library is ours and runs nothing when it is opened; the symbols have the
        // types that driver.rs gives them.
        unsafe {
            let library = Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL).map_err(wrong)?;
            let begin: Symbol<unsafe extern "C" fn(u32)> =
                library.get(b"cuda_standin_devices").map_err(wrong)?;
            begin(devices);
            Ok(StandIn {
                inject: library.get(b"cuda_standin_inject").map_err(wrong)?,
                counts: library.get(b"cuda_standin_counts").map_err(wrong)?,
                _library: library,
            })
        }
    });
    result.as_ref().map_err(Clone::clone)
}

/// Opens another stand-in, the shared library `file` beside the running test, so that this process
/// finds it by its name.
pub fn preload(file: &str) -> Result<(), InstallError> {
    let path = library_path(file)?;
    // SAFETY: the library is ours and runs nothing when it is opened.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| InstallError(error.to_string()))?;
    // For the rest of the process.
    std::mem::forget(library);
    Ok(())
}

/// Makes a folder inside `parent` that holds the stand-in as `libcuda.so`, and as `libnccl.so.2` the
/// same, for a child process's `LD_LIBRARY_PATH`.
pub fn library_folder(parent: &Path) -> Result<PathBuf, InstallError> {
    let wrong = |error: std::io::Error| InstallError(error.to_string());
    let folder = parent.join("cuda-standin");
    std::fs::create_dir_all(&folder).map_err(wrong)?;
    add_library(&folder, LIBRARY, "libcuda.so")?;
    // One file of several names: a loader that finds it under the second has it already.
    for name in ["libcuda.so.1", "libnccl.so.2"] {
        let _ = std::fs::remove_file(folder.join(name));
        std::fs::hard_link(folder.join("libcuda.so"), folder.join(name)).map_err(wrong)?;
    }
    Ok(folder)
}

/// Copies a stand-in, the shared library `file` beside the running test, into `folder` as `name`.
pub fn add_library(folder: &Path, file: &str, name: &str) -> Result<(), InstallError> {
    let copied = std::fs::copy(library_path(file)?, folder.join(name));
    copied
        .map(|_| ())
        .map_err(|error| InstallError(error.to_string()))
}

/// The shared library `file`, beside the running test.
fn library_path(file: &str) -> Result<PathBuf, InstallError> {
    let program = std::env::current_exe().map_err(|error| InstallError(error.to_string()))?;
    program
        .ancestors()
        .skip(1)
        .take(3)
        .flat_map(|folder| [folder.join(file), folder.join("deps").join(file)])
        .find(|path| path.is_file())
        .ok_or_else(|| InstallError(format!("no {file} beside {}", program.display())))
}
