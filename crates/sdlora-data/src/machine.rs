//! The memory of the machine, as far as this process may use it.

use std::fs::read_to_string;
use std::num::NonZero;
use std::path::Path;
use std::thread::available_parallelism;

/// Memory where the system does not say how much there is: other systems than Linux.
const UNKNOWN_BYTES: u64 = 16 << 30;

/// A quarter of the memory of a process that uses all processors, and less in a pool that has a part of them: several
/// runs on one machine then share its memory as they share its processors.
pub(crate) fn share_of_memory() -> u64 {
    let n_all = available_parallelism().map_or(1, NonZero::get) as u64;
    let n_own = (rayon::current_num_threads() as u64).clamp(1, n_all);
    memory() / 4 / n_all * n_own
}

/// Bytes of memory of the machine, or of the control group of the process where that has less (containers, jobs of
/// SLURM).
fn memory() -> u64 {
    let of_machine = read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_of(&text));
    let of_group = read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| limit_of(&text, Path::new("/sys/fs/cgroup")));
    let found = [of_machine, of_group].into_iter().flatten().min();
    found.unwrap_or(UNKNOWN_BYTES)
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The smallest limit of a control group and those above it, by `/proc/self/cgroup`. `root` is where they are mounted.
fn limit_of(cgroup: &str, root: &Path) -> Option<u64> {
    let limits = cgroup.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        // Version 2 has one hierarchy and no names; version 1 has one for the memory.
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // In a container the path may be that of the host, which is not there; the root then is its own group.
        let group = root.join(path.trim_start_matches('/'));
        let groups = group
            .ancestors()
            .take_while(|group| group.starts_with(&root));
        let limits =
            groups.filter_map(|group| read_to_string(group.join(file)).ok()?.trim().parse().ok());
        limits.min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_total_is_read_and_nothing_else() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\n";
        assert_eq!(total_of(text), Some(16 << 20));
        for other in [
            "",
            "MemFree: 1 kB\n",
            "MemTotal: x kB\n",
            "MemTotal: 99999999999999999999 kB\n",
        ] {
            assert_eq!(total_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (folder, file, text) in [
            ("job/step", "memory.max", "max\n"),
            ("job", "memory.max", "1000\n"),
            ("", "memory.max", "5000\n"),
            ("memory/a", "memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory", "memory.limit_in_bytes", "700\n"),
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
            fs::write(root.join(folder).join(file), text).unwrap();
        }
        assert_eq!(limit_of("0::/job/step\n", root), Some(1000));
        assert_eq!(limit_of("0::/job/step/gone\n", root), Some(1000));
        assert_eq!(limit_of("0::/elsewhere\n", root), Some(5000));
        assert_eq!(limit_of("4:cpu,memory:/a\n3:cpu:/job\n", root), Some(700));
        assert_eq!(limit_of("", root), None);
        assert_eq!(limit_of("0::/\n", &root.join("job/step")), None);
    }

    #[test]
    fn runs_that_share_the_processors_share_the_memory() {
        let alone = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        let n = available_parallelism().unwrap().get() as u64;
        let whole = memory() / 4;
        let found = alone.install(share_of_memory);
        assert!(
            found <= whole / n && found + n >= whole / n,
            "{found} of {whole}"
        );
    }
}
