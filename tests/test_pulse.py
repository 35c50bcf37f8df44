from threading import Thread

from ddcnn.parallel.heartbeat import PULSE, WAITING, WORKING, beat, waiting


def test_a_thread_that_reads_ahead_gives_signs_of_life_but_makes_no_waiting_rank_a_working_one():
    beat("sample 3")
    waiting()
    before = PULSE.steps
    thread = Thread(target=beat, args=("sample 900",))
    thread.start()
    thread.join()
    assert (PULSE.state, PULSE.what, PULSE.steps) == (WAITING, "sample 3", before + 1)
    beat()
    assert PULSE.state == WORKING
