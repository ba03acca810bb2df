"""Files that are whole or not there."""

import errno
import itertools
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from flowbook.checkpoints import (
    checkpoints,
    digest,
    hold_signals,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    tree_flatten,
    tree_unflatten,
    write_atomically,
)

from ..folders import folder
from ..given import seeded


def tree(seed: int = 0) -> dict:
    g = seeded(seed)
    return {
        "model": {
            "a.weight": torch.randn(5, 3, generator=g),
            "half": torch.randn(4, generator=g).bfloat16(),
            "mask": torch.tensor([True, False, True]),
            "none": torch.zeros(0, 2),
        },
        "optimiser": {
            "state": {0: {"step": torch.tensor(7.0)}, 2: {"step": torch.tensor(9)}},
            "param_groups": [{"betas": (0.9, 0.999), "params": [0, 2], "fused": None}],
        },
        "step": 7,
        "lr": 1e-3,
        "name": "ünïcode",
        "$tuple": [True, float("inf")],
        "odd": {"$tensor": "no tensor"},
        "empty": [{}, [], ()],
    }


def assert_same(found, wanted) -> None:
    """Equal in structure, types and every bit."""
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert_same(a, b)
    else:
        assert found == wanted


def test_round_trip():
    """Catches integer keys that come back as strings, tuples as lists, bf16 lost."""
    where = folder()
    path = save_checkpoint(where, 7, tree())
    assert path == where / "step-00000007.safetensors"
    assert_same(load_checkpoint(path), tree())
    assert os.listdir(where) == [path.name]


def test_names():
    """Catches names that say nothing to who opens the file with another tool."""
    path = save_checkpoint(folder(), 1, tree())
    assert sorted(load_file(path)) == [
        "model.a.weight",
        "model.half",
        "model.mask",
        "model.none",
        "optimiser.state.0.step",
        "optimiser.state.2.step",
    ]


def test_pack_is_plain():
    """Catches a tensor that stays in the JSON part, a name that says another place."""
    plain, tensors = tree_flatten({"a": [torch.ones(2), {"b": torch.zeros(3)}], "n": 3})
    assert list(tensors) == ["a.0", "a.1.b"]
    assert plain == {"a": [{"$tensor": "a.0"}, {"b": {"$tensor": "a.1.b"}}], "n": 3}
    assert_close(
        tree_unflatten(json.loads(json.dumps(plain)), tensors)["a"][0], torch.ones(2)
    )


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", 1j])
def test_refuses_what_json_cannot_hold(value):
    """Catches a state that is saved as its repr, or pickled."""
    with pytest.raises(TypeError, match=f"can't hold 'a.0', a {type(value).__name__}"):
        tree_flatten({"a": [value]})


@pytest.mark.parametrize("key", [(1, 2), b"bytes"])
def test_refuses_keys_that_json_cannot_hold(key):
    """Catches a file that is written, and that nobody can read back."""
    where = folder()
    with pytest.raises(TypeError, match=r"can't hold the key .*, in 'a'"):
        save_checkpoint(where, 1, {"a": {key: torch.ones(1)}})
    assert not list(where.iterdir())
    kept = {"a": {None: 1, True: 2, 0.5: torch.ones(1), 7: 4}}
    assert_same(load_checkpoint(save_checkpoint(where, 1, kept)), kept)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, dtype=torch.complex128), "a tensor of torch.complex128"),
        (torch.eye(2).to_sparse(), "torch.float32, torch.sparse_coo"),
        (torch.empty(2, device="meta"), "on meta"),
    ],
)
def test_refuses_tensors_that_no_file_can_hold(tensor, kind):
    """Catches a KeyError of the format's, or another error that names no tensor."""
    with pytest.raises(TypeError, match=f"can't hold 'a.w', .*{kind}"):
        save_checkpoint(folder(), 1, {"a": {"w": tensor}})


def test_refuses_the_name_of_the_header():
    """Catches a checkpoint that is written, and then is damaged."""
    with pytest.raises(ValueError, match="can't be named __metadata__"):
        save_checkpoint(folder(), 1, {"__metadata__": torch.ones(1)})


def test_one_number_of_any_stride():
    """Catches a column's first entry refused, since its bytes "don't lie together"."""
    table = torch.arange(6.0).view(3, 2)
    for one in (table[:1, 1], table[2, 1], table[:, 1:][:1], table[::2, 0][:1]):
        assert digest("", {"a": one}) == digest("", {"a": one.clone().contiguous()})
        found = load_checkpoint(save_checkpoint(folder(), 0, {"a": one}))["a"]
        assert_close(found, one, rtol=0, atol=0)


def test_refuses_two_tensors_of_one_name():
    """Catches one of them lost."""
    twice = {"a": {"b.c": torch.ones(1)}, "a.b": {"c": torch.zeros(1)}}
    with pytest.raises(ValueError, match=r"two tensors .* name a\.b\.c"):
        tree_flatten(twice)


def test_tied_and_transposed_weights():
    """Catches an error for weights that share memory, or the strides ignored."""
    weight = torch.arange(6.0).view(2, 3)
    given = {"a": weight, "b": weight, "c": weight.T, "d": weight[:, 1]}
    found = load_checkpoint(save_checkpoint(folder(), 0, given))
    for name, value in given.items():
        assert_close(found[name], value)


def test_a_snapshot():
    """Catches tensors that require a gradient refused, or the caller's changed."""
    weight = torch.ones(3, requires_grad=True)
    found = load_checkpoint(save_checkpoint(folder(), 0, {"w": weight}))["w"]
    assert not found.requires_grad and weight.requires_grad


def test_digest_sees_everything():
    """Catches two states of one digest: a name, type, shape or byte left out."""
    a = torch.arange(6, dtype=torch.int32)
    digests = [
        digest("", {"a": a}),
        digest("x", {"a": a}),
        digest("", {"b": a}),
        digest("", {"a": a.view(2, 3)}),
        digest("", {"a": a.view(3, 2)}),
        digest("", {"a": a.view(torch.float32)}),
        digest("", {"a": a.flip(0)}),
        digest("", {"a": a, "b": a}),
    ]
    assert len(set(digests)) == len(digests)
    two = {"a": a, "b": a + 1}
    assert digest("", two) == digest("", dict(reversed(two.items())))


def test_every_cut_and_every_flipped_bit_is_refused():
    """Catches a truncated file that loads, a flipped bit that is believed."""
    where = folder()
    path = save_checkpoint(where, 3, {"w": torch.arange(4.0), "step": 3})
    content = path.read_bytes()
    cuts = [content[:n] for n in range(len(content))]
    flips = [
        content[:i] + bytes([content[i] ^ (1 << bit)]) + content[i + 1 :]
        for i in range(len(content))
        for bit in range(0, 8, 3)
    ]
    scratch = where / "scratch"
    for damaged in itertools.chain(cuts, flips, [content + b"\0", b"PK\3\4"]):
        scratch.write_bytes(damaged)
        with pytest.raises(ValueError, match="scratch is "):
            load_checkpoint(scratch)


def test_never_unpickles():
    """Catches torch.load as a way out, which runs what the file says."""
    path = folder() / "step-00000001.safetensors"
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValueError, match="is damaged, or no checkpoint"):
        load_checkpoint(path)
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is damaged, or no checkpoint"):
        load_checkpoint(path)


def test_a_foreign_file_is_named():
    """Catches another program's weights taken for a state."""
    path = folder() / "step-00000001.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"step-00000001.safetensors is .* not one of"):
        load_checkpoint(path)


def test_a_missing_file():
    """Catches the same error for a file that isn't there and for a damaged one."""
    with pytest.raises(FileNotFoundError, match=r"No such file .*gone"):
        load_checkpoint(folder() / "gone")


def test_one_that_cannot_be_opened_is_not_passed_over():
    """Catches a run that starts again, since its newest state can't be read now."""
    where = folder()
    save_checkpoint(where, 1, {"step": 1})
    (where / "step-00000009.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match="step-00000009"):
        latest_checkpoint(where)


def test_one_removed_meanwhile():
    """Catches a reader stopped by a run that tidies up behind itself."""
    where = folder()
    save_checkpoint(where, 1, {"step": 1})
    (where / "step-00000009.safetensors").symlink_to("gone")
    with pytest.warns(UserWarning, match="step-00000009.* trying the one before it"):
        assert latest_checkpoint(where)[1] == {"step": 1}


def test_latest_goes_back_to_the_last_complete_one():
    """Catches a damaged newest file that stops the run, or is passed over silently."""
    where = folder()
    assert latest_checkpoint(where) is None
    assert latest_checkpoint(where / "not there") is None
    for step in (5, 100_000_000, 20):
        save_checkpoint(where, step, {"step": step})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path, found = latest_checkpoint(where)
    assert found == {"step": 100_000_000} and path.name == "step-100000000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step-100000000.* trying the one before it"):
        assert latest_checkpoint(where)[1] == {"step": 20}
    for path in checkpoints(where).values():
        path.write_bytes(b"")
    with pytest.warns(UserWarning) as caught:
        assert latest_checkpoint(where) is None
    assert len(caught) == 3


def test_the_last_are_kept():
    """Catches none removed, one too many, the newest instead of the oldest."""
    where = folder()
    for step in (1, 2, 3, 4):
        save_checkpoint(where, step, {}, keep=2)
    assert list(checkpoints(where)) == [3, 4]
    save_checkpoint(where, 5, {})
    assert list(checkpoints(where)) == [3, 4, 5]


def test_a_later_leftover_does_not_cost_the_new_one():
    """Catches keep=1 with a damaged step 9: the good step 4 thrown away."""
    where = folder()
    (where / "step-00000009.safetensors").write_bytes(b"damaged")
    save_checkpoint(where, 3, {}, keep=1)
    save_checkpoint(where, 4, {}, keep=1)
    assert list(checkpoints(where)) == [4, 9]


def test_other_files_stay():
    """Catches a pattern that takes the user's files for its own."""
    where = folder()
    names = ["step-1.safetensors", "step-00000001.safetensors.bak", "weights.part"]
    for name in names:
        (where / name).write_bytes(b"mine")
    (where / "step-00000002.safetensors.part").write_bytes(b"killed here")
    save_checkpoint(where, 7, {}, keep=1)
    assert set(os.listdir(where)) == {*names, "step-00000007.safetensors"}


@pytest.mark.parametrize(
    ("step", "keep"), [(-1, 3), (0, 0), (2.0, 3), ("2", 3), (2, 1.5)]
)
def test_refuses_numbers(step, keep):
    """Catches keep=0, which removes what was just written; a step of 2.0."""
    with pytest.raises(ValueError, match=f"expected integers .* {step} and {keep}"):
        save_checkpoint(folder(), step, {}, keep=keep)


class FullDisk:
    """An open file whose disk is full after `room` bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        self.file.write(content[: self.room])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "code"),
    [("write", errno.ENOSPC), ("fsync", errno.ENOSPC), ("replace", errno.EACCES)],
)
def test_a_write_that_fails_loses_nothing(place, code):
    """Catches the old file overwritten in place, a half-written one left behind."""
    where = folder()
    before = save_checkpoint(where, 1, tree()).read_bytes()

    def fail(*_):
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        if place == "write":
            opened = Path.open
            patch.setattr(Path, "open", lambda p, mode: FullDisk(opened(p, mode), 99))
        else:
            patch.setattr(os, place, fail)
        for step in (1, 2):
            with pytest.raises(
                OSError, match=f"not written: .*step-0000000{step}"
            ) as e:
                save_checkpoint(where, step, tree(1))
            assert e.value.errno == code
            assert os.strerror(code) in str(e.value)
    assert os.listdir(where) == ["step-00000001.safetensors"]
    assert load_checkpoint(where / "step-00000001.safetensors")["step"] == 7
    assert (where / "step-00000001.safetensors").read_bytes() == before


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_interrupted_while_writing(place):
    """Catches ctrl-C in the middle of a write that leaves half a file."""
    where = folder()
    save_checkpoint(where, 1, tree())

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, place, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(where, 1, tree(1))
    assert os.listdir(where) == ["step-00000001.safetensors"]
    assert_same(load_checkpoint(where / "step-00000001.safetensors"), tree())


def test_an_error_without_a_number():
    """Catches an error in reporting the error."""

    def fail(*_):
        raise OSError("odd")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="not written: odd"):
            write_atomically(folder() / "file", b"1")


def test_synced_before_renamed():
    """Catches the sync left out, of the file or of the folder, or done too late."""
    where, done = folder(), []
    sync, replace = os.fsync, os.replace

    def note_sync(handle):
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        done.append("sync folder" if is_folder else "sync file")
        sync(handle)

    def note_replace(old, new):
        done.append("replace")
        assert Path(old).read_bytes() == b"123"  # flushed
        replace(old, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", note_sync)
        patch.setattr(os, "replace", note_replace)
        write_atomically(where / "file", b"123")
    assert done == ["sync file", "replace", "sync folder"]


def test_a_folder_that_cannot_be_synced():
    """Catches "not written", said of a file that is there, as on some networks."""
    where, sync = folder(), os.fsync

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", files_only)
        path = save_checkpoint(where, 1, tree())
    assert_same(load_checkpoint(path), tree())


def test_a_folder_that_cannot_be_written():
    """Catches an error that doesn't name the place."""
    where = folder()
    (where / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        save_checkpoint(where / "file", 1, {})
    with pytest.raises(OSError, match="file"):
        save_checkpoint(where / "file" / "deeper", 1, {})
    assert list(where.iterdir()) == [where / "file"]


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_signals_are_held_and_then_obeyed(number, error):
    """Catches a block that is cut short, handlers that stay, a signal forgotten."""
    before, done = signal.getsignal(number), False
    with pytest.raises(error) as caught, hold_signals() as received:
        assert signal.getsignal(number) is not before
        signal.raise_signal(number)
        done = received == [number]
    assert done and signal.getsignal(number) is before
    assert error is KeyboardInterrupt or caught.value.code == 143


def test_the_fourth_signal_is_not_held():
    """Catches a hung block that Ctrl-C can't end; one that ends at the third."""
    before, held = signal.getsignal(signal.SIGINT), 0
    with pytest.raises(KeyboardInterrupt), hold_signals():
        for _ in range(5):
            signal.raise_signal(signal.SIGINT)
            held += 1
    assert held == 3 and signal.getsignal(signal.SIGINT) is before


def test_no_signal():
    """Catches an exception without a cause."""
    with hold_signals() as received:
        pass
    assert received == []


# --- in a process of its own -----------------------------------------------------

SAVES_FOR_EVER = """
import itertools, sys, torch
from flowbook.checkpoints import checkpoints, save_checkpoint
first = max(checkpoints(sys.argv[1]), default=-1) + 1
for k in itertools.count(first):
    state = {"k": k, "w": torch.full((300_000,), float(k))}
    save_checkpoint(sys.argv[1], k, state)
    print(k, flush=True)
"""
FILES_OF_10_KB = """
import resource, sys, torch
from flowbook.checkpoints import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
save_checkpoint(sys.argv[1], 2, {"w": torch.zeros(100_000)})
"""
NOBODY = """
import os, sys, torch
from flowbook.checkpoints import save_checkpoint
if os.getuid() == 0:  # whom no permission stops
    os.setgid(65534), os.setuid(65534)
save_checkpoint(sys.argv[1], 2, {"w": torch.zeros(3)})
"""


@pytest.mark.slow
def test_killed_while_it_saves():
    """Catches kill -9, also in the middle of a write, that costs a finished file."""
    where = folder()
    for trial in range(6):
        command = [sys.executable, "-c", SAVES_FOR_EVER, where]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            said = int(process.stdout.readline())
            time.sleep(0.003 * trial)
            process.kill()
            said = int((process.stdout.read().split() or [said])[-1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, found = latest_checkpoint(where)
        assert found["k"] >= said and (found["w"] == found["k"]).all()
        assert len(checkpoints(where)) <= 4  # one more, if killed before it tidied up


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "said"),
    [(FILES_OF_10_KB, "File too large"), (NOBODY, "Permission denied")],
)
def test_what_the_system_refuses(code, said):
    """Catches a disk without room, a folder of others, that cost what was there."""
    where = folder()
    before = save_checkpoint(where, 1, tree()).read_bytes()
    where.chmod(0o555 if code == NOBODY else 0o755)
    command = [sys.executable, "-c", code, where]
    done = subprocess.run(command, capture_output=True, text=True)
    where.chmod(0o755)
    assert done.returncode == 1 and f"not written: {said}" in done.stderr
    assert os.listdir(where) == ["step-00000001.safetensors"]
    assert (where / "step-00000001.safetensors").read_bytes() == before
