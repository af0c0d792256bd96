"""Two independent OpenStack clouds of two releases on one Debian machine; only the hypervisors are make-believe."""
