"""OpenBao and Vault: secrets in a KV engine, version 2, one path below our prefix for each namespace and name."""
