//! NVRTC, the run-time compiler, loaded under whatever name it has.
//!
//! cudarc's own loader misses the file names of CUDA 11.8 (libnvrtc.so.11.2) and 13, and panics
//! where a library is absent. The nine entry points are the same in every CUDA since 11.2.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::error::CudaError;
use super::library::candidates;
use super::source;

/// Names the library has: CUDA 12 first, which knows every card from Maxwell to Blackwell.
const NAMES: [&str; 4] = [
    "libnvrtc.so.12",
    "libnvrtc.so.11.2",
    "libnvrtc.so.13",
    "libnvrtc.so",
];

/// Where Python's packages have it.
const PACKAGES: [&str; 2] = ["nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib"];

type Program = *mut c_void;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// A loaded NVRTC.
pub struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log: (Size, Get),
    ptx: (Size, Get),
    cubin: (Size, Get),
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    /// (major, minor).
    pub version: (i32, i32),
    /// Compute capabilities times ten that it compiles for, ascending.
    pub architectures: Vec<i32>,
    /// The file.
    pub path: PathBuf,
    _library: Library,
}

/// What a compilation made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// A CUBIN for `sm_N`, PTX (no zero at its end) for `compute_N`.
    pub image: Vec<u8>,
    /// What the compiler said; with `--ptxas-options=-v` the registers of every kernel.
    pub log: String,
}

impl Nvrtc {
    /// The first NVRTC that compiles for compute capability `capability` (times ten), from
    /// `PRIMAL_NVRTC`, the loader's path, CUDA's folders and Python's packages.
    pub fn find(capability: i32) -> Result<Nvrtc, CudaError> {
        if let Some(path) = std::env::var_os("PRIMAL_NVRTC") {
            let nvrtc = Nvrtc::open(Path::new(&path))?;
            nvrtc.architecture_for(capability)?;
            return Ok(nvrtc);
        }
        let mut refused = None;
        for path in candidates(&NAMES, &PACKAGES) {
            let Ok(nvrtc) = Nvrtc::open(&path) else {
                continue;
            };
            match nvrtc.architecture_for(capability) {
                Ok(_) => return Ok(nvrtc),
                Err(error) => refused = Some(error),
            }
        }
        let nowhere = "libnvrtc.so is in none of the usual folders".to_string();
        Err(refused.unwrap_or(CudaError::NoNvrtc(nowhere)))
    }

    /// Loads the library at `path`.
    pub fn open(path: &Path) -> Result<Nvrtc, CudaError> {
        let wrong =
            |error: libloading::Error| CudaError::NoNvrtc(format!("{}: {error}", path.display()));
        macro_rules! symbol {
            ($library:ident, $name:literal) => {
                *$library.get($name.to_bytes()).map_err(wrong)?
            };
        }
        // SAFETY: NVRTC runs no code of consequence when it is loaded, and its functions have
        // had these types since CUDA 11.2.
        unsafe {
            let library = Library::open(Some(path), RTLD_NOW | RTLD_LOCAL).map_err(wrong)?;
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                symbol!(library, c"nvrtcVersion");
            let count: unsafe extern "C" fn(*mut c_int) -> c_int =
                symbol!(library, c"nvrtcGetNumSupportedArchs");
            let list: unsafe extern "C" fn(*mut c_int) -> c_int =
                symbol!(library, c"nvrtcGetSupportedArchs");
            let (mut major, mut minor, mut n) = (0, 0, 0);
            version(&raw mut major, &raw mut minor);
            count(&raw mut n);
            let mut architectures = vec![0; n.max(0) as usize];
            list(architectures.as_mut_ptr());
            architectures.sort_unstable();
            Ok(Nvrtc {
                create: symbol!(library, c"nvrtcCreateProgram"),
                compile: symbol!(library, c"nvrtcCompileProgram"),
                destroy: symbol!(library, c"nvrtcDestroyProgram"),
                log: (
                    symbol!(library, c"nvrtcGetProgramLogSize"),
                    symbol!(library, c"nvrtcGetProgramLog"),
                ),
                ptx: (
                    symbol!(library, c"nvrtcGetPTXSize"),
                    symbol!(library, c"nvrtcGetPTX"),
                ),
                cubin: (
                    symbol!(library, c"nvrtcGetCUBINSize"),
                    symbol!(library, c"nvrtcGetCUBIN"),
                ),
                error: symbol!(library, c"nvrtcGetErrorString"),
                version: (major, minor),
                architectures,
                path: path.to_path_buf(),
                _library: library,
            })
        }
    }

    /// "11.8".
    pub fn version_name(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// What to compile for: the GPU's own architecture, or the newest PTX below it for a GPU that
    /// this NVRTC does not know.
    pub fn architecture_for(&self, capability: i32) -> Result<String, CudaError> {
        if self.architectures.contains(&capability) {
            return Ok(format!("sm_{capability}"));
        }
        let below = self.architectures.iter().filter(|&&it| it < capability);
        match below.max() {
            Some(virtual_architecture) => Ok(format!("compute_{virtual_architecture}")),
            None => Err(CudaError::WrongNvrtc(format!(
                "NVRTC {} compiles for sm_{} and newer, not for this sm_{capability}; hint: pip install nvidia-cuda-nvrtc-cu12",
                self.version_name(),
                self.architectures.first().unwrap_or(&0)
            ))),
        }
    }

    /// Compiles `text` for `architecture` (`sm_N` or `compute_N`).
    pub fn compile(
        &self,
        text: &str,
        architecture: &str,
        options: &[&str],
    ) -> Result<Compiled, CudaError> {
        let c_string = |text: String| {
            CString::new(text).map_err(|_| CudaError::Compile("a zero in the text".into()))
        };
        let text = c_string(text.to_string())?;
        let mut all = vec![c_string(format!("--gpu-architecture={architecture}"))?];
        for option in options {
            all.push(c_string((*option).to_string())?);
        }
        let pointers: Vec<*const c_char> = all.iter().map(|it| it.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: strings end in zeros and outlive the calls; there are no headers.
        let created = unsafe {
            (self.create)(
                &raw mut program,
                text.as_ptr(),
                c"kernels.cu".as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        if created != 0 {
            return Err(CudaError::Compile(self.error_text(created)));
        }
        // SAFETY: `program` was just created; the options outlive the call.
        let compiled =
            unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        let without_zero = |mut bytes: Vec<u8>| {
            while bytes.last() == Some(&0) {
                bytes.pop();
            }
            bytes
        };
        let log = without_zero(fetch(program, self.log));
        let log = String::from_utf8_lossy(&log).into_owned();
        let image = match (compiled, architecture.starts_with("sm_")) {
            (0, true) => Ok(fetch(program, self.cubin)),
            (0, false) => Ok(without_zero(fetch(program, self.ptx))),
            _ => Err(CudaError::Compile(format!(
                "{}\n{}",
                self.error_text(compiled),
                source::with_source_lines(&log)
            ))),
        };
        // SAFETY: the program exists and is not used again.
        unsafe { (self.destroy)(&raw mut program) };
        let image = image?;
        // NVRTC 11.8 takes __dp4a, writes a call of a function that does not exist, and reports
        // success: no driver would load it.
        if image.windows(13).any(|it| it == b".extern .func") {
            let what = "the PTX calls a function that does not exist";
            return Err(CudaError::Compile(what.into()));
        }
        Ok(Compiled { image, log })
    }

    fn error_text(&self, code: c_int) -> String {
        // SAFETY: NVRTC returns a string of its own that ends in a zero.
        let text = unsafe { CStr::from_ptr((self.error)(code)) };
        text.to_string_lossy().into_owned()
    }
}

/// One result of a program, as long as NVRTC says.
fn fetch(program: Program, (size, get): (Size, Get)) -> Vec<u8> {
    let mut length = 0;
    // SAFETY: the program exists, and `get` writes as many bytes as `size` says.
    unsafe {
        if size(program, &raw mut length) != 0 {
            return Vec::new();
        }
        let mut bytes = vec![0_u8; length];
        get(program, bytes.as_mut_ptr().cast());
        bytes
    }
}
