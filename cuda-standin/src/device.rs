//! A device: memory, modules, what it executed, and the faults that are to come.

use std::collections::HashMap;
use std::ffi::CString;

use ptx_interpreter::{Kernel, Launch, Memory, launch_profiled, parse};

use crate::coverage::Coverage;
use crate::{DeviceCounts, Injection};

/// Results of the driver API that the stand-in gives.
pub(crate) mod code {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const INVALID_VALUE: i32 = 1;
    pub(crate) const OUT_OF_MEMORY: i32 = 2;
    pub(crate) const NO_DEVICE: i32 = 100;
    pub(crate) const INVALID_DEVICE: i32 = 101;
    pub(crate) const INVALID_IMAGE: i32 = 200;
    pub(crate) const INVALID_CONTEXT: i32 = 201;
    pub(crate) const INVALID_PTX: i32 = 218;
    pub(crate) const UNSUPPORTED_PTX_VERSION: i32 = 222;
    pub(crate) const NOT_FOUND: i32 = 500;
    pub(crate) const ILLEGAL_ADDRESS: i32 = 700;
    pub(crate) const LAUNCH_FAILED: i32 = 719;
}

/// What the environment says, read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) devices: u32,
    pub(crate) capability: i32,
    pub(crate) driver_version: i32,
    memory_bytes: u64,
    fail_allocation: u64,
    fail_launch: u64,
    fail_collective: u64,
}

impl Settings {
    pub(crate) fn from_environment(devices: u32) -> Settings {
        Settings {
            devices: number("CUDA_STANDIN_DEVICES", devices.into()) as u32,
            capability: 61,
            driver_version: number("CUDA_STANDIN_DRIVER", 11080) as i32,
            memory_bytes: number("CUDA_STANDIN_MEMORY", 11 << 30),
            fail_allocation: number("CUDA_STANDIN_FAIL_ALLOCATION", 0),
            fail_launch: number("CUDA_STANDIN_FAIL_LAUNCH", 0),
            fail_collective: number("CUDA_STANDIN_FAIL_COLLECTIVE", 0),
        }
    }

    /// Those of one device: a list of capabilities has one each, and the last for all that follow.
    pub(crate) fn of_device(self, ordinal: usize) -> Settings {
        let list = std::env::var("CUDA_STANDIN_SM").unwrap_or_default();
        let capabilities: Vec<i32> = list.split(',').filter_map(|it| it.parse().ok()).collect();
        let own = capabilities.get(ordinal).or(capabilities.last());
        Settings {
            capability: own.copied().unwrap_or(self.capability),
            ..self
        }
    }
}

pub(crate) fn number(variable: &str, default: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value.and_then(|it| it.parse().ok()).unwrap_or(default)
}

pub(crate) struct Device {
    pub(crate) settings: Settings,
    memory: Memory,
    /// Sizes of what the host allocated.
    buffers: HashMap<u64, usize>,
    /// Compute capability, times ten.
    pub(crate) capability: i32,
    memory_bytes: u64,
    fail_allocation: u64,
    fail_launch: u64,
    fail_collective: u64,
    counts: DeviceCounts,
    coverage: Option<Coverage>,
    /// After a fault every call fails, as in a context whose kernel crashed.
    broken: Option<i32>,
    /// What was wrong last, for `cuGetErrorString`.
    pub(crate) last_error: CString,
}

impl Device {
    pub(crate) fn new(settings: Settings) -> Self {
        Device {
            settings,
            memory: Memory::new(),
            buffers: HashMap::new(),
            capability: settings.capability,
            memory_bytes: settings.memory_bytes,
            fail_allocation: settings.fail_allocation,
            fail_launch: settings.fail_launch,
            fail_collective: settings.fail_collective,
            counts: DeviceCounts::default(),
            coverage: Coverage::from_environment(),
            broken: None,
            last_error: CString::default(),
        }
    }

    /// Remembers what went wrong.
    pub(crate) fn fail(&mut self, code: i32, what: impl Into<String>) -> i32 {
        self.last_error = CString::new(what.into()).unwrap_or_default();
        code
    }

    /// The code of a kernel that faulted before.
    pub(crate) fn state(&self) -> i32 {
        self.broken.unwrap_or(code::SUCCESS)
    }

    pub(crate) fn inject(&mut self, what: u32, value: u64) {
        if what == Injection::FailAllocation as u32 {
            self.fail_allocation = value;
        } else if what == Injection::FailLaunch as u32 {
            self.fail_launch = value;
        } else if what == Injection::FailCollective as u32 {
            self.fail_collective = value;
        } else if what == Injection::Capability as u32 {
            self.capability = value as i32;
        } else {
            self.memory_bytes = value;
        }
        self.broken = None;
    }

    pub(crate) fn take_counts(&mut self) -> DeviceCounts {
        let used_bytes = self.memory.used() as u64;
        let peak_bytes = self.counts.peak_bytes;
        let counts = DeviceCounts {
            used_bytes,
            ..self.counts
        };
        self.counts = DeviceCounts {
            peak_bytes,
            ..DeviceCounts::default()
        };
        counts
    }

    /// (free, total) bytes.
    pub(crate) fn memory_info(&self) -> (u64, u64) {
        let used = self.memory.used() as u64;
        (self.memory_bytes.saturating_sub(used), self.memory_bytes)
    }

    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<u64, i32> {
        if bytes == 0 {
            return Err(self.fail(code::INVALID_VALUE, "an allocation of 0 bytes"));
        }
        let injected = self.fail_allocation == 1;
        self.fail_allocation = self.fail_allocation.saturating_sub(1);
        if injected || bytes as u64 > self.memory_info().0 {
            return Err(self.fail(code::OUT_OF_MEMORY, format!("no {bytes} bytes left")));
        }
        let address = self.memory.allocate(bytes);
        self.buffers.insert(address, bytes);
        self.counts.peak_bytes = self.counts.peak_bytes.max(self.memory.used() as u64);
        Ok(address)
    }

    pub(crate) fn free(&mut self, address: u64) -> i32 {
        self.buffers.remove(&address);
        match self.memory.free(address) {
            Ok(()) => code::SUCCESS,
            Err(fault) => self.fail(code::INVALID_VALUE, fault.to_string()),
        }
    }

    pub(crate) fn copy_in(&mut self, to: u64, from: &[u8]) -> i32 {
        self.counts.copied_bytes += from.len() as u64;
        let result = self.memory.write(to, from);
        self.copied(result)
    }

    pub(crate) fn copy_out(&mut self, to: &mut [u8], from: u64) -> i32 {
        self.counts.copied_bytes += to.len() as u64;
        let result = self.memory.read(from, to);
        self.copied(result)
    }

    pub(crate) fn copy_within(&mut self, to: u64, from: u64, bytes: usize) -> i32 {
        let mut buffer = vec![0; bytes];
        let result = self.memory.read(from, &mut buffer);
        let result = result.and_then(|()| self.memory.write(to, &buffer));
        self.copied(result)
    }

    pub(crate) fn fill(&mut self, to: u64, value: u8, bytes: usize) -> i32 {
        let result = self.memory.fill(to, bytes, value);
        self.copied(result)
    }

    /// Gives bytes to a collective.
    pub(crate) fn give(&mut self, to: &mut [u8], from: u64) -> i32 {
        let injected = self.fail_collective == 1;
        self.fail_collective = self.fail_collective.saturating_sub(1);
        if injected {
            self.broken = Some(code::LAUNCH_FAILED);
            return self.fail(code::LAUNCH_FAILED, "an injected fault of a collective");
        }
        self.counts.given_bytes += to.len() as u64;
        let result = self.memory.read(from, to);
        self.copied(result)
    }

    /// Takes what a collective made.
    pub(crate) fn take(&mut self, to: u64, from: &[u8]) -> i32 {
        let result = self.memory.write(to, from);
        self.copied(result)
    }

    fn copied(&mut self, result: Result<(), ptx_interpreter::Fault>) -> i32 {
        match result {
            Ok(()) => self.state(),
            Err(fault) => self.fail(code::INVALID_VALUE, fault.to_string()),
        }
    }

    /// Reads a module, as the driver's assembler would.
    pub(crate) fn load(&mut self, image: &[u8]) -> Result<ptx_interpreter::Module, i32> {
        let Ok(text) = std::str::from_utf8(image) else {
            return Err(self.fail(code::INVALID_IMAGE, "not PTX: the stand-in runs no CUBIN"));
        };
        let module = match parse(text) {
            Ok(module) if !module.version.is_empty() => module,
            Ok(_) => return Err(self.fail(code::INVALID_IMAGE, "not PTX")),
            Err(error) => return Err(self.fail(code::INVALID_PTX, error.to_string())),
        };
        let newest = newest_ptx(self.settings.driver_version);
        if version(&module.version) > newest {
            let what = format!("PTX {} is newer than the driver", module.version);
            return Err(self.fail(code::UNSUPPORTED_PTX_VERSION, what));
        }
        let target = module.target.trim_start_matches("sm_").parse::<i32>();
        if target.is_ok_and(|target| target > self.capability) {
            let what = format!("PTX for {} on sm_{}", module.target, self.capability);
            return Err(self.fail(code::INVALID_PTX, what));
        }
        Ok(module)
    }

    pub(crate) fn launch(&mut self, kernel: &Kernel, sizes: &Launch, args: &[&[u8]]) -> i32 {
        if let Some(broken) = self.broken {
            return broken;
        }
        self.counts.launches += 1;
        let injected = self.fail_launch == 1;
        self.fail_launch = self.fail_launch.saturating_sub(1);
        if injected {
            self.broken = Some(code::ILLEGAL_ADDRESS);
            let what = format!("{}: an injected illegal address", kernel.name);
            return self.fail(code::ILLEGAL_ADDRESS, what);
        }
        match launch_profiled(kernel, &mut self.memory, sizes, args) {
            Ok((counts, profile)) => {
                if let Some(coverage) = &mut self.coverage {
                    coverage.add(kernel, &profile);
                }
                self.counts.instructions += counts.instructions;
                self.counts.float += counts.float;
                self.counts.dot4 += counts.dot4;
                self.counts.matrix += counts.matrix;
                self.counts.global_read_bytes += counts.global_read_bytes;
                self.counts.global_written_bytes += counts.global_written_bytes;
                code::SUCCESS
            }
            Err(fault) => {
                use ptx_interpreter::Fault;
                let code = match fault.fault {
                    Fault::WrongLaunch(_) => code::INVALID_VALUE,
                    Fault::OutOfBounds { .. } | Fault::WildAddress { .. } => code::ILLEGAL_ADDRESS,
                    _ => code::LAUNCH_FAILED,
                };
                if code != code::INVALID_VALUE {
                    self.broken = Some(code);
                }
                self.fail(code, fault.to_string())
            }
        }
    }
}

/// (major, minor) of a PTX version.
fn version(text: &str) -> (u32, u32) {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    (major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
}

/// The newest PTX that a driver takes (CUDA 11.0 is PTX 7.0, 12.0 is 8.0, 13.0 is 9.0).
fn newest_ptx(driver: i32) -> (u32, u32) {
    let (major, minor) = (driver / 1000, driver % 1000 / 10);
    ((major - 4).max(0) as u32, minor as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device::new(Settings {
            devices: 1,
            capability: 61,
            driver_version: 11080,
            memory_bytes: 1000,
            fail_allocation: 0,
            fail_launch: 0,
            fail_collective: 0,
        })
    }

    const EMPTY: &str = ".version 7.8\n.target sm_61\n.visible .entry k()\n{\nret;\n}\n";

    #[test]
    fn memory_runs_out_by_size_and_by_injection() {
        let mut device = device();
        assert_eq!(device.allocate(0), Err(code::INVALID_VALUE));
        let first = device.allocate(600).unwrap();
        assert_eq!(device.allocate(600), Err(code::OUT_OF_MEMORY));
        assert_eq!(device.free(first), code::SUCCESS);
        assert_eq!(device.free(first), code::INVALID_VALUE);
        device.inject(Injection::FailAllocation as u32, 2);
        assert!(device.allocate(1).is_ok());
        assert_eq!(device.allocate(1), Err(code::OUT_OF_MEMORY));
        assert!(device.allocate(1).is_ok());
        assert_eq!(device.take_counts().peak_bytes, 600);
    }

    #[test]
    fn images_that_no_driver_takes_are_refused() {
        let mut device = device();
        assert!(device.load(EMPTY.as_bytes()).is_ok());
        let newer = EMPTY.replace("7.8", "8.8");
        assert_eq!(
            device.load(newer.as_bytes()).unwrap_err(),
            code::UNSUPPORTED_PTX_VERSION
        );
        let other = EMPTY.replace("sm_61", "sm_86");
        assert_eq!(
            device.load(other.as_bytes()).unwrap_err(),
            code::INVALID_PTX
        );
        device.inject(Injection::Capability as u32, 86);
        assert!(device.load(other.as_bytes()).is_ok());
        assert_eq!(
            device.load(b"\x7fELF\xff").unwrap_err(),
            code::INVALID_IMAGE
        );
    }

    #[test]
    fn a_fault_breaks_the_device_until_it_is_mended() {
        let mut device = device();
        let module = device.load(EMPTY.as_bytes()).unwrap();
        let sizes = Launch {
            grid: [1; 3],
            block: [1; 3],
            dynamic_shared_bytes: 0,
        };
        device.inject(Injection::FailLaunch as u32, 2);
        let run = |device: &mut Device| device.launch(&module.kernels["k"], &sizes, &[]);
        assert_eq!(run(&mut device), code::SUCCESS);
        assert_eq!(run(&mut device), code::ILLEGAL_ADDRESS);
        assert!(
            device
                .last_error
                .to_str()
                .unwrap()
                .contains("k: an injected")
        );
        assert_eq!((run(&mut device), device.state()), (700, 700));
    }
}
