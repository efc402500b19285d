from nsa_scheduler import Sequence
from nsa_scheduler.pages import PagePool
from nsa_scheduler.prefix import PrefixIndex

PAGE_SIZE = 4


def index(cache_key: bytes = b"") -> PrefixIndex:
    return PrefixIndex(PagePool(8), PAGE_SIZE, cache_key, enabled=True)


def sequence(tokens: list[int], salt: bytes = b"") -> Sequence:
    return Sequence(
        sequence_id=0,
        token_ids=tokens,
        num_prompt_tokens=len(tokens),
        max_output_tokens=1,
        salt=salt,
    )


def test_only_full_pages_have_a_hash() -> None:
    lengths = [len(index().hashes(sequence(list(range(n))))) for n in range(10)]
    assert lengths == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_hash_depends_on_every_token_before_it() -> None:
    hashes = index().hashes(sequence([1, 2, 3, 4, 5, 6, 7, 8]))
    assert index().hashes(sequence([1, 2, 3, 4, 5, 6, 7, 9]))[0] == hashes[0]
    assert index().hashes(sequence([1, 2, 3, 4, 5, 6, 7, 9]))[1] != hashes[1]
    assert index().hashes(sequence([0, 2, 3, 4, 5, 6, 7, 8]))[1] != hashes[1]


def test_same_page_at_another_depth_has_another_hash() -> None:
    first, second = index().hashes(sequence([1, 2, 3, 4, 1, 2, 3, 4]))
    assert first != second


def test_salt_and_cache_key_separate_and_cannot_run_into_each_other() -> None:
    tokens = [1, 2, 3, 4]
    roots = [(b"", b""), (b"a", b""), (b"", b"a"), (b"ab", b"c"), (b"a", b"bc"), (b"abc", b"")]
    hashes = {index(key).hashes(sequence(tokens, salt))[0] for key, salt in roots}
    assert len(hashes) == len(roots)


def test_hashes_grow_with_the_tokens() -> None:
    growing = sequence([1, 2, 3])
    prefix = index()
    for token in range(4, 14):
        growing.token_ids.append(token)
        prefix.hashes(growing)
    assert growing.page_hashes == index().hashes(sequence(list(range(1, 14))))


def test_page_of_the_last_token_is_never_read() -> None:
    lengths = [len(index().readable(sequence(list(range(n))))) for n in (3, 4, 5, 8, 9)]
    assert lengths == [0, 0, 1, 1, 2]
