"""The cluster as the reconciler has it: mirrors to read from, the API server to write to."""

from __future__ import annotations

from collections.abc import Callable

from specrouter_operator.api import Api
from specrouter_operator.apply import Applier
from specrouter_operator.resource import (
    BUDGET,
    CONFIG_MAP,
    DEPLOYMENT,
    FAMILY,
    FAMILY_LABEL,
    INFERENCE_SERVICE,
    POLICY,
    SERVICE,
    Object,
    Resource,
    family_of,
    name_of,
)
from specrouter_operator.watch import Mirror

PRIMARY = (FAMILY, POLICY)
OWNED = (INFERENCE_SERVICE, DEPLOYMENT, SERVICE, BUDGET, CONFIG_MAP)


class AlienError(Exception):
    """An object of the wanted name exists, and is somebody else's."""


class RetryError(Exception):
    """Something has to happen first; try again soon."""


class World:
    """Mirrors of all resources of one namespace. ``changed`` gets the name of every family that changes."""

    def __init__(self, api: Api, changed: Callable[[str], None], *, relist: float = 300.0, watch: int = 60) -> None:
        self.api = api
        self._touched: dict[str, int] = {}

        def of_family(item: Object) -> None:
            changed(name_of(item))

        def of_policy(item: Object) -> None:
            changed(str(item.get("spec", {}).get("familyRef", {}).get("name", "")))

        def of_owned(item: Object) -> None:
            name = family_of(item)
            self._touched[name] = self._touched.get(name, 0) + 1
            changed(name)

        def mirror(resource: Resource, heard: Callable[[Object], None], selector: str = "") -> Mirror:
            return Mirror(api, resource, heard, selector=selector, relist=relist, watch=watch)

        self.mirrors = {
            FAMILY: mirror(FAMILY, of_family),
            POLICY: mirror(POLICY, of_policy),
            **{resource: mirror(resource, of_owned, FAMILY_LABEL) for resource in OWNED},
        }
        self._applier = Applier(api, self.mirrors)

    def synced(self) -> bool:
        """Whether every mirror has been filled."""
        return all(mirror.synced.is_set() for mirror in self.mirrors.values())

    def touched(self, family: str) -> int:
        """A number that differs whenever something happened to what the family owns."""
        return self._touched.get(family, 0)

    def lacks(self, resource: Resource) -> bool:
        """Whether the API server has no such resource."""
        return self.mirrors[resource].missing

    def get(self, resource: Resource, name: str) -> Object | None:
        """An object as last seen."""
        return self.mirrors[resource].get(name)

    def policies(self, family: str) -> list[Object]:
        """The policies of a family, oldest first."""
        found = [
            item
            for item in self.mirrors[POLICY].all()
            if item["spec"]["familyRef"]["name"] == family and not item["metadata"].get("deletionTimestamp")
        ]
        return sorted(found, key=lambda item: (item["metadata"]["creationTimestamp"], name_of(item)))

    def families(self) -> set[str]:
        """Names of all families that there are, or that a policy speaks of."""
        named = {str(item["spec"]["familyRef"]["name"]) for item in self.mirrors[POLICY].all()}
        return named | {name_of(item) for item in self.mirrors[FAMILY].all()}

    def owned(self, owner: Object) -> list[tuple[Resource, Object]]:
        """All objects that a family owns itself (not those that KServe made for it)."""
        return [
            (resource, item)
            for resource in OWNED
            for item in self.mirrors[resource].all()
            if family_of(item) == name_of(owner) and controller(item) == owner["metadata"]["uid"]
        ]

    def apply(self, resource: Resource, wish: Object) -> bool:
        """Make an object as wished, if it is ours to make. Raises ApiError, AlienError, RetryError."""
        name, uid = name_of(wish), wish["metadata"]["ownerReferences"][0]["uid"]
        live = self.get(resource, name)
        if live is None:  # either there is none, or it hasn't our label
            live = self.api.get(resource, name)
        if live is not None and controller(live) != uid:
            if family_of(live) == family_of(wish) and controller(live):
                raise RetryError(f"{resource.kind} {name}: of a former family of this name, going")
            raise AlienError(f"{resource.kind} {name} exists and belongs to somebody else")
        return self._applier.apply(resource, wish)

    def delete(self, resource: Resource, item: Object) -> None:
        """Delete an object. Raises ApiError."""
        self.api.delete(resource, item)
        self._applier.forget(resource, name_of(item))


def controller(item: Object) -> str:
    """The uid of what an object belongs to; "" if nothing."""
    for reference in item["metadata"].get("ownerReferences", []):
        if reference.get("controller"):
            return str(reference["uid"])
    return ""
