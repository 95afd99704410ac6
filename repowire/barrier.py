"""The barrier: what `on_disk` has returned for survives a power cut, and the loop never waits for the disk.

Every commit that came before it was in the write-ahead log when an fdatasync of that log began. One sync serves all who
wait; it has a thread of its own.
"""

import asyncio
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from repowire.config import sync_file, sync_folder

log = logging.getLogger(__name__)

ALSO_SYNC_SECONDS = 1.0  # what is not a promise (the ledger, forgiven writes) reaches the disk within this

Requests = queue.SimpleQueue[bool | None]  # to a thread: True: now; False: soon; None: the end


class StoreError(Exception):
    """The database cannot be used; the text names the file, says why, and what to do."""


class Barrier:
    """`committed` counts the commits of a database, `synced` those of them on the disk."""

    def __init__(
        self, path: Path, also_sync: Sequence[Callable[[], None]], on_failure: Callable[[BaseException], None] | None
    ) -> None:
        """Of the database at `path`, which has a write-ahead log. `on_failure` is called once, on the loop's thread."""
        self.path = path
        self.committed = 1  # what a killed process left in the log may not be on the disk, so a first sync is due
        self.synced = 0
        self.failure: BaseException | None = None
        self._also_sync, self._on_failure = also_sync, on_failure
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._calls: list[tuple[int, Callable[[BaseException | None], None]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # which hears the bell
        self._hears, self._bell = os.pipe()  # call_soon_threadsafe does the same, at nearly twice the price
        os.set_blocking(self._hears, False)
        os.set_blocking(self._bell, False)
        self._told = False  # on_failure was called
        self._asked = 0  # the newest commit that the thread was asked for
        self._stale = False  # something is to be synced within a second, and the thread knows
        self._log_file = os.open(f"{path}-wal", os.O_RDWR)
        self._folder_synced = False
        self._to_sync: Requests = queue.SimpleQueue()
        self._syncing = threading.Thread(target=self._keep_synced, name="db-sync", daemon=True)
        self._syncing.start()

    def _end_syncing(self) -> None:
        """A last sync; whoever still waits learns how it ended."""
        self._to_sync.put(None)
        self._syncing.join()
        self._settle()

    def _close_files(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._hears)
        for file in (self._log_file, self._hears, self._bell):
            os.close(file)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for the disk: what is committed now may share the next sync with others."""
        return bool(self._waiters or self._calls)

    async def on_disk(self, commit: int | None = None) -> None:
        """Return when a commit (every one made so far) would survive a power cut. Raises StoreError when it cannot."""
        if self.failure is not None:
            raise self._lost()
        if commit is None:
            commit = self.committed
        if self.synced >= commit:
            return
        self.sync_now()
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((commit, waiter))
        await waiter

    def when_on_disk(self, call: Callable[[BaseException | None], None]) -> None:
        """`on_disk` of all that is committed, for what is no task: it is called with what went wrong, if anything did.

        On the loop, and never at once: whoever has just changed something may yet have to begin to listen. It must not
        raise.
        """
        if self.failure is not None or self.synced >= self.committed:
            asyncio.get_running_loop().call_soon(call, self._lost() if self.failure is not None else None)
            return
        self._calls.append((self.committed, call))
        self.sync_now()

    def sync_now(self) -> None:
        """Begin to put on the disk what is committed, since somebody is about to wait for it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # the loop has ended, and so did all who waited; `close` syncs
            return
        if loop is not self._loop:
            self._loop = loop
            loop.add_reader(self._hears, self._hear)
        if self._asked < self.committed:  # one request serves all who wait for the same commit
            self._asked = self.committed
            self._to_sync.put(True)

    def sync_soon(self) -> None:
        """Have the log and `also_sync` on the disk within a second; each commit does so by itself."""
        if not self._stale:
            self._stale = True
            self._to_sync.put(False)

    def _keep_synced(self) -> None:
        """The sync thread. Between two commits it sleeps for good: an idle mesh costs nothing."""
        due = math.inf
        while (urgent := next_request(self._to_sync, due)) is not None:
            if urgent:
                self._sync_log()
            if due == math.inf and self._stale:
                due = time.monotonic() + ALSO_SYNC_SECONDS
            if time.monotonic() >= due:
                due, self._stale = math.inf, False
                self._sync_all()
        self._sync_all()

    def _sync_all(self) -> None:
        self._sync_log()
        for sync in self._also_sync:
            try:
                sync()
            except Exception:
                log.exception("a sync beside the database failed")

    def _sync_log(self) -> None:
        target = self.committed  # before the sync starts: a commit during it may be half taken along
        if self.failure is None and self.synced < target:
            try:
                sync_file(self._log_file)
                if not self._folder_synced:
                    sync_folder(self.path.parent)
                    self._folder_synced = True
            except OSError as error:
                self._fail(error)
                return
            self.synced = target
        if self._loop is not None:  # somebody may have begun to wait while all was on the disk already
            self._ring()

    def _ring(self) -> None:
        """On any thread: have the loop look."""
        with suppress(BlockingIOError):  # it is rung so often already
            os.write(self._bell, b"\0")

    def _hear(self) -> None:
        """On the loop."""
        os.read(self._hears, 1024)
        self._settle()
        if self.failure is not None:
            self._report_failure()

    def _settle(self) -> None:
        """On the loop: wake whoever has his commit on the disk; after a failure nobody has."""
        waiting = []
        for committed, waiter in self._waiters:
            if waiter.done():
                continue
            if self.failure is not None:
                waiter.set_exception(self._lost())
            elif committed <= self.synced:
                waiter.set_result(None)
            else:
                waiting.append((committed, waiter))
        self._waiters = waiting
        calls, self._calls = self._calls, []
        for committed, call in calls:  # last: one with a fault keeps no task waiting
            if self.failure is not None:
                call(self._lost())
            elif committed <= self.synced:
                call(None)
            else:
                self._calls.append((committed, call))

    def _fail(self, error: BaseException) -> None:
        """For good: after a failed fsync the kernel may call the lost pages clean, so a second one proves nothing."""
        if self.failure is None:
            self.failure = error
            log.critical("%s: could not be put on the disk: %s", self.path, error)
            if self._loop is None:  # nobody has ever waited
                self._report_failure()
            else:
                self._ring()

    def _report_failure(self) -> None:
        if self._on_failure is not None and self.failure is not None and not self._told:
            self._told = True
            self._on_failure(self.failure)

    def _lost(self) -> StoreError:
        return StoreError(f"{self.path}: could not be put on the disk: {self.failure}")


def next_request(requests: Requests, due: float) -> bool | None:
    """The next request; False when none has come by `due` (monotonic seconds)."""
    try:
        return requests.get(timeout=None if due == math.inf else max(0.0, due - time.monotonic()))
    except queue.Empty:
        return False
