"""A second question about the same picture: it is neither encoded nor pruned again."""

from pathlib import Path

import torch

from ptprune import PyramidTokenPruning, load

PICTURE = str(Path(__file__).parents[1] / "scene.png")

model, processor = load()
tokenizer = processor.tokenizer


def user(*content):
    return [{"role": "user", "content": list(content)}]


first = processor.apply_chat_template(
    user({"type": "image", "url": PICTURE}, {"type": "text", "text": "which digit is blue?"}),
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)

pruner = PyramidTokenPruning(keep_ratio=0.5)
with pruner(model):  # around all turns: generate() has to know what the cache no longer holds
    answer = model.generate(**first, max_new_tokens=8, return_dict_in_generate=True)
    written = answer.sequences[:, first["input_ids"].shape[1] :]
    print(tokenizer.decode(written[0], skip_special_tokens=True).strip())
    print(pruner.report)

    # the new turn alone, as the chat template writes it behind what was said
    turn = processor.apply_chat_template(
        user({"type": "text", "text": "which letter is white?"}), add_generation_prompt=True, tokenize=False
    )
    new = tokenizer(turn, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    whole = torch.cat([answer.sequences, new], dim=1)  # all that was said, with every placeholder of the picture
    second = model.generate(
        input_ids=whole,
        attention_mask=torch.ones_like(whole),
        past_key_values=answer.past_key_values,  # which holds half of the picture
        max_new_tokens=8,
    )
    print(tokenizer.decode(second[0, whole.shape[1] :], skip_special_tokens=True).strip())
