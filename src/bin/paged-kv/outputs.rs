//! `check_distinct` and `Output`: what a command writes. No output is an input, or another output.
//!
//! Two paths are the same file if they lead to one: through links, relative parts, or one more name.
//! A file that is not there yet is known by its folder and its name there. Terminals, `/dev/null` and
//! sockets hold nothing that could be overwritten, and may be named more than once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::trace::is_standard_input;

/// Links that are followed before a path is given up.
const LINKS_MOST: usize = 40;

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// Device and number of a file that is there.
    #[cfg(unix)]
    File(u64, u64),
    /// The path of a file that is not there, or whose number the system does not tell.
    Path(PathBuf),
}

/// Something that is read or written, as errors call it.
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

/// Follows a path to its end. `None` where nothing can be overwritten.
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

/// Returns where a file would be created: a link that leads nowhere creates what it names.
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

/// A file to be written. One that was not there before goes again if nothing replaces its content.
pub struct Output {
    file: File,
    path: PathBuf,
    is_new: bool,
}

impl Output {
    /// Opens a file, and changes nothing of what is in it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true);
        let is_new = !path.exists();
        let file = options.create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), is_new })
    }

    /// Replaces what is in the file.
    ///
    /// # Errors
    /// It cannot be written.
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
