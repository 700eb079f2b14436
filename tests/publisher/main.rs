//! Tests of the publisher: a router at the other end of the sockets holds exactly the contents that a
//! probe finds. They cover lost batches, a late router, and a restarted publisher.

#[cfg(target_os = "linux")] // whose loopback has many addresses
mod attacks;
mod client;
mod decode;
mod groups;
#[cfg(target_os = "linux")]
mod hostile;
#[path = "../common/random.rs"]
mod random;
mod tiers;
#[cfg(target_os = "linux")]
mod victim;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use client::{Batch, Client};
use decode::Event;
use paged_kv::event::{Dialect, EventPublisher, PublisherOptions};
use paged_kv::{
    AdmitOptions, BlockHash, EventSink, ExtraKeys, GroupId, KvEvent, LayerGroup, Medium,
    PagedKvCache, Prompt,
};
use random::Random;

const BLOCK_SIZE: usize = 4;
const TOPIC: &str = "kv@pod@model";

/// The contents that a router holds, and the number of its next batch.
#[derive(Default)]
struct Router {
    contents: HashMap<u64, Option<u64>>,
    next: Option<u64>,
}

impl Router {
    /// Takes the next batch.
    fn take(&mut self, (sequence, payload): &Batch) {
        assert!(self.next.is_none_or(|next| next == *sequence), "no gap, or it was filled");
        self.next = Some(sequence + 1);
        for event in decode::events(payload) {
            match event {
                Event::Stored { hashes, parent, tokens, block_size, group } => {
                    assert_eq!(
                        group,
                        decode::Group {
                            index: Some(0),
                            kind: "full_attention".into(),
                            window: None
                        }
                    );
                    assert_eq!(tokens.len(), hashes.len() * block_size);
                    let mut parent = parent;
                    for hash in hashes {
                        assert!(parent.is_none_or(|parent| self.contents.contains_key(&parent)));
                        assert_eq!(self.contents.insert(hash, parent), None, "announced once");
                        parent = Some(hash);
                    }
                }
                Event::Removed(hashes, group) => hashes.iter().for_each(|hash| {
                    assert!(group.unwrap_or(0) == 0);
                    self.contents.remove(hash).expect("announced before");
                }),
                Event::Cleared => self.contents.clear(),
            }
        }
    }

    /// Takes the missing batches, if there are any, and then a batch.
    fn take_or_recover(&mut self, batch: &Batch, replay: &mut Client) {
        match self.next {
            Some(next) if batch.0 > next => {
                let missing = replay.replay(next);
                missing.iter().filter(|(number, _)| *number < batch.0).for_each(|b| self.take(b));
            }
            Some(next) if batch.0 < next => return,
            _ => {}
        }
        self.take(batch);
    }

    fn assert_true(&self, cache: &PagedKvCache) {
        let mut reachable = std::collections::HashSet::new();
        for tokens in prompts() {
            let prompt = cache.prompt(&tokens);
            let hashes = prompt.hashes().iter().map(|hash| hash.event_hash());
            let found = hashes.clone().take_while(|hash| self.contents.contains_key(hash)).count();
            assert_eq!(found, cache.prefix().probe(&prompt) / BLOCK_SIZE);
            reachable.extend(hashes.take(found));
        }
        assert_eq!(reachable.len(), self.contents.len());
        assert!(!reachable.is_empty());
    }
}

fn options(dialect: Dialect) -> PublisherOptions {
    let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0").topic(TOPIC);
    let options = options.replay_endpoint("tcp://127.0.0.1:0").dialect(dialect);
    options.batch_blocks(32).batch_age(Duration::from_millis(2))
}

fn publisher(dialect: Dialect) -> Arc<EventPublisher> {
    Arc::new(EventPublisher::bind(&options(dialect)).unwrap())
}

fn cache_of(publisher: &Arc<EventPublisher>) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(256).block_size(BLOCK_SIZE).home_shards(4);
    builder.event_sink(publisher.clone()).build().unwrap()
}

fn prompt_of(family: usize, branch: usize, blocks: usize) -> Vec<u32> {
    let token = |at: usize| {
        let of_branch = if at / BLOCK_SIZE < branch { 0 } else { 1 + branch };
        (family * 1_000_000 + of_branch * 10_000 + at) as u32
    };
    (0..=blocks * BLOCK_SIZE).map(token).collect()
}

fn prompts() -> impl Iterator<Item = Vec<u32>> {
    let all = (0..20).flat_map(|family| (0..8).map(move |branch| (family, branch)));
    all.map(|(family, branch)| prompt_of(family, branch, 16))
}

/// Serves prompts from four threads, and trims some of their sequences.
fn work(cache: &PagedKvCache, rounds: usize) {
    thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || {
                let mut random = Random::new(number);
                for _ in 0..rounds {
                    let (family, branch) = (random.below(20), random.below(8));
                    let tokens = prompt_of(family, branch, 1 + random.below(16));
                    let prompt = cache.prompt(&tokens);
                    let admitted = cache.admit_sequence(&prompt, &AdmitOptions::default());
                    if let Ok((mut sequence, _)) = admitted {
                        sequence.commit(tokens.len()).unwrap();
                        if random.below(8) == 0 {
                            sequence.apply_streaming_llm(BLOCK_SIZE, 2 * BLOCK_SIZE).unwrap();
                        }
                    }
                    if random.below(300) == 0 {
                        cache.prefix().reset();
                    }
                }
            });
        }
    });
}

fn subscribe(publisher: &EventPublisher) -> (Client, Client) {
    let replay = Client::connect(publisher.replay_address().unwrap(), "DEALER");
    (Client::subscribe(publisher.address(), "kv@"), replay)
}

/// Receives on a thread until the publisher closes, and loses every `lost`th batch.
fn listen(publisher: &EventPublisher, lost: usize) -> thread::JoinHandle<Router> {
    let (mut subscriber, mut replay) = subscribe(publisher);
    thread::spawn(move || {
        let mut router = Router::default();
        let first = replay.replay(0);
        first.iter().for_each(|batch| router.take(batch));
        let mut count = 0;
        while let Some((topic, batch)) = subscriber.receive() {
            assert_eq!(topic, TOPIC.as_bytes());
            count += 1;
            if lost == 0 || count % lost != 0 {
                router.take_or_recover(&batch, &mut replay);
            }
        }
        assert!(count > 20, "{count} batches came");
        router
    })
}

#[test]
fn a_router_holds_the_contents_that_a_probe_finds() {
    for dialect in [Dialect::Map, Dialect::Array] {
        let publisher = publisher(dialect);
        let cache = cache_of(&publisher);
        let router = listen(&publisher, 0);
        work(&cache, 1_000);
        publisher.shutdown();
        router.join().unwrap().assert_true(&cache);
    }
}

#[test]
fn batches_lost_in_transit_are_recovered_by_number() {
    for dialect in [Dialect::Map, Dialect::Array] {
        let publisher = publisher(dialect);
        let cache = cache_of(&publisher);
        let (mut subscriber, mut replay) = subscribe(&publisher);
        let mut router = Router::default();
        work(&cache, 1_000);
        publisher.flush();
        let last = publisher.stats().next_sequence;
        let first = replay.replay(0)[0].clone();
        router.take(&first);
        for count in 1.. {
            let (_, batch) = subscriber.receive().unwrap();
            // The last batch is never lost, because a gap shows only at a later batch.
            if count % 7 != 0 || batch.0 + 1 == last {
                router.take_or_recover(&batch, &mut replay);
            }
            if batch.0 + 1 == last {
                break;
            }
        }
        router.assert_true(&cache);
    }
}

/// Contents of requests by hashes are not published until a request matches them that knows their tokens.
#[test]
fn contents_of_hashes_only_reach_a_router_with_their_tokens() {
    for is_known in [false, true] {
        let publisher = publisher(Dialect::Map);
        let cache = cache_of(&publisher);
        let (mut subscriber, mut replay) = subscribe(&publisher);
        for family in 0..8 {
            let prompt = cache.prompt(&prompt_of(family, 7, 12));
            let hashed = Prompt::from_hashes(&prompt.hashes()[..8], prompt.num_tokens());
            let options = AdmitOptions::default();
            let (mut sequence, _) = cache.admit_sequence(&hashed, &options).unwrap();
            sequence.commit(8 * BLOCK_SIZE).unwrap();
            if is_known {
                let (mut sequence, admission) = cache.admit_sequence(&prompt, &options).unwrap();
                assert_eq!(admission.cached_tokens, 8 * BLOCK_SIZE);
                sequence.commit(prompt.num_tokens()).unwrap();
            }
        }
        // The last request takes blocks of others.
        let mark = prompt_of(19, 0, 16);
        let (mut last, _) =
            cache.admit_sequence(&cache.prompt(&mark), &AdmitOptions::default()).unwrap();
        last.commit(mark.len()).unwrap();
        let _rest = cache.allocate_sequence(cache.free_block_count() / 2 * BLOCK_SIZE).unwrap();
        publisher.shutdown();
        let mut router = Router::default();
        while let Some((_, batch)) = subscriber.receive() {
            router.take_or_recover(&batch, &mut replay);
        }
        if is_known {
            router.assert_true(&cache);
        } else {
            assert_eq!(router.contents.len(), 16, "only the last");
        }
    }
}

#[test]
fn a_publisher_has_one_cache_at_a_time_and_says_when_the_next_begins() {
    let publisher = publisher(Dialect::Map);
    let (mut subscriber, mut replay) = subscribe(&publisher);
    let builder = PagedKvCache::builder().num_blocks(64).block_size(BLOCK_SIZE);
    let builder = builder.event_sink(publisher.clone());
    let serve = |cache: &PagedKvCache, family| {
        let tokens = prompt_of(family, 7, 16);
        let prompt = cache.prompt(&tokens);
        let admitted = cache.admit_sequence(&prompt, &AdmitOptions::default());
        admitted.unwrap().0.commit(tokens.len()).unwrap();
    };
    let first = builder.clone().build().unwrap();
    serve(&first, 1);
    assert!(builder.clone().build().is_err(), "it would end what the first has");
    serve(&first, 2);
    drop(first);
    let second = builder.build().unwrap();
    serve(&second, 1);
    publisher.shutdown();
    let mut router = Router::default();
    while let Some((_, batch)) = subscriber.receive() {
        router.take_or_recover(&batch, &mut replay);
    }
    router.assert_true(&second);
    assert_eq!(router.contents.len(), 16);
}

#[test]
fn a_router_that_comes_late_hears_everything_again() {
    let publisher = publisher(Dialect::Map);
    let cache = cache_of(&publisher);
    work(&cache, 300);
    let (mut subscriber, mut replay) = subscribe(&publisher);
    work(&cache, 300);
    let mut router = Router::default();
    replay.replay(0).iter().for_each(|batch| router.take(batch));
    publisher.flush();
    let last = publisher.stats().next_sequence;
    while router.next != Some(last) {
        router.take_or_recover(&subscriber.receive().unwrap().1, &mut replay);
    }
    router.assert_true(&cache);
}

#[test]
fn a_router_outlives_its_publisher() {
    let mut router = Router::default();
    let mut endpoint = None;
    for round in 1..=3 {
        let mut options = options(Dialect::Array);
        if let Some((publish, replay)) = &endpoint {
            options = options.endpoint(format!("tcp://{publish}"));
            options = options.replay_endpoint(format!("tcp://{replay}"));
        }
        let publisher = Arc::new(bind_again(&options));
        endpoint = Some((publisher.address(), publisher.replay_address().unwrap()));
        let cache = cache_of(&publisher);
        let (_, mut replay) = subscribe(&publisher);
        work(&cache, 200 * round);
        publisher.flush();
        let batches = replay.replay(router.next.unwrap_or(0));
        assert!(router.next.is_none_or(|next| batches[0].0 > next), "numbers grow");
        assert_eq!(decode::events(&batches[0].1), [Event::Cleared]);
        router.next = None;
        batches.iter().for_each(|batch| router.take(batch));
        router.assert_true(&cache);
    }
}

/// Binds to addresses that closing connections may still hold.
fn bind_again(options: &PublisherOptions) -> EventPublisher {
    let start = Instant::now();
    loop {
        match EventPublisher::bind(options) {
            Ok(publisher) => return publisher,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_slow_subscriber_sees_a_gap_and_delays_no_other() {
    let options = options(Dialect::Map).ring(16, 1 << 20);
    let publisher = EventPublisher::bind(&options).unwrap();
    let mut slow = Client::subscribe(publisher.address(), "");
    let mut quick = Client::subscribe(publisher.address(), "");
    let hashes: Vec<_> = (1..=1_000).map(BlockHash::from_u128).collect();
    let begun = publisher.stats().next_sequence;
    let mark = begun + 5_000;
    let quick = thread::spawn(move || numbers_to(&mut quick, mark));
    for _ in begun..mark {
        publisher.on_event(&removed(&hashes)); // of 9 kB
    }
    assert_eq!(publisher.stats().next_sequence, mark);
    // A subscriber that missed a batch sees the gap at the next one. The slow subscriber still does not
    // read.
    let quick = go_on_until_heard(&publisher, quick);
    assert!(quick.last() >= Some(&mark), "nobody waits for the slow one");
    let slow = thread::spawn(move || numbers_to(&mut slow, mark));
    let slow = go_on_until_heard(&publisher, slow);
    let last = *slow.last().unwrap();
    assert!(last >= mark && slow.is_sorted_by(|one, next| one < next));
    assert!((slow.len() as u64) < last + 1 - begun, "{} came, and no gap", slow.len());
}

/// While it is slow, other subscribers may take its place. Afterwards only subscribers that wait for a
/// place lose theirs.
#[test]
fn a_subscriber_that_was_slow_and_has_read_keeps_its_place() {
    let options = options(Dialect::Map).batch_blocks(1).ring(10_000, 64 << 20).connections(2);
    let publisher = EventPublisher::bind(&options).unwrap();
    let mut slow = Client::subscribe(publisher.address(), "");
    let hashes: Vec<_> = (1..=1_000).map(BlockHash::from_u128).collect();
    for _ in 0..4_000 {
        publisher.on_event(&removed(&hashes)); // of 9 kB
    }
    publisher.flush();
    thread::sleep(Duration::from_millis(200)); // until the system's buffer for it is full
    let last = publisher.stats().next_sequence - 1;
    assert_eq!(numbers_to(&mut slow, last).last(), Some(&last));
    slow.ping();
    let _idle = [(); 4].map(|()| Client::connect(publisher.address(), "SUB"));
    slow.ping();
    publisher.on_event(&KvEvent::AllBlocksCleared);
    assert_eq!(numbers_to(&mut slow, last + 1), [last + 1]);
    assert_eq!(publisher.stats().peers_refused, 3, "each took the place of the one before it");
}

/// Sends small batches until a subscriber has enough.
fn go_on_until_heard(
    publisher: &EventPublisher,
    subscriber: thread::JoinHandle<Vec<u64>>,
) -> Vec<u64> {
    while !subscriber.is_finished() {
        publisher.on_event(&KvEvent::AllBlocksCleared);
        publisher.flush();
        thread::sleep(Duration::from_millis(1));
    }
    subscriber.join().unwrap()
}

/// Receives until a batch has number `mark` or higher, or until none arrives for long. Returns their
/// numbers.
fn numbers_to(subscriber: &mut Client, mark: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last().is_none_or(|&last| last < mark)
        && let Some((_, (number, _))) = subscriber.receive()
    {
        numbers.push(number);
    }
    numbers
}

#[test]
fn an_unread_replay_delays_no_other_client() {
    let options = options(Dialect::Map).batch_blocks(1);
    let publisher = EventPublisher::bind(&options).unwrap();
    let hashes: Vec<_> = (1..=1_000).map(BlockHash::from_u128).collect();
    for _ in 0..4_000 {
        publisher.on_event(&removed(&hashes)); // of 9 kB
    }
    let address = publisher.replay_address().unwrap();
    let mut stuck = Client::connect(address, "DEALER");
    (0..3).for_each(|_| stuck.ask(0));
    let mut other = Client::connect(address, "DEALER");
    assert_eq!(other.replay(0).len(), 4_001);
    let answers: Vec<_> = (0..3).map(|_| stuck.answer().len()).collect();
    assert_eq!(answers, [4_001; 3], "each is answered in its turn");
}

#[test]
fn a_small_batch_goes_out_by_its_age() {
    let publisher = EventPublisher::bind(&options(Dialect::Map)).unwrap();
    let mut subscriber = Client::subscribe(publisher.address(), "kv@pod");
    for _ in 0..3 {
        publisher.on_event(&KvEvent::AllBlocksCleared);
        assert_eq!(decode::events(&subscriber.receive().unwrap().1.1), [Event::Cleared]);
    }
}

#[test]
fn other_topics_are_not_heard() {
    let publisher = EventPublisher::bind(&options(Dialect::Map)).unwrap();
    let mut other = Client::subscribe(publisher.address(), "kv@other");
    let mut subscriber = Client::subscribe(publisher.address(), TOPIC);
    publisher.on_event(&KvEvent::AllBlocksCleared);
    assert!(subscriber.receive().is_some());
    publisher.shutdown();
    assert!(other.receive().is_none() && subscriber.receive().is_none());
}

#[test]
fn a_client_that_breaks_the_protocol_is_disconnected() {
    use std::io::{Read, Write};

    let publisher = EventPublisher::bind(&options(Dialect::Map)).unwrap();
    let addresses: [SocketAddr; 2] = [publisher.address(), publisher.replay_address().unwrap()];
    for address in addresses {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(&[b'G'; 64]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() <= 64, "a greeting at most");
    }
    Client::subscribe(publisher.address(), "").ping();
    Client::connect(publisher.replay_address().unwrap(), "DEALER").ping();
}

/// Returns an event of blocks of 16 tokens at the beginning of a prompt.
fn stored<'a>(hashes: &'a [BlockHash], tokens: &'a [u32]) -> KvEvent<'a> {
    let (block_size, group) = (16, GroupId(0));
    let kind = LayerGroup::Full { block_size };
    KvEvent::BlockStored {
        hashes,
        parent: None,
        tokens,
        block_size,
        extra: None,
        index: 0,
        group,
        kind,
        medium: Medium::Device,
    }
}

/// Returns an event of removed blocks of a cache without groups.
fn removed(hashes: &[BlockHash]) -> KvEvent<'_> {
    let kind = LayerGroup::Full { block_size: 16 };
    KvEvent::BlockRemoved { hashes, group: GroupId(0), kind, medium: Medium::Device }
}

#[test]
fn a_salt_is_published_in_clear_or_not_at_all() {
    let salt = "salt-of-one-tenant";
    for (dialect, publishes) in
        [Dialect::Map, Dialect::Array].map(|d| [(d, true), (d, false)]).concat()
    {
        let options = options(dialect).publish_salts(publishes);
        let publisher = Arc::new(EventPublisher::bind(&options).unwrap());
        let cache = cache_of(&publisher);
        let mut subscriber = Client::subscribe(publisher.address(), "");
        let prompt = cache.prompt_with(&[7; 9], &ExtraKeys::default().salt(salt));
        let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
        sequence.commit(9).unwrap();
        publisher.flush();
        let (_, (number, payload)) = subscriber.receive().unwrap();
        let mut replay = Client::connect(publisher.replay_address().unwrap(), "DEALER");
        assert_eq!(replay.replay(number), [(number, payload.clone())]);
        assert!(contains(&payload, b"BlockStored"));
        assert_eq!(contains(&payload, salt.as_bytes()), publishes);
        assert!(contains(&payload, &prompt.hashes()[0].event_hash().to_be_bytes()));
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Events are emitted as fast as possible: a batch that a subscriber misses is a gap in the numbers, and
/// no other event is missing.
#[test]
fn events_emitted_fast_are_received_or_leave_a_gap() {
    let options = options(Dialect::Map).batch_blocks(512).batch_age(Duration::from_secs(60));
    let publisher = EventPublisher::bind(&options).unwrap();
    let mut subscriber = Client::subscribe(publisher.address(), "");
    let first = publisher.stats().next_sequence;
    let hashes: Vec<_> = (1..=16).map(|hash| BlockHash::from_u128(hash << 40)).collect();
    let tokens: Vec<u32> = (50_000..50_000 + 16 * 16).collect();
    let heard = thread::spawn(move || {
        let (mut blocks, mut numbers) = (0, Vec::new());
        while let Some((_, (number, payload))) = subscriber.receive() {
            numbers.push(number);
            for event in decode::events(&payload) {
                if let Event::Stored { hashes, .. } = event {
                    blocks += hashes.len();
                }
            }
        }
        (blocks, numbers)
    });
    for _ in 0..100_000 / 16 {
        publisher.on_event(&stored(&hashes, &tokens));
    }
    publisher.shutdown();
    let (blocks, numbers) = heard.join().unwrap();
    let told = publisher.stats().next_sequence - first;
    assert!(numbers.is_sorted_by(|one, next| one < next));
    let missed = told as usize - numbers.len();
    assert!(missed as u64 >= publisher.stats().batches_lost, "what nobody could be sent is a gap");
    assert_eq!(told, 100_000_u64.div_ceil(512));
    assert!(blocks == 100_000 || missed > 0 && blocks + missed * 512 >= 100_000, "{blocks} heard");
}

/// The thread that emits an event copies it into memory of an earlier batch, which is used again.
#[test]
fn events_are_told_without_allocating_while_the_publisher_keeps_up() {
    let options = options(Dialect::Map).batch_blocks(512).batch_age(Duration::from_secs(60));
    let publisher = EventPublisher::bind(&options.ring(8, 64 << 20)).unwrap();
    let mut subscriber = Client::subscribe(publisher.address(), "");
    let hashes: Vec<_> = (1..=16).map(|hash| BlockHash::from_u128(hash << 40)).collect();
    let tokens: Vec<u32> = (50_000..50_000 + 16 * 16).collect();
    let stored = stored(&hashes, &tokens);
    let mut batch = || {
        let told = allocation_counter::measure(|| {
            for _ in 0..512 / 32 {
                publisher.on_event(&stored);
                publisher.on_event(&removed(&hashes));
            }
        });
        let (_, (_, payload)) = subscriber.receive().expect("a batch was sealed");
        assert_eq!(decode::events(&payload).len(), 512 / 16);
        told.count_total
    };
    let warming: u64 = (0..20).map(|_| batch()).sum();
    assert!(warming > 0, "the counter counts");
    assert_eq!((0..50).map(|_| batch()).sum::<u64>(), 0);
}

/// Batches that a subscriber has not read when the publisher shuts down are sent before the end. Two
/// seconds are allowed for that, which may be too few on a busy machine, so there are several tries.
#[test]
fn unread_batches_are_sent_before_the_publisher_ends() {
    let all_came = || {
        let publisher = EventPublisher::bind(&options(Dialect::Map)).unwrap();
        let mut subscriber = Client::subscribe(publisher.address(), "");
        let first = publisher.stats().next_sequence;
        let hashes: Vec<_> = (1..=4_000).map(BlockHash::from_u128).collect();
        for _ in 0..900 {
            publisher.on_event(&removed(&hashes)); // 36 kB: in all more than TCP takes
        }
        assert_eq!(publisher.stats().next_sequence, first + 900);
        thread::sleep(Duration::from_millis(200));
        let address = publisher.address();
        let ending = thread::spawn(move || publisher.shutdown());
        while TcpStream::connect(address).is_ok() {
            thread::sleep(Duration::from_millis(1)); // until the shutdown has begun
        }
        let came = std::iter::from_fn(|| subscriber.receive()).count();
        ending.join().unwrap();
        came == 900
    };
    assert!((0..5).any(|_| all_came()));
}

/// Needs a Python with `pyzmq` and `msgspec`, given by `PAGED_KV_PYTHON` or on the path; otherwise it is
/// skipped.
#[test]
fn python_understands_it() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let python = std::env::var("PAGED_KV_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_modules = Command::new(&python)
        .args(["-c", "import zmq, msgspec"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !has_modules {
        println!("skipped: {python} has no zmq and msgspec");
        return;
    }
    for dialect in [Dialect::Map, Dialect::Array] {
        let publisher = publisher(dialect);
        let cache = cache_of(&publisher);
        work(&cache, 300);
        publisher.flush();
        let mut router = Router::default();
        let batches = Client::connect(publisher.replay_address().unwrap(), "DEALER").replay(0);
        batches.iter().for_each(|batch| router.take(batch));
        let mut listener = Command::new(&python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/publisher/listen.py"))
            .arg(format!("tcp://{}", publisher.address()))
            .arg(format!("tcp://{}", publisher.replay_address().unwrap()))
            .arg(publisher.stats().next_sequence.to_string())
            .arg(format!("{dialect:?}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
        let heard = lines.next().expect("it hears the replay").unwrap();
        assert_eq!(heard, format!("heard {}", router.contents.len()));
        cache.prefix().reset();
        assert_eq!(lines.next().expect("it hears what is published").unwrap(), "cleared");
        assert!(listener.wait().unwrap().success());
    }
}
