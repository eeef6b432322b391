"""Section ingest of params.yaml."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.core.sections.section import NonNegativeInt, PositiveInt, Section


class Synthetic(Section):
    num_images: PositiveInt
    size_px: Annotated[int, Field(ge=32, le=4096)]
    seed: NonNegativeInt
    masks: Literal["instances", "classes", "labels", "partial"]


class S3(Section):
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/@\s]+/?$")] | None
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None
    profile: str | None
    anonymous: bool
    requester_pays: bool
    checksums: Literal["when_supported", "when_required"]

    @model_validator(mode="after")
    def _one_identity(self):
        if self.anonymous and (self.profile or self.requester_pays):
            other = "profile" if self.profile else "requester_pays"
            raise ValueError(f"anonymous requests have no identity, and {other} needs one: set one of the two")
        return self


class Layout(Section):
    """Names of images and masks from the root on, without suffixes (`pipelines.storage.naming.templates`)."""

    images: str
    masks: str

    @model_validator(mode="after")
    def _has_ids(self):
        for what, template in (("images", self.images), ("masks", self.masks)):
            names = re.findall(r"\{([^}]*)\}", template)
            if "id" not in names or set(names) - {"id", "split", "folder"} or names.count("folder") > 1:
                raise ValueError(
                    f"{what} must have {{id}}, {{split}} where folders or names say train, val and test, and "
                    f"{{folder}} for any other folder, such as '{{split}}/{{folder}}/{what}/{{id}}', found {template!r}"
                )
        for name in ("{split}", "{folder}"):
            if (name in self.images) != (name in self.masks):
                raise ValueError(f"expected {name} in both of images and masks, or in neither")
        return self


class Ingest(Section):
    kind: Literal["synthetic", "folder", "zip", "tar", "http", "s3"]
    location: str | None
    links_to: tuple[str, ...]
    layout: Layout | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    num_workers: Annotated[int, Field(ge=1, le=256)]
    s3: S3
    synthetic: Synthetic

    @model_validator(mode="after")
    def _located(self):
        if self.kind == "synthetic":
            return self
        location = self.location or ""
        scheme = location.partition("://")[0].lower() if "://" in location else None
        if self.kind == "s3" and not re.fullmatch(r"s3://[^/]+(/.*)?", location):
            raise ValueError(f"kind is s3, so ingest.location must be s3://bucket/prefix, found {self.location!r}")
        if self.kind == "http" and not re.fullmatch(r"https?://[^/]+/.*", location):
            raise ValueError(
                f"kind is http, so ingest.location must be the address of a zip or tar, http(s)://..., "
                f"found {self.location!r}"
            )
        if self.kind in ("folder", "zip", "tar"):
            if not location:
                raise ValueError(f"kind is {self.kind}, so ingest.location must be the path of that {self.kind}")
            if scheme in ("http", "https", "s3"):
                raise ValueError(
                    f"kind is {self.kind}, so ingest.location must be a path, found {location!r}: "
                    f"set ingest.kind={'s3' if scheme == 's3' else 'http'}"
                )
        if self.sha256 and self.kind in ("folder", "s3"):
            raise ValueError(f"sha256 is of an archive, and kind is {self.kind}: set ingest.sha256 to null")
        return self
