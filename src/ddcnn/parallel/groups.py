"""Which rank trains which subdomain."""

from dataclasses import dataclass

from ddcnn.parallel.world import World


def owned_subdomains(world: World, subdomains: int) -> range:
    """The subdomains of this rank: a contiguous range, equally many on every rank."""
    each = subdomains // world.size
    return range(world.rank * each, (world.rank + 1) * each)


@dataclass(frozen=True)
class Groups:
    """The ranks as a table: a row per subdomain (or range of subdomains), a column per data-parallel rank.

    Attributes:
        data_parallel: the ranks that train this rank's subdomain together: this rank alone unless there are more ranks than subdomains.
        across_subdomains: the ranks in the same column, in the order of the subdomains: together they own each subdomain once.
    """

    data_parallel: World
    across_subdomains: World

    def owned(self, subdomains: int) -> range:
        """The subdomains that this rank trains."""
        return owned_subdomains(self.across_subdomains, subdomains)

    @property
    def leads(self) -> bool:
        """Whether this rank records and saves what its data-parallel ranks have in common."""
        return self.data_parallel.rank == 0


def form_groups(world: World, subdomains: int) -> Groups:
    """Splits the ranks into groups for N subdomains; all ranks together.

    Ranks that do not fit the subdomains, which is allowed where no local CNN is trained, are one group.
    """
    if subdomains % world.size and world.size % subdomains:
        return Groups(world, world.alone())
    size = max(1, world.size // subdomains)
    if size == 1:
        return Groups(world.alone(), world)
    return Groups(world.split(world.rank // size), world.split(world.rank % size))
