"""Do vLLM's own tools, libzmq and msgspec, understand what is published?

Listens at the first endpoint as vLLM's subscribers do, asks the second for what came before, with
heartbeats on, and checks batches by msgspec structures. Prints the blocks it holds at the end.
Run by `python_understands_it` in `main.rs`.
"""

import sys
from typing import Optional, Union

import msgspec
import zmq


class BlockStored(msgspec.Struct, array_like=False, tag=True):
    block_hashes: list[int]
    parent_block_hash: Optional[int]
    token_ids: list[int]
    block_size: int
    lora_id: Optional[int]
    medium: Optional[str]
    lora_name: Optional[str]
    group_idx: Optional[int] = None
    kv_cache_spec_kind: Optional[str] = None


class BlockRemoved(msgspec.Struct, array_like=False, tag=True):
    block_hashes: list[int]
    medium: Optional[str]
    group_idx: Optional[int] = None


class AllBlocksCleared(msgspec.Struct, array_like=False, tag=True):
    pass


class Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[Union[BlockStored, BlockRemoved, AllBlocksCleared]]
    data_parallel_rank: Optional[int] = None


def main() -> None:
    endpoint, replay_endpoint, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    replay = context.socket(zmq.DEALER)
    for each in (socket, replay):
        each.setsockopt(zmq.HEARTBEAT_IVL, 50)
        each.setsockopt(zmq.HEARTBEAT_TIMEOUT, 500)
        each.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.setsockopt(zmq.SUBSCRIBE, b"kv@")
    socket.connect(endpoint)
    replay.connect(replay_endpoint)
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.poll(1_500)  # longer than a peer may be silent
    decoder = msgspec.msgpack.Decoder(Batch)
    held: set[int] = set()

    def take(payload: bytes) -> None:
        for event in decoder.decode(payload).events:
            if isinstance(event, BlockStored):
                assert len(event.token_ids) == len(event.block_hashes) * event.block_size
                assert event.parent_block_hash is None or event.parent_block_hash in held
                held.update(event.block_hashes)
            elif isinstance(event, BlockRemoved):
                held.difference_update(event.block_hashes)
            else:
                held.clear()

    replay.send_multipart([b"", (0).to_bytes(8, "big")])
    next_number = None
    while True:
        _, topic, number, payload = replay.recv_multipart()
        if number == b"\xff" * 8:
            break
        assert topic == b"kv@pod@model"
        take(payload)
        next_number = int.from_bytes(number, "big") + 1
    assert next_number == last, (next_number, last)
    print("heard", len(held), flush=True)
    # Live: one more batch, which clears.
    while held:
        _, number, payload = socket.recv_multipart()
        if int.from_bytes(number, "big") >= next_number:
            take(payload)
    print("cleared", flush=True)


main()
