//! `Plan`: the numbers of threads and the length of a run; `Plan::measure` fills the cells of one row.
//!
//! All designs run at all numbers of threads in each round, in slices that alternate, and so does the
//! control. A round counts for a number of threads if the machine gave them their cores. If fewer than
//! [`ENOUGH`] rounds count, all rounds are used and the cell says so.

use std::time::{Duration, Instant};

use crate::machine;
use crate::rig::control::{self, QUIET};
use crate::rig::rounds::{median, on_time};
use crate::rig::team::{Burst, Contender, Slice, alternate};

/// Rounds that must count before the others are left out.
pub const ENOUGH: usize = 3;

/// The control reaches at least this share of the threads, or of the cores if there are fewer.
pub const CONTROL_MIN: f64 = QUIET / 2.0;

/// The longest slice, and the slice of more threads than cores: each thread runs several times in it.
const LONG_SLICE: Duration = Duration::from_millis(150);

/// A design, as the columns name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Ours,
    OneLock,
    ArrayQueue,
    Kvbm,
}

impl Name {
    pub const ALL: [Self; 4] = [Self::Ours, Self::OneLock, Self::ArrayQueue, Self::Kvbm];

    pub fn text(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OneLock => "one lock",
            Self::ArrayQueue => "ArrayQueue",
            Self::Kvbm => "kvbm-logical",
        }
    }
}

/// Sets up a thread's work, from the index of the number of threads and the number of the thread.
pub type Work<'w, 'a> = &'w (dyn Fn(usize, usize) -> Burst<'a> + Sync);

/// The slices of a round at one number of threads beside those at one thread: the control's, then each
/// design's.
type Pair<'r> = [&'r [Slice]; 2];

/// The figures of a row at one number of threads.
pub struct Cell {
    pub threads: usize,
    /// The rate of arithmetic over its rate on one thread.
    pub control: f64,
    /// The figures of each design; the first design is ours.
    pub designs: Vec<(Name, Figures)>,
    pub counted: usize,
    pub rounds: usize,
}

impl Cell {
    /// Returns the figures of a design, if it does the work of this row.
    pub fn figures(&self, name: Name) -> Option<Figures> {
        self.designs.iter().find(|(design, _)| *design == name).map(|(_, figures)| *figures)
    }
}

/// The figures of a design; each is a median over rounds.
#[derive(Clone, Copy)]
pub struct Figures {
    /// Operations per second of all threads.
    pub rate: f64,
    /// The rate over that of one thread.
    pub factor: f64,
    /// Our rate over that of this design, at the same number of threads.
    pub ours_to_it: f64,
}

/// The numbers of threads, and the length of a run.
pub struct Plan {
    /// Ascending, from 1.
    pub threads: Vec<usize>,
    pub cores: usize,
    pub span: Duration,
    /// A row goes on so long while too few of its rounds count.
    pub longest: Duration,
}

impl Plan {
    pub fn new(threads: &[u16], span: Duration, longest: Duration) -> Self {
        let cores = machine::cores();
        let mut threads: Vec<usize> = threads.iter().map(|&threads| threads.into()).collect();
        if threads.is_empty() {
            threads.extend((0..).map(|power| 1 << power).take_while(|&threads| threads < cores));
            threads.extend([cores.min(128), (2 * cores).min(128)]);
        }
        threads.push(1);
        threads.sort_unstable();
        threads.dedup();
        Self { threads, cores, span, longest }
    }

    /// Returns the largest number of threads.
    pub fn most(&self) -> usize {
        *self.threads.last().expect("one thread is always there")
    }

    /// Creates an instance for each number of threads.
    pub fn each<T>(&self, create: impl Fn(usize) -> T) -> Vec<T> {
        self.threads.iter().map(|&threads| create(threads)).collect()
    }

    pub fn title(&self) -> String {
        format!("{} cores, {}", self.cores, machine::cpu_model())
    }

    /// Measures a row. `slice` is the slice of one thread; more threads have longer ones, because a burst
    /// takes longer where threads wait for each other.
    pub fn measure(&self, slice: Duration, designs: &[(Name, Work<'_, '_>)]) -> Vec<Cell> {
        let mut contenders = Vec::new();
        for (i, &threads) in self.threads.iter().enumerate() {
            contenders.push(self.control(threads));
            let slice = match threads <= self.cores {
                true => (slice * threads as u32).min(LONG_SLICE),
                false => LONG_SLICE,
            };
            for &(_, work) in designs {
                contenders.push(Contender::new(threads, slice, move |thread| work(i, thread)));
            }
        }
        let names: Vec<Name> = designs.iter().map(|(name, _)| *name).collect();
        let (mut rounds, mut start) = (Vec::new(), None);
        alternate(&contenders, |slices| {
            rounds.push(slices.to_vec());
            let time = start.get_or_insert_with(Instant::now).elapsed();
            let counted = |i| self.counted(i, 1 + names.len(), &rounds).len();
            let enough = || (0..self.threads.len()).all(|i| counted(i) >= ENOUGH);
            rounds.len() >= ENOUGH && time >= self.span && (time >= self.longest || enough())
        });
        (0..self.threads.len()).map(|i| self.cell(i, &names, &rounds)).collect()
    }

    /// Returns the factor of arithmetic on `threads` threads, of one round.
    pub fn control_now(&self, threads: usize) -> f64 {
        let mut factor = f64::NAN;
        alternate(&[self.control(1), self.control(threads)], |slices| {
            factor = slices[1].rate / slices[0].rate;
            true
        });
        factor
    }

    fn control<'a>(&self, threads: usize) -> Contender<'a> {
        let millis = if threads <= self.cores { 4 } else { 60 };
        control::arithmetic_for(threads, Duration::from_millis(millis))
    }

    fn cell(&self, i: usize, names: &[Name], rounds: &[Vec<Slice>]) -> Cell {
        let width = 1 + names.len();
        let mut used = self.counted(i, width, rounds);
        let counted = used.len();
        if counted < ENOUGH {
            used = self.pairs(i, width, rounds).collect();
        }
        let over_rounds = |figure: &dyn Fn(&Pair<'_>) -> f64| median(used.iter().map(figure));
        let factor = |at: usize| over_rounds(&|[many, one]| many[at].rate / one[at].rate);
        let figures = |at: usize| Figures {
            rate: over_rounds(&|[many, _]| many[at].rate),
            factor: factor(at),
            ours_to_it: over_rounds(&|[many, _]| many[1].rate / many[at].rate),
        };
        Cell {
            threads: self.threads[i],
            control: factor(0),
            designs: names.iter().enumerate().map(|(at, &name)| (name, figures(at + 1))).collect(),
            counted,
            rounds: rounds.len(),
        }
    }

    /// Returns the slices of `width` contenders in each round.
    fn pairs<'r>(
        &self,
        i: usize,
        width: usize,
        rounds: &'r [Vec<Slice>],
    ) -> impl Iterator<Item = Pair<'r>> {
        rounds.iter().map(move |slices| [&slices[i * width..(i + 1) * width], &slices[..width]])
    }

    fn counted<'r>(&self, i: usize, width: usize, rounds: &'r [Vec<Slice>]) -> Vec<Pair<'r>> {
        self.pairs(i, width, rounds).filter(|pair| self.counts(self.threads[i], pair)).collect()
    }

    /// Returns whether the machine gave the threads of a round their cores.
    fn counts(&self, threads: usize, [many, one]: &Pair<'_>) -> bool {
        let has_cores = many[0].rate >= self.control_min(threads) * one[0].rate;
        // More threads than cores wait in every design.
        has_cores && on_time(one) && (threads > self.cores || on_time(many))
    }

    /// Returns the least factor of the control on an idle machine.
    pub fn control_min(&self, threads: usize) -> f64 {
        CONTROL_MIN * threads.min(self.cores) as f64
    }
}
