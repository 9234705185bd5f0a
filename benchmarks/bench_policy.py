"""A decision of IAM with 1,000 statements attached to the caller, beside cedarpy and casbin on equivalent policies.

honmaru is measured where a request asks, `Identity.authorize`: it finds the principal and the resource, gathers
condition keys, and consults resource, control, boundary and session policies. The peers answer the bare question. All
get the same statements and questions, all must give the same answers.

    python benchmarks/bench_policy.py [--statements N] [--questions N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from honmaru.core.errors import AccessDenied
from honmaru.core.labels import BOTTOM
from honmaru.security.identity import Identity, entities
from honmaru.testing.keep import ACCOUNT, Keep

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".venv-peers" / "policy" / "bin" / "python"
AIM_P50_US, AIM_P99_US = 25.0, 250.0
VIA = "s3.us-iso-east-1.amazonaws.com"
ARN = "arn:aws-iso"


def statements(count: int) -> list[dict[str, Any]]:
    """Of ten, seven: objects of one team's bucket; jobs of a team, a protected folder, a key by way of a service."""
    made = []
    for n in range(count):
        kind = n % 10
        if kind < 7:
            actions, pattern = ["s3:GetObject", "s3:PutObject"], f"{ARN}:s3:::team-{n}/*"
        elif kind == 7:
            actions, pattern = (
                ["sagemaker:DescribeTrainingJob"],
                f"{ARN}:sagemaker:us-iso-east-1:{ACCOUNT}:training-job/team-{n}-*",
            )
        elif kind == 8:
            actions, pattern = ["s3:PutObject"], f"{ARN}:s3:::team-{n - 8}/keep/*"
        else:
            actions, pattern = ["kms:Decrypt"], f"{ARN}:kms:us-iso-east-1:{ACCOUNT}:key/{n}"
        made.append({"allow": kind != 8, "actions": actions, "pattern": pattern, "via": VIA if kind == 9 else None})
    return made


def questions(count: int, of: int, seed: int = 7) -> list[dict[str, Any]]:
    """About half are allowed."""
    r = random.Random(seed)
    asked = []
    for _ in range(count):
        n = r.randrange(of)
        resource, action, via = r.choice(
            [
                (f"{ARN}:s3:::team-{n}/data/{r.randrange(1000)}", "s3:GetObject", None),
                (f"{ARN}:s3:::team-{n}/keep/{r.randrange(1000)}", "s3:PutObject", None),
                (f"{ARN}:s3:::elsewhere/{n}", "s3:GetObject", None),
                (
                    f"{ARN}:sagemaker:us-iso-east-1:{ACCOUNT}:training-job/team-{n}-a",
                    "sagemaker:DescribeTrainingJob",
                    None,
                ),
                (f"{ARN}:kms:us-iso-east-1:{ACCOUNT}:key/{n - n % 10 + 9}", "kms:Decrypt", r.choice([VIA, "other"])),
            ]
        )
        asked.append({"action": action, "resource": resource, "via": via})
    return asked


def honmaru(of: list[dict[str, Any]], asked: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Answers and times of the enclave's own decision point."""
    with tempfile.TemporaryDirectory() as directory:
        keep = Keep(Path(directory))
        identity = Identity(
            keep.guard,
            partition="aws-iso",
            region="us-iso-east-1",
            account=ACCOUNT,
            clock=keep.clock,
            ids=keep.ids,
            keyring=keep.keyring,
        )
        texts = {}
        for at in range(0, len(of), 50):
            texts[f"policy{at}"] = json.dumps(
                {"Version": "2012-10-17", "Statement": [statement(s) for s in of[at : at + 50]]}
            )
        body = entities.user_body(keep.ids, path="/", tags={}, attached=[]) | {"inline": texts}
        identity.directory.trusted.create(ACCOUNT, BOTTOM, entities.USER, "ann", body)
        session = identity.credential(identity.access_key("ann", BOTTOM)[0], None).session

        def ask(question: dict[str, Any]) -> bool:
            context = {} if question["via"] is None else {"kms:ViaService": question["via"]}
            try:
                identity.require(session, question["action"], question["resource"], context)
            except AccessDenied:
                return False
            return True

        answers = [ask(question) for question in asked]
        times: list[float] = []
        for _ in range(rounds):
            for question in asked:
                begun = time.perf_counter_ns()
                identity.authorize(
                    session,
                    question["action"],
                    question["resource"],
                    {} if question["via"] is None else {"kms:ViaService": question["via"]},
                )
                times.append((time.perf_counter_ns() - begun) / 1000)
        refused: list[float] = []
        for question, allowed in zip(asked, answers, strict=True):
            if not allowed:
                begun = time.perf_counter_ns()
                ask(question)
                refused.append((time.perf_counter_ns() - begun) / 1000)
        keep.close()
    return {"answers": answers, "times_us": times, "refused_us": refused}


def statement(of: dict[str, Any]) -> dict[str, Any]:
    """A statement in IAM's words."""
    made = {"Effect": "Allow" if of["allow"] else "Deny", "Action": of["actions"], "Resource": of["pattern"]}
    return made if of["via"] is None else {**made, "Condition": {"StringEquals": {"kms:ViaService": of["via"]}}}


def peer(engine: str, of: list[dict[str, Any]], asked: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Answers and times of another engine, in its own process."""
    job = json.dumps({"engine": engine, "statements": of, "questions": asked, "rounds": rounds})
    done = subprocess.run(
        [str(PEER), str(HERE / "policy_peer.py")], input=job, capture_output=True, text=True, check=True, timeout=900
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def share(times: list[float], part: float) -> float:
    """A quantile."""
    return sorted(times)[min(len(times) - 1, int(len(times) * part))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--statements", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    of = statements(options.statements)
    asked = questions(options.questions, options.statements)
    own = honmaru(of, asked, options.rounds)
    rows = [
        ("honmaru: Identity.authorize", own["times_us"]),
        ("honmaru: a refusal, worded and sealed", own["refused_us"]),
    ]
    agree = True
    for engine, times in (("cedarpy", 1), ("casbin", 1)):
        few = asked[: 200 if engine == "casbin" else len(asked)]
        if not PEER.exists():
            print(f"{engine} is left out: scripts/install-peers policy makes its environment")
            continue
        found = peer(engine, of, few, times)
        rows.append((engine, found["times_us"]))
        agree = agree and found["answers"] == own["answers"][: len(few)]
    print(f"{options.statements} statements attached, {sum(own['answers'])} of {len(asked)} questions allowed")
    print(f"{'':40}{'p50 us':>10}{'p99 us':>10}{'max us':>10}")
    for name, times in rows:
        print(f"{name:40}{share(times, 0.5):>10.1f}{share(times, 0.99):>10.1f}{max(times):>10.0f}")
    p50, p99 = share(own["times_us"], 0.5), share(own["times_us"], 0.99)
    good = p50 <= AIM_P50_US and p99 <= AIM_P99_US
    print(f"the aim: p50 at most {AIM_P50_US:.0f} us, p99 at most {AIM_P99_US:.0f} us: {'met' if good else 'missed'}")
    print(f"answers of all engines: {'the same' if agree else 'DIFFERENT'}")
    return 0 if good and agree else 1


if __name__ == "__main__":
    sys.exit(main())
