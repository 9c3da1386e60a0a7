//! [`Log`]: lines on their way to standard error, which may block for as long as it likes.
//!
//! Invariant: whoever logs never waits for the writer (rule S21). Lines pass through a bounded
//! queue to a thread of their own; where the queue is full the oldest line makes room, so that the
//! last ones, which say how it all ended, are still there. Knows nothing of what the lines say.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::panic;
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use env_logger::{Builder, Target};
use log::LevelFilter;

/// How many lines wait at most.
const CAPACITY: usize = 1024;

/// How long the end of the process waits for lines that are still to be written.
const PATIENCE: Duration = Duration::from_millis(200);

/// A log that nobody has to wait for. Dropping it gives what is queued a bounded time to be
/// written.
pub(crate) struct Log {
    queue: Arc<Queue>,
}

impl Log {
    /// Starts the thread that writes to `out`. It ends with the process.
    ///
    /// # Errors
    ///
    /// What the operating system says if it cannot start a thread.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let writer = queue.clone();
        thread::Builder::new().name("log".into()).spawn(move || writer.write_to(out))?;
        Ok(Self { queue })
    }

    /// Makes this the process's log, for panics too: their usual way is standard error itself.
    /// `wanted` says what is logged, as `RUST_LOG` does; without a word, what operators need.
    pub(crate) fn install(&self, wanted: &str) {
        panic::set_hook(Box::new(|panic| {
            let thread = thread::current();
            let name = thread.name().unwrap_or("without name");
            log::error!("thread {name} {}", panic.to_string().replace('\n', " "));
        }));
        let mut builder = Builder::new();
        // Processes that follow one another share a log: each line says whose it is.
        let pid = process::id();
        builder.format(move |line, record| {
            let (time, level) = (line.timestamp_millis(), record.level());
            writeln!(line, "[{time} {pid} {level:<5} {}] {}", record.target(), record.args())
        });
        builder.target(Target::Pipe(Box::new(Lines(self.queue.clone()))));
        let (directives, wrong) = directives(wanted);
        for (module, level) in directives {
            builder.filter(module, level);
        }
        builder.init();
        for text in wrong {
            log::warn!("RUST_LOG: `{text}` is neither a level, a module nor module=level");
        }
    }

    /// Writes a line as it is, whatever the level.
    pub(crate) fn line(&self, line: String) {
        self.queue.push(line.into_bytes());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.flush(PATIENCE);
    }
}

/// What is logged, from a text such as `warn,smol_graceful=debug`, and what makes no sense in it.
/// env_logger would read it too, but complains on standard error itself, waiting for it.
fn directives(wanted: &str) -> (Vec<(Option<&str>, LevelFilter)>, Vec<&str>) {
    let mut directives = Vec::new();
    let mut wrong = Vec::new();
    for text in wanted.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match directive(text) {
            Some(directive) => directives.push(directive),
            None => wrong.push(text),
        }
    }
    if directives.is_empty() {
        directives = vec![(None, LevelFilter::Warn), (Some("smol_graceful"), LevelFilter::Info)];
    }
    (directives, wrong)
}

/// A level, a module, or both.
fn directive(text: &str) -> Option<(Option<&str>, LevelFilter)> {
    if let Ok(level) = text.parse() {
        return Some((None, level));
    }
    let (module, level) = match text.split_once('=') {
        Some((module, level)) => (module, level.parse().ok()?),
        None => (text, LevelFilter::Trace),
    };
    let letter = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '-');
    let named = !module.is_empty() && module.chars().all(letter);
    named.then_some((Some(module), level))
}

/// The queue as a writer: every write is one whole record.
struct Lines(Arc<Queue>);

impl Write for Lines {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.0.push(record.to_vec());
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines between those who log and the thread that writes.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// A line has come.
    arrived: Condvar,
    /// A line has been written.
    written: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// How many lines are missing in front of the first.
    dropped: u64,
    /// A line has left the queue and is being written.
    writing: bool,
}

impl Queue {
    fn push(&self, line: Vec<u8>) {
        let mut state = self.state();
        if state.lines.len() == CAPACITY {
            state.lines.pop_front();
            state.dropped += 1;
        }
        state.lines.push_back(line);
        drop(state);
        self.arrived.notify_one();
    }

    fn flush(&self, patience: Duration) {
        let unwritten = |state: &mut State| state.writing || !state.lines.is_empty();
        let _ = self.written.wait_timeout_while(self.state(), patience, unwritten);
    }

    fn write_to(&self, mut out: impl Write) {
        loop {
            let (dropped, line) = self.next();
            if dropped > 0 {
                let lost = format!("smol-graceful: {dropped} log lines lost, nobody read them\n");
                write(&mut out, lost.as_bytes());
            }
            write(&mut out, &line);
            self.state().writing = false;
            self.written.notify_all();
        }
    }

    /// Waits for the next line; with it comes how many are missing in front of it.
    fn next(&self) -> (u64, Vec<u8>) {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.writing = true;
                return (mem::take(&mut state.dropped), line);
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes `bytes`, however long it takes. Where nobody can read them, they are lost.
fn write(out: &mut impl Write, mut bytes: &[u8]) {
    /// A descriptor that another program has set to non-blocking is asked this often.
    const PAUSE: Duration = Duration::from_millis(10);
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return,
            Ok(n) => bytes = &bytes[n..],
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                _ => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    #[test]
    fn lines_are_written_in_order_before_the_end() {
        let (out, read) = out();
        let log = Log::start(out).unwrap();
        log.line("one\n".into());
        Lines(log.queue.clone()).write_all(b"two\n").unwrap();
        drop(log);
        assert_eq!(text(&read), "one\ntwo\n");
    }

    #[test]
    fn an_empty_log_ends_at_once() {
        let log = Log::start(out().0).unwrap();
        let began = Instant::now();
        drop(log);
        assert!(began.elapsed() < PATIENCE);
    }

    /// Rule S21: a pipe that nobody reads.
    #[test]
    fn a_writer_that_blocks_holds_up_nobody() {
        let (open, gate) = channel();
        let (out, read) = out();
        let log = Log::start(Gated { gate, out }).unwrap();
        let queue = log.queue.clone();
        let began = Instant::now();
        log.line("first\n".into());
        while !queue.state().writing {
            thread::yield_now();
        }
        for n in 0..CAPACITY + 7 {
            log.line(format!("{n}\n"));
        }
        drop(log);
        let took = began.elapsed();
        assert!(PATIENCE <= took && took < PATIENCE * 10, "{took:?}");

        drop(open);
        queue.flush(Duration::from_secs(10));
        let text = text(&read);
        let expected = "first\nsmol-graceful: 7 log lines lost, nobody read them\n7\n8\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with(&format!("{}\n", CAPACITY + 6)), "{text}");
    }

    #[test]
    fn a_writer_that_fails_is_ignored() {
        let (out, read) = out();
        let log = Log::start(Failing { errors: vec![io::ErrorKind::BrokenPipe], out }).unwrap();
        log.line("lost\n".into());
        log.line("written\n".into());
        drop(log);
        assert_eq!(text(&read), "written\n");
    }

    #[test]
    fn a_writer_that_is_not_ready_is_asked_again() {
        let errors = vec![io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
        let (out, read) = out();
        let log = Log::start(Failing { errors, out }).unwrap();
        log.line("written\n".into());
        drop(log);
        assert_eq!(text(&read), "written\n");
    }

    #[test]
    fn directives_are_read_as_elsewhere() {
        use LevelFilter::{Debug, Info, Off, Trace, Warn};

        let usual = vec![(None, Warn), (Some("smol_graceful"), Info)];
        for (wanted, expected, wrong) in [
            ("", usual.clone(), vec![]),
            ("debug", vec![(None, Debug)], vec![]),
            ("OFF, async_io=trace", vec![(None, Off), (Some("async_io"), Trace)], vec![]),
            ("a::b", vec![(Some("a::b"), Trace)], vec![]),
            ("a=b=c,=info,info/x", usual, vec!["a=b=c", "=info", "info/x"]),
            ("warn,a=loud", vec![(None, Warn)], vec!["a=loud"]),
        ] {
            assert_eq!(directives(wanted), (expected, wrong), "{wanted}");
        }
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
