"""Operations and reads that pruning adds: pinned, so that no change raises them unseen."""

from dataclasses import replace

import pytest
import torch

from ptprune import PyramidTokenPruning
from ptprune.bench.overhead import PHASES, added, count, measure
from ptprune.bench.subject import Setup, choose_setup, prepare
from ptprune.methods import METHODS
from ptprune.methods.determinantal import STEPS
from tests.command import command


def setup_of(pruner, layers=4, tiles=3, batch=1):
    wanted = Setup(None, None, tiles, 16, batch, "cpu", "float32", "sdpa")
    return choose_setup(wanted, "internvl3-1b", layers, 2, [pruner])


def counted(method="ptp", layers=4, layer=2, tiles=3, batch=1, keep_ratio=0.5, encoder=None):
    pruner = METHODS[method](layer=layer, keep_ratio=keep_ratio, **(encoder or {}))
    setup = setup_of(pruner, layers, tiles, batch)
    [row] = measure(setup, {method: pruner}).rows
    return row


@pytest.mark.parametrize(
    ("method", "layer", "batch", "operations"),
    # the bound is 130 (200 before layer 0), and 2.5 times that for eight pictures
    [
        *(("ptp", *rest) for rest in [(2, 1, 116), (0, 1, 200), (2, 8, 246), (0, 8, 321)]),
        *(("ptp-paper", *rest) for rest in [(2, 1, 99), (0, 1, 183), (2, 8, 274), (0, 8, 349)]),
    ],
)
def test_ptp_adds_so_many_operations(method, layer, batch, operations):
    row = counted(method, layer=layer, batch=batch)
    assert (row.operations, row.reads) == (operations, 2)
    assert (row.decode_operations, row.decode_reads) == (0, 0)
    assert sum(row.operations_by_phase.values()) == row.operations
    assert sum(row.reads_by_phase.values()) == row.reads


@pytest.mark.parametrize(("layer", "batch", "operations"), [(2, 1, 214), (0, 1, 296), (2, 8, 493)])
def test_a_second_cut_adds_so_many_operations(layer, batch, operations):
    row = counted(layers=6, layer=layer, batch=batch, keep_ratio=0.1)
    assert (row.operations, row.reads) == (operations, 3)


def test_a_second_cut_that_drops_nothing_adds_what_lists_its_tokens():
    setup = setup_of(PyramidTokenPruning(), 6)
    rows = [measure(setup, {"ptp": PyramidTokenPruning(**given)}).rows for given in ({}, {"keep_tokens": 512})]
    [[once], [twice]] = rows
    assert (twice.operations, twice.reads) == (once.operations + 9, once.reads)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_added_where_everything_stays(method):
    row = counted(method, layers=8, keep_ratio=1, layer=METHODS[method]().layer)
    assert (row.operations, row.reads, row.decode_operations, row.decode_reads) == (0, 0, 0, 0)


@pytest.mark.parametrize("method", ["ptp", "fastv", "sparsevlm", "pyramiddrop"])
def test_a_number_of_tokens_that_is_not_reached_is_noticed_before_anything_is_scored(method):
    pruner = METHODS[method](keep_tokens=10**6)
    [row] = measure(setup_of(pruner, layers=8), {method: pruner}).rows
    assert row.reads == 1, "the prompt's ids"
    assert {*row.operations_by_phase} == {"watch the encoder", "find the images", "cut"}
    assert row.operations_by_phase["cut"] == 1, "the list of the tokens, for the report"


def test_neither_layers_nor_tiles_add_to_it():
    assert counted(layers=4).operations == counted(layers=7).operations == counted(tiles=8).operations


ADDED = {
    "random": (28, 1),
    "uniform-grid": (26, 1),
    "fastv": (61, 2),
    "pyramiddrop": (197, 4),  # three stages, a read each
    "fastervlm": (52, 2),
    "hired": (56, 3),  # the third read is the tile grid's, from the pixels
    "globalcom2": (93, 3),
    "visionzip": (121, 2),
    "dart": (69, 2),
    "sparsevlm": (84, 2),
}


@pytest.mark.parametrize("tiles", [3, 5])
@pytest.mark.parametrize("method", ADDED)
def test_rivals_whatever_the_number_of_tiles(method, tiles):
    row = counted(method, layers=6, layer=METHODS[method]().layer, tiles=tiles)
    assert (row.operations, row.reads) == ADDED[method]
    assert (row.decode_operations, row.decode_reads) == (0, 0)


@pytest.mark.parametrize("keep_ratio", [0.25, 0.5])
@pytest.mark.parametrize("tiles", [1, 3])
def test_divprune_adds_five_operations_a_choice(tiles, keep_ratio):
    row = counted("divprune", layer=0, tiles=tiles, keep_ratio=keep_ratio)
    tokens = 256 * (tiles + (tiles > 1))
    blocks = tokens // 256  # of the matrix in which the first token is looked for
    assert (row.operations, row.reads) == (5 * round(keep_ratio * tokens) + 6 * blocks + 36, 2)


@pytest.mark.parametrize("tiles", [3, 5])
@pytest.mark.parametrize("keep_ratio", [0.25, 0.5])
def test_vispruner_adds_eleven_operations_a_round(tiles, keep_ratio):
    row = counted("vispruner", layer=0, tiles=tiles, keep_ratio=keep_ratio)
    rounds = round((1 - keep_ratio) * 256) // 8
    assert (row.operations, row.reads) == (11 * rounds + 94, 2)


@pytest.mark.parametrize("tiles", [3, 5])
@pytest.mark.parametrize("keep_ratio", [0.1, 0.5])
def test_scope_adds_thirteen_operations_a_step(tiles, keep_ratio):
    row = counted("scope", layer=0, tiles=tiles, keep_ratio=keep_ratio)
    assert (row.operations, row.reads) == (13 * round(keep_ratio * 256) + 84, 2)


@pytest.mark.parametrize("tiles", [3, 5])
@pytest.mark.parametrize(("keep_ratio", "operations"), [(0.1, 965), (0.5, 2274)])
def test_cdpruner_whatever_the_number_of_tiles(tiles, keep_ratio, operations):
    row = counted("cdpruner", layers=6, layer=0, tiles=tiles, keep_ratio=keep_ratio)
    assert (row.operations, row.reads) == (operations, 2)


def test_tops_adds_nineteen_operations_a_choice():
    row = counted("tops", layers=6, layer=0, keep_ratio=0.05)
    choices = sum(METHODS["tops"](keep_ratio=0.05).num_after(cut, 4 * 256) for cut in range(3))
    assert (row.operations, row.reads) == (19 * choices + 299, 4)


@pytest.mark.parametrize("tiles", [3, 5])
@pytest.mark.parametrize("keep_ratio", [0.01, 0.1, 0.5])
def test_coverage_adds_so_many_operations(tiles, keep_ratio):
    """36 for each token, fewer than PTP without its region level beyond that, and from as many tokens on as a step
    takes several, no more."""
    pruner = PyramidTokenPruning(keep_ratio=keep_ratio, choose="coverage", first_ratio=0)
    [row] = measure(setup_of(pruner, tiles=tiles), {"ptp": pruner}).rows
    tokens = round(keep_ratio * 256 * (tiles + 1))
    assert (row.operations, row.reads) == (36 * tokens + 75 if tokens <= STEPS else 2320, 2)


def test_every_rival_is_counted():
    assert METHODS.keys() == ADDED.keys() | {"ptp", "ptp-paper", "divprune", "vispruner", "scope", "cdpruner", "tops"}


def test_every_phase_is_seen():
    assert set(PHASES) <= set(counted(encoder={"tiles": 2, "vision_layer": 1}, keep_ratio=0.2).operations_by_phase)


@pytest.mark.parametrize("tiles", [6, 8])
@pytest.mark.parametrize(
    ("encoder", "layer", "operations", "reads"),
    [
        ({"tiles": 2}, 2, 206, 3),
        ({"tiles": 2}, 0, 290, 3),
        ({"tiles": 2, "tile_score": "detail-attention"}, 2, 335, 4),  # runs the tower twice
        ({"vision_layer": 1}, 2, 222, 3),
        ({"tiles": 2, "vision_layer": 1}, 2, 268, 4),
    ],
)
def test_what_is_not_encoded_adds_the_same_whatever_the_number_of_tiles(encoder, layer, operations, reads, tiles):
    row = counted(encoder={**encoder, "first_ratio": 0}, layer=layer, tiles=tiles, keep_ratio=0.2)
    assert (row.operations, row.reads) == (operations, reads)
    assert row.reads_by_phase.get("choose tiles", 0) + row.reads_by_phase.get("watch the encoder", 0) <= 2
    assert (row.decode_operations, row.decode_reads) == (0, 0)


def test_groups_of_tiles_add_to_it_by_the_group():
    one, two = (counted(tiles=3, encoder={"tile_batch": size}) for size in (4, 2))
    assert (one.operations, one.reads) == (117, 2)
    assert two.operations - one.operations == 26 + 88, "what puts tiles in their places, and the tower once more"


def test_reads_are_noticed():
    values = torch.ones(3)
    for inference in (False, True):
        with torch.inference_mode(inference):
            counts, _ = count(
                lambda: (values.sum().item(), values.tolist(), values.nonzero(), values.cpu().numpy(), values + 1)
            )
        assert sum(counts.reads.values()) == 4


def test_indexing_by_a_mask_is_a_read():
    values, mask = torch.ones(3), torch.tensor([True, False, True])

    def put(value):
        values[mask] = value

    for run, reads in ((lambda: values[mask], 1), (lambda: put(torch.zeros(2)), 1), (lambda: put(0.0), 0)):
        counts, _ = count(run)
        assert sum(counts.reads.values()) == reads


def test_a_method_that_reads_in_a_loop_is_noticed():
    class Chatty(PyramidTokenPruning):
        def select(self, image):
            for value in image.require("encoder_attention")[:5]:
                float(value)
            return super().select(image)

    subject = prepare(setup_of(PyramidTokenPruning()))
    quiet, chatty = (added(subject, pruner)[0] for pruner in (PyramidTokenPruning(), Chatty()))
    assert sum(chatty.reads.values()) == sum(quiet.reads.values()) + 6, "five values, and the check of its answer"


def test_the_command(capsys):
    run = command(capsys, "bench", "overhead")
    document = run("--layers", 3, "--tiles", 2, "--methods", "ptp,random", "--json").document
    assert [row["method"] for row in document["rows"]] == ["ptp", "random"]
    assert document["kind"] == "overhead"
    assert document["layers"] == 3
    assert document["rows"][0]["synchronisations"] is document["rows"][0]["microseconds"] is None
    assert "not measured: no CUDA device" in run("--layers", 3, "--tiles", 2).out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: synchronisations are not measured")
def test_synchronisations():
    pruner = PyramidTokenPruning()
    setup = replace(setup_of(pruner), device="cuda")
    [row] = measure(setup, {"ptp": pruner}).rows
    assert row.synchronisations <= row.reads == 2
    [row] = measure(setup, {"ptp": PyramidTokenPruning(keep_ratio=1)}).rows
    assert row.synchronisations == 0
