"""Several processes on the same listeners, and the one that starts them, tells them and replaces them."""
