"""Runs a model's steps on a GPU, the next one before the last one's tokens were read.

What runs ahead: as soon as a step is launched whose sequences all decode, the step after it is
launched too, with the tokens that the first one is sampling as its input; these never leave the
device. Only then are the first step's tokens read and handed to the scheduler, so that its work
and everything else on this side happens while the device computes. The scheduler's next batch is
compared with what already runs: a row is taken if its sequence still runs, at that position, in
those pages, with the token that was sampled; whatever else the batch holds (a prompt that came
in, say) is launched beside it. A row that nobody asks for belongs to a sequence that ended in
between, by a stop token or an abort. It is dropped; what it wrote lies behind the sequence's
last full page, and whoever has that page next writes after it, for one stream runs all steps in
order. Rows do not depend on each other, so taking some and not others changes nothing.

Sequences that surely end with the step's token do not run ahead, nor do any as long as one needs
more than the last token's number before the next can be sampled: penalties, log-probabilities.
"""

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.geometry import num_pages_for
from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_serve.engine.constraint import Constraint
from nsa_serve.engine.gpu_collect import Collector
from nsa_serve.engine.gpu_inputs import BlockTables, Uploader, row_inputs, slots_of_rows
from nsa_serve.engine.gpu_sampler import GpuSampler
from nsa_serve.engine.gpu_selection import device_selection_of
from nsa_serve.engine.gpu_steps import (
    MAX_CHUNK_CONTEXT,
    MixedStep,
    in_launches,
    mixed_step,
    rows_step,
)
from nsa_serve.engine.graphs import DecodeSteps, GraphKey, RowBuffers
from nsa_serve.engine.inputs import SlotRule
from nsa_serve.engine.launched import Download, Known, Launched, LaunchedChunks, Row
from nsa_serve.engine.messages import Selection
from nsa_serve.engine.runner import RunnerInfo, StepResult
from nsa_serve.engine.sampler import sampling_state
from nsa_serve.engine.watched import Watched
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.device import DeviceAttention, DeviceContext
from nsa_serve.params import SamplingParams


class GpuRunner:
    """Implements `Runner` over a decoder and its caches on a GPU."""

    def __init__(
        self,
        decoder: Decoder,
        layers: DeviceAttention,
        info: RunnerInfo,
        *,
        use_graphs: bool,
        run_ahead: bool = True,
    ) -> None:
        self._decoder, self._layers, self._info = decoder, layers, info
        self._run_ahead = run_ahead
        self._device = layers.caches[0].k.device
        nsa = decoder.config.nsa
        self._rule = None if nsa is None else SlotRule(nsa.compress_stride, nsa.first_slot)
        self._known: dict[int, Known] = {}
        self._collector = Collector(decoder, layers, self._known)
        on_gpu = self._device.type != "cpu"
        self._sampler = GpuSampler(info.vocab_size, self._device, use_kernels=on_gpu)
        self._upload = Uploader(self._device)
        width = num_pages_for(info.max_model_len, info.page_size)
        # Whole runs of 16 bytes: kernels are compiled anew for a table that is aligned otherwise.
        self._tables = BlockTables(info.max_num_seqs, -(-width // 4) * 4, self._device)
        rows = self._tables.padding_row + 1
        self._last_ids = torch.zeros(rows, dtype=torch.int64, device=self._device)
        """The token sampled last for each row of the tables."""
        dtype = decoder.model.norm.weight.dtype
        self._logits = torch.zeros(
            (info.max_num_seqs, info.vocab_size), dtype=dtype, device=self._device
        )
        self._steps = DecodeSteps(
            self._forward_rows,
            self._tables,
            self._upload,
            max_batch=info.max_num_seqs,
            max_context=info.max_model_len,
            use_graphs=use_graphs,
        )
        self._ahead: Launched | None = None
        self._watched = Watched(self._look)

    @property
    def info(self) -> RunnerInfo:
        """What was loaded."""
        return self._info

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile what samples, and capture the graphs that decoding begins with."""
        self._sampler.warm_up(self._logits.dtype)
        self._steps.capture_first(lists_slots=self._layers.lists_row_slots)

    @property
    def num_graphs(self) -> int:
        """CUDA graphs captured so far."""
        return self._steps.num_graphs

    @property
    def caches(self) -> list[LayerCache]:
        """Of each layer."""
        return self._layers.caches

    def add(
        self,
        sequence_id: int,
        params: SamplingParams,
        prompt_token_ids: list[int],
        constraint: Constraint | None = None,
    ) -> None:
        """Make a sequence known."""
        eos_token_ids = self._info.eos_token_ids
        state = sampling_state(params, prompt_token_ids, eos_token_ids, constraint)
        self._known[sequence_id] = Known(state, state.plain and params.logprobs is None)

    def remove(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self._known.pop(sequence_id, None)
        self._watched.discard(sequence_id)
        self._tables.release(sequence_id)

    def watch(self, sequence_id: int) -> None:
        """Tell with the sequence's next decode step what its layers select."""
        self._watched.add(sequence_id)

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> StepResult:
        """One step; see the module's text for what else may have been launched when it returns."""
        for sequence in batch.preempted:
            self._tables.release(sequence.sequence_id)
        ahead, self._ahead = self._ahead, None
        try:
            selections = self._watched.look(batch.items)
            result = self._execute(batch.items, ahead)
        except BaseException:
            self._tables.forget()
            self._ahead = None
            raise
        result.selections = selections
        return result

    def _look(self, item: ScheduledSequence) -> Selection:
        return device_selection_of(self._decoder, self._layers, self._mixed_step([item]))

    def _execute(self, items: list[ScheduledSequence], ahead: Launched | None) -> StepResult:
        result = StepResult(token_ids={})
        wanted, rest = self._split(items, ahead)
        launched = self._launch(rest)
        if rows := self._rows_ahead(items):
            self._ahead = self._launch_rows(rows, from_device=True)
        if ahead is not None and wanted:
            self._collector.take_rows(ahead, wanted, result)
        for part in launched:
            if part.chunks is not None:
                self._collector.take_chunks(part.chunks, result)
            self._collector.take_rows(part, range(len(part.rows)), result)
        return result

    def _launch(self, items: list[ScheduledSequence]) -> list[Launched]:
        """Launch what no step that ran ahead has computed."""
        if not items:
            return []
        if all(self._is_plain_row(item) for item in items):
            return [self._launch_rows([Row.last_of(item) for item in items], from_device=False)]
        return [self._launch_mixed(part) for part in in_launches(items, MAX_CHUNK_CONTEXT)]

    def _is_plain_row(self, item: ScheduledSequence) -> bool:
        """Whether an item is a single query of which only the next token is asked."""
        if item.num_tokens > 1 or not item.samples:
            return False
        sequence = item.sequence
        params = self._known[sequence.sequence_id].state.params
        return params.prompt_logprobs is None or item.start >= sequence.num_prompt_tokens

    def _split(
        self, items: list[ScheduledSequence], ahead: Launched | None
    ) -> tuple[list[int], list[ScheduledSequence]]:
        """Rows of the step that ran ahead that are wanted, and the items that it does not have."""
        if ahead is None:
            return [], items
        places = {row.sequence.sequence_id: i for i, row in enumerate(ahead.rows)}
        wanted: list[int] = []
        rest: list[ScheduledSequence] = []
        for item in items:
            place = places.get(item.sequence.sequence_id)
            if (
                place is not None
                and ahead.rows[place].is_all_of(item)
                and self._known[item.sequence.sequence_id].is_of(item)
            ):
                wanted.append(place)
            else:
                rest.append(item)
        return wanted, rest

    def _rows_ahead(self, items: list[ScheduledSequence]) -> list[Row]:
        """Rows of the step after the one that computes `items`, as far as they are known."""
        if not self._run_ahead:
            return []
        rows: list[Row] = []
        limit, page_size = self._info.max_model_len, self._info.page_size
        for item in items:
            sequence, end = item.sequence, item.start + item.num_tokens
            if end < len(sequence.token_ids) or not self._known[sequence.sequence_id].may_run_ahead:
                return []
            goes_on = end + 1 < min(limit, sequence.num_prompt_tokens + sequence.max_output_tokens)
            if goes_on and end < len(sequence.pages) * page_size:
                rows.append(Row(sequence, end, sequence.pages))
        return rows

    def _launch_rows(self, rows: list[Row], *, from_device: bool) -> Launched:
        """Launch a step of single queries; `from_device`: of the tokens sampled last."""
        tables = self._tables
        table_rows = [tables.row(row.sequence) for row in rows]
        tables.flush(self._upload)
        positions = np.array([row.position for row in rows], np.int32)
        slots = slots_of_rows(positions, self._rule)
        key = self._steps.key(
            len(rows),
            int(positions.max()) + 1,
            lists_slots=self._layers.lists_row_slots and bool((slots >= 0).any()),
        )
        inputs = row_inputs(
            tables,
            table_rows,
            positions,
            [0 if from_device else row.sequence.token_ids[row.position] for row in rows],
            slots,
            page_size=self._info.page_size,
            padded_to=key.batch,
        )
        on_device = self._steps.run(inputs, key, self._last_ids if from_device else None)
        logits = self._logits[: len(rows)]
        return Launched(rows, self._sample(rows, on_device[: len(rows)], logits), logits)

    def _forward_rows(self, buffers: RowBuffers, key: GraphKey) -> None:
        """The device's part of a step of single queries; the logits go where all graphs' go."""
        step = rows_step(buffers, key, self._tables)
        context = DeviceContext(self._layers, step)
        positions = buffers.positions
        if self._decoder.config.positions == "learned":  # a row of padding reads the first
            positions = positions.clamp_min(0)
        hidden = self._decoder(buffers.token_ids, positions, context)
        self._decoder.logits(hidden, self._logits[: key.batch])

    def _launch_mixed(self, items: list[ScheduledSequence]) -> Launched:
        """Launch a step with chunks, or with tokens of which more than the next is asked."""
        step = self._mixed_step(items)
        context = DeviceContext(self._layers, step.attention)
        hidden = self._decoder(step.token_ids, step.attention.positions, context)
        rows = [Row.last_of(item) for item in step.items if item.samples]
        ids = logits = None
        if rows:
            logits = self._decoder.logits(hidden.index_select(0, step.last_tokens))
            ids = self._sample(rows, step.sampled_rows, logits)
        finite = Download(hidden.isfinite().all(-1))
        return Launched(rows, ids, logits, LaunchedChunks(step.items, hidden, finite))

    def _mixed_step(self, items: list[ScheduledSequence]) -> MixedStep:
        return mixed_step(
            items,
            self._tables,
            self._upload,
            page_size=self._info.page_size,
            rule=self._rule,
            lists_row_slots=self._layers.lists_row_slots,
        )

    def _sample(self, rows: list[Row], table_rows: Tensor, logits: Tensor) -> Download:
        """Sample each row's next token: its number stays here for the next step, and is on its
        way to the host."""
        states = [self._known[row.sequence.sequence_id].state for row in rows]
        outputs: list[SequenceOf[int]] = [
            range(row.position + 1 - row.sequence.num_prompt_tokens)
            if state.plain
            else row.sequence.output_token_ids
            for row, state in zip(rows, states, strict=True)
        ]
        ids = self._sampler(logits, states, outputs)
        self._last_ids.index_copy_(0, table_rows, ids.clamp_min(0))
        return Download(ids)
