"""Turns, rates, connections and the budget of unverified bodies: who may do how much, and who goes first."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honmaru.core.errors import Throttled
from honmaru.gateway.connections import Connections
from honmaru.gateway.rates import Rates
from honmaru.gateway.reading import Budget
from honmaru.gateway.shared_rates import SharedRates, shared_memory
from honmaru.gateway.turns import Turns
from honmaru.gateway.workers import Landed, Workers

# Turns


def still() -> float:
    return 0.0


def test_whoever_comes_while_one_floods_finds_a_turn() -> None:
    turns = Turns(4, 2, 100, still)
    assert turns.try_take("other")
    turns.give_back("other")
    assert [turns.try_take("flood") for _ in range(4)] == [True, True, False, False]
    assert turns.try_take("other")


def test_a_holder_has_most_turns_while_nobody_else_asks() -> None:
    time = [0.0]
    turns = Turns(6, 2, 100, lambda: time[0])
    assert turns.try_take("other")
    turns.give_back("other")
    time[0] = 1.1
    assert [turns.try_take("alone") for _ in range(6)] == [True, True, True, True, False, False]
    assert turns.try_take("other")
    for _ in range(3):
        turns.give_back("alone")
    assert turns.try_take("alone") and not turns.try_take("alone")  # from now on they share
    assert [turns.try_take(None) for _ in range(3)] == [True, True, False]


def test_strangers_share_one_share_even_alone() -> None:
    turns = Turns(4, 2, 100, still)
    assert [turns.try_take(None) for _ in range(3)] == [True, True, False]


def test_waiting_holders_are_served_in_rotation_and_each_in_order() -> None:
    async def scene() -> list[str]:
        turns, served = Turns(1, 1, 100, still), []

        async def ask(holder: str, number: int) -> None:
            await turns.take(holder)
            served.append(f"{holder}{number}")
            await asyncio.sleep(0)
            turns.give_back(holder)

        await turns.take("first")
        tasks = [asyncio.ensure_future(ask("a", number)) for number in range(3)]
        await asyncio.sleep(0)
        tasks += [asyncio.ensure_future(ask("b", number)) for number in range(2)]
        await asyncio.sleep(0)
        turns.give_back("first")
        await asyncio.gather(*tasks)
        return served

    assert asyncio.run(scene()) == ["a0", "b0", "a1", "b1", "a2"]


def test_too_many_who_wait_are_refused_one_holder_at_half() -> None:
    async def scene() -> None:
        turns = Turns(1, 1, 4, still)
        await turns.take("a")
        waiting = [asyncio.ensure_future(turns.take("a")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Throttled):
            await turns.take("a")
        waiting += [asyncio.ensure_future(turns.take("b")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Throttled):
            await turns.take("c")
        unbounded = asyncio.ensure_future(turns.take(None, bounded=False))
        await asyncio.sleep(0)
        assert not unbounded.done()
        for task in [*waiting, unbounded]:
            task.cancel()
        await asyncio.gather(*waiting, unbounded, return_exceptions=True)
        turns.give_back("a")
        assert turns.try_take("c")

    asyncio.run(scene())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_turn_is_lost_or_made_whatever_is_cancelled(data: st.DataObject) -> None:
    async def scene() -> None:
        turns = Turns(3, 2, 1000, still)
        running, most = 0, 0

        async def ask(holder: str) -> None:
            nonlocal running, most
            await turns.take(holder)
            try:
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
            finally:
                running -= 1
                turns.give_back(holder)

        tasks = []
        for _ in range(data.draw(st.integers(1, 30))):
            tasks.append(asyncio.ensure_future(ask(data.draw(st.sampled_from("abc")))))
            if data.draw(st.booleans()):
                await asyncio.sleep(0)
            if data.draw(st.integers(0, 3)) == 0:
                data.draw(st.sampled_from(tasks)).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= 3
        assert (turns._taken, turns._waiting_count, turns._held, turns._waiting) == (0, 0, {}, {})

    asyncio.run(scene())


# Rates


def test_a_rate_and_its_burst() -> None:
    rates = Rates(10, 20)
    for _ in range(20):
        rates.take("a", 0.0)
    with pytest.raises(Throttled):
        rates.take("a", 0.05)
    rates.take("a", 0.11)
    rates.take("b", 0.11)
    for _ in range(20):
        rates.take("a", 100.0)
    with pytest.raises(Throttled):
        rates.take("a", 100.0)
    Rates(0, 0).take("a", 0.0)  # no limit


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("honmaru.gateway.rates._LIMIT", 100)
    rates = Rates(1, 1)
    for number in range(1000):
        rates.take(number, number * 0.001)
    assert len(rates._buckets) <= 100
    with pytest.raises(Throttled):
        rates.take(999, 1.0)


def processes(per_s: float, burst: float) -> tuple[SharedRates, SharedRates]:
    """The same buckets as two processes have them."""
    memory = shared_memory(tables=2)
    return SharedRates(per_s, burst, memory, 1), SharedRates(per_s, burst, os.dup(memory), 1)


def test_processes_count_one_rate_together() -> None:
    one, other = processes(10, 20)
    for number in range(20):
        (one, other)[number % 2].take("a", 0.0)
    for rates in (one, other):
        with pytest.raises(Throttled):
            rates.take("a", 0.05)
    other.take("a", 0.11)
    with pytest.raises(Throttled):
        one.take("a", 0.11)
    one.take("b", 0.11)
    one.take(None, 0.11)
    SharedRates(0, 0, shared_memory(1), 0).take("a", 0.0)  # no limit


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.floats(0, 0.5)), max_size=60))
def test_shared_buckets_refuse_what_buckets_of_one_process_refuse(asked: list[tuple[int, int, float]]) -> None:
    alone, together, now = Rates(3, 6), processes(3, 6), 0.0
    for process, holder, later in asked:
        now += later
        outcomes = []
        for rates in (alone, together[process]):
            try:
                rates.take(holder, now)
                outcomes.append("taken")
            except Throttled:
                outcomes.append("refused")
        assert outcomes[0] == outcomes[1]


# Connections


class Client:
    def __init__(self, vouched: bool = False) -> None:
        self.vouched = vouched
        self.fate = ""

    def evict(self) -> None:
        self.fate = "evicted"

    def too_slow(self) -> None:
        self.fate = "too slow"

    def shutdown(self) -> None:
        self.fate = "shut down"


class Place:
    """Connections under a clock that is told the time."""

    def __init__(self, limit: int) -> None:
        self.time = 0.0
        self.all = Connections(limit, 10.0, 75.0, lambda: self.time)

    def client(self, *, vouched: bool, state: str) -> Client:
        client = Client(vouched)
        self.time += 0.01
        assert self.all.open(client)
        if state != "fresh":
            self.all.running(client)
        if state == "idle":
            self.all.idle(client)
        return client


def test_idle_connections_make_place_strangers_first() -> None:
    place = Place(4)
    known = place.client(vouched=True, state="idle")
    stranger = place.client(vouched=False, state="idle")
    silent = place.client(vouched=False, state="fresh")
    busy = place.client(vouched=True, state="running")
    order = []
    for _ in range(3):
        newcomer = place.client(vouched=True, state="running")
        order += [c for c in (known, stranger, silent, busy) if c.fate and c not in order]
        assert newcomer.fate == ""
    assert order == [stranger, silent, known]
    assert busy.fate == ""


def test_work_of_strangers_makes_place_and_work_of_callers_does_not() -> None:
    place = Place(2)
    callers = place.client(vouched=True, state="running")
    strangers = place.client(vouched=False, state="running")
    place.client(vouched=True, state="running")
    assert strangers.fate == "evicted"
    assert not place.all.open(Client())
    assert callers.fate == "" and len(place.all) == 2


def test_headers_and_idle_connections_have_their_time() -> None:
    place = Place(10)
    silent = place.client(vouched=False, state="fresh")
    idle = place.client(vouched=True, state="idle")
    heading = place.client(vouched=True, state="idle")
    busy = place.client(vouched=True, state="running")
    stranger = place.client(vouched=False, state="idle")
    place.all.heading(heading)
    place.time = 9.0
    place.all.sweep()
    assert not any(c.fate for c in (silent, idle, heading, busy, stranger))
    place.time = 11.0
    place.all.sweep()
    assert (silent.fate, heading.fate, idle.fate, stranger.fate) == ("too slow", "too slow", "", "")
    place.time = 90.0
    place.all.sweep()
    assert (idle.fate, stranger.fate, busy.fate) == ("evicted", "evicted", "")
    assert len(place.all) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["open", "head", "run", "idle", "close", "sweep"]))))
def test_a_connection_is_in_one_order_at_most(steps: list[tuple[int, str]]) -> None:
    place = Place(4)
    clients: dict[int, Any] = {}
    for number, step in steps:
        place.time += 1.0
        client = clients.get(number)
        if step == "open" and (client is None or client.fate):
            clients[number] = client = Client(number % 2 == 0)
            place.all.open(client)
        elif client is not None and not client.fate:
            {
                "head": place.all.heading,
                "run": place.all.running,
                "idle": place.all.idle,
                "close": place.all.closed,
                "open": lambda _: None,
                "sweep": lambda _: place.all.sweep(),
            }[step](client)
            if step == "close":
                client.fate = "closed"
        everyone = place.all.all()
        assert len(everyone) == len(set(everyone)) == len(place.all) <= 4
        assert not any(one.fate for one in everyone)
        assert set(place.all._deadlines) <= set(place.all._fresh)


# Bodies


def exchange(key: str, session: object = None) -> Any:
    return SimpleNamespace(claim=SimpleNamespace(access_key_id=key), session=session, unverified=None)


def test_unverified_bodies_have_a_budget_and_a_key_half_of_it() -> None:
    budget = Budget(100)
    first, second, third = exchange("a"), exchange("a"), exchange("b")
    budget.grow(first, 30)
    budget.grow(second, 20)
    with pytest.raises(Throttled):
        budget.grow(second, 1)
    budget.grow(third, 50)
    with pytest.raises(Throttled):
        budget.grow(exchange("c"), 1)
    budget.grow(exchange("a", session=object()), 1000)  # a known caller's is not counted
    budget.free(first)
    budget.free(first)
    budget.grow(second, 30)
    for one in (second, third):
        budget.free(one)
    assert (budget._total, budget._held) == (0, {})


# Workers


def test_works_run_in_threads_and_land_on_their_own_loop() -> None:
    workers = Workers(2, "test")

    def refuse() -> None:
        raise KeyError("no")

    async def scene() -> None:
        assert await asyncio.gather(*(workers.run(lambda number=number: number * 2) for number in range(50))) == [
            number * 2 for number in range(50)
        ]
        with pytest.raises(KeyError):
            await workers.run(refuse)
        landed = Landed(workers.landing())
        landed.set_result("durable")
        assert await landed.future == "durable"
        cancelled = Landed(workers.landing())
        cancelled.future.cancel()
        cancelled.set_exception(KeyError("nobody waits"))
        await asyncio.sleep(0.01)

    asyncio.run(scene())
    asyncio.run(scene())  # another loop
    workers.close()
