"""Where files are looked for, and what comes over a network.

The downloads come from a server on this machine's loopback address, with small files in
the formats of the real ones. CIFAR-10 as published is not read here; Fashion-MNIST is,
where Debian's package or `make data` has put it.
"""

import hashlib
import http.server
import struct
import threading
from pathlib import Path

import pytest
import torch

from benchmarks import data
from flowbook import datasets
from flowbook.datasets import (
    CIFAR10,
    FASHION_MNIST,
    Archive,
    fetch,
    load_cifar10,
    load_fashion_mnist,
)
from press.errors import BookError

from .test_datasets import idx, levels, publish_cifar, published


def test_a_file_not_found(tmp_path, monkeypatch):
    """Catches a download that nobody asked for; an error without a way out."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"binary\.tar\.gz is not in nowhere"):
        load_cifar10(root="nowhere")
    with pytest.raises(FileNotFoundError, match=r"data or .*download=True to get it"):
        load_cifar10()
    assert not list(tmp_path.iterdir())


def test_folders_in_turn(tmp_path, monkeypatch):
    """Catches debian's folder before one's own; other folders beside a given root."""
    monkeypatch.chdir(tmp_path)
    folders = [Path(name) for name in ("data", "debian", "given")]
    for folder in folders:
        folder.mkdir()
        (folder / "a.gz").write_bytes(b"")
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", folders[1])
    archive = Archive("http://x/a.gz", "0")
    assert fetch(archive) == Path("data/a.gz")
    assert fetch(archive, "given") == Path("given/a.gz")
    Path("data/a.gz").unlink()
    assert fetch(archive) == Path("debian/a.gz")
    Path("given/a.gz").unlink()
    with pytest.raises(FileNotFoundError, match="not in given: say"):
        fetch(archive, "given")


# --- downloads, over loopback ----------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/site; a path that begins with /short breaks off halfway."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = tmp_path / "site"
    site.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = site / self.path.rsplit("/", 1)[-1]
            if not path.exists():
                self.send_error(404)
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if "short" in self.path else data)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield site, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_download(server, tmp_path, capfd):
    """Catches a download to another place, one that is not kept, one without a bar."""
    site, base = server
    numbers, kinds = levels(4, 28, 28), levels(4, top=10)
    pair = (
        published(site, "images.gz", idx(numbers), base),
        published(site, "labels.gz", idx(kinds), base),
    )
    root = tmp_path / "new" / "folder"
    images, labels = load_fashion_mnist(
        root=root, download=True, archives={"train": pair}, dtype=torch.uint8
    )
    assert torch.equal(images[:, 0], numbers) and torch.equal(labels, kinds.long())
    assert sorted(path.name for path in root.iterdir()) == ["images.gz", "labels.gz"]
    assert "100%" in capfd.readouterr().err
    for path in site.iterdir():
        path.unlink()  # what is there is not downloaded again
    again, _ = load_fashion_mnist(root=root, download=True, archives={"train": pair})
    assert again.shape == (4, 1, 28, 28)


def test_download_of_cifar(server, tmp_path, monkeypatch):
    """Catches a second loader that downloads to another default place than `data`."""
    site, base = server
    archive, images, _ = publish_cifar(site)
    monkeypatch.chdir(tmp_path)
    served = Archive(f"{base}/{archive.name}", archive.sha256)
    x, _ = load_cifar10("test", download=True, archive=served, dtype=torch.uint8)
    assert torch.equal(x, images[10:])
    assert (tmp_path / "data" / archive.name).is_file()


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("", "a.gz was not downloaded: .*does not match the known hash"),
        ("/short", "short/a.gz was not downloaded: .*(Incomplete|broken)"),
        ("/none", "none/b.gz was not downloaded: .*404"),
    ],
)
def test_a_bad_download_is_named_and_not_kept(server, tmp_path, place, match):
    """Catches half a file, or another one, left under the name of the right one."""
    site, base = server
    archive = published(site, "a.gz", bytes(levels(5000).tolist()), f"{base}{place}")
    if place == "":
        (site / "a.gz").write_bytes((site / "a.gz").read_bytes()[:-100])  # cut, served
    if place == "/none":
        archive = Archive(f"{base}/none/b.gz", archive.sha256)
    root = tmp_path / "root"
    with pytest.raises(OSError, match=match):
        fetch(archive, root, download=True)
    assert not list(root.iterdir())


def test_no_answer(server, tmp_path):
    """Catches a traceback that doesn't name the address."""
    closed = Archive("http://127.0.0.1:9/a.gz", "0" * 64)
    with pytest.raises(OSError, match=r"http://127.0.0.1:9/a.gz was not downloaded"):
        fetch(closed, tmp_path, download=True)


# --- make data -------------------------------------------------------------------


@pytest.fixture
def stage(server, tmp_path, monkeypatch):
    """Four small files on a server, no Debian; `make data` into tmp_path/data."""
    site, base = server
    names = ["images.gz", "labels.gz", "more-images.gz", "more-labels.gz"]
    files = [published(site, name, bytes(name.encode()), base) for name in names]
    small = {"train": tuple(files[:2]), "test": tuple(files[2:])}
    monkeypatch.setattr(data, "FASHION_MNIST", small)
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    goal = tmp_path / "data"

    def staged(source=None):
        data.stage(source, into=goal)
        assert sorted(path.name for path in goal.iterdir()) == sorted(names)
        for name in names:
            assert (goal / name).read_bytes() == (site / name).read_bytes()

    return staged, site, goal


def test_make_data_downloads(stage, capsys):
    """Catches a second download; a place that is not said."""
    staged, site, _ = stage
    staged()
    assert capsys.readouterr().out.count(": downloaded from http://127.0.0.1") == 4
    (site / "images.gz").touch()
    staged()
    assert capsys.readouterr().out.count(": was there") == 4


def test_make_data_copies(stage, tmp_path, capsys):
    """Catches a download of what Debian's package, or a folder, has."""
    staged, site, goal = stage
    (tmp_path / "debian").mkdir()
    for path in site.iterdir():
        (tmp_path / "debian" / path.name).write_bytes(path.read_bytes())
    staged()
    place = tmp_path / "debian"
    assert capsys.readouterr().out.count(f": copied from {place}") == 4
    (goal / "labels.gz").unlink()
    (goal / "images.gz").write_bytes((site / "images.gz").read_bytes()[:-1])
    staged(site)
    said = capsys.readouterr().out
    assert "replaced, because" in said and said.count(f": copied from {site}") == 2
    assert said.count(": was there") == 2


def test_make_data_names_what_is_wrong(stage, tmp_path):
    """Catches a damaged copy, staged; a folder without the files, passed over."""
    staged, site, goal = stage
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(BookError, match=r"images\.gz can't be had: .*not in .*mine"):
        staged(folder)
    (folder / "images.gz").write_bytes((site / "labels.gz").read_bytes())
    with pytest.raises(BookError, match=r"images\.gz can't be had: .*is not http"):
        staged(folder)
    assert not goal.exists()


# --- as published ----------------------------------------------------------------


def test_addresses():
    """Catches names or checksums of one file at another's address."""
    names = [archive.name for pair in FASHION_MNIST.values() for archive in pair]
    parts = ("train", "t10k"), ("images-idx3", "labels-idx1")
    assert names == [f"{a}-{b}-ubyte.gz" for a in parts[0] for b in parts[1]]
    assert CIFAR10.name == "cifar-10-binary.tar.gz"
    every = [*FASHION_MNIST["train"], *FASHION_MNIST["test"], CIFAR10]
    digests = [d for a in every for d in (a.sha256, a.unpacked) if d]
    assert len(set(digests)) == 9 and all(len(bytes.fromhex(d)) == 32 for d in digests)


@pytest.mark.parametrize(("split", "size"), [("train", 60_000), ("test", 10_000)])
def test_fashion_as_published(split, size):
    """Catches a wrong checksum; where the set is on this machine."""
    try:
        images, labels = load_fashion_mnist(split, dtype=torch.uint8)
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not on this machine")
    assert images.shape == (size, 1, 28, 28)
    assert labels.bincount().tolist() == [size // 10] * 10


@pytest.mark.parametrize("k", range(4))
def test_debians_packing(k):
    """Catches a published checksum that is not that of the published file.

    Debian's files are the published ones but for the first bytes: gzip's header there
    has no name and another date. With both put back the checksum is as published.
    """
    every = [archive for pair in FASHION_MNIST.values() for archive in pair]
    path = datasets.DEBIAN_FASHION_MNIST / every[k].name
    if not path.is_file():
        pytest.skip("Debian's package is not on this machine")
    packed, date = path.read_bytes(), 1504176606 + 21 * (k > 1)
    name = path.name.removesuffix(".gz").encode()
    assert packed[:4] == b"\x1f\x8b\x08\0"
    header = b"\x1f\x8b\x08\x08" + struct.pack("<I", date) + packed[8:10] + name + b"\0"
    assert hashlib.sha256(header + packed[10:]).hexdigest() == every[k].sha256
