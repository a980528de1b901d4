"""What only a GPU can show. The oracles run on the CPU: there, what is pruned is compared with the stock model."""

from __future__ import annotations

import copy

import pytest
import torch

from ptprune import PyramidTokenPruning
from tests.zoo import ZOO, inputs_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

torch.backends.cudnn.allow_tf32 = False  # else convolutions of patches differ in the third decimal
FAMILIES = ["internvl", "llava-next", "qwen2.5-vl", "gemma3", "smolvlm"]


def on_gpu(name, layers=3, dtype=torch.float32):
    """A family's tiny model on both devices, and its inputs."""
    model, inputs = ZOO[name].build(layers=layers), inputs_of(name, "one picture")
    there = copy.deepcopy(model).to("cuda", dtype)
    moved = {k: v.to("cuda", dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}
    return model, inputs, there, moved


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_gpu_prunes_as_the_cpu_does(name, layer):
    here, inputs, there, moved = on_gpu(name)
    outcomes = []
    for model, given in ((here, inputs), (there, moved)):
        pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer)
        with pruner(model):
            logits = model(**given).logits[:, -1].cpu()
            tokens = model.generate(**given, max_new_tokens=4, do_sample=False).cpu()
        outcomes.append((pruner.report.kept_mask, logits, tokens))
    (kept, logits, tokens), (kept_there, logits_there, tokens_there) = outcomes
    assert torch.equal(kept, kept_there)
    assert torch.allclose(logits, logits_there, atol=1e-3)
    assert torch.equal(tokens, tokens_there)


@pytest.mark.parametrize("name", FAMILIES[:3])
@torch.no_grad()
def test_decoding_in_cuda_graphs(name):
    *_, model, inputs = on_gpu(name, layers=2)
    with PyramidTokenPruning(keep_ratio=0.4, layer=1)(model):
        dynamic = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        for _ in range(3):  # the third call replays graphs that the first two warmed up and recorded
            static = model.generate(**inputs, max_new_tokens=6, do_sample=False, cache_implementation="static")
            assert torch.equal(static, dynamic)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_keeps_exact_budgets(dtype):
    *_, model, inputs = on_gpu("internvl", dtype=dtype)
    pruner = PyramidTokenPruning(keep_ratio=0.4)
    with pruner(model):
        logits = model(**inputs).logits
    assert torch.isfinite(logits[:, -1]).all()
    [image] = pruner.report.images
    assert len(image.kept) == round(0.4 * image.num_tokens)
