"""Sequences of a real scheduler over pages and kernels, where every answer names what was read.

The world adds sequences, some with a prefix of another, aborts and preempts some, and lets the
scheduler decide the rest. Every step's tokens are written by the kernels, and every query head asks
for something (see `asks`). Pages are never cleaned: what was written last stays.
"""

from collections.abc import Callable
from itertools import count

import numpy as np
import torch
from torch import Tensor

from nsa_kernels.dispatch import LayerKernels
from nsa_kernels.geometry import num_pages_for
from nsa_scheduler import ScheduledSequence, Scheduler, SchedulerConfig, Sequence
from nsa_serve.engine.gpu_inputs import BlockTables, Uploader, row_inputs, slots_of_rows
from nsa_serve.engine.gpu_steps import mixed_step, rows_step
from nsa_serve.engine.graphs import DecodeSteps, GraphKey, RowBuffers
from nsa_serve.engine.inputs import SlotRule
from tests.support.oracle.asks import Asker, Asks, StepTokens
from tests.support.oracle.codes import MAX_ORIGINS, MAX_POSITIONS
from tests.support.oracle.faults import Fault, Past
from tests.support.oracle.layer import Launch, OracleLayer, OracleShape, Queries
from tests.support.oracle.tally import Tally


class TokenOracle:
    """A world; `run` it."""

    def __init__(
        self,
        shape: OracleShape,
        kernels: LayerKernels,
        device: torch.device,
        *,
        seed: int = 0,
        poison: float = torch.nan,
        use_graphs: bool = False,
        fault: Fault | None = None,
        fault_from: int = 0,
        fault_lasts: bool = False,
    ) -> None:
        """`poison` is what pages hold before they are first written. `fault` strikes in the first
        step from `fault_from` on that it can, and in all after it if it lasts."""
        assert fault is None or not use_graphs, "a graph would keep the fault"
        assert shape.max_len <= MAX_POSITIONS
        self.shape, self.device, self.tally = shape, device, Tally()
        self.struck_in: int | None = None
        """The first step with the fault in it."""
        self._fault, self._fault_from, self._fault_lasts = fault, fault_from, fault_lasts
        self._use_graphs = use_graphs
        self._random = np.random.default_rng(seed)
        self._layer = OracleLayer(shape, kernels, device, poison)
        spec = shape.spec
        self._asker = Asker(
            spec,
            self._layer.codes,
            self._layer.phi,
            kv_heads=shape.kv_heads,
            group=shape.group,
            independent=shape.independent,
            seed=seed,
        )
        self._scheduler = Scheduler(
            SchedulerConfig(
                num_pages=shape.num_pages,
                page_size=shape.page_size,
                max_model_len=shape.max_len,
                max_num_seqs=shape.max_seqs,
                max_num_batched_tokens=shape.budget,
            )
        )
        self._rule = SlotRule(spec.compress_stride, spec.first_slot)
        self._upload = Uploader(device)
        width = num_pages_for(shape.max_len, shape.page_size)
        self._tables = BlockTables(shape.max_seqs, -(-width // 4) * 4, device)
        self._steps = DecodeSteps(
            self._forward_rows,
            self._tables,
            self._upload,
            max_batch=shape.max_seqs,
            max_context=shape.max_len,
            use_graphs=use_graphs,
        )
        self._fixed: dict[int, Queries] = {}
        self._ids = count()
        self._live: dict[int, Sequence] = {}
        self._prompts: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
        self._past = Past(shape.page_size, shape.num_pages, frozenset())

    def run(self, until: Callable[[Tally], bool]) -> Tally:
        """Step until a condition holds or something wrong was read."""
        while not until(self.tally) and not self.tally.wrong:
            self._step()
        return self.tally

    def _step(self) -> None:
        self._disturb()
        batch = self._scheduler.schedule()
        for sequence in batch.preempted:
            self._tables.release(sequence.sequence_id)
        self.tally.preemptions += len(batch.preempted)
        if all(item.num_tokens == 1 for item in batch.items):
            self._run_rows(batch.items)
        else:
            self._run_mixed(batch.items)
        self._note_written(batch.items)
        self.tally.steps += 1
        tokens = {i.sequence.sequence_id: i.sequence.sequence_id for i in batch.items if i.samples}
        for update in self._scheduler.update(batch, tokens):
            if update.end is not None:
                self._forget(update.sequence)

    def _disturb(self) -> None:
        """Add, abort and preempt."""
        random, scheduler = self._random, self._scheduler
        while scheduler.num_running + scheduler.num_waiting < self.shape.max_seqs:
            self._add()
        running = [sequence for sequence in self._live.values() if sequence.pages]
        if not running:
            return
        victim = running[random.integers(len(running))]
        chance = random.random()
        if chance < 0.05:
            scheduler.abort([victim.sequence_id])
            self.tally.aborts += 1
            self._forget(victim)
        elif chance < 0.1:
            scheduler.preempt(victim.sequence_id)
            self.tally.preemptions += 1
            self._tables.release(victim.sequence_id)

    def _add(self) -> None:
        """A sequence of its own, or one that begins like another that lives."""
        random, shape = self._random, self.shape
        own = next(self._ids)
        assert own < MAX_ORIGINS, "no more origins: stale tokens could not be told from new ones"
        length = int(random.integers(1, shape.max_len - 1))
        tokens: list[int] = []
        if self._live and random.random() < 0.6:
            other = list(self._live.values())[random.integers(len(self._live))].token_ids
            tokens = other[: random.integers(1, len(other) + 1)][: length - 1]
        tokens += [own] * (length - len(tokens))
        self._prompts[own] = np.array(tokens)
        self._live[own] = Sequence(
            sequence_id=own,
            token_ids=tokens,
            num_prompt_tokens=length,
            max_output_tokens=int(random.integers(1, shape.max_output + 1)),
        )
        self._scheduler.add(self._live[own])

    def _forget(self, sequence: Sequence) -> None:
        self.tally.tokens_shared += sequence.num_cached_tokens
        self._tables.release(sequence.sequence_id)
        del self._live[sequence.sequence_id], self._prompts[sequence.sequence_id]

    def _run_rows(self, items: list[ScheduledSequence]) -> None:
        """Single queries alone: padded, as a graph where there are any."""
        rows = [self._tables.row(item.sequence) for item in items]
        self._tables.flush(self._upload)
        positions = np.array([item.start for item in items], np.int32)
        slots = slots_of_rows(positions, self._rule)
        key = self._steps.key(
            len(items),
            int(positions.max()) + 1,
            lists_slots=self.shape.learned and bool((slots >= 0).any()),
        )
        if not self._use_graphs:
            key = key._replace(batch=key.batch + int(self._random.integers(3)))
        inputs = row_inputs(
            self._tables,
            rows,
            positions,
            [item.sequence.token_ids[item.start] for item in items],
            slots,
            page_size=self.shape.page_size,
            padded_to=key.batch,
        )
        asks, n = self._ask(items), len(items)
        queries = self._queries(len(inputs.positions))
        queries.q[:n], queries.q_compressed[:n] = asks.q, asks.q_compressed
        queries.gates[:n] = asks.gates
        queries.out.fill_(torch.nan)
        self._steps.run(inputs, key)
        self._check(items, asks, queries.out[:n], num_rows=n)
        self.tally.check_padding(queries.out[n:])

    def _queries(self, size: int) -> Queries:
        """Queries at fixed places: a graph reads them."""
        if size not in self._fixed:
            self._fixed[size] = Queries.empty(size, self.shape, self.device)
        return self._fixed[size]

    def _forward_rows(self, buffers: RowBuffers, key: GraphKey) -> None:
        step = rows_step(buffers, key, self._tables)
        change = None if self._fault is None else self._struck
        self._layer.forward(step, buffers.token_ids, self._fixed[key.batch], change)

    def _run_mixed(self, items: list[ScheduledSequence]) -> None:
        """Single queries, then chunks."""
        step = mixed_step(
            items,
            self._tables,
            self._upload,
            page_size=self.shape.page_size,
            rule=self._rule,
            lists_row_slots=self.shape.learned,
        )
        asks = self._ask(step.items)
        queries = Queries.empty(len(step.token_ids), self.shape, self.device)
        queries.q[:], queries.q_compressed[:] = asks.q, asks.q_compressed
        queries.gates[:] = asks.gates
        change = None if self._fault is None else self._struck
        self._layer.forward(step.attention, step.token_ids, queries, change)
        self.tally.mixed_steps += 1
        rows = step.attention.rows
        self._check(step.items, asks, queries.out, num_rows=0 if rows is None else rows.num_rows)

    def _struck(self, launch: Launch) -> Launch:
        """The launch, with the fault in it if it is time."""
        assert self._fault is not None
        over = self.struck_in is not None and not self._fault_lasts
        if over or self.tally.steps < self._fault_from:
            return launch
        changed = self._fault(launch, self._past)
        if changed is None:
            return launch
        self.struck_in = self.tally.steps if self.struck_in is None else self.struck_in
        return changed

    def _ask(self, items: list[ScheduledSequence]) -> Asks:
        """Questions for the items' tokens."""
        spec = self.shape.spec
        # As far as a slot may reach that is asked for in vain.
        beyond = 2 * spec.select_block + spec.compress_block
        origins = np.empty((len(items), max(item.end for item in items) + beyond), np.int64)
        for row, item in zip(origins, items, strict=True):
            prompt = self._prompts[item.sequence.sequence_id][: len(row)]
            row[: len(prompt)] = prompt
            row[len(prompt) :] = item.sequence.sequence_id
        counts = torch.tensor([item.num_tokens for item in items])
        positions = torch.cat([torch.arange(item.start, item.end) for item in items])
        return self._asker.ask(
            StepTokens(
                positions.to(self.device),
                torch.arange(len(items)).repeat_interleave(counts).to(self.device),
                torch.from_numpy(origins).to(self.device),
            )
        )

    def _check(
        self, items: list[ScheduledSequence], asks: Asks, found: Tensor, num_rows: int
    ) -> None:
        query = self.tally.check(asks, found, self._layer.codes, self._layer.phi, num_rows)
        if query is not None:
            for item in items:
                if query < item.num_tokens:
                    break
                query -= item.num_tokens
            self.tally.first_wrong = (
                f"sequence {item.sequence.sequence_id} at {item.start + query}, "
                f"{item.num_tokens} in the step: {self.tally.first_wrong}"
            )

    def _note_written(self, items: list[ScheduledSequence]) -> None:
        size, used = self.shape.page_size, self._past.used
        begun: set[int] = set()
        for item in items:
            first, end = -(-item.start // size), num_pages_for(item.end, size)
            begun.update(item.sequence.pages[first:end])
        self.tally.pages_reused += len(used & begun)
        self._past = Past(size, self.shape.num_pages, used | begun)
