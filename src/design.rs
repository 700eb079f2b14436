//! How is the house built, and why may each thread do what it does? The design, as documentation.
//!
//! # Floors
//!
//! Imports only go down; `tests/tidy.rs` holds them to it.
//!
//! ```text
//!  F4 service   cache (by id)   batch (many rows)   evict (who yields)   stats   export
//!  F3 content   sequence (tokens <-> slots)   prefix/ (hash, index, what is published)
//!  F2 run       table (an owned, ordered run of blocks)
//!  F1 pool      free_list (which block)   capacity (how many)   state (one word a block)   name
//!  F0 ground    id   error   sync (one facade over std and loom)   counter   clock
//! ```
//!
//! Two ways to hold a request. By *handle*: a [`Sequence`](crate::Sequence) is owned by a
//! scheduler, lives in no map and takes no lock. By *id*: a
//! [`PagedKvCache`](crate::PagedKvCache) is a thin layer over the same handles.
//!
//! # A block's life
//!
//! ```text
//!            allocate, grow                    fork of a partly filled tail, retain
//!   Free ───────────────────> owned by one ──────────────────────> owned by several
//!   in a home shard           may be written                       read only
//!   or in the depot                │  ^                                  │
//!        ^                         │  └──────────────────────────────────┘
//!        └─────────────────────────┘        release by all but one
//!           release by the last owner
//! ```
//!
//! An owner is a table that holds the block privately, a *run*, or a count by id. Forking does not
//! count blocks: it freezes the full ones into a run, of which both tables hold a reference.
//!
//! ```text
//!   source  [B0 B1 B2 B3 | B7]          source  [B0 B1 B2 B3 | B7]──────┐
//!            private       tail   fork           └── run ──┘            │ 2 owners
//!                                 ───>          fork    └─────────┐     │
//!                                               [B0 B1 B2 B3 | B7]──────┘
//!   5 words say 1                       4 words say 1 (the run), 1 says 2; the run has 2 holders
//! ```
//!
//! So a fork writes one reference count for the run and one word for the tail, however long the
//! prompt is (and, on the line of its thread's stripe of the pool, a reference and a statistic); it
//! copies the ids, because [`as_slice`](crate::BlockTable::as_slice) is contiguous.
//!
//! Cutting into a run: if nobody else holds it, its blocks become private again. Else each block
//! that stays gets this table as an owner by its own word, *while the run still owns it*, and
//! then the run is let go. In every interleaving with other holders that leave, the last one to
//! leave finds the exact counts.
//!
//! # Where free blocks are
//!
//! ```text
//!   thread 0 ─ claim ─> [shard 0: magazine, ledger] ─┐  spill / refill a batch of 128
//!   thread 1 ─ claim ─> [shard 1: magazine, ledger] ─┼──> depot: crossbeam ArrayQueue
//!   ...                                              ─┘
//! ```
//!
//! A magazine holds up to 256 ids, two batches. A thread claims its home shard with one exchange
//! and lets go with one store. While it holds
//! the claim it copies ids and writes their words, so a block is in the free list exactly when
//! its word says free, for anyone who holds the claims. A thread that finds its home claimed takes
//! the next shard instead of waiting.
//!
//! What an allocation does, until something suffices:
//!
//! 1. take from the home shard;
//! 2. refill from the depot, one queue operation per 128 blocks;
//! 3. prove that there is no room, and refuse;
//! 4. take from other shards, one claim at a time, into its own;
//! 5. take the `shortage` mutex, claim every shard, and decide exactly. Of two collectors each
//!    holding half, without the mutex, both would be refused.
//!
//! Where contents are kept the free list is mostly empty, and nearly every allocation is served by
//! idle blocks. So there one of 128 blocks or fewer looks behind step 2 into the other shards for free
//! blocks, and then reclaims what is in its reach, before it proves anything; blocks that do not suffice
//! are idle again, in their order.
//!
//! # Why a refusal is right
//!
//! Each shard has a ledger of blocks *taken* and *given* through it, both only growing. Step 3
//! reads every `taken`, then every `given`. At a moment between the two passes each `taken` was
//! at least what was read, and each `given` at most: the blocks in use were at least the difference.
//! If that leaves less than asked, there was less room than asked at that moment. Blocks on their
//! way between shards and depot are in no ledger, so a transfer never causes a refusal; no lock is
//! taken and nobody is waited for. Blocks that are just becoming idle may be taken again before they
//! are counted as given: a ledger says how many such blocks there are at most, and they are room.
//!
//! Allocation is linearizable by count: which ids it returns depends on where the thread is at
//! home.
//!
//! # Progress, exactly
//!
//! | operation | may wait for |
//! |---|---|
//! | append inside a block, fork by handle, reads by handle | nobody |
//! | a refusal by the ledgers (step 3) | nobody; where contents are kept, of 128 blocks or fewer, as an allocation does |
//! | allocate, grow, release | a thread descheduled inside a claim, only if *all* shards are claimed (likely only in a pool of one shard: under 1,024 blocks, or under 2,048 where contents are kept); a thread descheduled between two instructions of `ArrayQueue`, once in 128 blocks at most |
//! | allocate when neither home shard nor depot suffices | besides, at step 5: other collectors (a mutex), and every thread inside a claim |
//! | by id | besides: the lock of one of 256 map shards, which 16 consecutive ids share, held for one operation that neither searches for blocks nor runs the caller's code; the lock of the sequence itself, if it is leased or in the middle of something long |
//! | `validate` | as step 5; it holds all claims for a pass over the free list |
//!
//! Nothing is lock-free in the strict sense where `ArrayQueue`, a claim or a map shard is
//! involved; what holds is that there is no lock that all operations take, and that a
//! descheduled thread holds up only those who need what it holds.
//!
//! # Steps
//!
//! ```text
//!   step 7 ──opens──> slot: 7, open ┄┄ the device is at it ┄┄ ends ──> slot: over
//!                        ▲                                     │
//!   table, fence 7 ──lets go: its references wait here         └──> an older open step, or the pool
//! ```
//!
//! An open step is a word in a slot. There are 64 slots, and as many again whenever all are taken. A table
//! knows the newest step that it took part in, its
//! *fence*, and hands what it lets go of to that step while it is open: references, not ids, so that
//! counts say all the while who owns a block, and sharers outside of the step copy and wait as ever. A
//! step that ends hands on to the newest older one that is open, because the table may have taken part in
//! that one too; no step waits for a newer one. Opening and ending are an exchange each, and a reference to
//! the pool taken and let go; a table that took part in no step pays a comparison.
//!
//! An eviction counts what only open steps own as given up, because evicting more would free nothing
//! sooner: it reads what the steps hold under all their locks, so that nothing is on its way from one to the
//! other or to the pool meanwhile. (A slot that gives back what it held says so until that is room.) Where
//! a block has as many owners as steps hold references to it, and runs that only steps hold count one
//! each, it is coming. Utilization counts it as used until it is back.
//!
//! A row that was grown in place is found without a look at any word: who wrote its last, partly filled
//! block once, or got it new, is its only owner until it is forked, and such a block is never published.
//!
//! What is committed through a step is owned by the step too, and published when it completes. By id a
//! step's row is a sequence and not an id: another that has come under the id since is left alone.
//!
//! # Waiting
//!
//! With the feature `async`, requests that wait for room are in a queue that holds their wakers
//! and their needs only. One word, the *demand*, says how much room the next of them needs, 0 if none
//! waits. A release loads it after the claim under which it gave blocks back, and that needs no fence:
//! a waiter that is about to sleep states its demand, then claims and unlocks each shard once, and then counts the
//! room. A claim that came before was counted; one that comes after sees the demand. A waiter that is woken asks
//! as any other caller does and, served or gone, wakes the next: one wake-up a release. A sequence that grows is
//! also woken by a release that does not suffice for it: it checks whether all wait for each other now.
//!
//! The need of a waiter may fall although no block comes back; `pool::waiters` lists by what. Then the first
//! in turn asks again and, where waiters may pass it, one prompt after the other behind it. A request to grow
//! names the admission epoch of its sequence. When that sequence leaves the map, its waiters are told.
//!
//! # Prefix reuse
//!
//! ```text
//!   tokens ─hash─> name ──> index: a word (tag, block) ──> block: word, renames, name, follower ─┐
//!                           half a cache line               half a cache line  ▲                 │
//!                                                                              └── the next name ┘
//! ```
//!
//! A full block whose keys and values are computed gets a *name*, 128 bits beside its word, and an
//! entry in a fixed table of hints. To match is to find the entry, to count oneself as an owner by one
//! exchange that succeeds only on a cached block, and then to compare the whole name: as long as a
//! block is cached and owned its name does not change, so what compares equal stays so. An entry may be
//! stale, and is taken back when its block gets its next name.
//!
//! A block also says which one followed it when it was published last. The next name of a chain is looked
//! for there first, and in the index only if it is not there: a prompt that was computed in one go lies in
//! neighbouring blocks, and its match reads one line for two of them. As long as they are neighbours the
//! next is looked at before it is read which that is. Where somebody listens to events only the index is
//! asked, for what it has forgotten is told as removed.
//!
//! An exchange lets nothing that comes after it begin early, so of words that are far away each would be
//! waited for by itself. Matching, publishing, reclaiming and releasing look at a batch of words first,
//! and write them then (`bring_near`).
//!
//! A named block that its last owner leaves is *idle*: cached, and room. In the ledgers it was given; a
//! match takes it again, and so does a reclaim. Both happen under a claim of a shard, as freeing does,
//! so whoever holds all claims finds words, entries and ledgers in agreement, and refusals are proved
//! as above.
//!
//! The order of idle blocks is a queue of batches of entries (block, epoch), filled by the home shards as
//! the depot is. A block that is matched leaves its entry behind, and gets a new one with the next epoch
//! when it is left again: the order is that of last uses, a match moves nothing, and a reclaim drops
//! entries whose epoch has passed. When such entries fill half of the queue it is turned over once
//! without them, by whoever fills it, in `O(blocks)` at most once in as many releases. Epochs count
//! modulo 256: of a block that was left a multiple of 256 times meanwhile an old entry is taken for the
//! last one, and it goes too early. That is a matter of order only.
//!
//! Each block that holds a content is named and noted in the index, up to four of them: so a content that
//! is in use or idle in one block stays matchable when another is reclaimed. A block that is named while
//! another is cached under the same name is *spare* until a match asks for it: its word says so, and when
//! its last owner leaves its entry goes to a list of the shard that is reclaimed first. Nothing has to be
//! decided when a copy ends. Threads that publish one content at the same time may each miss the others:
//! then no copy is spare, and more than four may be noted. A block that the index has no room for gives
//! its name back.
//!
//! A *generation* is mixed into every name, by a mask that is a keyed function of its number, and the key
//! is the cache's own; a reset counts the generation on, and no hash that a caller makes up matches
//! anything of an earlier one. A name is stored with 12 bits of the number, by which contents of earlier
//! generations are told when their blocks are overwritten.
//!
//! # Events
//!
//! Where somebody listens, publishers exclude each other by one lock, and note there which block is the
//! *home* of each content and which are its copies, in a tree of what follows what. When the home is taken
//! a copy becomes the home, in silence; the content ends when its last block is taken. The pool tells
//! that to an observer, outside all claims and before the new owner can name the block. A content whose
//! tokens are not known is hidden, with what follows it, until a request publishes or matches it that
//! knows them. So one order is true for every content, and it is the lock's; see `event`. A router's index is one order too,
//! which is why one lock is no less than sharded ones would give. Nobody listens: a branch a commit, and
//! one an allocation.
//!
//! Under the lock an event is noted only. A thread that has left its locks takes all that is noted and
//! tells the sink, one thread at a time; events noted in that time are taken when it comes back.
//! Events that cannot be told (the sink panicked, or more are noted than everything that can be matched)
//! are dropped and counted, and the sink is told everything again.
//!
//! # Foreign code
//!
//! Wakers and event sinks are called through one door, `sync::foreign`, which catches their panics, and
//! by threads that hold no claim and no lock. Blocks come back deep inside an operation, where a map shard
//! or a sequence may be locked. So an operation that locks one begins a scope first (`sync::later`):
//! inside, wake-ups and events are noted, and the end of the thread's outermost scope performs them. A
//! closure of `with_sequence` runs in such a scope too. Operations on handles hold no lock, and begin none.
//!
//! A waiter whose waker panics is *deaf*: it leaves the order until its task asks again, and the next one
//! is called. Rows of a batch are asked once, before anything is taken.
//!
//! # Orderings
//!
//! | write | read | what it carries |
//! |---|---|---|
//! | `claimed.store(false, Release)` in `Claim::drop` | `claimed.compare_exchange(.., Acquire, ..)` in `Shard::try_claim` | ids, words, ledger; through the words' owners the KV bytes: a block's next owner sees all its last one did |
//! | the depot's push | the depot's pop | the same for blocks that change shards |
//! | `word` exchange, AcqRel, in `WordsView::release_shared` | itself, and the Acquire loads in `state` and `release_sole` | what each sharer did with a block, to the last one |
//! | `taken`, `given`, `giving` stores, Release | loads, Acquire, in `room_at_most` and `totals` | a block counted as given was counted as taken, and one that can be taken again is announced as given |
//! | `word` exchange, Release, in `end_naming` | the Acquire exchange in `acquire`, the Acquire load in `state` | a name, and the contents behind it |
//! | `word` exchange, AcqRel, in `release_shared` | the Acquire exchange in `reclaim` | what each user did with a block, to who reclaims it |
//! | `word` store, Release, in `undo_reclaim` | the Acquire exchange in `acquire` | what each user did with a block that was put back, to who matches it |
//! | `renames` and name stores, Release | their Acquire loads | a probe that reads a part of a new name sees that it is new |
//! | a step's word, store, Release, in `SetOnDrop::drop` | its Acquire load in `try_holdings` | what a step gave back, to who counts what is in use but for steps |
//! | the number of slots, store, Release, in `Slots::grow` | its Acquire load in `Slots::len` | the words of the new slots |
//! | `evictions_over`, Release, in `evict_one` | its Acquire load in `evict` | what an eviction gave back, to who looks for the next victim |
//! | `fence(SeqCst)` in `announce_publication` | that in `see_all_changes` | of a publisher and a prompt about to sleep one sees the other |
//! | `fence(SeqCst)` in `wake_next` | itself, and that in `see_all_changes` | of two who give back, or one who does and one about to sleep, one counts both parts |
//! | `fence(SeqCst)` in `leaves_enough` | itself | of two that come in above the watermark one counts what both took |
//! | the run's reference count (`Arc`) | the same | what each holder did with the run's blocks, to the one that gives them back |
//! | a step's word, exchange or store, Release, in `Fences::close` | the Acquire loads in `newest_open`, the Acquire exchange in `open` | what the device did with a step's blocks, to who gives them back itself because it finds the step over |
//! | `leases.fetch_sub(Release)` | `leases.load(Acquire)` | what a lease's holder did, to the thread that evicts |
//!
//! A sole owner's release is a plain store: nobody can become an owner but through an owner.
//!
//! # The map
//!
//! A sequence that nobody leases lives in the `DashMap`'s own memory and the shard's lock is its
//! lock: an append by id is two atomic writes and no reference count. A leased one, and one in the
//! middle of something long (a search for blocks, a caller's closure, a table of more than 1,024
//! blocks being forked), moves behind an `Arc` with a lock of its own, so that no map shard is held
//! meanwhile, and moves back when it is found alone. Sixteen consecutive ids share a
//! shard, so that a scheduler that works on requests of one age finds the shards' locks in its own
//! cache (figures in `BENCHMARKS.md`); otherwise ids are spread by foldhash, seeded at random for
//! each cache, because they may come from clients. There are 256 shards whatever the machine: the
//! chance of meeting a descheduled holder counts, not the number of cores. (Threads that take ids
//! from one counter meet in a shard more often than by chance: better give each a range.)
//!
//! Recency is a logical clock: a thread's stamps strictly increase, and it runs at most 64 uses
//! ahead of what other threads know. Exact on one thread; between threads a use may look older than
//! an earlier one if no thread made 64 uses in between. No use writes a line that all threads write.
//!
//! # What changed against the first sketch
//!
//! - Idle blocks are the pool's, not a floor of their own: they are room, and what is room is decided
//!   under the claims. The index is told nothing when a block is reclaimed.
//! - An admission takes no credits before it acquires its hits: it looks whether there is room, acquires,
//!   and then allocates; what it loses a race for it gives back.
//! - Credits are blocks. The sketch had counted credits beside located ids; here taking the ids is
//!   taking the room, and the ledgers prove refusals. One thing fewer to keep consistent, and the
//!   statistics are the same two numbers.
//! - A refusal needs no versions and no double collect: see *Why a refusal is right*.
//! - Recency is logical instead of a coarse wall clock: exact on one thread, and tests need no
//!   sleeping.
