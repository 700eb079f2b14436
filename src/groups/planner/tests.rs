//! Tests of `GroupPlan`: each rule and each refusal, the plans of published models, and the places of layers for
//! all small mixes of kinds.

use super::*;

const MOST: usize = usize::MAX;

fn full(bytes_per_token: usize) -> Layer {
    Layer::Full { bytes_per_token }
}

fn window(window: usize, bytes_per_token: usize) -> Layer {
    Layer::SlidingWindow { window, bytes_per_token }
}

/// Returns so many full layers, windowed layers and states, mixed.
fn mixed(counts: [usize; 3]) -> Vec<Layer> {
    let kinds = [full(64), window(100, 64), Layer::State { bytes: 700 }];
    let rounds = 0..counts.into_iter().max().unwrap_or(0);
    let of_round = |round| (0..3).filter(move |&kind| round < counts[kind]).map(|kind| kinds[kind]);
    rounds.flat_map(of_round).collect()
}

fn plan(layers: &[Layer]) -> GroupPlan {
    GroupPlan::new(layers, 16).unwrap()
}

/// Returns the number of layers of each group.
fn layers_of_groups(plan: &GroupPlan) -> Vec<usize> {
    let of_group = |group| plan.places().iter().filter(move |place| place.group.index() == group);
    (0..plan.groups().len()).map(|group| of_group(group).count()).collect()
}

fn refusal(layers: &[Layer], block_size: usize) -> String {
    GroupPlan::new(layers, block_size).unwrap_err().to_string()
}

#[test]
fn ten_full_and_twenty_windowed_layers_make_three_groups_of_ten() {
    let plan = plan(&mixed([10, 20, 0]));
    assert_eq!(layers_of_groups(&plan), [10, 10, 10]);
    assert_eq!(plan.block_bytes(), 10 * 16 * 64);
    assert_eq!(plan.padding_bytes(), [0, 0, 0]);
}

#[test]
fn thirteen_full_and_twelve_windowed_layers_make_two_groups_with_one_empty_slice() {
    let plan = plan(&mixed([13, 12, 0]));
    assert_eq!(layers_of_groups(&plan), [13, 12]);
    assert_eq!(plan.padding_bytes(), [0, 16 * 64]);
}

#[test]
fn from_one_and_a_half_times_the_smallest_bucket_on_the_smallest_decides() {
    assert_eq!(layers_of_groups(&plan(&mixed([10, 14, 0]))), [10, 14]);
    assert_eq!(layers_of_groups(&plan(&mixed([10, 15, 0]))), [10, 8, 7]);
}

#[test]
fn layers_of_a_bucket_are_dealt_to_its_groups_in_turn() {
    let plan = plan(&[&[full(64); 2][..], &[window(100, 64); 5]].concat());
    let places: Vec<_> = plan.places().iter().map(|place| (place.group.0, place.slice)).collect();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (1, 1), (2, 1)]);
    assert_eq!(plan.padding_bytes(), [0, 0, 0, 16 * 64]);
}

#[test]
fn full_attention_is_group_0_wherever_its_layers_are() {
    let plan = plan(&[Layer::State { bytes: 8 }, window(100, 64), full(64)]);
    assert_eq!(plan.groups()[0], LayerGroup::Full { block_size: 16 });
    assert_eq!(plan.places()[2].group, GroupId(0));
}

#[test]
fn kinds_differ_by_their_figures_too() {
    let sinks = |sink| Layer::SinkWindow { sink, window: 100, bytes_per_token: 64 };
    let chunked = Layer::Chunked { chunk: 100, bytes_per_token: 64 };
    let layers = [full(64), full(32), window(100, 64), window(99, 64), sinks(4), sinks(5), chunked];
    assert_eq!(layers_of_groups(&plan(&layers)), [1; 7]);
}

#[test]
fn a_layer_with_fewer_bytes_a_token_gets_blocks_of_more_tokens() {
    let plan = plan(&[full(64), window(100, 16), full(64)]);
    let sizes: Vec<_> = plan.groups().iter().map(|group| group.block_size()).collect();
    assert_eq!(sizes, [16, 16, 64]);
    assert_eq!(plan.slice_bytes(), 16 * 64);
}

#[test]
fn a_state_is_padded_to_a_slice_and_can_be_matched_where_all_groups_can() {
    let plan = plan(&[full(60), full(30), full(20), Layer::State { bytes: 900 }]);
    let sizes: Vec<_> = plan.groups().iter().map(|group| group.block_size()).collect();
    assert_eq!(sizes, [16, 32, 48, 96]);
    assert_eq!(plan.padding_bytes(), [0, 0, 0, 16 * 60 - 900]);
}

#[test]
fn a_state_above_a_slice_makes_blocks_larger_by_the_least_factor() {
    for (bytes, block_size) in [(1_024, 16), (1_025, 32), (2_048, 32), (2_049, 48)] {
        let plan = plan(&[full(64), Layer::State { bytes }]);
        assert_eq!(plan.groups()[0], LayerGroup::Full { block_size }, "{bytes}");
        assert_eq!(plan.padding_bytes(), [0, block_size * 64 - bytes], "{bytes}");
    }
}

#[test]
fn a_hybrid_model_gets_the_block_size_that_vllm_computes() {
    // 16 * ceil(2,146,304 / (16 * 2,048)) tokens.
    let layers = [full(2_048), Layer::State { bytes: 2_146_304 }];
    let plan = plan(&[&layers[..1], &[layers[1]; 3]].concat());
    assert_eq!(plan.groups()[0].block_size(), 1_056);
    assert_eq!(layers_of_groups(&plan), [1, 1, 1, 1]);
    assert_eq!(plan.padding_bytes(), [0, 16_384, 16_384, 16_384]);
}

#[test]
fn states_alone_have_slices_of_the_largest() {
    let plan = plan(&[Layer::State { bytes: 100 }, Layer::State { bytes: 30 }]);
    assert_eq!(plan.groups(), [LayerGroup::State { block_size: 16 }]);
    assert_eq!((plan.slice_bytes(), plan.padding_bytes()), (100, &[70][..]));
}

#[test]
fn a_plan_has_at_most_as_many_groups_as_a_cache() {
    let plan = plan(&mixed([1, 100, 0])); // groups of 1 would be 101
    let most = *layers_of_groups(&plan).iter().max().unwrap();
    assert_eq!((plan.groups().len(), most), (26, 4));
    let windows = |count: usize| (1..=count).map(|w| window(w, 64)).collect::<Vec<_>>();
    assert_eq!(self::plan(&windows(31)).groups().len(), 31);
    assert_eq!(refusal(&windows(32), 16), "invalid layers: more than 31 kinds and block sizes");
}

#[test]
fn published_models_make_the_groups_that_the_rules_give() {
    let plan = plan(&Layer::gemma_3_27b(2));
    assert_eq!(layers_of_groups(&plan), [10, 9, 9, 9, 9, 8, 8]);
    assert_eq!(plan.block_bytes(), 10 * 16 * 8_192);
    let window_blocks = 1_024 / 16 + 1;
    assert_eq!(plan.sequence_bytes(131_072), (8_192 + 6 * window_blocks) * plan.block_bytes());
    assert_eq!(plan.full_attention_bytes(131_072), 62 * 131_072 * 8_192);

    let plan = self::plan(&Layer::gpt_oss_20b(1));
    assert_eq!(layers_of_groups(&plan), [12, 12]);
    assert_eq!(plan.block_bytes(), 12 * 16 * 1_024);
    assert_eq!(plan.padding_bytes(), [0, 0]);
}

#[test]
fn figures_that_mean_nothing_are_refused() {
    let chunked = Layer::Chunked { chunk: 0, bytes_per_token: 1 };
    let sink_window = Layer::SinkWindow { sink: 4, window: 0, bytes_per_token: 1 };
    for (layers, block_size, message) in [
        (&[full(1)][..], 0, "invalid block_size: a block of 0 tokens"),
        (&[], 16, "invalid layers: there are none"),
        (&[full(1), full(0)], 16, "invalid layers: layer 1 has 0 bytes"),
        (&[Layer::State { bytes: 0 }], 16, "invalid layers: layer 0 has 0 bytes"),
        (&[full(1), window(0, 1)], 16, "invalid layers: layer 1 has a window of 0 tokens"),
        (&[sink_window], 16, "invalid layers: layer 0 has a window of 0 tokens"),
        (&[chunked], 16, "invalid layers: layer 0 has a chunk of 0 tokens"),
    ] {
        assert_eq!(refusal(layers, block_size), message);
    }
}

#[test]
fn bytes_that_do_not_divide_are_refused_with_both_layers() {
    let message = "invalid layers: the 48 bytes a token of layer 2 do not divide the 64 of layer 1";
    assert_eq!(refusal(&[full(32), window(8, 64), full(48)], 16), message);
}

#[test]
fn sizes_beyond_memory_are_refused() {
    let too_large = "more bytes than an array can have";
    let state = |bytes| Layer::State { bytes };
    for layers in [
        &[full(MOST)][..],
        &[state(MOST)],
        &[full(MOST / 2)],
        &[full(MOST / 4), state(MOST / 2)],
        &[full(MOST / 64); 4],
        &[state(MOST / 4); 3],
    ] {
        let message = refusal(layers, 16);
        assert!(message.ends_with(too_large), "{layers:?}: {message}");
    }
    assert!(refusal(&[full(1)], MOST).ends_with(too_large));
    let far = [full(1 << 40), full(1)];
    let message = "invalid layers: a common multiple of the block sizes is above 2^32 - 1";
    assert_eq!(refusal(&far, 1), message);
}

#[test]
fn bytes_a_token_above_the_limit_are_refused_by_the_plan() {
    let heads = KvHeads { count: MOST, head_dim: 128, element_bytes: 2 };
    assert_eq!(heads.bytes_per_token(), MOST);
    assert_eq!(KvHeads { element_bytes: 0, ..heads }.bytes_per_token(), 0);
    assert!(GroupPlan::new(&[full(heads.bytes_per_token())], 1).is_err());
}

#[test]
fn enormous_lengths_saturate() {
    let sinks = Layer::SinkWindow { sink: MOST, window: MOST, bytes_per_token: 64 };
    let chunked = Layer::Chunked { chunk: MOST, bytes_per_token: 64 };
    let layers = [full(64), window(MOST, 64), sinks, chunked, Layer::State { bytes: 8 }];
    for block_size in [1, 16] {
        let plan = GroupPlan::new(&layers, block_size).unwrap();
        assert_eq!(plan.sequence_bytes(MOST), MOST);
        assert_eq!(plan.full_attention_bytes(MOST), MOST);
    }
}

#[test]
fn every_layer_has_a_place_of_its_own_and_no_byte_is_lost() {
    let counts = (0..14).flat_map(|f| (0..14).flat_map(move |w| (0..6).map(move |s| [f, w, s])));
    for counts in counts.filter(|counts| counts.iter().sum::<usize>() > 0) {
        let layers = mixed(counts);
        let plan = plan(&layers);
        let num_slices = plan.block_bytes() / plan.slice_bytes();
        assert_eq!(plan.block_bytes() % plan.slice_bytes(), 0);
        let mut used = vec![vec![0; num_slices]; plan.groups().len()];
        for (layer, place) in layers.iter().zip(plan.places()) {
            let group = plan.groups()[place.group.index()];
            assert_eq!(layer.with_block_size(group.block_size()), group, "{counts:?}");
            let bytes = layer.bytes_per_token().map(|bytes| bytes * group.block_size());
            let bytes = bytes.or(layer.state_bytes()).unwrap();
            let slice = &mut used[place.group.index()][place.slice];
            assert_eq!(std::mem::replace(slice, bytes), 0, "{counts:?}: a slice of two layers");
            assert!(bytes <= plan.slice_bytes());
        }
        for (slices, padding) in used.iter().zip(plan.padding_bytes()) {
            let sum: usize = slices.iter().sum();
            assert!(sum > 0, "{counts:?}: a group without a layer");
            assert_eq!(sum + padding, plan.block_bytes(), "{counts:?}");
        }
        assert!(plan.groups().len() <= MOST_GROUPS);
    }
}

#[test]
fn blocks_fill_the_memory_and_never_exceed_it() {
    for layers in [mixed([3, 5, 2]), Layer::gemma_3_27b(2), vec![Layer::State { bytes: 1 }]] {
        let plan = plan(&layers);
        for memory in [0, 1, plan.block_bytes() - 1, plan.block_bytes(), 1 << 30, MOST] {
            let bytes = plan.blocks_for(memory) * plan.block_bytes();
            assert!(bytes <= memory && memory - bytes < plan.block_bytes(), "{memory}");
        }
    }
}

#[test]
fn a_sequence_holds_no_more_tokens_than_it_has() {
    let plan = plan(&Layer::gpt_oss_20b(2));
    for num_tokens in 0..300_usize {
        let all = num_tokens.div_ceil(16);
        let blocks = all + all.min(9);
        assert_eq!(plan.sequence_bytes(num_tokens), blocks * plan.block_bytes());
        assert_eq!(plan.full_attention_bytes(num_tokens), 2 * all * plan.block_bytes());
    }
}
