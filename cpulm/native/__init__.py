"""Kernels in C++ for what training on a CPU does besides large matrix products.

In eager mode torch runs a norm, a rotation or a softmax in several passes over memory each. Where a C++
compiler is found, ``kernels.cpp`` is compiled once for this CPU (two to three seconds; kept in the cache) and
does each in one or two; where there is none, everything runs in torch. A few functions compiled once, rather
than each model's step by torch.compile, cost no minute before the first update.
"""
