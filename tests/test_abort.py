"""What is said of a failure: one line where the user can do something, a traceback where the program must be mended."""

import pytest

from ddcnn.parallel.abort import log_failure
from ddcnn.parallel.logs import set_up


@pytest.fixture
def said(capsys, monkeypatch):
    """What rank 2 of 4 writes on stderr about an error."""
    monkeypatch.setenv("PMI_SIZE", "4")

    def message(error: Exception) -> str:
        set_up(2)
        try:
            error.add_note("subdomain 2")
            raise error
        except Exception as raised:
            log_failure(raised, 2, 4)
        written = capsys.readouterr()
        assert written.out == ""
        return written.err.removesuffix("\n")

    return message


def test_a_loss_that_is_no_number_is_one_line(said):
    assert said(FloatingPointError("the loss is nan: try a smaller learning rate (--lr)")) == (
        "ddcnn: failed: rank 2 of 4, subdomain 2: the loss is nan: try a smaller learning rate (--lr)"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 4.00 EiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …\nmore"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
)
def test_too_little_memory_is_one_line_with_the_way_out(said, error):
    line = said(error)
    assert line.startswith("ddcnn: failed: rank 2 of 4, subdomain 2: not enough memory (")
    assert "--batch-size" in line and "more ranks" in line
    assert "\n" not in line


def test_what_torch_raises_for_a_tensor_that_is_too_large_is_too_little_memory(said):
    import torch

    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**58)
    assert "not enough memory" in said(raised.value)


def test_a_lost_connection_points_to_the_rank_that_is_gone(said):
    line = said(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9"))
    assert "another rank is gone" in line
    assert "\n" not in line


def test_anything_else_keeps_its_traceback_every_line_of_which_names_the_rank(said):
    text = said(ZeroDivisionError("no"))
    assert text.count("Traceback") == 1
    *traceback, line = text.splitlines()
    assert line == "ddcnn: failed: rank 2 of 4, subdomain 2: ZeroDivisionError: no"
    assert traceback and all(one.startswith("[rank 2] ") for one in traceback)
