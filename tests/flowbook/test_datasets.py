"""Files are read as they were written, and only if they are the right ones.

The files are small ones in the formats of the real sets; `test_downloads.py` has these.
"""

import gzip
import hashlib
import io
import struct
import tarfile
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from flowbook.datasets import (
    Archive,
    decompress,
    load_cifar10,
    load_digits,
    load_fashion_mnist,
    read_cifar10,
    read_idx,
    scale_levels,
)

from ..given import F64, seeded


def levels(*shape: int, seed: int = 0, top: int = 256) -> torch.Tensor:
    g = seeded(seed)
    return torch.randint(top, shape, generator=g, dtype=torch.uint8)


def idx(numbers: torch.Tensor) -> bytes:
    sizes = struct.pack(f">{numbers.ndim}I", *numbers.shape)
    return bytes([0, 0, 8, numbers.ndim]) + sizes + bytes(numbers.flatten().tolist())


def published(
    folder: Path, name: str, contents: bytes, base: str = "http://x"
) -> Archive:
    packed = gzip.compress(contents, mtime=1)
    (folder / name).write_bytes(packed)
    digests = (hashlib.sha256(data).hexdigest() for data in (packed, contents))
    return Archive(f"{base}/{name}", *digests)


@contextmanager
def empty_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def publish_cifar(folder: Path) -> tuple[Archive, torch.Tensor, torch.Tensor]:
    """A small archive in CIFAR-10's format; images (13, 3, 32, 32) and labels (13,)."""
    images, labels = levels(13, 3, 32, 32), levels(13, seed=1, top=10)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    buffer, start = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, size in reversed(list(zip(names, [2, 1, 3, 2, 2, 3], strict=True))):
            start += size  # from the end: their order in the archive is another one
            rows = range(13 - start, 13 - start + size)
            data = b"".join(
                bytes([labels[k], *images[k].flatten().tolist()]) for k in rows
            )
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    archive = published(folder, "cifar-10-binary.tar.gz", buffer.getvalue())
    return archive, images, labels


def publish_fashion(folder: Path):
    """A small set in Fashion-MNIST's format, and its two kinds of file."""
    files = {
        "train": (levels(7, 5, 4), levels(7, seed=1, top=10)),
        "test": (levels(3, 5, 4, seed=2), levels(3, seed=3, top=10)),
    }
    archives = {
        split: tuple(
            published(folder, f"{split}-{k}.gz", idx(numbers))
            for k, numbers in enumerate(both)
        )
        for split, both in files.items()
    }
    return archives, files


# --- numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("highest", [1, 16, 255])
def test_scale(highest):
    """Catches a range other than [-1, 1]; division by the number of levels."""
    given = torch.arange(highest + 1, dtype=torch.uint8)
    scaled = scale_levels(given, highest, dtype=F64)
    expected = torch.tensor(
        [2 * k / highest - 1 for k in range(highest + 1)], dtype=F64
    )
    assert_close(scaled, expected, rtol=0, atol=2**-52)
    assert scaled[0] == -1 and scaled[-1] == 1


def test_scale_dtypes():
    """Catches levels lost on the way; a silent integer division."""
    given = levels(3, 2)
    assert scale_levels(given, 255).dtype == torch.get_default_dtype()
    assert scale_levels(given, 255, dtype=torch.float16).dtype == torch.float16
    assert torch.equal(scale_levels(given, 255, dtype=torch.uint8), given)
    for dtype in (torch.int64, torch.complex64, "float32"):
        with pytest.raises(TypeError, match=rf"point or torch\.uint8, got {dtype}"):
            scale_levels(given, 255, dtype=dtype)


def test_scale_refuses_levels():
    """Catches levels of another range or kind, scaled to numbers outside [-1, 1]."""
    given = levels(3, 2, top=17)
    for dtype in (None, torch.uint8):
        with pytest.raises(TypeError, match=r"levels must be torch\.uint8, got"):
            scale_levels(given.float(), 16, dtype=dtype)
        with pytest.raises(ValueError, match="levels 0 to highest >= 1, got 17 of 16"):
            scale_levels(torch.tensor([3, 17], dtype=torch.uint8), 16, dtype=dtype)
        with pytest.raises(ValueError, match="highest >= 1, got 0 of 0"):
            scale_levels(torch.zeros(2, dtype=torch.uint8), 0, dtype=dtype)
    assert scale_levels(given[:0], 16).shape == (0, 2)


def test_digits():
    """Catches a scale other than [-1, 1], a missing channel, shuffled labels."""
    from sklearn import datasets

    images, labels = load_digits(dtype=F64)
    raw = datasets.load_digits()
    assert images.shape == (1797, 1, 8, 8) and labels.shape == (1797,)
    assert images.min() == -1 and images.max() == 1
    expected = torch.tensor(raw.data, dtype=F64)
    assert_close((images.flatten(1) + 1) * 8, expected, rtol=0, atol=0)
    assert labels.tolist() == raw.target.tolist() and not labels.is_floating_point()
    assert load_digits()[0].dtype == torch.get_default_dtype()
    stored = load_digits(dtype=torch.uint8)[0]
    assert_close(stored.flatten(1).double(), expected, rtol=0, atol=0)


# --- formats ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (3, 2), (4, 3, 2), (0, 3, 2)])
def test_idx(shape):
    """Catches sizes read lowest byte first, or in another order; a header kept."""
    numbers = levels(*shape)
    read = read_idx(idx(numbers))
    assert read.dtype == torch.uint8 and read.shape == numbers.shape
    assert torch.equal(read, numbers)


def test_idx_with_a_size_of_two_bytes():
    """Catches sizes above 255 of which one byte is read."""
    assert read_idx(idx(levels(3, 300))).shape == (3, 300)


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (b"", "begins nowhere"),
        (b"\x1f\x8b\x08\x00more", "begins 1f 8b 08 00"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "begins 00 00 0d 01"),  # floats
        (idx(levels(3, 2))[:-1], r"shape \(3, 2\) has 18 bytes, got 17: it is cut"),
        (idx(levels(3, 2)) + b"\0", r"has 18 bytes, got 19"),
        (b"\0\0\x08\x03\0\0\0\x02", "got 8: it is cut short"),  # within the header
        (b"\0\0\x08\1\x80\0\0\0", r"\(2147483648,\) has 2147483656 bytes, got 8"),
        (b"\0\0\x08\4" + bytes(4) + b"\xff" * 12, "too big"),  # of none, 2^96 each
    ],
)
def test_idx_refuses(contents, match):
    """Catches a file that is cut short, too long, or of another format, read."""
    with pytest.raises(ValueError, match=match):
        read_idx(contents)


def test_idx_wants_contents():
    """Catches a file's name, parsed as if it were the file."""
    with pytest.raises(TypeError, match="contents must be bytes, got str"):
        read_idx("train-images-idx3-ubyte")


def test_cifar_records():
    """Catches colours or rows taken for each other; labels at the end."""
    images, labels = levels(2, 3, 32, 32), [7, 9]
    data = b"".join(
        bytes(
            [
                labels[k],
                *(
                    int(images[k, c, i, j])
                    for c in range(3)
                    for i in range(32)
                    for j in range(32)
                ),
            ]
        )
        for k in range(2)
    )
    read, kinds = read_cifar10(data)
    assert torch.equal(read, images) and kinds.tolist() == labels
    assert read.dtype == kinds.dtype == torch.uint8


@pytest.mark.parametrize(
    ("records", "match"),
    [
        (b"", "got 0 of them and 0 bytes"),
        (bytes(2 * 3073 - 1), "got 1 of them and 3072 bytes"),
        (bytes(2 * 3074), "got 2 of them and 2 bytes"),  # CIFAR-100's
        (b"\x0a" + bytes(3072), "expected labels 0 to 9, got 10"),
    ],
)
def test_cifar_refuses(records, match):
    """Catches half a record, records of CIFAR-100, labels of something else."""
    with pytest.raises(ValueError, match=match):
        read_cifar10(records)


# --- whole sets ------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion(split):
    """Catches the other split, labels for images, a missing channel."""
    with empty_folder() as folder:
        archives, files = publish_fashion(folder)
        images, labels = load_fashion_mnist(
            split, root=folder, archives=archives, dtype=F64
        )
        stored, kinds = files[split]
        assert_close(images[:, 0], 2 * stored.double() / 255 - 1, rtol=0, atol=2**-52)
        assert_close(labels, kinds.long())
        raw, _ = load_fashion_mnist(
            split, root=str(folder), archives=archives, dtype=torch.uint8
        )
        assert torch.equal(raw, stored[:, None])


def test_fashion_refuses():
    """Catches a misspelt split; images and labels that don't belong together."""
    with empty_folder() as folder:
        archives, _ = publish_fashion(folder)
        with pytest.raises(
            ValueError, match=r"one of \['train', 'test'\], got 'valid'"
        ):
            load_fashion_mnist("valid", root=folder, archives=archives)
        mixed = {"train": (archives["train"][0], archives["test"][1])}
        with pytest.raises(ValueError, match=r"got \(7, 5, 4\) and \(3,\)"):
            load_fashion_mnist(root=folder, archives=mixed)
        swapped = {"train": archives["train"][::-1]}
        with pytest.raises(ValueError, match=r"got \(7,\) and \(7, 5, 4\)"):
            load_fashion_mnist(root=folder, archives=swapped)


def test_cifar():
    """Catches batches in the archive's order, one left out, the other split."""
    with empty_folder() as folder:
        archive, images, labels = publish_cifar(folder)
        x, y = load_cifar10(root=folder, archive=archive, dtype=F64)
        assert_close(x, 2 * images[:10].double() / 255 - 1, rtol=0, atol=2**-52)
        assert_close(y, labels[:10].long())
        x, y = load_cifar10("test", root=folder, archive=archive, dtype=torch.uint8)
        assert torch.equal(x, images[10:]) and torch.equal(y, labels[10:].long())
        with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
            load_cifar10("valid", root=folder, archive=archive)


@pytest.mark.parametrize("contents", [b"not a tar file", tarfile.NUL * 10240])
def test_cifar_refuses_another_archive(contents):
    """Catches an error that doesn't say which file is at fault."""
    with empty_folder() as folder:
        archive = published(folder, "c.tar.gz", contents)
        with pytest.raises(ValueError, match=r"http://x/c.tar.gz is not as expected"):
            load_cifar10(root=folder, archive=archive)


@pytest.mark.parametrize("kind", ["folder", "link to itself", "pipe", "cut", "packed"])
def test_cifar_refuses_a_member_that_is_no_file(kind):
    """Catches a folder of a file's name, and what else an archive can hold instead."""
    info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    data = levels(4 * 3073, top=10).numpy().tobytes()
    types = {"folder": tarfile.DIRTYPE, "pipe": tarfile.FIFOTYPE}
    if kind == "link to itself":
        info.type, info.linkname = tarfile.SYMTYPE, "test_batch.bin"
    elif kind in types:
        info.type = types[kind]
    else:
        info.size = len(data)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "packed" else "w") as file:
        file.addfile(info, io.BytesIO(data))
    whole = buffer.getvalue()
    contents = whole[: len(whole) // 3] if kind in ("cut", "packed") else whole
    with empty_folder() as folder:
        archive = published(folder, "c.tar.gz", contents)
        with pytest.raises(ValueError, match=r"http://x/c.tar.gz is not as expected"):
            load_cifar10("test", root=folder, archive=archive)


# --- which file is it? -----------------------------------------------------------


def test_unpack():
    """Catches a copy packed by somebody else, refused; contents still packed."""
    with empty_folder() as folder:
        archive = published(folder, "a.gz", b"contents")
        assert decompress(archive, folder / "a.gz") == b"contents"
        (folder / "a.gz").write_bytes(gzip.compress(b"contents", mtime=2))
        assert decompress(archive, folder / "a.gz") == b"contents"
        only_packed = Archive(archive.url, archive.sha256)
        with pytest.raises(ValueError, match=r"a\.gz is not .* expected nothing else"):
            decompress(only_packed, folder / "a.gz")


@pytest.mark.parametrize("unpacked", [None, "0" * 64])
def test_a_wrong_file_is_not_unpacked_to_memory(unpacked):
    """Catches 30 kB under the right name that unpack to 30 MB, or to 30 GB."""
    with empty_folder() as folder:
        published(folder, "a.gz", bytes(30_000_000))
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"a\.gz is not http://x/a\.gz"):
            decompress(Archive("http://x/a.gz", "0" * 64, unpacked), folder / "a.gz")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 3_000_000


def test_unpack_refuses():
    """Catches damaged files, and another set's under the same name, loaded."""
    with empty_folder() as folder:
        archive = published(folder, "a.gz", bytes(1000))
        path, packed = folder / "a.gz", (folder / "a.gz").read_bytes()
        garbled = bytearray(packed)
        garbled[12] ^= 255
        for damaged in (packed[:-3], packed[:5], b"", b"<html>", bytes(garbled)):
            path.write_bytes(damaged)
            with pytest.raises(
                ValueError, match=r"a\.gz is (damaged|not http://x/a\.gz)"
            ):
                decompress(archive, path)
        path.write_bytes(gzip.compress(bytes(999)))
        with pytest.raises(ValueError, match=rf"expected {archive.sha256}"):
            decompress(archive, path)
