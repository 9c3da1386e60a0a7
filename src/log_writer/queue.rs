//! `Queue`: the lines between the threads that log and the thread that writes.
//!
//! Invariant: the waiting lines are bounded, and a push never waits for the output. Waiting lines
//! are written in their order, many of them by one call. This file does not know the threads that
//! log or the output.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::lock::lock;

/// The largest number of waiting lines.
pub(super) const LINES: usize = 4096;

/// The largest number of bytes of all waiting lines, apart from one line that is longer by itself.
pub(super) const BYTES: usize = 1024 * 1024;

/// The largest number of bytes that one call writes, apart from a line that is longer.
const BATCH: usize = 64 * 1024;

/// The pause after a write in which lines gather, unless a quarter of the room is full before. So a
/// busy access log costs a write for each batch, and not for each line.
const GATHER_PAUSE: Duration = Duration::from_millis(10);

/// After this number of writes with short pauses, a log counts as busy.
const BUSY_WRITES: u32 = 32;

/// The lines between the threads that log and the thread that writes.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Notifies of a new line, and of a writer that has gone.
    arrived: Condvar,
    /// Notifies when all queued lines have been written.
    all_written: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    lines: Lines,
    /// The number of lost lines in front of the first one.
    dropped: u64,
    /// `true` while the thread writes lines that have left the queue.
    pub(super) is_writing: bool,
    /// `true` while the thread waits for the next line, and has to be woken.
    is_idle: bool,
    /// The number of threads that wait until everything is written.
    waiting: usize,
    /// The number of [`LogWriter`]s.
    writers: usize,
}

impl State {
    /// Returns `true` if enough lines wait, so that the thread should not gather more.
    fn is_filling(&self) -> bool {
        self.lines.count() >= LINES / 4 || self.lines.bytes() >= BATCH
    }

    fn has_room_for(&self, line: &[u8]) -> bool {
        self.lines.count() < LINES && self.lines.bytes() + line.len() <= BYTES
    }
}

/// Lines one after the other in one ring of memory. So a thread that adds a line does not allocate
/// memory that another thread has to free.
#[derive(Default)]
struct Lines {
    text: VecDeque<u8>,
    lengths: VecDeque<usize>,
}

impl Lines {
    fn count(&self) -> usize {
        self.lengths.len()
    }

    fn bytes(&self) -> usize {
        self.text.len()
    }

    fn push(&mut self, line: &[u8]) {
        self.text.extend(line);
        self.lengths.push_back(line.len());
    }

    /// Drops the first line. Returns `false` if there is none.
    fn drop_first(&mut self) -> bool {
        let length = self.lengths.pop_front();
        self.text.drain(..length.unwrap_or(0));
        length.is_some()
    }

    /// Moves lines to `batch`, in their order: the first one, and as many more as fit into one
    /// write.
    fn pop_batch(&mut self, batch: &mut Vec<u8>) {
        let mut end = 0;
        while let Some(length) = self.lengths.front() {
            if end > 0 && end + length > BATCH {
                break;
            }
            end += length;
            self.lengths.pop_front();
        }
        batch.clear();
        let (front, back) = self.text.as_slices();
        let in_front = end.min(front.len());
        batch.extend_from_slice(&front[..in_front]);
        batch.extend_from_slice(&back[..end - in_front]);
        self.text.drain(..end);
        if self.lengths.is_empty() {
            // The next lines do not need the room that a flood of lines has needed.
            self.text.shrink_to(BATCH);
        }
    }
}

impl Queue {
    pub(super) fn add_writer(&self) {
        self.state().writers += 1;
    }

    /// Notes that a writer is gone. The thread ends if no line can come any more.
    pub(super) fn remove_writer(&self) {
        self.state().writers -= 1;
        self.arrived.notify_all();
    }

    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.state();
        while !state.has_room_for(line) && state.lines.drop_first() {
            state.dropped += 1;
        }
        let was_filling = state.is_filling();
        state.lines.push(line);
        // The thread is woken once, and not for each line, because a wake costs as much as a line.
        let wakes = mem::take(&mut state.is_idle) || (state.is_filling() && !was_filling);
        drop(state);
        if wakes {
            self.arrived.notify_one();
        }
    }

    /// Waits until everything is written, or `patience` is over.
    pub(super) fn wait(&self, patience: Duration) {
        let unwritten = |state: &mut State| state.is_writing || state.lines.count() > 0;
        let mut state = self.state();
        state.waiting += 1;
        self.arrived.notify_all();
        let waited = self.all_written.wait_timeout_while(state, patience, unwritten);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
    }

    pub(super) fn write_to(&self, mut out: impl Write, mut notice: impl FnMut(u64) -> String) {
        let mut out = Output { out: &mut out, place: Place::LineBegin };
        let mut batch = Vec::new();
        let (mut wrote_at, mut in_a_row) = (None::<Instant>, 0);
        // Only a busy log gathers lines. In other logs a reader sees each line at its time.
        while let Some(dropped) =
            self.next(&mut batch, wrote_at.filter(|_| in_a_row >= BUSY_WRITES))
        {
            if dropped > 0 {
                out.write(notice(dropped).as_bytes());
            }
            out.write(&batch);
            let now = Instant::now();
            let is_next = wrote_at.is_some_and(|at| now - at < 2 * GATHER_PAUSE);
            in_a_row = if is_next { in_a_row + 1 } else { 0 };
            wrote_at = Some(now);
        }
    }

    /// Notes that the last batch was written, waits for lines, and moves them to `batch`. Returns
    /// the number of lost lines in front of them, or `None` if no line can come any more.
    pub(super) fn next(&self, batch: &mut Vec<u8>, wrote_at: Option<Instant>) -> Option<u64> {
        let mut state = self.state();
        state.is_writing = false;
        loop {
            if state.lines.count() > 0 {
                let gathers = state.waiting == 0 && state.writers > 0 && !state.is_filling();
                let since = wrote_at.map_or(GATHER_PAUSE, |at: Instant| at.elapsed());
                if let Some(left) =
                    GATHER_PAUSE.checked_sub(since).filter(|left| gathers && !left.is_zero())
                {
                    let waited = self.arrived.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
                state.is_writing = true;
                state.lines.pop_batch(batch);
                return Some(mem::take(&mut state.dropped));
            }
            if state.waiting > 0 {
                self.all_written.notify_all();
            }
            if state.writers == 0 {
                return None;
            }
            state.is_idle = true;
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.is_idle = false;
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The output of the lines.
struct Output<'a> {
    out: &'a mut dyn Write,
    place: Place,
}

/// The place in the output at which the next byte goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    LineBegin,
    WithinLine,
    /// The output has taken a part of a line, and has refused the rest.
    BehindTornLine,
}

impl Output<'_> {
    /// Writes lines, and waits for the output without a limit. A line that the output refuses is
    /// lost. If the output has taken a part of that line, a line end comes before the next line.
    fn write(&mut self, mut lines: &[u8]) {
        /// The pause between two tries on a descriptor that another program has set to
        /// non-blocking.
        const PAUSE: Duration = Duration::from_millis(10);
        while !lines.is_empty() {
            let is_torn = self.place == Place::BehindTornLine;
            match self.out.write(if is_torn { b"\n" } else { lines }) {
                Ok(0) => return,
                Ok(_) if is_torn => self.place = Place::LineBegin,
                Ok(n) => {
                    let is_whole = lines[n - 1] == b'\n';
                    self.place = if is_whole { Place::LineBegin } else { Place::WithinLine };
                    lines = &lines[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                // The output may take the next line, for example because it is shorter.
                Err(_) => {
                    lines = after_line(lines);
                    if self.place == Place::WithinLine {
                        self.place = Place::BehindTornLine;
                    }
                }
            }
        }
        // An output with a buffer of its own would keep the line back.
        let _ = self.out.flush();
    }
}

/// Returns the lines after the first.
fn after_line(bytes: &[u8]) -> &[u8] {
    memchr::memchr(b'\n', bytes).map_or(&[], |end| &bytes[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long lines must not fill memory either.
    #[test]
    fn the_bytes_that_wait_are_bounded() {
        let queue = Queue::default();
        for n in 0..100 {
            queue.push(&vec![n; BYTES / 10]);
        }
        let state = queue.state();
        assert_eq!((state.lines.count(), state.dropped), (10, 90));
        assert_eq!(state.lines.bytes(), 10 * (BYTES / 10));
        assert!(state.lines.text.capacity() <= 2 * BYTES, "what was dropped stays in memory");
        drop(state);
        queue.push(&vec![0; BYTES + 1]);
        assert_eq!(queue.state().lines.count(), 1);
        let mut batch = Vec::new();
        assert_eq!(queue.next(&mut batch, None), Some(100));
        assert_eq!(batch, vec![0; BYTES + 1]);
        assert!(queue.state().lines.text.capacity() <= 2 * BATCH);
    }

    /// An output that takes as many bytes as it has room for, like a disk.
    struct Disk {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let n = bytes.len().min(self.room);
            self.taken.extend_from_slice(&bytes[..n]);
            self.room -= n;
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Each case: the room of a disk, and its content after it had room again.
    #[test]
    fn a_line_after_a_torn_one_is_whole() {
        for (room, expected) in [
            (0, "three\nfour\n"),
            (2, "on\nthree\nfour\n"),
            (4, "one\nthree\nfour\n"),
            (5, "one\nt\nthree\nfour\n"),
            (8, "one\ntwo\nthree\nfour\n"),
        ] {
            let mut disk = Disk { taken: Vec::new(), room };
            let mut output = Output { out: &mut disk, place: Place::LineBegin };
            output.write(b"one\ntwo\n");
            let place = output.place;
            disk.room = 100;
            Output { out: &mut disk, place }.write(b"three\nfour\n");
            assert_eq!(String::from_utf8(disk.taken).unwrap(), expected, "room for {room} bytes");
        }
    }

    /// Many short lines cost few writes, in the same order. A long line is written by itself.
    #[test]
    fn waiting_lines_are_written_together() {
        let queue = Queue::default();
        for n in 0..100 {
            queue.push(format!("{n}\n").as_bytes());
        }
        queue.push(&[b'x'; BATCH + 1]);
        queue.push(b"last\n");
        let mut batch = Vec::new();
        assert_eq!(queue.next(&mut batch, None), Some(0));
        let expected: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(batch.clone()).unwrap(), expected);
        // A short rest waits until the pause in which lines gather is over.
        assert_eq!(queue.next(&mut batch, Some(Instant::now())), Some(0));
        assert_eq!(batch.len(), BATCH + 1);
        assert_eq!(queue.next(&mut batch, Some(Instant::now())), Some(0));
        assert_eq!(batch, b"last\n");
        assert_eq!(queue.next(&mut batch, None), None);
        assert_eq!(queue.state().lines.bytes(), 0);
    }
}
