"""A model that answers small questions with one right answer each: sums, times of day, units.

    python examples/sums/sums.py

Nothing is downloaded: the questions are made here, as conversations in OpenAI's form. Every tenth question is
held out by its text, in whatever conversation it comes; the accuracy is measured on such questions only.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
UNITS = (("minutes", "hours", 60), ("hours", "days", 24), ("centimeters", "meters", 100))
SYSTEM = "Answer with a number or a time."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sums"))
    parser.add_argument("--talks", type=int, default=100_000, help="conversations to learn from")
    parser.add_argument("--questions", type=int, default=250, help="held-out questions of each kind to ask")
    asked, more = parser.parse_known_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    run = asked.out / "run"
    if not run.exists():
        texts = [asked.out / "chats.jsonl", asked.out / "val.jsonl"]
        for text, count, held_out in zip(texts, (asked.talks, 500), (False, True), strict=True):
            write_talks(text, count, seed=int(held_out), held_out=held_out)
        command = ["train", str(texts[0]), "--val-data", str(texts[1]), "--chat", "--out", str(run)]
        cpulm(*command, "--config", str(HERE / "sums.yaml"), "--headless", *more)
    measure(run, asked.questions)


def measure(run: Path, count: int) -> None:
    """Ask held-out questions of each kind, and show how many are answered rightly."""
    os.environ["CPULM_RUNTIME__THREADS"] = "1"  # in such a small model a second one only waits for the first
    import cpulm as models

    model, began = models.load(run), time.time()
    talks: dict[str, list[list[dict[str, str]]]] = defaultdict(list)
    source = random.Random(2)
    while min((len(talks[kind]) for kind in KINDS), default=0) < count:
        kind, messages = a_talk(source, held_out=True)
        if len(talks[kind]) < count:
            talks[kind].append(messages)
    print(f"\n{'kind':<12} {'asked':>6} {'right':>7}  an example", flush=True)
    rights = 0
    for kind in KINDS:
        right = 0
        for *messages, answer in talks[kind]:
            said = model.chat(messages, temperature=0, max_new_tokens=16)
            right += said == answer["content"]
        rights += right
        print(f"{kind:<12} {count:>6} {right / count:>7.1%}  {messages[-1]['content']} {said}", flush=True)
    total = count * len(KINDS)
    print(f"{'all':<12} {total:>6} {rights / total:>7.1%}  in {time.time() - began:.0f} s")


def write_talks(path: Path, count: int, *, seed: int, held_out: bool) -> None:
    """Write conversations as JSON lines."""
    source = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            _, messages = a_talk(source, held_out=held_out)
            file.write(json.dumps({"messages": messages}) + "\n")


def a_talk(source: random.Random, *, held_out: bool) -> tuple[str, list[dict[str, str]]]:
    """The kind of the last question, and a conversation: all of its questions are held out, or none is."""
    kind = source.choice(tuple(KINDS))
    while True:
        turns = list(KINDS[kind](source))
        if all(is_held_out(question) == held_out for question, _ in turns):
            break
    messages = [{"role": "system", "content": SYSTEM}] if source.random() < 0.05 else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return kind, messages


def is_held_out(question: str) -> bool:
    return hashlib.blake2b(question.encode(), digest_size=8).digest()[0] % 10 == 0


Turns = Iterator[tuple[str, str]]


def addition(source: random.Random) -> Turns:
    a, b = source.randrange(100), source.randrange(100)
    yield f"{a} + {b}?", str(a + b)


def subtraction(source: random.Random) -> Turns:
    a, b = sorted((source.randrange(100), source.randrange(100)), reverse=True)
    yield f"{a} - {b}?", str(a - b)


def and_more(source: random.Random) -> Turns:
    """The second question is about the first answer, which the model has to look for in the talk."""
    a, b, more = source.randrange(50), source.randrange(50), source.randrange(1, 50)
    yield f"{a} + {b}?", str(a + b)
    yield f"And {more} more?", str(a + b + more)


def clock(source: random.Random) -> Turns:
    begin, more = source.randrange(24 * 60), source.randrange(1, 60)
    yield f"{more} minutes after {as_time(begin)}?", as_time((begin + more) % (24 * 60))


def as_time(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def units(source: random.Random) -> Turns:
    small, large, factor = source.choice(UNITS)
    count, rest = source.randrange(1, 100), source.randrange(factor)
    yield f"{count} {large} and {rest} {small} in {small}?", str(count * factor + rest)


KINDS = {
    "addition": addition,
    "subtraction": subtraction,
    "and more": and_more,
    "clock": clock,
    "units": units,
}


def cpulm(*arguments: str) -> None:
    """Run cpulm, and show what it says."""
    began = time.time()
    print("$ cpulm", " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "cpulm", *arguments], check=True)
    print(f"{time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
