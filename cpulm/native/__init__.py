"""C++ kernels for everything in a training step but large matrix products, and the Python that calls them.

In eager mode torch computes a norm, a rotary embedding or a softmax in several passes over memory each. If
there is a C++ compiler, ``kernels.cpp`` and ``int8.cpp`` are compiled once for this CPU (two to three
seconds; kept in the cache) and need one or two passes; without a compiler everything runs in torch. A few
functions compiled once do not cost a minute before the first update; torch.compile, for each model, does.
"""
