//! The log of all servers in this process, kept for the test to read.
//!
//! A process has one logger, so the tests of a file share it. A test looks for lines that only its
//! own server writes, for example because they name a port or a peer.

use std::sync::{Mutex, Once};

use log::{Level, LevelFilter, Metadata, Record};

pub struct Log(Mutex<Vec<(Level, String)>>);

impl Log {
    /// Returns the log, which keeps lines from the first call on.
    pub fn of_this_process() -> &'static Self {
        static LOG: Log = Log(Mutex::new(Vec::new()));
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| {
            log::set_logger(&LOG).unwrap();
            log::set_max_level(LevelFilter::Info);
        });
        &LOG
    }

    /// Returns the lines that contain `text`.
    pub fn with(&self, text: &str) -> Vec<(Level, String)> {
        let lines = self.0.lock().unwrap();
        lines.iter().filter(|(_, line)| line.contains(text)).cloned().collect()
    }
}

impl log::Log for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0.lock().unwrap().push((record.level(), record.args().to_string()));
    }

    fn flush(&self) {}
}
