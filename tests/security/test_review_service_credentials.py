"""What the code of a hybrid job signs with never reaches above the label of the job, whatever its role may hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from honmaru.core.clearances import Clearance
from honmaru.core.errors import AccessDenied
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.security.identity import AssumeRole, Identity, entities
from honmaru.testing.keep import ACCOUNT, Keep

ROLE = f"arn:aws-iso-b:iam::{ACCOUNT}:role/code"
TRUST = {
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:aws-iso-b:iam::{ACCOUNT}:root", "Service": "braket.amazonaws.com"},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
        }
    ]
}


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    made = Keep(tmp_path)
    yield made
    made.close()


@pytest.fixture
def identity(keep: Keep) -> Identity:
    made = Identity(
        keep.guard,
        partition="aws-iso-b",
        region="us-isob-east-1",
        account=ACCOUNT,
        clock=keep.clock,
        ids=keep.ids,
        keyring=keep.keyring,
    )
    made.bootstrap()
    body = entities.role_body(
        keep.ids, path="/", tags={}, trust=json.dumps(TRUST), description="", max_session_s=7200, boundary=""
    )
    body["attached"] = ["arn:aws-iso-b:iam::aws:policy/AdministratorAccess"]
    made.directory.trusted.create(ACCOUNT, BOTTOM, entities.ROLE, "code", body)
    return made


def of_a_job(identity: Identity) -> Session:
    """The session of the code of a job that an uncleared user started at the lowest label."""
    session = identity.service_session(
        ROLE, label=BOTTOM, service="braket", session_name="Braket", human="arn:of:carol", account=ACCOUNT
    )
    made = identity.service_credential(session, 900)
    return identity.credential(made.access_key_id, made.session_token).session


def raised(caller: Session, identity: Identity, marking: str) -> Session:
    tags = {entities.LABEL_TAG: marking}
    return identity.assume_role(caller, AssumeRole(role_arn=ROLE, session_name="raised", tags=tags)).session


def test_a_job_is_not_raised(identity: Identity) -> None:
    code = of_a_job(identity)
    for caller in (code, raised(code, identity, "UNCLASSIFIED")):  # also not in two steps
        with pytest.raises(AccessDenied, match="nobody's key"):
            raised(caller, identity, "SECRET")
    key, _ = identity.access_key("admin", BOTTOM)
    person = identity.credential(key, None).session
    assert raised(person, identity, "SECRET").label == Label.parse("SECRET")


def test_a_job_grants_no_clearance(identity: Identity) -> None:
    code = of_a_job(identity)
    assert identity.clearances_behind(code) == ["UNCLASSIFIED"]
    assert not identity.may_grant(code, Clearance.parse("SECRET"))
    assert not identity.may_grant(raised(code, identity, "UNCLASSIFIED"), Clearance.parse("SECRET"))
