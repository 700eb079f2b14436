//! `HitDensity`: the learned order of reclaim, with the clock, the counts and the prices that all shards share.
//!
//! A released block has a *class*: how long the answer of its last request was, and how many requests had its content;
//! or that different conversations share it; or a hint of the caller. Counts of releases and of first
//! uses after them, by class and age, give a price for each class and age ([`prices`]). The least worth block
//! goes first, but only if it is clearly worth less than the least recently used one, which goes otherwise. Where
//! this loses hits against LRU, prices follow from the age alone for a while ([`guard`]).
//!
//! **Time** is the number of prompt blocks that were asked for, in steps of a 32nd of the pool. Each thread counts in
//! the line of its shard, and adds its count to the sum of all threads once it has its share of a step, or ends one.
//!
//! Source: hit density as in LHD (Beckmann, Chen and Cidon, NSDI 2018), with Gittins' index.

mod guard;
mod prices;
mod prompt_look;
mod prompt_uses;

use std::ops::DerefMut;

use self::guard::{Guard, Lesson};
use self::prices::{ClassCounts, begin, bucket};
pub(crate) use self::prompt_look::PromptLook;
pub(crate) use self::prompt_uses::{PromptUses, ReleasedPrompt};
use super::noted_ghosts::NotedGhosts;
use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::content_key::KeyedView;
use crate::pool::release_note::{MOST_USES, ReleaseMark, ReleaseNote};
use crate::sync::{AtomicU32, AtomicU64, CachePadded, Mutex, Ordering, thread_ordinal};

/// Steps in which as many blocks are asked for as the pool has.
const STEPS_A_POOL: u64 = 32;

/// Prices are learned once in so many blocks asked for: the pool's, divided by this.
const LEARNED_A_POOL: u64 = if cfg!(any(paged_kv_loom, paged_kv_shuttle)) { 1 } else { 4 };

/// Buckets of ages.
const BUCKETS: usize = if cfg!(any(paged_kv_loom, paged_kv_shuttle)) { 2 } else { 24 };

/// The answers of each length class are longer than the one before by this, in tokens.
const LONGER_THAN: [usize; LENGTHS - 1] = [64, 160, 320, 640];
const LENGTHS: usize = 5;

/// Classes by number of uses and length of the answer.
const ORDINARY: usize = LENGTHS * MOST_USES as usize;

/// The classes of contents that callers expect back soon, by length of the answer.
const BACK_SOON: usize = ORDINARY;

/// The class of contents that callers do not expect back.
const CLOSED: usize = BACK_SOON + LENGTHS;

/// The class of contents that the prompts of different conversations share: the last, as they are at the beginning.
const SHARED: usize = CLOSED + 1;

/// The number of classes.
pub(super) const CLASSES: usize = SHARED + 1;

/// A block of a class goes before the least recently used one if its price is below that one's times this.
const CLEARLY_LESS: f32 = 0.8;

/// The blocks of which a lesson looks whether they are in use.
const SAMPLED_IN_USE: usize = if cfg!(any(paged_kv_loom, paged_kv_shuttle)) { 0 } else { 256 };

/// Says whether a sequence comes back: its next turn will have the same tokens at the beginning of its prompt.
///
/// Only [`ReclaimPolicy::HitDensity`](crate::ReclaimPolicy::HitDensity) uses it. A hint is a class of its own, whose
/// worth is learned, so wrong hints cost little. Contents that other conversations share keep their class.
///
/// ```
/// use paged_kv::{PagedKvCache, ReclaimPolicy, ReuseHint, SeqId};
///
/// let builder = PagedKvCache::builder().num_blocks(8).reclaim_policy(ReclaimPolicy::HitDensity);
/// let cache = builder.build()?;
/// cache.admit(SeqId(1), &[7; 20])?;
/// cache.set_reuse_hint(SeqId(1), ReuseHint::Closed)?; // the conversation ended
/// cache.free(SeqId(1))?;
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum ReuseHint {
    /// Nothing is known: the class follows from the length of the answer and the number of uses.
    #[default]
    Unknown,
    /// The next turn comes soon, for example after a call of a tool.
    BackSoon,
    /// There will be no next turn.
    Closed,
}

/// The shared state of the learned order.
pub(crate) struct HitDensity {
    /// The blocks of the pool.
    total: usize,
    /// Blocks asked for in a step of time.
    step: u64,
    /// Blocks that a thread counts before it adds them to the sum.
    stride: u64,
    /// Steps between two lessons.
    learned_every: u32,
    /// The sum of the blocks asked for.
    asked: CachePadded<AtomicU64>,
    /// The time from which on prices are learned again.
    next_learned: AtomicU32,
    /// The age up to which LRU would keep contents, 0 if that is not known or the order is LRU.
    horizon: AtomicU32,
    lines: Box<[CachePadded<Line>]>,
    /// The bits of each `f32`.
    prices: [[AtomicU32; BUCKETS]; CLASSES],
    ghosts: NotedGhosts,
    learner: Mutex<Learner>,
}

/// The counts of a learned order, for models.
#[cfg(paged_kv_loom)]
#[derive(Clone, Copy, Debug)]
pub struct LearnedCounts {
    /// Blocks that were released with a note.
    pub releases: u32,
    /// First uses of contents after a release.
    pub hits: u32,
    /// The releases from which prices were learned, decayed.
    pub learned_releases: f64,
    /// The first uses from which prices were learned, decayed.
    pub learned_hits: f64,
    /// The times at which prices were learned.
    pub times: u32,
}

/// The counts of the threads of one shard. All but the first only rise, and wrap around.
struct Line {
    /// Blocks asked for that are not in the sum yet.
    asked: AtomicU64,
    prompts: AtomicU32,
    num_releases: AtomicU32,
    /// Uses that LRU would have had as hits, and those that it would not have had.
    lost: AtomicU32,
    gained: AtomicU32,
    releases: [AtomicU32; CLASSES],
    hits: [[AtomicU32; BUCKETS]; CLASSES],
}

/// The time of the last lesson, the sums of all lines then, and the decayed counts.
struct Learner {
    time: u32,
    prompts: u32,
    releases: [u32; CLASSES],
    hits: [[u32; BUCKETS]; CLASSES],
    lost: u32,
    gained: u32,
    counts: ClassCounts,
    guard: Guard,
    /// How often prices were learned.
    #[cfg(paged_kv_loom)]
    times: u32,
}

impl Line {
    fn new() -> Self {
        let zero = |_| AtomicU32::new(0);
        Self {
            asked: AtomicU64::new(0),
            prompts: AtomicU32::new(0),
            num_releases: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            gained: AtomicU32::new(0),
            releases: std::array::from_fn(zero),
            hits: std::array::from_fn(|_| std::array::from_fn(zero)),
        }
    }
}

// All accesses are Relaxed: counts, times and prices decide an order only.
impl HitDensity {
    pub(super) fn new(total: usize, shards: usize) -> Result<Self> {
        let step = (total as u64 / STEPS_A_POOL).max(1);
        let learned_every = (total as u64 / step / LEARNED_A_POOL).max(1) as u32;
        Ok(Self {
            total,
            step,
            learned_every,
            stride: (step / shards as u64).max(1),
            asked: CachePadded::new(AtomicU64::new(0)),
            next_learned: AtomicU32::new(learned_every),
            horizon: AtomicU32::new(0),
            lines: array_of(shards, || CachePadded::new(Line::new()))?,
            prices: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU32::new(0))),
            ghosts: NotedGhosts::new(total)?,
            learner: Mutex::new(Learner::new()),
        })
    }

    fn line(&self) -> &Line {
        &self.lines[thread_ordinal() & (self.lines.len() - 1)]
    }

    /// Returns the time in steps.
    pub(in crate::pool) fn now(&self) -> u32 {
        (self.asked.load(Ordering::Relaxed) / self.step) as u32
    }

    /// Returns the price of a block with this note, which is in the list of `class`.
    pub(super) fn price(&self, class: usize, note: ReleaseNote, now: u32) -> f32 {
        f32::from_bits(self.prices[class][bucket(note.age(now))].load(Ordering::Relaxed))
    }

    /// Returns true if a price is so far below the least recently used block's that its block goes first.
    pub(super) fn is_clearly_less(price: f32, of_oldest: f32) -> bool {
        price < CLEARLY_LESS * of_oldest
    }

    /// Remembers the notes of reclaimed contents, and removes them from the blocks.
    #[cold]
    pub(super) fn forget(&self, ids: &[BlockId], blocks: KeyedView<'_>) {
        for &id in ids {
            let note = blocks.note(id);
            if note.is_released() {
                self.ghosts.remember(blocks.key(id), note);
            }
            blocks.set_note(id, ReleaseNote::NONE);
        }
    }

    /// Gives a released block the time of its release anew.
    #[cold]
    pub(super) fn renew(&self, id: BlockId, blocks: KeyedView<'_>) {
        let note = blocks.note(id);
        if note.is_released() {
            blocks.set_note(id, note.renewed(self.now()));
        }
    }

    /// Counts a prompt of `num_tokens` tokens that asks for `blocks` blocks, and begins to count its uses of these.
    pub(crate) fn look_at_prompt(&self, blocks: usize, num_tokens: usize) -> PromptLook<'_> {
        let line = self.line();
        line.prompts.fetch_add(1, Ordering::Relaxed);
        self.advance(line, blocks as u64);
        PromptLook::new(self, line, num_tokens)
    }

    /// Returns the mark of a new release.
    pub(crate) fn next_mark(&self) -> ReleaseMark {
        let number = self.line().num_releases.fetch_add(1, Ordering::Relaxed);
        ReleaseMark::new(self.now(), number)
    }

    /// Writes the notes of blocks that a sequence releases: parts in the order of their tokens, each with the number of
    /// blocks before it in the sequence.
    pub(crate) fn note_release<'a>(
        &self,
        blocks: KeyedView<'_>,
        parts: impl Iterator<Item = (usize, &'a [BlockId])>,
        of: &ReleasedPrompt<'_>,
    ) {
        let (line, mut last) = (self.line(), None);
        for (first, ids) in parts {
            let mut at = 0;
            while at < ids.len() {
                let (class, uses, end) = of.class(first + at);
                let part = &ids[at..end.saturating_sub(first).min(ids.len())];
                let note = ReleaseNote::new(of.mark, class, uses);
                let cached = part.iter().filter(|&&id| blocks.note_if_cached(id, note));
                let mut count = 0;
                for &id in cached {
                    (count, last) = (count + 1, Some((id, note)));
                }
                line.releases[class].fetch_add(count, Ordering::Relaxed);
                at += part.len();
            }
        }
        let Some((id, note)) = last else { return };
        blocks.set_note(id, note.last());
        if let Some(before) = of.before {
            let of_before = blocks.note(before);
            if of_before.is_of_same_release(note) {
                blocks.set_note(before, of_before.not_last());
            }
        }
    }

    /// Returns the note of a block that becomes idle though no sequence released it: one of which nothing is known.
    #[cold]
    pub(super) fn note_unknown(&self) -> ReleaseNote {
        let (line, class) = (self.line(), LENGTHS - 1);
        line.releases[class].fetch_add(1, Ordering::Relaxed);
        ReleaseNote::new(
            ReleaseMark::new(self.now(), line.num_releases.load(Ordering::Relaxed)),
            class,
            1,
        )
    }

    /// Counts blocks that are asked for.
    fn advance(&self, line: &Line, blocks: u64) {
        let counted = line.asked.fetch_add(blocks, Ordering::Relaxed) + blocks;
        let sum = self.asked.load(Ordering::Relaxed);
        let ends_step = (sum + counted) / self.step > sum / self.step;
        if counted >= self.stride || ends_step {
            self.asked.fetch_add(line.asked.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Returns the time if prices are to be learned at it.
    #[inline]
    fn due_time(&self) -> Option<u32> {
        let (now, next) = (self.now(), self.next_learned.load(Ordering::Relaxed));
        (now.wrapping_sub(next) < u32::MAX / 2).then_some(now)
    }

    /// Learns the prices if that is due, and no other thread does. The caller has just begun to use `own` of the blocks.
    #[inline]
    fn learn_if_due(&self, blocks: KeyedView<'_>, own: usize) {
        if self.due_time().is_some()
            && let Some(learner) = self.learner.try_lock()
        {
            self.learn(learner, blocks, own);
        }
    }

    #[cold]
    fn learn(
        &self,
        mut learner: impl DerefMut<Target = Learner>,
        blocks: KeyedView<'_>,
        own: usize,
    ) {
        // Another thread may have learned since. Loom: of_two_threads_to_which_learning_is_due_one_learns.
        let Some(now) = self.due_time() else { return };
        self.next_learned.store(now.wrapping_add(self.learned_every), Ordering::Relaxed);
        let steps = now.wrapping_sub(learner.time);
        let asked = (u64::from(steps) * self.step) as f64;
        learner.time = now;
        let mut lesson = learner.add(&self.lines, asked);
        lesson.steps = f64::from(steps);
        lesson.blocks = self.total as f64;
        lesson.steps_a_pool = lesson.blocks / self.step as f64;
        let used = lesson.blocks * blocks.share_in_use(SAMPLED_IN_USE);
        lesson.used = (used - own as f64).max(0.0);
        #[cfg(paged_kv_loom)]
        (learner.times += 1);
        let horizon = learner.guard.learn(&lesson);
        self.horizon.store(horizon.unwrap_or(0), Ordering::Relaxed);
        let counts = &learner.counts;
        let prices = if horizon.is_some() { counts.prices() } else { counts.prices_by_age() };
        let learned = prices.as_flattened().iter();
        for (price, &learned) in self.prices.as_flattened().iter().zip(learned) {
            price.store((learned as f32).to_bits(), Ordering::Relaxed);
        }
        learner.counts.decay(asked);
    }
}

#[cfg(paged_kv_loom)]
impl HitDensity {
    /// Returns the time in steps.
    pub(crate) fn time(&self) -> u32 {
        self.now()
    }

    /// Returns the counts.
    pub(crate) fn counts(&self) -> LearnedCounts {
        let lines = || self.lines.iter().map(|line| &**line);
        let sum = |count: &AtomicU32| count.load(Ordering::Relaxed);
        let hits = |line: &Line| line.hits.as_flattened().iter().map(sum).sum::<u32>();
        let learner = self.learner.lock();
        LearnedCounts {
            releases: lines().flat_map(|line| &line.releases).map(sum).sum(),
            hits: lines().map(hits).sum(),
            learned_releases: learner.counts.releases.iter().sum(),
            learned_hits: learner.counts.hits.as_flattened().iter().sum(),
            times: learner.times,
        }
    }
}

impl Learner {
    fn new() -> Self {
        Self {
            time: 0,
            prompts: 0,
            releases: [0; CLASSES],
            hits: [[0; BUCKETS]; CLASSES],
            lost: 0,
            gained: 0,
            counts: ClassCounts::new(),
            guard: Guard::new(),
            #[cfg(paged_kv_loom)]
            times: 0,
        }
    }

    /// Adds the counts of the lines since the last time, when `blocks` blocks fewer were asked for, and returns them.
    fn add(&mut self, lines: &[CachePadded<Line>], blocks: f64) -> Lesson {
        let since = |last: &mut u32, count: &dyn Fn(&Line) -> &AtomicU32| {
            let sum = lines.iter().map(|line| count(line).load(Ordering::Relaxed));
            let sum = sum.fold(0, u32::wrapping_add);
            f64::from(sum.wrapping_sub(std::mem::replace(last, sum)))
        };
        let prompts = since(&mut self.prompts, &|line| &line.prompts);
        self.move_mean(prompts, blocks);
        let mut lesson = Lesson {
            lost: since(&mut self.lost, &|line| &line.lost),
            gained: since(&mut self.gained, &|line| &line.gained),
            blocks_a_prompt: self.counts.blocks_a_prompt,
            ..Lesson::default()
        };
        for class in 0..CLASSES {
            let releases = since(&mut self.releases[class], &|line| &line.releases[class]);
            self.counts.releases[class] += releases;
            lesson.releases += releases;
            for bucket in 0..BUCKETS {
                let hits = since(&mut self.hits[class][bucket], &|line| &line.hits[class][bucket]);
                self.counts.hits[class][bucket] += hits;
                lesson.hits[bucket] += hits;
            }
        }
        lesson
    }

    /// Moves the mean of the blocks of a prompt, by a thousandth for each prompt.
    fn move_mean(&mut self, prompts: f64, blocks: f64) {
        if prompts == 0.0 {
            return;
        }
        let (mean, old) = (blocks / prompts, self.counts.blocks_a_prompt);
        let weight = if old == 0.0 { 1.0 } else { 1.0 - 0.999_f64.powf(prompts) };
        self.counts.blocks_a_prompt = old + (mean - old) * weight;
    }
}
