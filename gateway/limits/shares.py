"""How much of something that is scarce each caller holds, so that none of them takes all."""

# The names that a caller's part counts under: its key's or account's, and of a page's user that
# user's own.
Holders = tuple[str, ...]


class Shares:
    """`places` in all, held by name. Each of `holders` may have `share` of what the one before it
    may have, the first of all; whoever holds none may have one, whatever its size."""

    __slots__ = ("_held", "_most", "_places", "total")

    def __init__(self, places: int, share: float) -> None:
        most = int(places * share + 1e-9)  # 100 * 0.29 is a bit less than 29
        self._places = places
        self._most = (most, int(most * share + 1e-9))
        self._held: dict[str, int] = {}
        self.total = 0

    @property
    def most(self) -> int:
        """Of one key or account."""
        return max(1, self._most[0])

    def has_room(self, holders: Holders, many: int = 1) -> bool:
        """Whether the caller may have so many more."""
        if self.total and self.total + many > self._places:
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
    """What one request holds of `shares`; it may grow until it is given back."""

    __slots__ = ("_holders", "_many", "_shares")

    def __init__(self, shares: Shares, holders: Holders) -> None:
        self._shares, self._holders, self._many = shares, holders, 0

    def grow(self, to: int) -> bool:
        """Whether there is room for `to` in all; they are held from then on."""
        more = to - self._many
        if more <= 0:
            return True
        # Its own part is no reason against more of it: it counts as one with what is added.
        self._shares.give_back(self._holders, self._many)
        has_room = self._shares.has_room(self._holders, to)
        if has_room:
            self._many = to
        self._shares.take(self._holders, self._many)
        return has_room

    def add(self, more: int) -> bool:
        """Whether there is room for so many more; they are held from then on."""
        return self.grow(self._many + more)

    def give_back(self) -> None:
        """All of it. May be called more than once."""
        self._shares.give_back(self._holders, self._many)
        self._many = 0
