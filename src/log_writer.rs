//! [`LogWriter`]: lines on their way to an output that may block for as long as it likes.
//!
//! Invariant: no thread that logs ever waits for the output (rule S21). Lines pass through a
//! bounded queue to a thread of their own. If the queue is full, the oldest line makes room, so
//! that the last ones, which say how it all ended, are still there. This file knows nothing of the
//! server and of what the lines say.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;

use crate::lock::lock;
use crate::threads;

/// How many lines wait at most.
const LINES: usize = 1024;

/// How many bytes the waiting lines have at most, apart from one line that is longer by itself.
const BYTES: usize = 1024 * 1024;

/// How long dropping a writer waits for the lines that are still to be written.
const PATIENCE: Duration = Duration::from_millis(200);

/// Writes log lines without ever blocking the thread that logs.
///
/// A server logs from the thread that keeps its signals and deadlines. If the logger blocks, for
/// example because nobody reads the pipe behind standard error, no stop begins and no deadline is
/// kept. So let every logger write to a `LogWriter`, and not to a descriptor.
///
/// A thread of its own writes the lines. Up to 1024 lines and 1 MiB wait for it. Where more would
/// wait, the oldest line makes room, and a line in the output says how many were lost. A line that
/// the output refuses is lost too. Clones write to the same queue.
///
/// [`flush`](Write::flush) does not wait, because loggers call it behind each line. Dropping a
/// writer waits until everything is written, but 200 ms at most. A logger that is global is never
/// dropped, so keep a clone in `main` and drop it at the end.
///
/// # Examples
///
/// With env_logger:
///
/// ```
/// # #[cfg(feature = "cli")]
/// # fn main() -> std::io::Result<()> {
/// use smol_graceful::LogWriter;
/// use std::io;
///
/// let log = LogWriter::new(io::stderr())?;
/// env_logger::Builder::from_default_env()
///     .target(env_logger::Target::Pipe(Box::new(log.clone())))
///     .init();
/// log::warn!("nobody waits for this line");
/// drop(log); // at the end of `main`: up to 200 ms for the last lines
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "cli"))]
/// # fn main() {}
/// ```
pub struct LogWriter {
    queue: Arc<Queue>,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
}

impl LogWriter {
    /// Starts the thread that writes to `out`. The thread ends when nobody can write to it any
    /// more.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says if it cannot start a thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::LogWriter;
    /// use std::fs::File;
    /// use std::io::Write;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut log = LogWriter::new(File::create("/dev/null")?)?;
    /// writeln!(log, "a line")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        queue.state().writers = 1;
        let writer = queue.clone();
        thread::Builder::new()
            .name("log".into())
            .spawn(move || {
                // Otherwise a terminal may stop the whole process, if it is a background job, for a
                // line (`stty tostop`). Where the thread blocks the signal, the terminal takes the
                // line. The others are for the threads that handle them: a keeper must not lose one
                // that comes here while its program replaces itself.
                let _ = SigSet::all().thread_block();
                writer.write_to(out);
            })
            .map_err(threads::named("cannot start the thread that writes the log"))?;
        Ok(Self { queue, partial: Vec::new() })
    }
}

impl Clone for LogWriter {
    fn clone(&self) -> Self {
        self.queue.state().writers += 1;
        Self { queue: self.queue.clone(), partial: Vec::new() }
    }
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").finish_non_exhaustive()
    }
}

/// Queues a line when its end has come, so that lines of several writers do not mix. Never blocks
/// and never fails.
impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whole lines go out at once, however many one call brings.
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (whole, rest) = bytes.split_at(end);
        self.partial.extend_from_slice(whole);
        if end > 0 || self.partial.len() + rest.len() >= BYTES {
            self.queue.push(mem::take(&mut self.partial));
        }
        self.partial.extend_from_slice(rest);
        Ok(bytes.len())
    }

    /// Queues what has come of the last line. Does not wait for the output.
    fn flush(&mut self) -> io::Result<()> {
        if !self.partial.is_empty() {
            self.queue.push(mem::take(&mut self.partial));
        }
        Ok(())
    }
}

/// Waits a bounded time until the thread has written the queue.
impl Drop for LogWriter {
    fn drop(&mut self) {
        let _ = self.flush();
        self.queue.wait(PATIENCE);
        self.queue.state().writers -= 1;
        self.queue.arrived.notify_one();
    }
}

/// Lines between the threads that log and the one that writes.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// A line has come, or a writer has gone.
    arrived: Condvar,
    /// Every line that was queued has been written.
    all_written: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many lines are missing in front of the first.
    dropped: u64,
    /// A line has left the queue and is being written.
    is_writing: bool,
    /// How many [`LogWriter`]s there are.
    writers: usize,
}

impl State {
    fn pop(&mut self) -> Option<Vec<u8>> {
        let line = self.lines.pop_front()?;
        self.bytes -= line.len();
        Some(line)
    }

    fn has_room_for(&self, line: &[u8]) -> bool {
        self.lines.len() < LINES && self.bytes + line.len() <= BYTES
    }
}

impl Queue {
    fn push(&self, line: Vec<u8>) {
        let mut state = self.state();
        while !state.has_room_for(&line) && state.pop().is_some() {
            state.dropped += 1;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits until everything is written, or `patience` is over.
    fn wait(&self, patience: Duration) {
        let unwritten = |state: &mut State| state.is_writing || !state.lines.is_empty();
        let _ = self.all_written.wait_timeout_while(self.state(), patience, unwritten);
    }

    fn write_to(&self, mut out: impl Write) {
        while let Some((dropped, line)) = self.next() {
            if dropped > 0 {
                let lost = format!("smol-graceful: {dropped} log lines lost, nobody read them\n");
                write(&mut out, lost.as_bytes());
            }
            write(&mut out, &line);
        }
    }

    /// Waits for the next line, after the last one was written. Also returns how many lines are
    /// missing in front of it. Returns `None` when no line can come any more.
    fn next(&self) -> Option<(u64, Vec<u8>)> {
        let mut state = self.state();
        loop {
            let line = state.pop();
            state.is_writing = line.is_some();
            if let Some(line) = line {
                return Some((mem::take(&mut state.dropped), line));
            }
            self.all_written.notify_all();
            if state.writers == 0 {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Writes `bytes`, however long that takes. Bytes that nobody can read are lost.
fn write(out: &mut impl Write, mut bytes: &[u8]) {
    /// A descriptor that another program has set to non-blocking is asked this often.
    const PAUSE: Duration = Duration::from_millis(10);
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return,
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(_) => return,
        }
    }
    // A writer with a buffer of its own would keep the line back.
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::time::Instant;

    #[test]
    fn lines_are_written_in_order_before_the_end() {
        let (out, read) = out();
        let mut log = LogWriter::new(out).unwrap();
        log.write_all(b"one\n").unwrap();
        // Lines of two writers do not mix.
        log.write_all(b"th").unwrap();
        log.clone().write_all(b"two\n").unwrap();
        log.write_all(b"ree\n").unwrap();
        // A line goes out although the next has begun.
        log.write_all(b"four\nfi").unwrap();
        log.clone().write_all(b"six\n").unwrap();
        log.write_all(b"ve\nseven").unwrap();
        drop(log);
        assert_eq!(text(&read), "one\ntwo\nthree\nfour\nsix\nfive\nseven");
    }

    #[test]
    fn an_empty_log_ends_at_once() {
        let log = LogWriter::new(out().0).unwrap();
        let began = Instant::now();
        drop(log);
        assert!(began.elapsed() < PATIENCE);
    }

    /// Rule S21: a pipe that nobody reads.
    #[test]
    fn a_writer_that_blocks_holds_up_nobody() {
        let (open, gate) = channel();
        let (out, read) = out();
        let mut log = LogWriter::new(Gated { gate, out }).unwrap();
        let queue = log.queue.clone();
        let began = Instant::now();
        log.write_all(b"first\n").unwrap();
        while !queue.state().is_writing {
            thread::yield_now();
        }
        for n in 0..LINES + 7 {
            writeln!(log, "{n}").unwrap();
        }
        drop(log);
        let took = began.elapsed();
        assert!(PATIENCE <= took && took < PATIENCE * 10, "{took:?}");

        drop(open);
        queue.wait(Duration::from_secs(10));
        let text = text(&read);
        let expected = "first\nsmol-graceful: 7 log lines lost, nobody read them\n7\n8\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with(&format!("{}\n", LINES + 6)), "{text}");
    }

    /// Long lines must not fill memory, either.
    #[test]
    fn the_bytes_that_wait_are_bounded() {
        let queue = Queue::default();
        for n in 0..100 {
            queue.push(vec![n; BYTES / 10]);
        }
        let state = queue.state();
        assert_eq!((state.lines.len(), state.dropped), (10, 90));
        assert_eq!(state.bytes, state.lines.iter().map(Vec::len).sum::<usize>());
        drop(state);
        queue.push(vec![0; BYTES + 1]);
        assert_eq!(queue.state().lines.len(), 1);
    }

    #[test]
    fn the_thread_ends_with_the_last_writer() {
        let (out, read) = out();
        let log = LogWriter::new(out).unwrap();
        let clone = log.clone();
        drop(log);
        drop(clone);
        // The thread drops its end of the channel.
        assert!(read.recv_timeout(Duration::from_secs(30)) == Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_writer_that_fails_is_ignored() {
        let (out, read) = out();
        let mut log =
            LogWriter::new(Failing { errors: vec![io::ErrorKind::BrokenPipe], out }).unwrap();
        log.write_all(b"lost\n").unwrap();
        log.write_all(b"written\n").unwrap();
        drop(log);
        assert_eq!(text(&read), "written\n");
    }

    #[test]
    fn a_writer_that_is_not_ready_is_asked_again() {
        let errors = vec![io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
        let (out, read) = out();
        let mut log = LogWriter::new(Failing { errors, out }).unwrap();
        log.write_all(b"written\n").unwrap();
        drop(log);
        assert_eq!(text(&read), "written\n");
    }

    /// Takes a few bytes at a time, as a pipe that is almost full does.
    struct Out(Sender<Vec<u8>>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(5);
            let _ = self.0.send(bytes[..n].to_vec());
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn out() -> (Out, Receiver<Vec<u8>>) {
        let (sender, receiver) = channel();
        (Out(sender), receiver)
    }

    fn text(read: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(read.try_iter().flatten().collect()).unwrap()
    }

    /// Blocks until the other end of the gate is dropped.
    struct Gated {
        gate: Receiver<()>,
        out: Out,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.gate.recv();
            self.out.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Fails once with each error, then works.
    struct Failing {
        errors: Vec<io::ErrorKind>,
        out: Out,
    }

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.errors.pop() {
                Some(kind) => Err(kind.into()),
                None => self.out.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
