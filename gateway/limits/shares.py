"""Each caller's share of a scarce resource, so that no caller takes all of it."""

# The names that a caller's share is counted under: its key or account, and for a page's user also
# that user.
Holders = tuple[str, ...]


class Shares:
    """`places` in all, counted by name. The first of `holders` may have `share` of all, each
    further one `share` of what the one before it may have; a holder with none may always take one,
    whatever its size."""

    __slots__ = ("_held", "_most", "_places", "total")

    def __init__(self, places: int, share: float) -> None:
        most = int(places * share + 1e-9)  # 100 * 0.29 is a bit less than 29
        self._places = places
        self._most = (most, int(most * share + 1e-9))
        self._held: dict[str, int] = {}
        self.total = 0

    @property
    def most(self) -> int:
        """The most that one key or account may hold."""
        return max(1, self._most[0])

    def has_room(self, holders: Holders, many: int = 1) -> bool:
        """Whether the caller may take `many` more."""
        if not self.total:
            return True
        if self.total + many > self._places:
            return False
        held = self._held
        for holder, most in zip(holders, self._most, strict=False):
            if (has := held.get(holder, 0)) and has + many > most:
                return False
        return True

    def take(self, holders: Holders, many: int = 1) -> None:
        self.total += many
        held = self._held
        for holder in holders:
            held[holder] = held.get(holder, 0) + many

    def give_back(self, holders: Holders, many: int = 1) -> None:
        self.total -= many
        held = self._held
        for holder in holders:
            if left := held.pop(holder, 0) - many:
                held[holder] = left


class Part:
    """One request's part of `shares`; it may grow until it is returned."""

    __slots__ = ("_holders", "_many", "_shares")

    def __init__(self, shares: Shares, holders: Holders) -> None:
        self._shares, self._holders, self._many = shares, holders, 0

    def grow(self, to: int) -> bool:
        """Grow the part to `to` in all. Returns whether there was room."""
        more = to - self._many
        if more <= 0:
            return True
        # The part counts as one with its growth: it must not stand in its own way.
        self._shares.give_back(self._holders, self._many)
        has_room = self._shares.has_room(self._holders, to)
        if has_room:
            self._many = to
        self._shares.take(self._holders, self._many)
        return has_room

    def add(self, more: int) -> bool:
        """Grow the part by `more`. Returns whether there was room."""
        return self.grow(self._many + more)

    def give_back(self) -> None:
        """Return the whole part. May be called more than once."""
        self._shares.give_back(self._holders, self._many)
        self._many = 0
