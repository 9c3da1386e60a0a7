//! The binary: turns arguments and environment into calls of the library, and the outcome into the
//! exit code.
//!
//! The binary uses the library's public API only. The exit code is 0 if all work was finished, 1 if
//! work was cut or the command could not begin, and 2 for wrong usage. `keep` ends with the exit
//! code of its program. Each command reads only its own arguments, so that its start is fast.

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

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() -> ExitCode {
    match env::args_os().nth(1).as_deref().and_then(OsStr::to_str) {
        Some("keep") => keep::main(),
        Some("check") => check::main(),
        Some("generate") => generate::main(),
        _ => serve::main(),
    }
}

/// Raises the soft limit of open files to the hard one, as Go does, because the low soft limit is
/// meant for programs that use `select`. [`Limits::default`](smol_graceful::Limits::default) reads
/// the limit. If this fails, the old limit stays.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Writes the text that a command line asks for to standard output. If a reader leaves before the
/// end, such as `head`, that is not an error. Any other error is printed on standard error. Returns
/// `true` if there was no error.
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

/// Returns the operating system's words, without the number of the error, and the remedy for too
/// few descriptors.
fn reason(error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else { return error.to_string() };
    let words = error.to_string().replace(&format!(" (os error {code})"), "");
    if code == Errno::MFILE.raw_os_error() { format!("{words}; raise `ulimit -n`") } else { words }
}
