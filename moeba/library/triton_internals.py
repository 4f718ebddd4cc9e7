"""Private names of Triton that Moeba's kernels reach; needs Triton."""

from __future__ import annotations

import triton.language as tl

# The functions behind `tl.sum` and `tl.max`, for `tl.reduce` and `tl.associative_scan` in an order of our own.
sum_combine = tl.standard._sum_combine
elementwise_max = tl.standard._elementwise_max
