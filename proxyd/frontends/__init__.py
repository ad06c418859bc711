"""The doors: how each protocol reads a request and says how it went."""
