//! `DataFile`: a locked file that is read and written at positions, with its room allocated.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use fs4::{FileExt, TryLockError};

use super::file_header::FILE_HEADER_BYTES;
use super::options::OpenError;
use crate::sync::outside::Mutex;
use crate::sync::{AtomicU64, Ordering};

/// The bytes that are written at a time where a file system cannot allocate.
const ZEROS: usize = 1 << 20;

/// A file that this process alone has open as a store. Its lock ends when it is dropped.
pub(super) struct DataFile {
    file: File,
    /// Held while the file is synced.
    syncing: Mutex<()>,
    failed_syncs: AtomicU64,
    #[cfg(test)]
    pub(super) faults: SyncFaults,
}

/// The faults of the next syncs.
#[cfg(test)]
#[derive(Default)]
pub(super) struct SyncFaults {
    /// Syncs that fail.
    pub(super) own: crate::sync::AtomicUsize,
    /// Syncs before which another thread's sync has failed.
    pub(super) of_others: crate::sync::AtomicUsize,
}

impl Drop for DataFile {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is being started has it open until it runs its program.
        let _ = FileExt::unlock(&self.file);
    }
}

impl DataFile {
    /// Opens or creates a file and locks it.
    ///
    /// # Errors
    /// `Locked`, `Io`.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // Contents are prompts of users in another form.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let fault = |operation, source| OpenError::Io { operation, path: path.into(), source };
        let file = options.open(path).map_err(|source| fault("open", source))?;
        // Not as a method, which the standard library has since Rust 1.89.
        match FileExt::try_lock(&file) {
            Ok(()) => Ok(Self {
                file,
                syncing: Mutex::default(),
                failed_syncs: AtomicU64::new(0),
                #[cfg(test)]
                faults: SyncFaults::default(),
            }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.into() }),
            Err(TryLockError::Error(source)) => Err(fault("lock", source)),
        }
    }

    /// Returns the first bytes, with zeros behind the end of a shorter file; and the length of the file.
    pub(super) fn beginning(&self) -> io::Result<([u8; FILE_HEADER_BYTES], u64)> {
        let mut bytes = [0; FILE_HEADER_BYTES];
        let len = self.file.metadata()?.len();
        self.read(&mut bytes[..len.min(FILE_HEADER_BYTES as u64) as usize], 0)?;
        Ok((bytes, len))
    }

    /// Removes everything from the file.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Gives the file so many bytes and allocates their room. New bytes are zeros, the others stay.
    pub(super) fn allocate(&self, bytes: u64) -> io::Result<()> {
        match FileExt::allocate(&self.file, bytes) {
            Ok(()) if self.file.metadata()?.len() < bytes => self.file.set_len(bytes),
            Err(fault) if fault.kind() == io::ErrorKind::Unsupported => self.fill(bytes),
            allocated => allocated,
        }
    }

    /// Writes zeros from the end of the file on.
    fn fill(&self, bytes: u64) -> io::Result<()> {
        let (zeros, mut at) = (vec![0; ZEROS], self.file.metadata()?.len());
        while at < bytes {
            let len = (bytes - at).min(ZEROS as u64);
            self.write(&zeros[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    /// Returns how many syncs have failed, for [`sync_since`](Self::sync_since).
    pub(super) fn failed_syncs(&self) -> u64 {
        // Relaxed: a thread that reads the earlier number fails without need.
        self.failed_syncs.load(Ordering::Relaxed)
    }

    /// Syncs the writes since `failed_syncs` was read. The operating system reports an error of one write to one
    /// sync only, which may be that of another thread: one sync at a time is made, and this fails if any has failed since.
    pub(super) fn sync_since(&self, failed_syncs: u64) -> io::Result<()> {
        let _syncing = self.syncing.lock();
        let synced = self.sync_data();
        if synced.is_err() {
            // Relaxed: written and compared with the lock.
            self.failed_syncs.fetch_add(1, Ordering::Relaxed);
        }
        match self.failed_syncs() == failed_syncs {
            true => Ok(()),
            false => synced.and(Err(io::Error::other("a sync of another thread failed"))),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        #[cfg(test)]
        self.fail_sync()?;
        self.file.sync_data()
    }

    #[cfg(test)]
    fn fail_sync(&self) -> io::Result<()> {
        use crate::sync::Ordering::Relaxed;
        let less = |left: usize| left.checked_sub(1);
        if self.faults.of_others.fetch_update(Relaxed, Relaxed, less).is_ok() {
            self.failed_syncs.fetch_add(1, Relaxed);
        }
        match self.faults.own.fetch_update(Relaxed, Relaxed, less) {
            Ok(_) => Err(io::Error::other("a fault of the medium")),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    #[cfg(unix)]
    pub(super) fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, into, at)
    }

    #[cfg(unix)]
    pub(super) fn write(&self, from: &[u8], at: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, from, at)
    }

    #[cfg(windows)]
    pub(super) fn read(&self, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
        while !into.is_empty() {
            let read = std::os::windows::fs::FileExt::seek_read(&self.file, into, at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += read as u64;
            into = &mut into[read..];
        }
        Ok(())
    }

    #[cfg(windows)]
    pub(super) fn write(&self, mut from: &[u8], mut at: u64) -> io::Result<()> {
        while !from.is_empty() {
            let written = std::os::windows::fs::FileExt::seek_write(&self.file, from, at)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += written as u64;
            from = &from[written..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_written_where_a_file_system_cannot_allocate() {
        let path = std::env::temp_dir().join(format!("paged-kv-fill-{}", std::process::id()));
        let file = DataFile::open(&path).unwrap();
        file.write(b"kept", 0).unwrap();
        let bytes = ZEROS as u64 * 2 + 77;
        file.fill(bytes).unwrap();
        assert_eq!(file.file.metadata().unwrap().len(), bytes);
        let mut all = vec![1; bytes as usize];
        file.read(&mut all, 0).unwrap();
        assert!(all.starts_with(b"kept") && all[4..].iter().all(|&byte| byte == 0));
        std::fs::remove_file(&path).unwrap();
    }
}
