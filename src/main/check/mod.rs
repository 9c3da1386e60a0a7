//! `smol-graceful check`: keeps a server under load, restarts it, and reports what clients notice.
//!
//! [`Settings`] is the command line, and [`main`] the whole command. The load itself, in `load.rs`
//! and below it, knows neither settings nor files. Invariant: `tally.rs` has all counts, so lines,
//! page and picture show the same numbers.

#[cfg(test)]
mod count_tests;
mod goal;
mod load;
mod page;
mod picture;
#[cfg(test)]
mod picture_tests;
mod progress;
mod settings;
#[cfg(test)]
mod tests;

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use humantime::format_rfc3339_seconds;
use rustix::process::{Resource, getrlimit};

use crate::arguments::read;
use crate::raise_open_files;
use load::{Load, Report, Tally};
use page::Page;
use picture::Picture;
use progress::{Progress, Restart};
use settings::shell_words;

pub(crate) use settings::Settings;

/// Runs the check of the command line. Returns the exit code, which is 0 if nothing was lost, and 1
/// otherwise.
pub(crate) fn main() -> ExitCode {
    raise_open_files();
    let settings: Settings = match read() {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    match settings.check() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let error = error.to_string();
            let _ = writeln!(io::stderr(), "smol-graceful check: {}", error.trim_end());
            ExitCode::FAILURE
        }
    }
}

impl Settings {
    /// Returns `true` if the server has none of the faults that the settings name. Returns an error
    /// if there is no server, if a restart fails, or if a file cannot be written.
    fn check(&self) -> io::Result<bool> {
        self.look_at_limits()?;
        let load = self.load()?;
        for file in [&self.report, &self.svg].into_iter().flatten() {
            // The files are tried before the load, which may take long. An old report stays
            // meanwhile.
            let opened = OpenOptions::new().append(true).create(true).open(file);
            opened.map_err(|error| cannot_write(file, &error))?;
        }
        let start = Instant::now();
        let mut restarts = Vec::new();
        let (tally, restarted) =
            load.run_with_course(|tally| self.restart(tally, load.patience, &mut restarts))?;
        let took = start.elapsed();
        let report = tally.report();
        let faults = self.faults(&report);
        let verdict = match &restarted {
            Err(error) => error.to_string(),
            Ok(()) => self.verdict(&faults),
        };
        let done = match restarts.iter().map(|restart: &Restart| restart.took).max() {
            None => "no restart".to_owned(),
            Some(longest) => {
                let s = if restarts.len() == 1 { "" } else { "s" };
                format!("{} restart{s}, the longest took {longest:.1?}", restarts.len())
            }
        };
        let with = self.clients_in_words();
        // An error is ignored, because the exit code has the result, too.
        let _ = write!(io::stdout(), "{report}");
        if restarted.is_ok() {
            let _ = writeln!(io::stdout(), "{done}; {took:.1?} with {with}: {verdict}");
        }
        self.draw(&tally, &report, &restarts, &verdict)?;
        restarted.map(|()| faults.is_empty())
    }

    /// Returns an error if the clients need more open files than the limit.
    fn look_at_limits(&self) -> io::Result<()> {
        let needed = self.clients + self.idle + 64;
        match getrlimit(Resource::Nofile).current {
            Some(limit) if limit < needed as u64 => Err(io::Error::other(format!(
                "{} clients need {needed} open files, and {limit} are allowed; allow more by \
                 `ulimit -n`, or take fewer --clients and --idle",
                self.clients + self.idle
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the load, for the first address of the server that answers.
    fn load(&self) -> io::Result<Load> {
        let requests = self.requests();
        let mut first_error = None;
        for target in self.goal.targets()? {
            let load = Load {
                target,
                requests: requests.clone(),
                clients: self.clients,
                gap: self.gap,
                idle: self.idle,
                is_blind: self.blind,
                patience: self.patience,
            };
            match load.probe() {
                Ok(()) => return Ok(load),
                Err(error) if error.kind() == ErrorKind::InvalidData => return Err(error),
                // A name may have several addresses, and another one may answer.
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| io::Error::other("the host has no address")))
    }

    /// Restarts the server during the load. Returns an error if a restart fails.
    fn restart(
        &self,
        tally: &Tally,
        patience: Duration,
        restarts: &mut Vec<Restart>,
    ) -> io::Result<()> {
        let progress =
            Progress::new(tally, if self.command.is_empty() { 0 } else { self.restarts });
        let Some((program, args)) = self.command.split_first() else {
            progress.while_waiting(|| thread::sleep(self.duration));
            return Ok(());
        };
        progress.while_waiting(|| thread::sleep(self.pause));
        for number in 1..=self.restarts {
            let wrong = |what: String| {
                let program = program.to_string_lossy();
                let restarts = self.restarts;
                io::Error::other(format!("restart {number} of {restarts}: `{program}` {what}"))
            };
            let mut command = Command::new(program);
            // Standard output is for the report alone.
            command.args(args).stdin(Stdio::null()).stdout(io::stderr());
            let next = Instant::now() + self.every;
            let stretch = progress.begin(number);
            let status = progress.while_waiting(|| tally.restart(|| command.status()));
            let took = stretch.elapsed();
            let status = status.map_err(|error| wrong(format!("cannot be run: {error}")))?;
            if !status.success() {
                return Err(wrong(format!("failed: {status}")));
            }
            let rest = next.saturating_duration_since(Instant::now()).max(self.pause);
            progress.while_waiting(|| thread::sleep(rest));
            // A request from before the restart may use up its whole time first.
            if !progress.while_waiting(|| tally.all_answered(2 * patience)) {
                let error = format!("some client has had no answer since restart {number}");
                return Err(io::Error::new(ErrorKind::TimedOut, error));
            }
            let restart = progress.end(&stretch, took);
            let _ = writeln!(io::stderr(), "{restart}");
            restarts.push(restart);
        }
        Ok(())
    }

    /// Writes the page and the picture.
    fn draw(
        &self,
        tally: &Tally,
        report: &Report,
        restarts: &[Restart],
        verdict: &str,
    ) -> io::Result<()> {
        let timeline = tally.timeline();
        let title = self.title_in_words();
        let picture =
            Picture { title: &title, timeline: &timeline, scale: self.scale, has_notes: false };
        if let Some(file) = &self.svg {
            fs::write(file, picture.draw()).map_err(|error| cannot_write(file, &error))?;
        }
        if let Some(file) = &self.report {
            let line: Vec<_> = env::args_os().skip(1).collect();
            let page = Page {
                picture: Picture { has_notes: true, ..picture },
                verdict,
                is_good: self.faults(report).is_empty() && restarts.len() == self.asked_for(),
                report,
                restarts,
                line: &shell_words(&line),
                settings: &self.in_words(),
                time: &format_rfc3339_seconds(SystemTime::now()).to_string(),
            };
            fs::write(file, page.draw()).map_err(|error| cannot_write(file, &error))?;
        }
        Ok(())
    }
}

fn cannot_write(file: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", file.display()))
}
