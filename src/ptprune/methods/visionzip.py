"""VisionZip, Yang et al., arXiv 2412.04467: keep dominant tokens and merge the rest into contextual tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection, keep_best
from ptprune.settings import SHARE, Rule, is_whole, setting


@dataclass(kw_only=True)
class VisionZip(TokenPruner):
    """VisionZip: keep what [CLS] attends to and merge the rest into a few averages; every token leaves a trace.

    Source: Senqiao Yang et al., arXiv 2412.04467, dominant tokens and contextual tokens (10 of 64 are contextual). As
    in their code, every tile is compressed by itself. [CLS] attention chooses the dominant tokens. Every n-th of the
    others is a target, and each remaining token joins the target that it is most similar to.

    Differs here: exactly K tokens of each image are kept, the same share of each tile. Similarity compares the vision
    encoder's features; theirs compares the keys at its last layer but one. Merging averages the language model's
    embeddings, including the target's; theirs adds the mean of the others to the target before the projector, which
    would double an embedding's length. A merged token takes its target's position; theirs follow the dominant ones.
    [CLS] is not passed on. Equal scores rank by index. Without [CLS], the mean attention from all patches replaces it.

    Attributes:
        contextual_ratio: share of the kept tokens that are averages.
    """

    needs = frozenset({"encoder_attention", "token_features", "embeddings"})
    layer: int = setting(
        0, Rule("0 (tokens are merged before the language model)", lambda layer: is_whole(layer) and layer == 0)
    )
    contextual_ratio: float = setting(10 / 64, SHARE)

    def select(self, image: ImageEvidence) -> Selection:
        attention, features = image.finite("encoder_attention"), F.normalize(image.finite("token_features"), dim=-1)
        states, kept, merges = image.require("embeddings").clone(), [], False
        budgets = image.layout.even_budgets(self.num_kept(image.layout.num_tokens))
        for tokens, budget in zip(image.layout.members(), budgets, strict=True):
            contextual = round(budget * self.contextual_ratio)
            dominant = keep_best(attention[tokens], budget - contextual)
            others = torch.ones_like(tokens, dtype=torch.bool)
            others[dominant] = False
            rest = tokens[others]
            kept.append(tokens[dominant])
            if contextual:
                is_target = torch.zeros_like(rest, dtype=torch.bool)
                is_target[:: len(rest) // contextual][:contextual] = True
                targets, rest = rest[is_target], rest[~is_target]
                kept.append(targets)
                merges |= len(rest) > 0
                states[targets] = merged(states, features, targets, rest)
        indices = torch.cat(kept).sort().values
        return Selection(indices, scores={"token": attention}, states=states[indices] if merges else None)


def merged(states: Tensor, features: Tensor, targets: Tensor, rest: Tensor) -> Tensor:
    """Average each target's embedding with those of the tokens of ``rest`` that are most similar to it: [targets, D].

    Args:
        states: [num_tokens, D].
        features: FloatTensor [num_tokens, d], unit vectors.
    """
    nearest = (features[rest] @ features[targets].T).argmax(dim=1)
    # a matrix product, because adding by index has no fixed order on GPUs
    joins = (nearest == torch.arange(len(targets), device=nearest.device)[:, None]).float()
    total = states[targets].float() + joins @ states[rest].float()
    return (total / (1 + joins.sum(dim=1, keepdim=True))).to(states.dtype)
