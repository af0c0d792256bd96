"""Real parts for the tests: what brings up servers of other people's software on one machine, and takes them down."""
