//! What a record says of where it was made.

use std::time::Duration;

use crate::backend::Chosen;

/// The machine, the system, the build.
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    system: String,
    /// Adapter and driver of the GPU engine.
    device: Option<String>,
}

impl Machine {
    pub fn read(chosen: &Chosen) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = cores();
        let device = match chosen {
            Chosen::Gpu(gpu) => {
                let info = &gpu.caps().info;
                let driver = format!("{} {}", info.driver, info.driver_info);
                Some(format!("{}, {:?}, driver {}", info.name, info.backend, driver.trim()))
            }
            _ => None,
        };
        Self {
            cpu: cpu_name(&cpuinfo, std::env::consts::ARCH),
            system: format!("{cores} cores, {} {}", std::env::consts::OS, kernel.trim()),
            device,
        }
    }

    /// For people and records.
    pub fn lines(&self) -> Vec<String> {
        let machine = format!("machine  {}, {}", self.cpu, self.system.trim());
        let adapter = self.device.as_ref().map(|device| format!("adapter  {device}"));
        let build = format!(
            "build    local-attention {} from {}, {}",
            env!("CARGO_PKG_VERSION"),
            env!("BUILT_FROM"),
            env!("BUILT_BY")
        );
        [machine].into_iter().chain(adapter).chain([build]).collect()
    }
}

/// Name of the first processor, with its family and model where the name holds no number that tells:
/// virtual machines are often told half of it. Those of ARM have no name, but numbers for who made what.
fn cpu_name(cpuinfo: &str, arch: &str) -> String {
    let value = |key: &str| {
        let pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        pairs.map(|(k, v)| (k.trim(), v.trim())).find(|(k, _)| *k == key).map(|(_, v)| v)
    };
    let Some(name) = value("model name") else {
        return match (value("CPU implementer"), value("CPU part")) {
            (Some(implementer), Some(part)) => {
                format!("{arch} (implementer {implementer} part {part})")
            }
            _ => arch.to_owned(),
        };
    };
    // A clock rate is no number of a model.
    let model = name.split('@').next().unwrap_or_default();
    if model.contains(|c: char| c.is_ascii_digit()) {
        return name.to_owned();
    }
    match (value("cpu family"), value("model")) {
        (Some(family), Some(model)) => format!("{name} (family {family} model {model})"),
        _ => name.to_owned(),
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

/// How often this thread has waited for another, or for a device; Linux tells.
pub fn waits() -> Option<u64> {
    kernel_number("/proc/thread-self/status", "voluntary_ctxt_switches:")
}

/// That other programs compute at the moment, on a tenth of a core or more: Linux tells.
pub fn others() -> Option<String> {
    // Hundredths of a second of all cores, but for idle and waiting ones.
    let busy = || -> Option<u64> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let numbers = text.lines().next()?.split_whitespace().skip(1).map(str::parse);
        let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
        Some(numbers.iter().take(3).sum::<u64>() + numbers.get(5..8)?.iter().sum::<u64>())
    };
    let before = busy()?;
    std::thread::sleep(Duration::from_millis(300));
    let ticks = busy()?.saturating_sub(before);
    let cores = ticks as f64 / 30.0;
    (cores >= 0.1).then(|| {
        format!("warning  other programs compute on {cores:.1} cores: times and ratios will be off")
    })
}

/// Cores that this process may compute on.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// A size that a file of the kernel's gives in KiB.
fn kernel_bytes(file: &str, name: &str) -> Option<u64> {
    kernel_number(file, name)?.checked_mul(1024)
}

fn kernel_number(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Starts a new peak; where the system does not allow it, peaks only grow.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::cpu_name;

    #[test]
    fn a_name_that_says_little_gets_a_number() {
        let info = |name: &str| {
            format!("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: {name}\n")
        };
        for (name, expected) in [
            ("AMD EPYC", "AMD EPYC (family 25 model 1)"),
            ("AMD EPYC 9654", "AMD EPYC 9654"),
            (
                "Intel(R) Xeon(R) Processor @ 2.20GHz",
                "Intel(R) Xeon(R) Processor @ 2.20GHz (family 25 model 1)",
            ),
        ] {
            assert_eq!(cpu_name(&info(name), "x86_64"), expected);
        }
        assert_eq!(cpu_name("model name : x", "x86_64"), "x");
        assert_eq!(cpu_name("Hardware : x", "aarch64"), "aarch64");
        assert_eq!(
            cpu_name("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "aarch64"),
            "aarch64 (implementer 0x41 part 0xd0c)"
        );
    }
}
