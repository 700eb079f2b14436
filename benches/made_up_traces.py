#!/usr/bin/env python3
"""Writes made-up traces in Mooncake's format, on which an order of reclaim may be worse than LRU.

    python3 benches/made_up_traces.py FOLDER
    cargo run --release --features cli -- sweep FOLDER/scans.jsonl --blocks 250,1000,5000
"""

import heapq
import json
import random
import sys
from bisect import bisect
from itertools import accumulate
from pathlib import Path

REQUESTS = 11_000
BLOCK_TOKENS = 512
ANSWERS = [30, 100, 250, 500, 900]


def write(folder, name, requests):
    """Writes requests, each a list of names of blocks and the tokens of its answer."""
    ids = {}
    with open(folder / f"{name}.jsonl", "w") as file:
        for number, (blocks, answer) in enumerate(requests):
            chain, last = [], 0
            for block in blocks:
                last = ids.setdefault((last, block), len(ids) + 1)
                chain.append(last)
            request = {"timestamp": number * 100, "input_length": BLOCK_TOKENS * len(chain)}
            file.write(json.dumps(request | {"output_length": answer, "hash_ids": chain}) + "\n")


class Documents:
    """Documents of different popularity (Zipf), of 3 to 30 blocks."""

    def __init__(self, rng):
        self.rng = rng
        self.sums = list(accumulate((rank + 1) ** -0.9 for rank in range(3_000)))
        self.lengths = [rng.randint(3, 30) for _ in range(3_000)]

    def next(self):
        number = bisect(self.sums, self.rng.random() * self.sums[-1])
        return number, self.lengths[number]


def conversations(seed, requests, chance=0.6, mean=150, turn=None, delay=None):
    """Conversations that go on with a chance, after a number of other requests. `turn` returns the answer, and whether
    the conversation goes on; `delay` the number of requests."""
    rng = random.Random(seed)
    waiting, served, number = [], [], 0
    while len(served) < requests:
        now = len(served)
        if waiting and waiting[0][0] <= now:
            _, _, name, blocks = heapq.heappop(waiting)
        else:
            number += 1
            name, blocks = number, [("c", number, at) for at in range(rng.randint(1, 16))]
        if turn:
            answer, goes_on = turn(rng, now)
        else:
            answer = rng.choice(ANSWERS)
            goes_on = rng.random() < chance
        served.append((list(blocks), answer))
        if goes_on:
            added = [("t", name, len(blocks) + at) for at in range(rng.randint(1, 4))]
            after = delay(rng) if delay else rng.expovariate(1 / mean)
            heapq.heappush(waiting, (now + 1 + after, name, name, blocks + added))
    return served


def opposite_lengths(rng, now):
    """The meaning of a long answer turns around every 1,500 requests."""
    answer = rng.choice(ANSWERS)
    is_likely = (answer >= 250) == (now // 1_500 % 2 == 0)
    return answer, rng.random() < (0.85 if is_likely else 0.15)


def mostly_once(rng, _now):
    """Six of ten prompts never come back."""
    if rng.random() < 0.6:
        return rng.choice(ANSWERS), False
    return rng.choice(ANSWERS), rng.random() < 0.9


def phases(documents):
    """Conversations and documents in turn, with other delays each time."""
    for phase in range(4):
        if phase % 2 == 0:
            part = conversations(50 + phase, REQUESTS // 4, 0.7, [40, 400][phase // 2])
            yield from (([("p", phase, *block) for block in blocks], answer) for blocks, answer in part)
        else:
            for _ in range(REQUESTS // 4):
                number, length = documents.next()
                yield [("p", phase, number, at) for at in range(length)], 200


def agents(rng):
    """Agents over six system prompts that ask again in no order, and begin anew when their context is full."""
    running = []
    for number in range(REQUESTS):
        if len(running) < 60 or rng.random() < 0.05:
            system = rng.randint(0, 5)
            running.append([("s", system, at) for at in range(10)] + [("a", number, 0)])
            if len(running) > 80:
                running.pop(rng.randrange(len(running)))
        agent = rng.randrange(len(running))
        running[agent] = running[agent] + [("a", number, 1)]
        if len(running[agent]) > 120:
            running[agent] = running[agent][:11]
        yield list(running[agent]), rng.choice([20, 60, 100, 1_500])


def scans(chats):
    """A third of the time the same 500 documents are read once each, between conversations."""
    for number, chat in enumerate(chats):
        is_scan = number // 500 % 3 == 0
        yield ([("d", number % 500, at) for at in range(12)], 10) if is_scan else chat


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    documents = Documents(rng)

    def asked_documents():
        for number in range(REQUESTS):
            document, length = documents.next()
            blocks = [("d", document, at) for at in range(length)]
            yield blocks + [("q", number)], rng.choice([50, 200, 400, 900])

    write(folder, "documents", asked_documents())
    loop = (([("d", number % 250, at) for at in range(20)] + [("q", number)], 200) for number in range(REQUESTS))
    write(folder, "loop", loop)
    write(folder, "memoryless", conversations(3, REQUESTS))
    recent = conversations(4, REQUESTS, 0.8, delay=lambda rng: rng.choice([3, 5, 10, 20, 40, 1_000]))
    write(folder, "recent", recent)
    write(folder, "phases", phases(documents))
    write(folder, "opposite", conversations(6, REQUESTS, turn=opposite_lengths, mean=200))
    write(folder, "once", conversations(7, REQUESTS, turn=mostly_once, mean=200))
    write(folder, "agents", agents(random.Random(8)))
    write(folder, "scans", scans(conversations(9, REQUESTS, 0.7, 60)))


if __name__ == "__main__":
    main()
