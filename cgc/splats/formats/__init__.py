"""Readers of packed splat files, one format each; `cgc.splats.packed` picks the one that a file needs."""
