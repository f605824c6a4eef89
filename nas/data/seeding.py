"""Random streams that depend on their key alone."""

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """A generator of its own for every key, e.g. ``generator("epoch", seed, epoch)``.

    The global random state is neither read nor moved, so that a resumed run sees the same draws.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
