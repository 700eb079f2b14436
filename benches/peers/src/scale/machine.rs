//! `cores`, `cpu_model`: the machine, as it reports itself.

use std::fs;
use std::thread;

/// Returns the number of cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the processor's model, if the system names it.
pub fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    };
    text.lines().find_map(value).unwrap_or_else(|| "a processor of unknown model".to_owned())
}
