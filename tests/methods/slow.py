"""The rivals written out slowly, in loops over plain numbers; only ``ImageEvidence`` and its layout are the package's.

Every function takes an image and the number of tokens to keep, and returns the kept indices and, by index, the hidden
states that change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch

from ptprune.scores import ImageEvidence
from ptprune.selection import Selection, fuse

States = dict[int, list[float]]
Slow = Callable[[ImageEvidence, int], tuple[list[int], States]]


def best(scores: list[float], candidates: list[int], number: int) -> list[int]:
    return sorted(candidates, key=lambda i: (-scores[i], i))[:number]


def regions(image: ImageEvidence) -> list[list[int]]:
    numbers = image.layout.region_of.tolist()
    return [[i for i, number in enumerate(numbers) if number == r] for r in range(len(image.layout.regions))]


def share_out(rates: list[float | Fraction], sizes: list[int], total: int) -> list[int]:
    """``total`` in proportion to the rates, nobody over their size: pour until the next is full, largest remainder."""
    if not any(rates):
        rates = list(sizes)
    rates = [Fraction(rate) for rate in rates]
    shares, left = [Fraction(0)] * len(sizes), Fraction(total)
    while left:
        thirsty = [i for i in range(len(sizes)) if shares[i] < sizes[i] and rates[i]]
        if not thirsty:
            rates = [Fraction(size) for size in sizes]
            continue
        steps = [(sizes[i] - shares[i]) / rates[i] for i in thirsty]
        step = min([left / sum(rates[i] for i in thirsty), *steps])
        for i in thirsty:
            shares[i] += step * rates[i]
            left -= step * rates[i]
    budgets = [math.floor(share) for share in shares]
    while sum(budgets) < total:
        remainders = [share - budget for share, budget in zip(shares, budgets, strict=True)]
        budgets[remainders.index(max(remainders))] += 1
    return budgets


def even(image: ImageEvidence, total: int) -> list[int]:
    sizes = [len(tokens) for tokens in regions(image)]
    return share_out(list(sizes), sizes, total)


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def uniform_grid(image: ImageEvidence, total: int) -> tuple[list[int], States]:
    kept = []
    for region, tokens, budget in zip(image.layout.regions, regions(image), even(image, total), strict=True):
        if not budget:
            continue
        rows, columns = region.grid
        lines = round((budget * rows / columns) ** 0.5)
        while lines * columns < budget:
            lines += 1
        lines = max(1, min(lines, rows, budget))
        given = 0
        for line in range(lines):
            here = (line + 1) * budget // lines - given
            given += here
            row = math.floor((line + Fraction(1, 2)) * Fraction(rows, lines))
            for i in range(here):
                column = math.floor((i + Fraction(1, 2)) * Fraction(columns, here))
                kept.append(tokens[row * columns + column])
    return sorted(kept), {}


def fastv(image: ImageEvidence, total: int) -> tuple[list[int], States]:
    scores = image.last_attention.tolist()
    return sorted(best(scores, list(range(len(scores))), total)), {}


def fastervlm(image: ImageEvidence, total: int) -> tuple[list[int], States]:
    scores, kept = image.encoder_attention.tolist(), []
    for tokens, budget in zip(regions(image), even(image, total), strict=True):
        kept += best(scores, tokens, budget)
    return sorted(kept), {}


def vispruner(image: ImageEvidence, total: int, important_ratio: float = 0.5) -> tuple[list[int], States]:
    scores, features = image.encoder_attention.tolist(), image.token_features.tolist()
    kept = []
    for tokens, budget in zip(regions(image), even(image, total), strict=True):
        order = best(scores, tokens, len(tokens))
        important = int(budget * important_ratio)
        kept += order[:important]
        rest, wanted = order[important:], budget - important
        while wanted and len(rest) > wanted:
            a, b = [rest[i] for i in range(0, len(rest), 2)], [rest[i] for i in range(1, len(rest), 2)]
            likeness = [max(cosine(features[i], features[j]) for j in b) for i in a]
            ranked = sorted(range(len(a)), key=lambda k: (-likeness[k], k))
            rest = [a[k] for k in ranked[min(8, len(rest) - wanted) :]] + b
        kept += rest[:wanted]
    return sorted(kept), {}


def guided_shares(image: ImageEvidence) -> list[float]:
    """How much of the attention falls on each region, by area of the thumbnail's tokens."""
    scores, tokens, thumbnail = image.encoder_attention.tolist(), regions(image), image.layout.thumbnail
    if thumbnail is None:
        masses = [sum(scores[i] for i in mine) for mine in tokens]
    else:
        rows, columns = image.layout.regions[thumbnail].grid
        masses = []
        for number, place in enumerate(image.layout.places()):
            left, top, right, bottom = place.box
            mass = 0.0
            for row in range(rows):
                for column in range(columns):
                    height = min(bottom * rows, row + 1) - max(top * rows, row)
                    width = min(right * columns, column + 1) - max(left * columns, column)
                    if height > 0 and width > 0 and number != thumbnail:
                        mass += height * width * scores[tokens[thumbnail][row * columns + column]]
            masses.append(mass)
    return [round(mass / sum(masses), 9) if any(masses) else 0.0 for mass in masses]


def hired(image: ImageEvidence, total: int, alpha: float = 0.5) -> tuple[list[int], States]:
    scores, shares, tokens = image.encoder_attention.tolist(), guided_shares(image), regions(image)
    thumbnail = image.layout.thumbnail
    tiles = [r for r in range(len(tokens)) if r != thumbnail]
    sizes = [len(tokens[r]) for r in tiles]
    kept, own = [], 0
    if thumbnail is not None:
        own = min(int(total * alpha), len(tokens[thumbnail]))
        own = max(own, total - sum(sizes))
        kept += best(scores, tokens[thumbnail], own)
    rates = [Fraction(shares[r] / len(tokens[r])) * len(tokens[r]) for r in tiles]
    for r, budget in zip(tiles, share_out(rates, sizes, total - own), strict=True):
        kept += best(scores, tokens[r], budget)
    return sorted(kept), {}


def at_place(small: list[list[float]], y: float, x: float) -> float:
    """Bilinear between cell centres, ``y`` and ``x`` in fractions of the picture."""
    rows, columns = len(small), len(small[0])
    y, x = min(max(y * rows - 0.5, 0), rows - 1), min(max(x * columns - 0.5, 0), columns - 1)
    y0, x0 = min(int(y), max(rows - 2, 0)), min(int(x), max(columns - 2, 0))
    y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
    upper = small[y0][x0] * (1 - x + x0) + small[y0][x1] * (x - x0)
    lower = small[y1][x0] * (1 - x + x0) + small[y1][x1] * (x - x0)
    return upper * (1 - y + y0) + lower * (y - y0)


def of_length_one(values: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in values))
    return [value / length if length else 0.0 for value in values]


def globalcom2(image: ImageEvidence, total: int, temperature: float = 10.0) -> tuple[list[int], States]:
    attention, shares, tokens = image.encoder_attention.tolist(), guided_shares(image), regions(image)
    thumbnail = image.layout.thumbnail
    tiles = [r for r in range(len(tokens)) if r != thumbnail]
    powers = {r: math.exp(shares[r] / temperature) for r in tiles}
    factors = [1 + powers[r] / sum(powers.values()) - 1 / len(tiles) if r in tiles else 1.0 for r in range(len(tokens))]
    sizes = [len(mine) for mine in tokens]
    budgets = share_out([factor * size for factor, size in zip(factors, sizes, strict=True)], sizes, total)
    kept = []
    for number, (region, place, mine) in enumerate(
        zip(image.layout.regions, image.layout.places(), tokens, strict=True)
    ):
        combined = of_length_one([attention[i] for i in mine])
        if thumbnail is not None and number != thumbnail:
            rows, columns = image.layout.regions[thumbnail].grid
            flat = [attention[i] for i in tokens[thumbnail]]
            small = [flat[row * columns : (row + 1) * columns] for row in range(rows)]
            left, top, right, bottom = place.box
            seen = []
            for k in range(len(mine)):
                row, column = divmod(k, region.grid[1])
                y = top + (row + 0.5) / region.grid[0] * (bottom - top)
                x = left + (column + 0.5) / region.grid[1] * (right - left)
                seen.append(at_place(small, y, x))
            combined = [a + b for a, b in zip(combined, of_length_one(seen), strict=True)]
        ranked = sorted(range(len(mine)), key=lambda k: (-combined[k], k))
        kept += [mine[k] for k in ranked[: budgets[number]]]
    return sorted(kept), {}


def visionzip(image: ImageEvidence, total: int, contextual_ratio: float = 10 / 64) -> tuple[list[int], States]:
    scores, features, embeddings = (
        image.encoder_attention.tolist(),
        image.token_features.tolist(),
        image.embeddings.tolist(),
    )
    kept, states = [], {}
    for tokens, budget in zip(regions(image), even(image, total), strict=True):
        contextual = round(budget * contextual_ratio)
        dominant = best(scores, tokens, budget - contextual)
        kept += dominant
        rest = [i for i in tokens if i not in dominant]
        targets = [rest[k * (len(rest) // contextual)] for k in range(contextual)]
        clusters = {target: [target] for target in targets}
        for i in rest:
            if targets and i not in targets:
                likeness = [cosine(features[i], features[target]) for target in targets]
                clusters[targets[likeness.index(max(likeness))]].append(i)
        kept += targets
        for target, cluster in clusters.items():
            if len(cluster) > 1:
                columns = zip(*(embeddings[i] for i in cluster), strict=True)
                states[target] = [sum(column) / len(cluster) for column in columns]
    return sorted(kept), states


def divprune(image: ImageEvidence, total: int) -> tuple[list[int], States]:
    vectors = image.embeddings.tolist()
    count = len(vectors)
    distance = [[1 - cosine(a, b) for b in vectors] for a in vectors]
    first = [min([distance[i][j] for j in range(count) if j != i], default=0.0) for i in range(count)]
    chosen = [first.index(max(first))]
    while len(chosen) < total:
        others = [i for i in range(count) if i not in chosen]
        nearest = [min(distance[i][j] for j in chosen) for i in others]
        chosen.append(others[nearest.index(max(nearest))])
    return sorted(chosen), {}


def dart(image: ImageEvidence, total: int, pivots: int = 8) -> tuple[list[int], States]:
    states = image.hidden_states.tolist()
    sizes = [sum(abs(x) for x in state) for state in states]
    turns = best(sizes, list(range(len(states))), min(pivots, total))
    kept = list(turns)
    for number, pivot in enumerate(turns):
        wanted = len([k for k in range(len(turns), total) if (k - len(turns)) % len(turns) == number])
        left = [i for i in range(len(states)) if i not in kept]
        kept += sorted(left, key=lambda i: (cosine(states[pivot], states[i]), i))[:wanted]  # noqa: B023
    return sorted(kept), {}


def sparsevlm(image: ImageEvidence, total: int) -> tuple[list[int], States]:
    visual, text = image.embeddings.tolist(), image.instruction_embeddings.tolist()
    relevance = [0.0] * len(text)
    for token in visual:
        products = [sum(x * y for x, y in zip(token, word, strict=True)) for word in text]
        powers = [math.exp(product - max(products)) for product in products]
        relevance = [r + power / sum(powers) / len(visual) for r, power in zip(relevance, powers, strict=True)]
    raters = [i for i, r in enumerate(relevance) if r > sum(relevance) / len(relevance)]
    rows = image.instruction_map.tolist()
    raters = raters or list(range(len(rows)))
    scores = [sum(rows[i][j] for i in raters) / max(1, len(raters)) for j in range(len(visual))]
    return sorted(best(scores, list(range(len(visual))), total)), {}


def determinant(matrix: list[list[float]]) -> float:
    """By elimination, with the largest pivot."""
    rows, product = [list(row) for row in matrix], 1.0
    for k in range(len(rows)):
        pivot = max(range(k, len(rows)), key=lambda i: abs(rows[i][k]))  # noqa: B023
        if not rows[pivot][k]:
            return 0.0
        if pivot != k:
            rows[k], rows[pivot], product = rows[pivot], rows[k], -product
        product *= rows[k][k]
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [x - factor * y for x, y in zip(rows[i], rows[k], strict=True)]
    return product


def determinantal(
    vectors: list[list[float]],
    weights: list[float],
    candidates: list[int],
    total: int,
    given: Sequence[int] = (),
    ridge: float = 0.01,
) -> list[int]:
    """Greedily the tokens of the largest determinant, each from explicit determinants of the whole chosen set."""

    def kernel(chosen: list[int]) -> list[list[float]]:
        return [[1 + ridge if i == j else cosine(vectors[i], vectors[j]) for j in chosen] for i in chosen]

    def gain(i: int) -> float:
        return weights[i] ** 2 * determinant(kernel([*chosen, i])) / determinant(kernel(chosen))

    chosen = list(given)[:total]
    while len(chosen) < min(total, len(vectors[0])):
        gains = {i: gain(i) for i in candidates if i not in chosen}
        chosen.append(min(gains, key=lambda i: (-gains[i], i)))  # noqa: B023
    gains = {i: gain(i) for i in candidates if i not in chosen}
    return chosen + sorted(gains, key=lambda i: (-gains[i], i))[: total - len(chosen)]


def scope(image: ImageEvidence, total: int, alpha: float = 1.0) -> tuple[list[int], States]:
    attention, features, kept = image.encoder_attention.tolist(), image.token_features.tolist(), []
    for tokens, budget in zip(regions(image), even(image, total), strict=True):
        chosen: list[int] = []
        while len(chosen) < budget:
            covered = {j: max([0.0, *(cosine(features[j], features[k]) for k in chosen)]) for j in tokens}
            gains = {}
            for i in tokens:
                if i not in chosen:
                    more = sum(max(0.0, cosine(features[i], features[j]) - covered[j]) for j in tokens)
                    gains[i] = more * attention[i] ** alpha
            chosen.append(min(gains, key=lambda i: (-round(gains[i], 5), i)))  # noqa: B023
        kept += chosen
    return sorted(kept), {}


def cdpruner(image: ImageEvidence, total: int) -> tuple[list[int], States]:
    visual, text = image.embeddings.tolist(), image.instruction_embeddings.tolist()
    paid = [sum(cosine(token, word) for word in text) / len(text) for token in visual]
    low, high = min(paid), max(paid)
    relevance = [(value - low) / (high - low) if high > low else 0.0 for value in paid]
    kept = []
    for tokens, budget in zip(regions(image), even(image, total), strict=True):
        kept += determinantal(visual, relevance, tokens, budget)
    return sorted(kept), {}


def tops_set(
    vectors: list[list[float]], relevance: list[float], total: int, a: float, c: float, scale: str = "minmax"
) -> list[int]:
    """One stage of TOPS: the greedy sum of relevance, diversity and coverage."""
    low, high, mean = min(relevance), max(relevance), sum(relevance) / len(relevance)
    if scale == "mean":
        scaled = [r / mean if mean else 0.0 for r in relevance]
    else:
        scaled = [(r - low) / (high - low) if high > low else 0.0 for r in relevance]
    count = len(vectors)
    likeness = [[min(1.0, cosine(x, y)) for y in vectors] for x in vectors]
    chosen = [scaled.index(max(scaled))]
    while len(chosen) < total:
        nearest = [1.0 if j in chosen else max(likeness[j][k] for k in chosen) for j in range(count)]
        left = [i for i in range(count) if i not in chosen]
        d = [0.0 if i in chosen else 1 - nearest[i] for i in range(count)]
        cover = [sum(max(0.0, likeness[i][j] - nearest[j]) for j in left if i in left) for i in range(count)]
        total_of = []
        for term in (d, cover):
            size = sum(term) / len(left) if scale == "mean" else max(term)
            total_of.append([value / max(size, 1e-6) for value in term])
        sums = {i: scaled[i] + a * total_of[0][i] + c * total_of[1][i] for i in left}
        chosen.append(min(left, key=lambda i: (-round(sums[i], 5), i)))  # noqa: B023
    return sorted(chosen)


def neighbourhood(image: ImageEvidence) -> list[float]:
    """The strongest attention around a token, weaker by the row and the column."""
    members, shared = regions(image), []
    for i, number in enumerate(image.layout.region_of.tolist()):
        columns = image.layout.regions[number].grid[1]
        row, column = divmod(members[number].index(i), columns)
        found = []
        for cell, j in enumerate(members[number]):
            down, across = abs(cell // columns - row), abs(cell % columns - column)
            if down <= 1 and across <= 3:
                found.append(image.instruction_attention[j].item() * 0.4**down * 0.9**across)
        shared.append(max(found))
    return shared


def counts(vectors: list[list[float]], weights: list[float], tokens: Sequence[int]) -> dict[int, float]:
    """Token -> what it counts among ``tokens``, given that it is like some that weigh more."""
    found = {}
    for i in tokens:
        better = [j for j in tokens if (-weights[j], j) < (-weights[i], i)]
        strongest = max((cosine(vectors[i], vectors[j]) ** 2 for j in better), default=0.0)
        found[i] = weights[i] ** 2 * (1 - strongest)
    return found


def ptp_scores(image: ImageEvidence, alpha: float = 0.6) -> list[float]:
    """The scores of PTP's first cut."""
    return fuse(image.encoder_attention.float(), torch.tensor(neighbourhood(image)), alpha).tolist()


def ptp_scores_again(first: ImageEvidence, left: list[int], image: ImageEvidence) -> list[float]:
    """Those of the second: three quarters from the first, of what it left, and one quarter what the question says."""
    scores = ptp_scores(first)
    return fuse(torch.tensor([scores[i] for i in left]), image.instruction_attention.float(), 0.25).tolist()


def ptp_weights(scores: list[float], power: float = 0.25) -> list[float]:
    return [max(value, 1e-6) ** power for value in scores]


def check_ptp(image: ImageEvidence, scores: list[float], kept: list[int]) -> None:
    """The tokens that count most, but for rounding: equal tiles leave duplicates, which count for nothing."""
    found = counts(image.embeddings.float().tolist(), ptp_weights(scores), range(len(scores)))
    dropped = found.keys() - set(kept)
    assert min(found[i] for i in kept) >= max((found[i] for i in dropped), default=0) - 1e-5


SLOW: dict[str, Slow] = {
    "uniform-grid": uniform_grid,
    "fastv": fastv,
    "fastervlm": fastervlm,
    "vispruner": vispruner,
    "hired": hired,
    "globalcom2": globalcom2,
    "visionzip": visionzip,
    "divprune": divprune,
    "dart": dart,
    "sparsevlm": sparsevlm,
    "scope": scope,
    "cdpruner": cdpruner,
}


def check(selection: Selection, image: ImageEvidence, kept: list[int], states: States) -> None:
    """A method's answer is the slow one: the same tokens, the same merged states, all others as they were."""
    assert selection.kept.tolist() == kept
    if not states:
        assert selection.states is None
        return
    expected = image.embeddings.clone()
    for index, state in states.items():
        expected[index] = torch.tensor(state)
    torch.testing.assert_close(selection.states, expected[selection.kept], atol=1e-5, rtol=1e-5)
    same = [k for k, index in enumerate(kept) if index not in states]
    assert torch.equal(selection.states[same], image.embeddings[selection.kept[same]])
