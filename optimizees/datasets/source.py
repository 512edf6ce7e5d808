"""Data files: find them in a folder, else download them with checksums; open plain, .gz and .xz, or
from a .tar.gz. Trees of many small files: from a folder, or from a tar of it.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from lo_framework import optional
from lo_framework.spec import UserError, first_line

OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
_BROKEN = (EOFError, OSError, MemoryError, lzma.LZMAError, zlib.error, tarfile.TarError)
_BLOCK = 1 << 20
_LARGEST = 1 << 30  # bytes; the sets that are known have up to 200 million
HEADER = 16  # bytes that say how large the file is


@dataclass(frozen=True, kw_only=True)
class Source:
    """The original files of one data set.

    Attributes:
        name: the data set's name, which begins error lines.
        folders: folders below the data folder in which the files may lie; the first is where
            downloads go.
        files: names of the uncompressed files.
        url: what the names in `sha256` are appended to; "" for a set that is not downloaded.
        sha256: what to download -> its digest: the files themselves (with suffix), or one archive
            that holds them.
        archive: name of that archive, if the set is published as one.
        size: the number of bytes of an uncompressed file, from its first `HEADER` bytes.
    """

    name: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    url: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    size: Callable[[bytes], int]
    archive: str = ""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The uncompressed bytes of one file, as far as they could be read.

    Attributes:
        where: what error lines call the file: its path, or archive and member.
        fault: why reading stopped early, or that a checksum inside the file failed; "" if all went
            well.
    """

    where: str
    data: bytearray
    fault: str

    def require(self, expected: int) -> None:
        """Raise UserError unless exactly `expected` bytes could be read without a fault."""
        if len(self.data) != expected or self.fault:
            fault = f" ({self.fault})" if self.fault else ""
            raise UserError(
                f"{self.where}: expected {expected:,} bytes, found {len(self.data):,}{fault}"
            )

    def text(self, most: int) -> str:
        """The bytes as UTF-8, of which there may be `most`; raises UserError for others."""
        if self.fault:
            raise UserError(
                f"{self.where}: truncated or broken after {len(self.data):,} bytes ({self.fault})"
            )
        if len(self.data) > most:
            raise UserError(f"{self.where}: expected at most {most:,} bytes of text, found more")
        try:
            text = self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.where}: expected text in UTF-8, and byte {error.start:,} is none"
            ) from None
        if "\0" in text:
            raise UserError(f"{self.where}: expected text, found zero bytes")
        return text


def fetch(source: Source, data_dir: str | None) -> dict[str, Payload]:
    """Every file of `source` by name, from `data_dir` (or a folder of it), the download cache, or
    the network.

    Raises:
        UserError: `data_dir` is no folder; files are missing and cannot be downloaded (the line
            says which, and where they were looked for); a file cannot be opened.
    """
    places = _places(source, data_dir)
    if missing := [name for name in source.files if _find(name, source, places) is None]:
        _download(source, missing, places)
    payloads: dict[str, Payload] = {}
    packed: dict[Path, list[str]] = {}
    for name in source.files:
        path = _find(name, source, places)
        if path is None:
            raise UserError(f"{source.name}: the downloaded archive does not hold {name}")
        if path.name == source.archive:
            packed.setdefault(path, []).append(name)
        else:
            payloads[name] = _read(path, source)
    for archive, names in packed.items():
        payloads |= _unpack(archive, names, source)
    return payloads


def has(source: Source, name: str, data_dir: str | None) -> bool:
    """Whether the file `name` lies where `fetch` looks for it; nothing is downloaded."""
    return _find(name, source, _places(source, data_dir)) is not None


def fetch_tree(
    source: Source, data_dir: str | None, wanted: Callable[[str], object]
) -> dict[str, Payload]:
    """The files of a folder, and of its folders, by their paths in it, as far as they are `wanted`;
    in the order of their paths.

    The first place that has one of ``source.files`` is read: a folder of that name, or a .tar,
    .tar.gz or .tar.xz. In an archive the path begins after the first part.

    Raises:
        UserError: `data_dir` is no folder; none of them is there; a file cannot be opened.
    """
    places = _places(source, data_dir)
    tars = [f"{name}.tar{suffix}" for name in source.files for suffix in OPENERS]
    for place in places:
        for folder in (place / name for name in source.files):
            if folder.is_dir():
                paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*")}
                chosen = sorted(name for name, p in paths.items() if wanted(name) and p.is_file())
                return {name: _read(paths[name], source) for name in chosen}
        for archive in (place / name for name in tars):
            if archive.is_file():
                found = {}
                for name, content in _members(archive):
                    if wanted(inner := name.removeprefix("./").partition("/")[2]):
                        found[inner] = _drain(f"{archive}/{name}", content(), source)
                return dict(sorted(found.items()))
    forms = "one of them, as a folder, .tar, .tar.gz or .tar.xz"
    raise UserError(f"{_lacking(source, source.files, places, forms)}it is not downloaded")


def in_part(owner: str, there: dict[str, int], whole: dict[str, int], unit: str) -> list[str]:
    """Notes on files that hold another number of `unit` than was published, by split."""
    names = {"train": "training", "valid": "validation", "test": "test"}
    return [
        f"{count:,} of {owner}'s {whole[part]:,} {names[part]} {unit}"
        for part, count in there.items()
        if count != whole[part]
    ]


def _places(source: Source, data_dir: str | None) -> list[Path]:
    """Folders to look into, in order; the last one is the download cache, if there is one."""
    places: list[Path] = []
    if data_dir is not None:
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            raise UserError(f"{source.name}: the data folder {root} does not exist")
        places += [root / folder for folder in source.folders] + [root]
    cache = cache_folder()
    return [*places, cache / source.folders[0]] if cache else places


def cache_folder() -> Path | None:
    """What is downloaded or made from data files lies below it; None without `pooch`."""
    if optional.missing("pooch"):
        return None
    import pooch

    return Path(pooch.os_cache("lo-framework"))


def _find(name: str, source: Source, places: Sequence[Path]) -> Path | None:
    # Many copies of MNIST are called train-images.idx3-ubyte.
    names = [word + suffix for word in (name, name.replace("-idx", ".idx")) for suffix in OPENERS]
    for place in places:
        for spelled in names:
            if (place / spelled).is_file():
                return place / spelled
        if source.archive and (place / source.archive).is_file():
            return place / source.archive
    return None


def _download(source: Source, missing: list[str], places: Sequence[Path]) -> None:
    """Download what holds the `missing` files into the cache; into the data folder only if that is
    empty, because it is the person's own.
    """
    failure = _lacking(source, missing, places)
    if not source.url:
        raise UserError(f"{failure}it is not downloaded")
    if why := optional.missing("pooch"):
        raise UserError(failure + why)
    import pooch

    named = places[0].parent
    into_named = len(places) > 1 and os.access(named, os.W_OK) and not any(named.iterdir())
    folder = places[0] if into_named else places[-1]
    fresh = not folder.exists()
    pooch.get_logger().setLevel("WARNING")
    for remote, digest in source.sha256.items():
        if remote == source.archive or any(remote.startswith(name) for name in missing):
            try:
                pooch.retrieve(
                    source.url + remote, known_hash=f"sha256:{digest}", fname=remote, path=folder
                )
            except Exception as error:  # the network fails in many ways; all of them mean: no file
                if fresh:
                    with contextlib.suppress(OSError):  # it holds what came before the failure
                        folder.rmdir()
                raise UserError(f"{failure}download failed: {first_line(error)}") from error


def _lacking(
    source: Source,
    missing: Sequence[str],
    places: Sequence[Path],
    forms: str = "plain, .gz or .xz",
) -> str:
    """The beginning of the line that says what was looked for, and where."""
    looked = ", ".join(map(str, places)) or "no folder: name one with --data-dir or LO_DATA_DIR"
    return f"{source.name}: missing {', '.join(missing)} ({forms}); looked in {looked}; "


def _read(path: Path, source: Source) -> Payload:
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as stream:
            return _drain(str(path), stream, source)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _drain(where: str, stream: IO[bytes], source: Source) -> Payload:
    """Read `stream` up to the size that its header announces and one byte more: a small file may
    stand for any number of bytes.
    """
    data, fault, limit = bytearray(), "", HEADER
    try:
        while len(data) < limit and (block := stream.read(min(_BLOCK, limit - len(data)))):
            data += block
            if len(data) == HEADER:
                size = source.size(bytes(data))
                if size > _LARGEST:
                    raise UserError(
                        f"{where}: the header announces {size:,} bytes, and at most "
                        f"{_LARGEST:,} are read"
                    )
                limit = size + 1
    except _BROKEN as error:
        # What came before the break tells the person how much is missing, so it is kept.
        fault = first_line(error)
    return Payload(where=where, data=data, fault=fault)


class _Modest:
    """A stream that refuses to give much at once, which the headers of an archive may ask for."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _BLOCK:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Path and content of each file in the archive, in its order; the content is to be read before
    the next one is asked for.

    Raises:
        UserError: it is no archive, it is broken or cut off, or it holds too much.
    """
    total = 0
    try:
        with (
            OPENERS.get(archive.suffix, open)(archive, "rb") as stream,
            tarfile.open(fileobj=_Modest(stream), mode="r:") as tar,
        ):
            for member in tar:
                total += member.size
                if total > _LARGEST:  # to skip it would decompress all of it
                    raise tarfile.ReadError(f"more than {_LARGEST:,} bytes")
                if member.isreg():
                    yield member.name, partial(_content, tar, member)
    except _BROKEN as error:
        raise UserError(f"{archive}: broken archive: {first_line(error)}") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # of a regular file
    return content


def _unpack(archive: Path, names: list[str], source: Source) -> dict[str, Payload]:
    """The members called `names`, wherever in the archive; nothing is written to disk."""
    payloads: dict[str, Payload] = {}
    for path, content in _members(archive):
        if (name := path.rpartition("/")[2]) in names:
            payloads[name] = _drain(f"{archive}/{path}", content(), source)
    if absent := [name for name in names if name not in payloads]:
        raise UserError(f"{archive}: the archive does not hold {', '.join(absent)}")
    return payloads
