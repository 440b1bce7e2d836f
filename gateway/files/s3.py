"""Files in a bucket: S3 itself, or a compatible service (MinIO, OSS, COS, R2)."""

import asyncio
import contextlib
import io
import logging
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from gateway.config.models import S3
from gateway.errors import GatewayError, StorageFull, StorageUnavailable
from gateway.files.store import BLOCK, Chunks
from gateway.language.sentences import say
from gateway.protocol.exchange import Source

PART = 5 * 1024 * 1024  # bytes; S3's minimum for all parts but the last
_CONNECT_S, _READ_S = 5, 30
_CALL_S = 60.0
_ABORT_S = 10.0

_FULL = {
    "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage",
    "507",
}  # fmt: skip
_MISSING = {"NoSuchKey", "404", "NotFound"}
_REFUSED = {
    "NoSuchBucket": say("There is no such bucket as the one that is configured"),
    "AccessDenied": say("The bucket does not let the gateway in"),
    "403": say("The bucket does not let the gateway in"),
    "InvalidAccessKeyId": say("The access key is not known there"),
    "SignatureDoesNotMatch": say("The secret key is wrong"),
}


class S3Files:
    """`public_base` is a URL at which the bucket can be read without signing, or ""."""

    def __init__(self, s3: S3, bucket: str, prefix: str, public_base: str, link_s: float) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._public_base = public_base.rstrip("/")
        self._link_s = int(link_s)
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._aborting: set[asyncio.Task[None]] = set()
        self._keeping: dict[str, asyncio.Task[dict[str, Any]]] = {}  # by key

    @property
    def has_public_links(self) -> bool:
        """AWS can be reached from everywhere; a private endpoint perhaps not."""
        return bool(self._public_base) or not self._s3.endpoint

    async def open(self) -> None:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import get_session  # takes half a second: import only if needed

        for name in ("botocore", "aiobotocore"):
            logging.getLogger(name).setLevel(logging.INFO)  # below that they log signatures
        s3 = self._s3
        style = s3.addressing if s3.addressing != "auto" else "path" if s3.endpoint else "auto"
        config = AioConfig(
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            max_pool_connections=200,
            retries={"total_max_attempts": 2},
            signature_version="s3v4",
            s3={"addressing_style": style},
            # Only AWS supports checksums in trailers; other services refuse them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._client = await self._stack.enter_async_context(
            get_session().create_client(
                "s3",
                endpoint_url=s3.endpoint,
                region_name=s3.region or "us-east-1",
                aws_access_key_id=s3.access_key.reveal() or None,
                aws_secret_access_key=s3.secret_key.reveal() or None,
                config=config,
            )
        )

    async def close(self) -> None:
        if under_way := [*self._aborting, *self._keeping.values()]:
            await asyncio.wait(under_way, timeout=_ABORT_S)
        await self._stack.aclose()

    async def _call(self, name: str, **how: Any) -> dict[str, Any]:
        """One request. While it waits for `100 Continue` no other timeout applies."""
        with _translated():
            async with asyncio.timeout(_CALL_S):
                call = getattr(self._client, name)
                answer: dict[str, Any] = await call(Bucket=self._bucket, **how)
        return answer

    async def _keep(self, call: str, key: str, **how: Any) -> None:
        """The request that creates `key`. It goes on if its caller is cancelled: a server that has
        the whole body would go on too, and might finish only after a deletion."""
        task = asyncio.get_running_loop().create_task(self._call(call, Key=key, **how))
        self._keeping[key] = task
        task.add_done_callback(partial(self._kept, key))
        await asyncio.shield(task)

    def _kept(self, key: str, task: asyncio.Task[dict[str, Any]]) -> None:
        self._keeping.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieve it, even if no caller waits any more

    async def put(self, name: str, chunks: Chunks, mime: str, disposition: str) -> int:
        """Upload in one request if the file is small, else in parts."""
        key = self._prefix + name
        how = {"ContentType": mime, "ContentDisposition": disposition}
        if self._s3.acl:
            how["ACL"] = self._s3.acl
        parts = _Parts(chunks)
        part = await parts.next()
        if parts.is_over:
            await self._keep("put_object", key, Body=part, **how)
            return parts.size
        begun = await self._call("create_multipart_upload", Key=key, **how)
        upload = begun["UploadId"]
        at = {"Key": key, "UploadId": upload}
        try:
            etags: list[str] = []
            while part.size:
                number = len(etags) + 1
                sent = await self._call("upload_part", PartNumber=number, Body=part, **at)
                etags.append(sent["ETag"])
                part = _Part()  # free its memory before the next part is read
                part = await parts.next()
            whole = {"Parts": [{"ETag": e, "PartNumber": i} for i, e in enumerate(etags, 1)]}
            last = "complete_multipart_upload"
            await self._keep(last, key, MultipartUpload=whole, UploadId=upload)
        except BaseException:
            self._abort(at)
            raise
        return parts.size

    def _abort(self, at: dict[str, str]) -> None:
        """Abort in the background, since the caller may be gone. A later sweep removes what is
        left."""

        async def abort() -> None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_ABORT_S):
                    await self._call("abort_multipart_upload", **at)

        task = asyncio.get_running_loop().create_task(abort())
        self._aborting.add(task)
        task.add_done_callback(self._aborting.discard)

    async def write(self, name: str, data: bytes) -> None:
        key = self._prefix + name
        await self._keep("put_object", key, Body=data, ContentType="application/json")

    async def read(self, name: str) -> bytes:
        async with self.source(name) as source:
            return b"".join([block async for block in source.chunks])

    @asynccontextmanager
    async def source(self, name: str) -> AsyncIterator[Source]:
        answer = await self._call("get_object", Key=self._prefix + name)
        async with answer["Body"] as body:
            size = int(answer["ContentLength"])
            yield Source(
                name.rpartition("/")[2], answer.get("ContentType", ""), size, _blocks(body)
            )

    async def delete(self, names: Iterable[str]) -> None:
        for name in names:  # one by one: not all services support the bulk call
            key = self._prefix + name
            if keeping := self._keeping.get(key):
                await asyncio.wait([keeping])
            await self._call("delete_object", Key=key)

    async def days(self) -> list[str]:
        folders = [f"{self._prefix}uploads/"]
        for _ in range(3):  # years, months, days
            folders = [below for folder in folders for below in await self._folders(folder)]
        start = len(f"{self._prefix}uploads/")
        return sorted((folder[start:].rstrip("/") for folder in folders), reverse=True)

    async def _folders(self, prefix: str) -> list[str]:
        return [
            str(entry["Prefix"])
            async for page in self._pages("list_objects_v2", Prefix=prefix, Delimiter="/")
            for entry in page.get("CommonPrefixes", ())
        ]

    async def names(self, day: str, begins: str = "") -> list[str]:
        prefix = f"{self._prefix}uploads/{day}/{begins}"
        return [
            str(entry["Key"]).removeprefix(self._prefix)
            async for page in self._pages("list_objects_v2", Prefix=prefix)
            for entry in page.get("Contents", ())
        ]

    async def sweep(self, older_than_s: float) -> None:
        prefix = f"{self._prefix}uploads/"
        async for page in self._pages("list_multipart_uploads", Prefix=prefix):
            for begun in page.get("Uploads", ()):
                if time.time() - begun["Initiated"].timestamp() > older_than_s:
                    at = {"Key": begun["Key"], "UploadId": begun["UploadId"]}
                    await self._call("abort_multipart_upload", **at)

    async def _pages(self, call: str, **how: str) -> AsyncIterator[dict[str, Any]]:
        with _translated():
            async for page in self._client.get_paginator(call).paginate(Bucket=self._bucket, **how):
                yield page

    async def link(self, name: str) -> str:
        if self._public_base:
            return f"{self._public_base}/{quote(self._prefix + name)}"
        what = {"Bucket": self._bucket, "Key": self._prefix + name}
        with _translated():
            url = await self._client.generate_presigned_url(
                "get_object", Params=what, ExpiresIn=self._link_s
            )
        return str(url)

    def name_in(self, url: str) -> str:
        path = urlsplit(url).path
        for base in filter(None, (self._public_base, self._s3.endpoint)):
            if url.startswith(f"{base.rstrip('/')}/"):
                below = unquote(path).removeprefix(unquote(urlsplit(base).path).rstrip("/") + "/")
                if base != self._public_base:
                    below = below.removeprefix(f"{self._bucket}/")
                if below.startswith(f"{self._prefix}uploads/"):
                    return below.removeprefix(self._prefix)
        return ""

    async def check(self) -> None:
        try:
            await self._call("head_bucket")
        except FileNotFoundError:
            raise _refused("NoSuchBucket") from None


class _Part(io.RawIOBase):
    """Chunks as a file object, without joining them: that would take the memory twice."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._ends = [0]
        self._at = 0

    def add(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._ends.append(self.size + len(chunk))

    @property
    def size(self) -> int:
        return self._ends[-1]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self.size:
            return 0
        i = bisect_right(self._ends, self._at) - 1
        start = self._at - self._ends[i]
        piece = memoryview(self._chunks[i])[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class _Parts:
    """Chunks collected into parts of PART bytes."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._left = b""
        self.size = 0
        self.is_over = False

    async def next(self) -> _Part:
        """The next part. The last one may be shorter than PART; after it parts are empty."""
        part = _Part()
        while (room := PART - part.size) and not self.is_over:
            if not self._left:
                try:
                    self._left = await anext(self._chunks)
                except StopAsyncIteration:
                    self.is_over = True
                    break
                self.size += len(self._left)
            part.add(self._left[:room])
            self._left = self._left[room:]
        return part


async def _blocks(body: Any) -> AsyncIterator[bytes]:
    with _translated():
        while block := await body.read(BLOCK):
            yield block


@contextmanager
def _translated() -> Iterator[None]:
    """Translate botocore's errors: the bucket does not exist, is full, or denies access."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _explain(error.response) from error
    except (BotoCoreError, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise StorageUnavailable from error


def _explain(response: dict[str, Any]) -> GatewayError | FileNotFoundError:
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in _MISSING:
        return FileNotFoundError(code)
    if code in _FULL or status == 507:
        return StorageFull()
    if code in _REFUSED:
        return _refused(code)
    return StorageUnavailable()


def _refused(code: str) -> StorageUnavailable:
    return StorageUnavailable(
        say("{problem}; the operator must see to the S3 settings.", problem=_REFUSED[code])
    )
