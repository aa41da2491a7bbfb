import jax

from launch.job.profile import CHUNKS, Profile


def test_some_chunks_after_the_first_are_traced_and_an_early_end_closes(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with Profile(str(tmp_path)) as traced:
        assert calls == []
        # More chunks than are traced: the trace ends by itself, and leaving ends it no second time.
        for _ in range(CHUNKS + 2):
            traced.tick()
        assert calls == [str(tmp_path), "stop"]
    assert calls == [str(tmp_path), "stop"]
    calls.clear()
    with Profile(str(tmp_path)) as traced:
        # Ended while the trace is open: it is closed, or there would be no file.
        traced.tick()
    assert calls == [str(tmp_path), "stop"]
    calls.clear()
    with Profile(None) as traced:
        traced.tick()
    assert calls == []
