"""Measures vLLM's CPU offloading manager (`CPUOffloadingManager`, LRU) on one thread, for scale beside
`cargo bench --bench tiers`. Written for vLLM 0.33.

    python3 benches/offloading.py PATH_OF_A_VLLM_CHECKOUT

PATH is the folder that contains `vllm/`; nothing of it has to be built. Needs numpy, with which the manager
makes its lists of chunks. Every other module that the manager imports from outside `vllm.v1.kv_offload`
(torch, metrics, logging) is replaced by an empty one.

The sizes are those of `tiers` for one thread: 64 prompts of 32 full blocks, all of them in the tier for
lookups and loads, and room for 16 prompts of 33 blocks for stores, so that each store of 32 blocks evicts 32.

The figures compare in scale only. The manager has no blocks of a device: `tiers` also allocates, publishes
and releases those for a load, and looks them up for a store. A request, its keys and their positions are
made for each prompt and are not timed. The end of a request, which updates the order of use, is timed by
itself. No bytes are copied.
"""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import time
import types

try:
    import numpy
except ImportError as missing:
    sys.exit(f"skipped: {missing}")

BLOCKS, BLOCK_SIZE, PROMPTS, PASSES = 32, 16, 64, 200
LOADING, STORING = 4 * PROMPTS * (BLOCKS + 1), 16 * (BLOCKS + 1)
REAL = "vllm.v1.kv_offload"


class Anything:
    """Stands for any class or function that is imported and not called while it is timed."""

    def __init__(self, *_, **__):
        pass


class Empty(types.ModuleType):
    """A module in which each name is `Anything`."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class Stubs:
    """Finds an empty module for torch and for each module of vLLM outside `REAL`."""

    def __init__(self, checkout):
        self.checkout = checkout

    def find_spec(self, name, _path=None, _target=None):
        if name == REAL or name.startswith(REAL + "."):
            return None
        if name.split(".")[0] in ("torch", "vllm"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        module.__path__ = [str(self.checkout.joinpath(*module.__name__.split(".")))]


class Manager:
    """vLLM's manager and the functions that are needed to call it."""

    def __init__(self, slots):
        self.base = importlib.import_module(f"{REAL}.base")
        module = importlib.import_module(f"{REAL}.cpu.manager")
        self.manager = module.CPUOffloadingManager(slots, cache_policy="lru")
        self.requests = 0

    def request(self, hashes):
        """Returns new keys and a new request, as vLLM's scheduler makes them."""
        self.requests += 1
        keys = [self.base.make_offload_key(block, 0) for block in hashes]
        request = self.base.ReqContext(req_id=str(self.requests))
        for at, key in enumerate(keys):
            request.set_offload_key_position(key, (at + 1) * BLOCK_SIZE)
        self.manager.on_new_request(request)
        return keys, request

    def look_up(self, keys, request):
        lookup, hit = self.manager.lookup, self.base.LookupResult.HIT
        found = [lookup(key, request) for key in keys]
        return all(result is hit for result in found)

    def load(self, keys, request):
        self.manager.prepare_load(keys, request)
        self.manager.complete_load(keys, request)
        return True

    def store(self, keys, request):
        output = self.manager.prepare_store(keys, request)
        self.manager.complete_store(output.keys_to_store, request)
        self.evicted = len(output.evicted_keys)
        return len(output.keys_to_store) == BLOCKS

    def run(self, prompts, work):
        """Does `work` for each prompt. Returns the ns a block of it and of the ends of the requests."""
        working = ending = 0
        for hashes in prompts:
            keys, request = self.request(hashes)
            start = time.perf_counter_ns()
            done = work(keys, request)
            middle = time.perf_counter_ns()
            self.manager.on_request_finished(request)
            ending += time.perf_counter_ns() - middle
            working += middle - start
            if not done:
                raise ValueError(f"{work.__name__} did not find or store {BLOCKS} blocks")
        return working / len(prompts) / BLOCKS, ending / len(prompts) / BLOCKS


def prompts():
    """Returns hashes of 32 bytes, as many as vLLM's default `sha256` has."""
    hashes = [hashlib.sha256(str(at).encode()).digest() for at in range(PROMPTS * BLOCKS)]
    return [hashes[at : at + BLOCKS] for at in range(0, len(hashes), BLOCKS)]


def managers(all_prompts):
    """Returns a manager that has all prompts, and one that has as many as it has room for."""
    loading, storing = Manager(LOADING), Manager(STORING)
    for manager in (loading, storing):
        manager.run(all_prompts, manager.store)
    if (loading.evicted, storing.evicted) != (0, BLOCKS):
        raise ValueError(f"stores evict {loading.evicted} and {storing.evicted} blocks, not 0 and {BLOCKS}")
    for work in (loading.look_up, loading.load):
        loading.run(all_prompts, work)
    return loading, storing


def version(checkout):
    file = checkout / "vllm" / "_version.py"
    text = file.read_text() if file.is_file() else ""
    found = [re.search(rf"\b{name} = '([^']+)'", text) for name in ("version", "commit_id")]
    return " ".join(match.group(1) for match in found if match) or "of unknown version"


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python3 benches/offloading.py PATH_OF_A_VLLM_CHECKOUT")
    checkout = pathlib.Path(sys.argv[1])
    if not checkout.joinpath(*REAL.split(".")).is_dir():
        sys.exit(f"skipped: {checkout} has no folder {REAL.replace('.', '/')}")
    sys.meta_path.insert(0, Stubs(checkout))
    if sys.version_info < (3, 12) and not importlib.util.find_spec("typing_extensions"):
        sys.modules["typing_extensions"] = types.SimpleNamespace(override=lambda method: method)
    all_prompts = prompts()
    try:
        loading, storing = managers(all_prompts)
    except Exception as error:
        sys.exit(f"skipped: this vLLM's offloading manager has another API: {type(error).__name__}: {error}")
    rows = [
        ("lookup", loading, loading.look_up),
        ("prepare_load and complete_load", loading, loading.load),
        ("prepare_store and complete_store", storing, storing.store),
    ]
    times = [[manager.run(all_prompts, work) for _, manager, work in rows] for _ in range(PASSES)]
    print(f"vLLM {version(checkout)}, Python {sys.version.split()[0]}, numpy {numpy.__version__}")
    print(f"{BLOCKS} blocks a prompt; ns a block, of {PASSES} passes over {PROMPTS} prompts\n")
    print(f"{'':<34} {'median':>8} {'least':>8} {'| end of request':>17} {'least':>8}")
    for at, (name, _, _) in enumerate(rows):
        work, end = (sorted(one[at][part] for one in times) for part in (0, 1))
        half = PASSES // 2
        print(f"{name:<34} {work[half]:>8.0f} {work[0]:>8.0f} {'|':>3}{end[half]:>14.0f} {end[0]:>8.0f}")


main()
