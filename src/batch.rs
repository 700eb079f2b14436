//! Do these sequences all have room to grow? Appends to a whole batch with one allocation.
//!
//! Ask every row once, plan it, take the blocks of all plans in one allocation, then hand them out: all
//! rows grow or none does, and nothing has to be rolled back. The rows' own code runs while nothing is
//! taken, so a row that panics has changed nothing. It does not know where the rows come from.

use crate::error::{PagedKvError, Result};
use crate::sequence::{Append, AppendPlan, Sequence};
use crate::table::BlockTable;

/// One row of a batch: a sequence, and how many tokens it is to grow by.
///
/// Implement it for whatever a scheduler keeps its requests in, so that a batch needs no copy of
/// it. Each row is asked once a batch, before anything changes: if a row panics, no row has grown.
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
    /// Memory for the rows of a call, which are borrowed.
    rows: Vec<(usize, usize)>,
}

/// A row that was asked.
struct Asked<'a> {
    sequence: &'a mut Sequence,
    num_new_tokens: usize,
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
    let mut asked = ask(rows, batch);
    let grown = grow_all(&mut asked, batch);
    batch.rows = emptied(asked);
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
    batch.clear();
    let mut asked = ask(rows, batch);
    let fitted = grow_fitting(&mut asked, batch);
    batch.rows = emptied(asked);
    if fitted.is_err() {
        batch.clear();
    }
    fitted
}

/// Asks every row, in the memory of `batch`.
fn ask<'a, R: BatchRow>(rows: &'a mut [R], batch: &mut AppendBatch) -> Vec<Asked<'a>> {
    let mut asked = emptied(std::mem::take(&mut batch.rows));
    asked.extend(rows.iter_mut().map(|row| {
        let num_new_tokens = row.num_new_tokens();
        Asked { sequence: row.sequence(), num_new_tokens }
    }));
    asked
}

/// The memory of `elements` for elements of the same layout: collecting in place keeps it, as
/// `tests/no_allocation.rs` sees.
pub(crate) fn emptied<T, U>(mut elements: Vec<T>) -> Vec<U> {
    elements.clear();
    elements.into_iter().map(|_| unreachable!("the vector was cleared")).collect()
}

fn grow_fitting(rows: &mut [Asked<'_>], batch: &mut AppendBatch) -> Result<Fitted> {
    let mut fitted = Fitted { done: rows.len(), short_by: 0 };
    loop {
        match grow_all(&mut rows[..fitted.done], batch) {
            Ok(()) => return Ok(fitted),
            Err(PagedKvError::OutOfMemory { available, .. }) => {
                fitted = longest_fit(&batch.plans, available);
            }
            Err(refusal) => return Err(refusal),
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

fn grow_all(rows: &mut [Asked<'_>], batch: &mut AppendBatch) -> Result<()> {
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let table = first.sequence.table();
    let pool = table.pool();
    if !batch.stock.as_ref().is_some_and(|stock| stock.pool().is_of_same_pool(pool)) {
        batch.stock = Some(table.new_sibling());
    }
    let stock = batch.stock.as_mut().expect("the stock was just made");
    let mut need = plan_all(rows, stock, &mut batch.plans)?;
    while let Err(refusal) = stock.grow(need) {
        // Sharers outside the batch may have left since: then fewer copies are needed.
        let again = plan_all(rows, stock, &mut batch.plans)?;
        if again >= need {
            return Err(refusal);
        }
        need = again;
    }
    let row_plans = rows.iter_mut().zip(&batch.plans);
    batch.appends.extend(row_plans.map(|(row, &plan)| row.sequence.append_from(plan, stock)));
    Ok(())
}

/// Plans every row and returns the blocks needed together.
fn plan_all(rows: &[Asked<'_>], stock: &BlockTable, plans: &mut Vec<AppendPlan>) -> Result<usize> {
    plans.clear();
    let mut need = 0_usize;
    for Asked { sequence, num_new_tokens } in rows {
        if !sequence.table().pool().is_of_same_pool(stock.pool()) {
            return Err(PagedKvError::WrongCache { value: "row" });
        }
        let plan = sequence.plan_append(*num_new_tokens)?;
        need = need.saturating_add(plan.blocks());
        plans.push(plan);
    }
    Ok(need)
}
