//! `check_distinct` and `Output`: the files that a command writes. No output is an input, or another output.
//!
//! Two paths are the same file if they lead to one file: through links, relative parts, or hard links.
//! A file that does not exist yet is identified by its folder and its name. Terminals, `/dev/null` and
//! sockets hold nothing that could be overwritten, so they may be named more than once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::trace::is_standard_input;

/// The most links that are followed along a path.
const LINKS_MOST: usize = 40;

/// The file that a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// Device and inode number of an existing file.
    #[cfg(unix)]
    File(u64, u64),
    /// The path of a file that does not exist, or whose number the system does not report.
    Path(PathBuf),
}

/// A file that is read or written, and its name in errors.
struct Named<'a> {
    name: String,
    path: &'a Path,
}

/// Checks that each of `outputs`, and standard output, is no other of them and not `input`. Writes and
/// creates nothing.
///
/// # Errors
/// Names the two that are the same.
pub fn check_distinct(input: Option<&Path>, outputs: &[(&str, &Path)]) -> Result<()> {
    let mut known: Vec<(Target, String)> = Vec::new();
    let input = input.map(|path| {
        let at = if is_standard_input(path) { Path::new("/dev/stdin") } else { path };
        Named { name: format!("the trace {}", path.display()), path: at }
    });
    let standard = Named { name: "standard output".to_owned(), path: Path::new("/dev/stdout") };
    let outputs = outputs
        .iter()
        .map(|&(option, path)| Named { name: format!("{option} {}", path.display()), path });
    for named in input.into_iter().chain([standard]).chain(outputs) {
        let Some(target) = target(named.path) else { continue };
        if let Some((_, other)) = known.iter().find(|(known, _)| *known == target) {
            bail!("{} and {other} are the same file", named.name);
        }
        known.push((target, named.name));
    }
    Ok(())
}

/// Follows a path to its end. Returns `None` where nothing can be overwritten.
fn target(path: &Path) -> Option<Target> {
    match fs::metadata(path) {
        Ok(metadata) => of_metadata(&metadata, path),
        Err(_) => Some(Target::Path(of_missing(path))),
    }
}

#[cfg(unix)]
fn of_metadata(metadata: &fs::Metadata, _: &Path) -> Option<Target> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    let kind = metadata.file_type();
    let holds_nothing = kind.is_char_device() || kind.is_socket();
    (!holds_nothing).then(|| Target::File(metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn of_metadata(_: &fs::Metadata, path: &Path) -> Option<Target> {
    Some(Target::Path(fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())))
}

/// Returns the path at which a file would be created. A dangling link creates the file that it names.
fn of_missing(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MOST {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = fs::canonicalize(folder.unwrap_or(Path::new("."))).unwrap_or_default();
        let Some(name) = path.file_name() else { break };
        path = folder.join(name);
        match fs::read_link(&path) {
            Ok(link) => path = folder.join(link),
            Err(_) => break,
        }
    }
    path
}

/// A file to be written. If it did not exist before and is never replaced, it is removed when dropped.
pub struct Output {
    file: File,
    path: PathBuf,
    is_new: bool,
}

impl Output {
    /// Opens a file and leaves its content as it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true);
        let is_new = !path.exists();
        let file = options.create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), is_new })
    }

    /// Replaces the content of the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn replace(mut self, content: &[u8]) -> Result<()> {
        self.is_new = false;
        self.write(content).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn write(&mut self, content: &[u8]) -> io::Result<()> {
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(content)?;
        self.file.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_new {
            let _ = fs::remove_file(&self.path);
        }
    }
}
