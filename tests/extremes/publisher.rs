//! A publisher with bounds of every length.

use std::sync::Arc;
use std::time::Duration;

use paged_kv::event::{EventPublisher, PublisherOptions};
use paged_kv::{ExtraKeys, PagedKvCache};

use crate::LENGTHS;
use crate::common::s;

#[test]
fn bounds_of_any_length_publish() {
    let ages = [Duration::ZERO, Duration::from_secs(u64::MAX), Duration::MAX];
    for (at, n) in LENGTHS.into_iter().enumerate() {
        let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
        let options = options.ring(n, n).batch_blocks(n).batch_age(ages[at % ages.len()]);
        let options = options.rank(n as i32).replay_endpoint("tcp://127.0.0.1:0");
        let publisher = Arc::new(EventPublisher::bind(&options).expect("an address is free"));
        let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
        let cache = builder.event_sink(publisher.clone()).build().expect("it makes sense");
        let media = ExtraKeys::default().media("image", n..usize::MAX).media("b", n..0);
        let prompt = cache.prompt_with(&[7; 9], &media);
        cache.admit_with(s(1), &prompt, &Default::default()).expect("there is room");
        assert_eq!(cache.commit(s(1), 9), Ok(2));
        publisher.flush();
        assert_eq!(publisher.stats().blocks, 2, "{n}");
        publisher.shutdown();
    }
}
