//! Programs that are their own keeper (`Process::keep`). At each restart, the keeper becomes the
//! new program, by `exec`, and stays the same process with the same children.
//!
//! The program is [`handover::serve`], or the example `keep` if the program's main thread matters.
//! Each restart runs a new copy of the file, so the keeper's file shows its version.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::handover::{self, Handover, PID_FILE, SocketKind, descriptors_of, over_tcp_and_unix};
use common::{
    Directory, KeeperProcess, ProcessId, Program, SERVER, copy_file, output, text, wait_until,
};
use rustix::process::Signal;

/// K1 and K8: after each restart, the keeper is the same process and runs the new program, and so
/// do its children. Connections go on.
#[test]
fn the_keeper_becomes_the_new_program() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::own_keeper(over, |_| {});
        let keeper = server.keeper();
        let mut clients: Vec<_> = (0..3).map(|_| server.idle()).collect();
        for _ in 0..3 {
            let old = file_of(keeper);
            install_copy(&server.directory.join("app"));
            let predecessor = server.restart();
            server.assert_handed_over(predecessor, 3);
            wait_for_exec(&mut server);
            let new = fs::metadata(server.directory.join("app")).unwrap().ino();
            assert_eq!([file_of(keeper), file_of(server.serving())], [new, new]);
            assert_ne!(old, new);
            for client in &mut clients {
                assert_eq!(client.get("/pid").response().text(), server.serving().to_string());
            }
            assert_eq!(server.processes().count(), 2);
        }
        server.end();
    });
}

/// A predecessor that still has a request when the keeper becomes the new program stays its child.
/// The predecessor ends after the request, and the keeper logs its exit code.
#[test]
fn the_new_program_knows_the_children_of_the_old_one() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::own_keeper(over, |_| {});
        let mut busy = server.in_flight("/wait/exec");
        let first = server.take_over();
        wait_for_exec(&mut server);
        let second = server.take_over();
        wait_for_exec(&mut server);
        assert!(first.is_running());
        server.release("exec");
        assert_eq!(busy.response().text(), first.to_string());
        for process in [first, second] {
            assert_eq!(server.exit_code(process), 0);
        }
        assert_eq!(busy.get("/pid").response().text(), server.serving().to_string());
        server.end();
    });
}

/// If a child dies after the keeper has become the new program, the keeper starts another one, and
/// clients wait.
#[test]
fn the_new_program_replaces_a_child_that_dies() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::own_keeper(over, |_| {});
        server.restart();
        wait_for_exec(&mut server);
        let dead = server.serving();
        dead.signal(Signal::KILL);
        let end = server.servers.line_of_end(dead);
        assert!(end.contains("has died: signal: 9 (SIGKILL); starting another in 50 ms"), "{end}");
        let next = server.servers.wait_for_start();
        assert_eq!(server.connect().get("/pid").response().text(), next.to_string());
        server.servers.wait_for_ready(next);
        server.restart();
        server.stop();
    });
}

/// A successor that fails leaves the old program in place, in the keeper, too.
#[test]
fn a_successor_that_fails_leaves_the_old_program() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::own_keeper(over, |_| {});
        let old = file_of(server.keeper());
        let mut client = server.idle();
        server.successors_run("exit 3");
        server.servers.signal(Signal::USR2);
        server.line_of(server.keeper(), "has ended before it was ready: exit status: 3");
        assert_eq!(client.get("/pid").response().text(), server.serving().to_string());
        assert_eq!(file_of(server.keeper()), old);
        install_copy(&server.directory.join("app"));
        server.hand_over(1);
        wait_for_exec(&mut server);
        assert_ne!(file_of(server.keeper()), old);
        server.end();
    });
}

/// K8: the old program goes on as the keeper of a new program that is not its own keeper.
#[test]
fn another_kind_of_program_is_kept_by_the_old_one() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::own_keeper(over, |_| {});
        let old = file_of(server.keeper());
        let mut client = server.idle();
        server.successors_run(&format!("exec {SERVER} --listen \"$HANDOVER_LISTEN\""));
        server.hand_over(1);
        assert_eq!(client.get("/livez").response().text(), "live\n");
        // The next restart begins only after this one is over.
        server.hand_over(1);
        assert_eq!(file_of(server.keeper()), old);
        let log = server.end();
        assert!(!log.contains("keeper: continues with "), "{log}");
    });
}

/// K8: if the program's file vanishes between the start of the successor and the exec, the old
/// program goes on as the keeper, and the next restart replaces it.
#[test]
fn a_program_that_cannot_be_run_again_leaves_the_old_one() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::own_keeper(over, |_| {});
        let app = server.directory.join("app");
        let mut client = server.idle();
        let old = file_of(server.keeper());
        let successor = server.ready_successor("");
        fs::remove_file(&app).unwrap();
        let predecessor = server.resume_keeper(successor);
        server.assert_handed_over(predecessor, 1);
        let told = server.line_of(server.keeper(), "keeper: cannot become the new program: ");
        assert!(told.ends_with("; the old one goes on"), "{told}");
        assert_eq!(client.get("/pid").response().text(), server.serving().to_string());
        assert_eq!(file_of(server.keeper()), old);
        install_copy(&app);
        server.restart();
        wait_for_exec(&mut server);
        assert_eq!(client.get("/pid").response().text(), server.serving().to_string());
        server.end();
    });
}

/// The pid file always has the keeper's id, and the keeper still holds its lock after each restart.
#[test]
fn the_pid_file_stays_with_the_keeper() {
    let files = Directory::new();
    let file = files.join("app.pid");
    let mut server = Handover::own_keeper(SocketKind::Tcp, |command| {
        command.env(PID_FILE, &file);
    });
    let id = format!("{}\n", server.keeper());
    wait_until("the keeper is named", || fs::read_to_string(&file).is_ok_and(|text| text == id));
    for _ in 0..2 {
        server.restart();
        wait_for_exec(&mut server);
        assert_eq!(fs::read_to_string(&file).unwrap(), id);
        let mut second = Command::new(SERVER);
        second.args(["keep", "--pid-file"]).arg(&file).args(["--", SERVER]);
        let told = output(&mut second);
        assert_eq!(told.status.code(), Some(1));
        assert!(text(&told.stderr).contains("belongs to "), "{}", text(&told.stderr));
    }
    server.end();
    assert_eq!(fs::metadata(&file).unwrap_err().kind(), ErrorKind::NotFound);
}

/// A restart leaves no descriptor in the keeper, and the keeper passes no extra one to a child.
#[test]
fn no_descriptor_is_left_by_an_exec() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::own_keeper(over, |_| {});
        let restart = |server: &mut Handover| {
            server.hand_over(0);
            wait_for_exec(server);
        };
        restart(&mut server);
        let before = [server.keeper(), server.serving()].map(descriptors_of);
        for _ in 0..5 {
            restart(&mut server);
        }
        wait_until("every descriptor is closed", || {
            let now = [server.keeper(), server.serving()].map(descriptors_of);
            now.iter().zip(before).all(|(now, before)| *now <= before)
        });
        server.end();
    });
}

/// A signal at any moment counts, also in the moment of the exec. A stop ends all processes, and
/// the exit code is 0.
#[test]
fn no_signal_is_lost_in_the_moment_of_the_exec() {
    let directory = Directory::new();
    let app = directory.join("app");
    let example = example();
    for round in 0..12 {
        copy_file(&example, &app);
        let mut command = Command::new(&app);
        command.arg("127.0.0.1:0");
        let mut servers = KeeperProcess::of(command);
        let mut client = servers.program.connect();
        assert_eq!(client.get("/").response().status, 200);
        servers.signal(Signal::USR2);
        match round % 3 {
            // The moment differs each time.
            0 => thread::sleep(Duration::from_millis(15 * round)),
            // This is right after the keeper decides to exec.
            1 => servers.wait_for_successor(),
            _ => {
                servers.program.wait_for("keeper: continues with process ");
            }
        }
        servers.signal(Signal::TERM);
        let log = servers.program.log();
        assert_eq!(servers.program.exit_code(), 0, "round {round}: {log}");
        assert!(log.contains("keeper: stopping because of SIGTERM"), "round {round}: {log}");
    }
}

/// Ten restarts in a second have an exec each. No signal is lost, so after the last one the newest
/// program serves.
#[test]
fn ten_signals_in_a_second_bring_the_newest_program() {
    let directory = Directory::new();
    let app = directory.join("app");
    let example = example();
    let install = || {
        let new = app.with_extension("new");
        copy_file(&example, &new);
        fs::rename(&new, &app).unwrap();
    };
    install();
    let mut command = Command::new(&app);
    command.arg("127.0.0.1:0");
    let mut servers = KeeperProcess::of(command);
    let keeper = servers.keeper();
    let mut client = servers.program.connect();
    for _ in 0..10 {
        install();
        servers.signal(Signal::USR2);
        assert_eq!(client.get("/").response().status, 200);
        thread::sleep(Duration::from_millis(80));
    }
    let newest = fs::metadata(&app).unwrap().ino();
    wait_until("the keeper is the newest program", || file_of(keeper) == newest);
    assert_eq!(client.get("/").response().status, 200);
    let log = servers.end();
    assert!(log.contains("keeper: continues with process "), "{log}");
}

// The parts of the tests above.

/// Waits until the keeper has become the program of the child that serves.
fn wait_for_exec(server: &mut Handover) {
    let words = format!("keeper: continues with process {} as the new program", server.serving());
    server.line_of(server.keeper(), &words);
}

/// Replaces the program by a copy of this test's executable.
fn install_copy(app: &Path) {
    let new = app.with_extension("new");
    copy_file(&std::env::current_exe().unwrap(), &new);
    fs::rename(&new, app).unwrap();
}

/// Returns the inode of the file that a process runs.
fn file_of(process: ProcessId) -> u64 {
    fs::metadata(format!("/proc/{process}/exe")).unwrap().ino()
}

/// Returns the path of the example that is its own keeper.
fn example() -> PathBuf {
    Program::example_command("keep", &[]).get_program().into()
}

/// Serves as its own keeper if another test has started this process for that.
#[test]
fn the_program_of_these_tests() {
    handover::serve();
}
