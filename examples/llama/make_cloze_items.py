#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes multiple-choice items for `cbq-llama choose` from a text.

    make_cloze_items.py TEXT [-o ITEMS] [--items 500] [--choices 4] [--context 40] [--words 2] [--seed 1]

An item asks how a passage of the text goes on: the prompt is so many words of context, the right choice the next words,
the wrong ones as many words from elsewhere in the text whose first word is about as frequent. Prompts do not overlap
with each other's answers. The same text, options and seed give the same bytes. Standard library only.
"""

import argparse
import collections
import json
import random
import re
import sys


def starts_of_choices(words, text, count):
    """Indices of words at which a choice may start: `count` words of letters, single blanks before each."""
    plain = re.compile(r"[A-Za-z][A-Za-z'-]*")
    good = [
        text[begin - 1 : begin] == " " and text[begin - 2 : begin - 1].strip() != "" and plain.fullmatch(text[begin:end])
        for begin, end in words
    ]
    return [
        i
        for i in range(len(words) - count + 1)
        if words[i][1] - words[i][0] >= 3 and all(good[i + k] for k in range(count))
    ]


def make_items(text, options):
    """Items as dictionaries, or None when the text has too few places."""
    # random() alone is the same in every version of Python.
    draw = random.Random(options.seed).random
    words = [match.span() for match in re.finditer(r"\S+", text)]
    if options.items * (options.context + options.words) > len(words):
        return None  # prompts and answers do not overlap
    starts = starts_of_choices(words, text, options.words)
    first_word = {i: text[slice(*words[i])].lower() for i in starts}
    frequency = collections.Counter(first_word.values())
    by_class = collections.defaultdict(list)  # of frequencies, a factor of two wide
    for i in starts:
        by_class[frequency[first_word[i]].bit_length()].append(i)

    def shown(i):
        return text[words[i][0] - 1 : words[i + options.words - 1][1]]

    items, used, tries = [], set(), 0
    while len(items) < options.items and tries < 100 * options.items and starts:
        tries += 1
        i = starts[int(draw() * len(starts))]
        span = range(i - options.context, i + options.words)
        if span.start < 0 or not used.isdisjoint(span):
            continue
        same_class = by_class[frequency[first_word[i]].bit_length()]
        wrong = {}
        for _ in range(50):
            j = same_class[int(draw() * len(same_class))]
            if first_word[j] != first_word[i]:
                wrong.setdefault(first_word[j], shown(j))
            if len(wrong) == options.choices - 1:
                break
        else:
            continue
        answer = int(draw() * options.choices)
        choices = list(wrong.values())
        choices.insert(answer, shown(i))
        used.update(span)
        prompt = text[words[span.start][0] : words[i - 1][1]]
        items.append({"prompt": prompt, "choices": choices, "answer": answer})
    return items if len(items) == options.items else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("-o", "--output", help="file to write; default: standard output")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--choices", type=int, default=4)
    parser.add_argument("--context", type=int, default=40, help="words of a prompt")
    parser.add_argument("--words", type=int, default=2, help="words of a choice")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if min(options.items, options.context, options.words) < 1 or options.choices < 2:
        parser.error("items, context and words are at least 1, choices at least 2")
    try:
        with open(options.text, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError as error:
        sys.exit(f"{options.text}: {error}")
    items = make_items(text, options)
    if items is None:
        sys.exit(f"{options.text}: the text is too short for {options.items} items of these sizes")
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    if options.output is None:
        sys.stdout.buffer.write(lines.encode())
        return
    with open(options.output, "w", encoding="utf-8", newline="\n") as file:
        file.write(lines)


if __name__ == "__main__":
    main()
