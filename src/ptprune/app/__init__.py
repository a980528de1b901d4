"""``ptprune app``: a page in the browser that answers questions about pictures, pruned or not, and shows why.

``page`` needs the extra ``ptprune[web]``; everything else here works without Gradio and is tested without it.
"""
