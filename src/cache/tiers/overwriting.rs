//! [`Overwriting`]: an operation that has taken blocks with contents, which a tier can still store.

use crate::cache::step::Step;
use crate::pool::PoolHandle;
use crate::prefix::{Generation, Overwritten};

/// An operation that is about to overwrite contents: a [`Step`] before its kernels, or a [`LoadTicket`](crate::LoadTicket) before
/// its copies.
pub trait Overwriting: OverwritingAccess {}

impl Overwriting for Step {}

/// The contents that an operation is about to overwrite. It cannot be named outside this crate.
pub trait OverwritingAccess {
    fn contents(&self) -> OverwrittenBy<'_>;
}

/// Contents whose blocks an operation has taken, in the generation in which it began.
pub struct OverwrittenBy<'a> {
    pub(super) contents: &'a [Overwritten],
    pub(super) generation: Generation,
    pub(super) pool: &'a PoolHandle,
}

impl OverwritingAccess for Step {
    fn contents(&self) -> OverwrittenBy<'_> {
        let (contents, generation, pool) = (self.overwritten(), self.generation(), self.pool());
        OverwrittenBy { contents, generation, pool }
    }
}
