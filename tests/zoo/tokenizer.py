"""A tokenizer of one token per word, with the special tokens that a family's processor asks for."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB, PAD = 200, 0
TEXT = """
    Here look at what is the red thing name it first then which of them shows larger here colour this tell me you see
    are and original image some crops to help better blue green left right top two one yes no dog cat
"""


def make_tokenizer(specials: Iterable[str] = (), **attributes: str) -> PreTrainedTokenizerFast:
    """Ids: padding, unknown, line break, words, special tokens, fillers up to ``VOCAB``.

    Args:
        specials: further tokens that are never split.
        attributes: special tokens that are attributes of the tokenizer as well (``image_token="<image>"``).
    """
    added = list(dict.fromkeys([*attributes.values(), *specials]))
    known = ["<pad>", "<unk>", "\n", *TEXT.split(), *added]
    known += [f"filler{index}" for index in range(VOCAB - len(known))]
    assert len(known) == len(set(known)) == VOCAB
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    core.add_special_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=attributes,
        model_input_names=["input_ids", "attention_mask"],
    )
