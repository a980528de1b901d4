"""generate() with pruning, in the layout of a Hugging Face repository.

``model.generate(**inputs, custom_generate="OWNER/NAME", trust_remote_code=True, keep_ratio=0.5)`` runs this file from
the Hub, and from a folder if that is given instead of the name.
"""

from ptprune import METHODS


def generate(model, method="ptp", keep_ratio=0.5, layer=None, **arguments):
    """Attach a pruner for this one call.

    Args:
        method: a name of ``ptprune methods``.
        keep_ratio: share of visual tokens that stay.
        layer: drop before this decoder layer; None: the method's own.
    """
    settings = {"keep_ratio": keep_ratio} if layer is None else {"keep_ratio": keep_ratio, "layer": layer}
    with METHODS[method](**settings)(model):
        return model.generate(**arguments)
