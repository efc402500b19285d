"""The page pool: who holds which page, which are free, and which freed ones are still of use.

Every page is in exactly one of three places: referenced by one or more sequences; cached, that
is held by nobody but still findable by the hash of its content; or free.
"""

from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf


class PagePool:
    """Reference-counted pages with an LRU list of cached ones; every operation is O(1) a page."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._references = [0] * num_pages
        self._hashes: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._free = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages with nothing of use in them."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages that nobody holds and that a prefix may still hit."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that can be allocated now, if need be by eviction."""
        return len(self._free) + len(self._cached)

    @property
    def num_referenced(self) -> int:
        """Pages held by sequences."""
        return self.num_pages - self.num_available

    def references(self, page: int) -> int:
        """How many sequences hold the page."""
        return self._references[page]

    def allocate(self) -> int:
        """Take a free page, or evict the cached one that was released longest ago."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """Hold a page that `lookup` found."""
        if self._references[page] == 0:
            del self._cached[page]
        self._references[page] += 1

    def release(self, pages: SequenceOf[int]) -> None:
        """Let go of a sequence's pages.

        The deepest go first, so that they are evicted before the prefix without which no lookup
        could reach them.
        """
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                self._put_back(page)

    def lookup(self, page_hash: bytes) -> int | None:
        """The page with this content, if there is one."""
        return self._page_of.get(page_hash)

    def register(self, page: int, page_hash: bytes) -> None:
        """Make a held page findable, unless another page has the same content already."""
        if self._hashes[page] is None and page_hash not in self._page_of:
            self._hashes[page] = page_hash
            self._page_of[page_hash] = page

    def unregister(self, page: int) -> None:
        """Make a held page unfindable; it will be free, not cached, when it is released."""
        assert self._references[page] > 0, f"page {page} is not held"
        self._forget(page)

    def check_integrity(self, references: Mapping[int, int]) -> None:
        """Raise `AssertionError` unless all adds up and every page is held as often as stated."""
        held = {page: count for page, count in enumerate(self._references) if count}
        assert held == dict(references), f"counts {held}, held {dict(references)}"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is in the free list twice"
        assert len(free) + len(self._cached) + len(held) == self.num_pages, "a page is lost"
        everywhere = free.union(self._cached, held)
        assert len(everywhere) == self.num_pages, "a page is in two places"
        for page_hash, page in self._page_of.items():
            assert self._hashes[page] == page_hash, f"page {page} is found by another's hash"
            assert page not in free, f"page {page} is free and has a hash"
        num_hashed = self.num_pages - self._hashes.count(None)
        assert num_hashed == len(self._page_of), "a hashed page cannot be found"
        assert all(self._hashes[page] for page in self._cached), "a cached page has no hash"

    def _put_back(self, page: int) -> None:
        if self._hashes[page] is None:
            self._free.append(page)
        else:
            self._cached[page] = None

    def _forget(self, page: int) -> None:
        page_hash = self._hashes[page]
        if page_hash is not None:
            del self._page_of[page_hash]
            self._hashes[page] = None
