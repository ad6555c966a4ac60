"""The heap of deadlines."""

from broker.core.deadlines import Deadlines


def test_deadlines_run_in_order_once() -> None:
    """What is due runs, oldest first, equal ones in the order they were set, and never again."""
    deadlines = Deadlines()
    ran: list[str] = []
    for when, name in ((3.0, "c"), (1.0, "a"), (2.0, "b"), (1.0, "a2"), (9.0, "late")):
        deadlines.at(when, lambda name=name: ran.append(name))  # type: ignore[misc]  # a default keeps the name
    assert deadlines.next() == 1.0
    deadlines.run(0.5)
    assert ran == []
    deadlines.run(3.0)
    deadlines.run(3.0)

    assert ran == ["a", "a2", "b", "c"]
    assert deadlines.next() == 9.0
    assert len(deadlines) == 1


def test_cancelled_deadlines_do_not_run() -> None:
    """What was taken back is not run, and not what anybody sleeps until."""
    deadlines = Deadlines()
    ran: list[int] = []
    first = deadlines.at(1.0, lambda: ran.append(1))
    deadlines.at(2.0, lambda: ran.append(2))
    first.cancel()
    first.cancel()
    assert deadlines.next() == 2.0
    deadlines.run(5.0)

    assert ran == [2]
    assert deadlines.next() is None


def test_deadlines_set_by_deadlines() -> None:
    """An action may set another deadline; where that is due already it runs too."""
    deadlines = Deadlines()
    ran: list[int] = []

    def again() -> None:
        ran.append(len(ran))
        if len(ran) < 4:
            deadlines.at(1.0 + len(ran), again)

    deadlines.at(1.0, again)
    deadlines.run(3.0)

    assert ran == [0, 1, 2]
    assert deadlines.next() == 4.0


def test_changed_says_when_to_look_again() -> None:
    """The flag is set by a deadline earlier than all others, and by no other."""
    deadlines = Deadlines()
    assert not deadlines.changed
    deadlines.at(5.0, lambda: None)
    assert deadlines.changed
    deadlines.changed = False
    deadlines.at(5.0, lambda: None)
    deadlines.at(6.0, lambda: None)
    assert not deadlines.changed
    deadlines.at(4.0, lambda: None)

    assert deadlines.changed


def test_cancelled_deadlines_do_not_pile_up() -> None:
    """The heap stays within twice what is alive, or a fixed size; the living ones still run."""
    deadlines = Deadlines()
    ran: list[int] = []
    for i in range(10):
        deadlines.at(1e6 + i, lambda: ran.append(1))
    for i in range(10_000):
        deadlines.at(float(i), lambda: ran.append(0)).cancel()
        assert len(deadlines) <= 1025
    kept = [deadlines.at(float(i), lambda: None) for i in range(3000)]
    assert len(deadlines) >= 3010
    for deadline in kept:
        deadline.cancel()
    for i in range(10_000):
        deadlines.at(float(i), lambda: None).cancel()
    assert len(deadlines) <= 2 * 3010 + 1
    deadlines.run(2e6)

    assert ran == [1] * 10
