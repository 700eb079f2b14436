//! The auto traits of every public type, as a table. A type that loses one no longer compiles here.
//!
//! `UnwindSafe`: a panic in the middle of a call leaves every value consistent. Where it is missing, the table says
//! why.

use std::panic::{RefUnwindSafe, UnwindSafe};

use paged_kv::export::{BlockTables, Csr, CsrBuffers, Gaps, SlotMapping, TableShape};
use paged_kv::*;

const fn is_shared<T: Send + Sync + UnwindSafe + RefUnwindSafe + Unpin>() {}

macro_rules! shared {
    ($($type:ty),+ $(,)?) => {
        const _: () = { $(is_shared::<$type>();)+ };
    };
}

// The cache, its parts, and its sequences.
shared!(
    PagedKvCache,
    BlockPool,
    BlockTable,
    Sequence,
    CachedSequence,
    Reservation,
    Prefix<'static>,
    Prompt,
    BlockHasher,
);

// Values.
shared!(
    AdmissionEpoch,
    Admission,
    AdmitOptions,
    BlockHash,
    BlockId,
    CacheStats,
    Computed<'static>,
    ErrorKind,
    Evicted,
    EvictionStrategy,
    ExtraKeys,
    HashAlgorithm,
    KvEvent<'static>,
    Level,
    Overwritten,
    PagedKvError,
    ReclaimPolicy,
    Retain,
    ReuseHint,
    SeqId,
    SequenceInfo,
    Watermark,
    Worker,
);

// Steps, leases and exports.
shared!(
    AbortRefused,
    Aborted,
    Append,
    AppendBatch,
    BlockCopy,
    Completed,
    Grown,
    Lease,
    LeaseRow,
    Step,
    StepBuffers,
    Gaps,
    TableShape<i32>,
);

// Buffers of the caller that a panic may leave half written: every trait but `UnwindSafe`.
const fn is_sent<T: Send + Sync + RefUnwindSafe + Unpin>() {}

const _: () = {
    is_sent::<BlockTables<'static, i32>>();
    is_sent::<Csr<'static, i32>>();
    is_sent::<CsrBuffers<'static, i32>>();
    is_sent::<SlotMapping<'static, i64>>();
    // A builder may hold the caller's event sink.
    sent_only::<PagedKvCacheBuilder>();
};

const fn sent_only<T: Send + Sync + Unpin>() {}

#[cfg(feature = "async")]
const _: () = {
    use paged_kv::wait::{
        AdmitRequest, AllocateRequest, AppendRequest, ReserveRequest, Wait, Waiting,
    };
    is_shared::<Fairness>();
    is_shared::<Waiting<'static>>();
    // Futures, which hold the waker of the caller's runtime.
    sent_only::<Wait<AdmitRequest<'static>>>();
    sent_only::<Wait<AllocateRequest<'static>>>();
    sent_only::<Wait<AppendRequest<'static>>>();
    sent_only::<Wait<ReserveRequest>>();
};

#[cfg(feature = "events")]
const _: () = {
    use paged_kv::event::{Dialect, EventPublisher, PublisherOptions, PublisherStats};
    is_shared::<Dialect>();
    is_shared::<PublisherOptions>();
    is_shared::<PublisherStats>();
    sent_only::<EventPublisher>();
};

#[test]
fn ids_have_the_layout_of_their_numbers() {
    fn layouts<T, U>() -> [(usize, usize); 2] {
        [(size_of::<T>(), align_of::<T>()), (size_of::<U>(), align_of::<U>())]
    }
    let all = [
        layouts::<BlockId, u32>(),
        layouts::<SeqId, u64>(),
        layouts::<Worker, u32>(),
        layouts::<AdmissionEpoch, u64>(),
        layouts::<BlockHash, u128>(),
    ];
    all.iter().for_each(|[id, number]| assert_eq!(id, number));
}
