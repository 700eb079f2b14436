//! Model test: the cache hits, reclaims and refuses as a simple sequential one does, operation by
//! operation.

use proptest::prelude::*;

use crate::common::assert_empties;
use crate::steps::{BLOCK_SIZE, Both, Step};

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u64, 0..6_usize, 0..9_usize, 0..BLOCK_SIZE)
            .prop_map(|(family, branch, full, tail)| Step::Admit { family, branch, full, tail }),
        3 => (0..8_usize).prop_map(Step::Commit),
        3 => (0..8_usize).prop_map(Step::Free),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_cache_reuses_as_a_simple_sequential_one(
        num_blocks in 1..40_usize,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut both = Both::new(num_blocks);
        steps.iter().for_each(|step| both.make(step));
        assert_empties(&both.end());
    }
}
