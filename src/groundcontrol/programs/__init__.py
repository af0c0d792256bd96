"""What runs on a server: `serve`, `init`, `doctor`, `admin`. They put the program together."""
