//! The outcome as the value of `main` (rule S28): a program without a logger prints what was cut
//! before it ends with exit code 1.
//!
//! Each test starts itself again, as a program whose drain is cut short, with a logger of one kind.

mod common;

use std::env;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Output, Stdio, Termination};
use std::time::{Duration, Instant};

use common::{PATIENCE, output, text};
use log::LevelFilter;
use smol_graceful::Shutdown;

const CHILD: &str = "SMOL_GRACEFUL_TEST_CHILD";

/// Runs a program whose grace is over at once, with a guard that may be dropped before.
#[test]
fn the_program_of_these_tests() {
    let Ok(kind) = env::var(CHILD) else { return };
    let (level, is_cut) = kind.split_once(' ').unwrap();
    if level != "none" {
        env_logger::Builder::new().filter_level(level.parse().unwrap()).init();
    }
    let shutdown = Shutdown::new().grace(Duration::ZERO);
    let guard = shutdown.token().guard().unwrap();
    if is_cut == "drained" {
        drop(guard);
        return assert_eq!(code(&shutdown), code_of(ExitCode::SUCCESS));
    }
    assert_eq!(code(&shutdown), code_of(ExitCode::FAILURE));
}

fn code(shutdown: &Shutdown) -> String {
    code_of(smol::block_on(shutdown.stop_and_drain()).report())
}

fn code_of(code: ExitCode) -> String {
    format!("{code:?}")
}

fn program(kind: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "the_program_of_these_tests", "--nocapture"]).env(CHILD, kind);
    command
}

/// Returns the lines that name cut work.
fn lines_of_cuts(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let lines = text(&output.stderr);
    let named = |line: &&str| line.contains("1 cut: guard taken at tests/exit_code.rs:");
    lines.lines().filter(named).map(str::to_owned).collect()
}

#[test]
fn what_was_cut_is_said_if_no_logger_says_it() {
    for level in ["none", "off", "error"] {
        let lines = lines_of_cuts(&output(&mut program(&format!("{level} cut"))));
        assert!(
            matches!(&lines[..], [line] if line.starts_with("timed out after 0.")),
            "{level}: {lines:?}"
        );
    }
}

/// The outcome prints nothing if the program or the server has logged it.
#[test]
fn nothing_is_said_beside_a_logger() {
    for level in [LevelFilter::Warn, LevelFilter::Info] {
        let lines = lines_of_cuts(&output(&mut program(&format!("{level} cut"))));
        assert!(lines.is_empty(), "{level}: {lines:?}");
    }
}

#[test]
fn nothing_is_said_if_nothing_was_cut() {
    assert!(lines_of_cuts(&output(&mut program("none drained"))).is_empty());
}

/// Rule S21: an exit does not wait for a pipe that nobody reads.
#[test]
fn an_exit_waits_for_nobody_who_reads() {
    let (reader, writer) = UnixStream::pair().unwrap();
    fill(&writer);
    let mut command = program("none cut");
    // Standard error gets only the outcome's line.
    let mut child = command.stdout(Stdio::null()).stderr(OwnedFd::from(writer)).spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it waits");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(child.wait().unwrap().success());
    drop(reader);
}

/// Fills a pipe to the last byte.
fn fill(mut writer: &UnixStream) {
    writer.set_nonblocking(true).unwrap();
    let mut size = 64 * 1024;
    while size > 0 {
        while writer.write(&vec![b'x'; size]).is_ok() {}
        size /= 2;
    }
    writer.set_nonblocking(false).unwrap();
}
