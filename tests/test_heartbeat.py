from threading import Thread

from ddcnn.parallel.heartbeat import HEARTBEAT, WAITING, WORKING, beat, waiting


def test_a_thread_that_reads_ahead_gives_signs_of_life_but_makes_no_waiting_rank_a_working_one():
    beat("sample 3")
    waiting()
    before = HEARTBEAT.steps
    thread = Thread(target=beat, args=("sample 900",))
    thread.start()
    thread.join()
    assert (HEARTBEAT.state, HEARTBEAT.what, HEARTBEAT.steps) == (WAITING, "sample 3", before + 1)
    beat()
    assert HEARTBEAT.state == WORKING
