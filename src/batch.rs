//! Do these sequences all have room to grow? Appends to a whole batch with one allocation.
//!
//! Plan every row, take the blocks of all plans at once, then hand them out: all rows grow or
//! none does, and nothing has to be rolled back. It does not know where the rows come from.

use crate::error::{PagedKvError, Result};
use crate::sequence::{Append, AppendPlan, Sequence};
use crate::table::BlockTable;

/// One row of a batch: a sequence, and how many tokens it is to grow by.
///
/// Implement it for whatever a scheduler keeps its requests in, so that a batch needs no copy of
/// it. A row is asked several times in a batch, and has to give the same answers.
///
/// ```
/// use paged_kv::{AppendBatch, BatchRow, BlockPool, Sequence, append_batch};
///
/// struct Request {
///     sequence: Sequence,
///     drafts: usize,
/// }
///
/// impl BatchRow for Request {
///     fn sequence(&mut self) -> &mut Sequence {
///         &mut self.sequence
///     }
///     fn num_new_tokens(&self) -> usize {
///         1 + self.drafts
///     }
/// }
///
/// let pool = BlockPool::new(8);
/// let sequence = pool.allocate_sequence(4, 4)?;
/// let mut requests = vec![Request { sequence, drafts: 2 }];
/// let mut batch = AppendBatch::default();
/// append_batch(&mut requests, &mut batch)?;
/// assert_eq!(requests[0].sequence.num_tokens(), 7);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
pub trait BatchRow {
    /// The sequence that grows.
    fn sequence(&mut self) -> &mut Sequence;
    /// Tokens it grows by.
    fn num_new_tokens(&self) -> usize;
}

impl BatchRow for (Sequence, usize) {
    fn sequence(&mut self) -> &mut Sequence {
        &mut self.0
    }
    fn num_new_tokens(&self) -> usize {
        self.1
    }
}

impl BatchRow for (&mut Sequence, usize) {
    fn sequence(&mut self) -> &mut Sequence {
        self.0
    }
    fn num_new_tokens(&self) -> usize {
        self.1
    }
}

/// What a batch append changed, a row each. Keep it and use it again: it allocates only to grow.
///
/// Refilling, clearing or dropping it lets go of the sources of the copies in it.
///
/// ```
/// use paged_kv::{AppendBatch, append_batch};
///
/// let pool = paged_kv::BlockPool::new(4);
/// let mut rows = [(pool.allocate_sequence(4, 4)?, 1)];
/// let mut batch = AppendBatch::default();
/// append_batch(&mut rows, &mut batch)?;
/// assert_eq!(batch.as_slice()[0].new_blocks, 1..2);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Debug, Default)]
pub struct AppendBatch {
    plans: Vec<AppendPlan>,
    pub(crate) appends: Vec<Append>,
    /// Empty between calls: kept for its memory.
    stock: Option<BlockTable>,
}

impl AppendBatch {
    /// The appends, in the order of the rows.
    ///
    /// ```
    /// let batch = paged_kv::AppendBatch::default();
    /// assert!(batch.as_slice().is_empty());
    /// ```
    pub fn as_slice(&self) -> &[Append] {
        &self.appends
    }

    /// Lets go of every append, and the sources of their copies. (The pool of the last batch stays
    /// referenced until this is dropped.)
    ///
    /// ```
    /// let mut batch = paged_kv::AppendBatch::default();
    /// batch.clear();
    /// assert!(batch.as_slice().is_empty());
    /// ```
    pub fn clear(&mut self) {
        self.plans.clear();
        self.appends.clear();
        // Not empty if a row panicked in the middle of a batch.
        if let Some(stock) = &mut self.stock {
            stock.truncate(0);
        }
    }
}

/// How far a batch got that was allowed to stop early.
///
/// ```
/// use paged_kv::{AppendBatch, append_batch_fitting};
///
/// let pool = paged_kv::BlockPool::new(1);
/// let mut rows = [(pool.allocate_sequence(4, 4)?, 4)];
/// let fitted = append_batch_fitting(&mut rows, &mut AppendBatch::default())?;
/// assert_eq!((fitted.done, fitted.short_by), (0, 1));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "rows from `done` on did not grow"]
pub struct Fitted {
    /// Rows that grew: the first so many.
    pub done: usize,
    /// Blocks that were missing for the next row; 0 when every row grew.
    pub short_by: usize,
}

/// Grows every row, or none. One allocation for all rows, `O(rows)`, no memory allocated once
/// `batch` and the tables have grown.
///
/// # Errors
/// [`OutOfMemory`](PagedKvError::OutOfMemory) with the need of all rows together,
/// [`TooManyTokens`](PagedKvError::TooManyTokens), and
/// [`WrongCache`](PagedKvError::WrongCache) for rows of different pools; no row has
/// changed, and `batch` is empty.
///
/// ```
/// use paged_kv::{AppendBatch, BlockPool, PagedKvError, append_batch};
///
/// let pool = BlockPool::new(5);
/// let mut rows = [(pool.allocate_sequence(4, 4)?, 1), (pool.allocate_sequence(8, 4)?, 5)];
/// let mut batch = AppendBatch::default();
/// let refused = append_batch(&mut rows, &mut batch).unwrap_err();
/// assert_eq!(refused, PagedKvError::OutOfMemory { requested: 3, available: 2 });
/// rows[1].1 = 4;
/// append_batch(&mut rows, &mut batch)?;
/// assert_eq!(batch.as_slice()[1].new_blocks, 2..3);
/// # Ok::<(), PagedKvError>(())
/// ```
pub fn append_batch<R: BatchRow>(rows: &mut [R], batch: &mut AppendBatch) -> Result<()> {
    batch.clear();
    let grown = grow_all(rows, parts_of_row, batch);
    if grown.is_err() {
        batch.clear();
    }
    grown
}

/// Grows as many of the first rows as there is room for, and says by how many blocks the next one
/// was short. Cost as [`append_batch`].
///
/// # Errors
/// As [`append_batch`], but for want of room.
///
/// ```
/// use paged_kv::{AppendBatch, BlockPool, Fitted, append_batch_fitting};
///
/// let pool = BlockPool::new(4);
/// let mut rows = [(pool.allocate_sequence(4, 4)?, 1), (pool.allocate_sequence(4, 4)?, 9)];
/// let mut batch = AppendBatch::default();
/// let fitted = append_batch_fitting(&mut rows, &mut batch)?;
/// assert_eq!(fitted, Fitted { done: 1, short_by: 2 });
/// assert_eq!(batch.as_slice().len(), 1);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
pub fn append_batch_fitting<R: BatchRow>(
    rows: &mut [R],
    batch: &mut AppendBatch,
) -> Result<Fitted> {
    grow_fitting(rows, parts_of_row, batch)
}

fn parts_of_row<R: BatchRow>(row: &mut R) -> (&mut Sequence, usize) {
    let num_new_tokens = row.num_new_tokens();
    (row.sequence(), num_new_tokens)
}

/// [`append_batch_fitting`] for rows of which `parts` gives the sequence and the tokens to append.
pub(crate) fn grow_fitting<R>(
    rows: &mut [R],
    parts: impl Fn(&mut R) -> (&mut Sequence, usize) + Copy,
    batch: &mut AppendBatch,
) -> Result<Fitted> {
    batch.clear();
    let mut fitted = Fitted { done: rows.len(), short_by: 0 };
    loop {
        match grow_all(&mut rows[..fitted.done], parts, batch) {
            Ok(()) => return Ok(fitted),
            Err(PagedKvError::OutOfMemory { available, .. }) => {
                fitted = longest_fit(&batch.plans, available);
            }
            Err(refusal) => {
                batch.clear();
                return Err(refusal);
            }
        }
    }
}

/// The most leading plans that `available` blocks serve; at least one fewer than there are.
fn longest_fit(plans: &[AppendPlan], available: usize) -> Fitted {
    let mut need = 0_usize;
    for (done, plan) in plans.iter().enumerate() {
        need = need.saturating_add(plan.blocks());
        if need > available {
            return Fitted { done, short_by: need - available };
        }
    }
    unreachable!("a refusal says that fewer blocks are available than the plans need")
}

fn grow_all<R>(
    rows: &mut [R],
    parts: impl Fn(&mut R) -> (&mut Sequence, usize) + Copy,
    batch: &mut AppendBatch,
) -> Result<()> {
    let Some(first) = rows.first_mut() else {
        return Ok(());
    };
    let table = parts(first).0.table();
    let pool = table.pool();
    if !batch.stock.as_ref().is_some_and(|stock| stock.pool().is_of_same_pool(pool)) {
        batch.stock = Some(table.new_sibling());
    }
    let stock = batch.stock.as_mut().expect("the stock was just made");
    let mut need = plan_all(rows, parts, stock, &mut batch.plans)?;
    while let Err(refusal) = stock.grow(need) {
        // Sharers outside the batch may have left since: then fewer copies are needed.
        let again = plan_all(rows, parts, stock, &mut batch.plans)?;
        if again >= need {
            return Err(refusal);
        }
        need = again;
    }
    let row_plans = rows.iter_mut().zip(&batch.plans);
    batch.appends.extend(row_plans.map(|(row, &plan)| parts(row).0.append_from(plan, stock)));
    Ok(())
}

/// Plans every row and returns the blocks needed together.
fn plan_all<R>(
    rows: &mut [R],
    parts: impl Fn(&mut R) -> (&mut Sequence, usize),
    stock: &BlockTable,
    plans: &mut Vec<AppendPlan>,
) -> Result<usize> {
    plans.clear();
    let mut need = 0_usize;
    for row in rows {
        let (sequence, num_new_tokens) = parts(row);
        if !sequence.table().pool().is_of_same_pool(stock.pool()) {
            return Err(PagedKvError::WrongCache { value: "row" });
        }
        let plan = sequence.plan_append(num_new_tokens)?;
        need = need.saturating_add(plan.blocks());
        plans.push(plan);
    }
    Ok(need)
}
