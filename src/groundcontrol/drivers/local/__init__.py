"""Runs units as plain processes of Linux machines: in this process, or through an agent on another machine."""
