//! What the operating system says of this process.

use std::fs;
use std::path::{Path, PathBuf};

/// Peak resident memory of this process in bytes, where the system tells (Linux: `VmHWM`).
pub fn peak_rss_bytes() -> Option<u64> {
    status_field("VmHWM:")
}

/// Resident memory of this process in bytes, where the system tells (Linux: `VmRSS`).
pub fn rss_bytes() -> Option<u64> {
    status_field("VmRSS:")
}

/// Bytes that this process can still take, where the system tells: what Linux calls available, and
/// what is left of every control group's limit that the process is under.
pub fn available_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let system = field(&meminfo, "MemAvailable:")?;
    Some(control_groups().fold(system, u64::min))
}

/// What is left in each group from that of the process up to the root (version 2).
fn control_groups() -> impl Iterator<Item = u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .map(|path| Path::new("/sys/fs/cgroup").join(path));
    let folders: Vec<PathBuf> = own
        .iter()
        .flat_map(|own| own.ancestors())
        .take_while(|folder| folder.starts_with("/sys/fs/cgroup"))
        .map(Path::to_path_buf)
        .collect();
    folders
        .into_iter()
        .filter_map(|folder| left_in_group(&folder))
}

fn left_in_group(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    // Cached files count as used but give way.
    let stat = read("memory.stat")?;
    let cached: u64 = stat
        .lines()
        .filter_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            let counts = ["active_file", "inactive_file"].contains(&name);
            counts.then(|| bytes.parse::<u64>().ok())?
        })
        .sum();
    Some(
        (limit.saturating_sub(used))
            .saturating_add(cached)
            .min(limit),
    )
}

/// Open files and sockets of this process, where the system tells (Linux: `/proc/self/fd`).
pub fn open_descriptors() -> Option<u64> {
    // One of them is the listing itself.
    let open = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(open.saturating_sub(1))
}

fn status_field(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, name)
}

/// A size in bytes from a line `NAME   123 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_peak_is_at_least_the_present() {
        let now = super::rss_bytes().unwrap();
        assert!(now > 100_000 && super::peak_rss_bytes().unwrap() >= now / 2);
    }

    #[test]
    fn something_is_left_to_take() {
        assert!(super::available_bytes().unwrap() > 1 << 20);
    }

    #[test]
    fn standard_streams_are_open() {
        assert!(super::open_descriptors().unwrap() >= 1);
    }
}
