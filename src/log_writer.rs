//! [`LogWriter`]: a writer for log lines whose output may block.
//!
//! Invariant: no thread that logs ever waits for the output (rule S21). Lines pass through a
//! bounded queue to a thread of their own. If the queue is full, the oldest line makes room, so
//! that the last lines, which report the end, are still there. This file knows nothing of the
//! server or of the text of the lines.

mod queue;

use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::threads;
use queue::{BYTES, Queue};

/// The longest time for which the drop of a writer waits for lines that are not written yet. On a
/// busy machine, or in a container with little processor time, the thread that writes may get no
/// turn for several hundred milliseconds, and the last lines say how the process has ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes log lines without ever blocking the thread that logs.
///
/// A server logs from the thread that keeps its signals and deadlines. If the logger blocks, for
/// example because nobody reads the pipe behind standard error, no stop begins and no deadline is
/// kept. So every logger should write to a `LogWriter`, and not to a descriptor.
///
/// A thread of its own writes the lines. Up to 4096 lines and 1 MiB wait for the thread. If more
/// lines come, the oldest ones make room, and a line in the output says how many were lost.
/// [`LogWriter::with_notice`] replaces that line. A line that the output refuses is lost, too.
/// Clones write to the same queue.
///
/// [`flush`](Write::flush) does not wait, because loggers call it after each line. The drop of a
/// writer waits until all lines are written, but at most 1 s. A global logger is never dropped,
/// so keep a clone in `main` and drop it at the end.
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
/// drop(log); // at the end of `main`: up to 1 s for the last lines
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "cli"))]
/// # fn main() {}
/// ```
pub struct LogWriter {
    queue: Arc<Queue>,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl LogWriter {
    /// Makes a writer, and starts the thread that writes to `out`. The thread ends after the last
    /// clone of the writer was dropped.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if it cannot start a thread.
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
        Self::with_notice(out, |lost| {
            format!("smol-graceful: {lost} log lines lost, nobody read them\n")
        })
    }

    /// Makes a writer like [`LogWriter::new`], with a notice of the program's own for lost lines.
    ///
    /// If lines were lost, `notice` gets their number, and returns the text that takes their place.
    /// The thread that writes calls `notice`, so it may block.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`LogWriter::new`].
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::LogWriter;
    /// use std::fs::File;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let out = File::create("/dev/null")?;
    /// let log = LogWriter::with_notice(out, |lost| format!("{{\"lost\":{lost}}}\n"))?;
    /// log.line("{\"status\":200}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_notice(
        out: impl Write + Send + 'static,
        notice: impl FnMut(u64) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        queue.add_writer();
        let writer = queue.clone();
        // The thread inherits the mask, so all signals are blocked from its first moment on. A
        // terminal may stop a whole background job for a line of output (`stty tostop`), and takes
        // the line if the thread blocks that signal. The other signals are for other threads. A
        // keeper blocks all signals while it starts. If this thread had not blocked them, it would
        // take a signal that is meant for the keeper, and the signal would end the process.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let spawned = thread::Builder::new()
            .name("log".into())
            .spawn(move || writer.write_to(out, notice))
            .map_err(threads::named("cannot start the thread that writes the log"));
        if let Ok(before) = before {
            let _ = before.thread_set_mask();
        }
        spawned?;
        Ok(Self { queue, partial: Vec::new() })
    }

    /// Queues a line, and adds the line end if it is missing. Never blocks.
    ///
    /// This needs no `&mut`, unlike [`Write`], so several threads can share one writer.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::LogWriter;
    /// use std::fs::File;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let log = LogWriter::new(File::create("/dev/null")?)?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| log.line("one"));
    ///     scope.spawn(|| log.line("two"));
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub fn line(&self, line: impl Into<Vec<u8>>) {
        let mut line = line.into();
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        self.queue.push(&line);
    }
}

impl Clone for LogWriter {
    fn clone(&self) -> Self {
        self.queue.add_writer();
        Self { queue: self.queue.clone(), partial: Vec::new() }
    }
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").finish_non_exhaustive()
    }
}

/// Queues each line when its end has come, so that lines of several writers do not mix. No method
/// blocks or fails.
impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whole lines go out at once, also several in one call.
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (whole, rest) = bytes.split_at(end);
        self.partial.extend_from_slice(whole);
        if end > 0 || self.partial.len() + rest.len() >= BYTES {
            self.queue.push(&mem::take(&mut self.partial));
        }
        self.partial.extend_from_slice(rest);
        Ok(bytes.len())
    }

    /// Queues a line whose end has not come yet. Does not wait for the output.
    fn flush(&mut self) -> io::Result<()> {
        if !self.partial.is_empty() {
            self.queue.push(&mem::take(&mut self.partial));
        }
        Ok(())
    }
}

/// The drop waits for a bounded time until the thread has written the queue.
impl Drop for LogWriter {
    fn drop(&mut self) {
        let _ = self.flush();
        self.queue.wait(PATIENCE);
        self.queue.remove_writer();
    }
}

#[cfg(test)]
mod tests {
    use super::queue::LINES;
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
        // A line goes out although the next one has begun.
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

    /// Rule S21: a writer does not wait for a pipe that nobody reads.
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

    /// Lines of several threads do not mix, and each gets its end.
    #[test]
    fn threads_share_one_writer() {
        let (out, read) = out();
        let log = LogWriter::new(out).unwrap();
        thread::scope(|scope| {
            for letter in ["a", "b", "c\n"] {
                let log = &log;
                scope.spawn(move || (0..100).for_each(|_| log.line(letter)));
            }
        });
        drop(log);
        let text = text(&read);
        for line in ["a", "b", "c"] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 100, "{text}");
        }
        assert_eq!(text.lines().count(), 300, "{text}");
    }

    /// A notice of the program's own takes the place of lost lines.
    #[test]
    fn lost_lines_are_told_as_the_program_says() {
        let (open, gate) = channel();
        let (out, read) = out();
        let log =
            LogWriter::with_notice(Gated { gate, out }, |lost| format!("<{lost}>\n")).unwrap();
        log.line("first");
        while !log.queue.state().is_writing {
            thread::yield_now();
        }
        for n in 0..LINES + 2 {
            log.line(n.to_string());
        }
        drop(open);
        log.queue.wait(Duration::from_secs(10));
        let text = text(&read);
        assert!(text.starts_with("first\n<2>\n2\n3\n"), "{text}");
    }

    #[test]
    fn the_thread_ends_with_the_last_writer() {
        let (out, read) = out();
        let log = LogWriter::new(out).unwrap();
        let clone = log.clone();
        drop(log);
        drop(clone);
        // The thread has ended if its end of the channel is dropped.
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

    /// An output that takes a few bytes at a time, like a pipe that is almost full.
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

    /// An output that blocks until the other end of the gate is dropped.
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

    /// An output that fails once with each error, and then works.
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
