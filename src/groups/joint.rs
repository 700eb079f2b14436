//! `joint`: the longest length at which every group has each block that it needs.
//!
//! Full groups limit the length from above: a block that is missing ends the hit of each longer length. A sparse group
//! accepts a length or lowers it. Lowering is repeated until all groups accept one length. The result is the longest
//! such length, because a block that is missing at one length is needed at every length down to its own start.

use super::{GroupLayout, LayerGroup};
use crate::id::GroupId;

/// The longest hit of all groups together, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct JointHit {
    pub(crate) length: usize,
    /// The longest hit of a full group alone; without full groups, of any group.
    pub(crate) longest: usize,
    /// The group that lowered the hit last, if it is shorter than `longest`.
    pub(crate) limiting: Option<GroupId>,
}

/// Returns the joint hit of at most `most` tokens. `has` returns true if a block of a group is there.
pub(crate) fn joint(
    layout: &GroupLayout,
    most: usize,
    mut has: impl FnMut(GroupId, usize) -> bool,
) -> JointHit {
    let most = layout.aligned(most);
    let mut hit = JointHit { length: most, longest: 0, limiting: None };
    let groups = || layout.ids().zip(layout.groups().iter().copied());
    let mut is_any_full = false;
    for (id, kind) in groups().filter(|(_, kind)| kind.is_full()) {
        is_any_full = true;
        let own = layout.aligned(chain(kind, most, |block| has(id, block)));
        hit.longest = hit.longest.max(own);
        hit.lower(own, id);
    }
    let sparse = || groups().filter(|(_, kind)| !kind.is_full());
    if !is_any_full {
        let own = sparse().map(|(id, kind)| accepted(layout, kind, most, |block| has(id, block)));
        hit.longest = own.max().unwrap_or(0);
    }
    loop {
        let before = hit.length;
        for (id, kind) in sparse() {
            let accepted = accepted(layout, kind, hit.length, |block| has(id, block));
            hit.lower(accepted, id);
        }
        if hit.length == before {
            hit.limiting = hit.limiting.filter(|_| hit.length < hit.longest);
            return hit;
        }
    }
}

impl JointHit {
    fn lower(&mut self, length: usize, group: GroupId) {
        if length < self.length {
            (self.length, self.limiting) = (length, Some(group));
        }
    }
}

/// Returns the tokens of the first blocks, as far as none is missing.
fn chain(kind: LayerGroup, most: usize, has: impl FnMut(usize) -> bool) -> usize {
    let blocks = most / kind.block_size();
    let mut has = has;
    let there = (0..blocks).take_while(|&block| has(block)).count();
    there * kind.block_size()
}

/// Returns the longest length of at most `length` tokens at which a sparse group has the blocks that it needs.
fn accepted(
    layout: &GroupLayout,
    kind: LayerGroup,
    length: usize,
    mut has: impl FnMut(usize) -> bool,
) -> usize {
    let mut length = length;
    loop {
        let [sink, window] = kind.needed_blocks(length);
        // From the end: the block that is missing last in order lowers the length most rarely again.
        let missing = window.rev().chain(sink).find(|&block| !has(block));
        match missing {
            None => return length,
            Some(block) => length = layout.aligned(block * kind.block_size()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::GroupRetention;
    use super::*;

    const FULL: LayerGroup = LayerGroup::Full { block_size: 4 };
    const W8: LayerGroup = LayerGroup::SlidingWindow { block_size: 4, window: 8 };
    const W12: LayerGroup = LayerGroup::SlidingWindow { block_size: 4, window: 12 };

    fn layout(groups: &[LayerGroup]) -> GroupLayout {
        GroupLayout::new(groups, 0, GroupRetention::Dense).unwrap()
    }

    /// Of 33 tokens, with 8 full blocks in each group.
    #[test]
    fn missing_blocks_lower_the_hit_as_their_windows_need_them() {
        let layout = layout(&[FULL, W8, W12]);
        for (missing, expected) in [
            (&[][..], (32, None)),
            (&[(0, 7)], (28, None)),
            (&[(0, 3)], (12, None)),
            (&[(1, 7)], (28, Some(1))),
            (&[(1, 6)], (24, Some(1))),
            (&[(1, 0)], (32, None)),
            (&[(2, 4)], (32, None)),
            (&[(1, 5), (2, 3)], (32, None)),
            (&[(2, 5)], (20, Some(2))),
            (&[(1, 7), (2, 6)], (24, Some(2))),
        ] {
            let has = |group: GroupId, block| !missing.contains(&(group.0, block));
            let hit = joint(&layout, 32, has);
            assert_eq!((hit.length, hit.limiting.map(|group| group.0)), expected, "{missing:?}");
        }
    }

    /// All sets of missing blocks of three groups with up to five blocks, against a search from the longest length.
    #[test]
    fn the_hit_is_the_longest_length_that_all_groups_accept() {
        let sets = [
            vec![FULL, W8],
            vec![W8, LayerGroup::State { block_size: 4 }],
            vec![FULL, LayerGroup::Chunked { block_size: 4, chunk: 8 }],
            vec![LayerGroup::SinkWindow { block_size: 4, sink: 3, window: 6 }, W12],
            vec![FULL, LayerGroup::SlidingWindow { block_size: 8, window: 9 }],
        ];
        for groups in sets {
            let layout = layout(&groups);
            for missing in 0_u32..1 << 10 {
                let has = |group: GroupId, block| missing >> (5 * group.index() + block) & 1 == 0;
                let accepts = |length: &usize| {
                    layout.ids().zip(&groups).all(|(id, kind)| {
                        kind.needed_blocks(*length).into_iter().flatten().all(|at| has(id, at))
                    })
                };
                let lengths = (0..=20).rev().filter(|length| length % layout.alignment() == 0);
                let expected = lengths.into_iter().find(accepts).unwrap();
                let hit = joint(&layout, 20, has);
                assert_eq!(hit.length, expected, "{groups:?} without {missing:b}");
                assert!(hit.longest >= hit.length);
            }
        }
    }
}
