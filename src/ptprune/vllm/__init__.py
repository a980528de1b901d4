"""PTP inside vLLM, as a plugin: installing this package is enough. See docs/serving.md.

``plugin`` chooses the pruned class of a model whose configuration holds "ptprune"; ``settings`` and ``turn`` say what
to prune by, ``processor`` (where requests come in) makes prompts shorter, ``model`` (where tensors are) chooses the
tokens. One file a served model class says what is where, nothing else knows them.
"""
