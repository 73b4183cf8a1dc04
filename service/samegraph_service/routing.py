"""Which version answers a call: a pure function of a table and what the caller asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from .errors import NotReady, UnknownModel, UnknownVersion

T = TypeVar("T")


@dataclass(frozen=True)
class ModelRoutes(Generic[T]):
    """The routes of one model.

    Attributes:
        ready: Version number → what serves it.
        states: Version number → why it is not ready (`loading`, `failed: …`), for every known version that is not.
        labels: Label → version number.
    """

    ready: Mapping[int, T]
    states: Mapping[int, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def default(self) -> int | None:
        """The version that answers calls that name none: the latest ready one."""
        return max(self.ready, default=None)


@dataclass(frozen=True)
class RouteTable(Generic[T]):
    """All routes; replaced as a whole when anything changes."""

    models: Mapping[str, ModelRoutes[T]] = field(default_factory=lambda: MappingProxyType({}))

    def resolve(self, model: str, version: int | None = None, label: str | None = None) -> tuple[int, T]:
        """Return the version that answers and what serves it.

        Raises:
            UnknownModel: The repository has no such model.
            UnknownVersion: The model has no such version or label.
            NotReady: It has, but it cannot answer now.
        """
        routes = self.models.get(model)
        if routes is None:
            raise UnknownModel(model, sorted(self.models))
        if label is not None:
            version = self._labelled(model, routes, label)
        if version is None:
            version = routes.default
            if version is None:
                reasons = "; ".join(f"version {v}: {why}" for v, why in sorted(routes.states.items()))
                raise NotReady(f"model {model!r} has no version that is ready ({reasons or 'none found'})", retry_after_s=1.0)
        served = routes.ready.get(version)
        if served is not None:
            return version, served
        if version in routes.states:
            raise NotReady(f"version {version} of model {model!r} is not ready: {routes.states[version]}", retry_after_s=1.0)
        raise UnknownVersion(
            f"model {model!r} has no version {version}; it has {', '.join(map(str, sorted(routes.ready))) or 'none ready'}"
        )

    @staticmethod
    def _labelled(model: str, routes: ModelRoutes[T], label: str) -> int:
        if label not in routes.labels:
            have = f"it has {', '.join(sorted(routes.labels))}" if routes.labels else "it has none"
            raise UnknownVersion(f"model {model!r} has no label {label[:64]!r}; {have}")
        return routes.labels[label]
