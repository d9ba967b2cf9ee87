"""Google Cloud Storage for the tests: gcp-storage-emulator, with what it lacks for tests of concurrency and of retries.

    python -m tests.clouds.google PORT

Buckets, metadata, copies, rewrites and compositions are the emulator's. Added are preconditions, which it ignores,
generations in reads, listings by pages and of some fields, and uploads that can be taken up again.
"""

import io
import json
import re
import secrets
import threading
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from gcp_storage_emulator.exceptions import Conflict
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import Router
from gcp_storage_emulator.storage import Storage

from tests.clouds.faulty import Answer, Call, serve

TOKEN = "bed-71c5e0d4a7"  # What /token gives out; whoever comes without any is let in, as the emulator does.
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
_OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
_ONTO = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)")
_CONTENT_RANGE = re.compile(r"bytes (?:\*|(\d+)-\d+)/(?:\*|(\d+))")
_REASONS = {400: "invalid", 401: "required", 403: "forbidden", 404: "notFound", 412: "conditionNotMet", 503: "backendError"}


class _Memory(Storage):
    """The emulator's storage without its file, which is written anew with every object, and without soft deletion."""

    def __init__(self) -> None:
        super().__init__(use_memory_fs=True)
        self._store._norm = str  # As in the service, "a//b" is another name than "a/b".

    def _write_config_to_file(self) -> None:
        pass

    def create_file(
        self, bucket_name: str, file_name: str, content: bytes, file_obj: Any, file_id: str | None = None
    ) -> None:
        generation = file_obj["generation"]
        host = file_obj["mediaLink"].partition("/download/")[0]
        file_obj["mediaLink"] = f"{host}{_media(bucket_name, file_name)}?generation={generation}&alt=media"
        file_obj |= {"metageneration": "1", "etag": b64encode(generation.encode()).decode()}
        super().create_file(bucket_name, file_name, content, file_obj, file_id)

    def _object_path(self, bucket_name: str, file_name: str) -> str:
        return f"{bucket_name}/{file_name}"

    def _bucket_soft_delete_retention_seconds(self, bucket_name: str) -> int:
        return 0


@dataclass
class _Upload:
    """A resumable upload under way, or done."""

    bucket: str
    name: str
    metadata: dict[str, object]
    query: dict[str, str]
    content: bytearray = field(default_factory=bytearray)
    answer: Answer | None = None


class Google:
    def __init__(self) -> None:
        self._storage = _Memory()
        self._uploads: dict[str, _Upload] = {}
        self._lock = threading.Lock()

    def answer(self, call: Call) -> Answer:
        unknown = {name for name in call.query if name.startswith("if")} - {"ifGenerationMatch", "ifSourceGenerationMatch"}
        if unknown or call.path.startswith("/batch"):
            return self.error(501, f"The bed knows no {', '.join(unknown) or 'batches'}.")
        if call.path == "/token":
            return _json({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
        if call.headers.get("Authorization", f"Bearer {TOKEN}") != f"Bearer {TOKEN}":
            return self.error(401, "Invalid Credentials")
        with self._lock:
            if match := _UPLOAD.fullmatch(call.path):
                return self._upload(match[1], call)
            if call.method == "GET" and (match := _LIST.fullmatch(call.path)):
                return self._page(match[1], call.query)
            if match := _ONTO.fullmatch(call.path):
                source = {**call.query, "ifGenerationMatch": call.query.get("ifSourceGenerationMatch")}
                source["generation"] = call.query.get("sourceGeneration")
                return (
                    self._refusal(match[1], unquote(match[2]), source)
                    or self._refusal(match[3], unquote(match[4]), call.query)
                    or self._emulated(call)
                )
            if match := _OBJECT.fullmatch(call.path):
                bucket, name = match[1], unquote(match[2])
                if refusal := self._refusal(bucket, name, call.query):
                    return refusal
                if call.method == "GET" and (call.query.get("alt") == "media" or call.path.startswith("/download")):
                    return self._content(bucket, name, call.headers.get("Range"))
            return self._emulated(call)

    def error(self, status: int, message: str) -> Answer:
        reason = _REASONS.get(status, "error")
        errors = [{"domain": "global", "reason": reason, "message": message}]
        return _json({"error": {"code": status, "message": message, "errors": errors}}, status)

    def named(self, call: Call) -> str:
        if not call.path.startswith("/upload/") or "name" in call.query:
            return ""
        upload = self._uploads.get(call.query.get("upload_id", ""))
        match = re.search(rb'"name": ?"((?:[^"\\]|\\.)*)"', call.body)
        name = upload.name if upload else json.loads(b'"%s"' % match[1]) if match else ""
        return f"&name={quote(name, safe='')}"

    def _refusal(self, bucket: str, name: str, query: dict[str, str | None]) -> Answer | None:
        """What the service says where the object is not in the generation that was asked for."""
        if bucket not in self._storage.buckets:
            return self.error(404, "The specified bucket does not exist.")
        live = self._storage.objects.get(bucket, {}).get(name, {}).get("generation")
        if (wanted := query.get("generation")) and wanted != live:
            return self.error(404, f"No such object: {bucket}/{name}#{wanted}")
        if (wanted := query.get("ifGenerationMatch")) is not None and wanted != (live or "0"):
            return self.error(412, "At least one of the pre-conditions you specified did not hold.")
        return None

    def _emulated(self, call: Call) -> Answer:
        captured = _Captured(call, self._storage)
        Router(captured).handle(call.method)
        answer = Answer(captured.status, captured.headers_out, captured.wfile.getvalue())
        if answer.body:
            return answer
        return Answer(204, {}, b"") if answer.status < 300 else self.error(answer.status, f"No: {call.target}")

    def _content(self, bucket: str, name: str, wanted: str | None) -> Answer:
        resource = self._storage.objects.get(bucket, {}).get(name)
        if resource is None:
            return self.error(404, f"No such object: {bucket}/{name}")
        content = self._storage.get_file(bucket, name)
        headers = {
            "Content-Type": resource["contentType"] or "application/octet-stream",
            "ETag": resource["etag"],
            "X-Goog-Generation": resource["generation"],
            "X-Goog-Metageneration": resource["metageneration"],
            "X-Goog-Hash": f"crc32c={resource['crc32c']},md5={resource['md5Hash']}",
            "X-Goog-Stored-Content-Length": resource["size"],
            "X-Goog-Stored-Content-Encoding": "identity",
            **{f"X-Goog-Meta-{key}": value for key, value in (resource.get("metadata") or {}).items()},
        }
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or ""):
            first = int(match[1])
            if first >= len(content):
                return self.error(416, "The requested range cannot be satisfied.")
            part = content[first : int(match[2]) + 1 if match[2] else None]
            return Answer(206, {**headers, "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}, part)
        return Answer(200, headers, content)

    def _page(self, bucket: str, query: dict[str, str]) -> Answer:
        if refusal := self._refusal(bucket, "", {}):
            return refusal
        items, folders = self._storage.get_file_list(
            bucket, query.get("prefix"), query.get("delimiter"), query.get("matchGlob")
        )
        found = sorted(
            [(item["name"], item) for item in items] + [(folder, None) for folder in folders], key=lambda pair: pair[0]
        )
        after, first, end = query.get("pageToken", ""), query.get("startOffset", ""), query.get("endOffset")
        found = [(name, item) for name, item in found if name > after and name >= first and (not end or name < end)]
        limit = min(int(query.get("maxResults", 1000)), 1000)
        page = {
            "kind": "storage#objects",
            "items": [item for _, item in found[:limit] if item],
            "prefixes": [name for name, item in found[:limit] if not item],
        }
        if len(found) > limit:
            page["nextPageToken"] = found[limit - 1][0]
        if "fields" in query:
            page = {name: value for name, value in page.items() if re.search(rf"\b{name}\b", query["fields"])}
            if match := re.search(r"items\(([^)]*)\)", query["fields"]):
                kept = set(match[1].split(","))
                page["items"] = [{key: item[key] for key in item.keys() & kept} for item in page["items"]]
        return _json(page)

    def _upload(self, bucket: str, call: Call) -> Answer:
        query, kind = call.query, call.headers.get("Content-Type") or "application/octet-stream"
        if "upload_id" in query:
            return self._go_on(query["upload_id"], call)
        metadata: dict[str, object] = {"contentType": kind}
        content = call.body
        if query.get("uploadType") == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', kind)[1].encode()  # type: ignore[index]
            _, described, content, _ = (b"\r\n" + call.body).split(b"\r\n--" + boundary)
            head, _, content = content.partition(b"\r\n\r\n")
            metadata = {
                "contentType": head.partition(b":")[2].strip().decode(),
                **json.loads(described.partition(b"\r\n\r\n")[2]),
            }
        elif query.get("uploadType") == "resumable":
            metadata = {"contentType": call.headers.get("X-Upload-Content-Type"), **json.loads(call.body or b"{}")}
        name = str(query.get("name") or metadata.get("name"))
        if query.get("uploadType") != "resumable":
            return self._store(call, bucket, name, content, metadata, query)
        if refusal := self._refusal(bucket, name, query):
            return refusal
        upload_id = secrets.token_hex(16)
        self._uploads[upload_id] = _Upload(bucket, name, metadata, query)
        location = f"http://{call.headers['Host']}{call.path}?uploadType=resumable&upload_id={upload_id}"
        return Answer(200, {"Location": location}, b"")

    def _go_on(self, upload_id: str, call: Call) -> Answer:
        """A part of a resumable upload, of which the service may have the beginning; or the question how much it has."""
        upload = self._uploads.get(upload_id)
        if upload is None:
            return self.error(404, "No such upload.")
        if upload.answer:
            return upload.answer
        match = _CONTENT_RANGE.fullmatch(call.headers.get("Content-Range", f"bytes 0-0/{len(call.body)}"))
        if match is None:
            return self.error(400, "Content-Range cannot be read.")
        first, total = (None if group is None else int(group) for group in match.groups())
        if first is not None and first <= len(upload.content):
            upload.content += call.body[len(upload.content) - first :]
        if len(upload.content) != total:
            known = {"Range": f"bytes=0-{len(upload.content) - 1}"} if upload.content else {}
            return Answer(308, known, b"")
        if checksum := re.search(r"crc32c=([^,]+)", call.headers.get("X-Goog-Hash", "")):
            upload.metadata["crc32c"] = checksum[1]
        content = bytes(upload.content)
        answer = self._store(call, upload.bucket, upload.name, content, upload.metadata, upload.query)
        if answer.status == 200:
            upload.answer, upload.content = answer, bytearray()
        return answer

    def _store(
        self, call: Call, bucket: str, name: str, content: bytes, metadata: dict[str, object], query: dict[str, str]
    ) -> Answer:
        if refusal := self._refusal(bucket, name, query):
            return refusal
        resource = objects._make_object_resource(
            f"http://{call.headers['Host']}", bucket, name, None, str(len(content)), metadata
        )
        try:
            objects._checksums(content, resource)
        except Conflict as conflict:
            return self.error(400, str(conflict))
        self._storage.create_file(bucket, name, content, resource)
        return _json(resource)


class _Captured:
    """What the emulator takes for a connection."""

    def __init__(self, call: Call, storage: Storage) -> None:
        self.path, self.headers, self.rfile, self.storage = call.target, call.headers, io.BytesIO(call.body), storage
        self.server, self.server_address = self, ("127.0.0.1", 0)
        self.status, self.headers_out, self.wfile = 500, {}, io.BytesIO()

    def send_response(self, status: int, phrase: str) -> None:
        self.status = status

    def send_header(self, name: str, value: str) -> None:
        self.headers_out[name] = value

    def end_headers(self) -> None:
        pass


def _media(bucket: str, name: str) -> str:
    return f"/download/storage/v1/b/{bucket}/o/{quote(name, safe='')}"


def _json(value: object, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(value).encode())


if __name__ == "__main__":
    serve(Google())
