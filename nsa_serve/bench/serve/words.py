"""Text without meaning: common words and plain sentences, drawn at random."""

# ruff: noqa: SIM905 (lists of words, one a line, would be no better to read)

import random
from collections.abc import Iterator

WORDS = tuple(
    """
    about above across action after again against age air all almost along already also always
    among animal answer any apple area arm army around art ask autumn away baby back ball bank
    base bear because become before behind bell below beside best better between bird black blood
    blue board boat body bone book both bottle bottom box boy branch bread break bridge bright
    bring brother brown build burn business butter buy call camp captain car care carry case
    castle catch cause center chair chance change child choose church circle city class clean
    clear climb clock close cloth cloud coast coat cold color come common company cook cool copper
    corn corner cost cotton could count country course cover cream cross crowd cry current dance
    dark daughter day deep desk dinner direct doctor dog door double doubt down draw dream dress
    drink drive drop dry dust each ear early earth east easy edge effect egg eight either electric
    end energy engine enough enter equal evening ever every example eye face fact fair fall family
    famous far farm fast father feel field fight figure fill final find fine finger fire first
    fish five flat floor flow flower fly follow food foot force forest form forward four free
    fresh friend front fruit full garden gas gate general gentle girl give glass gold good grain
    grand grass great green ground group grow half hall hand happy hard hat head hear heart heat
    heavy high hill history hold hole home honor hope horse hot hour house human hundred hunt ice
    idea important inch inside interest iron island join judge jump just keep key kind king
    kitchen knee knife know lady lake land language large last late laugh law lead leaf learn
    leave left letter level lift light like line lion list little live long look lost love low
    machine main make many map mark market master matter maybe meat meet metal middle mile milk
    mind minute mirror money month moon more morning most mother mountain mouth move much music
    must name narrow nation near neck need never new news next night nine noise north nose note
    nothing number ocean office often oil old once only open orange order other out over page
    paint pair paper part party pass past path peace pen people period person piece place plain
    plant play please point poor port possible pound power present press price problem produce
    pull push quarter queen question quick quiet race rain raise reach read ready reason record
    red remember rest rich ride right ring river road rock roll roof room root rose round row rule
    run sail salt same sand say school science sea seat second seed seven shade shape sharp ship
    shoe shop short shoulder show side sign silver simple sing sister six size skin sleep slow
    small smell smile smoke snow soft soil some son song soon sound south space speak special
    spring square stand star start station stay steel step still stone stop storm story street
    strong sugar summer sun sure surface swim table tail take talk tall taste teach ten tent test
    than thick thin thing think third three through time today together tomorrow tongue top touch
    toward town trade train travel tree trip trouble true turn twenty two under unit until use
    usual valley value very view village visit voice wait walk wall want warm wash watch water
    wave way wear weather week weight well west wheel white whole why wide wild wind window wing
    winter wire wish without woman wonder wood word work world would write wrong yard year yellow
    yes yet young zero
    """.split()
)
_PLACES = "harbour village valley market garden station library forest mountain kitchen".split()
_PEOPLE = "captain teacher baker doctor farmer painter sailor gardener judge musician".split()
_DEEDS = "walked waited listened rested worked returned looked paused sang whispered".split()
_ADVERBS = "slowly quietly often gladly early alone patiently again calmly together".split()
_KINDS = "old small quiet bright narrow gentle distant familiar green wooden".split()


def random_words(rng: random.Random) -> Iterator[str]:
    """Words for ever."""
    while True:
        yield from rng.choices(WORDS, k=64)


def random_text(rng: random.Random, num_chars: int) -> str:
    """Words, at least this many characters of them."""
    words: list[str] = []
    length = -1
    for word in random_words(rng):
        words.append(word)
        length += len(word) + 1
        if length >= num_chars:
            break
    return " ".join(words)


def random_sentence(rng: random.Random) -> str:
    """A sentence that states nothing that could be asked about, without digits."""
    who, place, other = rng.choice(_PEOPLE), rng.choice(_PLACES), rng.choice(_PLACES)
    deed, how, kind = rng.choice(_DEEDS), rng.choice(_ADVERBS), rng.choice(_KINDS)
    word, last = rng.choice(WORDS), rng.choice(WORDS)
    return rng.choice(
        (
            f"The {kind} {who} {deed} {how} near the {place}.",
            f"Beyond the {place} lay a {kind} {other}, and nobody spoke of the {word}.",
            f"In the {place} the {who} {deed} {how}, thinking of {word} and {last}.",
            f"A {kind} {place} is where the {who} {deed} {how} that evening.",
            f"When the {word} was gone, the {who} {deed} by the {kind} {place}.",
        )
    )
