//! Sets up the log of the process, which is env_logger over a [`LogWriter`].
//!
//! Invariant: no thread that logs waits for standard error (rule S21), not even in a panic. The
//! queue is the library's. This file decides which lines are logged, and their form.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::panic;
use std::process;
use std::thread;

use anstyle::{AnsiColor, Style};
use env_logger::{Builder, Target};
use log::{Level, LevelFilter};
use smol_graceful::LogWriter;

/// Makes `log` the process's log, also for panics, which would go to standard error otherwise.
/// `wanted` selects the lines as `RUST_LOG` does. If `wanted` is empty, the log has the lines that
/// operators need.
pub(crate) fn install(log: &LogWriter, wanted: &str) {
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("without name");
        log::error!("thread {name} {}", panic.to_string().replace('\n', " "));
    }));
    let mut builder = Builder::new();
    // Processes that follow one another share a log, so each line has the process id.
    let pid = process::id();
    let is_coloured = is_coloured(io::stderr().is_terminal());
    builder.format(move |line, record| {
        let (time, level) = (line.timestamp_millis(), record.level());
        let (target, args) = (record.target(), record.args());
        if !is_coloured {
            return writeln!(line, "[{time} {pid} {level:<5} {target}] {args}");
        }
        let (dim, style) = (Style::new().dimmed(), style(level));
        writeln!(
            line,
            "{dim}[{time} {pid}{dim:#} {style}{level:<5}{style:#} {dim}{target}]{dim:#} {args}"
        )
    });
    builder.target(Target::Pipe(Box::new(log.clone())));
    let (directives, wrong) = directives(wanted);
    for (module, level) in directives {
        builder.filter(module, level);
    }
    builder.init();
    for text in wrong {
        log::warn!("RUST_LOG: `{text}` is neither a level, a module nor module=level");
    }
}

/// Returns `true` if the lines are in colour, which is the case on a terminal with colours, unless
/// the user has asked for plain text (<https://no-color.org>).
fn is_coloured(is_terminal: bool) -> bool {
    let is_unset = |name| env::var_os(name).is_none_or(|value| value.is_empty());
    is_terminal && is_unset("NO_COLOR") && env::var_os("TERM").is_some_and(|term| term != "dumb")
}

fn style(level: Level) -> Style {
    match level {
        Level::Error => AnsiColor::Red.on_default().bold(),
        Level::Warn => AnsiColor::Yellow.on_default().bold(),
        Level::Info => AnsiColor::Green.on_default(),
        Level::Debug => AnsiColor::Blue.on_default(),
        Level::Trace => AnsiColor::Cyan.on_default(),
    }
}

/// Reads a text such as `warn,smol_graceful=debug`. Also returns the parts that make no sense.
/// env_logger could read the text, too, but would block on standard error to report a mistake.
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

/// Reads a level, a module, or both.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
