//! `smol-graceful check`: keeps a server under load, restarts it, and says what clients notice.
//!
//! [`Settings`] is the command line, [`run`] the whole command. The load itself, in `load.rs` and
//! below it, knows neither settings nor files. A number is counted in one place, `tally.rs`: lines,
//! page and picture show the same ones.

mod goal;
mod load;
mod page;
mod picture;
mod progress;
#[cfg(test)]
mod tests;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use clap::builder::RangedU64ValueParser;
use humantime::{format_duration, format_rfc3339_seconds, parse_duration};
use rustix::process::{Resource, getrlimit};

use goal::{Goal, is_target};
use load::{Load, Report, Requests, Tally};
use page::Page;
use picture::Picture;
use progress::{Progress, Restart};

/// The arguments of `smol-graceful check`.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// The server: http://127.0.0.1:8082/path, 127.0.0.1:8082, localhost:8082 or unix:/path
    #[arg(value_name = "URL|ADDR")]
    goal: Goal,

    /// A program that restarts the server, and ends when that is done
    ///
    /// Its output goes to standard error
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    /// How often COMMAND is run
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<u32>::new().range(1..=10_000),
        requires = "command",
        default_value = "10"
    )]
    restarts: u32,

    /// How long the load goes on before each restart and after the last
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        requires = "command",
        default_value = "1s"
    )]
    pause: Duration,

    /// How long it is at least from the beginning of a restart to the beginning of the next
    ///
    /// For pictures that can be compared, as their restarts stand in the same places
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        requires = "command",
        default_value = "0s"
    )]
    every: Duration,

    /// How long the load goes on without COMMAND
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        conflicts_with = "command",
        default_value = "5s"
    )]
    duration: Duration,

    /// The path that clients GET [default: the path of the URL, or /]
    ///
    /// Right answers have a status from 200 to 399
    #[arg(long, value_name = "PATH", value_parser = is_target)]
    path: Option<String>,

    /// The body that a right answer to GET has [default: any]
    #[arg(long, value_name = "TEXT")]
    body: Option<String>,

    /// A path to which a third of the clients POST up to 8 KiB
    #[arg(long, value_name = "PATH", value_parser = is_target)]
    post: Option<String>,

    /// A right answer to POST has the body that was sent
    #[arg(long, requires = "post")]
    echo: bool,

    /// A path that one more client asks with GET, whose answers take long
    ///
    /// So a long request is under way in each restart. Whether it is lost is counted, but not how
    /// long it takes
    #[arg(long, value_name = "PATH", value_parser = is_target)]
    slow: Option<String>,

    /// Asks the routes of smol-graceful itself, GET /work?for=TIME and POST /echo?for=TIME, for
    /// random times up to this
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        conflicts_with_all = ["path", "body", "post", "echo"]
    )]
    work: Option<Duration>,

    /// A field of each request, such as 'Authorization: Bearer x'; several times
    #[arg(long, value_name = "NAME:VALUE", value_parser = field)]
    header: Vec<(String, String)>,

    /// How many clients ask without a rest
    ///
    /// In equal parts they take a new connection for each GET, keep theirs for the next GET, and
    /// with --post or --work keep theirs for the next POST
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000),
        default_value = "16"
    )]
    clients: usize,

    /// How long each of them waits between an answer and its next request
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10ms")]
    gap: Duration,

    /// How many idle clients there are beside them
    ///
    /// Each keeps a connection, on which it asks at random moments, up to 5 s apart. A quarter of
    /// them asks when COMMAND is started: half of those at once, the others in the 300 ms after it.
    /// At the end each of them asks once more
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(0..=20_000),
        default_value = "0"
    )]
    idle: usize,

    /// Clients send on a kept connection without a look whether the server has closed it
    ///
    /// A request on a closed connection is lost then. Without this, a client that finds its
    /// connection closed before it sends opens another one, as most client libraries do
    #[arg(long)]
    blind: bool,

    /// How long a request may take, a connect, and a wait for the server
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    patience: Duration,

    /// Refused connects count as lost
    #[arg(long)]
    none_refused: bool,

    /// Fails if a client notices anything: if a request was lost, a connect was refused, or the
    /// server closed a connection without being asked to, whether its last answer said so or not
    #[arg(long)]
    seamless: bool,

    /// Where to write the report as a page, with the picture in it
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Where to write the picture: requests, times and faults, over the time
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,

    /// The title of picture and page [default: the server and COMMAND]
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,

    /// How many requests in 100 ms reach the top of the picture [default: the most that there were]
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<u64>::new().range(1..)
    )]
    scale: Option<u64>,
}

/// Reads a field of a request.
fn field(text: &str) -> Result<(String, String), String> {
    let wrong = "write a field as NAME:VALUE, such as 'Accept: text/html'";
    let (name, value) = text.split_once(':').ok_or(wrong)?;
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_visible = |byte: u8| byte == b'\t' || !byte.is_ascii_control();
    if name.is_empty() || !name.bytes().all(is_letter) || !value.bytes().all(is_visible) {
        return Err(wrong.to_owned());
    }
    let own = ["connection", "content-length", "transfer-encoding", "expect", "upgrade", "te"];
    if own.contains(&&*name.to_ascii_lowercase()) {
        return Err(format!("the clients choose the field {name} themselves"));
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

/// Runs the check. Returns the exit code: 0 if nothing was lost, 1 otherwise.
pub(crate) fn run(settings: &Settings) -> ExitCode {
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
    /// Returns `true` if the server has none of the faults that are looked for. Fails if there is
    /// no server, if a restart fails, or if a file cannot be written.
    fn check(&self) -> io::Result<bool> {
        self.look_at_limits()?;
        for file in [&self.report, &self.svg].into_iter().flatten() {
            // Before the load, because a run may be long.
            fs::write(file, "").map_err(|error| cannot_write(file, &error))?;
        }
        let load = self.load()?;
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
        // If nobody reads it, the exit code still tells.
        let _ = write!(io::stdout(), "{report}");
        if restarted.is_ok() {
            let _ = writeln!(io::stdout(), "{done}; {took:.1?} with {with}: {verdict}");
        }
        self.draw(&tally, &report, &restarts, &verdict)?;
        restarted.map(|()| faults.is_empty())
    }

    /// Fails if the clients need more open files than there may be.
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
        let mut requests = match self.work {
            Some(longest) => Requests::of_bundled(self.goal.host(), longest),
            None => Requests::new(self.goal.host()),
        };
        if self.work.is_none() {
            let path = self.path.as_ref().or(self.goal.path.as_ref());
            requests.get = path.cloned().unwrap_or("/".to_owned());
            requests.body = self.body.as_ref().map(|body| body.clone().into_bytes());
            requests.post = self.post.clone();
            requests.is_echo = self.echo;
        }
        requests.slow = self.slow.clone();
        if self.header.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            requests.fields.clear();
        }
        for (name, value) in &self.header {
            requests.fields += &format!("{name}: {value}\r\n");
        }
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
                // A name may stand for several addresses, and another one may answer.
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| io::Error::other("the host has no address")))
    }

    /// Restarts the server while the load is on. Fails if a restart fails.
    fn restart(
        &self,
        tally: &Tally,
        patience: Duration,
        restarts: &mut Vec<Restart>,
    ) -> io::Result<()> {
        let progress = Progress::new(tally, if self.command.is_empty() { 0 } else { self.restarts });
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
            // Standard output is the report's.
            command.args(args).stdin(Stdio::null()).stdout(io::stderr());
            let next = Instant::now() + self.every;
            let stretch = progress.begin(number);
            let status = progress.while_waiting(|| tally.restart(|| command.status()));
            let took = stretch.elapsed();
            let status = status.map_err(|error| wrong(format!("cannot be run: {error}")))?;
            if !status.success() {
                return Err(wrong(format!("failed: {status}")));
            }
            let is_last = number == self.restarts;
            let rest = next.saturating_duration_since(Instant::now()).max(self.pause);
            progress.while_waiting(|| thread::sleep(rest));
            if is_last && !progress.while_waiting(|| tally.all_answered(patience)) {
                let error = "some client has had no answer since the last restart";
                return Err(io::Error::new(io::ErrorKind::TimedOut, error));
            }
            restarts.push(progress.end(stretch, took));
        }
        Ok(())
    }

    /// Returns the faults of a server that must not have any.
    fn faults(&self, report: &Report) -> Vec<String> {
        let Self { seamless, none_refused, .. } = self;
        [
            (true, report.lost(), "lost"),
            (*seamless, report.closed(), "connections closed by the server"),
            (*seamless || *none_refused, report.refused, "refused"),
        ]
        .into_iter()
        .filter(|(counts, number, _)| *counts && *number > 0)
        .map(|(_, number, what)| format!("{number} {what}"))
        .collect()
    }

    fn verdict(&self, faults: &[String]) -> String {
        match faults {
            [] if self.seamless => "no client has noticed anything".to_owned(),
            [] => "nothing was lost".to_owned(),
            faults => faults.join(", "),
        }
    }

    fn clients_in_words(&self) -> String {
        let (clients, idle) = (self.clients, self.idle);
        let idle = if idle > 0 { format!(" and {idle} idle ones") } else { String::new() };
        format!("{clients} clients{idle}")
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
        let title = self.title.clone().unwrap_or_else(|| {
            let command: Vec<_> = self.command.iter().map(|word| word.to_string_lossy()).collect();
            match &*command.join(" ") {
                "" => self.goal.host().to_owned(),
                command => format!("{}, restarted by `{command}`", self.goal.host()),
            }
        });
        let picture = Picture {
            title: &title,
            timeline: &timeline,
            scale: self.scale,
            has_notes: false,
        };
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
                line: &in_words(&line),
                settings: &self.in_words(),
                time: &format_rfc3339_seconds(SystemTime::now()).to_string(),
            };
            fs::write(file, page.draw()).map_err(|error| cannot_write(file, &error))?;
        }
        Ok(())
    }

    /// Returns how many restarts were asked for.
    fn asked_for(&self) -> usize {
        if self.command.is_empty() { 0 } else { self.restarts as usize }
    }

    /// Returns what a reader of the page has to know of the load.
    fn in_words(&self) -> Vec<(&'static str, String)> {
        let time = |duration: Duration| format_duration(duration).to_string();
        let (get, post) = match self.work {
            Some(work) => {
                let work = time(work);
                (format!("/work, up to {work}"), Some(format!("/echo, up to {work}")))
            }
            None => {
                let path = self.path.as_deref().or(self.goal.path.as_deref());
                (path.unwrap_or("/").to_owned(), self.post.clone())
            }
        };
        let looks = if self.blind { "never" } else { "before each request" };
        let mut lines = vec![
            ("Server", self.goal.to_string()),
            ("GET", get),
            ("POST", post.unwrap_or("no".to_owned())),
            ("Clients", format!("{}, {} between requests", self.clients, time(self.gap))),
            ("Idle clients", self.idle.to_string()),
            ("Clients look whether their connection is closed", looks.to_owned()),
            ("Patience", time(self.patience)),
        ];
        if let Some(slow) = &self.slow {
            lines.push(("Slow GET", slow.clone()));
        }
        lines
    }
}

fn cannot_write(file: &std::path::Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", file.display()))
}

/// Returns a command line as a shell reads it.
fn in_words(line: &[OsString]) -> String {
    let words = line.iter().map(|word| {
        let word = word.to_string_lossy();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
        if !word.is_empty() && word.chars().all(is_plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    ["smol-graceful".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}
