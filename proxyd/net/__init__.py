"""Sockets: names to addresses, connections, and bytes between them."""
