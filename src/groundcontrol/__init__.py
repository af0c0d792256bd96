"""Ground Control: a control plane for day 2 of federated science clouds."""

__version__ = "0.1.0"
