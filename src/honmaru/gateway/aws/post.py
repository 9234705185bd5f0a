"""S3's browser forms: `POST /bucket` with multipart/form-data, a signed policy and one file, as a PutObject.

Invariants:
- Before the signature of the policy verified, no more than the form's fields is read (`forms.MAX_FIELDS_BYTES`).
- The form's signer is the caller: the object passes IAM, the guard and the ledger like any PutObject of theirs.
- The policy is asked before anything is stored; the size that it allows is checked while the file streams.

Source: S3 API, "POST object", "Authenticating requests: browser-based uploads using POST (V4)".
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

from honmaru.api import xml_codec
from honmaru.api.misreads import Misread
from honmaru.api.plans import WireRequest
from honmaru.core.errors import ValidationFault
from honmaru.gateway.aws import signatures
from honmaru.gateway.aws.forms import FilePayload, FormHead, boundary_of
from honmaru.gateway.aws.post_policy import SizeRange, read_policy
from honmaru.gateway.aws.signatures import SignatureFault
from honmaru.gateway.aws.wire import AwsWire
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.reading import presented, read_headers, read_query, too_slow
from honmaru.gateway.uploads import Upload, limited

_T = TypeVar("_T")
_HEADERS = frozenset({"cache-control", "content-disposition", "content-encoding", "content-type", "expires"})
"""Fields that are headers of PutObject; so are all of x-amz-*, but for those of the signature."""

_SIGNATURE = ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature")
_SPELLED = {"x-amz-algorithm": "X-Amz-Algorithm", "x-amz-credential": "X-Amz-Credential", "x-amz-date": "X-Amz-Date"}


class PostWire(AwsWire):
    """See the module."""

    def owns(self, exchange: Exchange) -> bool:
        """A POST of multipart/form-data. OpenAI's dialect, which has such too, is asked before this one."""
        return exchange.method == "POST" and any(
            name == b"content-type" and value[:19].lower() == b"multipart/form-data"
            for name, value in exchange.scope["headers"]
        )

    def identify(self, exchange: Exchange) -> None:
        exchange.operation_name = "PostObject"
        exchange.service = self._pipeline.models["s3"]
        read_headers(exchange)
        read_query(exchange)
        path = exchange.host_path = self._router.bucket_path(exchange.raw_path, exchange.headers.get("host", ""))
        bucket, _, rest = path[1:].partition("/")
        if not bucket or rest:
            raise ValidationFault(
                "The specified method is not allowed against this resource.",
                code="MethodNotAllowed",
                members={"Method": "POST", "ResourceType": "OBJECT"},
            )
        exchange.labels = {"Bucket": bucket}
        exchange.operation = exchange.service.operations["PutObject"]

    def claim(self, exchange: Exchange) -> None:
        """Nothing yet: the form says who signed it."""

    async def receive(self, exchange: Exchange) -> None:
        """The fields of the form, up to its file."""
        head = exchange.form = FormHead(boundary_of(exchange.headers["content-type"]))
        pull = exchange.pull = self._pull(exchange)
        try:
            async with asyncio.timeout(self._pipeline.limits.body_s):
                while True:
                    piece = await pull()
                    if not piece:
                        head.finish()
                    if head.feed(piece):
                        return
        except TimeoutError:
            raise too_slow(exchange) from None

    def verify(self, exchange: Exchange) -> None:
        """Who signed the policy, and what it says of the form. Raises AuthenticationFailed, AccessDenied."""
        head = _known(exchange.form)
        fields = head.fields
        policy = self._authenticate(exchange, fields)
        key = fields.get("key")
        if key is None:
            raise _missing("key")
        if head.filename is not None:
            key = key.replace("${filename}", head.filename.replace("\\", "/").rpartition("/")[2])
        exchange.labels = {**exchange.labels, "Key": key}
        size = policy_size(policy, {**fields, "key": key}, exchange)
        self._open(exchange, head, size)

    def _authenticate(self, exchange: Exchange, fields: Mapping[str, str]) -> str:
        """The policy text, whose signature verified."""
        if "awsaccesskeyid" in fields:
            raise SignatureFault("legacy", signatures.LEGACY)
        if "policy" not in fields and not any(name in fields for name in _SIGNATURE):
            raise SignatureFault("missing", "Access Denied")
        for name in ("policy", *_SIGNATURE):
            if name not in fields:
                raise _missing(_SPELLED.get(name, "X-Amz-Signature" if name == "x-amz-signature" else name))
        if fields["x-amz-algorithm"] != signatures.ALGORITHM:
            raise SignatureFault("query", f"X-Amz-Algorithm only supports {signatures.ALGORITHM}")
        claim = exchange.claim = signatures.form_claim(
            fields["x-amz-credential"],
            fields["x-amz-date"],
            fields["x-amz-signature"],
            fields.get("x-amz-security-token"),
        )
        regions = frozenset({self._pipeline.region})
        signatures.check_claim(claim, now=exchange.at, regions=regions, headers={"host": ""})
        if claim.service != "s3":
            raise SignatureFault("scope", "Credential should be scoped to the service 's3'")
        credential = self._pipeline.identity.credential(claim.access_key_id, claim.token)
        key = self._keys.key(credential.secret_access_key, claim.date, claim.region, claim.service)
        policy = fields["policy"]
        if not policy.isascii() or not hmac.compare_digest(signatures.sign(key, policy), claim.signature):
            raise SignatureFault(
                "mismatch",
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
            )
        exchange.session = presented(exchange, credential.session)
        return policy

    def _open(self, exchange: Exchange, head: FormHead, size: SizeRange | None) -> None:
        pull = _known(exchange.pull)
        first = [head.rest] if head.rest else []

        async def rest() -> bytes:
            return first.pop() if first else await pull()

        limit = self._pipeline.limits.upload_bytes
        payload = FilePayload(head.delimiter, size)
        bounded = limited(rest, limit + (1 << 20), "EntityTooLarge")
        exchange.upload = Upload(bounded, payload, None, asyncio.get_running_loop())

    def parse(self, exchange: Exchange) -> None:
        """The members of PutObject that the form states. Raises ValidationFault."""
        operation, fields = _known(exchange.operation), _known(exchange.form).fields
        headers = {
            name: value
            for name, value in fields.items()
            if name in _HEADERS or (name.startswith("x-amz-") and name not in (*_SIGNATURE, "x-amz-security-token"))
        }
        if "acl" in fields:
            headers["x-amz-acl"] = fields["acl"]
        if "tagging" in fields:
            headers["x-amz-tagging"] = _tagging(fields["tagging"])
        plan = operation.plan_for("rest-xml")
        members = plan.read(WireRequest({}, headers, exchange.labels, b"", exchange.upload))
        plan.check(members)
        exchange.members = members

    def serialise(self, exchange: Exchange) -> None:
        """PutObject's headers under the status that the form asks for."""
        super().serialise(exchange)
        answer, fields, result = _known(exchange.answer), _known(exchange.form).fields, _known(exchange.result)
        bucket, key, etag = exchange.labels["Bucket"], exchange.labels["Key"], str(result.get("ETag", ""))
        place = f"{'https' if exchange.secure else 'http'}://{exchange.headers.get('host', '')}"
        location = f"{place}{exchange.raw_path.rstrip('/')}/{quote(key, safe='')}"
        redirect = _redirect(fields.get("success_action_redirect") or fields.get("redirect"))
        wanted = fields.get("success_action_status")
        if redirect is not None:
            answer.status = 303
            query = urlencode({"bucket": bucket, "key": key, "etag": etag})
            location = redirect + ("&" if "?" in redirect else "?") + query
        elif wanted == "201":
            answer.status = 201
            answer.headers.append((b"content-type", b"application/xml"))
            escape = xml_codec.escape
            answer.body = (
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                f"<PostResponse><Location>{escape(location)}</Location><Bucket>{escape(bucket)}</Bucket>"
                f"<Key>{escape(key)}</Key><ETag>{escape(etag)}</ETag></PostResponse>"
            ).encode()
        else:
            answer.status = 200 if wanted == "200" else 204
        answer.headers.append((b"location", location.encode("latin-1", "replace")))


def policy_size(policy: str, fields: Mapping[str, str], exchange: Exchange) -> SizeRange | None:
    """The range of sizes that a form's policy allows; the policy is otherwise met. Raises as `post_policy` does."""
    try:
        document = base64.b64decode(policy, validate=True)
    except (binascii.Error, ValueError):
        raise ValidationFault("Invalid Policy: Invalid JSON.", code="InvalidPolicyDocument") from None
    return read_policy(document).check(fields, exchange.labels["Bucket"], exchange.at)


def _missing(name: str) -> ValidationFault:
    return ValidationFault(
        f"Bucket POST must contain a field named '{name}'.  If it is specified, please check the order of the fields.",
        code="InvalidArgument",
        members={"ArgumentName": name, "ArgumentValue": ""},
    )


def _tagging(text: str) -> str:
    """The XML of a form's tags as the header of PutObject spells them. Raises ValidationFault (MalformedXML)."""
    try:
        root = xml_codec.parse(text.encode())
    except Misread as misread:
        raise ValidationFault(misread.message, code="MalformedXML") from None
    pairs = []
    for tag_set in root.children:
        for tag in tag_set.children:
            values = {child.name: child.text for child in tag.children}
            pairs.append((values.get("Key", ""), values.get("Value", "")))
    return urlencode(pairs)


def _redirect(url: str | None) -> str | None:
    """The URL to send the browser to; one that is not an absolute http(s) URL is passed over, as S3 does."""
    if not url or not url.isascii() or any(character <= " " for character in url):
        return None
    parts = urlsplit(url)
    return url if parts.scheme in ("http", "https") and parts.netloc else None


def _known(value: _T | None) -> _T:
    if value is None:
        raise RuntimeError("a handler ran before the one that it depends on")
    return value
