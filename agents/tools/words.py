"""words_api and urban_dictionary: what words mean, in English and in slang.

WordsAPI is sold through RapidAPI. Urban Dictionary's own API needs no key, and is documented by
those who use it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlsplit

import msgspec

from aios.tools import BadArguments, Meta, tool

from .service import Service, ServiceError, clip

WORDS: Final = Service(
    "words_api", "WordsAPI", "WORDS_API_URL", "https://wordsapiv1.p.rapidapi.com"
)
URBAN: Final = Service(
    "urban_dictionary", "Urban Dictionary", "URBAN_DICTIONARY_URL", "https://api.urbandictionary.com"
)  # fmt: skip

_MEANINGS: Final = 20
_LIST: Final = 50
_TEXT: Final = 2000


class Meaning(msgspec.Struct, omit_defaults=True):
    """One meaning of a word."""

    definition: str
    part_of_speech: str = ""
    synonyms: list[str] = []
    antonyms: list[str] = []
    type_of: list[str] = []
    examples: list[str] = []


class Word(msgspec.Struct, omit_defaults=True):
    """A word. frequency: how common it is, from 1 to 7, 0 when that is not known."""

    word: str
    meanings: list[Meaning]
    syllables: list[str] = []
    pronunciation: str = ""
    frequency: float = 0.0


class _Meaning(msgspec.Struct):
    definition: str
    partOfSpeech: str | None = None
    synonyms: list[str] = []
    antonyms: list[str] = []
    typeOf: list[str] = []
    examples: list[str] = []


class _Syllables(msgspec.Struct, frozen=True):
    parts: list[str] = msgspec.field(name="list", default=[])


class _Word(msgspec.Struct):
    word: str
    results: list[_Meaning] = []
    syllables: _Syllables = _Syllables()
    pronunciation: str | dict[str, str] = ""
    frequency: float | dict[str, Any] | None = 0.0


@tool(
    needs={"network": ["wordsapiv1.p.rapidapi.com"], "secrets": ["RAPIDAPI_KEY"]},
    limits={"time": 60, "rate": 5, "burst": 10},
    idempotent=True,
)
def words_api(word: Annotated[str, Meta(max_length=100)] = "", random: bool = False) -> Word:
    """Look an English word up: meanings, synonyms, examples, syllables, pronunciation.

    word: the word, or several that belong together
    random: a word by chance, instead of a given one
    """
    if bool(word.strip()) == random:
        raise BadArguments("words_api: give word, or say random, and not both")
    key = WORDS.key("RAPIDAPI_KEY", "https://rapidapi.com/dpventures/api/wordsapi")
    headers = {"X-RapidAPI-Key": key, "X-RapidAPI-Host": urlsplit(WORDS.address).netloc}
    path = "/words/" if random else f"/words/{quote(word.strip(), safe='')}"
    params: dict[str, str | int] = {"random": "true"} if random else {}
    try:
        found = WORDS.get(path, _Word, params=params, headers=headers, conceal=(key,))
    except ServiceError as error:
        if error.status == 404 and not random:
            raise ServiceError(f"words_api: {WORDS.name} does not know {word!r}", 404) from None
        raise
    return _word(found)


def _word(found: _Word) -> Word:
    spoken, common = found.pronunciation, found.frequency
    return Word(
        word=found.word,
        meanings=[
            Meaning(
                clip(one.definition, _TEXT), one.partOfSpeech or "", one.synonyms[:_LIST],
                one.antonyms[:_LIST], one.typeOf[:_LIST],
                [clip(text, 300) for text in one.examples[:10]],
            )
            for one in found.results[:_MEANINGS]
        ],
        syllables=found.syllables.parts[:_LIST],
        pronunciation=spoken if isinstance(spoken, str) else next(iter(spoken.values()), ""),
        frequency=float(common) if isinstance(common, int | float) else 0.0,
    )  # fmt: skip


class Slang(msgspec.Struct, omit_defaults=True):
    """A definition that somebody gave. votes: for it, less those against."""

    word: str
    definition: str
    example: str = ""
    votes: int = 0
    date: str = ""
    url: str = ""


class _Entry(msgspec.Struct):
    word: str
    definition: str
    example: str = ""
    thumbs_up: int = 0
    thumbs_down: int = 0
    written_on: str = ""
    date: str = ""
    permalink: str = ""


class _Entries(msgspec.Struct):
    entries: list[_Entry] = msgspec.field(name="list")


@tool(
    needs={"network": ["api.urbandictionary.com"]},
    limits={"time": 60, "rate": 2, "burst": 5},
    idempotent=True,
)
def urban_dictionary(
    word: Annotated[str, Meta(max_length=100)] = "",
    what: Literal["definition", "random", "word_of_the_day"] = "definition",
    count: Annotated[int, Meta(ge=1, le=10)] = 3,
) -> list[Slang]:
    """Look slang up in Urban Dictionary, or get random words, or the words of the day.

    word: what to look up; empty for random words and words of the day
    what: definitions of word, random words, or the words of the day, the latest first
    count: how many
    """
    if bool(word.strip()) != (what == "definition"):
        raise BadArguments("urban_dictionary: give word for a definition, and only for one")
    path = {"definition": "define", "random": "random", "word_of_the_day": "words_of_the_day"}[what]
    params: dict[str, str | int] = {"term": word.strip()} if word.strip() else {}
    entries = URBAN.get(f"/v0/{path}", _Entries, params=params).entries
    return [_slang(entry) for entry in entries[:count]]


def _slang(entry: _Entry) -> Slang:
    return Slang(
        word=clip(entry.word, 200), definition=clip(_plain(entry.definition), _TEXT),
        example=clip(_plain(entry.example), _TEXT), votes=entry.thumbs_up - entry.thumbs_down,
        date=clip(entry.date, 40) or entry.written_on[:10], url=clip(entry.permalink, 500),
    )  # fmt: skip


def _plain(text: str) -> str:
    """Return a text without the brackets that mark links to other words."""
    return text.replace("[", "").replace("]", "").replace("\r\n", "\n")
