"""proxyd: an egress proxy for log agents, with one policy and one record behind every door."""

__version__ = "0.1.0"
