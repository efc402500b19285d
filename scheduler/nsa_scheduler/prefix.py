"""The prefix index: full pages found by the chained hash of all tokens up to their end."""

from array import array
from hashlib import sha256

from nsa_scheduler.pages import PagePool
from nsa_scheduler.sequence import Sequence


class PrefixIndex:
    """Finds and registers the full pages of sequences.

    A page's hash is SHA-256 over its parent's hash and its own tokens; the first parent is a hash
    of the model's cache key and the sequence's salt. Equal hashes therefore mean equal tokens from
    the first on, equal model and equal salt, and so equal page content.
    """

    def __init__(self, pool: PagePool, page_size: int, cache_key: bytes, *, enabled: bool) -> None:
        self._pool = pool
        self._page_size = page_size
        self._key = len(cache_key).to_bytes(8, "little") + cache_key
        self._enabled = enabled

    def hashes(self, sequence: Sequence) -> list[bytes]:
        """Hashes of all full pages of the sequence's tokens, computed or not."""
        hashes, tokens, size = sequence.page_hashes, sequence.token_ids, self._page_size
        if not self._enabled or len(hashes) == len(tokens) // size:
            return hashes
        parent = hashes[-1] if hashes else sha256(self._key + sequence.salt).digest()
        for start in range(len(hashes) * size, len(tokens) - size + 1, size):
            parent = sha256(parent + array("q", tokens[start : start + size]).tobytes()).digest()
            hashes.append(parent)
        return hashes

    def readable(self, sequence: Sequence) -> list[bytes]:
        """Hashes of the pages that the sequence may take from the cache.

        Never the page of its last token: that one must be computed, to give logits.
        """
        if not sequence.may_read_prefix_cache:
            return []
        return self.hashes(sequence)[: (sequence.num_tokens - 1) // self._page_size]

    def match(self, sequence: Sequence) -> list[int]:
        """The longest run of cached pages from the sequence's start; they are not held yet."""
        pages: list[int] = []
        for page_hash in self.readable(sequence):
            page = self._pool.lookup(page_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def register(self, sequence: Sequence, first_page: int, last_page: int) -> None:
        """Make the computed pages [first_page, last_page) of the sequence findable."""
        hashes = self.hashes(sequence)[first_page:last_page]
        for page, page_hash in zip(sequence.pages[first_page:last_page], hashes, strict=False):
            self._pool.register(page, page_hash)

    def forget(self, sequence: Sequence) -> None:
        """Make every page of the sequence unfindable: their content is not to be trusted."""
        for page in sequence.pages:
            self._pool.unregister(page)
