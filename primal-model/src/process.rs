//! What the operating system says of this process.

/// Peak resident memory of this process in bytes, where the system tells (Linux: `VmHWM`).
pub fn peak_rss_bytes() -> Option<u64> {
    status_field("VmHWM:")
}

/// Resident memory of this process in bytes, where the system tells (Linux: `VmRSS`).
pub fn rss_bytes() -> Option<u64> {
    status_field("VmRSS:")
}

/// Open files and sockets of this process, where the system tells (Linux: `/proc/self/fd`).
pub fn open_descriptors() -> Option<u64> {
    // One of them is the listing itself.
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(open.saturating_sub(1))
}

fn status_field(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
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
    fn standard_streams_are_open() {
        assert!(super::open_descriptors().unwrap() >= 1);
    }
}
