"""Measures the hashing of a prompt in Python as vLLM does it: one block after the other, each hashed as
`sha256` or `xxh3_128` of canonical CBOR of (parent, tokens, extra keys).

    python3 benches/hashing.py

Needs the modules cbor2 and xxhash; says so and ends if they are missing. The tokens are those of
`cargo bench --bench hashing`.
"""

import hashlib
import sys
import time

try:
    import cbor2
    import xxhash
except ImportError as missing:
    sys.exit(print(f"skipped: {missing}"))

TOKENS, BLOCK_SIZE, VOCABULARY, ROUNDS = 131_072, 16, 200_000, 5
MASK = (1 << 64) - 1


def tokens():
    state = 1
    for _ in range(TOKENS):
        state = (state * 6_364_136_223_846_793_005 + 1) & MASK
        yield (state >> 33) % VOCABULARY


def chain(digest, ids):
    parent = digest(cbor2.dumps("vllm-none-hash", canonical=True))
    for start in range(0, len(ids), BLOCK_SIZE):
        block = (parent, tuple(ids[start : start + BLOCK_SIZE]), None)
        parent = digest(cbor2.dumps(block, canonical=True))
    return parent


ids = list(tokens())
for name, digest in [
    ("xxhash_cbor", lambda data: xxhash.xxh3_128_digest(data)),
    ("sha256_cbor", lambda data: hashlib.sha256(data).digest()),
]:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        last = chain(digest, ids)
        times.append(time.perf_counter() - start)
    seconds = sorted(times)[ROUNDS // 2]
    blocks = TOKENS // BLOCK_SIZE
    print(f"{name}  {seconds / blocks * 1e9:7.0f} ns a block  {seconds * 1e3:7.1f} ms  last {last.hex()}")
