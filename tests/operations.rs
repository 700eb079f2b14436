//! Tmp.
use paged_kv::*;
#[test]
fn a() {
    let cache = PagedKvCache::new(8, 4, 1, 1);
    cache.allocate(SeqId(1), 12).unwrap();
    cache.fork(SeqId(1), SeqId(2)).unwrap();
    cache.truncate(SeqId(1), 11).unwrap();
    let append = cache.append(SeqId(1), 1).unwrap();
    assert!(append.copy.is_some());
}
