"""In anybody's program: threads, asyncio, streaming, interrupts, copies, compilers."""

from __future__ import annotations

import asyncio
import copy
import functools
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer

from ptprune import PyramidTokenPruning, RandomPruning
from ptprune.attach.attachment import attachment_of
from ptprune.errors import AttachError, Refused
from tests.attach.test_lifecycle import traces
from tests.internvl import batch, prompt, tiny_internvl

INPUTS = [batch(prompt([5, 6], tiles, [7, 8, 9]), seed=tiles) for tiles in (5, 3, 7, 2)]


@pytest.fixture
def model():
    model = tiny_internvl()
    with torch.no_grad():
        model(**INPUTS[0])  # transformers installs hooks of its own at the first call
    return model


def answer(model, inputs, **options):
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=6, **options)


def answers(model, pruner):
    """What each prompt gets by itself, unpruned and pruned."""
    stock = [answer(model, inputs) for inputs in INPUTS]
    with pruner(model):
        return stock, [answer(model, inputs) for inputs in INPUTS]


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_on_one_attached_model(model):
    pruner, before = PyramidTokenPruning(keep_ratio=0.3), traces(model)
    stock, alone = answers(model, pruner)
    assert any(not torch.equal(one, other) for one, other in zip(stock, alone, strict=True))

    def ask(number):
        with pruner.reports() as reports:
            return answer(model, INPUTS[number]), reports

    with pruner(model), ThreadPoolExecutor(4) as threads:
        got = list(threads.map(ask, [0, 1, 2, 3] * 6))
    for number, (tokens, reports) in zip([0, 1, 2, 3] * 6, got, strict=True):
        assert torch.equal(tokens, alone[number])
        assert [report.visual_tokens[0] for report in reports] == [4 * (5, 3, 7, 2)[number]], "its own report alone"
    assert traces(model) == before
    assert all(torch.equal(answer(model, inputs), one) for inputs, one in zip(INPUTS, stock, strict=True))


def test_threads_with_blocks_of_their_own(model):
    """Blocks of one pruner overlap: the model is pruned in each to its end, and clean after the last."""
    pruner, before = PyramidTokenPruning(keep_ratio=0.3), traces(model)
    _, alone = answers(model, pruner)
    barrier = threading.Barrier(4)

    def ask(number):
        barrier.wait()
        with pruner(model):
            return answer(model, INPUTS[number])

    for _ in range(5):
        with ThreadPoolExecutor(4) as threads:
            got = list(threads.map(ask, range(4)))
        assert all(torch.equal(one, other) for one, other in zip(got, alone, strict=True))
        assert traces(model) == before


def test_forward_passes_of_several_threads(model):
    pruner = PyramidTokenPruning(keep_ratio=0.3)
    with torch.no_grad(), pruner(model):
        alone = [model(**inputs).logits for inputs in INPUTS]

    def run(number):
        with torch.no_grad():
            return model(**INPUTS[number]).logits

    with pruner(model), ThreadPoolExecutor(4) as threads:
        got = list(threads.map(run, [0, 1, 2, 3] * 4))
    assert all(torch.equal(one, alone[number % 4]) for number, one in enumerate(got))


class Stepwise(BaseStreamer):
    """Lets each token wait for a signal."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def put(self, value):
        self.begun.set()
        assert self.go.wait(30)

    def end(self):
        pass


def test_a_block_that_is_left_while_a_thread_generates(model):
    """The usual streaming pattern: the block waits for the call that was begun inside it."""
    pruner, before = PyramidTokenPruning(keep_ratio=0.3), traces(model)
    _, alone = answers(model, pruner)
    streamer, got = Stepwise(), []
    thread = threading.Thread(target=lambda: got.append(answer(model, INPUTS[0], streamer=streamer)))
    with pruner(model):
        thread.start()
        assert streamer.begun.wait(30)
        threading.Timer(0.2, streamer.go.set).start()
    assert attachment_of(model) is None
    assert streamer.go.is_set(), "the block was left before the call ended"
    thread.join(30)
    assert torch.equal(got[0], alone[0])
    assert traces(model) == before


def test_a_thread_that_only_encodes_pictures_waits(model):
    """Its pictures are not those of the call at work."""
    pruner, inside, order = PyramidTokenPruning(keep_ratio=0.3), threading.Event(), []
    _, alone = answers(model, pruner)
    features = model.model.get_image_features

    def encode():
        assert inside.wait(30)
        model.model.get_image_features(INPUTS[1]["pixel_values"], return_dict=True)
        order.append("encoded")

    def hold(*_):
        inside.set()
        thread.join(0.2)  # it must not get in
        order.append("held")

    thread = threading.Thread(target=encode)
    hook = model.model.language_model.layers[0].register_forward_pre_hook(hold)
    with torch.no_grad(), pruner(model):
        thread.start()
        assert torch.equal(answer(model, INPUTS[0]), alone[0])
        thread.join(30)
    hook.remove()
    assert order[0] == "held"
    assert order[-1] == "encoded"
    assert model.model.get_image_features == features


def test_two_pruners_do_not_share_a_model(model):
    first = PyramidTokenPruning()
    with first(model), pytest.raises(AttachError, match="already: detach it first"), RandomPruning()(model):
        pass
    assert attachment_of(model) is None


def test_detaching_inside_a_call_is_refused(model):
    pruner, before = PyramidTokenPruning(), traces(model)
    pruner.attach(model)
    hook = model.lm_head.register_forward_pre_hook(lambda *_: pruner.detach())
    with pytest.raises(AttachError, match="inside a call"):
        answer(model, INPUTS[0])
    hook.remove()
    assert attachment_of(model) is not None
    pruner.detach()
    assert traces(model) == before


# --- asyncio ----------------------------------------------------------------------------------------------------------


def test_an_async_server(model):
    pruner = PyramidTokenPruning(keep_ratio=0.3)
    _, alone = answers(model, pruner)

    async def handle(number):
        with pruner(model), pruner.reports() as reports:
            tokens = await asyncio.to_thread(answer, model, INPUTS[number])
        return tokens, reports[0].visual_tokens[0]

    async def serve():
        return await asyncio.gather(*(handle(number % 4) for number in range(12)))

    for number, (tokens, visual) in enumerate(asyncio.run(serve())):
        assert torch.equal(tokens, alone[number % 4])
        assert visual == 4 * (5, 3, 7, 2)[number % 4]
    assert attachment_of(model) is None


# --- interrupts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
@pytest.mark.parametrize("where", ["vision", "scored attention", "later layer", "head"])
@pytest.mark.parametrize("layer", [0, 2])
def test_interrupts_leave_the_model_clean(model, where, error, layer):
    inputs = INPUTS[0]
    stock, before = answer(model, inputs), traces(model)
    module = {
        "vision": model.model.vision_tower.encoder.layer[-1].attention.q_proj,
        "scored attention": model.model.language_model.layers[max(layer - 1, 0)].self_attn.k_proj,
        "later layer": model.model.language_model.layers[3].mlp,
        "head": model.lm_head,
    }[where]

    def interrupt(*_):
        raise error

    pruner = PyramidTokenPruning(layer=layer)
    with pruner(model):
        pruned = answer(model, inputs)
        hook = module.register_forward_pre_hook(interrupt)
        for call in (lambda: answer(model, inputs), lambda: model(**inputs)):
            with pytest.raises(error), torch.no_grad():
                call()
        hook.remove()
        assert torch.equal(answer(model, inputs), pruned), "the next call is as if nothing had happened"
    assert traces(model) == before
    assert torch.equal(answer(model, inputs), stock)


def test_a_failed_call_has_no_report(model):
    pruner = PyramidTokenPruning()
    with pruner(model):
        answer(model, INPUTS[0])
        assert pruner.report is not None
        with pytest.raises(Refused, match="places for 20 visual tokens"):
            model(input_ids=INPUTS[0]["input_ids"], pixel_values=INPUTS[1]["pixel_values"])
        assert pruner.report is None, "the report of an earlier call is not this one's"


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda model: torch.save(model, io.BytesIO()),
        lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}),
        lambda model: copy.deepcopy(model.model),
    ],
    ids=["deepcopy", "torch.save", "quantize_dynamic", "deepcopy of a part"],
)
def test_copies_of_an_attached_model_are_refused(duplicate):
    model = tiny_internvl()  # the stock model itself cannot be saved whole once it has run
    before = traces(model)
    with PyramidTokenPruning()(model):
        with pytest.raises(AttachError, match="has a pruner attached: detach it before you copy"):
            duplicate(model)
        assert len(model.state_dict()) > 10
    assert traces(model) == before
    duplicate(model)
    assert torch.equal(answer(copy.deepcopy(model), INPUTS[0]), answer(model, INPUTS[0]))


def test_saving_the_weights_of_an_attached_model(model, tmp_path):
    with PyramidTokenPruning()(model):
        model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))
    assert attachment_of(again) is None


def test_somebody_wraps_the_model_after_us(model):
    """accelerate and others put a function of their own in place of forward: it must survive detaching."""
    pruner = PyramidTokenPruning()
    stock = answer(model, INPUTS[0])
    with pruner(model):
        ours, calls = model.forward, []

        @functools.wraps(ours)
        def theirs(*args, **kwargs):
            calls.append(1)
            return ours(*args, **kwargs)

        model.forward = theirs
    assert torch.equal(answer(model, INPUTS[0]), stock), "ours is still inside theirs, and passes everything on"
    assert calls


# --- compilers --------------------------------------------------------------------------------------------------------


def test_attaching_to_what_a_compiled_model_wraps(model):
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(**INPUTS[0])
    with pytest.raises(AttachError, match="is compiled"):
        PyramidTokenPruning().attach(model)
    assert compiled is not None


def test_compiling_an_attached_model(model):
    stock = answer(model, INPUTS[0])
    with PyramidTokenPruning()(model):
        pruned = answer(model, INPUTS[0])
        compiled = torch.compile(model, backend="eager")
        with pytest.raises(AttachError, match="is compiled while a pruner is attached"), torch.no_grad():
            compiled(**INPUTS[0])
        assert torch.equal(answer(compiled, INPUTS[0]), pruned), "generate() of a compiled model calls the stock one"
        model.forward = torch.compile(model.forward, backend="eager")
        with pytest.raises(AttachError, match="is compiled while a pruner is attached"):
            answer(model, INPUTS[0])
        del model.forward
    assert torch.equal(answer(model, INPUTS[0]), stock)


def test_compiling_a_part_of_an_attached_model(model):
    with PyramidTokenPruning()(model):
        model.model.language_model.layers[3].compile(backend="eager")
        with pytest.raises(AttachError, match=r"layers\.3 is compiled"), torch.no_grad():
            model(**INPUTS[0])


# --- changed while attached -------------------------------------------------------------------------------------------


def test_another_attention_implementation_after_attaching(model):
    pruner = PyramidTokenPruning()
    with torch.no_grad(), pruner(model):
        sdpa = model(**INPUTS[0]).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(**INPUTS[0]).logits, sdpa, atol=5e-5, rtol=1e-4)
        model.config.get_text_config()._attn_implementation = "flex_attention"
        with pytest.raises(Refused, match="'flex_attention' is not supported"):
            model(**INPUTS[0])


def test_a_static_cache_named_by_the_checkpoint(model):
    model.generation_config.cache_implementation = "static"
    with PyramidTokenPruning()(model):
        pruned = answer(model, INPUTS[0])
    model.generation_config.cache_implementation = None
    with PyramidTokenPruning()(model):
        assert torch.equal(answer(model, INPUTS[0]), pruned)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_outputs_of_every_layer(model, name):
    with PyramidTokenPruning()(model), torch.no_grad():
        for call in (lambda: model(**INPUTS[0], **{name: True}), lambda: answer(model, INPUTS[0], **{name: True})):
            with pytest.raises(Refused, match=f"{name}: layers behind the cut see fewer tokens"):
                call()
