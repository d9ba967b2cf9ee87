"""Opening object storage by the scheme of a URI."""

from job.storage.bucket.objects import Objects, parts_of, split_object


def open_objects(uri: str, *, connections: int = 32) -> Objects:
    """Return the objects below SCHEME://BUCKET/PREFIX. Nothing is sent to the service yet.

    Raises:
        UsageError: if the scheme is unknown, there is no bucket, or the URI may contain credentials, which are not shown.
    """
    scheme, bucket, prefix = parts_of(uri)
    uri = f"{scheme}://{bucket}/{prefix}".rstrip("/")
    if scheme == "gs":
        from job.storage.bucket.google import GoogleObjects

        return GoogleObjects(uri, connections)
    from job.storage.bucket.s3 import S3Objects

    return S3Objects(uri, connections)


def is_there(uri: str) -> bool:
    """Return whether there is such an object. Raises: UsageError, if there is no bucket or no permission."""
    folder, name = split_object(uri)
    objects = open_objects(folder)
    if objects.find(name):
        return True
    next(objects.list(name), None)  # It raises if the bucket is missing, too.
    return False
