"""Verified artifacts -> one archive that another team installs and checks (docs/bundles.md)."""
