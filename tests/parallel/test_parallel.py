"""The collectives of ddcnn.parallel.world, at whatever number of ranks mpirun has started."""

import numpy as np
import pytest

from ddcnn.errors import InputError
from ddcnn.experiment.fitting import check_ranks
from ddcnn.parallel.groups import owned_subdomains


def part_of(rank: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return (np.arange(np.prod(shape)) * 7 + 1000 * rank).astype(dtype).reshape(shape)


@pytest.mark.parametrize("chunk_bytes", [1, 24, 1000, 1 << 28])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 1, 1), (3, 0, 2)])
def test_gather_brings_every_part_to_rank_0_whatever_the_chunk(world, shape, dtype, chunk_bytes):
    gathered = world.gather(part_of(world.rank, shape, dtype), chunk_bytes)
    if world.rank:
        assert gathered is None
    else:
        np.testing.assert_array_equal(gathered, [part_of(rank, shape, dtype) for rank in range(world.size)])


def test_gather_takes_a_view_that_is_not_contiguous(world):
    gathered = world.gather(part_of(world.rank, (4, 6), "float32").T[::2], 50)
    if gathered is not None:
        np.testing.assert_array_equal(gathered, [part_of(rank, (4, 6), "float32").T[::2] for rank in range(world.size)])


def test_rows_of_different_number_arrive_rank_by_rank(world):
    gathered = world.gather_rows(np.full((world.rank, 3), float(world.rank)))
    if gathered is not None:
        assert [rows.shape for rows in gathered] == [(rank, 3) for rank in range(world.size)]
        assert all((rows == rank).all() for rank, rows in enumerate(gathered))


@pytest.mark.parametrize("root", [0, -1])
def test_broadcast_brings_a_value_to_all_ranks(world, root):
    root %= world.size
    value = {"text": "δ" * 3000, "numbers": [1, 2.5, None]}
    assert world.broadcast(value if world.rank == root else None, root) == value


def test_one_rank_refuses_and_all_ranks_refuse_with_its_words(world):
    with pytest.raises(InputError, match=r"^of the last rank$") as raised, world.raise_on_all_ranks():
        if world.rank == world.size - 1:
            raise InputError("of the last rank")
    assert raised.value.agreed


def test_the_lowest_of_several_refusing_ranks_speaks(world):
    with pytest.raises(InputError, match=r"^rank 0$"), world.raise_on_all_ranks():
        raise InputError(f"rank {world.rank}")


def test_on_root_gives_its_result_and_its_refusal_to_all(world):
    calls = []
    assert world.on_root(lambda: calls.append(1) or [world.rank, "done"]) == [0, "done"]
    assert len(calls) == (world.rank == 0)

    def refuse():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        world.on_root(refuse)


@pytest.mark.parametrize("each", [1, 3])
def test_ranks_own_every_subdomain_exactly_once(world, each):
    owned = list(owned_subdomains(world, each * world.size))
    gathered = world.gather(np.array(owned))
    if gathered is not None:
        assert gathered.reshape(-1).tolist() == list(range(each * world.size))


def test_ranks_that_do_not_fit_the_subdomains_are_refused_with_those_that_do(world):
    check_ranks(world.size, 2 * world.size, "subdomains")
    check_ranks(world.size, 1, "subdomain")  # a group of all ranks
    if world.size > 1:
        with pytest.raises(InputError, match=f"start 1.* or {2 * world.size + 1} ranks, or a multiple of {2 * world.size + 1}"):
            check_ranks(world.size, 2 * world.size + 1, "subdomains")


def test_waiting_and_communicating_are_recorded_apart(world):
    world.timeline.begin()
    with world.timeline.phase("gather"):
        world.gather(np.zeros(1000))
    spans = world.timeline.array()
    assert {1, 2} == set(spans[:, 1])
    assert (spans[:, 3] >= spans[:, 2]).all()


def test_gather_to_all_brings_every_part_to_every_rank(world):
    found = world.all_gather(part_of(world.rank, (2, 5), "float64"))
    np.testing.assert_array_equal(found, [part_of(rank, (2, 5), "float64") for rank in range(world.size)])


@pytest.mark.parametrize("shape", [(3, 4), (0,), ()])
def test_broadcast_in_place_brings_rank_0s_array_to_all(world, shape):
    array = part_of(world.rank, shape, "float32")
    world.broadcast_(array)
    np.testing.assert_array_equal(array, part_of(0, shape, "float32"))


def test_mean_is_over_the_ranks(world):
    assert world.mean([world.rank, 1]) == pytest.approx([(world.size - 1) / 2, 1])


def test_bytes_sent_are_counted_in_their_phase(world):
    world.timeline.begin()
    with world.timeline.phase("gather"):
        world.gather(np.zeros(10))
    with world.timeline.phase("coherent"):
        world.all_gather(np.zeros(10, np.float32))
    assert world.timeline.sent["gather"] == (80 if world.rank else 0)
    assert world.timeline.sent["coherent"] == 40 * (world.size - 1)
