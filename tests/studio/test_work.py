"""Long work: news as it comes, one line for what goes wrong, and an end when nobody listens."""

import asyncio
import json
import threading

import pytest

from launch.studio import work


def lines(function, lane=None):
    """All lines of a stream."""

    async def read():
        used = lane or work.Lane(1, 4)
        return [json.loads(line) async for line in used.stream(function)]

    return asyncio.run(read())


def test_progress_comes_in_order_and_the_result_last():
    def function(report):
        report(1, 4, "a quarter")
        report(4, 4)
        # Infinity is no JSON: it must arrive as nothing and not as a word that no browser reads.
        return {"found": float("inf")}

    found = lines(function)
    assert [line["progress"] for line in found if "progress" in line] == [0, 0.25, 1]
    assert found[-1] == {"result": {"found": None}}


def test_what_goes_wrong_is_one_line_and_a_defect_says_nothing_of_its_own(caplog):
    def refused(report):
        raise ValueError("area must be a number\nmore")

    def broken(report):
        raise KeyError("secret")

    # One line, whatever the message holds: each line of the stream is a record.
    assert lines(refused)[-1] == {"error": "area must be a number: more"}
    assert "secret" not in json.dumps(lines(broken))


def test_work_ends_at_its_next_word_when_nobody_listens():
    going, ended = threading.Event(), threading.Event()

    def function(report):
        try:
            while True:
                going.set()
                report(0, 1)
        finally:
            ended.set()

    async def leave():
        stream = work.Lane(1, 4).stream(function)
        await anext(stream)
        # The work is under way; leaving before would only show that it never began.
        await asyncio.to_thread(going.wait, 10)
        await stream.aclose()
        return await asyncio.to_thread(ended.wait, 10)

    assert asyncio.run(leave())


def test_work_that_was_cancelled_while_it_waited_never_begins():
    free, begun = threading.Event(), []

    async def run():
        lane = work.Lane(1, 4)
        # Holds the only place until it is told, so that the second has to wait.
        first = lane.stream(lambda report: free.wait(10))
        second = lane.stream(lambda report: begun.append(1))
        await anext(first)
        assert json.loads(await anext(second))["words"] == "waiting behind 1"
        await second.aclose()
        free.set()
        assert [json.loads(line) async for line in first][-1] == {"result": True}

    asyncio.run(run())
    assert begun == []


def test_a_lane_takes_no_more_than_it_can():
    free = threading.Event()

    async def run():
        lane = work.Lane(1, 2)
        streams = [lane.stream(lambda report: free.wait(10)) for _ in range(3)]
        await anext(streams[0])
        await anext(streams[1])
        # One at work and one waiting are all that this lane takes.
        with pytest.raises(work.Busy):
            await anext(streams[2])
        free.set()
        for stream in streams[:2]:
            async for _ in stream:
                pass
        assert await lane.once(lambda: 7) == 7

    asyncio.run(run())
