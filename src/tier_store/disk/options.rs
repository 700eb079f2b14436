//! [`DiskOptions`]: the geometry and namespace of a file of slots; and the errors of opening it.

use std::io;
use std::path::PathBuf;

use crate::cache::Namespace;

/// Geometry, namespace and safety of a file of slots.
///
/// ```
/// use paged_kv::tier_store::DiskOptions;
///
/// # fn f(namespace: paged_kv::Namespace) {
/// let options = DiskOptions::new(10_000, 2 << 20, namespace).sync(true);
/// # let _ = options;
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DiskOptions {
    pub(super) slots: usize,
    pub(super) block_bytes: usize,
    pub(super) namespace: Namespace,
    pub(super) syncs: bool,
}

impl DiskOptions {
    /// Sets the slots, as many as the tier of the cache has; the bytes of a block, of all layers; and the namespace, which
    /// [`Tiers::namespace`](crate::Tiers::namespace) returns. The file has about `slots * block_bytes` bytes, where
    /// `block_bytes` is rounded up to a multiple of 4,096.
    ///
    /// ```
    /// # fn f(namespace: paged_kv::Namespace) {
    /// let options = paged_kv::tier_store::DiskOptions::new(10_000, 2 << 20, namespace);
    /// # let _ = options;
    /// # }
    /// ```
    pub fn new(slots: usize, block_bytes: usize, namespace: Namespace) -> Self {
        Self { slots, block_bytes, namespace, syncs: false }
    }

    /// Syncs the file before and after the headers of each batch of contents (`fdatasync`). By default it does not: then
    /// contents survive the end of the process, however it ends, and after a loss of power some are missing. Never are
    /// wrong bytes read. A reset is synced in both cases.
    ///
    /// ```
    /// # fn f(namespace: paged_kv::Namespace) {
    /// let options = paged_kv::tier_store::DiskOptions::new(16, 4_096, namespace).sync(true);
    /// # let _ = options;
    /// # }
    /// ```
    pub fn sync(self, syncs: bool) -> Self {
        Self { syncs, ..self }
    }
}

/// The reason why a file of slots was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The options make no file.
    #[error("invalid options: {reason}")]
    InvalidOptions {
        /// The rule that they break.
        reason: String,
    },
    /// Another store has the file open, in this process or in another one.
    #[error("{} is locked by another store", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file has contents and is not a file of slots. It is left as it is.
    #[error("{} is not a file of slots", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused an operation; also a disk without room for all slots.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}
