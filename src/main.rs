//! The binary: arguments and environment become calls of the library, its outcome the exit code.
//!
//! Uses the library's public API only. Exit codes: 0 everything was finished, 1 something was cut
//! or the command could not begin, 2 usage; `keep` ends with the exit code of its program. Each
//! command reads its own arguments, so that none pays for the others at its start.

#[path = "main/access_log/mod.rs"]
mod access_log;
#[path = "main/admin/mod.rs"]
mod admin;
#[path = "main/app.rs"]
mod app;
#[path = "main/arguments.rs"]
mod arguments;
#[path = "main/check/mod.rs"]
mod check;
#[path = "main/escape.rs"]
mod escape;
#[path = "main/generate.rs"]
mod generate;
#[path = "main/keep.rs"]
mod keep;
#[path = "main/log.rs"]
mod log;
#[path = "main/preview.rs"]
mod preview;
#[path = "main/serve.rs"]
mod serve;
#[path = "main/settings.rs"]
mod settings;
#[path = "main/sockets.rs"]
mod sockets;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() -> ExitCode {
    match env::args_os().nth(1).as_deref().and_then(OsStr::to_str) {
        Some("keep") => keep::main(),
        Some("check") => check::main(),
        Some("generate") => generate::main(),
        _ => serve::main(),
    }
}

/// Raises the soft limit of open files to the hard one, as Go does: the low soft limit is there for
/// programs that use `select`. [`Limits::default`](smol_graceful::Limits::default) looks at it. If
/// it fails, less must do.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Writes the text that a command was asked for to standard output. A reader that leaves before the
/// end, such as `head`, has what it wanted, so that is not an error. Another error is told on
/// standard error. Returns `true` if there was none.
fn print(text: &[u8]) -> bool {
    let mut stdout = io::stdout();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let reason = reason(&error);
            let _ = writeln!(io::stderr(), "smol-graceful: cannot write: {reason}");
            false
        }
        _ => true,
    }
}

/// Returns what the operating system says, without the number of the error.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => error.to_string().replace(&format!(" (os error {code})"), ""),
        None => error.to_string(),
    }
}
