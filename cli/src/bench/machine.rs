//! What a record says of where it was made.

/// The machine, the system, the build.
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    system: String,
}

impl Machine {
    pub fn read() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpuinfo.lines().find_map(|l| l.strip_prefix("model name"));
        let name = name.and_then(|l| l.split_once(':')).map(|(_, name)| name.trim().to_owned());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self {
            cpu: name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            system: format!("{cores} cores, {} {}", std::env::consts::OS, kernel.trim()),
        }
    }

    /// For people and records.
    pub fn lines(&self) -> [String; 2] {
        [
            format!("machine  {}, {}", self.cpu, self.system.trim()),
            format!(
                "build    local-attention {} from {}, {}",
                env!("CARGO_PKG_VERSION"),
                env!("BUILT_FROM"),
                env!("BUILT_BY")
            ),
        ]
    }
}

/// Peak resident memory of this process since the last reset, in bytes; Linux tells.
pub fn peak_rss_bytes() -> Option<u64> {
    kernel_bytes("/proc/self/status", "VmHWM:")
}

/// Memory that programs can still have, in bytes; Linux tells.
pub fn available_bytes() -> Option<u64> {
    kernel_bytes("/proc/meminfo", "MemAvailable:")
}

/// A size that a file of the kernel's gives in KiB.
fn kernel_bytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Starts a new peak; where the system does not allow it, peaks only grow.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
