"""Intermediate tensors of every backend under the exported graph's names, and errors per layer."""
