"""S3 and S3-compatible stores, by boto3: listing, reading a range of an object, writing one, and what errors mean.

Every read is pinned to the ETag of the listing (If-Match): an object that changes in between is an error, never a
mixture of two. Credentials come only from the standard chain (environment, profile, role).
"""

import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore import exceptions as aws
from botocore.config import Config

from pipelines.core.sections.ingest import S3
from unetpp.errors import UserError

# Of one request; botocore waits up to 1, 2, 4 and 8 seconds in between (mode "standard").
ATTEMPTS = 5
CHUNK = 2**18
# What breaks a connection while a body is read. botocore retries a request, but never its body.
BROKEN = (aws.IncompleteReadError, aws.ResponseStreamingError, aws.ReadTimeoutError, aws.ConnectionClosedError)
# Of the operations that read; the others write, a large object with several operations.
PERMISSIONS = {"ListObjectsV2": "s3:ListBucket", "GetObject": "s3:GetObject", "HeadObject": "s3:GetObject"}
PERMISSIONS |= {"DeleteObject": "s3:DeleteObject"}
DENIED = {"s3:PutObject": "cannot be written: access denied", "s3:DeleteObject": "cannot be removed: access denied"}
OF_ONE = {"AccessDenied", "InvalidObjectState", "NoSuchKey", "PreconditionFailed", "412"}  # of `ObjectError`
CHECKSUMS = "set ingest.s3.checksums=when_required"


@dataclass(frozen=True)
class Object:
    """An object as it was listed. `etag` changes with its content."""

    key: str
    size: int
    etag: str
    modified: float = 0  # seconds since 1970, by the store's clock


@dataclass(frozen=True)
class Facts:
    """What the response to a read says about the object: its version, and its MD5 if the ETag is one."""

    version_id: str | None
    md5: str | None


class ObjectError(UserError):
    """A fault of one object, not of the store: others may be readable."""


class Store:
    """The objects under `s3://bucket/prefix`. Thread-safe.

    Args:
        setting: the key of params.yaml with the location, for error messages.
    """

    def __init__(self, params: S3, location: str, num_workers: int, setting: str = "ingest.location"):
        self.location = location
        self.setting = setting
        self.params = params
        self.bucket, _, prefix = location.removeprefix("s3://").partition("/")
        self.prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        # Otherwise each Ray process logs their source.
        logging.getLogger("botocore.credentials").setLevel("WARNING")
        self._payer = {"RequestPayer": "requester"} if params.requester_pays else {}
        config = Config(
            signature_version=UNSIGNED if params.anonymous else None,
            max_pool_connections=num_workers,
            connect_timeout=10,
            read_timeout=60,
            **_settings(params),
        )
        with self.explained():
            session = boto3.Session(profile_name=params.profile, region_name=params.region)
            self._client = session.client("s3", endpoint_url=params.endpoint, config=config)

    def list(self) -> Iterator[Object]:
        """All objects under the prefix, page by page; without the empty objects that represent folders.

        Raises:
            UserError: no such bucket, no access, no credentials, no answer.
        """
        with self.explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix, **self._payer
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    if not (item["Key"].endswith("/") and item["Size"] == 0):
                        yield _object(item["Key"], item["Size"], item)

    def find(self, key: str) -> Object | None:
        """An object by its key, or None.

        Raises:
            UserError: no access, no credentials, no answer.
        """
        with self.explained(key):
            try:
                answer = self._client.head_object(Bucket=self.bucket, Key=key, **self._payer)
            except aws.ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    return None
                raise
        return _object(key, answer["ContentLength"], answer)

    def write(self, key: str, content: bytes | memoryview | Path) -> None:
        """Write bytes, or a file, as an object, in parts if it is large; others see it complete or not at all.

        Raises:
            UserError: no access, no credentials, no such bucket, no answer.
        """
        with self.explained(key), content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
            self._client.upload_fileobj(file, self.bucket, key, ExtraArgs=self._payer)

    def delete(self, key: str) -> None:
        """Delete an object, if it exists.

        Raises:
            UserError: no access, no credentials, no such bucket, no answer.
        """
        with self.explained(key):
            self._client.delete_object(Bucket=self.bucket, Key=key, **self._payer)

    def read(self, source: Object, start: int, stop: int) -> tuple[Facts, Iterator[bytes]]:
        """Bytes `start` to `stop` of an object, in pieces; a broken connection resumes where it broke.

        Raises:
            UserError: the object changed, is gone or shorter than listed, or cannot be read.
        """
        answer = self._get(source, start, stop)
        plain = answer.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in answer
        # The ETag of an object that was uploaded in parts contains a dash, and is not an MD5.
        is_md5 = plain and len(source.etag) == 32 and self.params.checksums == "when_supported"
        version = answer.get("VersionId")
        facts = Facts(None if version == "null" else version, source.etag.lower() if is_md5 else None)
        return facts, self._pieces(source, start, stop, answer)

    def _get(self, source: Object, start: int, stop: int) -> dict:
        # A whole object is requested without a range: botocore then compares the store's own checksum.
        part = {} if (start, stop) == (0, source.size) else {"Range": f"bytes={start}-{stop - 1}"}
        with self.explained(source.key):
            answer = self._client.get_object(
                Bucket=self.bucket, Key=source.key, IfMatch=f'"{source.etag}"', **part, **self._payer
            )
        if answer["ContentLength"] != stop - start:
            answer["Body"].close()
            raise ObjectError(
                f"{self.name(source.key)}: the store sends {answer['ContentLength']} bytes, the listing says "
                f"{stop - start} (bytes {start} to {stop} of {source.size}); is it truncated? Upload it again"
            )
        return answer

    def _pieces(self, source: Object, start: int, stop: int, answer: dict) -> Iterator[bytes]:
        broken = 0
        while True:
            try:
                with self.explained(source.key, retried=BROKEN):
                    while piece := answer["Body"].read(CHUNK):
                        start += len(piece)
                        yield piece
                if start == stop:
                    return
                cause = "the body ended early"
            except BROKEN as error:
                cause = str(error)
            finally:
                answer["Body"].close()
            broken += 1
            if broken == ATTEMPTS:
                raise ObjectError(
                    f"{self.name(source.key)}: the connection broke {broken} times, last after {start} of {stop} bytes "
                    f"({cause}); expected the whole object: rerun the command: it resumes from here"
                )
            time.sleep(min(2**broken / 4, 5))
            if start < stop:
                answer = self._get(source, start, stop)

    def name(self, key: str | None) -> str:
        """The address of an object, or of them all."""
        return self.location if key is None else f"s3://{self.bucket}/{key}"

    @contextmanager
    def explained(self, key: str | None = None, retried: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Turn what boto raises into a `UserError` that names the bucket or the object; `retried` passes."""
        try:
            yield
        except (*retried, UserError):
            raise
        except (aws.BotoCoreError, aws.ClientError, ValueError) as error:
            kind = ObjectError if key is not None and _code(error) in OF_ONE else UserError
            raise kind(f"{self.name(key)}: {self._explain(error)}") from None

    def _explain(self, error: Exception) -> str:
        """What happened and what to do about it."""
        if isinstance(error, aws.ClientError):
            return self._explain_answer(error)
        if isinstance(error, aws.FlexibleChecksumError):
            return f"the checksum does not match the bytes ({error}); rerun the command, or if it repeats, {CHECKSUMS}"
        if isinstance(error, aws.ProfileNotFound):
            return f"no profile {self.params.profile!r} in ~/.aws; correct ingest.s3.profile"
        if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
            return (
                "found no complete credentials; expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "ingest.s3.profile or a machine's role, or ingest.s3.anonymous=true for a public bucket"
            )
        if isinstance(error, aws.SSOError | aws.TokenRetrievalError | aws.CredentialRetrievalError | aws.LoginError):
            return f"the credentials cannot be renewed ({error}); log in again (aws sso login, aws login)"
        if isinstance(error, aws.HTTPClientError | aws.ConnectionError | aws.NoRegionError):
            return (
                f"{self.params.endpoint or 'AWS'} cannot be reached ({error}); expected a store that answers: correct "
                "ingest.s3.endpoint or ingest.s3.region, or try again"
            )
        return f"{error}; correct {self.setting} or ingest.s3"

    def _explain_answer(self, error: aws.ClientError) -> str:
        answer: dict = error.response
        code, message = answer["Error"].get("Code", ""), answer["Error"].get("Message", "")
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        said = f"{status} {code}: {message}".strip(": ")
        action = PERMISSIONS.get(error.operation_name, "s3:PutObject")
        if "checksum" in message.lower() or "checksum" in code.lower() or code == "NotImplemented":
            return f"the store rejects the request ({said}); older stores lack AWS's newer checksums: {CHECKSUMS}"
        if code in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
            return f"the credentials have expired ({said}); renew them (aws sso login, a new session token)"
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"):
            return f"the store does not accept the credentials ({said}); check the profile or AWS_* variables"
        if code == "RequestTimeTooSkewed":
            return f"this machine's clock is wrong ({said}); set it"
        if code == "InvalidObjectState":
            return f"the object is in archive storage ({said}); restore it first, or move it out of the prefix"
        if code == "NoSuchBucket":
            return f"no bucket {self.bucket!r} there ({said}); correct {self.setting}, or ingest.s3.endpoint"
        if code in ("PreconditionFailed", "412") or status == 412:
            return "changed while it was downloaded; rerun the command when nobody is writing there"
        if status == 404:
            return f"is listed but gone ({said}); rerun the command when nobody is writing there"
        if status in (301, 307) or code in ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
            region = answer["Error"].get("Region") or "the bucket's own"
            return f"wrong region ({said}); set ingest.s3.region to {region}"
        if status == 403:
            denied = DENIED.get(action, "cannot be read: access denied")
            return (
                f"{denied} ({said}); expected the permission {action}: grant it, or use another "
                "ingest.s3.profile (ingest.s3.requester_pays=true if the reader pays)"
            )
        if status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling"):
            return f"the store fails, {ATTEMPTS} times in a row ({said}); rerun the command later"
        return f"the store refuses the request ({said}); check {self.setting} and ingest.s3"


def _object(key: str, size: int, answer: dict) -> Object:
    return Object(key, size, answer["ETag"].strip('"'), answer["LastModified"].timestamp())


def _code(error: Exception) -> str | None:
    return error.response["Error"].get("Code") if isinstance(error, aws.ClientError) else None


def _settings(params: S3) -> dict[str, Any]:
    """Settings of every client."""
    return {
        "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        "request_checksum_calculation": params.checksums,
        "response_checksum_validation": params.checksums,
    }
