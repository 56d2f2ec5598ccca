"""Members of .tar and .zip archives, streamed: nothing is written to disk, and what an archive may do is bounded.

A member that would leave the folder, a link, a device, and what unpacks beyond the caps is refused by name.
"""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from fledge.curate.packing import CAP_SLACK_BYTES, OVER_CAP
from fledge.text.files import CHUNK_BYTES, RowRejected

DAMAGED_MEMBER = "damaged member"
HEADER_BYTES = 1 << 20  # longest name or extended header of a tar member; they are held in memory
DIRECTORY_BYTES = 32 << 20  # longest directory of a zip, held in memory tenfold: about 300,000 members

_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK)  # fmt: skip


class Member(NamedTuple):
    """A member to read now, before the next one is asked for; or why it is refused."""

    name: str
    file: BinaryIO | None
    refused: str = ""
    sample: str = ""


class ChunkFile(io.RawIOBase):
    """Chunks of bytes as a file that can only be read on."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest = iter(chunks), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


class _Header(tarfile.TarInfo):
    """A tar header that is believed only where it is whole: tarfile takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise  # the end, as it should be
        except tarfile.EmptyHeaderError:
            raise tarfile.ReadError("the archive ends without its end mark") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _HEADERS and self.size > HEADER_BYTES:  # read into memory whole, whatever size they state
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)


def tar_members(chunks: Iterable[bytes]) -> Iterator[Member]:
    """Members in order. Raises tarfile.ReadError where the archive is damaged or cut short."""
    file = io.BufferedReader(ChunkFile(chunks), CHUNK_BYTES)
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_Header, errorlevel=2) as archive:
        for member in archive:
            archive.members = []  # they would be kept for all of the archive
            if member.isdir():
                continue
            refused = _unsafe_name(member.name)
            if member.issym() or member.islnk():
                refused = refused or "link in an archive"
            elif not member.isreg():
                refused = refused or "device in an archive"
            elif member.issparse():
                refused = refused or "sparse file in an archive"
            yield Member(member.name, None if refused else archive.extractfile(member), refused)


def zip_members(file: BinaryIO, size: int, ratio: int, most: int) -> Iterator[Member]:
    """Members in the order of the directory, of an archive of `size` bytes that may unpack to `ratio` times as many.

    Raises zipfile.BadZipFile where the directory is damaged, RowRejected where it is too long.
    """
    if (directory_bytes := _directory_bytes(file, size)) > DIRECTORY_BYTES:
        raise RowRejected("archive of too many members", f"a directory of {directory_bytes:,} bytes")
    total_bytes = 0
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            mode = member.external_attr >> 16
            refused = _unsafe_name(member.orig_filename) or _unsafe_name(member.filename)
            if stat.S_ISLNK(mode):
                refused = refused or "link in an archive"
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                refused = refused or "device in an archive"
            elif member.header_offset < 0:
                refused = refused or DAMAGED_MEMBER
            elif member.flag_bits & 1:
                refused = refused or "encrypted member"
            elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # the others are unpacked a whole block at a time, however large
                refused = refused or "member packed by a rare method"
            elif member.file_size > ratio * member.compress_size + CAP_SLACK_BYTES:
                refused = refused or OVER_CAP
            elif total_bytes + member.file_size > min(most, ratio * size + CAP_SLACK_BYTES):  # members may overlap
                refused = refused or OVER_CAP
            if refused:
                yield Member(member.filename, None, refused)
                continue
            total_bytes += member.file_size
            try:
                content = archive.open(member)
            except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
                yield Member(member.filename, None, DAMAGED_MEMBER, str(error))
                continue
            with content:
                yield Member(member.filename, content)


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """What the end record states (PKWARE APPNOTE 4.3.14 and 4.3.16); 0 where there is none."""
    file.seek(max(0, size - (66 << 10)))
    tail = file.read()
    at, at_64 = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    stated = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if stated == 0xFFFFFFFF and at_64 >= 0:
        stated = int.from_bytes(tail[at_64 + 40 : at_64 + 48], "little")
    return stated


def _unsafe_name(name: str) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    absolute = name.startswith(("/", "\\")) or name[1:2] == ":"
    return "member outside the archive" if absolute or ".." in parts or "\x00" in name else ""
