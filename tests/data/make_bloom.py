#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/bloom: a small random BLOOM checkpoint, its tokenizer, and what transformers computes on it.

  make_bloom.py FOLDER        needs torch, transformers and tokenizers

Weights are random but large enough for attention to be uneven; six heads are no power of two, so both rules for the
slopes of ALiBi are used. They are stored in half precision; reference.json is computed from the stored values, in
double.
"""

import json
import pathlib
import sys

import tokenizers
import torch
import transformers

TEXT = "In the beginning, the sun rose over 12 hills; and the river (cold, wide) ran on! Was it so?\n" * 3
PROMPT = "The river ran on, and the hills"
PATTERN = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # of the BLOOM models


def make_tokenizer():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def make_model(tokenizer):
    torch.manual_seed(5)
    config = transformers.BloomConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=24, n_layer=2, n_head=6, bos_token_id=1,
                                      eos_token_id=2, pad_token_id=3, seq_length=256)
    model = transformers.BloomForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            deviation = 0.3 if parameter.dim() == 2 else 0.2
            offset = 1.0 if name.endswith("norm.weight") or name.endswith("ln_f.weight") else 0.0
            parameter.copy_(offset + deviation * torch.randn_like(parameter))
        # Greedy text shall be ASCII: decoders differ in how they show broken UTF-8.
        others = [i for i in range(tokenizer.get_vocab_size()) if not tokenizer.decode([i]).isascii()]
        model.transformer.word_embeddings.weight[others] *= 0.1
    return model.half()


def main():
    folder = pathlib.Path(sys.argv[1])
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").unlink(missing_ok=True)

    model = transformers.BloomForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    model.eval()
    ids = tokenizer.encode(TEXT).ids
    with torch.no_grad():
        result = model(torch.tensor([ids]), output_hidden_states=True)
        prompt = tokenizer.encode(PROMPT).ids
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0].tolist()
    text = tokenizer.decode(greedy, skip_special_tokens=False)
    assert text.isascii(), text
    logits = result.logits[0]
    reference = {
        "probe": {
            "text": TEXT,
            "ids": ids,
            "hidden_rms_by_layer": [h[0].square().mean().sqrt().item() for h in result.hidden_states],
            "last_logits_first16": logits[-1, :16].tolist(),
            "argmax": int(logits[-1].argmax()),
        },
        "greedy": {"prompt": PROMPT, "ids": greedy, "text": text},
    }
    (folder / "reference.json").write_text(json.dumps(reference, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
