//! `History`: the calls of an execution with their times and answers, and a check that some sequential
//! order of the calls explains every answer.
//!
//! A call is recorded right before it begins and right after it ends, without a schedule point in
//! between. So calls that did not overlap keep their order. The search is stateright's.

use std::fmt::Debug;
use std::sync::Mutex;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

/// A call that has returned.
#[derive(Clone, Debug)]
pub struct Call<Op, Ret> {
    pub thread: usize,
    pub op: Op,
    pub ret: Option<Ret>,
    pub begun: usize,
    pub ended: usize,
}

impl<Op, Ret> Call<Op, Ret> {
    /// True if there was a moment at which both calls were under way.
    pub fn overlaps<O, R>(&self, other: &Call<O, R>) -> bool {
        self.begun < other.ended && other.begun < self.ended
    }
}

/// The calls of one execution, in the order in which they began.
pub struct History<Op, Ret>(Mutex<Record<Op, Ret>>);

struct Record<Op, Ret> {
    calls: Vec<Call<Op, Ret>>,
    now: usize,
}

impl<Op, Ret> Record<Op, Ret> {
    fn tick(&mut self) -> usize {
        self.now += 1;
        self.now
    }
}

impl<Op: Clone, Ret: Clone> History<Op, Ret> {
    pub fn new() -> Self {
        Self(Mutex::new(Record { calls: Vec::new(), now: 0 }))
    }

    /// Makes a call of `thread`. `ret` reads the answer out of the call's result, which may take further
    /// reads, so it runs after the call's end.
    pub fn call<R>(
        &self,
        thread: usize,
        op: Op,
        call: impl FnOnce() -> R,
        ret: impl FnOnce(&R) -> Ret,
    ) -> R {
        let number = {
            let mut record = self.record();
            let begun = record.tick();
            record.calls.push(Call { thread, op, ret: None, begun, ended: usize::MAX });
            record.calls.len() - 1
        };
        let result = call();
        {
            let mut record = self.record();
            record.calls[number].ended = record.tick();
        }
        let ret = ret(&result);
        self.record().calls[number].ret = Some(ret);
        result
    }

    /// Locks the record. The lock is invisible to the scheduler, and never held while another thread
    /// runs.
    fn record(&self) -> std::sync::MutexGuard<'_, Record<Op, Ret>> {
        self.0.lock().expect("recording does not panic")
    }

    pub fn calls(&self) -> Vec<Call<Op, Ret>> {
        self.record().calls.clone()
    }
}

/// Asserts that `spec` allows some order of `calls`.
#[track_caller]
pub fn assert_linearizable<Spec>(spec: Spec, calls: &[Call<Spec::Op, Spec::Ret>])
where
    Spec: SequentialSpec + Clone,
    Spec::Op: Clone + Debug,
    Spec::Ret: Clone + Debug,
{
    let mut tester = LinearizabilityTester::new(spec);
    let begins = calls.iter().map(|call| (call.begun, call, true));
    let mut events: Vec<_> =
        begins.chain(calls.iter().map(|call| (call.ended, call, false))).collect();
    events.sort_by_key(|&(at, ..)| at);
    for (_, call, begins) in events {
        let recorded = if begins {
            tester.on_invoke(call.thread, call.op.clone()).map(drop)
        } else {
            tester.on_return(call.thread, call.ret.clone().expect("it returned")).map(drop)
        };
        recorded.expect("a thread makes one call at a time");
    }
    if !tester.is_consistent() {
        let lines: Vec<String> = calls
            .iter()
            .map(|Call { thread, op, ret, begun, ended }| {
                format!("  {begun:2}..{ended:2} thread {thread}: {op:?} -> {ret:?}")
            })
            .collect();
        panic!("no order of these calls explains them:\n{}", lines.join("\n"));
    }
}
