//! Test of a replay's events: a router receives exactly the blocks that the program says it published.

#[path = "../publisher/client.rs"]
mod client;
#[path = "../publisher/decode.rs"]
mod decode;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{collections::HashSet, thread};

use client::{Batch, Client};
use decode::Event;

use crate::program::{file, text};
use crate::reuse::families;

/// Time within which the program must listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The contents that a router holds, the number of its next batch, and how many blocks were reported to
/// it.
#[derive(Default)]
struct Heard {
    contents: HashSet<u64>,
    next: Option<u64>,
    blocks: usize,
}

impl Heard {
    /// Takes the missing batches, if there are any, and then a batch; skips batches that it has already.
    fn take(&mut self, batch: &Batch, replay: &mut Client) {
        if self.next.is_none_or(|next| next < batch.0) {
            let missing = replay.replay(self.next.unwrap_or(0));
            missing.iter().for_each(|batch| self.take_next(batch));
        }
        self.take_next(batch);
    }

    fn take_next(&mut self, (number, payload): &Batch) {
        if self.next.is_some_and(|next| *number < next) {
            return;
        }
        assert!(self.next.is_none_or(|next| *number == next), "no gap is left");
        self.next = Some(number + 1);
        for event in decode::events(payload) {
            match event {
                Event::Stored { hashes, .. } => {
                    self.blocks += hashes.len();
                    hashes.into_iter().for_each(|hash| assert!(self.contents.insert(hash)));
                }
                Event::Removed(hashes, _) => {
                    self.blocks += hashes.len();
                    hashes.iter().for_each(|hash| assert!(self.contents.remove(hash)));
                }
                Event::Cleared => self.contents.clear(),
            }
        }
    }
}

/// Returns an address without a listener.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn wait_for(address: SocketAddr, program: &mut Child) {
    let begin = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(program.try_wait().unwrap().is_none(), "it ended without listening");
        assert!(begin.elapsed() < PATIENCE, "it does not listen");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_router_receives_the_events_that_a_replay_publishes() {
    let trace = file("published.jsonl", families(300, 6, 4, 40).as_bytes());
    for dialect in ["map", "array"] {
        let (publish, replay) = (free_address(), free_address());
        let mut program = Command::new(env!("CARGO_BIN_EXE_paged-kv"))
            .args(["replay", text(&trace), "--blocks", "200", "--live", "4"])
            .args(["--publish-wait", "1", "--publish-linger", "1"])
            .args(["--publish", &format!("tcp://{publish}"), "--publish-dialect", dialect])
            .args(["--publish-replay", &format!("tcp://{replay}"), "--publish-topic", "kv@a@b"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        wait_for(replay, &mut program);
        let mut subscriber = Client::subscribe(publish, "kv@a");
        let mut replay = Client::connect(replay, "DEALER");
        let mut heard = Heard::default();
        while let Some((topic, batch)) = subscriber.receive() {
            assert_eq!(topic, b"kv@a@b");
            heard.take(&batch, &mut replay);
        }
        let output = program.wait_with_output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{said}");
        let last = heard.next.expect("something is published") - 1;
        let want = format!("published {} blocks, up to batch {last}", heard.blocks);
        assert!(said.contains(&want), "{want}, but it says: {said}");
        assert!(!heard.contents.is_empty());
    }
}
