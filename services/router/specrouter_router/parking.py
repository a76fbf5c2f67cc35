"""Calls that wait until a replica is there."""

from __future__ import annotations

from specrouter_router.flight import Flight

PATIENCE_S = 5.0


class Parking:
    """See the module. Times are seconds of the loop's clock."""

    def __init__(self) -> None:
        self._flights: list[Flight] = []

    def __bool__(self) -> bool:
        return bool(self._flights)

    def __contains__(self, flight: Flight) -> bool:
        return flight in self._flights

    def put(self, flight: Flight, now: float) -> None:
        """It waits from now on, or still: its patience is not renewed."""
        flight.number = 0
        flight.patience = flight.patience or now + PATIENCE_S
        self._flights.append(flight)

    def remove(self, flight: Flight) -> None:
        """It need not wait any more."""
        if flight in self._flights:
            self._flights.remove(flight)

    def empty(self) -> list[Flight]:
        """All of them."""
        flights, self._flights = self._flights, []
        return flights

    def in_vain(self, why: str) -> str:
        """What is said of a call that has waited long enough."""
        return f"{why} (waited {PATIENCE_S:g} s)"

    def expired(self, now: float) -> list[Flight]:
        """Those that have waited long enough."""
        gone = [flight for flight in self._flights if flight.patience <= now]
        for flight in gone:
            self._flights.remove(flight)
        return gone
