"""Do vLLM's own tools, libzmq and msgspec, understand what is published?

Listens at the first endpoint as vLLM's subscribers do, asks the second for what came before, with
heartbeats on, none of which may go unanswered, and checks batches by msgspec structures of the
dialect that is asked for. Prints the blocks it holds at the end. Run by `python_understands_it` in
`main.rs`.
"""

import sys
from typing import Optional, Union

import msgspec
import zmq


class Stored(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[int]
    parent_block_hash: Optional[int]
    token_ids: list[int]
    block_size: int
    lora_id: Optional[int]
    medium: Optional[str]
    lora_name: Optional[str]
    extra_keys: Optional[list] = None
    group_idx: Optional[int] = None
    kv_cache_spec_kind: Optional[str] = None
    kv_cache_spec_sliding_window: Optional[int] = None


class Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[int]
    medium: Optional[str]
    group_idx: Optional[int] = None


class Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class StoredArray(Stored, array_like=True, tag="BlockStored"):
    pass


class RemovedArray(Removed, array_like=True, tag="BlockRemoved"):
    pass


class ClearedArray(Cleared, array_like=True, tag="AllBlocksCleared"):
    pass


class MapBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[Union[Stored, Removed, Cleared]]
    data_parallel_rank: Optional[int] = None


class ArrayBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[Union[StoredArray, RemovedArray, ClearedArray]]
    data_parallel_rank: Optional[int] = None


def main() -> None:
    endpoint, replay_endpoint, last, dialect = *sys.argv[1:3], int(sys.argv[3]), sys.argv[4]
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    replay = context.socket(zmq.DEALER)
    monitors = []
    for each in (socket, replay):
        each.setsockopt(zmq.HEARTBEAT_IVL, 100)
        each.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5_000)
        each.setsockopt(zmq.RCVTIMEO, 20_000)
        monitors.append(each.get_monitor_socket(zmq.EVENT_DISCONNECTED))
    socket.setsockopt(zmq.SUBSCRIBE, b"kv@")
    socket.connect(endpoint)
    replay.connect(replay_endpoint)
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.poll(1_500)  # some heartbeats
    decoder = msgspec.msgpack.Decoder({"Map": MapBatch, "Array": ArrayBatch}[dialect])
    held: set[int] = set()

    def take(payload: bytes) -> None:
        batch = decoder.decode(payload)
        assert batch.data_parallel_rank == 0
        for event in batch.events:
            if isinstance(event, Stored):
                assert event.medium == "GPU" and event.kv_cache_spec_kind == "full_attention"
                assert len(event.token_ids) == len(event.block_hashes) * event.block_size
                assert event.parent_block_hash is None or event.parent_block_hash in held
                held.update(event.block_hashes)
            elif isinstance(event, Removed):
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
    assert not any(monitor.poll(0) for monitor in monitors), "a heartbeat was not answered"
    print("cleared", flush=True)


main()
