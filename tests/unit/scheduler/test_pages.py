import pytest

from nsa_scheduler.pages import PagePool


def test_every_page_is_allocated_once() -> None:
    pool = PagePool(5)
    assert sorted(pool.allocate() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert (pool.num_free, pool.num_available, pool.num_referenced) == (0, 0, 5)


def test_released_page_without_hash_is_free() -> None:
    pool = PagePool(2)
    pool.release([pool.allocate()])
    assert (pool.num_free, pool.num_cached) == (2, 0)


def test_released_page_with_hash_stays_cached_and_can_be_held_again() -> None:
    pool = PagePool(2)
    page = pool.allocate()
    pool.register(page, b"h")
    pool.release([page])
    assert (pool.num_free, pool.num_cached) == (1, 1)
    assert pool.lookup(b"h") == page
    pool.share(page)
    assert (pool.num_cached, pool.references(page)) == (0, 1)
    pool.check_integrity({page: 1})


def test_shared_page_is_held_until_the_last_holder_lets_go() -> None:
    pool = PagePool(1)
    page = pool.allocate()
    pool.share(page)
    pool.release([page])
    assert pool.num_available == 0
    pool.release([page])
    assert pool.num_available == 1


def test_free_pages_are_taken_before_cached_ones_are_evicted() -> None:
    pool = PagePool(2)
    page = pool.allocate()
    pool.register(page, b"h")
    pool.release([page])
    pool.allocate()
    assert pool.lookup(b"h") == page
    assert pool.allocate() == page
    assert pool.lookup(b"h") is None


def test_page_released_longest_ago_is_evicted_first_and_deep_before_shallow() -> None:
    pool = PagePool(4)
    old, new = [pool.allocate(), pool.allocate()], [pool.allocate(), pool.allocate()]
    for name, page in zip("abcd", old + new, strict=True):
        pool.register(page, name.encode())
    pool.release(old)
    pool.release(new)
    assert [pool.allocate() for _ in range(4)] == [old[1], old[0], new[1], new[0]]


def test_first_registration_of_a_content_is_kept() -> None:
    pool = PagePool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.register(first, b"h")
    pool.register(second, b"h")
    assert pool.lookup(b"h") == first
    pool.release([first, second])
    assert (pool.num_free, pool.num_cached) == (1, 1)
    pool.check_integrity({})


def test_unregistered_page_is_not_found_and_not_cached() -> None:
    pool = PagePool(1)
    page = pool.allocate()
    pool.register(page, b"h")
    pool.unregister(page)
    pool.release([page])
    assert pool.lookup(b"h") is None
    assert pool.num_free == 1


def test_integrity_check_finds_a_holder_too_few_and_too_many() -> None:
    pool = PagePool(2)
    page = pool.allocate()
    for wrong in ({}, {page: 2}, {page: 1, 1 - page: 1}):
        with pytest.raises(AssertionError):
            pool.check_integrity(wrong)
    pool.check_integrity({page: 1})


def test_integrity_check_finds_a_page_released_twice() -> None:
    pool = PagePool(2)
    page = pool.allocate()
    pool.release([page])
    pool.release([page])
    with pytest.raises(AssertionError):
        pool.check_integrity({})
