//! The command line of `smol-graceful check`, and its meaning for the load and the verdict.
//!
//! Nothing here connects to a server or writes a file. A wrong value is refused while the command
//! line is read, so the operator sees the mistake before the load begins.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use humantime::format_duration;

use super::goal::{Goal, is_target};
use super::load::{Report, Requests};
use crate::arguments::{Dependent, GivenInVain, duration};

/// Keeps a server under load, restarts it, and reports the result of every request and connection
///
/// It works with any HTTP/1.1 server, for example:
///
///     smol-graceful check --restarts 3 http://127.0.0.1:8082/ -- systemctl restart app
///
/// A client whose kept connection is closed takes a new one for its next request. This loses
/// nothing, unless the client has already sent that request.
///
/// The report counts requests that were answered, refused or lost. It counts connections that the
/// server closed as asked (the request had asked for that), told (the last answer said so), or
/// untold (by FIN or reset, although no answer had said so). It has p99 and the longest time of all
/// answers, and of those near a restart, whose request was sent during the restart or within a
/// second after it.
///
/// The exit code is 0 if nothing was lost, 1 if a request was lost (or as --none-refused and
/// --seamless say), the server cannot be reached or COMMAND fails, and 2 for wrong usage.
///
/// DURATION is a time such as 300ms or 2s.
#[derive(Debug, Parser)]
#[command(name = "smol-graceful check", verbatim_doc_comment)]
pub(crate) struct Settings {
    /// The server: http://127.0.0.1:8082/path, 127.0.0.1:8082, localhost:8082 or unix:/path
    #[arg(value_name = "URL|ADDR")]
    pub(super) goal: Goal,

    /// A program that restarts the server, and ends after the restart
    ///
    /// Its output goes to standard error
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,

    /// The number of restarts
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<u32>::new().range(1..=10_000),
        default_value = "10"
    )]
    pub(super) restarts: u32,

    /// The time for which the load goes on before each restart and after the last
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    pub(super) pause: Duration,

    /// The shortest time from the beginning of a restart to the beginning of the next
    ///
    /// For pictures that can be compared, because their restarts are in the same places
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub(super) every: Duration,

    /// The length of the load without COMMAND
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = duration,
        conflicts_with = "command",
        default_value = "5s"
    )]
    pub(super) duration: Duration,

    /// The path that clients GET [default: the path of the URL, or /]
    ///
    /// Right answers have a status from 200 to 399
    #[arg(long, value_name = "PATH", value_parser = is_target)]
    pub(super) path: Option<String>,

    /// The body that a right answer to GET has [default: any]
    #[arg(long, value_name = "TEXT")]
    pub(super) body: Option<String>,

    /// A path to which a third of the clients POST up to 8 KiB
    #[arg(long, value_name = "PATH", value_parser = is_target)]
    pub(super) post: Option<String>,

    /// A right answer to POST has the body that was sent; needs --post
    #[arg(long)]
    pub(super) echo: bool,

    /// A path with slow answers, which one more client asks with GET
    ///
    /// So a long request is under way in each restart. A loss of it counts, but its time does not
    #[arg(long, value_name = "PATH", value_parser = is_target)]
    pub(super) slow: Option<String>,

    /// Asks the routes of smol-graceful itself, GET /work?for=TIME and POST /echo?for=TIME, for
    /// random times up to this
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = duration,
        conflicts_with_all = ["path", "body", "post", "echo"]
    )]
    pub(super) work: Option<Duration>,

    /// A field of each request, such as 'Authorization: Bearer x'; several times
    #[arg(long, value_name = "NAME:VALUE", value_parser = field)]
    pub(super) header: Vec<(String, String)>,

    /// The number of clients that ask without a pause
    ///
    /// They use connections in equal parts: a new one for each GET, one that is kept for the next
    /// GET, and with --post or --work one that is kept for the next POST
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000),
        default_value = "16"
    )]
    pub(super) clients: usize,

    /// The time for which each of them waits between an answer and its next request
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10ms")]
    pub(super) gap: Duration,

    /// The number of idle clients beside them
    ///
    /// Each keeps a connection, on which it asks at random moments, up to 5 s apart. A quarter of
    /// them asks when COMMAND is started, half of those at once, and the others in the 300 ms after
    /// that. At the end each of them asks once more
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(0..=20_000),
        default_value = "0"
    )]
    pub(super) idle: usize,

    /// Clients send on a kept connection without looking whether the server has closed it
    ///
    /// Then a request on a closed connection is lost. Without this flag, a client that finds its
    /// connection closed before it sends opens another one, as most client libraries do
    #[arg(long)]
    pub(super) blind: bool,

    /// The longest time for a request, a connect, and a wait for the server
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub(super) patience: Duration,

    /// Refused connects count as lost
    #[arg(long)]
    pub(super) none_refused: bool,

    /// Fails if a client notices the restart, because a request was lost, a connect was refused, or
    /// the server closed a connection that the client would have kept
    #[arg(long)]
    pub(super) seamless: bool,

    /// The file for the report as a page, with the picture in it
    #[arg(long, value_name = "FILE.html")]
    pub(super) report: Option<PathBuf>,

    /// The file for the picture, which shows requests, times and faults over the time
    #[arg(long, value_name = "FILE.svg")]
    pub(super) svg: Option<PathBuf>,

    /// The title of the picture and the page [default: the server and COMMAND]; needs --report or
    /// --svg
    #[arg(long, value_name = "TEXT")]
    pub(super) title: Option<String>,

    /// The number of requests in 100 ms at the top of the picture [default: the largest that there
    /// was]; needs --report or --svg
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<u64>::new().range(1..)
    )]
    pub(super) scale: Option<u64>,
}

impl Dependent for Settings {
    fn given_in_vain(&self, is_given: impl Fn(&str) -> bool) -> Option<GivenInVain> {
        let has_picture = self.report.is_some() || self.svg.is_some();
        let (command, picture) = ("-- COMMAND", "--report FILE.html or --svg FILE.svg");
        [
            ("restarts", !self.command.is_empty(), command),
            ("pause", !self.command.is_empty(), command),
            ("every", !self.command.is_empty(), command),
            ("echo", self.post.is_some(), "--post PATH"),
            ("title", has_picture, picture),
            ("scale", has_picture, picture),
        ]
        .into_iter()
        .find(|(field, is_of_use, _)| !is_of_use && is_given(field))
        .map(|(field, _, needs)| GivenInVain { field, needs })
    }
}

impl Settings {
    /// Returns the requests of the clients.
    pub(super) fn requests(&self) -> Requests {
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
        requests
    }

    /// Returns the faults that the settings do not allow.
    pub(super) fn faults(&self, report: &Report) -> Vec<String> {
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

    pub(super) fn verdict(&self, faults: &[String]) -> String {
        match faults {
            [] if self.seamless => "no client has noticed anything".to_owned(),
            [] => "nothing was lost".to_owned(),
            faults => faults.join(", "),
        }
    }

    pub(super) fn clients_in_words(&self) -> String {
        let (clients, idle) = (self.clients, self.idle);
        let idle = if idle > 0 { format!(" and {idle} idle ones") } else { String::new() };
        format!("{clients} clients{idle}")
    }

    /// Returns the number of restarts in the command line.
    pub(super) fn asked_for(&self) -> usize {
        if self.command.is_empty() { 0 } else { self.restarts as usize }
    }

    /// Returns the names and values of the settings for the page.
    pub(super) fn in_words(&self) -> Vec<(&'static str, String)> {
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

    /// Returns the title of the picture and the page.
    pub(super) fn title_in_words(&self) -> String {
        self.title.clone().unwrap_or_else(|| {
            let command: Vec<_> = self.command.iter().map(|word| word.to_string_lossy()).collect();
            match &*command.join(" ") {
                "" => self.goal.host().to_owned(),
                command => format!("{}, restarted by `{command}`", self.goal.host()),
            }
        })
    }
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

/// Returns a command line in a form that a shell can read.
pub(super) fn shell_words(line: &[OsString]) -> String {
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

#[cfg(test)]
mod tests;
