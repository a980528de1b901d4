"""PTP inside vLLM, as a plugin: installing this package is enough. See docs/serving.md.

``plugin`` chooses the pruned class of a model whose configuration holds "ptprune"; ``settings`` and ``turn`` say what
to prune by, ``processor`` (where requests come in) makes prompts shorter, ``model`` (where tensors are) chooses the
tokens. ``internvl`` says what is where in the served model classes, nothing else knows them.
"""
