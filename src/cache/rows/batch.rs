//! `append_batch`: appends to all rows of a batch with one allocation: all rows grow, or none.
//!
//! It plans each row once, takes the blocks of all plans in one allocation, and then distributes them. So
//! no row has to be rolled back.

use super::lease_row::LeaseRow;
use super::locked::{LockMemory, with_locked_rows};
use super::{GrowingRow, Row, Visit, visit_all};
use crate::error::{PagedKvError, Result};
use crate::sequence::{Append, AppendPlan};
use crate::table::BlockTable;

/// The result of a batch append, one [`Append`] a row. Reuse it for the next batch: it allocates memory
/// only to grow.
///
/// Refilling, clearing or dropping it releases the sources of the copies in it.
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
    appends: Vec<Append>,
    /// Empty between calls; kept for its memory.
    stock: Option<BlockTable>,
    /// Blocks that locked rows lacked in the stock.
    missing: usize,
    locks: LockMemory,
}

impl AppendBatch {
    /// Returns the appends, in the order of the rows.
    ///
    /// ```
    /// let batch = paged_kv::AppendBatch::default();
    /// assert!(batch.as_slice().is_empty());
    /// ```
    pub fn as_slice(&self) -> &[Append] {
        &self.appends
    }

    /// Releases every append, and the sources of their copies. (The pool of the last batch stays referenced
    /// until the `AppendBatch` is dropped.)
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
            stock.give_tail(0);
        }
    }
}

/// Grows every row by its number of tokens, or none. Takes one allocation for all rows, `O(rows)`, and
/// allocates no memory once `batch` and the tables have grown. Rows of leases are locked together, and
/// count as used. [`Step::grow`](crate::Step::grow) grows as many rows as there is room for.
///
/// # Errors
/// [`OutOfMemory`](PagedKvError::OutOfMemory) with the need of all rows together,
/// [`TooManyTokens`](PagedKvError::TooManyTokens), and [`WrongCache`](PagedKvError::WrongCache) for rows of
/// different pools. For rows of leases also [`SequenceNotFound`](PagedKvError::SequenceNotFound) if a
/// sequence is gone, and [`InvalidConfig`](PagedKvError::InvalidConfig) if one is listed twice. No row has
/// changed then, and `batch` is empty.
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
pub fn append_batch<R: Row>(rows: &mut [(R, usize)], batch: &mut AppendBatch) -> Result<()> {
    batch.run(|batch, locks| {
        let num_rows = rows.len();
        batch.grow_outside_locks(|batch| visit_all(rows, locks, GrowAll(batch), |()| num_rows))
    })
}

/// Does as [`append_batch`], for the rows of a lease.
pub(in crate::cache) fn append_leased<'a>(
    rows: impl Iterator<Item = (&'a LeaseRow, usize)> + Clone,
    batch: &mut AppendBatch,
) -> Result<()> {
    batch.run(|batch, locks| {
        batch.grow_outside_locks(|batch| {
            with_locked_rows(rows.clone(), locks, |rows| {
                GrowAll(batch).visit(rows)?;
                rows.iter_mut().for_each(|row| row.note_use());
                Ok(())
            })
        })
    })
}

impl AppendBatch {
    /// Clears the batch, runs `grow`, and clears the batch again if `grow` fails.
    fn run(&mut self, grow: impl FnOnce(&mut Self, &mut LockMemory) -> Result<()>) -> Result<()> {
        self.clear();
        let mut locks = std::mem::take(&mut self.locks);
        let grown = grow(self, &mut locks);
        self.locks = locks;
        if grown.is_err() {
            self.clear();
        }
        grown
    }
}

impl AppendBatch {
    /// Runs `grow`. If its rows are locked and lack blocks, and contents that these may overwrite are reported,
    /// takes the blocks outside of the locks and runs it again.
    /// Blocks that are left over count as not taken, also if the observer panics.
    fn grow_outside_locks(&mut self, mut grow: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        struct UndoneStock<'a>(&'a mut AppendBatch);
        impl Drop for UndoneStock<'_> {
            fn drop(&mut self) {
                if let Some(stock) = &mut self.0.stock {
                    stock.undo_tail(0);
                }
            }
        }
        let UndoneStock(batch) = &mut UndoneStock(self);
        loop {
            batch.missing = 0;
            let grown = grow(batch);
            if batch.missing == 0 {
                return grown;
            }
            let (missing, stock) = (batch.missing, batch.stock.as_mut());
            stock.expect("a batch that lacks blocks has a stock").grow(missing)?;
        }
    }
}

/// Grows all rows, or none.
struct GrowAll<'a>(&'a mut AppendBatch);

impl Visit for GrowAll<'_> {
    type Output = ();

    fn visit<G: GrowingRow>(self, rows: &mut [G]) -> Result<()> {
        let AppendBatch { plans, appends, stock, missing, .. } = self.0;
        let Some(first) = rows.first_mut() else {
            return Ok(());
        };
        let table = first.parts().0.table();
        if !stock.as_ref().is_some_and(|stock| stock.pool().is_of_same_pool(table.pool())) {
            *stock = Some(table.new_sibling());
        }
        let stock = stock.as_mut().expect("the stock was just made");
        let mut need = plan_all(rows, stock, plans)?;
        if G::IS_LOCKED && stock.pool().reports_overwrites() {
            *missing = need.saturating_sub(stock.len());
            if *missing > 0 {
                return Err(PagedKvError::OutOfMemory { requested: need, available: stock.len() });
            }
            need = 0;
        }
        while let Err(refusal) = stock.grow(need) {
            // Sharers outside the batch may have left since: then fewer copies are needed.
            let again = plan_all(rows, stock, plans)?;
            if again >= need {
                return Err(refusal);
            }
            need = again;
        }
        let row_plans = rows.iter_mut().zip(plans.iter());
        appends.extend(row_plans.map(|(row, &plan)| row.parts().0.append_from(plan, stock)));
        Ok(())
    }
}

/// Plans every row and returns the number of blocks that all rows need together.
fn plan_all<G: GrowingRow>(
    rows: &mut [G],
    stock: &BlockTable,
    plans: &mut Vec<AppendPlan>,
) -> Result<usize> {
    plans.clear();
    let mut need = 0_usize;
    for row in rows {
        let num_new_tokens = row.num_new_tokens();
        let (sequence, _) = row.parts();
        if !sequence.table().pool().is_of_same_pool(stock.pool()) {
            return Err(PagedKvError::WrongCache { value: "row" });
        }
        sequence.release_windows();
        let plan = sequence.plan_append(num_new_tokens)?;
        need = need.saturating_add(plan.blocks());
        plans.push(plan);
    }
    Ok(need)
}
