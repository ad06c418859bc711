"""proxyd: an egress proxy for log agents, with one policy and one record behind every door."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from proxyd.config import Config, ConfigError
    from proxyd.errors import ErrorType, ProxyError
    from proxyd.ledger.record import AccessRecord
    from proxyd.listening import ListenError
    from proxyd.policy.rules import Decision, Policy, Rule, Verdict
    from proxyd.request import Destination, Door, Identity, Request
    from proxyd.service import Proxy, ReloadReport

__all__ = [
    "AccessRecord",
    "Config",
    "ConfigError",
    "Decision",
    "Destination",
    "Door",
    "ErrorType",
    "Identity",
    "ListenError",
    "Policy",
    "Proxy",
    "ProxyError",
    "ReloadReport",
    "Request",
    "Rule",
    "Verdict",
    "__version__",
]

_HOMES = {
    "AccessRecord": "proxyd.ledger.record",
    "Config": "proxyd.config",
    "ConfigError": "proxyd.config",
    "Decision": "proxyd.policy.rules",
    "Destination": "proxyd.request",
    "Door": "proxyd.request",
    "ErrorType": "proxyd.errors",
    "Identity": "proxyd.request",
    "ListenError": "proxyd.listening",
    "Policy": "proxyd.policy.rules",
    "Proxy": "proxyd.service",
    "ProxyError": "proxyd.errors",
    "ReloadReport": "proxyd.service",
    "Request": "proxyd.request",
    "Rule": "proxyd.policy.rules",
    "Verdict": "proxyd.policy.rules",
}


def __getattr__(name: str) -> object:
    """A public name, from the module it lives in: whoever wants one of the codecs shall not load Twisted for it."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
