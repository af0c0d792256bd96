"""The kernel: what every capability stands on, knowing no product and no capability."""
