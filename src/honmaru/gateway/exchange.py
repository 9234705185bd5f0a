"""One request and its answer on their way through the handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, MutableMapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from honmaru.api.models import Operation, ServiceModel
from honmaru.api.plans import Answer
from honmaru.core.sessions import Session
from honmaru.gateway.uploads import Pull, Upload
from honmaru.security.calls import Call

if TYPE_CHECKING:
    from honmaru.gateway.aws.forms import FormHead
    from honmaru.gateway.aws.signatures import Claim
    from honmaru.gateway.dialects import Endpoint, Translation
    from honmaru.gateway.reading import Budget
    from honmaru.gateway.streams import Pieces
    from honmaru.gateway.wires import Wire

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Exchange:
    """What the handlers know so far. Wire handlers fill in the upper half, the pipeline's the lower one.

    The pipeline (label tags, IAM, dispatch, record) reads only `session`, `service`, `operation` and `members`, so
    another wire can share it.
    """

    __slots__ = (
        "answer",
        "at",
        "body",
        "budget",
        "call",
        "candidate",
        "claim",
        "client",
        "decision",
        "drawn",
        "endpoint",
        "error",
        "expected_hash",
        "form",
        "headers",
        "holder",
        "host_path",
        "labels",
        "members",
        "method",
        "operation",
        "operation_name",
        "owner",
        "pieces",
        "protocol",
        "pull",
        "query",
        "raw_path",
        "raw_query",
        "receive",
        "request_digest",
        "request_id",
        "result",
        "routing_fault",
        "scope",
        "secure",
        "send",
        "service",
        "session",
        "signing_key",
        "started",
        "translation",
        "turn",
        "unverified",
        "upload",
        "wire",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str, at: datetime) -> None:
        self.wire: Wire | None = None
        self.scope = scope
        self.receive = receive
        self.send = send
        self.request_id = request_id
        self.at = at
        self.method: str = scope["method"]
        self.raw_path: str = scope["raw_path"].decode("latin-1")
        self.raw_query: str = scope["query_string"].decode("latin-1")
        self.secure: bool = scope.get("scheme") == "https"
        client = scope.get("client")
        self.client: str | None = client[0] if client else None
        self.headers: dict[str, str] = {}
        self.query: Mapping[str, list[str]] = {}
        self.host_path = self.raw_path

        self.service: ServiceModel | None = None
        self.protocol = "rest-xml"
        self.operation: Operation | None = None
        self.operation_name = "Unknown"
        self.routing_fault: Exception | None = None
        """Why no operation was found; raised once the caller is known."""
        self.labels: Mapping[str, str] = {}
        self.claim: Claim | None = None
        self.signing_key = b""
        self.expected_hash: str | None = None
        self.form: FormHead | None = None
        """Of a browser's form: the fields before its file, and `pull` for the rest of the body."""
        self.pull: Pull | None = None
        self.endpoint: Endpoint | None = None
        self.translation: Translation | None = None
        """Of a dialect: what was asked as an AWS operation, and how its result is answered."""
        self.candidate: Session | None = None
        """The session of the claimed key, until the signature has been verified."""
        self.body = b""
        self.budget: Budget | None = None
        self.unverified: tuple[str, int] | None = None
        """(key id, bytes) of the body that the budget counts until the caller is known."""
        self.upload: Upload | None = None
        self.request_digest: str | None = None

        self.holder: Hashable = None
        """Whose turns and rates the request takes, once the caller is known."""
        self.turn = False
        self.drawn: tuple[bytes, str] | None = None
        """A body that was drawn where it was made, and its digest."""
        self.session: Session | None = None
        self.members: dict[str, Any] = {}
        self.owner = ""
        """Account of the first resource that IAM was asked about; "" where none is known."""
        self.call: Call | None = None
        self.pieces: Pieces | None = None
        """The rest of an answer that is sent while it is made."""
        self.result: Mapping[str, Any] | None = None
        self.decision = "refused"
        """For the ledger: "allow", "deny" (policy), "refused" (before policy was asked)."""
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.started = False
