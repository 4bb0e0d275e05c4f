//! NCCL, which carries sums between the GPUs of one machine, loaded under whatever name it has.
//!
//! cudarc's own loader misses `libnccl.so.2`, the only name that packages install, and panics where
//! a library or a function is absent. Ten entry points are all that is needed.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::buffer::View;
use super::device::Device;
use super::error::CudaError;
use super::library::candidates;

/// Names the library has.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Where Python's packages have it.
const PACKAGES: [&str; 1] = ["nvidia/nccl/lib"];
/// The first version that tells of failures and can be stopped: 2.4.
const OLDEST: c_int = 2400;

/// `ncclResult_t`.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclDataType_t` and `ncclRedOp_t`.
const UINT8: c_int = 1;
const UINT32: c_int = 3;
const SUM: c_int = 0;

/// Between two looks at GPUs that are not done.
const PAUSE: Duration = Duration::from_micros(20);

type Comm = *mut c_void;
type Stream = *mut c_void;

/// A loaded NCCL.
pub struct Nccl {
    init_all: unsafe extern "C" fn(*mut Comm, c_int, *const c_int) -> c_int,
    destroy: unsafe extern "C" fn(Comm) -> c_int,
    abort: unsafe extern "C" fn(Comm) -> c_int,
    async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    all_gather:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> c_int,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        Comm,
        Stream,
    ) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    version: c_int,
    /// The file.
    pub path: PathBuf,
    _library: Library,
}

impl Nccl {
    /// The first NCCL that is new enough, from `PRIMAL_NCCL`, the loader's path, CUDA's folders and
    /// Python's packages.
    ///
    /// # Errors
    /// [`CudaError::NoNccl`], [`CudaError::OldNccl`].
    pub fn find() -> Result<Nccl, CudaError> {
        if let Some(path) = std::env::var_os("PRIMAL_NCCL") {
            return Nccl::open(Path::new(&path));
        }
        let mut refused = None;
        for path in candidates(&NAMES, &PACKAGES) {
            match Nccl::open(&path) {
                Ok(nccl) => return Ok(nccl),
                Err(error @ CudaError::OldNccl { .. }) => refused = Some(error),
                Err(_) => {}
            }
        }
        let nowhere = "libnccl.so.2 is in none of the usual folders".to_string();
        Err(refused.unwrap_or(CudaError::NoNccl(nowhere)))
    }

    /// Loads the library at `path`.
    fn open(path: &Path) -> Result<Nccl, CudaError> {
        let wrong =
            |error: libloading::Error| CudaError::NoNccl(format!("{}: {error}", path.display()));
        macro_rules! symbol {
            ($library:ident, $name:literal) => {
                *$library.get($name.to_bytes()).map_err(wrong)?
            };
        }
        // SAFETY: NCCL runs no code of consequence when it is loaded, and its functions have had
        // these types since version 2.4; older ones are refused before any other is looked for.
        unsafe {
            let library = Library::open(Some(path), RTLD_NOW | RTLD_LOCAL).map_err(wrong)?;
            let get_version: unsafe extern "C" fn(*mut c_int) -> c_int =
                symbol!(library, c"ncclGetVersion");
            let mut version = 0;
            get_version(&raw mut version);
            if version < OLDEST {
                return Err(CudaError::OldNccl {
                    version: version_name(version),
                    path: path.display().to_string(),
                });
            }
            Ok(Nccl {
                init_all: symbol!(library, c"ncclCommInitAll"),
                destroy: symbol!(library, c"ncclCommDestroy"),
                abort: symbol!(library, c"ncclCommAbort"),
                async_error: symbol!(library, c"ncclCommGetAsyncError"),
                group_start: symbol!(library, c"ncclGroupStart"),
                group_end: symbol!(library, c"ncclGroupEnd"),
                all_gather: symbol!(library, c"ncclAllGather"),
                all_reduce: symbol!(library, c"ncclAllReduce"),
                error: symbol!(library, c"ncclGetErrorString"),
                version,
                path: path.to_path_buf(),
                _library: library,
            })
        }
    }

    /// Such as "2.21.5".
    pub fn version_name(&self) -> String {
        version_name(self.version)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: NCCL returns a string of its own that ends in a zero.
        let text = unsafe { CStr::from_ptr((self.error)(code)) };
        Err(CudaError::Nccl {
            call,
            text: text.to_string_lossy().into_owned(),
        })
    }
}

/// Versions up to 2.8 have a digit for the minor number, later ones two.
fn version_name(version: c_int) -> String {
    let major = if version < 10_000 { 1000 } else { 10_000 };
    let (minor, patch) = (version % major / 100, version % 100);
    format!("{}.{minor}.{patch}", version / major)
}

/// GPUs of this process that exchange with each other. What is queued on one runs after what was
/// queued there before, as a kernel does.
pub struct Clique {
    nccl: Nccl,
    /// A communicator each.
    members: Vec<(Comm, Device)>,
    timeout: Duration,
    /// Whether something failed, so that what is on its way may never end.
    broken: AtomicBool,
}

// SAFETY: a communicator may be used from any thread, one at a time; all uses but `drop` borrow
// the clique, which is not `Sync`.
unsafe impl Send for Clique {}

impl Clique {
    /// Joins `devices`, no GPU twice; none is waited for longer than `timeout` at a time.
    ///
    /// # Errors
    /// [`CudaError::Nccl`].
    pub fn new(nccl: Nccl, devices: &[Device], timeout: Duration) -> Result<Clique, CudaError> {
        let ordinals: Vec<c_int> = devices.iter().map(|it| it.ordinal() as c_int).collect();
        let mut comms: Vec<Comm> = vec![std::ptr::null_mut(); devices.len()];
        // SAFETY: both lists have that many elements.
        let code = unsafe {
            (nccl.init_all)(
                comms.as_mut_ptr(),
                ordinals.len() as c_int,
                ordinals.as_ptr(),
            )
        };
        nccl.check("ncclCommInitAll", code)?;
        Ok(Clique {
            nccl,
            members: comms.into_iter().zip(devices.iter().cloned()).collect(),
            timeout,
            broken: AtomicBool::new(false),
        })
    }

    /// Number of GPUs.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Exchanges what `queue` lists, the same of every GPU, and waits for the end.
    ///
    /// # Errors
    /// [`CudaError::Nccl`] or, where a GPU does not come to the end in time,
    /// [`CudaError::ExchangeLost`]. The clique is of no use then.
    pub fn exchange(
        &self,
        queue: impl FnOnce(&Queue<'_>) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let done = || {
            // SAFETY: a group is ended below, whatever happens.
            let started = unsafe { (self.nccl.group_start)() };
            self.nccl.check("ncclGroupStart", started)?;
            let queued = queue(&Queue(self));
            // SAFETY: ends the group that was just started.
            let ended = unsafe { (self.nccl.group_end)() };
            let ended = self.nccl.check("ncclGroupEnd", ended);
            queued.and(ended)?;
            self.wait()
        };
        done().inspect_err(|_| self.broken.store(true, Ordering::Relaxed))
    }

    /// Waits for all GPUs; one that fails is noticed although the others would wait for it for ever.
    fn wait(&self) -> Result<(), CudaError> {
        let started = Instant::now();
        loop {
            let mut busy = None;
            for (comm, device) in &self.members {
                let mut code = SUCCESS;
                // SAFETY: the communicator exists; one int is written.
                let asked = unsafe { (self.nccl.async_error)(*comm, &raw mut code) };
                self.nccl.check("ncclCommGetAsyncError", asked)?;
                if code != IN_PROGRESS {
                    self.nccl.check("an exchange", code)?;
                }
                if !device.is_idle()? {
                    busy = Some(device.ordinal());
                }
            }
            match busy {
                None => return Ok(()),
                Some(ordinal) if started.elapsed() > self.timeout => {
                    return Err(CudaError::ExchangeLost {
                        ordinal,
                        seconds: self.timeout.as_secs(),
                    });
                }
                Some(_) => std::thread::sleep(PAUSE),
            }
        }
    }
}

impl Drop for Clique {
    fn drop(&mut self) {
        let end = if self.broken.load(Ordering::Relaxed) {
            // What waits for a GPU that failed would do so for ever.
            self.nccl.abort
        } else {
            self.nccl.destroy
        };
        for (comm, _) in &self.members {
            // SAFETY: the communicator exists and is not used again.
            let _ = unsafe { end(*comm) };
        }
    }
}

/// Takes what GPUs are to exchange together.
pub struct Queue<'a>(&'a Clique);

impl Queue<'_> {
    /// GPU `member` gives `own` (n), and `all` (GPUs, n) there receives what each of them gives.
    ///
    /// # Panics
    /// If the lengths do not match or a view lies elsewhere.
    pub fn gather<T: Pod>(
        &self,
        member: usize,
        own: View<'_, T>,
        all: View<'_, T>,
    ) -> Result<(), CudaError> {
        let Clique { nccl, members, .. } = self.0;
        let comm = self.member(member, &[own.device, all.device])?;
        let to = all.of(members.len() * own.len(), "a part a GPU");
        // SAFETY: both views are this long, and lie on the communicator's GPU.
        let code = unsafe {
            (nccl.all_gather)(
                own.address as *const c_void,
                to as *mut c_void,
                own.len() * size_of::<T>(),
                UINT8,
                comm,
                std::ptr::null_mut(),
            )
        };
        nccl.check("ncclAllGather", code)
    }

    /// Every one of `words` becomes its sum over the GPUs, modulo 2^32.
    ///
    /// # Panics
    /// If the view lies elsewhere.
    pub fn sum(&self, member: usize, words: View<'_, u32>) -> Result<(), CudaError> {
        let comm = self.member(member, &[words.device])?;
        // SAFETY: the view is this long and lies on the communicator's GPU; NCCL may sum in place.
        let code = unsafe {
            (self.0.nccl.all_reduce)(
                words.address as *const c_void,
                words.address as *mut c_void,
                words.len(),
                UINT32,
                SUM,
                comm,
                std::ptr::null_mut(),
            )
        };
        self.0.nccl.check("ncclAllReduce", code)
    }

    /// The communicator of a GPU, whose context is bound.
    fn member(&self, member: usize, devices: &[&Device]) -> Result<Comm, CudaError> {
        let (comm, own) = &self.0.members[member];
        let here = devices.iter().all(|it| it.ordinal() == own.ordinal());
        assert!(here, "a view on GPU {}", own.ordinal());
        own.bind()?;
        Ok(*comm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_both_forms() {
        assert_eq!(version_name(2304), "2.3.4");
        assert_eq!(version_name(2408), "2.4.8");
        assert_eq!(version_name(22_105), "2.21.5");
    }
}
