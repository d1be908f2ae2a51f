"""Assembly of the sparse reduced system from the dense blocks of its hosts.

Hosts that see one another share most entries: a ring of 401 views with 80 links each has 2.7 million entries, the
blocks together 96 million. So the pattern comes first, and every block is added in place: memory is linear in the
pairs of cameras that some host connects.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from sparse_ga.products import Array


def empty_system(width: Array, touched: Sequence[Array]) -> csc_matrix:
    """A zero matrix (D, D) that stores every entry of the hosts' blocks.

    The D columns fall into parameters of `width` (B,) columns each; `touched` holds the sorted parameters of each host.
    """
    first = np.cumsum(width) - width
    bounds = np.cumsum([0, *(len(parameters) for parameters in touched)])
    column = np.concatenate([np.zeros(0, np.int64), *touched])
    by_host = csr_matrix((np.ones(len(column), np.int32), column, bounds), shape=(len(touched), len(width)))
    together = (by_host.T @ by_host).tocsc()  # (B, B)
    together.sort_indices()
    size = width[together.indices]  # (K,) rows of every block
    offset = np.concatenate([[0], np.cumsum(size)])
    rows = np.repeat(first[together.indices] - offset[:-1], size) + np.arange(offset[-1])
    ends = offset[together.indptr]  # (B + 1,)
    of_parameter = [np.tile(rows[a:b], w) for a, b, w in zip(ends[:-1], ends[1:], width)]
    indices = np.concatenate([np.zeros(0, np.int64), *of_parameter])
    indptr = np.concatenate([[0], np.cumsum(np.repeat(np.diff(ends), width))])
    return csc_matrix((np.zeros(len(indices)), indices, indptr), shape=(int(width.sum()),) * 2)


def add_block(system: csc_matrix, index: Array, width: Array, block: Array) -> None:
    """Add a host's `block` (g, g) at the sorted rows and columns `index` (g,), in place.

    `width` are those of the host's parameters, in order. All columns of a parameter store the same rows.
    """
    last = np.cumsum(width)
    for begin, end in zip(last - width, last):
        start, stop = system.indptr[index[begin]], system.indptr[index[begin] + 1]
        place = np.searchsorted(system.indices[start:stop], index)
        entries = system.data[start : start + (end - begin) * (stop - start)].reshape(end - begin, -1)
        entries[:, place] += block[:, begin:end].T
