//! Values in serde's formats: the written form is stable, a value that is read back is equal, and garbage is refused.

use std::sync::{Arc, Mutex};

use paged_kv::{
    BlockHash, BlockId, CacheStats, EventSink, EvictionStrategy, ExtraKeys, KvEvent, Level,
    PagedKvCache, ReclaimPolicy, ReuseHint, SeqId, Watermark, Worker,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json, to_value};

#[track_caller]
fn assert_is<T>(value: T, text: Value)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    assert_eq!(to_value(&value).unwrap(), text);
    assert_eq!(from_value::<T>(text).unwrap(), value);
}

#[test]
fn ids_are_plain_numbers() {
    assert_is(BlockId(7), json!(7));
    assert_is(SeqId(u64::MAX), json!(u64::MAX));
    assert_is(Worker(3), json!(3));
    assert_is(vec![BlockId(1), BlockId(2)], json!([1, 2]));
    for garbage in [json!(-1), json!("7"), json!(1_u64 << 32), json!([7])] {
        assert!(from_value::<BlockId>(garbage).is_err());
    }
}

#[test]
fn a_hash_is_32_hex_digits() {
    let text = "0123456789abcdeffedcba9876543210";
    assert_is(BlockHash::from_u128(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210), json!(text));
    assert_is(BlockHash::from_u128(0), json!("0".repeat(32)));
    assert_is(BlockHash::from_u128(u128::MAX), json!("f".repeat(32)));
    assert_eq!(from_value::<BlockHash>(json!(text.to_uppercase())).unwrap().to_string(), text);
    let garbage = [
        "".to_owned(),
        text[1..].to_owned(),
        format!("{text}0"),
        format!("+{}", &text[1..]),
        format!("0x{}", &text[2..]),
        format!("{} ", &text[1..]),
        text.replace('a', "g"),
        "é".repeat(16),
    ];
    for garbage in garbage {
        let refused = from_value::<BlockHash>(json!(garbage)).unwrap_err().to_string();
        assert!(refused.contains("expected 32 hex digits"), "{garbage}: {refused}");
    }
    assert!(from_value::<BlockHash>(json!(7)).is_err());
}

#[test]
fn options_have_the_names_of_their_variants() {
    assert_is(EvictionStrategy::LRU, json!("LRU"));
    assert_is(EvictionStrategy::Priority { levels: 3 }, json!({ "Priority": { "levels": 3 } }));
    assert_is(
        EvictionStrategy::StreamingLLM { sink_tokens: 4, window_tokens: 512 },
        json!({ "StreamingLLM": { "sink_tokens": 4, "window_tokens": 512 } }),
    );
    assert_is(ReclaimPolicy::TwoQueue, json!("TwoQueue"));
    assert_is(Level::Highest, json!("Highest"));
    assert_is(ReuseHint::BackSoon, json!("BackSoon"));
    assert_is(Watermark::Share(0.25), json!({ "Share": 0.25 }));
    assert!(from_value::<EvictionStrategy>(json!("MRU")).is_err());
}

#[cfg(feature = "async")]
#[test]
fn fairness_has_the_names_of_its_variants() {
    use paged_kv::Fairness;
    assert_is(Fairness::Fifo, json!("Fifo"));
    assert_is(Fairness::Bypass { at_most: 4 }, json!({ "Bypass": { "at_most": 4 } }));
}

#[test]
fn figures_are_written_by_name_and_missing_ones_are_zero() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.allocate(SeqId(1), 9).unwrap();
    let stats = cache.stats();
    let text = to_value(&stats).unwrap();
    assert_eq!((&text["blocks_used"], &text["blocks_total"]), (&json!(3), &json!(16)));
    assert_eq!(from_value::<CacheStats>(text).unwrap(), stats);
    let earlier: CacheStats = from_value(json!({ "total_frees": 2 })).unwrap();
    assert_eq!((earlier.total_frees, earlier.blocks_used), (2, 0));

    let info = to_value(cache.get_sequence(SeqId(1)).unwrap()).unwrap();
    assert_eq!((&info["seq_id"], &info["num_tokens"]), (&json!(1), &json!(9)));
    assert_eq!(info["block_ids"].as_array().map(Vec::len), Some(3));
    assert!(info["epoch"].is_u64() && info["worker"].is_null());
}

#[test]
fn an_append_shows_the_copy_and_not_the_pin() {
    let cache = PagedKvCache::new(8, 4, 1, 1);
    let mut sequence = cache.allocate_sequence(6).unwrap();
    let mut fork = sequence.fork().unwrap();
    let append = fork.append(3).unwrap();
    let copy = append.copy.as_ref().unwrap();
    assert_eq!(
        to_value(&append).unwrap(),
        json!({
            "new_blocks": { "start": 2, "end": 3 },
            "copy": { "src": copy.src.0, "dst": copy.dst.0 },
        }),
    );
}

#[derive(Default)]
struct Written(Mutex<Vec<Value>>);

impl EventSink for Written {
    fn on_event(&self, event: &KvEvent<'_>) {
        self.0.lock().unwrap().push(to_value(event).unwrap());
    }
}

#[test]
fn events_are_written_with_their_kind() {
    let sink = Arc::new(Written::default());
    let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    let cache = builder.event_sink(sink.clone()).build().unwrap();
    let prompt = cache.prompt_with(&[7; 9], &ExtraKeys::default().lora("sql", "/lora/sql"));
    cache.admit_with(SeqId(1), &prompt, &Default::default()).unwrap();
    cache.commit(SeqId(1), 9).unwrap();
    cache.prefix().reset();
    let events = std::mem::take(&mut *sink.0.lock().unwrap());
    let [stored, cleared] = events.as_slice() else { panic!("{events:?}") };
    let hashes: Vec<String> = prompt.hashes().iter().map(|hash| hash.to_string()).collect();
    assert_eq!((&stored["type"], &stored["hashes"]), (&json!("BlockStored"), &json!(hashes)));
    assert_eq!((&stored["tokens"], &stored["block_size"]), (&json!(vec![7; 8]), &json!(4)));
    assert_eq!(stored["extra"]["lora"], json!(["sql", "/lora/sql"]));
    assert_eq!(cleared, &json!({ "type": "AllBlocksCleared" }));
}
