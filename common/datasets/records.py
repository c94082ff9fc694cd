"""Read and write RecordIO, MXNet's container of training images, without MXNet.

    record      u32 magic 0xced7230a; u32 = cflag << 29 | length; payload; zero bytes up to a multiple of 4
    cflag       0: the whole payload. A payload that contains the magic at a multiple of 4 is cut there: 1 first part,
                2 middle part, 3 last part. A reader joins the parts with the 4 magic bytes in between
    payload     u32 flag; f32 label; u64 id; u64 id2; then, with flag > 0, that many f32 labels; then the encoded image
    index       text, a line a record: key, tab, byte offset

All numbers are little-endian. Each length and offset is compared with the size of the file before it is used.
"""

import codecs
import contextlib
import io
import os
import struct
import weakref
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from common.io.files import atomic_pair, read_regular, require_file

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
PREFIX = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
WHOLE_IMAGE = struct.Struct("<IIIfQQ")  # prefix and header of almost all records: one part, one label
WHOLE, FIRST, MIDDLE, LAST = range(4)
MAX_LENGTH = 2**29 - 1
EXACT_KEYS = 2**24  # keys in header records are float32, which holds every integer up to this one
MOST_AHEAD = 2**20  # bytes read at once, however long the record should be by the index


class Record(NamedTuple):
    """The parts of a payload."""

    flag: int  # number of labels after the header; 0: one label in the header
    labels: tuple[float, ...]
    image: bytes  # encoded; empty in a record that says which keys are images


class RecordReader:
    """Random access to the records of a file, by key.

    Args:
        path: NAME.rec. The keys come from NAME.idx. Without one, a scan of the file takes the ids of the records, or
            0, 1, ... if an id comes twice.

    Attributes:
        path: as given.
        keys: (n,) int64, sorted, since some tools write the first key last.
        note: a sentence about records behind the last one of the index; "" if there are none.

    Any number of threads may read. A pickled reader opens the file again, so processes can share it too. The file is
    read and not memory-mapped: mapped pages count as memory of the process, so an epoch would add the whole set; and
    if a file shrinks under a map, the process dies.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the index or a record is damaged; the message says where.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.rec"
    >>> with RecordWriter(path) as writer:
    ...     writer.write_image(key=7, label=2, image=b"an image")
    >>> reader = RecordReader(path)
    >>> reader.keys, reader.read(7)
    (array([7]), Record(flag=0, labels=(2.0,), image=b'an image'))
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if require_file(self.path, "a record file").stat().st_size == 0:
            raise ValueError(f"{self.path}: is empty; expected a record file")
        self._descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._size = os.fstat(self._descriptor).st_size
        index = self.path.with_suffix(".idx")
        keys, offsets = _read_index(index, self._size) if index.exists() else self._scan()
        order = np.argsort(keys)
        self.keys, self._offsets = keys[order], offsets[order]
        in_file = np.append(np.unique(offsets), self._size)
        lengths = in_file[np.searchsorted(in_file, self._offsets, "right")] - self._offsets
        self._ahead = np.minimum(lengths, MOST_AHEAD)  # one read for almost each record
        end = self._end_of(int(offsets.max()))
        self.note = (
            f"{index}: the last record that it lists ends at byte {end} of {self._size}; images after it are not used"
            if end < self._size
            else ""
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.path,)

    def read(self, key: int) -> Record:
        """Read the record of `key`.

        Raises:
            KeyError: the index has no such key.
            ValueError: the record is damaged; the message says where.
        """
        row = int(self.keys.searchsorted(key))
        if row == len(self) or self.keys[row] != key:
            raise KeyError(f"{self.path}: no record has key {key}")
        return self.read_at(row)

    def read_at(self, row: int) -> Record:
        """Read the record of `keys[row]`, row 0 .. len - 1; it is not searched for. Raises as `read`."""
        offset, length = self._offsets.item(row), self._ahead.item(row)
        data = os.pread(self._descriptor, length, offset)
        if len(data) >= WHOLE_IMAGE.size:
            magic, word, flag, label, _, _ = WHOLE_IMAGE.unpack_from(data)
            end = PREFIX.size + word
            if magic == MAGIC and flag == 0 and WHOLE_IMAGE.size <= end <= len(data):
                return Record(0, (label,), data[WHOLE_IMAGE.size : end])
        # the record has several labels or parts, or is damaged
        what = f"key {self.keys[row]}"
        payload, _ = self._payload(offset, length, what)
        return self._unpack(payload, what)

    def _payload(self, offset: int, ahead: int, what: str) -> tuple[bytes, int]:
        """Read the record at `offset`; `ahead` bytes at once. Returns its joined payload and the next offset."""
        parts: list[bytes] = []
        while True:
            cflag, length, part = self._part(offset, what, ahead)
            if (cflag in (WHOLE, FIRST)) != (not parts):
                raise self._damage(what, offset, f"part {cflag} of a split record out of turn")
            if len(part) < length:
                part += os.pread(self._descriptor, length - len(part), offset + PREFIX.size + len(part))
            if len(part) < length:
                raise self._damage(what, offset, f"expected {length} bytes, got {len(part)}: the file has shrunk")
            parts.append(part)
            ahead = PREFIX.size  # a record may have very many parts
            offset += PREFIX.size + length + -length % 4
            if cflag in (WHOLE, LAST):
                return MAGIC_BYTES.join(parts), offset

    def _part(self, offset: int, what: str, ahead: int) -> tuple[int, int, bytes]:
        """Read `ahead` bytes at `offset`: the part's cflag, its length, and as much of it as these bytes hold."""
        data = os.pread(self._descriptor, max(PREFIX.size, ahead), offset)
        if len(data) < PREFIX.size:
            raise self._damage(what, offset, f"the file ends at byte {self._size}")
        magic, word = PREFIX.unpack_from(data)
        if magic != MAGIC:
            raise self._damage(what, offset, f"expected the magic {MAGIC:#x}, got {magic:#x}")
        cflag, length = word >> 29, word & MAX_LENGTH
        if cflag > LAST:
            raise self._damage(what, offset, f"expected a part number 0 to 3, got {cflag}")
        left = self._size - offset - PREFIX.size
        if length > left:
            raise self._damage(what, offset, f"expected {length} bytes, the file ends after {left}")
        return cflag, length, data[PREFIX.size : PREFIX.size + length]

    def _unpack(self, payload: bytes, what: str) -> Record:
        if len(payload) < HEADER.size:
            raise ValueError(f"{self.path} {what}: expected a header of {HEADER.size} bytes, got {len(payload)}")
        flag, label, _, _ = HEADER.unpack_from(payload)
        if flag == 0:
            return Record(0, (label,), payload[HEADER.size :])
        end = HEADER.size + 4 * flag
        if end > len(payload):
            raise ValueError(f"{self.path} {what}: expected {flag} labels, got a record of {len(payload)} bytes")
        labels = struct.unpack_from(f"<{flag}f", payload, HEADER.size)
        return Record(flag, labels, payload[end:])

    def _scan(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the keys and the offsets of all records, in the order of the file, each (n,) int64."""
        keys: list[int] = []
        offsets: list[int] = []
        offset = 0
        while offset < self._size:
            what = f"record {len(offsets)}"
            cflag, length, part = self._part(offset, what, PREFIX.size + HEADER.size)
            if len(part) < HEADER.size:  # the header contains the magic by chance and is cut there
                part, _ = self._payload(offset, PREFIX.size + HEADER.size, what)
            offsets.append(offset)
            keys.append(HEADER.unpack_from(part)[2] if len(part) >= HEADER.size else 0)
            offset += PREFIX.size + length + -length % 4
            while cflag not in (WHOLE, LAST):
                cflag, length, _ = self._part(offset, what, 0)
                offset += PREFIX.size + length + -length % 4
        if len(set(keys)) < len(keys) or max(keys) > np.iinfo(np.int64).max:
            keys = list(range(len(keys)))
        return np.array(keys), np.array(offsets)

    def _end_of(self, offset: int) -> int:
        """The byte after the record at `offset`; if it is damaged, the end of the file: reading it will tell."""
        cflag = FIRST
        try:
            while cflag not in (WHOLE, LAST):
                cflag, length, _ = self._part(offset, "", 0)
                offset += PREFIX.size + length + -length % 4
        except ValueError:
            return self._size
        return offset

    def _damage(self, what: str, offset: int, found: str) -> ValueError:
        return ValueError(
            f"{self.path} {what}, byte {offset}: {found}; the file is damaged or cut short, or "
            f"{self.path.with_suffix('.idx').name} belongs to another file"
        )


class RecordWriter(contextlib.ExitStack):
    """Writes NAME.rec and NAME.idx. Both appear if the `with` block ends well, else neither.

    Raises:
        OSError: the files cannot be written.
        ValueError: an image is longer than a record can be (2**29 - 1 bytes).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        files = atomic_pair(Path(path), Path(path).with_suffix(".idx"))
        self._records, self._index = self.enter_context(files)

    def write_image(self, key: int, label: int, image: bytes) -> None:
        """Write an encoded image with one label."""
        self._write(key, HEADER.pack(0, label, key, 0) + image)

    def write_header(self, key: int, first: int, end: int) -> None:
        """Write a record without image; it names the keys first .. end - 1."""
        self._write(key, _header_payload(key, first, end))

    def rewrite_first_header(self, key: int, first: int, end: int) -> None:
        """Replace the keys in the first record written, a header, by others."""
        self._records.seek(PREFIX.size)
        self._records.write(_header_payload(key, first, end))
        self._records.seek(0, os.SEEK_END)

    def _write(self, key: int, payload: bytes) -> None:
        self._index.write(f"{key}\t{self._records.tell()}\n".encode())
        parts = _split(payload)
        for number, part in enumerate(parts):
            if len(part) > MAX_LENGTH:
                raise ValueError(f"key {key}: expected at most {MAX_LENGTH} bytes a record, got {len(part)}")
            if len(parts) == 1:
                cflag = WHOLE
            else:
                cflag = FIRST if number == 0 else LAST if number == len(parts) - 1 else MIDDLE
            self._records.write(PREFIX.pack(MAGIC, cflag << 29 | len(part)) + part + bytes(-len(part) % 4))


def _header_payload(key: int, first: int, end: int) -> bytes:
    return HEADER.pack(2, 0, key, 0) + struct.pack("<2f", first, end)


def _split(payload: bytes) -> list[bytes]:
    """Cut the payload at each magic at a multiple of 4, which a reader could take for the start of a record."""
    parts, begin, position = [], 0, payload.find(MAGIC_BYTES)
    while position >= 0:
        if position % 4 == 0:
            parts.append(payload[begin:position])
            begin = position + 4
        position = payload.find(MAGIC_BYTES, position + (4 if position % 4 == 0 else 1))
    return [*parts, payload[begin:]]


def _read_index(path: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the keys and the offsets, in the order of the file, each (n,) int64."""
    text = read_regular(path).removeprefix(codecs.BOM_UTF8)
    lines = text.count(b"\n") + (not text.endswith(b"\n") and bool(text.strip()))
    # before a parser takes memory for its fields
    if not text.strip() or text.count(b"\t") > lines or lines * PREFIX.size > size:
        raise ValueError(f"{path}: expected {lines} lines of key, tab, offset, one for each record of {size} bytes")
    try:
        # reads millions of lines in a second and refuses anything but numbers
        table = np.loadtxt(io.BytesIO(text), np.int64, delimiter="\t", ndmin=2, comments=None)
    except ValueError as error:
        raise ValueError(f"{path}: expected lines of key, tab, offset ({error})") from None
    if table.shape != (lines, 2):
        raise ValueError(f"{path}: expected {lines} lines of key, tab, offset, got a table of {table.shape}")
    keys, offsets = np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])
    bad = np.flatnonzero((offsets < 0) | (offsets > size - PREFIX.size) | (offsets % 4 != 0))
    if len(bad):
        raise ValueError(
            f"{path} line {bad[0] + 1}: offset {offsets[bad[0]]} is not inside {path.with_suffix('.rec').name} "
            f"({size} bytes); one of the two files is damaged, or they do not belong together"
        )
    if len(np.unique(keys)) != len(keys) or keys.min() < 0:
        raise ValueError(f"{path}: expected keys from 0 up, each once")
    return keys, offsets
