//! How much memory a run may take: the user's limit, the control group's, or what the machine has free; and what the
//! process holds besides tensors, for the limit is the process's.

use std::fs;
use std::path::{Path, PathBuf};

use retune_tensor::memory;

/// Bytes that the process may take, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    pub bytes: u64,
    /// As in "the limit of ...".
    pub source: String,
}

/// Bytes of a process that nothing is known of: program, libraries, stacks.
const UNKNOWN_PROCESS: u64 = 32 << 20;
/// Bytes that it takes later: parts of the program that have not run yet, what threads keep for themselves, small things.
const LATER: u64 = 12 << 20;

/// Bytes that this process holds besides tensors: the program, its stacks, a tokenizer, examples, and what the allocator
/// keeps. Measured where the system says (Linux).
pub fn process_bytes() -> u64 {
    // Reused buffers that nobody holds now are no part of it.
    memory::trim();
    let tensors = memory::live_bytes() as u64;
    LATER + resident_bytes().map_or(UNKNOWN_PROCESS, |resident| resident.saturating_sub(tensors))
}

/// Bytes of memory that this process holds now.
fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// The most bytes of memory that this process ever held, where the system says (Linux).
pub fn peak_resident_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

fn status_bytes(name: &str) -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/self/status").ok()?, name)
}

/// The least of `memory_limit` (the user's), the control group's limit and the memory that is free, each counting what
/// this process holds already. `None` if nothing is known (other systems than Linux, without a limit given).
pub fn available_memory(memory_limit: Option<u64>) -> Option<MemoryLimit> {
    let held = resident_bytes().unwrap_or_else(|| memory::live_bytes() as u64);
    let user = memory_limit.map(|bytes| MemoryLimit { bytes, source: "`memory_limit`".into() });
    let meminfo = fs::read_to_string("/proc/meminfo").ok();
    let machine = meminfo.and_then(|text| kib_of(&text, "MemAvailable:"));
    let machine = machine.map(|free| MemoryLimit {
        bytes: free.saturating_add(held),
        source: "the memory that is free on this machine".into(),
    });
    let group = cgroup_free().map(|free| MemoryLimit {
        bytes: free.saturating_add(held),
        source: "the memory limit of this container or control group".into(),
    });
    [user, group, machine].into_iter().flatten().min_by_key(|limit| limit.bytes)
}

/// A line of `/proc/meminfo` or `/proc/self/status`, in bytes.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What is left below the tightest limit of our control group and those above it, version 2 or 1.
fn cgroup_free() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (root, names) = match controllers {
            "" => ("/sys/fs/cgroup", Names::V2),
            c if c.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", Names::V1),
            _ => continue,
        };
        for folder in groups(Path::new(root), path) {
            if let Some(free) = group_free(&folder, names) {
                least = Some(least.map_or(free, |l: u64| l.min(free)));
            }
        }
    }
    least
}

#[derive(Clone, Copy)]
enum Names {
    V1,
    V2,
}

/// The group's folder and all above it. In a container the path may not exist below the root: then the root stands for it.
fn groups(root: &Path, path: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = vec![root.to_path_buf()];
    let mut folder = root.to_path_buf();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != "..") {
        folder.push(part);
        folders.push(folder.clone());
    }
    folders
}

fn group_free(folder: &Path, names: Names) -> Option<u64> {
    let (max, current, inactive) = match names {
        Names::V2 => ("memory.max", "memory.current", "inactive_file"),
        Names::V1 => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    };
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    // "max" does not parse: no limit. Version 1 writes a number near 2^63 for that.
    let limit = number(max).filter(|limit| *limit < 1 << 60)?;
    // Files read but not in use go as soon as memory is asked for.
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached =
        stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok()).unwrap_or(0);
    Some(limit.saturating_sub(number(current)?.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        let text = "MemTotal:       100 kB\nMemFree:  1 kB\nMemAvailable:     42 kB\n";
        assert_eq!(kib_of(text, "MemAvailable:"), Some(42 * 1024));
        assert_eq!(kib_of("MemAvailable: lots", "MemAvailable:"), None);
    }

    #[test]
    fn reads_control_groups_of_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 5\ninactive_file 300\n");
        assert_eq!(group_free(dir.path(), Names::V2), Some(600));
        write("memory.max", "max\n");
        assert_eq!(group_free(dir.path(), Names::V2), None);
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.usage_in_bytes", "700\n");
        assert_eq!(group_free(dir.path(), Names::V1), None);
        write("memory.limit_in_bytes", "2000\n");
        assert_eq!(group_free(dir.path(), Names::V1), Some(1300));
    }

    #[test]
    fn the_users_limit_counts() {
        let limit = available_memory(Some(1)).unwrap();
        assert_eq!((limit.bytes, limit.source.as_str()), (1, "`memory_limit`"));
    }
}
