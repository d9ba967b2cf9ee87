"""Opens object storage by the scheme of a URI."""

from collections.abc import Callable

from job.storage.bucket.objects import SCHEMES, Objects, parts_of, split_object


def _google(uri: str, connections: int) -> Objects:
    from job.storage.bucket.google import GoogleObjects

    return GoogleObjects(uri, connections)


def _s3(uri: str, connections: int) -> Objects:
    from job.storage.bucket.s3 import S3Objects

    return S3Objects(uri, connections)


_OPENED_BY: dict[str, Callable[[str, int], Objects]] = dict(zip(SCHEMES, (_google, _s3), strict=True))


def open_objects(uri: str, *, connections: int = 32) -> Objects:
    """The objects below SCHEME://BUCKET/PREFIX; nothing is asked of the service yet.

    Raises:
        UsageError: for an unknown scheme, no bucket, or what may be credentials in the URI, which are not repeated.
    """
    scheme, bucket, prefix = parts_of(uri)
    return _OPENED_BY[scheme](f"{scheme}://{bucket}/{prefix}".rstrip("/"), connections)


def is_there(uri: str) -> bool:
    """Whether there is such an object. Raises: UsageError, where there is not even the bucket, or no permission."""
    folder, name = split_object(uri)
    objects = open_objects(folder)
    if objects.find(name):
        return True
    next(objects.list(name), None)  # A bucket that is missing is told from an object that is missing only here.
    return False
