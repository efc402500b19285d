"""Needles in haystacks: facts at known depths of long texts, and questions about them."""

import random
import re
from collections.abc import Callable, Iterator

import msgspec

from nsa_serve.bench.serve.options import NeedleData
from nsa_serve.bench.serve.prompts import Sample
from nsa_serve.bench.serve.records import Needle, RequestRecord
from nsa_serve.bench.serve.sizing import Sizer
from nsa_serve.bench.serve.words import random_sentence
from nsa_serve.errors import ConfigError

_CITIES = """
Amsterdam Athens Berlin Boston Cairo Chicago Denver Dublin Geneva Havana Helsinki Istanbul Jakarta
Karachi Lagos Lima Lisbon London Madrid Melbourne Milan Montreal Moscow Mumbai Munich Nairobi Naples
Oslo Paris Prague Quebec Rome Seattle Seoul Stockholm Sydney Tokyo Toronto Vienna Warsaw
""".split()  # noqa: SIM905
_INTRODUCTION = "A secret number is hidden in the following text. Remember it.\n\n"


class Found(msgspec.Struct, frozen=True):
    """How many needles of one length and depth were found."""

    length: int
    depth: float
    asked: int
    found: int

    @property
    def share(self) -> float:
        """Found of those asked."""
        return self.found / self.asked


def needle_samples(options: NeedleData, sizer: Sizer, rng: random.Random) -> list[Sample]:
    """Every length, depth and repetition once, in random order."""
    if options.distractors >= len(_CITIES):
        raise ConfigError(f"needle_distractors must be below {len(_CITIES)}")
    sentences = _made_up(rng) if options.haystack is None else _sentences_of(options, rng)
    samples = [
        _make(options, length, depth, sizer, rng, sentences)
        for length in options.lengths
        for depth in options.depths
        for _ in range(options.repeat)
    ]
    rng.shuffle(samples)
    return samples


def sample_hay(options: NeedleData) -> Callable[[random.Random, int], str]:
    """Makes text like that of the haystacks, at least as long as asked for."""

    def make(rng: random.Random, num_chars: int) -> str:
        sentences = _made_up(rng) if options.haystack is None else _sentences_of(options, rng)
        text = ""
        for sentence in sentences():
            text += sentence + " "
            if len(text) > num_chars:
                break
        return text

    return make


def count_found(records: list[RequestRecord]) -> list[Found]:
    """By length and depth; only requests that were answered count."""
    outcomes: dict[tuple[int, float], list[bool]] = {}
    for record in records:
        if record.needle is not None and record.found is not None:
            place = (record.needle.length, record.needle.depth)
            outcomes.setdefault(place, []).append(record.found)
    return [
        Found(length, depth, len(found), sum(found))
        for (length, depth), found in sorted(outcomes.items())
    ]


def _make(
    options: NeedleData,
    length: int,
    depth: float,
    sizer: Sizer,
    rng: random.Random,
    sentences: Callable[[], Iterator[str]],
) -> Sample:
    cities = rng.sample(_CITIES, options.distractors + 1)
    numbers = rng.sample(range(100_000, 1_000_000), len(cities))
    facts = [f"The secret number of {c} is {n}." for c, n in zip(cities, numbers, strict=True)]
    question = (
        f"\n\nQuestion: What is the secret number of {cities[0]}?\n"
        f"Answer: The secret number of {cities[0]} is"
    )
    room = length - sizer.count(_INTRODUCTION + " ".join(facts) + question)
    hay = _hay(room, sizer, sentences())
    for fact in facts[1:]:
        hay.insert(rng.randint(0, len(hay)), fact)
    hay.insert(round(depth / 100.0 * len(hay)), facts[0])
    prompt = _INTRODUCTION + " ".join(hay) + question
    return Sample(
        prompt=prompt,
        max_tokens=options.output_len,
        prompt_tokens=sizer.count(prompt),
        needle=Needle(length=length, depth=depth, answer=str(numbers[0])),
    )


def _hay(num_tokens: int, sizer: Sizer, sentences: Iterator[str]) -> list[str]:
    """Whole sentences that fill the tokens as far as they fit; sizes add up closely enough to
    count the text only a few times."""
    hay: list[str] = []
    while (missing := num_tokens - (sizer.count(" ".join(hay)) if hay else 0)) > 0:
        wanted, more = sizer.chars(missing), []
        for sentence in sentences:
            wanted -= len(sentence) + 1
            if wanted < 0:
                break
            more.append(sentence)
        if not more:
            break
        hay += more
    while hay and sizer.count(" ".join(hay)) > num_tokens:
        hay.pop()
    return hay


def _made_up(rng: random.Random) -> Callable[[], Iterator[str]]:
    def sentences() -> Iterator[str]:
        while True:
            yield random_sentence(rng)

    return sentences


def _sentences_of(options: NeedleData, rng: random.Random) -> Callable[[], Iterator[str]]:
    """Sentences of a file from a random place on, round and round."""
    assert options.haystack is not None
    try:
        text = options.haystack.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{options.haystack}: {error}") from None
    found = [s for s in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if s]
    if not found:
        raise ConfigError(f"{options.haystack} holds no sentence")

    def sentences() -> Iterator[str]:
        start = rng.randrange(len(found))
        while True:
            yield from found[start:]
            start = 0

    return sentences
