"""Independent oracles: PTP written out slowly, and the stock model made to ignore what was dropped.

Nothing here imports the package: a bug in it cannot hide in its own oracle.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tests.zoo.specimen import Inputs, Specimen


def language_model(model: nn.Module) -> nn.Module:
    return model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model


@contextmanager
def blocked(
    model: nn.Module,
    dropped: Tensor,
    layer: int,
    attention_mask: Tensor,
    prompt_end: Tensor | None = None,
    compact: bool = False,
) -> Iterator[None]:
    """The stock model, each layer with an additive 4D mask that blocks dropped positions besides what it blocks anyway.

    A dropped position is blocked for every query in the layers >= ``layer``, and in all layers for the queries from
    ``prompt_end`` on (generated tokens and later turns). To be used without a cache: every call sees everything.

    Args:
        dropped: BoolTensor [batch, prompt]; for beams the rows repeat.
        attention_mask: [batch, prompt].
        prompt_end: LongTensor [prompt], for each position the length of the prompt it came with; all of it by default.
        compact: whether the layers >= ``layer`` number the remaining tokens anew.
    """
    length = dropped.shape[1]
    ends = torch.full((length,), length) if prompt_end is None else prompt_end
    decoder = language_model(model)

    def mask_for(index: int, stock: Tensor | None, batch: int, total: int, dtype: torch.dtype) -> Tensor:
        copies = batch // len(dropped)
        gone = nn.functional.pad(dropped, (0, total - length)).repeat_interleave(copies, 0)
        real = nn.functional.pad(attention_mask.bool(), (0, total - length), value=True).repeat_interleave(copies, 0)
        query, key = torch.arange(total)[:, None], torch.arange(total)[None]
        later = query >= nn.functional.pad(ends, (0, total - length), value=10**9)[None]
        block = gone[:, None, :] & (torch.ones_like(later) if index >= layer else later)
        seen = (key <= query)[None] if stock is None else (stock if stock.dtype == torch.bool else stock == 0)[:, 0]
        allowed = seen & real[:, None, :] & ~block
        mask = torch.zeros(batch, 1, total, total, dtype=dtype)
        return mask.masked_fill(~allowed[:, None], torch.finfo(dtype).min)

    def before(index: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        states = args[0]
        batch, total = states.shape[:2]
        kwargs = {**kwargs, "attention_mask": mask_for(index, kwargs["attention_mask"], batch, total, states.dtype)}
        if compact and index >= layer:
            gone = nn.functional.pad(dropped, (0, total - length)).repeat_interleave(batch // len(dropped), 0)
            position_ids = (kwargs["position_ids"] - gone.cumsum(1)).clamp(min=0)
            kinds = [decoder.config.layer_types[index]] if type(decoder).__name__.startswith("Gemma3") else []
            kwargs["position_embeddings"] = decoder.rotary_emb(states, position_ids, *kinds)
        return args, kwargs

    hooks = [
        module.register_forward_pre_hook(lambda m, a, k, i=i: before(i, m, a, k), with_kwargs=True)
        for i, module in enumerate(decoder.layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def watched(attention: nn.Module) -> Iterator[list[Tensor]]:
    """The attention maps [batch, heads, queries, keys] that a module computes, by its file's own eager function."""
    maps: list[Tensor] = []
    source = sys.modules[type(attention).__module__]
    stock = source.eager_attention_forward

    def watching(module: nn.Module, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        output, weights = stock(module, *args, **kwargs)
        if module is attention:
            maps.append(weights)
        return output, weights

    source.eager_attention_forward = watching
    try:
        yield maps
    finally:
        source.eager_attention_forward = stock


def eager_twin(model: nn.Module) -> nn.Module:
    """The same weights with eager attention, which can show its maps."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    return twin


def minmax(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(v - low) / (high - low) if high > low else 0.0 for v in values]


def scored_vision_attention(model: nn.Module) -> nn.Module:
    """The attention module of the vision layer whose features the model uses."""
    model = model.model
    if hasattr(model, "visual"):
        return model.visual.blocks[-1].attn
    encoder = (model.vision_model if hasattr(model, "vision_model") else model.vision_tower).encoder
    layer = (encoder.layers if hasattr(encoder, "layers") else encoder.layer)[
        getattr(model.config, "vision_feature_layer", -1)
    ]
    return layer.self_attn if hasattr(layer, "self_attn") else layer.attention


def vision_evidence(specimen: Specimen, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """What the scores are made of, from the stock model's own maps.

    Returns:
        Attention of each patch as ``specimen.pool`` takes it, and features: one a row of the encoder, or at native
        resolution one a patch.
    """
    attention, features = _encoded(specimen, model, inputs)
    if specimen.native:
        return attention, features
    return attention, features[:, 0] if specimen.name in ("internvl", "llava-next") else features.mean(1)


def projected_patches(specimen: Specimen, model: nn.Module, inputs: Inputs) -> Tensor:
    """The features that the projector sees, a patch, as ``specimen.pool`` takes its values, and a last dimension."""
    _, features = _encoded(specimen, model, inputs)
    return features[:, 1:] if specimen.name in ("internvl", "llava-next") else features


def _encoded(specimen: Specimen, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
    twin = eager_twin(model)
    attention = scored_vision_attention(twin)
    takes = inspect.signature(twin.model.get_image_features).parameters
    call = {name: value for name, value in inputs.items() if name in takes}
    with torch.no_grad(), watched(attention) as maps:
        if specimen.native:
            states: dict[str, Tensor] = {}
            visual = twin.model.visual
            visual.patch_embed.register_forward_hook(lambda m, a, out: states.update(emitted=out))
            visual.blocks[0].register_forward_pre_hook(lambda m, a: states.update(taken=a[0]))
            visual.blocks[-1].register_forward_hook(lambda m, a, out: states.update(last=out))
            output = twin.model.get_image_features(**call)
            received = torch.cat([one[0].mean((0, 1)) for one in maps])
            if specimen.name == "glm4v":  # merges patches before it returns them
                return received, output.last_hidden_state.repeat_interleave(4, 0)
            if specimen.name != "qwen2.5-vl":
                return received, states["last"]
            order = [int((states["emitted"] == row).all(-1).nonzero()[0, 0]) for row in states["taken"]]
            back = torch.tensor(order).argsort()
            return received[back], states["last"][back]
        output = twin.model.get_image_features(**call, output_hidden_states=True)
    (weights,) = maps
    if specimen.name in ("internvl", "llava-next"):
        states = output.last_hidden_state if specimen.name == "internvl" else output.hidden_states[-2]
        return weights.mean(1)[:, 0, 1:], states
    aya = specimen.name in ("aya-vision", "llava-onevision")  # these skip the last normalisation
    return weights.mean((1, 2)), (output.hidden_states[-1] if aya else output.last_hidden_state)


def region_numbers(specimen: Specimen, model: nn.Module, inputs: Inputs, window: int | None) -> list[list[int]]:
    """For every picture the region of each LLM token (-1: structural), by sending patch coordinates through ``pool``.

    Regions are numbered as the encoder's rows of the picture; windows row by row.
    """
    if specimen.native:
        numbers = []
        for image in inputs.layout:
            lines = []
            for length in image.grid:
                number = 1 if window is None else math.ceil(length / window)
                cuts = [round(i * length / number) for i in range(number + 1)]
                lines.append([sum(cut <= x for cut in cuts[1:]) for x in range(length)])
            numbers.append([row * (lines[1][-1] + 1) + column for row in lines[0] for column in lines[1]])
        return numbers
    tiles, patches = specimen.shape(model, inputs)
    side = math.isqrt(patches)
    inside = torch.arange(patches)
    row, column, is_thumbnail = (torch.zeros(tiles, patches) for _ in range(3))
    first = 0
    for image in inputs.layout:
        place = 0
        for tile in range(image.tiles):
            is_thumbnail[first + tile] = tile == image.thumbnail
            y, x = divmod(place, image.grid[1])
            row[first + tile], column[first + tile] = y * side + inside // side, x * side + inside % side
            place += tile != image.thumbnail
        first += image.tiles
    numbers = []
    pooled = [specimen.pool(model, inputs, values) for values in (row, column, is_thumbnail)]
    for image, rows, columns, small in zip(inputs.layout, *pooled, strict=True):
        mine = []
        for y, x, thumbnail in zip(rows.tolist(), columns.tolist(), small.tolist(), strict=True):
            if math.isnan(y):
                mine.append(-1)
            elif thumbnail:
                mine.append(image.thumbnail)
            else:
                tile = int((y + 0.5) / side) * image.grid[1] + int((x + 0.5) / side)
                mine.append(tile + 1 if image.thumbnail == 0 else tile)
        numbers.append(mine)
    return numbers


def slow_ptp(
    specimen: Specimen,
    model: nn.Module,
    inputs: Inputs,
    *,
    keep_ratio: float,
    layer: int,
    alpha: float = 0.5,
    temperature: float = 1.0,
    window: int | None = None,
) -> list[list[int]]:
    """Kept token indices of every image of the batch in order, by loops over stock attention maps."""
    patches, features = vision_evidence(specimen, model, inputs)
    bottom_up = specimen.pool(model, inputs, patches)
    twin = eager_twin(model)
    with torch.no_grad(), watched(language_model(twin).layers[max(layer - 1, 0)].self_attn) as maps:
        twin(**inputs)
    text_map = maps[0].mean(1)
    visual = specimen.visual(model, inputs)
    kept_all, row_of_encoder, taken = [], 0, dict.fromkeys(range(len(visual)), 0)
    for number, (image, regions) in enumerate(
        zip(inputs.layout, region_numbers(specimen, model, inputs, window), strict=True)
    ):
        valid = inputs["attention_mask"][image.sample].bool().tolist()
        where = visual[image.sample].nonzero()[:, 0].tolist()
        writing = [i for i, is_visual in enumerate(visual[image.sample].tolist()) if valid[i] and not is_visual]
        instruction = [i for i in writing if i > where[-1]] or writing
        mine = where[taken[image.sample] :][: len(regions)]
        taken[image.sample] += len(regions)
        prunable = [j for j, region in enumerate(regions) if region >= 0]
        bottom = [bottom_up[number][j].item() for j in prunable]
        top = [max(text_map[image.sample, i, mine[j]].item() for i in instruction) for j in prunable]
        fused = [(1 - alpha) * b + alpha * c for b, c in zip(minmax(bottom), minmax(top), strict=True)]
        total = max(1, round(keep_ratio * len(prunable)))
        members = {region: [k for k, j in enumerate(prunable) if regions[j] == region] for region in sorted({*regions})}
        members.pop(-1, None)

        if specimen.native:
            tokens = sum(len(indices) for indices in members.values())
            states = features[: 4 * tokens].view(tokens, 4, -1).double().mean(1)
            features = features[4 * tokens :]
            pooled = {region: states[indices].mean(0) for region, indices in members.items()}
            whole, thumbnail = states.mean(0), None
        else:
            rows = features[row_of_encoder : row_of_encoder + image.tiles].double()
            row_of_encoder += image.tiles
            pooled, thumbnail = {region: rows[region] for region in members}, image.thumbnail
            whole = rows[thumbnail or 0]
        budgets = dict.fromkeys(members, 0)
        if len(members) == 1:
            budgets[0] = total
        else:
            tiles = [region for region in members if region != thumbnail]
            saliency = [torch.cosine_similarity(pooled[t], whole, dim=0).item() for t in tiles]
            mean = sum(saliency) / len(saliency)
            spread = math.sqrt(sum((s - mean) ** 2 for s in saliency) / len(saliency))
            weights = [math.exp((s - mean) / spread / temperature) if spread > 1e-6 else 1.0 for s in saliency]
            sizes, left = [len(members[tile]) for tile in tiles], total
            if thumbnail is not None:
                share = round(total * len(members[thumbnail]) / len(prunable))
                budgets[thumbnail] = max(min(share, len(members[thumbnail])), total - sum(sizes))
                left -= budgets[thumbnail]
            budgets.update(zip(tiles, slow_budgets(weights, sizes, left), strict=True))
        kept = []
        for region, indices in members.items():
            kept += sorted(indices, key=lambda k: (-fused[k], k))[: budgets[region]]
        kept_all.append(sorted(kept))
    return kept_all


def slow_budgets(weights: list[float], capacities: list[int], total: int) -> list[int]:
    """Water-filling in proportion to weight times capacity by pouring until the next one is full, largest remainder."""
    shares, full = [0.0] * len(weights), set()
    rates = [weight * capacity for weight, capacity in zip(weights, capacities, strict=True)]
    left = float(total)
    while left > 1e-12 and len(full) < len(weights):
        mass = sum(rate for i, rate in enumerate(rates) if i not in full)
        # the largest step that fills no region beyond its capacity
        step = min([left / mass] + [(capacities[i] - shares[i]) / r for i, r in enumerate(rates) if i not in full])
        for i, rate in enumerate(rates):
            if i not in full:
                shares[i] += step * rate
        left -= step * mass
        full |= {i for i, share in enumerate(shares) if share >= capacities[i] - 1e-9}
    budgets = [min(capacity, math.floor(s + 1e-9)) for s, capacity in zip(shares, capacities, strict=True)]
    for i in sorted(range(len(shares)), key=lambda i: (budgets[i] - shares[i], i))[: total - sum(budgets)]:
        budgets[i] += 1
    return budgets
