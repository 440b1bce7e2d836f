"""File types, from a name and the first bytes."""

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UnsupportedMediaType
from gateway.filetypes import (
    DEFAULT_EXTENSIONS,
    checked,
    extension_for,
    extension_of,
    is_shown,
    kind_of,
    mime_of,
)


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x" * 50)
    return out.getvalue()


# The beginning of a real file of each kind that is accepted by default.
REAL = {
    "jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(40),
    "jpeg": b"\xff\xd8\xff\xe1\0\x10Exif\0" + bytes(40),
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40),
    "gif": b"GIF89a" + bytes(20),
    "webp": b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20),
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(9),
    "doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "docx": zipped("[Content_Types].xml", "word/document.xml"),
    "xlsx": zipped("[Content_Types].xml", "xl/workbook.xml"),
    "pptx": zipped("[Content_Types].xml", "ppt/presentation.xml"),
    "txt": "你好，世界 😀".encode(),
    "md": b"# Title\n<div align=center>x</div>",
    "csv": b"a,b\r\n1,2\r\n",
    "mp3": b"ID3\x03\0" + bytes(50),
    "wav": b"RIFF\x10\0\0\0WAVEfmt " + bytes(9),
    "ogg": b"OggS\0\x02" + bytes(30),
    "flac": b"fLaC\0" + bytes(9),
    "m4a": b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(9),
    "mp4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(9),
    "avi": b"RIFF\x10\0\0\0AVI LIST" + bytes(9),
    "mov": b"\0\0\0\x14ftypqt  \0\0\0\0" + bytes(9),
    "wmv": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(9),
    "zip": zipped("a.txt"),
    "rar": b"Rar!\x1a\x07\x01\0" + bytes(9),
    "7z": b"7z\xbc\xaf'\x1c" + bytes(9),
}
BAD = {
    "exe": b"MZ\x90\0\x03\0\0\0" + bytes(100),
    "elf": b"\x7fELF\x02\x01\x01" + bytes(60),
    "gz": b"\x1f\x8b\x08\0" + bytes(9),
}


def test_every_kind_that_is_taken_by_default_is_tested():
    assert set(REAL) == set(DEFAULT_EXTENSIONS)


@pytest.mark.parametrize("extension", REAL)
def test_a_real_file_is_taken_under_its_own_name_in_any_case(extension):
    assert checked(f"x.{extension}", REAL[extension], DEFAULT_EXTENSIONS) == extension
    assert checked(f"X.Y.{extension.upper()}", REAL[extension], DEFAULT_EXTENSIONS) == extension


@pytest.mark.parametrize("content", BAD)
@pytest.mark.parametrize("extension", DEFAULT_EXTENSIONS)
def test_no_name_lets_a_program_through(extension, content):
    with pytest.raises(UnsupportedMediaType):
        checked(f"x.{extension}", BAD[content], DEFAULT_EXTENSIONS)


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><html>", b"\n <HTML>", b"<script>x", b"#!/bin/sh\n"]
)
@pytest.mark.parametrize("extension", sorted(set(DEFAULT_EXTENSIONS) - {"txt", "md", "csv", "svg"}))
def test_no_page_and_no_script_passes_for_something_else(extension, page):
    with pytest.raises(UnsupportedMediaType):
        checked(f"x.{extension}", page, DEFAULT_EXTENSIONS)


@pytest.mark.parametrize(
    "text",
    ["你好".encode()[:-1], "你好".encode("gb18030"), "你好".encode("utf-16"), b"BM is how this begins",
     b"MZ, said he", b"%PDF is a format", b"ID3 tags", b"\x1b[31mred"],
)  # fmt: skip
def test_text_is_text_whatever_it_begins_with(text):
    assert checked("a.txt", text, DEFAULT_EXTENSIONS) == "txt"


@pytest.mark.parametrize(
    "name", ["a", "a.", ".png", "a.exe", "a.html", "a.png.exe", "a.p ng", "a.ｐｎｇ", "a.png\0"]
)
def test_other_names_are_refused_with_the_list_of_what_is_taken(name):
    with pytest.raises(UnsupportedMediaType, match="7z"):
        checked(name, b"x", DEFAULT_EXTENSIONS)


@pytest.mark.parametrize("extension", ["txt", "md", "csv", "svg", "png", "webp"])
def test_garbage_is_neither_text_nor_a_picture(extension):
    with pytest.raises(UnsupportedMediaType):
        checked(f"x.{extension}", b"\xca\xfe\xba\xbe\0\0\0\x34" + bytes(50), DEFAULT_EXTENSIONS)


def test_a_list_of_ones_own_decides():
    assert checked("a.json", b"{}", ["json"]) == "json"
    with pytest.raises(UnsupportedMediaType):
        checked("a.png", REAL["png"], ["json"])
    with pytest.raises(UnsupportedMediaType):
        checked("a.jpg", REAL["png"], ["jpg"])
    assert checked("a.docx", REAL["docx"], ["docx"]) == "docx"


@given(st.binary(max_size=9000), st.sampled_from(DEFAULT_EXTENSIONS))
def test_any_bytes_are_taken_or_refused(head, extension):
    try:
        kept = checked(f"x.{extension}", head, DEFAULT_EXTENSIONS)
    except UnsupportedMediaType:
        return
    assert kept in DEFAULT_EXTENSIONS


def test_types_do_not_depend_on_the_machine():
    assert mime_of("md") == "text/markdown"
    assert mime_of("mp3") == "audio/mpeg"
    assert mime_of("json") == "application/json"
    assert mime_of("nonsense") == "application/octet-stream"
    assert extension_for("image/jpeg; q=1") == "jpg"
    assert extension_for("audio/x-wav") == "wav"
    assert extension_for("nonsense") == ""
    assert extension_of("a.tar.GZ") == "gz"
    assert kind_of("image/png") == "image"
    assert kind_of("text/plain") == kind_of("") == kind_of("imagery/x") == "file"


@pytest.mark.parametrize("mime", ["image/svg+xml", "text/html", "application/xhtml+xml", "text/xml",
                                  "application/javascript", "text/markdown", "application/zip"])  # fmt: skip
def test_what_could_run_is_not_shown(mime):
    assert not is_shown(mime)
