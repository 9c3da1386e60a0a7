//! The texts that the binary prints to standard output. A reader that leaves is not an error, and a
//! full disk is one.

mod common;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};

use common::{Program, SERVER, text};

/// Runs the binary with these words and this standard output.
fn run(words: &[&str], stdout: OwnedFd) -> Output {
    let mut command = Command::new(SERVER);
    command.args(words).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().unwrap()
}

/// Returns the end of a stream whose reader has left, as with `| true`.
fn unread() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for words in [
        &["generate", "man"][..],
        &["generate", "man", "keep"],
        &["generate", "bash"],
        &["generate", "zsh"],
        &["generate", "fish"],
        &["generate", "--help"],
        &["--help"],
        &["--version"],
        &["keep", "--help"],
        &["check", "--help"],
        &["--check", "--listen", "127.0.0.1:0"],
        &["keep", "--check", "--", "sh"],
    ] {
        let output = run(words, unread());
        assert_eq!((output.status.code(), &*text(&output.stderr)), (Some(0), ""), "{words:?}");
    }
}

/// The exit code of a check is its verdict, also if no program reads the report.
#[test]
fn a_report_that_nobody_reads_keeps_its_exit_code() {
    let server = Program::server(&["--work", "0s"]);
    let addr = server.addr.to_string();
    let words = ["check", "--duration", "100ms", "--clients", "2", &addr];
    for (more, code) in [(&[][..], 0), (&["--path", "/nothing"], 1)] {
        let output = run(&[&words[..], more].concat(), unread());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!said.contains("Broken pipe"), "{said}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let full = || OwnedFd::from(File::options().write(true).open("/dev/full").unwrap());
    let said = "smol-graceful: cannot write: No space left on device\n";
    for words in [&["generate", "man"][..], &["--check", "--listen", "127.0.0.1:0"]] {
        let output = run(words, full());
        assert_eq!((output.status.code(), &*text(&output.stderr)), (Some(1), said), "{words:?}");
    }
}
