"""C++ kernels for everything in a training step but large matrix products, and the Python that calls them.

In eager mode torch computes a norm, a rotary embedding or a softmax in several passes over memory each; the
kernels need one or two. A platform wheel ships them compiled. Elsewhere the C++ files are compiled once for
this CPU (two to three seconds; kept in the cache), and without a compiler torch does everything.
torch.compile, in comparison, costs a minute before the first update, for each model.
"""
